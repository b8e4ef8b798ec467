"""Questions about a scene, in several wordings of English and Chinese, with the right answers.

Pure functions of what the scene shows and of a random generator. A scene shows objects and at
most one number, and at least one of these; the number's color is no object's color. A number is a
thing, but neither an object nor a shape. A question is asked only where there is one right answer:
"What color is the circle?" needs exactly one circle, or none, which is the right answer then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from . import wordings
from .things import Number, Object, pick
from .wordings import COLORS_ZH, SHAPES_ZH

LANGUAGES = ("en", "zh")
QUESTION_KINDS = (
    "color",
    "shape",
    "count",
    "number",
    "presence",
    "description",
    "list",
    "absent",
    "outside",
    "self",
)


@dataclass(frozen=True)
class Question:
    """One question of `QUESTION_KINDS`, in one of `LANGUAGES`, and its right answer."""

    kind: str
    language: str
    text: str
    answer: str


Wordings = Mapping[str, tuple[str, ...]]  # by language
Draft = tuple[Wordings, str, dict[str, str]]  # wordings, answer, words that the wordings need


def ask(
    kind: str,
    language: str,
    objects: Sequence[Object],
    written: Number | None,
    ordered: bool,
    random: np.random.Generator,
) -> Question | None:
    """A random question of this kind and language, or None if none of them has one answer.

    ordered: whether the objects, given in reading order, have a clear one; without, they are
    neither described nor listed.
    """
    draft: Draft | None = None
    if kind == "color":
        draft = _ask_color(objects, written, language, random)
    elif kind == "shape":
        draft = _ask_shape(objects, written, language, random)
    elif kind == "count":
        draft = _ask_count(objects, written, language, random)
    elif kind == "number":
        draft = (wordings.NUMBER, written.digits, {}) if written else None
    elif kind == "presence":
        draft = _ask_presence(objects, written, language, random)
    elif kind == "description":
        answer = describe(objects, written, language)
        draft = (wordings.DESCRIPTION, answer, {}) if ordered else None
    elif kind == "list":
        answer = list_objects(objects, written, language)
        draft = (wordings.LIST, answer, {}) if ordered and objects else None
    elif kind == "absent":
        draft = _ask_for_absent(objects, written, language, random)
    elif kind == "outside":
        draft = _ask_outside(language, random)
    elif kind == "self":
        draft = _ask_self(language, random)
    else:
        raise ValueError(f"no kind of question: {kind}")
    if draft is None:
        return None
    in_languages, answer, words = draft
    usual = {
        "C": pick(("colour", "color"), random),
        "P": pick(wordings.PICTURE[language], random),
        "thing": pick(wordings.THING[language], random),
        "item": pick(wordings.ITEM[language], random),
    }
    text = pick(in_languages[language], random).format(**(usual | words))
    return Question(kind, language, _as_typed(text, random), answer)


def without_picture(question: Question) -> Question:
    """The same question where no picture is shown: most have another answer then."""
    if question.kind in ("outside", "self"):
        return question
    return replace(question, answer=wordings.NO_PICTURE[question.language])


def _ask_color(
    objects: Sequence[Object], written: Number | None, language: str, random: np.random.Generator
) -> Draft | None:
    shapes = [thing.shape for thing in objects]
    single = [thing for thing in objects if shapes.count(thing.shape) == 1]
    if written and (not single or random.random() < 0.15):
        answer = name_color(written.color, language)
        return wordings.COLOR_BY_NAME, answer, _words_of_number(language)
    if not single:
        return None
    thing = pick(single, random)
    answer = name_color(thing.color, language)
    if _is_it(objects, written, random):
        return wordings.COLOR_OF_IT, answer, {}
    return wordings.COLOR_BY_NAME, answer, _words_of_shape(thing.shape, language, random)


def _ask_shape(
    objects: Sequence[Object], written: Number | None, language: str, random: np.random.Generator
) -> Draft | None:
    colors = [thing.color for thing in objects]
    single = [thing for thing in objects if colors.count(thing.color) == 1]
    if not single:
        return None
    thing = pick(single, random)
    answer = name_shape(thing.shape, language)
    if _is_it(objects, written, random):
        return wordings.SHAPE_OF_IT, answer, {}
    return wordings.SHAPE_BY_COLOR, answer, _words_of_color(name_color(thing.color, language))


def _ask_count(
    objects: Sequence[Object], written: Number | None, language: str, random: np.random.Generator
) -> Draft:
    shapes = [thing.shape for thing in objects]
    colors = [thing.color for thing in objects]
    what = random.choice(("all", "shape", "color", "both"), p=(0.35, 0.35, 0.15, 0.15))
    there = bool(objects) and random.random() < 0.8
    in_languages: Wordings
    if what == "all":
        thing = pick(wordings.THING[language], random)
        number_too = written is not None and thing == wordings.THING_OR_NUMBER[language]
        in_languages, count = wordings.COUNT_ALL, len(shapes) + number_too
        words = {"thing": thing}
    elif what == "shape":
        shape = pick(shapes if there else _absent_shapes(objects), random)
        words = _words_of_shape(shape, language, random)
        in_languages, count = wordings.COUNT_BY_NAME, shapes.count(shape)
    elif what == "both":
        pairs = [(thing.shape, thing.color) for thing in objects]
        pair = pick(pairs, random) if there else _absent_pair(objects, written, random)
        words = _words_of_object(*pair, language, random)
        in_languages, count = wordings.COUNT_BY_NAME, pairs.count(pair)
    else:
        color = pick(colors if there else _absent_colors(objects, written), random)
        words = _words_of_color(name_color(color, language))
        in_languages, count = wordings.COUNT_BY_COLOR, colors.count(color)
    return in_languages, f"{count}个" if language == "zh" else str(count), words


def _ask_presence(
    objects: Sequence[Object], written: Number | None, language: str, random: np.random.Generator
) -> Draft:
    yes = random.random() < 0.5
    answer = (wordings.YES if yes else wordings.NO)[language]
    shapes = [thing.shape for thing in objects] if yes else _absent_shapes(objects)
    colors = [thing.color for thing in objects] if yes else _absent_colors(objects, written)
    chance = random.random()
    if yes == (written is not None) and (not shapes or chance < 0.3):
        return wordings.PRESENCE_BY_NAME, answer, _words_of_number(language)
    if chance < 0.5:
        shape = pick(shapes, random)
        return wordings.PRESENCE_BY_NAME, answer, _words_of_shape(shape, language, random)
    if chance < 0.75:
        pairs = [(thing.shape, thing.color) for thing in objects]
        pair = pick(pairs, random) if yes else _absent_pair(objects, written, random)
        return wordings.PRESENCE_BY_NAME, answer, _words_of_object(*pair, language, random)
    color = name_color(pick(colors, random), language)
    return wordings.PRESENCE_BY_COLOR, answer, _words_of_color(color)


def _ask_for_absent(
    objects: Sequence[Object], written: Number | None, language: str, random: np.random.Generator
) -> Draft:
    chance = random.random()
    if written is None and chance < 1 / 3:
        either: tuple[Wordings, ...] = (wordings.NUMBER, wordings.NUMBER, wordings.COLOR_BY_NAME)
        return pick(either, random), wordings.NO_NUMBER[language], _words_of_number(language)
    if chance < 2 / 3:
        shape = pick(_absent_shapes(objects), random)
        answer = wordings.NO_SHAPE[language].format(shape=name_shape(shape, language))
        return wordings.COLOR_BY_NAME, answer, _words_of_shape(shape, language, random)
    color = name_color(pick(_absent_colors(objects, written), random), language)
    answer = wordings.NO_COLOR[language].format(color=color)
    return wordings.SHAPE_BY_COLOR, answer, _words_of_color(color)


def _ask_outside(language: str, random: np.random.Generator) -> Draft:
    color = name_color(pick(tuple(COLORS_ZH), random), language)
    words = _words_of_color(color)
    about = random.choice(("anything", "place", "noun", "color"), p=(0.35, 0.2, 0.35, 0.1))
    in_languages: Wordings
    if about == "anything":
        in_languages = wordings.OUTSIDE
    elif about == "place":
        in_languages = wordings.PLACE_AND_SIZE
        words |= _words_of_shape(pick(tuple(SHAPES_ZH), random), language, random)
    elif about == "noun":
        by_name: tuple[Wordings, ...] = (
            wordings.COLOR_BY_NAME,
            wordings.COUNT_BY_NAME,
            wordings.PRESENCE_BY_NAME,
            wordings.OUTSIDE_BY_NAME,
        )
        in_languages = pick(by_name, random)
        words |= _words_of_name(*pick(tuple(wordings.NOUNS[language].items()), random))
    else:
        by_color: tuple[Wordings, ...] = (
            wordings.SHAPE_BY_COLOR,
            wordings.COUNT_BY_COLOR,
            wordings.PRESENCE_BY_COLOR,
        )
        in_languages = pick(by_color, random)
        words = _words_of_color(pick(wordings.OUTSIDE_COLORS[language], random))
    return in_languages, wordings.OUTSIDE_ANSWER[language], words


def _ask_self(language: str, random: np.random.Generator) -> Draft:
    if random.random() < 0.2:
        return wordings.THANKS, wordings.THANKS_ANSWER[language], {}
    return wordings.SELF, wordings.SELF_ANSWER[language], {}


def _is_it(objects: Sequence[Object], written: Number | None, random: np.random.Generator) -> bool:
    """Whether to ask for "it", which needs one object alone."""
    return len(objects) == 1 and written is None and random.random() < 0.4


def _absent_shapes(objects: Sequence[Object]) -> list[str]:
    return [shape for shape in SHAPES_ZH if all(thing.shape != shape for thing in objects)]


def _absent_colors(objects: Sequence[Object], written: Number | None) -> list[str]:
    there = {thing.color for thing in objects} | ({written.color} if written else set())
    return [color for color in COLORS_ZH if color not in there]


def _absent_pair(
    objects: Sequence[Object], written: Number | None, random: np.random.Generator
) -> tuple[str, str]:
    """A shape and a color that no object has together, though often one of them."""
    there = {(thing.shape, thing.color) for thing in objects}
    colors = [color for color in COLORS_ZH if written is None or color != written.color]
    pairs = [(shape, color) for shape in SHAPES_ZH for color in colors]
    pairs = [pair for pair in pairs if pair not in there]
    near = [pair for pair in pairs if any(word in one for one in there for word in pair)]
    return pick(near if near and random.random() < 0.7 else pairs, random)


def _as_typed(text: str, random: np.random.Generator) -> str:
    """The text as people type it: now and then in lower case, without its last mark, or both."""
    chance = random.random()
    if chance < 0.2:
        text = text.lower()
    if 0.1 < chance < 0.3:
        text = text[:-1]
    elif 0.3 < chance < 0.4:
        text = text.replace("？", "?")
    return text


def describe(objects: Sequence[Object], written: Number | None, language: str) -> str:
    """All objects in the order given, then the number: "a red circle and the number 42"."""
    parts = [name_object(thing, language) for thing in objects]
    if written:
        parts.append(("数字" if language == "zh" else "the number ") + written.digits)
    comma, last = ("、", "和") if language == "zh" else (", ", " and ")
    return last.join((comma.join(parts[:-1]), parts[-1])) if len(parts) > 1 else parts[0]


def list_objects(objects: Sequence[Object], written: Number | None, language: str) -> str:
    """The same, each object by its shape first: "circle red, star blue, number 42"."""
    between, comma, word = ("", "，", "数字") if language == "zh" else (" ", ", ", "number")
    parts = [
        name_shape(thing.shape, language) + between + name_color(thing.color, language)
        for thing in objects
    ]
    return comma.join([*parts, word + between + written.digits] if written else parts)


def name_object(thing: Object, language: str) -> str:
    """The object as an answer names it: "an orange ring", "一个橙色圆环"."""
    if language == "zh":
        return f"一个{COLORS_ZH[thing.color]}{SHAPES_ZH[thing.shape][0]}"
    return f"{_with_article(thing.color)} {thing.shape}"


def name_shape(shape: str, language: str) -> str:
    """The shape as an answer names it."""
    return SHAPES_ZH[shape][0] if language == "zh" else shape


def name_color(color: str, language: str) -> str:
    """The color as an answer names it."""
    return COLORS_ZH[color] if language == "zh" else color


def _words_of_object(
    shape: str, color: str, language: str, random: np.random.Generator
) -> dict[str, str]:
    """What the wordings leave open, for an object; below the same for a shape and so on."""
    if language == "zh":
        name = COLORS_ZH[color] + pick(("", "的"), random) + SHAPES_ZH[shape][0]
        return _words_of_name(name, "个" + name)
    return _words_of_name(f"{color} {shape}", f"{color} {_plural(shape)}")


def _words_of_shape(shape: str, language: str, random: np.random.Generator) -> dict[str, str]:
    if language == "en":
        return _words_of_name(shape, _plural(shape))
    names = SHAPES_ZH[shape]
    name = names[0] if random.random() < 0.6 else pick(names, random)
    return _words_of_name(name, "个" + name)


def _words_of_number(language: str) -> dict[str, str]:
    return _words_of_name(*wordings.NUMBER_NAMES[language])


def _words_of_name(name: str, counted: str) -> dict[str, str]:
    return {"name": name, "counted": counted, "a_name": _with_article(name)}


def _words_of_color(color: str) -> dict[str, str]:
    return {"color": color, "a_color": _with_article(color)}


def _plural(shape: str) -> str:
    return shape + ("es" if shape == "cross" else "s")


def _with_article(word: str) -> str:
    """The English word after "a" or "an"."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
