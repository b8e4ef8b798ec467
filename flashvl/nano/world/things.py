"""What lies in nano's pictures: objects of a shape and a color, and numbers, drawn and named.

Shapes and colors come in as many variants as people would call by the same name; digits are those
of Pillow's built-in font.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont

RGB = tuple[int, int, int]
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; the last two exclusive
Span = tuple[float, float]  # begin and end, in pixels
Option = TypeVar("Option")

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
# Usual values of each color word; a drawn color is a mixture of two of them with a small tint.
COLORS: dict[str, tuple[RGB, ...]] = {
    "red": ((255, 0, 0), (220, 20, 60), (178, 34, 34), (214, 39, 40), (230, 60, 50)),
    "green": ((0, 128, 0), (0, 255, 0), (34, 139, 34), (46, 204, 113), (0, 100, 0), (50, 205, 50)),
    "blue": ((0, 0, 255), (30, 100, 220), (65, 105, 225), (0, 0, 170), (30, 144, 255)),
    "yellow": ((255, 255, 0), (255, 215, 0), (241, 200, 15), (240, 220, 60), (255, 235, 59)),
    "orange": ((255, 165, 0), (255, 140, 0), (255, 127, 14), (243, 156, 18), (230, 126, 34)),
    "purple": ((128, 0, 128), (160, 32, 240), (102, 51, 153), (148, 0, 211), (142, 68, 173)),
    "black": ((0, 0, 0), (20, 20, 20), (40, 40, 40)),
    "white": ((255, 255, 255), (245, 245, 245), (235, 235, 235)),
}
DIGITS = "0123456789"
MAX_DIGITS = 4  # of a number in a picture
ADVANCE = 0.575  # a digit's width as a part of the font's size; all ten are equally wide


@dataclass(frozen=True)
class Object:
    """One object: its words, its box in pixels (right and bottom exclusive), its RGB color and
    its coverage mask, an "L" image of the box's size (255 where the object is)."""

    shape: str
    color: str
    box: Box
    rgb: RGB
    mask: Image.Image


@dataclass(frozen=True)
class Number:
    """A number: its digits, such as "42", and the rest as an object's. `spans` says where each
    digit begins and ends in the box, in pixels from its left."""

    digits: str
    color: str
    box: Box
    rgb: RGB
    mask: Image.Image
    spans: tuple[Span, ...]


def draw_object(shape: str, color: str, size: float, random: np.random.Generator) -> Object:
    """An object at the canvas's origin; `size` is its longer side in pixels."""
    mask = shape_mask(shape, size, random, antialiased=random.random() < 0.75)
    return Object(shape, color, (0, 0, *mask.size), draw_color(color, random), mask)


def draw_number(digits: str, color: str, size: float, random: np.random.Generator) -> Number:
    """A number at the canvas's origin; `size` is the font's, in pixels."""
    mask, spans = number_mask(digits, size, antialiased=random.random() < 0.85)
    return Number(digits, color, (0, 0, *mask.size), draw_color(color, random), mask, spans)


def move(thing: Object | Number, left: int, top: int) -> Object | Number:
    width, height = thing.mask.size
    return dataclasses.replace(thing, box=(left, top, left + width, top + height))


def meet(a: Box, b: Box, gap: int) -> bool:
    """Whether two boxes are nearer to each other than `gap` pixels along both axes."""
    return (
        a[0] < b[2] + gap and b[0] < a[2] + gap and a[1] < b[3] + gap and b[1] < a[3] + gap
    )  # fmt: skip


def shape_mask(
    shape: str, size: float, random: np.random.Generator, antialiased: bool = True
) -> Image.Image:
    """A coverage mask ("L", 255 inside) whose longer side is `size` pixels, in a random variant
    of the shape: proportions, thickness and a rotation that people would still call by its name.
    """
    outline = _outline(shape, random)  # (points, 2), any scale
    outline = outline - outline.min(0)
    outline = outline / outline.max()
    fine = 1 if not antialiased else 4 if size < 100 else 2
    w, h = (max(4, round(float(extent) * size)) for extent in outline.max(0))
    mask = Image.new("L", (w * fine, h * fine))
    draw = ImageDraw.Draw(mask)
    if shape in ("circle", "ring"):
        draw.ellipse((0, 0, w * fine - 1, h * fine - 1), fill=255)
        if shape == "ring":
            edge = max(1.2, random.uniform(0.07, 0.27) * w) * fine
            draw.ellipse((edge, edge, w * fine - 1 - edge, h * fine - 1 - edge), fill=0)
    else:
        draw.polygon([(x, y) for x, y in outline * (size * fine - 1)], fill=255)
    return mask.reduce(fine) if fine > 1 else mask


def _outline(shape: str, random: np.random.Generator) -> np.ndarray:
    """Corner points (points, 2) of one variant of the shape; x to the right, y downwards."""
    if shape in ("circle", "ring"):
        return np.array([[0.0, 0.0], [1.0, 1.0]])
    if shape == "square":
        points = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
        slight, free = 0.3, 0.08
    elif shape == "triangle":
        apex = 0.5 if random.random() < 0.75 else random.uniform(0, 1)
        points = np.array([[0, 1], [1, 1], [apex, 1 - random.uniform(0.75, 1.2)]])
        slight, free = 0.15, 0.25
    elif shape == "star":
        inner = random.uniform(0.32, 0.52)
        angles = np.arange(10) * np.pi / 5 - np.pi / 2
        radii = np.where(np.arange(10) % 2, inner, 1.0)
        points = np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)
        slight, free = 0.25, 0.15
    else:
        t = random.uniform(0.18, 0.42) / 2
        a, b, c, d = 0.0, 0.5 - t, 0.5 + t, 1.0
        upper = [(b, a), (c, a), (c, b), (d, b), (d, c), (c, c)]
        points = np.array([*upper, (c, d), (b, d), (b, c), (a, c), (a, b), (b, b)])
        slight, free = 0.2, 0.05
        if random.random() < 0.15:  # an X
            points = _rotate(points, 45.0)
    chance = random.random()
    if chance < slight:
        return _rotate(points, random.uniform(-20, 20))
    if chance < slight + free:
        return _rotate(points, random.uniform(-180, 180))
    return points


def _rotate(points: np.ndarray, degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return points @ np.array([[c, s], [-s, c]])


def draw_digits(count: int, random: np.random.Generator) -> str:
    """A number of `count` digits without leading zeros; each digit as likely where it may stand."""
    first = random.integers(1 if count > 1 else 0, 10)
    return "".join(str(digit) for digit in (first, *random.integers(0, 10, count - 1)))


def number_mask(
    digits: str, size: float, antialiased: bool = True
) -> tuple[Image.Image, tuple[Span, ...]]:
    """A coverage mask ("L", 255 inside) of the digits in the built-in font at `size` pixels.

    It is cut at the ink. Returns the mask and for each digit where it begins and ends in it,
    in pixels from the left.
    """
    font = _font(max(4, round(size)))
    _, _, right, bottom = font.getbbox(digits)
    mask = Image.new("L", (int(right) + 2, int(bottom) + 2))
    draw = ImageDraw.Draw(mask)
    draw.fontmode = "L" if antialiased else "1"
    draw.text((0, 0), digits, fill=255, font=font)
    ink = mask.getbbox()
    assert ink is not None, "every digit has ink"
    ends = [font.getlength(digits[: i + 1]) - ink[0] for i in range(len(digits))]
    return mask.crop(ink), tuple(zip([-float(ink[0]), *ends[:-1]], ends))


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def draw_color(color: str, random: np.random.Generator) -> RGB:
    values = COLORS[color]
    if random.random() < 0.3:
        return pick(values, random)  # exactly the usual value
    first, second = (np.array(pick(values, random), float) for _ in range(2))
    weight = random.random()
    return to_rgb(first * weight + second * (1 - weight) + random.uniform(-10, 10, 3))


def to_rgb(values: np.ndarray) -> RGB:
    """The nearest RGB color. (3) floats -> three whole numbers from 0 to 255."""
    red, green, blue = (int(value) for value in np.clip(np.round(values), 0, 255))
    return red, green, blue


def pick(options: Sequence[Option], random: np.random.Generator) -> Option:
    """One of the options, each as likely."""
    return options[int(random.integers(len(options)))]
