"""Scores of predictions by rule, as VLMEvalKit counts them; what it gives to a judge is not scored.

Two sets of rules differ in how a letter is told from an answer: those of 2025, with which the model
card was made, and those of the kit's head. A missing prediction is the text "nan", as in the kit.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from string import ascii_uppercase

from ..config import MODEL_KINDS
from ..errors import ArgumentError, TableError
from .prompts import options_of
from .sets import SETS
from .tables import TableRow

RULES = ("2025", "head")

# "score" is the table's figure; the rest are the kit's own: shares of 1 for letters, of 100 for
# yes and no and for mathematics, counts for OCRBench. A table with a column `split` has a part
# for each split.
Score = dict[str, "float | dict[str, float]"]
Predictions = Sequence[tuple[TableRow, "str | None"]]

_NO_ANSWER = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_LAST_WORDS = 4  # where head looks for a letter
_ANSWER_IS = re.compile(r"answer\s+is\s+\*\*([A-D])\*\*", re.IGNORECASE)

_VQA_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_FULL_STOPS = 32  # the kit passes a flag of this value where the count of replacements belongs

_ROTATION = 1_000_000  # what one rotation of a question adds to the index
_SHORT_NAMES = {
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
    "attribute_reasoning": "AR",
}
_REASONING = (
    "code_reasoning",
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
)
_PERCEPTION = (
    *("OCR", "artwork", "celebrity", "color", "count"),
    *("existence", "landmark", "position", "posters", "scene"),
)
_TEXT_RECOGNITION = (
    *("Regular Text Recognition", "Irregular Text Recognition", "Artistic Text Recognition"),
    *("Handwriting Recognition", "Digit String Recognition", "Non-Semantic Text Recognition"),
)
_HANDWRITTEN = "Handwritten Mathematical Expression Recognition"
_OCR_PARTS = (
    *("Text Recognition", "Scene Text-centric VQA", "Doc-oriented VQA"),
    *("Key Information Extraction", _HANDWRITTEN),
)


def score(set_name: str, rows: Predictions, rules: str = "2025") -> Score:
    """The figures of a set, or of a table of one's own; empty where a rule cannot tell.

    Raises `ArgumentError` for unknown rules, `TableError` for what cannot be scored.
    """
    if rules not in RULES:
        raise ArgumentError(f"rules must be {' or '.join(RULES)}, found {rules!r}")
    rule = SETS[set_name].rule if set_name in SETS else None
    if rule == "judge" or all(row.fields.get("answer") is None for row, _ in rows):
        return {}
    if rule == "letter":
        return _letters(rows, rules, open_rows=set_name.startswith("MMMU"))
    if rule == "rotations":
        return _rotations(rows, rules)
    if rule == "yes or no":
        return _pairs(rows)
    if rule == "hallusion":
        return _figures_and_questions(rows)
    if rule == "contained":
        return _contained(rows)
    if rule == "math":
        return _math(rows, rules)
    return _own(rows, rules)


def letter_of(answer: str, options: Mapping[str, str], rules: str = "2025") -> str | None:
    """The option that an answer chooses: Z for a refusal, None for none or several."""
    if _NO_ANSWER not in answer:
        if any(refusal in answer for refusal in _REFUSALS):
            return "Z"
        words = answer.translate(_MARKS).split()
        letters = [letter for letter in options if letter in words]
        last = len(words) if rules == "2025" else _LAST_WORDS
        if len(letters) == 1 and words.index(letters[0]) >= len(words) - last:
            return letters[0]
        if not letters and "Z" in words:
            return "Z"
        if rules == "head" and (found := _ANSWER_IS.search(answer)):
            letter = found[1].upper()
            if letter in options:
                return letter
    if rules == "head" and len(answer.lower()) > 2 * sum(map(len, options.values())):
        return None
    said = [letter for letter, text in options.items() if text.lower() in answer.lower()]
    return said[0] if len(said) == 1 else None


def yes_or_no(answer: str) -> str | None:
    """Yes or No if exactly one of the two is among the words of an answer."""
    words = _without_punctuation(answer.lower()).split()
    said = [word for word in ("yes", "no") if word in words]
    return said[0].capitalize() if len(said) == 1 else None


def _without_punctuation(text: str) -> str:
    """The rule of the VQA benchmark."""
    in_number = _COMMA_IN_NUMBER.search(text)
    result = text
    for mark in _VQA_MARKS:
        vanishes = in_number or f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if vanishes else " ")
    return _FULL_STOP.sub("", result, count=_FULL_STOPS)


def _text(prediction: str | None) -> str:
    return "nan" if prediction is None else prediction


def _share(right: Iterable[bool]) -> float:
    rights = list(right)
    return sum(rights) / len(rights)


def _letters(rows: Predictions, rules: str, open_rows: bool) -> Score:
    """`open_rows`: those without options offer their answer as A, and other answers as B."""
    rights = []
    for row, prediction in rows:
        options, answer = options_of(row), row.fields.get("answer")
        if open_rows:
            if "A" not in options and answer is not None:
                options |= {"A": answer, "B": "Other Answers"}
            answer = answer if answer is not None and answer in ascii_uppercase else "A"
        rights.append((row, letter_of(_text(prediction), options, rules) == answer))
    validation = [right for row, right in rights if row.fields.get("split") == "validation"]
    return {
        "score": 100 * _share(validation or [right for _, right in rights]),
        **_by_category(rights),
    }


def _rotations(rows: Predictions, rules: str) -> Score:
    groups: dict[int, list[bool]] = defaultdict(list)
    unrotated = []
    for row, prediction in rows:
        if not row.index.isdecimal():
            raise TableError(f"{row.place}: the index is no whole number")
        index = int(row.index)
        letter = letter_of(_text(prediction), options_of(row), rules)
        groups[index % _ROTATION].append(letter == row.fields.get("answer"))
        if index < _ROTATION:
            unrotated.append((row, index))
    if not unrotated:
        return {}
    rights = [(row, all(groups[index])) for row, index in unrotated]
    return {"score": 100 * _share(right for _, right in rights), **_by_category(rights)}


def _by_category(rights: Sequence[tuple[TableRow, bool]]) -> Score:
    """Shares over all, each l2-category and each category; in parts if there are splits."""
    splits = dict.fromkeys(row.fields.get("split") for row, _ in rights)
    parts: Score = {}
    for split in splits:
        inside = [(row, right) for row, right in rights if row.fields.get("split") == split]
        shares = {"Overall": _share(right for _, right in inside)}
        for column in ("l2-category", "category"):
            names = {name for row, _ in inside if (name := row.fields.get(column)) is not None}
            for name in sorted(names):
                shares[_SHORT_NAMES.get(name, name)] = _share(
                    right for row, right in inside if row.fields.get(column) == name
                )
        if splits.keys() == {None}:
            parts.update(shares)
        else:
            parts["none" if split is None else split] = shares
    return parts


def _pairs(rows: Predictions) -> Score:
    """MME: a category's accuracy, and the share of its pictures with both questions right."""
    categories: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for row, prediction in rows:
        category, picture = _needed(row, "category"), _needed(row, "image_path")
        right = yes_or_no(_text(prediction)) == row.fields.get("answer")
        categories[category][picture].append(right)
    figures = {}
    for category, pictures in categories.items():
        single = _share(right for both in pictures.values() for right in both) * 100
        figures[category] = single + _share(map(all, pictures.values())) * 100
    perception, reasoning = (
        sum(figures[category] for category in kinds if category in figures)
        for kinds in (_PERCEPTION, _REASONING)
    )
    return {
        "score": perception + reasoning,
        "perception": perception,
        "reasoning": reasoning,
        **dict(sorted(figures.items())),
    }


def _figures_and_questions(rows: Predictions) -> Score:
    """HallusionBench: over rows, over figures with all right, over questions with all right."""
    rights = [
        (row, yes_or_no(_text(prediction)) == row.fields.get("answer")) for row, prediction in rows
    ]
    overall = _three(rights)
    parts: Score = {"score": sum(overall.values()) / 3, **overall}
    for column in ("category", "l2-category"):
        names = dict.fromkeys(name for row, _ in rights if (name := row.fields.get(column)))
        for name in names:
            parts[name] = _three([one for one in rights if one[0].fields.get(column) == name])
    return parts


def _three(rights: Sequence[tuple[TableRow, bool]]) -> dict[str, float]:
    figures: dict[tuple[str | None, str, str], list[bool]] = defaultdict(list)
    questions: dict[tuple[str | None, str, str], list[bool]] = defaultdict(list)
    for row, right in rights:
        parts = row.index.split("_")
        if len(parts) < 6:
            raise TableError(f"{row.place}: the index must be such as VD_illusion_1_0_0_0")
        category = row.fields.get("l2-category")
        figures[category, parts[3], parts[4]].append(right)
        questions[category, parts[3], parts[5]].append(right)
    return {
        "aAcc": _share(right for _, right in rights) * 100,
        "fAcc": _share(map(all, figures.values())) * 100,
        "qAcc": _share(map(all, questions.values())) * 100,
    }


def _contained(rows: Predictions) -> Score:
    """OCRBench: how many predictions contain one of the answers."""
    counts = dict.fromkeys(_OCR_PARTS, 0)
    for row, prediction in rows:
        category = _needed(row, "category")
        kept = _without_spaces if category == _HANDWRITTEN else _plain
        answers = [kept(str(answer)) for answer in _list(row, "answer")]
        part = "Text Recognition" if category in _TEXT_RECOGNITION else category
        said = kept(_text(prediction))
        counts[part] = counts.get(part, 0) + any(answer in said for answer in answers)
    total = sum(counts.values())
    return {"score": total, **counts, "Final Score": total, "Final Score Norm": total / 10}


def _plain(text: str) -> str:
    return text.lower().strip().replace("\n", " ")


def _without_spaces(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")


def _math(rows: Predictions, rules: str) -> Score:
    """MathVista without the judge that the kit asks to extract answers: a figure of ours."""
    parts: dict[str, list[bool]] = defaultdict(list)
    for row, prediction in rows:
        right = _math_right(row, _text(prediction), rules)
        parts["Overall"].append(right)
        if (task := row.fields.get("task")) is not None:
            parts[task].append(right)
        if row.fields.get("skills") is not None:
            for skill in _list(row, "skills"):
                parts[str(skill)].append(right)
    shares = {name: _share(right) * 100 for name, right in parts.items()}
    return {"score": shares["Overall"], **shares}


def _math_right(row: TableRow, prediction: str, rules: str) -> bool:
    if row.fields.get("question_type") == "multi_choice":
        options = dict(zip(ascii_uppercase, map(str, _list(row, "choices"))))
        letter = letter_of(prediction, options, rules)
        return letter is not None and letter == row.fields.get("answer_option")
    kind = {"integer": int, "float": float}.get(row.fields.get("answer_type") or "")
    try:
        return kind is not None and kind(prediction) == kind(_needed(row, "answer"))
    except ValueError:
        return False


def _own(rows: Predictions, rules: str) -> Score:
    """One's own questions: by letter, by yes or no, or by the answer contained in what was said.

    `exact` tells beside it how many of the last are the answer and nothing else.
    """
    rights, exact = [], []
    kinds: dict[str, list[bool]] = defaultdict(list)
    for row, prediction in rows:
        said, answer = _text(prediction), row.fields.get("answer") or ""
        if options := options_of(row):
            kind, right = "choice", letter_of(said, options, rules) == answer
        elif answer.lower() in ("yes", "no"):
            kind, right = "yes or no", yes_or_no(said) == answer.capitalize()
        else:
            kind, right = "open", answer != "" and _plain(answer) in _plain(said)
            exact.append(answer != "" and _plain(answer) == _plain(said))
        kinds[kind].append(right)
        rights.append((row, right))
    shares = {kind: _share(kinds[kind]) for kind in ("choice", "yes or no", "open") if kinds[kind]}
    if exact:
        shares["exact"] = _share(exact)
    return {
        "score": 100 * _share(right for _, right in rights),
        **shares,
        **_by_category(rights),
    }


def _needed(row: TableRow, column: str) -> str:
    cell = row.fields.get(column)
    if cell is None:
        raise TableError(f"{row.place} has no {column}")
    return cell


def _list(row: TableRow, column: str) -> list[object]:
    """A cell that holds a Python list; a single value is a list of one."""
    cell = _needed(row, column)
    try:
        value = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = cell
    return value if isinstance(value, list) else [value]


def card(scores: Mapping[str, Score], model_type: str) -> list[list[str]]:
    """The model card's table over what was scored: published, here, difference, and the average.

    The average is the card's: OCRBench by 10 and MME by 28. MathVista without its judge is shown,
    and left out of it. Sets that wait for a judge are named without a figure.
    """
    column = list(MODEL_KINDS).index(model_type)
    lines = [["set", "published", "here", "difference"]]
    figures: dict[str, tuple[float, float]] = {}
    for name, one in SETS.items():
        if name not in scores or one.title in figures:
            continue
        published, here = one.published[column], scores[name].get("score")
        if not isinstance(here, int | float):
            lines.append([name, f"{published:g}", "needs a judge or answers", ""])
            continue
        ours = " (by our rule)" if one.rule == "math" else ""
        lines.append([name + ours, f"{published:g}", f"{here:.2f}", f"{here - published:+.2f}"])
        if not ours:
            figures[one.title] = (published / one.scale, here / one.scale)
    if figures:
        published, here = (sum(side) / len(figures) for side in zip(*figures.values()))
        title = f"average of {len(figures)}"
        lines.append([title, f"{published:.2f}", f"{here:.2f}", f"{here - published:+.2f}"])
    return lines
