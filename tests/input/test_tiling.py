"""The tiler's promises: nothing lost, nothing twice, margins true, stitching undoes cutting."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import picture

from flashvl.config import TilerConfig
from flashvl.input.tiling import canvas_of, choose_grid, cut_tiles, stitch_tiles, tile_image

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
    st.sampled_from(["trim", "mean", "none"]),
    st.booleans(),
)
def test_tiles_of_any_picture(height, width, stitching, thumbnail):
    config = dataclasses.replace(TILER, stitching=stitching, thumbnail=thumbnail)
    image = picture(width, height)
    tiles, (rows, columns) = tile_image(image, config)
    assert (rows, columns) == choose_grid(height, width, config.core_size, config.max_tiles)
    cells, side = rows * columns, 12 if stitching == "none" else 16
    assert tiles.shape == (cells + (thumbnail and cells > 1), side, side, 3)
    assert config.tiles((rows, columns)) == len(tiles)
    margin = config.seen_margin
    stitched = stitch_tiles(tiles[:cells], (rows, columns), margin)
    np.testing.assert_array_equal(stitched, np.asarray(image.resize((columns * 12, rows * 12), 3)))
    if thumbnail or cells == 1:  # then the last one is the whole picture
        last = tiles[-1][margin : side - margin, margin : side - margin]
        np.testing.assert_array_equal(last, np.asarray(image.resize((12, 12), 3)))


def test_the_thumbnail_can_be_left_out():
    tiles, grid = tile_image(picture(), dataclasses.replace(TILER, thumbnail=False))
    assert (len(tiles), grid) == (2, (1, 2))


def test_without_a_margin_it_is_plain_tiling():
    tiles, grid = tile_image(picture(), dataclasses.replace(TILER, margin=0, thumbnail=False))
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
    left, right = tile_image(image, dataclasses.replace(TILER, resample=0, thumbnail=False))[0]
    assert left[8, 14].tolist() == [0, 0, 255]
    assert left[8, 13].tolist() == [255, 0, 0]
    assert right[8, 1].tolist() == [255, 0, 0]
    assert right[8, 2].tolist() == [0, 0, 255]
