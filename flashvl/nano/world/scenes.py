"""nano's world: drawn scenes of up to four things, objects and a number, and questions about them.

Pure and seeded: `scene(number)` gives the same picture and questions for the same number, on
every machine with the same Pillow and numpy. Training takes odd numbers and scoring even ones
(`training_number`, `scoring_number`), so that they never meet.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image

from .backgrounds import paint_background
from .questions import LANGUAGES, QUESTION_KINDS, Question, ask
from .things import (
    ADVANCE,
    COLORS,
    MAX_DIGITS,
    SHAPES,
    Box,
    Number,
    Object,
    draw_digits,
    draw_number,
    draw_object,
    meet,
    move,
    pick,
)

# As parts of the picture's shorter side.
MIN_SIDE = 0.27  # the longer side of an object
MAX_SIDE = {1: 0.75, 2: 0.5, 3: 0.42, 4: 0.36}  # by how many things there are
MIN_FONT, MAX_FONT = 0.33, 0.6  # the size of a number's font


@dataclass(frozen=True)
class Scene:
    """A picture (RGB), its objects and the number written in it, and its questions: one of each
    kind and language that has a single right answer.

    The objects are in reading order, row by row, if `ordered`; else there are no clear rows.
    """

    number: int
    picture: Image.Image
    objects: tuple[Object, ...]
    written: Number | None
    ordered: bool
    questions: tuple[Question, ...]


def training_number(seed: int, index: int) -> int:
    """The scene number of training's draw `index` under `seed`: always odd."""
    return 2 * ((seed << 40) + index) + 1


def scoring_number(seed: int, index: int) -> int:
    """The scene number of scoring's draw `index` under `seed`: always even."""
    return 2 * ((seed << 40) + index)


def scene(
    number: int,
    sides: tuple[int, int] = (80, 640),
    things: tuple[int, int] = (1, 4),
    digits: int = MAX_DIGITS,
    max_aspect_ratio: float = 4.0,
) -> Scene:
    """The scene of a number (>= 0).

    sides: minimum and maximum of the canvas's sides in pixels. things: minimum and maximum, up to
    4; one of them may be a number of 1 to `digits` digits. max_aspect_ratio: of the canvas's longer
    side to its shorter one; beyond 2:1 is rare.
    """
    random = np.random.default_rng(number)
    size = _draw_canvas_size(sides, max_aspect_ratio, random)
    count = int(random.integers(things[0], things[1] + 1))
    objects, written = _lay_out(size, count, digits, random)
    drawn: tuple[Object | Number, ...] = (*objects, written) if written else objects
    picture = paint_background(size, [thing.rgb for thing in drawn], random)
    for thing in drawn:
        picture.paste(thing.rgb, thing.box, thing.mask)
    if random.random() < 0.25:
        picture = through_jpeg(picture, random)
    order = reading_order([thing.box for thing in objects], size)
    objects = objects if order is None else tuple(objects[place] for place in order)
    questions = ask_everything(objects, random, written, order is not None)
    return Scene(number, picture, objects, written, order is not None, questions)


def ask_everything(
    objects: Sequence[Object],
    random: np.random.Generator,
    written: Number | None = None,
    ordered: bool = True,
) -> tuple[Question, ...]:
    """One question of each kind and language that has a single right answer."""
    questions = (
        ask(kind, language, objects, written, ordered, random)
        for kind in QUESTION_KINDS
        for language in LANGUAGES
    )
    return tuple(question for question in questions if question is not None)


def reading_order(boxes: Sequence[Box], size: tuple[int, int]) -> list[int] | None:
    """The places of boxes in rows from the top, each from the left; None without clear rows.

    The middles of one row are within an eighth of the picture's height, and a fifth or more lies
    between two rows. Within a row they are at least 8 % of the width apart.
    """
    width, height = size
    across = [(left + right) / 2 / width for left, _, right, _ in boxes]
    down = [(top + bottom) / 2 / height for _, top, _, bottom in boxes]
    rows: list[list[int]] = []
    for place in sorted(range(len(boxes)), key=down.__getitem__):
        if rows and down[place] - down[rows[-1][0]] < 0.125:
            rows[-1].append(place)
        elif rows and down[place] - down[rows[-1][-1]] < 0.2:
            return None
        else:
            rows.append([place])
    for row in rows:
        row.sort(key=across.__getitem__)
        if any(across[b] - across[a] < 0.08 for a, b in pairwise(row)):
            return None
    return [place for row in rows for place in row]


def through_jpeg(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """The picture as it comes back from a JPEG file of some quality."""
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=int(random.integers(50, 96)))
    return Image.open(data).convert("RGB")


def _draw_canvas_size(
    sides: tuple[int, int], max_aspect_ratio: float, random: np.random.Generator
) -> tuple[int, int]:
    shortest, longest = sides
    long = float(np.exp(random.uniform(np.log(shortest), np.log(longest))))
    usual = min(2.0, max_aspect_ratio)
    ratio = random.uniform(1.0, max_aspect_ratio if random.random() < 0.15 else usual)
    if random.random() < 0.3:
        ratio = 1.0
    short = max(shortest, long / ratio)
    width, height = round(long), round(short)
    return (width, height) if random.random() < 0.6 else (height, width)


def _lay_out(
    size: tuple[int, int], count: int, digits: int, random: np.random.Generator
) -> tuple[tuple[Object, ...], Number | None]:
    """Objects and perhaps a number that lie wholly in the canvas without meeting."""
    has_number = digits > 0 and random.random() < 0.5
    shapes = [pick(SHAPES, random) for _ in range(count - has_number)]
    colors = [pick(tuple(COLORS), random) for _ in shapes]
    if random.random() < 0.2:  # enough alike that counting must look at the words
        shapes = shapes[:1] * len(shapes)
    if random.random() < 0.15:
        colors = colors[:1] * len(colors)
    text = draw_digits(int(random.integers(1, digits + 1)), random) if has_number else ""
    text_color = pick([one for one in COLORS if one not in colors], random)
    short, shrink = min(size), 1.0
    while True:
        shrink *= 0.97  # large things need not fit; small ones do at last
        things: list[Object | Number] = []
        for shape, color in zip(shapes, colors):
            side = short * _between(MIN_SIDE, MAX_SIDE[count] * shrink, random)
            things.append(draw_object(shape, color, side, random))
        if has_number:
            maximum = min(MAX_FONT * shrink * short, 0.9 * size[0] / ADVANCE / len(text))
            font = _between(MIN_FONT * short, maximum, random)
            things.insert(0, draw_number(text, text_color, font, random))
        placed = _place(things, size, random)
        if placed is not None:
            objects = tuple(thing for thing in placed if isinstance(thing, Object))
            numbers = [thing for thing in placed if isinstance(thing, Number)]
            return objects, numbers[0] if numbers else None


def _place(
    things: Sequence[Object | Number], size: tuple[int, int], random: np.random.Generator
) -> list[Object | Number] | None:
    """The things at free places, most often in rows; None if one found no place."""
    width, height = size
    rows = int(random.integers(1, 4)) if random.random() < 0.7 else None
    gap = max(3, round(0.04 * min(size)))
    placed: list[Object | Number] = []
    for thing in things:
        w, h = thing.mask.size
        if w >= width - 1 or h >= height - 1:
            return None
        for _ in range(12):
            left, top = int(random.integers(1, width - w)), int(random.integers(1, height - h))
            if rows is not None:
                middle = (random.integers(rows) + 0.5 + random.uniform(-0.05, 0.05)) / rows
                top = min(max(round(middle * height - h / 2), 1), height - h - 1)
            moved = move(thing, left, top)
            if not any(meet(moved.box, other.box, gap) for other in placed):
                placed.append(moved)
                break
        else:
            return None
    return placed


def _between(minimum: float, maximum: float, random: np.random.Generator) -> float:
    """Any size from `minimum` to `maximum`, and `minimum` where that is the larger."""
    return random.uniform(minimum, max(minimum, maximum))
