"""Packed tiles: what the tower is told of each patch is what the patch shows."""

from __future__ import annotations

import functools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from flashvl.config import Padding
from flashvl.nano.world import packed
from flashvl.nano.world.packed import CELLS, IGNORED, NAMES, PackedTile, packed_tile
from flashvl.nano.world.things import COLORS, DIGITS, SHAPES, Object

numbers = st.integers(0, 2**60)
TILE, PATCH = 112, 14
SIDE = TILE // PATCH
CELL = PATCH / CELLS  # pixels


@functools.cache
def tile_of(
    number: int, margin: int = 0, things: int = 6, digits: int = 4, padding: Padding = "constant"
) -> PackedTile:
    """Drawn once, for several tests look at the same ones."""
    return packed_tile(number, TILE, PATCH, margin, things, digits, padding)


def as_map(tile: PackedTile) -> np.ndarray:
    """The outlines side by side: (SIDE * CELLS, SIDE * CELLS)."""
    cells = tile.outlines.reshape(SIDE, SIDE, CELLS, CELLS)
    return cells.transpose(0, 2, 1, 3).reshape(SIDE * CELLS, SIDE * CELLS)


def boxes_in_the_tile(tile: PackedTile) -> np.ndarray:
    """Boxes from the tile's left and top instead of from each patch's center, in patches."""
    centers = np.arange(SIDE) + 0.5
    boxes = tile.boxes.copy()
    boxes[..., 0::2] += centers[None, :, None]
    boxes[..., 1::2] += centers[:, None, None]
    return boxes


@given(numbers)
@settings(max_examples=10)
def test_the_same_number_gives_the_same_tile(number):
    first, second, other = (
        packed_tile(one, TILE, PATCH, 1, 6, 4) for one in (number, number, number + 1)
    )
    for name in ("pixels", "names", "colors", "places", "outlines", "boxes"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert (first.pixels != other.pixels).any()


@given(numbers, st.integers(0, 2), st.integers(1, 6), st.integers(0, 4))
def test_shapes_and_ranges(number, margin, things, digits):
    tile = tile_of(number, margin, things, digits)
    assert (tile.pixels.shape, tile.pixels.dtype) == ((TILE, TILE, 3), np.uint8)
    assert (tile.names.shape, tile.names.dtype) == ((SIDE, SIDE), np.int64)
    assert (tile.colors.shape, tile.colors.dtype) == ((SIDE, SIDE), np.int64)
    assert (tile.places.shape, tile.places.dtype) == ((SIDE, SIDE), np.int64)
    assert (tile.outlines.shape, tile.outlines.dtype) == ((SIDE, SIDE, CELLS**2), np.float32)
    assert (tile.boxes.shape, tile.boxes.dtype) == ((SIDE, SIDE, 4), np.float32)
    assert tile.outlines.min() >= 0
    assert tile.outlines.max() <= 1
    known = len(NAMES) if digits else len(SHAPES)
    assert set(np.unique(tile.names)) <= {IGNORED, *range(known + 1)}
    assert set(np.unique(tile.colors)) <= {IGNORED, *range(len(COLORS) + 1)}
    for none in (0, IGNORED):
        np.testing.assert_array_equal(tile.names == none, tile.colors == none)
    np.testing.assert_array_equal(tile.boxes.any(-1), tile.names > 0)
    assert set(np.unique(tile.places)) <= {IGNORED, *range(digits)}
    assert (tile.names[tile.places != IGNORED] > len(SHAPES)).all()


@given(numbers, st.integers(0, 1))
def test_outlines_agree_with_the_names(number, margin):
    tile = tile_of(number, margin)
    covered = tile.outlines.mean(-1)  # (SIDE, SIDE)
    of_shape = (tile.names > 0) & (tile.names <= len(SHAPES))
    assert (covered[of_shape] > 0.08).all()
    assert (covered[tile.names == 0] < 0.05).all()


@given(numbers, st.integers(0, 1))
def test_a_box_meets_its_patch_and_is_of_one_thing(number, margin):
    tile = tile_of(number, margin)
    shown = tile.names > 0
    left, top, right, bottom = tile.boxes[shown].T
    assert (left < 0.5).all()
    assert (right > -0.5).all()
    assert (top < 0.5).all()
    assert (bottom > -0.5).all()
    assert (right - left > 0.1).all()
    assert (bottom - top > 0.1).all()
    labels: dict[tuple, set] = {}
    boxes = boxes_in_the_tile(tile)[shown].round(2)
    for box, name, color in zip(boxes, tile.names[shown], tile.colors[shown]):
        labels.setdefault(tuple(box), set()).add((name, color))
    assert all(len(one) == 1 for one in labels.values())


def test_a_tile_that_is_cut_shows_the_middle_and_forgets_places_it_cannot_tell():
    seen = Counter()
    for number in range(150):
        whole, part = tile_of(number, 1), packed_tile(number, TILE, PATCH, 1, 6, 4, cut=1)
        middle = slice(1, -1)
        assert (part.pixels == whole.pixels[PATCH:-PATCH, PATCH:-PATCH]).all()
        for name in ("names", "colors", "outlines", "boxes"):
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[middle, middle])
        wanted = whole.places[middle, middle]
        gone = part.places != wanted
        assert (part.places[gone] == IGNORED).all()
        centers = boxes_in_the_tile(whole)[..., 0::2].mean(-1)[middle, middle]
        for first_is_seen in (False, True):  # of a first digit half or more must be in the middle
            firsts = (wanted == 0) & ((centers > 1) == first_is_seen)
            assert (gone[firsts] != first_is_seen).all()
            seen[first_is_seen] += firsts.sum()
        seen["later"] += (gone & (wanted > 0)).sum()
    assert min(seen.values()) > 10


def test_what_is_covered_has_the_color_of_its_label():
    checked = Counter()
    for number in range(200):
        tile = tile_of(number, margin=1)
        for row, column in zip(*np.nonzero(tile.colors > 0)):
            full = np.argwhere(tile.outlines[row, column].reshape(CELLS, CELLS) > 0.99)
            places = np.add((full + 0.5) * CELL, (row * PATCH, column * PATCH)).astype(int)
            if len(places) < 2:
                continue
            color = np.median(tile.pixels[places[:, 0], places[:, 1]], 0)
            distances = {
                word: min(np.linalg.norm(color - value) for value in values)
                for word, values in COLORS.items()
            }
            word = list(COLORS)[tile.colors[row, column] - 1]
            right = distances[word] < 70 and distances[word] < 25 + min(distances.values())
            checked[word, tile.names[row, column] > len(SHAPES)] += right
            checked["all"] += 1
    assert checked["all"] > 1000
    assert checked.total() - checked["all"] > 0.98 * checked["all"]  # small JPEGs lose some color
    assert all(checked[word, is_digit] > 5 for word in COLORS for is_digit in (False, True))


@pytest.mark.parametrize("digits", [0, 1])
def test_the_box_of_a_thing_alone_is_where_its_outline_is(digits):
    inside = 0
    for number in range(80):
        tile = tile_of(number, things=1, digits=digits)
        shown = tile.names > 0
        boxes = boxes_in_the_tile(tile)[shown]
        if digits and (tile.names[shown] <= len(SHAPES)).all():
            continue
        assert shown.any()
        left, top, right, bottom = boxes.mean(0)
        assert np.abs(boxes - boxes.mean(0)).max() < 1e-4
        if min(left, top) < 0 or max(right, bottom) > SIDE:
            continue  # cut by the tile's edge
        inside += 1
        rows, columns = (np.flatnonzero(as_map(tile).max(1 - axis) > 0.02) for axis in (0, 1))
        ink = np.array((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)) / CELLS
        aside = 0.3 if digits == 0 else 0.2 * (right - left) + 0.3  # a digit has space about it
        assert np.abs(ink - (left, top, right, bottom))[0::2].max() < aside
        assert np.abs(ink - (left, top, right, bottom))[1::2].max() < 0.3
    assert inside > 10


def test_the_outline_is_where_the_pixels_have_the_color_of_the_thing():
    middles = ((np.arange(SIDE * CELLS) + 0.5) * CELL).astype(int)  # of cells, in pixels
    near_where_covered, far_where_bare = [], []
    for number in range(100):
        tile = tile_of(number, things=1)
        covered, bare = as_map(tile) > 0.99, as_map(tile) == 0
        if covered.sum() < 5:
            continue
        cells = tile.pixels[np.ix_(middles, middles)].astype(float)  # (cells, cells, C)
        distance = np.linalg.norm(cells - np.median(cells[covered], 0), axis=-1)
        near_where_covered += list(distance[covered] < 45)
        far_where_bare += list(distance[bare] > 45)
    assert len(near_where_covered) > 5000
    assert np.mean(near_where_covered) > 0.97
    assert len(far_where_bare) > 5000
    assert np.mean(far_where_bare) > 0.97


def test_the_outline_in_the_box_of_a_digit_is_that_digit():
    """Told by comparing it with all ten, drawn with Pillow."""
    font = ImageFont.load_default(200)
    drawn = {}
    for digit in DIGITS:
        canvas = Image.new("L", (400, 400))
        ImageDraw.Draw(canvas).text((100, 100), digit, fill=255, font=font)
        top, bottom = canvas.getbbox()[1::2]
        drawn[digit] = canvas.crop((100, top, 100 + round(font.getlength(digit)), bottom))
    right = []
    for number in range(150):
        tile = tile_of(number, things=1, digits=2)
        boxes = boxes_in_the_tile(tile)
        for name in {name for name in np.unique(tile.names) if name > len(SHAPES)}:
            box = boxes[tile.names == name][0]
            if box.min() < 0 or box.max() > SIDE or box[2] - box[0] < 1.5:
                continue
            shown = Image.fromarray(np.uint8(255 * as_map(tile)))
            shown = np.asarray(shown.resize((20, 30), box=tuple(box * CELLS)), float)
            distances = {
                digit: np.abs(shown - np.asarray(one.resize((20, 30)), float)).mean()
                for digit, one in drawn.items()
            }
            right.append(min(distances, key=distances.get) == NAMES[name - 1])
    assert len(right) > 40
    assert np.mean(right) > 0.95


def test_the_outline_of_a_shape_is_that_shape():
    """Told by how much of its box it fills, and by its middle."""
    filled = {shape: [] for shape in SHAPES}
    for number in range(250):
        tile = tile_of(number, things=1, digits=0)
        (name,) = set(tile.names[tile.names > 0]) or {0}
        if name == 0:
            continue
        box = boxes_in_the_tile(tile)[tile.names > 0][0]
        if box.min() < 0 or box.max() > SIDE:
            continue
        shown = Image.fromarray(np.uint8(255 * as_map(tile)))
        shown = np.asarray(shown.resize((30, 30), box=tuple(box * CELLS)), float) / 255
        filled[NAMES[name - 1]].append((shown.mean(), shown[13:17, 13:17].mean()))
    assert all(len(found) >= 5 for found in filled.values())
    means = {shape: np.mean(found, 0) for shape, found in filled.items()}
    assert all(found[1] < 0.1 for found in filled["ring"])
    for shape in ("circle", "square", "star", "cross"):
        assert all(found[1] > 0.8 for found in filled[shape]), shape
    assert all(0.7 < found[0] < 0.83 for found in filled["circle"])
    assert all(found[0] > 0.45 for found in filled["square"])
    assert all(found[0] < 0.63 for found in filled["triangle"] + filled["star"] + filled["ring"])
    assert means["square"][0] > means["circle"][0] > means["triangle"][0] > means["star"][0]


class Placed:
    """A tile without padding, and the things that were drawn in it."""

    def __init__(self, number: int, things: int = 6, digits: int = 4) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(packed, "_pack", self._pack)
            self.tile = packed_tile(number, TILE, PATCH, 0, things, digits)

    def _pack(self, size, *rest, pack=packed._pack):
        self.size, self.things = size, pack(size, *rest)
        return self.things


@given(numbers)
@settings(max_examples=40)
def test_labels_say_what_was_drawn_where(number):
    """A patch mostly covered by a thing has its label, one that nothing touches has none."""
    drawn = Placed(number)
    tile, (width, height) = drawn.tile, drawn.size
    x, y = ((np.arange(640) + 0.5) * side / 640 for side in drawn.size)
    covers, wanted = [np.zeros((SIDE, SIDE))], [(0, 0, IGNORED)]
    for thing in drawn.things:
        color = 1 + list(COLORS).index(thing.color)
        parts = [(thing.shape, 0, thing.mask.width)] if isinstance(thing, Object) else []
        parts = parts or [(digit, *span) for digit, span in zip(thing.digits, thing.spans)]
        mask = np.zeros((height, width)) if isinstance(thing, Object) else None
        left, top, _, bottom = thing.box
        for place, (name, begin, end) in enumerate(parts):
            if mask is not None or left + parts[0][1] / 2 + parts[0][2] / 2 <= 0:
                place = IGNORED  # no digit, or of a number whose beginning is not seen
            if mask is not None:
                for row, column in np.add(np.argwhere(np.asarray(thing.mask) > 127), (top, left)):
                    if 0 <= row < height and 0 <= column < width:
                        mask[row, column] = 1
                at = mask[np.ix_(y.astype(int), x.astype(int))]  # at 640 x 640 places
            else:
                across = (x >= left + begin) & (x < left + end)
                at = np.outer((y >= top) & (y < bottom), across)
            covers.append(at.reshape(SIDE, 640 // SIDE, SIDE, 640 // SIDE).mean((1, 3)))
            wanted.append((1 + NAMES.index(name), color, place))
    covers, wanted = np.array(covers), np.array(wanted)
    mostly = covers.argmax(0)  # (SIDE, SIDE)
    surely = covers.max(0) > 0.55
    np.testing.assert_array_equal(tile.names[surely], wanted[mostly[surely], 0])
    np.testing.assert_array_equal(tile.colors[surely], wanted[mostly[surely], 1])
    np.testing.assert_array_equal(tile.places[surely], wanted[mostly[surely], 2])
    nothing = covers.max(0) == 0
    assert (tile.names[nothing] == 0).all()
    touched = covers.max(0) > 0.05
    assert (tile.names[touched] != 0).all()
    assert (covers.max(0)[tile.names > 0] > 0.08).all()


def test_black_padding_shows_nothing():
    found = Counter()
    for number in range(200):
        tile = tile_of(number, margin=1)
        for turns in range(4):  # each side in turn is above
            pixels, names, outlines, boxes = (
                np.rot90(part, turns)
                for part in (tile.pixels, tile.names, as_map(tile), tile.boxes)
            )
            is_black = not pixels[:PATCH, PATCH:-PATCH].any()
            found[is_black] += 1
            if is_black:
                assert not names[0].any()
                assert not outlines[:CELLS].any()
                assert not boxes[0].any()
    assert 0.3 < found[True] / found.total() < 0.5


@pytest.mark.parametrize("mode", ["edge", "symmetric", "reflect"])
def test_padding_goes_on_as_numpy_pads(mode):
    """With a margin of one patch: what the padding shows has the border's labels, less names."""
    repeated = {"edge": [PATCH] * PATCH, "symmetric": range(2 * PATCH - 1, PATCH - 1, -1)}
    repeated["reflect"] = range(2 * PATCH, PATCH, -1)
    padded = 0
    for number in range(60):
        tile, black = tile_of(number, 1, padding=mode), tile_of(number, 1)
        same = (tile.pixels[PATCH:-PATCH] == black.pixels[PATCH:-PATCH]).all((1, 2))
        assert same[0] == same[-1]
        if black.pixels[:PATCH, PATCH:-PATCH].any():
            continue  # nothing is padded above
        padded += 1
        np.testing.assert_array_equal(tile.pixels[:PATCH], tile.pixels[list(repeated[mode])])
        np.testing.assert_array_equal(tile.names[0], np.where(tile.names[1] != 0, IGNORED, 0))
        assert not tile.boxes[0].any()
    assert padded > 10


def test_padding_repeats_the_border_and_has_no_names():
    found = Counter()
    for number in range(200):
        tile = tile_of(number, margin=1, padding="edge")
        for turns in range(4):  # each side in turn is above
            pixels, names, outlines = (
                np.rot90(part, turns) for part in (tile.pixels, tile.names, as_map(tile))
            )
            edge = pixels[PATCH].astype(int)  # the first row that is no padding, if that is above
            noisy = np.median(np.abs(np.diff(edge, 2, 0))) >= 2  # so that it does not repeat itself
            repeats = (pixels[:PATCH] == pixels[PATCH]).all()
            found[noisy, repeats] += 1
            if noisy and repeats:
                cut = np.where(names[1] != 0, IGNORED, 0)  # what the border cuts goes on in it
                np.testing.assert_array_equal(names[0], cut)
                np.testing.assert_array_equal(outlines[:CELLS], outlines[[CELLS] * CELLS])
                assert not np.rot90(tile.boxes, turns)[0].any()
    noisy = found[True, True] + found[True, False]
    assert noisy > 50
    assert 0.3 < found[True, True] / noisy < 0.5


def test_without_a_margin_nothing_is_padded():
    for number in range(60):
        tile = tile_of(number, margin=0)
        edges = [np.rot90(tile.pixels, turns)[: PATCH + 1].astype(int) for turns in range(4)]
        noisy = [np.median(np.abs(np.diff(edge[-1], 2, 0))) >= 2 for edge in edges]
        for edge, is_noisy in zip(edges, noisy):
            assert not is_noisy or (edge != edge[-1]).any()


def test_everything_is_shown_in_fair_shares():
    tiles = [tile_of(number, margin=1) for number in range(400)]
    names = np.stack([tile.names for tile in tiles])
    shown = Counter(names[names > 0].tolist())
    colors = np.stack([tile.colors for tile in tiles])
    colored = Counter(colors[colors > 0].tolist())
    assert set(shown) == set(range(1, len(NAMES) + 1))
    for digit in range(len(SHAPES) + 1, len(NAMES) + 1):
        assert shown[digit] > 0.02 * shown.total()
    for shape in range(1, len(SHAPES) + 1):
        assert shown[shape] > 0.03 * shown.total()
    for color in range(1, len(COLORS) + 1):
        assert colored[color] > 0.6 / len(COLORS) * colored.total()
    places = np.stack([tile.places for tile in tiles])
    placed = [(places == place).sum() for place in range(4)]
    assert placed == sorted(placed, reverse=True)
    assert placed[3] > 0.02 * sum(placed)
    cut = (names > len(SHAPES)) & (places == IGNORED)
    assert 0.005 < cut.sum() / (names > len(SHAPES)).sum() < 0.2
    assert 0.2 < (names > 0).mean() < 0.6
    assert 0.03 < (names == IGNORED).mean() < 0.3
