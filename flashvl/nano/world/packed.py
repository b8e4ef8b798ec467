"""Tiles packed with objects and numbers, and what each of their patches shows: the tower's lessons.

Pure and seeded as the scenes are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ...config import Padding
from .backgrounds import paint_background
from .scenes import through_jpeg
from .things import (
    ADVANCE,
    COLORS,
    DIGITS,
    SHAPES,
    Number,
    Object,
    draw_digits,
    draw_number,
    draw_object,
    meet,
    move,
    pick,
)

NAMES = (*SHAPES, *DIGITS)  # what a patch can show
CELLS = 4  # along a patch's side, in which outlines are labeled
IGNORED = -100  # torch's cross-entropy passes over this label


@dataclass(frozen=True)
class PackedTile:
    """A tile and labels for each patch, in rows and columns; s is patches a side.

    pixels (side, side, 3) uint8. names and colors (s, s) int64: 0 is nothing, 1 + i the i-th of
    NAMES or COLORS, IGNORED where something only touches the patch. places (s, s) int64: which
    place, from 0, a digit has in its number; IGNORED for all else and where its beginning is not
    seen. outlines (s, s, CELLS**2) float32: which part of each cell is covered. boxes (s, s, 4)
    float32: how far left, top, right and bottom of what the patch shows are from the patch's
    center, in patches; 0 for nothing.
    """

    pixels: np.ndarray
    names: np.ndarray
    colors: np.ndarray
    places: np.ndarray
    outlines: np.ndarray
    boxes: np.ndarray


def packed_tile(
    number: int,
    side: int,
    patch_size: int,
    margin: int,
    things: int,
    digits: int,
    padding_mode: Padding = "constant",
    cut: int = 0,
) -> PackedTile:
    """The tile of a number: `side` pixels a side with 1 to `things` things, also cut by its edge.

    Half of the things are numbers of 1 to `digits` digits; with 0 digits all are objects. At each
    side the tile may end in `margin` patches of padding, as tiles at a picture's border do; what
    the border cuts may go on in it, but without its name. At last `cut` patches are cut off all
    around, for a tower that sees no margin.
    """
    random = np.random.default_rng(number)
    left, top, right, bottom = (margin * (random.random() < 0.4) for _ in range(4))  # of padding
    rows, columns = side // patch_size - top - bottom, side // patch_size - left - right
    # Drawn larger and with another aspect, then resized, as real pictures are before tiling.
    scale = patch_size * random.uniform(1.0, 2.0)
    size = (int(columns * scale), int(rows * scale * random.uniform(0.75, 1.33)))
    placed = _pack(size, things, digits, random)
    picture = paint_background(size, [thing.rgb for thing in placed], random)
    inside = Image.new("L", size)
    for thing in placed:
        picture.paste(thing.rgb, thing.box, thing.mask)
        inside.paste(thing.mask, thing.box[:2])
    picture = picture.resize((columns * patch_size, rows * patch_size), Image.Resampling.BICUBIC)
    if random.random() < 0.25:
        picture = through_jpeg(picture, random)
    padding = np.array(((top, bottom), (left, right), (0, 0)))  # in patches
    # For labels, which are of whole patches, the mirror lies between two of them.
    mode: Padding = "symmetric" if padding_mode == "reflect" else padding_mode
    pixels = np.pad(np.asarray(picture), padding * patch_size, padding_mode)  # (side, side, 3)
    cells = np.asarray(inside.resize((columns * CELLS, rows * CELLS), Image.Resampling.BOX)) / 255
    cells = np.pad(cells, padding[:2] * CELLS, mode)  # (s * CELLS, s * CELLS)
    cells = cells.reshape(side // patch_size, CELLS, -1, CELLS).transpose(0, 2, 1, 3)
    outlines = cells.reshape(*cells.shape[:2], -1).astype(np.float32)  # (s, s, CELLS**2)
    unseen = max(cut - left, 0) * size[0] / columns
    names, colors, places, boxes = _label_patches(placed, size, rows, columns, unseen)
    outside = np.pad(np.zeros((rows, columns), bool), padding[:2], constant_values=True)  # (s, s)
    names, colors = (np.pad(one, padding[:2], mode) for one in (names, colors))
    beyond = outside & (names != 0)
    names[beyond] = colors[beyond] = IGNORED
    places = np.pad(places, padding[:2], constant_values=IGNORED)
    boxes = np.pad(boxes, padding)
    middle = slice(cut, side // patch_size - cut)
    in_pixels = slice(cut * patch_size, side - cut * patch_size)
    labels = (one[middle, middle] for one in (names, colors, places, outlines, boxes))
    return PackedTile(pixels[in_pixels, in_pixels], *labels)


def _pack(
    size: tuple[int, int], things: int, digits: int, random: np.random.Generator
) -> list[Object | Number]:
    """1 to `things` things at free places, some of them partly outside."""
    width, height = size
    placed: list[Object | Number] = []
    count = int(random.integers(1, things + 1))
    for _ in range(count):
        thing = _draw_thing(min(size), count, digits, random)
        w, h = thing.mask.size
        beyond = pick((0.0, 0.3), random)  # how far it may lie outside
        for _ in range(4):
            left = int(random.uniform(-beyond * w, max(width - w + beyond * w, 0)))
            top = int(random.uniform(-beyond * h, max(height - h + beyond * h, 0)))
            moved = move(thing, left, top)
            if not any(meet(moved.box, other.box, gap=2) for other in placed):
                placed.append(moved)
                break
    return placed


def _draw_thing(
    short: int, count: int, digits: int, random: np.random.Generator
) -> Object | Number:
    """An object or number; the more there are the smaller. A large one alone teaches first."""
    color = pick(tuple(COLORS), random)
    if random.random() < 0.5 and digits:
        length = int(random.integers(1, digits + 1))
        minimum, maximum = ((0.4, 1.2), (0.3, 0.8), (0.25, 0.6))[min(count, 3) - 1]
        maximum = min(maximum, 1.2 / ADVANCE / length)
        size = short * np.exp(random.uniform(np.log(min(minimum, maximum)), np.log(maximum)))
        return draw_number(draw_digits(length, random), color, size, random)
    minimum, maximum = ((0.35, 0.95), (0.25, 0.6), (0.18, 0.5))[min(count, 3) - 1]
    size = short * np.exp(random.uniform(np.log(minimum), np.log(maximum)))
    return draw_object(pick(SHAPES, random), color, size, random)


def _label_patches(
    placed: list[Object | Number], size: tuple[int, int], rows: int, columns: int, unseen: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Names, colors, places and boxes of a picture's patches, as in `PackedTile`.

    `unseen` pixels on its left will be cut off.
    """
    # One entry for nothing and one for each part, which is an object or a digit.
    names, colors, places = [0], [0], [IGNORED]
    boxes = [np.zeros(4)]  # in patches
    coverage, needed = [np.zeros((rows, columns))], [0.0]  # of a patch, to have the part's name
    scale = np.array((columns / size[0], rows / size[1]) * 2)  # of boxes, to patches
    for thing in placed:
        if isinstance(thing, Object):
            alone = Image.new("L", size)
            alone.paste(thing.mask, thing.box[:2])
            alone = alone.resize((columns, rows), Image.Resampling.BOX)
            names.append(1 + NAMES.index(thing.shape))
            places.append(IGNORED)
            boxes.append(np.array(thing.box) * scale)
            coverage.append(np.asarray(alone) / 255)
            needed.append(0.12)
        else:
            left, top, _, bottom = thing.box
            seen = left + sum(thing.spans[0]) / 2 > unseen  # half of the first digit or more
            for place, (digit, (begin, end)) in enumerate(zip(thing.digits, thing.spans)):
                names.append(1 + NAMES.index(digit))
                places.append(place if seen else IGNORED)
                boxes.append(np.array((left + begin, top, left + end, bottom)) * scale)
                coverage.append(_cover(boxes[-1], rows, columns))  # its thin strokes cover little
                needed.append(0.35)
        colors += [1 + tuple(COLORS).index(thing.color)] * (len(names) - len(colors))
    covered = np.stack(coverage)  # (1 + parts, rows, columns)
    enough = covered >= np.array(needed)[:, None, None]
    enough[0] = True
    winner = np.where(enough, covered, -1.0).argmax(0)  # (rows, columns)
    touched = (winner == 0) & (covered.max(0) > 0.02)
    from_center = np.array(boxes, np.float32)[winner]  # (rows, columns, 4)
    from_center[..., 0::2] -= np.arange(columns)[None, :, None] + 0.5
    from_center[..., 1::2] -= np.arange(rows)[:, None, None] + 0.5
    from_center[winner == 0] = 0
    of_names, of_colors = (
        np.where(touched, IGNORED, np.array(one, np.int64)[winner]) for one in (names, colors)
    )
    return of_names, of_colors, np.array(places, np.int64)[winner], from_center


def _cover(box: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Which part of each patch a box in patches covers: (4) -> (rows, columns)."""
    x, y = np.arange(columns), np.arange(rows)
    across = np.clip(np.minimum(x + 1, box[2]) - np.maximum(x, box[0]), 0, 1)
    down = np.clip(np.minimum(y + 1, box[3]) - np.maximum(y, box[1]), 0, 1)
    return down[:, None] * across[None, :]
