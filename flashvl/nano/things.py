"""What lies in nano's pictures: objects and numbers, as drawn and as named."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image

from .numbers import number_mask
from .shapes import draw_colour, shape_mask

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; the last two exclusive


@dataclass(frozen=True)
class Object:
    """One object: its words, its box in pixels (right and bottom exclusive), its RGB colour and
    its coverage mask, an "L" image of the box's size (255 where the object is)."""

    shape: str
    colour: str
    box: Box
    rgb: tuple[int, int, int]
    mask: Image.Image


@dataclass(frozen=True)
class Number:
    """A number: its digits, and the rest as an object's. `spans` says where each digit begins and
    ends in the box, in pixels from its left."""

    digits: str
    colour: str
    box: Box
    rgb: tuple[int, int, int]
    mask: Image.Image
    spans: tuple[tuple[float, float], ...]


Thing = TypeVar("Thing", Object, Number)


def draw_object(shape: str, colour: str, size: float, random: np.random.Generator) -> Object:
    """An object at the canvas's origin; `size` is its longer side in pixels."""
    mask = shape_mask(shape, size, random, antialiased=random.random() < 0.75)
    return Object(shape, colour, (0, 0, *mask.size), draw_colour(colour, random), mask)


def draw_number(digits: str, colour: str, size: float, random: np.random.Generator) -> Number:
    """A number at the canvas's origin; `size` is the font's, in pixels."""
    mask, spans = number_mask(digits, size, antialiased=random.random() < 0.85)
    return Number(digits, colour, (0, 0, *mask.size), draw_colour(colour, random), mask, spans)


def move(thing: Thing, left: int, top: int) -> Thing:
    width, height = thing.mask.size
    return dataclasses.replace(thing, box=(left, top, left + width, top + height))


def meet(a: Box, b: Box, gap: int) -> bool:
    """Whether two boxes are nearer to each other than `gap` pixels along both axes."""
    return (
        a[0] < b[2] + gap and b[0] < a[2] + gap and a[1] < b[3] + gap and b[1] < a[3] + gap
    )  # fmt: skip
