"""Questions about a scene, in several wordings of English and Chinese, with the right answers.

Pure functions of the objects and of a random generator. A question is asked only where the
objects leave one right answer: "What colour is the circle?" needs exactly one circle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .wordings import (
    COLOUR_OF_IT,
    COLOUR_OF_SHAPE,
    COLOURS_ZH,
    COUNT_ALL,
    COUNT_COLOUR,
    COUNT_SHAPE,
    DESCRIPTION,
    LIST,
    PICTURE,
    SHAPE_OF_COLOUR,
    SHAPE_OF_IT,
    SHAPES_ZH,
    THING,
    THING_WITH_SHAPE_ASKED,
)

LANGUAGES = ("en", "zh")
KINDS = ("colour", "shape", "count", "description", "list")


class Coloured(Protocol):
    """What a question needs of an object: its words in English."""

    shape: str
    colour: str


@dataclass(frozen=True)
class Question:
    """One question of a kind of `KINDS` and a language of `LANGUAGES`, and its right answer."""

    kind: str
    language: str
    text: str
    answer: str


def name_object(thing: Coloured, language: str) -> str:
    """The object as an answer names it: "an orange ring", "一个橙色圆环"."""
    if language == "zh":
        return f"一个{COLOURS_ZH[thing.colour]}{SHAPES_ZH[thing.shape][0]}"
    return f"{'an' if thing.colour == 'orange' else 'a'} {thing.colour} {thing.shape}"


def describe(objects: Sequence[Coloured], language: str) -> str:
    """All objects in the order given: "a red circle and a blue star"."""
    joint = "和" if language == "zh" else " and "
    return joint.join(name_object(thing, language) for thing in objects)


def list_objects(objects: Sequence[Coloured], language: str) -> str:
    """All objects in the order given, each by its shape first: "circle red, star blue"."""
    if language == "zh":
        return "，".join(SHAPES_ZH[thing.shape][0] + COLOURS_ZH[thing.colour] for thing in objects)
    return ", ".join(f"{thing.shape} {thing.colour}" for thing in objects)


def ask(
    kind: str, language: str, objects: Sequence[Coloured], random: np.random.Generator
) -> Question | None:
    """A random question of this kind and language, or None if no question has one answer."""
    chinese = language == "zh"
    shapes = [thing.shape for thing in objects]
    colours = [thing.colour for thing in objects]
    one = len(objects) == 1
    if kind == "colour":
        single = [thing for thing in objects if shapes.count(thing.shape) == 1]
        if not single:
            return None
        thing = _pick(single, random)
        words = COLOUR_OF_IT if one and random.random() < 0.4 else COLOUR_OF_SHAPE
        answer = COLOURS_ZH[thing.colour] if chinese else thing.colour
        things = THING
    elif kind == "shape":
        single = [thing for thing in objects if colours.count(thing.colour) == 1]
        if not single:
            return None
        thing = _pick(single, random)
        words = SHAPE_OF_IT if one and random.random() < 0.4 else SHAPE_OF_COLOUR
        answer = SHAPES_ZH[thing.shape][0] if chinese else thing.shape
        things = THING_WITH_SHAPE_ASKED
    elif kind == "count":
        thing = _pick(objects, random)
        words, number = (
            (COUNT_ALL, len(objects)),
            (COUNT_SHAPE, shapes.count(thing.shape)),
            (COUNT_COLOUR, colours.count(thing.colour)),
        )[random.choice(3, p=(0.4, 0.4, 0.2))]
        answer = f"{number}个" if chinese else str(number)
        things = THING
    elif kind == "description":
        thing, words, things = objects[0], DESCRIPTION, THING
        answer = describe(objects, language)
    else:
        thing, words, things = objects[0], LIST, THING
        answer = list_objects(objects, language)
    shape_words = SHAPES_ZH[thing.shape] if chinese else (_plural(thing.shape, words),)
    text = _pick(words[language], random).format(
        C=_pick(("colour", "color"), random),
        P=_pick(PICTURE[language], random),
        thing=_pick(things[language], random),
        colour=COLOURS_ZH[thing.colour] if chinese else thing.colour,
        shape=shape_words[0] if random.random() < 0.6 else _pick(shape_words, random),
    )
    return Question(kind, language, _as_typed(text, random), answer)


def _plural(shape: str, words: dict) -> str:
    if words is not COUNT_SHAPE:
        return shape
    return shape + ("es" if shape == "cross" else "s")


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


def _pick(options: Sequence, random: np.random.Generator):
    return options[int(random.integers(len(options)))]
