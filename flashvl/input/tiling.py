"""The tiler: which tiles a picture is cut into, and the picture put together again.

Pure functions, no weights. A tile is what the tower sees at once. Its core belongs to it alone;
around the core lies a margin, which shows the neighboring tiles' pixels (implicit semantic
stitching, paper section 3). With a margin of 0 this is the plain tiling of Dynamic, and with one
tile at most it is the single resize of Static.

Source of the numbers: assumption, see weights/ASSUMPTIONS.md.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from ..config import Grid, TilerConfig
from .image import resize


def tile_image(image: Image.Image, config: TilerConfig) -> tuple[np.ndarray, Grid]:
    """An RGB picture -> tiles (S, height, width, C) uint8 in the decoder's order; the grid."""
    grid = grid_of(image, config)
    tiles = [cut_tiles(canvas_of(image, grid, config), grid, config.core_size)]
    if config.thumbnail != "none" and grid != (1, 1):
        tiles.append(cut_tiles(canvas_of(image, (1, 1), config), (1, 1), config.core_size))
    return np.concatenate(tiles)[config.order(grid)], grid


def grid_of(image: Image.Image, config: TilerConfig) -> Grid:
    """The (rows, columns) of a picture's tiles by the config's rule. Source: assumption."""
    choose = GRID_RULES[config.grid]
    return choose(image.height, image.width, config.core_size, config.max_tiles)


def choose_grid(height: int, width: int, core_size: int, max_tiles: int) -> Grid:
    """The rule `aspect`: at most `max_tiles` cells, the closest to the picture's aspect ratio.

    Of two grids equally close the larger is taken if the picture has more than half of its
    pixels. `core_size` is the side of a cell in pixels. Source: InternVL (arXiv 2404.16821).
    """
    best, best_difference = (1, 1), float("inf")
    for rows, columns in grids_of(max_tiles):
        difference = abs(columns / rows - width / height)
        enough_pixels = height * width > 0.5 * rows * columns * core_size**2
        if difference < best_difference or (difference == best_difference and enough_pixels):
            best, best_difference = (rows, columns), difference
    return best


def choose_grid_by_resolution(height: int, width: int, core_size: int, max_tiles: int) -> Grid:
    """The rule `resolution`: the grid that shows the most pixels, then the one with least waste.

    The picture is thought to be fitted into the grid with its aspect ratio kept: it shows the
    pixels that it has then, though no more than it has itself, and the rest of the grid is waste.
    Source: LLaVA-NeXT's "anyres", here with every grid of at most `max_tiles` cells.
    """

    def shown_and_wasted(grid: Grid) -> tuple[int, int]:
        across, down = grid[1] * core_size, grid[0] * core_size
        scale = min(across / width, down / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        return shown, shown - across * down  # the waste below 0, so that less of it is more

    return max(grids_of(max_tiles), key=shown_and_wasted)


def choose_grid_by_slices(height: int, width: int, core_size: int, max_tiles: int) -> Grid:
    """The rule `slices`: about as many cells as the picture has pixels for.

    The number of cells that it fills, rounded up, one more and one fewer are tried, though never a
    single cell where it fills more; of their grids the one is taken whose aspect ratio is closest,
    in the logarithm. Source: MiniCPM-V (arXiv 2408.01800).
    """
    wanted = min(math.ceil(height * width / core_size**2), max_tiles)
    if wanted <= 1:
        return (1, 1)
    counts = [count for count in (wanted - 1, wanted, wanted + 1) if 1 < count <= max_tiles]
    grids = [
        (count // columns, columns)
        for count in counts
        for columns in range(1, count + 1)
        if count % columns == 0
    ]
    ratio = math.log(width / height)
    return min(grids, key=lambda grid: abs(math.log(grid[1] / grid[0]) - ratio))


GRID_RULES = {
    "aspect": choose_grid,
    "resolution": choose_grid_by_resolution,
    "slices": choose_grid_by_slices,
}


def grids_of(max_tiles: int) -> list[Grid]:
    """Every (rows, columns) of at most so many cells, the smaller ones first."""
    grids = [
        (rows, columns)
        for rows in range(1, max_tiles + 1)
        for columns in range(1, max_tiles // rows + 1)
    ]
    return sorted(grids, key=lambda grid: (grid[0] * grid[1], grid))


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
