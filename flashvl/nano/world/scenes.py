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
from .numbers import ADVANCE, MOST_DIGITS, draw_digits
from .questions import KINDS, LANGUAGES, Question, ask
from .shapes import COLOURS, SHAPES, pick
from .things import Box, Number, Object, draw_number, draw_object, meet, move

# Longest side of an object at most, of the picture's shorter side, by how many things there are.
MOST = {1: 0.75, 2: 0.5, 3: 0.42, 4: 0.36}
LEAST, LEAST_FONT, MOST_FONT = 0.27, 0.33, 0.6


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
    digits: int = MOST_DIGITS,
    most_elongated: float = 4.0,
) -> Scene:
    """The scene of a number (>= 0).

    sides: shortest and longest canvas side in pixels. things: fewest and most, at most 4; one of
    them may be a number of 1 to `digits` digits. most_elongated: the largest ratio of the
    canvas's sides; beyond 2:1 is rare.
    """
    random = np.random.default_rng(number)
    size = _draw_canvas_size(sides, most_elongated, random)
    count = int(random.integers(things[0], things[1] + 1))
    objects, written = _lay_out(size, count, digits, random)
    drawn = objects if written is None else (*objects, written)
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
        for kind in KINDS
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


def _draw_canvas_size(sides, most_elongated: float, random) -> tuple[int, int]:
    shortest, longest = sides
    long = float(np.exp(random.uniform(np.log(shortest), np.log(longest))))
    usual = min(2.0, most_elongated)
    ratio = random.uniform(1.0, most_elongated if random.random() < 0.15 else usual)
    if random.random() < 0.3:
        ratio = 1.0
    short = max(shortest, long / ratio)
    size = (round(long), round(short))
    return size if random.random() < 0.6 else size[::-1]


def _lay_out(
    size: tuple[int, int], count: int, digits: int, random
) -> tuple[tuple[Object, ...], Number | None]:
    """Objects and perhaps a number that lie wholly in the canvas without meeting."""
    has_number = digits > 0 and random.random() < 0.5
    shapes = [pick(SHAPES, random) for _ in range(count - has_number)]
    colours = [pick(tuple(COLOURS), random) for _ in shapes]
    if random.random() < 0.2:  # enough alike that counting must look at the words
        shapes = shapes[:1] * len(shapes)
    if random.random() < 0.15:
        colours = colours[:1] * len(colours)
    text = draw_digits(int(random.integers(1, digits + 1)), random) if has_number else ""
    text_colour = pick([one for one in COLOURS if one not in colours], random)
    short, shrink = min(size), 1.0
    while True:
        shrink *= 0.97  # large things need not fit; small ones do at last
        things: list[Object | Number] = []
        for shape, colour in zip(shapes, colours):
            side = short * _between(LEAST, MOST[count] * shrink, random)
            things.append(draw_object(shape, colour, side, random))
        if has_number:
            most = min(MOST_FONT * shrink * short, 0.9 * size[0] / ADVANCE / len(text))
            font = _between(LEAST_FONT * short, most, random)
            things.insert(0, draw_number(text, text_colour, font, random))
        placed = _place(things, size, random)
        if placed is not None:
            return placed[has_number:], placed[0] if has_number else None


def _place(things: list, size: tuple[int, int], random) -> tuple | None:
    """The things at free places, most often in rows; None if one found no place."""
    width, height = size
    rows = int(random.integers(1, 4)) if random.random() < 0.7 else None
    gap = max(3, round(0.04 * min(size)))
    placed: list = []
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
    return tuple(placed)


def _between(least: float, most: float, random) -> float:
    """Any size from `least` to `most`, and `least` where that is the larger."""
    return random.uniform(least, max(least, most))
