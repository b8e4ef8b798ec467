"""How nano's answers name what a scene shows, in English and Chinese."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .wordings import COLOURS_ZH, SHAPES_ZH


class Coloured(Protocol):
    """What a question needs of an object: its words in English."""

    shape: str
    colour: str


class Written(Protocol):
    """What a question needs of the number: its digits, as "042", and its colour in English."""

    digits: str
    colour: str


def name_object(thing: Coloured, language: str) -> str:
    """The object as an answer names it: "an orange ring", "一个橙色圆环"."""
    if language == "zh":
        return f"一个{COLOURS_ZH[thing.colour]}{SHAPES_ZH[thing.shape][0]}"
    return f"{with_article(thing.colour)} {thing.shape}"


def describe(objects: Sequence[Coloured], number: Written | None, language: str) -> str:
    """All objects in the order given, then the number: "a red circle and the number 42"."""
    parts = [name_object(thing, language) for thing in objects]
    if number:
        parts.append(f"数字{number.digits}" if language == "zh" else f"the number {number.digits}")
    comma, last = ("、", "和") if language == "zh" else (", ", " and ")
    return last.join((comma.join(parts[:-1]), parts[-1])) if len(parts) > 1 else parts[0]


def list_objects(objects: Sequence[Coloured], number: Written | None, language: str) -> str:
    """The same, each object by its shape first: "circle red, star blue, number 42"."""
    between, comma, word = ("", "，", "数字") if language == "zh" else (" ", ", ", "number")
    parts = [
        name_shape(thing.shape, language) + between + name_colour(thing.colour, language)
        for thing in objects
    ]
    return comma.join([*parts, word + between + number.digits] if number else parts)


def name_shape(shape: str, language: str) -> str:
    """The shape as an answer names it."""
    return SHAPES_ZH[shape][0] if language == "zh" else shape


def name_colour(colour: str, language: str) -> str:
    """The colour as an answer names it."""
    return COLOURS_ZH[colour] if language == "zh" else colour


def with_article(word: str) -> str:
    """The English word after "a" or "an"."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
