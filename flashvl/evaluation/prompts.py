"""What the model is asked about a row: to the character what VLMEvalKit's Flash-VL wrapper asks."""

from __future__ import annotations

import re
from string import ascii_uppercase

from ..errors import TableError
from .sets import SETS, SHORT
from .tables import TableRow

_CHINESE = re.compile("[\u4e00-\u9fff]")


def prompt_of(set_name: str, row: TableRow) -> str:
    """The user's turn for a row. Raises `TableError`, also for a row that cannot be asked.

    A set of one's own is asked like the others of its form: rows with options by letter, the rest
    in a single word or phrase.
    """
    if not row.question:
        raise TableError(f"{row.place} has no question")
    options = options_of(row)
    if set_name in SETS:
        suffix = SETS[set_name].suffix
        return _choice(row, options) if suffix is None else row.question + suffix
    if not options:
        return f"{row.question}\n{SHORT.lstrip()}"
    answer = row.fields.get("answer")
    if answer is not None and answer not in options:
        raise TableError(
            f"{row.place} has the options {', '.join(options)}, but its answer is {answer}"
        )
    return _choice(row, options)


def options_of(row: TableRow) -> dict[str, str]:
    """The options that are not missing, by their letters."""
    cells = ((letter, row.fields.get(letter)) for letter in ascii_uppercase)
    return {letter: cell for letter, cell in cells if cell is not None}


def _choice(row: TableRow, options: dict[str, str]) -> str:
    hint = row.fields.get("hint")
    lines = [] if hint is None else [hint]
    lines += [row.question, *(f"{letter}. {text}" for letter, text in options.items())]
    prompt = "\n".join(lines)
    chinese = _CHINESE.search(prompt)
    if options:
        how = "Answer with the option's letter from the given choices directly."
        return f"{prompt}\n" + ("请直接回答选项字母。" if chinese else how)
    return f"{prompt}\n" + ("请直接回答问题。" if chinese else "Answer the question directly.")
