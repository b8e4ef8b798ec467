"""Questions about a scene, in several wordings of English and Chinese, with the right answers.

Pure functions of what the scene shows and of a random generator. A scene shows objects and at
most one number, and at least one of these; the number's colour is no object's colour. A question
is asked only where there is one right answer: "What colour is the circle?" needs exactly one
circle, or none, which is the right answer then. A number is neither a thing nor a shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .answers import (
    Coloured,
    Written,
    describe,
    list_objects,
    name_colour,
    name_shape,
)
from .nouns import NOUNS, OUTSIDE_COLOURS
from .outside import (
    NO_PICTURE,
    OUTSIDE,
    OUTSIDE_ANSWER,
    OUTSIDE_BY_NAME,
    PLACE_AND_SIZE,
    SELF,
    SELF_ANSWER,
)
from .placeholders import (
    words_of_colour,
    words_of_name,
    words_of_number,
    words_of_object,
    words_of_shape,
)
from .shapes import pick
from .wordings import (
    COLOUR_BY_NAME,
    COLOUR_OF_IT,
    COLOURS_ZH,
    COUNT_ALL,
    COUNT_BY_COLOUR,
    COUNT_BY_NAME,
    DESCRIPTION,
    ITEM,
    LIST,
    NO,
    NO_COLOUR,
    NO_NUMBER,
    NO_SHAPE,
    NUMBER,
    PICTURE,
    PRESENCE_BY_COLOUR,
    PRESENCE_BY_NAME,
    SHAPE_BY_COLOUR,
    SHAPE_OF_IT,
    SHAPES_ZH,
    THING,
    THING_BESIDE_NUMBER,
    YES,
)

LANGUAGES = ("en", "zh")
KINDS = (
    "colour",
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
    """One question of a kind of `KINDS` and a language of `LANGUAGES`, and its right answer."""

    kind: str
    language: str
    text: str
    answer: str


Wordings = dict[str, tuple[str, ...]]  # language -> wordings
Draft = tuple[Wordings, str, dict[str, str]]  # wordings, answer, words that the wordings need


def ask(
    kind: str,
    language: str,
    objects: Sequence[Coloured],
    number: Written | None,
    ordered: bool,
    random: np.random.Generator,
) -> Question | None:
    """A random question of this kind and language, or None if none of them has one answer.

    ordered: whether the objects, given in reading order, have a clear one; without, they are
    neither described nor listed.
    """
    given = (objects, number, language, random)
    draft: Draft | None = None
    if kind == "colour":
        draft = _ask_colour(*given)
    elif kind == "shape":
        draft = _ask_shape(*given)
    elif kind == "count":
        draft = _ask_count(*given)
    elif kind == "number":
        draft = (NUMBER, number.digits, {}) if number else None
    elif kind == "presence":
        draft = _ask_presence(*given)
    elif kind == "description":
        draft = (DESCRIPTION, describe(objects, number, language), {}) if ordered else None
    elif kind == "list":
        answer = list_objects(objects, number, language)
        draft = (LIST, answer, {}) if ordered and objects else None
    elif kind == "absent":
        draft = _ask_for_absent(*given)
    elif kind == "outside":
        draft = _ask_outside(language, random)
    elif kind == "self":
        draft = (SELF, SELF_ANSWER[language], {})
    else:
        raise ValueError(f"no kind of question: {kind}")
    if draft is None:
        return None
    wordings, answer, words = draft
    usual = {
        "C": pick(("colour", "color"), random),
        "P": pick(PICTURE[language], random),
        "thing": pick(THING[language], random),
        "item": pick(ITEM[language], random),
    }
    text = pick(wordings[language], random).format(**(usual | words))
    return Question(kind, language, _as_typed(text, random), answer)


def without_picture(question: Question) -> Question:
    """The same question where no picture is shown: most have another answer then."""
    if question.kind in ("outside", "self"):
        return question
    return replace(question, answer=NO_PICTURE[question.language])


def _ask_colour(objects, number, language, random) -> Draft | None:
    shapes = [thing.shape for thing in objects]
    single = [thing for thing in objects if shapes.count(thing.shape) == 1]
    if number and (not single or random.random() < 0.15):
        answer = name_colour(number.colour, language)
        return COLOUR_BY_NAME, answer, words_of_number(language)
    if not single:
        return None
    thing = pick(single, random)
    answer = name_colour(thing.colour, language)
    if _is_it(objects, number, random):
        return COLOUR_OF_IT, answer, {}
    return COLOUR_BY_NAME, answer, words_of_shape(thing.shape, language, random)


def _ask_shape(objects, number, language, random) -> Draft | None:
    colours = [thing.colour for thing in objects]
    single = [thing for thing in objects if colours.count(thing.colour) == 1]
    if not single:
        return None
    thing = pick(single, random)
    answer = name_shape(thing.shape, language)
    if _is_it(objects, number, random):
        return SHAPE_OF_IT, answer, {}
    return SHAPE_BY_COLOUR, answer, words_of_colour(name_colour(thing.colour, language))


def _ask_count(objects, number, language, random) -> Draft:
    shapes = [thing.shape for thing in objects]
    colours = [thing.colour for thing in objects]
    what = random.choice(("all", "shape", "colour", "both"), p=(0.35, 0.35, 0.15, 0.15))
    there = bool(objects) and random.random() < 0.8
    if what == "all":
        things = THING_BESIDE_NUMBER if number else THING
        wordings, count, words = COUNT_ALL, len(shapes), {"thing": pick(things[language], random)}
    elif what == "shape":
        shape = pick(shapes if there else _absent_shapes(objects), random)
        words = words_of_shape(shape, language, random)
        wordings, count = COUNT_BY_NAME, shapes.count(shape)
    elif what == "both":
        pairs = [(thing.shape, thing.colour) for thing in objects]
        pair = pick(pairs, random) if there else _absent_pair(objects, number, random)
        words = words_of_object(*pair, language, random)
        wordings, count = COUNT_BY_NAME, pairs.count(pair)
    else:
        colour = pick(colours if there else _absent_colours(objects, number), random)
        words = words_of_colour(name_colour(colour, language))
        wordings, count = COUNT_BY_COLOUR, colours.count(colour)
    return wordings, f"{count}个" if language == "zh" else str(count), words


def _ask_presence(objects, number, language, random) -> Draft:
    yes = random.random() < 0.5
    answer = (YES if yes else NO)[language]
    shapes = [thing.shape for thing in objects] if yes else _absent_shapes(objects)
    colours = [thing.colour for thing in objects] if yes else _absent_colours(objects, number)
    chance = random.random()
    if yes == (number is not None) and (not shapes or chance < 0.3):
        return PRESENCE_BY_NAME, answer, words_of_number(language)
    if chance < 0.5:
        shape = pick(shapes, random)
        return PRESENCE_BY_NAME, answer, words_of_shape(shape, language, random)
    if chance < 0.75:
        pairs = [(thing.shape, thing.colour) for thing in objects]
        pair = pick(pairs, random) if yes else _absent_pair(objects, number, random)
        return PRESENCE_BY_NAME, answer, words_of_object(*pair, language, random)
    colour = name_colour(pick(colours, random), language)
    return PRESENCE_BY_COLOUR, answer, words_of_colour(colour)


def _ask_for_absent(objects, number, language, random) -> Draft:
    chance = random.random()
    if number is None and chance < 1 / 3:
        wordings = pick((NUMBER, NUMBER, COLOUR_BY_NAME), random)
        return wordings, NO_NUMBER[language], words_of_number(language)
    if chance < 2 / 3:
        shape = pick(_absent_shapes(objects), random)
        answer = NO_SHAPE[language].format(shape=name_shape(shape, language))
        return COLOUR_BY_NAME, answer, words_of_shape(shape, language, random)
    colour = name_colour(pick(_absent_colours(objects, number), random), language)
    return SHAPE_BY_COLOUR, NO_COLOUR[language].format(colour=colour), words_of_colour(colour)


def _ask_outside(language, random) -> Draft:
    colour = name_colour(pick(tuple(COLOURS_ZH), random), language)
    words = words_of_colour(colour)
    about = random.choice(("anything", "place", "noun", "colour"), p=(0.35, 0.2, 0.35, 0.1))
    if about == "anything":
        wordings = OUTSIDE
    elif about == "place":
        wordings = PLACE_AND_SIZE
        words |= words_of_shape(pick(tuple(SHAPES_ZH), random), language, random)
    elif about == "noun":
        by_name = (COLOUR_BY_NAME, COUNT_BY_NAME, PRESENCE_BY_NAME, OUTSIDE_BY_NAME)
        wordings = pick(by_name, random)
        words |= words_of_name(*pick(tuple(NOUNS[language].items()), random))
    else:
        wordings = pick((SHAPE_BY_COLOUR, COUNT_BY_COLOUR, PRESENCE_BY_COLOUR), random)
        words = words_of_colour(pick(OUTSIDE_COLOURS[language], random))
    return wordings, OUTSIDE_ANSWER[language], words


def _is_it(objects, number, random) -> bool:
    """Whether to ask for "it", which needs one object alone."""
    return len(objects) == 1 and number is None and random.random() < 0.4


def _absent_shapes(objects) -> list[str]:
    return [shape for shape in SHAPES_ZH if all(thing.shape != shape for thing in objects)]


def _absent_colours(objects, number) -> list[str]:
    there = {thing.colour for thing in objects} | ({number.colour} if number else set())
    return [colour for colour in COLOURS_ZH if colour not in there]


def _absent_pair(objects, number, random) -> tuple[str, str]:
    """A shape and a colour that no object has together, though often one of them."""
    there = {(thing.shape, thing.colour) for thing in objects}
    colours = [colour for colour in COLOURS_ZH if number is None or colour != number.colour]
    pairs = [(shape, colour) for shape in SHAPES_ZH for colour in colours]
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
