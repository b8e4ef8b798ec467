"""nano's world: drawn scenes of one or two large objects on a plain background.

Pure and seeded: `scene(number)` gives the same picture and questions for the same number, on
every machine with the same Pillow and numpy. Training takes odd numbers and scoring even ones
(`training_number`, `scoring_number`), so that they never meet.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .questions import KINDS, LANGUAGES, Question, ask

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
# Usual values of each colour word; a drawn colour is a mixture of two of them with a small tint.
COLOURS = {
    "red": ((255, 0, 0), (220, 20, 60), (178, 34, 34), (214, 39, 40), (230, 60, 50)),
    "green": ((0, 128, 0), (0, 255, 0), (34, 139, 34), (46, 204, 113), (0, 100, 0), (50, 205, 50)),
    "blue": ((0, 0, 255), (30, 100, 220), (65, 105, 225), (0, 0, 170), (30, 144, 255)),
    "yellow": ((255, 255, 0), (255, 215, 0), (241, 200, 15), (240, 220, 60), (255, 235, 59)),
    "orange": ((255, 165, 0), (255, 140, 0), (255, 127, 14), (243, 156, 18), (230, 126, 34)),
    "purple": ((128, 0, 128), (160, 32, 240), (102, 51, 153), (148, 0, 211), (142, 68, 173)),
    "black": ((0, 0, 0), (20, 20, 20), (40, 40, 40)),
    "white": ((255, 255, 255), (245, 245, 245), (235, 235, 235)),
}
OUTLINE = 4  # cells along a patch's side in which the outline of objects is labelled
LEAST_CONTRAST = 75.0  # Euclidean distance in RGB between an object and its background


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
    most_objects: int = 2,
    most_elongated: float = 3.0,
) -> Scene:
    """The scene of a number (>= 0).

    sides: shortest and longest canvas side in pixels. most_objects: 1 or 2. most_elongated:
    the largest ratio of the canvas's sides; beyond 2:1 is rare.
    """
    random = np.random.default_rng(number)
    width, height = _draw_canvas_size(sides, most_elongated, random)
    objects = _lay_out(width, height, int(random.integers(1, most_objects + 1)), random)
    background = _draw_background([thing.rgb for thing in objects], random)
    picture = Image.new("RGB", (width, height), background)
    for thing in objects:
        picture.paste(thing.rgb, thing.box, thing.mask)
    if random.random() < 0.25:
        picture = _through_jpeg(picture, random)
    return Scene(number, picture, background, objects, ask_everything(objects, random))


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
        thing = _draw_object(_pick(SHAPES, random), _pick(tuple(COLOURS), random), size, random)
        w, h = thing.mask.size
        beyond = random.choice((0.0, 0.3))  # how far an object may lie outside the tile
        left = int(random.uniform(-beyond * w, max(width - w + beyond * w, 0)))
        top = int(random.uniform(-beyond * h, max(height - h + beyond * h, 0)))
        box = (left, top, left + w, top + h)
        if not any(_meet(box, other, gap=2) for other in boxes):
            boxes.append(box)
            objects.append(thing)
    background = _draw_background([thing.rgb for thing in objects], random)
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
        draw.polygon([tuple(point) for point in outline * (size * fine - 1)], fill=255)
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
        points = [(b, a), (c, a), (c, b), (d, b), (d, c), (c, c)]
        points = np.array([*points, (c, d), (b, d), (b, c), (a, c), (a, b), (b, b)])
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
    shapes = [_pick(SHAPES, random) for _ in range(count)]
    colours = [_pick(tuple(COLOURS), random) for _ in range(count)]
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
    return Object(shape, colour, (0, 0, *mask.size), _draw_colour(colour, random), mask)


def _draw_colour(colour: str, random) -> tuple[int, int, int]:
    values = COLOURS[colour]
    if random.random() < 0.3:
        return _pick(values, random)  # exactly the usual value
    first, second = (np.array(_pick(values, random), float) for _ in range(2))
    weight = random.random()
    return _to_rgb(first * weight + second * (1 - weight) + random.uniform(-10, 10, 3))


def _draw_background(colours: list, random) -> tuple[int, int, int]:
    """A background that contrasts with each of the objects' colours."""
    while True:
        kind = random.random()
        if kind < 0.25:
            grey = _pick((255, 255, 255, 0, 128, 192, 211, 240, 64), random)
            candidate = np.full(3, grey)
        elif kind < 0.4:
            candidate = np.full(3, random.uniform(0, 255)) + random.uniform(-6, 6, 3)
        elif kind < 0.65:
            candidate = 255 - random.uniform(0, 1, 3) * random.uniform(20, 120)  # pastel
        elif kind < 0.85:
            candidate = random.uniform(0, 255, 3)
        else:
            candidate = np.array(_draw_colour(_pick(tuple(COLOURS), random), random))
        if all(np.linalg.norm(candidate - rgb) >= LEAST_CONTRAST for rgb in colours):
            return _to_rgb(candidate)


def _to_rgb(values: np.ndarray) -> tuple[int, int, int]:
    return tuple(int(value) for value in np.clip(np.round(values), 0, 255))


def _through_jpeg(picture: Image.Image, random) -> Image.Image:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=int(random.integers(50, 96)))
    return Image.open(data).convert("RGB")


def _meet(a, b, gap: int) -> bool:
    return (
        a[0] < b[2] + gap and b[0] < a[2] + gap and a[1] < b[3] + gap and b[1] < a[3] + gap
    )  # fmt: skip


def _pick(options, random):
    return options[int(random.integers(len(options)))]
