"""The tiler's promises: nothing lost, nothing twice, margins true, stitching undoes cutting."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from reference import RULES
from tiny import picture

from flashvl.config import TilerConfig
from flashvl.input.tiling import (
    GRID_RULES,
    canvas_of,
    choose_grid,
    cut_tiles,
    grids_of,
    stitch_tiles,
    tile_image,
)

TILER = TilerConfig(
    tile_size=16, margin=2, max_tiles=6, resample=3, mean=(0.5,) * 3, std=(0.5,) * 3
)
grids = st.tuples(st.integers(1, 4), st.integers(1, 4))
margins = st.integers(0, 3)
core_sizes = st.integers(1, 6)


def numbered_canvas(grid, core, margin) -> np.ndarray:
    """Every pixel has a number of its own."""
    height, width = grid[0] * core + 2 * margin, grid[1] * core + 2 * margin
    return np.arange(height * width).reshape(height, width, 1)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 20))
def test_the_grid_is_small_enough_and_no_other_has_a_closer_aspect(height, width, max_tiles):
    rows, columns = choose_grid(height, width, 12, max_tiles)
    assert 1 <= rows * columns <= max_tiles
    every = [(r, c) for r in range(1, 21) for c in range(1, 21) if r * c <= max_tiles]
    difference = abs(columns / rows - width / height)
    assert difference == min(abs(c / r - width / height) for r, c in every)


@pytest.mark.parametrize(
    ("height", "width", "grid"),
    [(10, 10, (1, 1)), (100, 100, (2, 2)), (100, 200, (1, 2)), (210, 70, (3, 1)), (40, 60, (2, 3))],
)
def test_of_two_equal_aspects_the_larger_needs_half_its_pixels(height, width, grid):
    assert choose_grid(height, width, core_size=12, max_tiles=6) == grid


def test_half_the_pixels_exactly_is_not_more_than_half():
    # 2 x 2 cells of 10 x 10: 400 pixels, half are 200.
    assert choose_grid(14, 14, core_size=10, max_tiles=4) == (1, 1)  # 196
    assert choose_grid(15, 15, core_size=10, max_tiles=4) == (2, 2)  # 225
    assert choose_grid(20, 10, core_size=10, max_tiles=8) == (2, 1)  # 4 x 2 needs more than 400


@given(st.integers(1, 30))
def test_every_grid_is_among_those_that_are_compared(max_tiles):
    every = [(r, c) for r in range(1, 31) for c in range(1, 31) if r * c <= max_tiles]
    assert sorted(grids_of(max_tiles)) == every


@pytest.mark.parametrize("rule", RULES)
@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 14), st.sampled_from([12, 336]))
def test_each_rule_is_that_of_a_second_writing(rule, height, width, max_tiles, core):
    found = GRID_RULES[rule](height, width, core, max_tiles)
    assert 1 <= found[0] * found[1] <= max_tiles
    if rule == "aspect":  # halfway between two shapes the rounding of floats decides
        shapes = {Fraction(c, r) for r, c in grids_of(max_tiles)}
        distances = sorted(abs(shape - Fraction(width, height)) for shape in shapes)
        assume(len(distances) == 1 or distances[0] < distances[1])
    assert found == RULES[rule](width, height, core, max_tiles)


@pytest.mark.parametrize(
    ("rule", "height", "width", "grid"),
    [
        ("resolution", 672, 672, (2, 2)),  # all its pixels and no waste
        ("resolution", 336, 336, (1, 1)),
        ("resolution", 340, 680, (2, 3)),  # shows more of it than 1 x 2, with waste
        ("resolution", 500, 100, (2, 1)),  # all its pixels, with less waste than 5 x 1
        ("slices", 672, 672, (2, 2)),
        ("slices", 336, 336, (1, 1)),
        ("slices", 100, 1100, (1, 1)),  # fewer pixels than a cell
        ("slices", 1000, 1100, (2, 3)),  # 6 cells, or 5: 2 x 2 is not among them
        ("slices", 300, 900, (1, 3)),
    ],
)
def test_rules_by_hand(rule, height, width, grid):
    assert GRID_RULES[rule](height, width, core_size=336, max_tiles=6) == grid


@given(grids, st.sampled_from(["rows", "columns"]), st.sampled_from(["none", "last", "first"]))
def test_the_order_of_tiles(grid, tile_order, thumbnail):
    """Each tile shows its own number in pixels; the thumbnail, of one size, their mean."""
    rows, columns = grid
    config = dataclasses.replace(
        TILER, margin=0, max_tiles=16, resample=0, tile_order=tile_order, thumbnail=thumbnail
    )
    numbers = np.arange(rows * columns).reshape(grid)
    picture = np.kron(numbers, np.ones((16, 16))).astype(np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flashvl.input.tiling.grid_of", lambda *_: grid)
        tiles, _ = tile_image(Image.fromarray(np.stack([picture] * 3, axis=2)), config)
    wanted = numbers.ravel("F" if tile_order == "columns" else "C").tolist()
    has_thumbnail = thumbnail != "none" and rows * columns > 1
    if has_thumbnail:
        wanted.insert(0 if thumbnail == "first" else len(wanted), None)
    assert len(tiles) == len(wanted) == config.tiles(grid)
    for tile, number in zip(tiles, wanted):
        whole = np.asarray(Image.fromarray(picture).resize((16, 16), 0))
        np.testing.assert_array_equal(tile[..., 0], whole if number is None else number)


@given(grids, core_sizes, margins)
def test_cores_cover_the_canvas_exactly_once(grid, core, margin):
    canvas = numbered_canvas(grid, core, margin)
    tiles = cut_tiles(canvas, grid, core)
    assert tiles.shape == (grid[0] * grid[1], core + 2 * margin, core + 2 * margin, 1)
    cores = tiles[:, margin : margin + core, margin : margin + core].ravel().tolist()
    inside = canvas[margin : margin + grid[0] * core, margin : margin + grid[1] * core]
    assert sorted(cores) == sorted(inside.ravel().tolist())


@given(grids, core_sizes, margins)
def test_stitching_gives_the_canvas_back(grid, core, margin):
    canvas = numbered_canvas(grid, core, margin)
    stitched = stitch_tiles(cut_tiles(canvas, grid, core), grid, margin)
    inside = canvas[margin : margin + grid[0] * core, margin : margin + grid[1] * core]
    np.testing.assert_array_equal(stitched, inside)


@given(grids, core_sizes, margins)
def test_margins_show_the_true_pixels_of_the_neighbours(grid, core, margin):
    """Pixel (y, x) of tile (r, c) is the canvas's pixel (r * core + y, c * core + x)."""
    canvas = numbered_canvas(grid, core, margin)
    tiles = cut_tiles(canvas, grid, core)
    side = core + 2 * margin
    for index, tile in enumerate(tiles):
        row, column = divmod(index, grid[1])
        for y in range(side):
            for x in range(side):
                assert tile[y, x] == canvas[row * core + y, column * core + x]


@pytest.mark.parametrize("padding", ["edge", "reflect", "symmetric", "constant"])
def test_the_canvas_is_the_resized_picture_with_padding_around(padding):
    config = dataclasses.replace(TILER, padding=padding)
    canvas = canvas_of(picture(), (2, 3), config)
    assert (canvas.shape, canvas.dtype) == ((2 * 12 + 4, 3 * 12 + 4, 3), np.uint8)
    resized = np.asarray(picture().resize((36, 24), 3))
    np.testing.assert_array_equal(canvas[2:-2, 2:-2], resized)
    outer = {"edge": resized[0], "reflect": resized[2], "symmetric": resized[1]}
    wanted = outer.get(padding, np.zeros_like(resized[0]))
    np.testing.assert_array_equal(canvas[0, 2:-2], wanted)


@given(
    st.integers(1, 80),
    st.integers(1, 80),
    st.sampled_from(["trim", "mean", "none", "pool"]),
    st.sampled_from(["last", "none"]),
    st.sampled_from(list(GRID_RULES)),
)
def test_tiles_of_any_picture(height, width, stitching, thumbnail, rule):
    config = dataclasses.replace(TILER, stitching=stitching, thumbnail=thumbnail, grid=rule)
    image = picture(width, height)
    tiles, (rows, columns) = tile_image(image, config)
    assert (rows, columns) == GRID_RULES[rule](height, width, config.core_size, config.max_tiles)
    cells, side = rows * columns, 12 if stitching == "none" else 16
    assert tiles.shape == (cells + (thumbnail == "last" and cells > 1), side, side, 3)
    assert config.tiles((rows, columns)) == len(tiles)
    margin = config.seen_margin
    stitched = stitch_tiles(tiles[:cells], (rows, columns), margin)
    np.testing.assert_array_equal(stitched, np.asarray(image.resize((columns * 12, rows * 12), 3)))
    if thumbnail == "last" or cells == 1:  # then the last one is the whole picture
        last = tiles[-1][margin : side - margin, margin : side - margin]
        np.testing.assert_array_equal(last, np.asarray(image.resize((12, 12), 3)))


def test_the_thumbnail_can_be_left_out():
    tiles, grid = tile_image(picture(), dataclasses.replace(TILER, thumbnail="none"))
    assert (len(tiles), grid) == (2, (1, 2))


def test_without_a_margin_it_is_plain_tiling():
    tiles, grid = tile_image(picture(), dataclasses.replace(TILER, margin=0, thumbnail="none"))
    assert grid == (1, 2)
    np.testing.assert_array_equal(np.hstack(tiles), np.asarray(picture().resize((32, 16), 3)))


@given(st.integers(1, 60), st.integers(1, 60))
def test_with_one_tile_it_is_a_single_resize(height, width):
    config = dataclasses.replace(TILER, margin=0, max_tiles=1, resample=2)
    tiles, grid = tile_image(picture(width, height), config)
    assert grid == (1, 1)
    np.testing.assert_array_equal(tiles[0], np.asarray(picture(width, height).resize((16, 16), 2)))


def test_every_tile_of_a_two_colored_picture_sees_over_its_seam():
    image = Image.new("RGB", (24, 12), "red")
    image.paste("blue", (12, 0, 24, 12))
    left, right = tile_image(image, dataclasses.replace(TILER, resample=0, thumbnail="none"))[0]
    assert left[8, 14].tolist() == [0, 0, 255]
    assert left[8, 13].tolist() == [255, 0, 0]
    assert right[8, 1].tolist() == [255, 0, 0]
    assert right[8, 2].tolist() == [0, 0, 255]
