"""The tiler: which tiles a picture is cut into, and the picture put together again.

Pure functions, no weights. A tile is what the tower sees at once. Its core belongs to it alone;
around the core lies a margin, which shows the neighboring tiles' pixels (implicit semantic
stitching, paper section 3). With a margin of 0 this is the plain tiling of Dynamic, and with one
tile at most it is the single resize of Static.

Source of the numbers: assumption, see weights/ASSUMPTIONS.md.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..config import Grid, TilerConfig
from .image import resize


def tile_image(image: Image.Image, config: TilerConfig) -> tuple[np.ndarray, Grid]:
    """An RGB picture -> tiles (S, height, width, C) uint8 row by row, thumbnail last; the grid."""
    grid = choose_grid(image.height, image.width, config.core_size, config.max_tiles)
    tiles = [cut_tiles(canvas_of(image, grid, config), grid, config.core_size)]
    if config.thumbnail and grid != (1, 1):
        tiles.append(cut_tiles(canvas_of(image, (1, 1), config), (1, 1), config.core_size))
    return np.concatenate(tiles), grid


def choose_grid(height: int, width: int, core_size: int, max_tiles: int) -> Grid:
    """The (rows, columns) with at most `max_tiles` cells closest to the picture's aspect ratio.

    Of two grids equally close the larger is taken if the picture has more than half of its
    pixels. `core_size` is the side of a cell in pixels. Source: assumption (the rule of other
    tiling models).
    """
    grids = [
        (rows, columns)
        for rows in range(1, max_tiles + 1)
        for columns in range(1, max_tiles // rows + 1)
    ]
    best, best_difference = (1, 1), float("inf")
    for rows, columns in sorted(grids, key=lambda grid: (grid[0] * grid[1], grid)):
        difference = abs(columns / rows - width / height)
        enough_pixels = height * width > 0.5 * rows * columns * core_size**2
        if difference < best_difference or (difference == best_difference and enough_pixels):
            best, best_difference = (rows, columns), difference
    return best


def canvas_of(image: Image.Image, grid: Grid, config: TilerConfig) -> np.ndarray:
    """The picture resized to the cores of `grid` and padded by the margin on all four sides.

    Before normalization, so that the padding `constant` is black.
    -> (rows * core + 2 * margin, columns * core + 2 * margin, C) uint8.
    """
    height, width = grid[0] * config.core_size, grid[1] * config.core_size
    resized = resize(image, height, width, config.resample)  # (height, width, C)
    margin = config.seen_margin
    return np.pad(resized, ((margin, margin), (margin, margin), (0, 0)), mode=config.padding)


def cut_tiles(canvas: np.ndarray, grid: Grid, core_size: int) -> np.ndarray:
    """A padded canvas -> tiles (rows * columns, tile, tile, C), a tile at every core.

    What the canvas has beyond the cores is the margin; tile (r, c) starts at r * core, c * core.
    """
    rows, columns = grid
    height = canvas.shape[0] - (rows - 1) * core_size
    width = canvas.shape[1] - (columns - 1) * core_size
    corners = [(r * core_size, c * core_size) for r in range(rows) for c in range(columns)]
    return np.stack([canvas[top : top + height, left : left + width] for top, left in corners])


def stitch_tiles(tiles: np.ndarray, grid: Grid, margin: int) -> np.ndarray:
    """The cores of (rows * columns, tile, tile, C) put together: the canvas without its padding."""
    rows, columns = grid
    tile = tiles.shape[1]
    core = slice(margin, tile - margin)
    cores = tiles[:, core, core]  # (rows * columns, core, core, C)
    cores = cores.reshape(rows, columns, *cores.shape[1:])  # (rows, columns, core, core, C)
    height, width = rows * cores.shape[2], columns * cores.shape[3]
    return cores.transpose(0, 2, 1, 3, 4).reshape(height, width, -1)  # (height, width, C)
