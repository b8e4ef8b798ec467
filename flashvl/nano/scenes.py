"""nano's world: drawn scenes of one or two large objects on a plain background.

Pure and seeded: `scene(number)` gives the same picture and questions for the same number, on
every machine with the same Pillow and numpy. Training takes odd numbers and scoring even ones
(`training_number`, `scoring_number`), so that they never meet.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .questions import KINDS, LANGUAGES, Question, ask
from .shapes import COLOURS, SHAPES, draw_background, draw_colour, pick, shape_mask

OUTLINE = 4  # cells along a patch's side in which the outline of objects is labelled


@dataclass(frozen=True)
class Object:
    """One object: its words, its box in pixels (right and bottom exclusive), its RGB colour and
    its coverage mask, an "L" image of the box's size (255 where the object is)."""

    shape: str
    colour: str
    box: tuple[int, int, int, int]
    rgb: tuple[int, int, int]
    mask: Image.Image


@dataclass(frozen=True)
class Scene:
    """A picture (RGB), its objects in reading order, and its questions: one of each kind and
    language that has a single right answer."""

    number: int
    picture: Image.Image
    background: tuple[int, int, int]
    objects: tuple[Object, ...]
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
    objects: tuple[int, int] = (1, 2),
    most_elongated: float = 3.0,
) -> Scene:
    """The scene of a number (>= 0).

    sides: shortest and longest canvas side in pixels. objects: fewest and most, 1 or 2.
    most_elongated: the largest ratio of the canvas's sides; beyond 2:1 is rare.
    """
    random = np.random.default_rng(number)
    width, height = _draw_canvas_size(sides, most_elongated, random)
    count = int(random.integers(objects[0], objects[1] + 1))
    things = _lay_out(width, height, count, random)
    background = draw_background([thing.rgb for thing in things], random)
    picture = Image.new("RGB", (width, height), background)
    for thing in things:
        picture.paste(thing.rgb, thing.box, thing.mask)
    if random.random() < 0.25:
        picture = _through_jpeg(picture, random)
    return Scene(number, picture, background, things, ask_everything(things, random))


def ask_everything(objects, random: np.random.Generator) -> tuple[Question, ...]:
    """One question of each kind and language that has a single right answer."""
    questions = (ask(kind, language, objects, random) for kind in KINDS for language in LANGUAGES)
    return tuple(question for question in questions if question is not None)


def packed_tile(
    number: int, side: int, patch_size: int, most_objects: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A tile packed with objects of many sizes, also cut by its edge, and labels for each patch.

    One to `most_objects` objects. Returns pixels (side, side, 3) uint8 and, for each patch in rows
    and columns, its shape and its colour, (patches a side, patches a side) int64: 0 is none,
    1 + i the i-th of SHAPES or COLOURS, -100 (ignored by torch's cross-entropy) where an object
    only touches the patch. Last, which part of each of its OUTLINE x OUTLINE cells lies in an
    object, 0 to 1: (patches a side, patches a side, OUTLINE * OUTLINE) float32.
    """
    random = np.random.default_rng(number)
    # Drawn larger and with another aspect, then resized, as real pictures are before tiling.
    width = int(side * random.uniform(1.0, 2.6))
    height = int(width * random.uniform(0.75, 1.33))
    # The more objects the smaller; one large object teaches shapes first.
    count = int(random.integers(1, most_objects + 1))
    least, most = ((0.35, 0.95), (0.25, 0.6), (0.15, 0.5))[min(count, 3) - 1]
    objects, boxes = [], []
    for _ in range(count):
        size = min(width, height) * float(np.exp(random.uniform(np.log(least), np.log(most))))
        thing = _draw_object(pick(SHAPES, random), pick(tuple(COLOURS), random), size, random)
        w, h = thing.mask.size
        beyond = random.choice((0.0, 0.3))  # how far an object may lie outside the tile
        left = int(random.uniform(-beyond * w, max(width - w + beyond * w, 0)))
        top = int(random.uniform(-beyond * h, max(height - h + beyond * h, 0)))
        box = (left, top, left + w, top + h)
        if not any(_meet(box, other, gap=2) for other in boxes):
            boxes.append(box)
            objects.append(thing)
    background = draw_background([thing.rgb for thing in objects], random)
    picture = Image.new("RGB", (width, height), background)
    patches = side // patch_size
    coverage = np.zeros((len(objects) + 1, patches, patches), np.float32)
    inside = Image.new("L", (width, height))
    for i, (thing, box) in enumerate(zip(objects, boxes)):
        picture.paste(thing.rgb, box, thing.mask)
        alone = Image.new("L", (width, height))
        alone.paste(thing.mask, box[:2])
        inside.paste(thing.mask, box[:2], thing.mask)
        coverage[i + 1] = np.asarray(alone.resize((patches, patches), Image.Resampling.BOX)) / 255
    picture = picture.resize((side, side), Image.Resampling.BICUBIC)
    if random.random() < 0.25:
        picture = _through_jpeg(picture, random)
    coverage[0] = 0.12
    winner = coverage.argmax(0)  # (patches, patches): 0 for none, else 1 + the object's place
    touched = (winner == 0) & (coverage[1:].sum(0) > 0.02)
    shapes = np.array([0] + [1 + SHAPES.index(thing.shape) for thing in objects])
    colours = np.array([0] + [1 + list(COLOURS).index(thing.colour) for thing in objects])
    labels = (np.where(touched, -100, names[winner]) for names in (shapes, colours))
    cells = np.asarray(inside.resize((patches * OUTLINE,) * 2, Image.Resampling.BOX)) / 255
    cells = cells.reshape(patches, OUTLINE, patches, OUTLINE).transpose(0, 2, 1, 3)
    outline = cells.reshape(patches, patches, -1).astype(np.float32)
    return np.asarray(picture), *labels, outline


def _draw_canvas_size(sides, most_elongated: float, random) -> tuple[int, int]:
    shortest, longest = sides
    long = float(np.exp(random.uniform(np.log(shortest), np.log(longest))))
    usual = min(2.0, most_elongated)
    ratio = random.uniform(1.0, most_elongated if random.random() < 0.1 else usual)
    if random.random() < 0.3:
        ratio = 1.0
    short = max(shortest, long / ratio)
    size = (round(long), round(short))
    return size if random.random() < 0.6 else size[::-1]


def _lay_out(width: int, height: int, count: int, random) -> tuple[Object, ...]:
    """Objects that lie wholly in the canvas without meeting, in reading order."""
    shapes = [pick(SHAPES, random) for _ in range(count)]
    colours = [pick(tuple(COLOURS), random) for _ in range(count)]
    if random.random() < 0.2:  # enough pairs that counting must look at the words
        shapes = shapes[:1] * count
    if random.random() < 0.15:
        colours = colours[:1] * count
    short = min(width, height)
    while True:
        sizes = [short * random.uniform(0.2, 0.5) for _ in range(count)]
        objects = [_draw_object(*words, random) for words in zip(shapes, colours, sizes)]
        boxes = []
        for thing in objects:
            w, h = thing.mask.size
            left = int(random.integers(1, width - w))
            top = int(random.integers(1, height - h))
            boxes.append((left, top, left + w, top + h))
        if count == 2:
            if _meet(*boxes, gap=max(3, round(0.04 * short))):
                continue
            across = (boxes[1][0] + boxes[1][2] - boxes[0][0] - boxes[0][2]) / 2 / width
            if 0.06 < abs(across) < 0.14:
                continue  # neither clearly beside nor clearly above each other
            column = abs(across) < 0.1
        placed = [
            Object(thing.shape, thing.colour, box, thing.rgb, thing.mask)
            for thing, box in zip(objects, boxes)
        ]
        if count == 2:  # left before right; top before bottom where they stand in one column
            placed.sort(key=lambda thing: thing.box[1] + thing.box[3] if column else thing.box[0])
        return tuple(placed)


def _draw_object(shape: str, colour: str, size: float, random) -> Object:
    """An object at the canvas's origin."""
    mask = shape_mask(shape, size, random, antialiased=random.random() < 0.75)
    return Object(shape, colour, (0, 0, *mask.size), draw_colour(colour, random), mask)


def _through_jpeg(picture: Image.Image, random) -> Image.Image:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=int(random.integers(50, 96)))
    return Image.open(data).convert("RGB")


def _meet(a, b, gap: int) -> bool:
    return (
        a[0] < b[2] + gap and b[0] < a[2] + gap and a[1] < b[3] + gap and b[1] < a[3] + gap
    )  # fmt: skip
