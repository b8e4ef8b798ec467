"""`flashvl tiles`: how a picture is cut and stitched, drawn; each stitching mode side by side."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..assumptions import choices_of
from ..checkpoint.files import read_headers
from ..checkpoint.hub import fetch_headers, find_model, is_repository, published_models
from ..checkpoint.published import Assumptions, read_assumptions, read_config
from ..config import FlashVLConfig, Grid
from ..input.image import load_image
from ..input.tiling import canvas_of, cut_tiles, grid_of, tile_image
from ..terminal import table
from .drawing import (
    BLACK,
    BLUE,
    LARGE,
    NORMAL,
    ORANGE,
    SKY,
    WHITE,
    beside,
    check_out,
    fitted,
    framed,
    legend,
    note,
    outline,
    padded,
    paragraph,
    resized,
    ruled,
    save,
    stacked,
    swatch,
    tinted,
)

# Pixels: a column, between two, a drawing's and a tile's largest sides, between two tiles. The
# sheet stays under one screen of 1080 pixels.
COLUMN, GAP, TALLEST, TILE, TILE_GAP = 420, 28, 205, 160, 10
SMALL_TILE, SHEET = 100, 1080  # pixels: beside a drawing; the tallest sheet
MARGIN_STRENGTH = 0.6  # of the tint
TOKEN_LINE = (190, 190, 190)

WHAT_THEY_DO = {
    "trim": "The tower sees core and margin. The margin's patches are then thrown away.",
    "mean": "The tower sees core and margin. Where tiles overlap, a token is the mean of what "
    "each of them saw there.",
    "none": "The tower sees the core alone. No tile knows what its neighbor shows.",
    "pool": "The tower sees core and margin. All patches are averaged down: a token stands for "
    "more than its square.",
}
NO_MARGIN = "This model's tiles have no margin, so that there is nothing to stitch."


def run(options: argparse.Namespace) -> None:
    """Draws the picture and prints the counts. Raises `ImageError`, `ArgumentError`, ..."""
    check_out(options.out)
    image = load_image(options.image)
    config = config_of(options.model, options.assumptions)
    save(
        draw(image, config, f"{Path(options.image).name}, as {options.model} cuts it"), options.out
    )
    print(counts(image, config))


def config_of(name: str, assumptions: Assumptions = None) -> FlashVLConfig:
    """The config of "nano", a folder or a repository; of a published one nothing is fetched."""
    if name in published_models():
        config = FlashVLConfig.from_dict(published_models()[name]["config"])
        return config.with_assumptions(read_assumptions(assumptions))
    if is_repository(name):
        return read_config(*fetch_headers(name), assumptions)
    folder = find_model(name)
    return read_config(folder, read_headers(folder), assumptions)


def modes(config: FlashVLConfig) -> list[FlashVLConfig]:
    """The config in each stitching mode; as it is alone if its tiles have no margin."""
    if config.tiler.margin == 0:
        return [config]
    tilers = [dataclasses.replace(config.tiler, stitching=mode) for mode in choices_of("stitching")]
    return [dataclasses.replace(config, tiler=tiler) for tiler in tilers]


def seen_by(grid: Grid, core: int, margin: int) -> np.ndarray:
    """How many tiles saw each place: (rows * core, columns * core), all lengths in one unit."""
    rows, columns = grid
    count = np.zeros((rows * core + 2 * margin, columns * core + 2 * margin), dtype=int)
    for row, column in np.ndindex(rows, columns):
        top, left, side = row * core, column * core, core + 2 * margin
        count[top : top + side, left : left + side] += 1
    return count[margin : margin + rows * core, margin : margin + columns * core]


def inside_picture(grid: Grid, core: int, margin: int) -> np.ndarray:
    """Of a padded canvas, where the picture is: (rows * core + 2 * margin, columns ...) bools."""
    return np.pad(np.ones((grid[0] * core, grid[1] * core), dtype=bool), margin)


def tokens_averaged(grid: Grid, config: FlashVLConfig) -> np.ndarray:
    """Of each token of the grid, how many tiles' features it is the mean of: (rows, columns)."""
    margin = config.stitched_margin if config.tiler.stitching == "mean" else 0
    core = config.tiler.core_size // config.vision.patch_size
    return seen_by(grid, core // config.compressor.shuffle, margin)


def counts(image: Image.Image, config: FlashVLConfig) -> str:
    """A table of tiles, patches and tokens in each stitching mode."""
    rows: list[tuple[str, ...]] = [
        ("stitching", "grid", "tiles", "tile px", "patches seen", "tokens")
    ]
    for one in modes(config):
        tiles, (down, across) = tile_image(image, one.tiler)  # (S, side, side, C)
        side = tiles.shape[1]
        patches = len(tiles) * (side // one.vision.patch_size) ** 2
        numbers = (len(tiles), side, patches, len(tiles) * one.tokens_per_tile)
        name = one.tiler.stitching if one.tiler.margin else "no margin"
        rows.append((name, f"{down} x {across}", *map(str, numbers)))
    return table(rows)


def draw(image: Image.Image, config: FlashVLConfig, title: str) -> Image.Image:
    """The whole sheet: first what all stitching modes share, then a column for each of them.

    Without a margin there is one mode and the steps stand in pairs.
    """
    tiler, columns = config.tiler, modes(config)
    grid = grid_of(image, tiler)
    steps = [
        (f"1  The picture and its {grid[0]} x {grid[1]} cores", draw_picture),
        ("2  The canvas: whole cores, and padding", draw_canvas),
        ("3  The tiles as the tower sees them", draw_tiles),
        ("4  Stitched: one square is one token", draw_tokens),
    ]

    def drawn(step: int, one: FlashVLConfig) -> Image.Image:
        heading, drawing = steps[step]
        return stacked([paragraph(heading, COLUMN, NORMAL, BLUE), drawing(image, grid, one)], 8)

    if tiler.margin:
        shown = next(one for one in columns if one.tiler.seen_margin)
        rows = [
            beside([drawn(step, shown) for step in range(3)], GAP),
            paragraph("4  Stitched: where the modes differ", 2 * COLUMN, NORMAL, BLUE),
            beside([draw_mode(image, grid, one) for one in columns], GAP),
        ]
    else:
        cells = [drawn(step, config) for step in range(4)]
        rows = [paragraph(NO_MARGIN, 2 * COLUMN), beside(cells[:2], GAP), beside(cells[2:], GAP)]
    head = [paragraph(title, rows[-1].width, LARGE), meanings(grid, config)]
    return framed(stacked([*head, *rows], 16), 24)


def draw_mode(image: Image.Image, grid: Grid, config: FlashVLConfig) -> Image.Image:
    """A stitching mode: what it does, the first tile as the tower sees it, and the tokens."""
    tiler = config.tiler
    tile = cut_tiles(canvas_of(image, grid, tiler), grid, tiler.core_size)[0]  # (side, side, C)
    margin = tiler.seen_margin
    inside = inside_picture(grid, tiler.core_size, margin)
    first = cut_tiles(inside, grid, tiler.core_size)[0]  # (side, side)
    alone = inside_picture((1, 1), tiler.core_size, margin)
    across = len(tile) // config.vision.patch_size
    words = f"Tile 1: {len(tile)} px, {across} x {across} patches of {config.vision.patch_size} px."
    parts = [
        paragraph(f"stitching: {tiler.stitching}", COLUMN, LARGE),
        paragraph(WHAT_THEY_DO[tiler.stitching], COLUMN),
        beside(
            [draw_tile(tile, first, alone, SMALL_TILE), note(words, COLUMN - SMALL_TILE - 12)], 12
        ),
        draw_tokens(image, grid, config),
    ]
    return stacked(parts, 6)


def meanings(grid: Grid, config: FlashVLConfig) -> Image.Image:
    """The legend: what each color stands for, in words."""
    core = swatch(WHITE)
    outline(ImageDraw.Draw(core), 0, 0, 22, BLUE, 3)
    entries = [(core, "core: the part of a tile that belongs to it alone and becomes tokens")]
    if margin := config.tiler.margin:
        orange = tinted(swatch(WHITE), np.ones((22, 22), dtype=bool), ORANGE, MARGIN_STRENGTH)
        stripes = padded(swatch(WHITE), np.ones((22, 22), dtype=bool))
        filled = f'padding: pixels that are not in the picture (here "{config.tiler.padding}")'
        if grid != (1, 1):
            entries.append((orange, "margin: pixels of the neighboring tiles, seen once more"))
        entries.append((stripes, filled))
        for tiles in sorted(set(seen_by(grid, config.tiler.core_size, margin).flat) - {1}):
            words = f"a token that is the mean of what {tiles} tiles saw there"
            entries.append((swatch(token_color(tiles)), words))
    return legend(entries, 2 * COLUMN)


def token_color(tiles: int) -> tuple[int, int, int]:
    """Of a token by the number of tiles behind it, from 2: 2 at a seam, 4 where corners meet."""
    return SKY if tiles == 2 else BLUE


def draw_picture(image: Image.Image, grid: Grid, config: FlashVLConfig) -> Image.Image:
    """The picture in its own shape, with what more than one tile sees."""
    tiler, (rows, columns) = config.tiler, grid
    width, height = fitted(image.width, image.height, COLUMN, TALLEST)
    shown = image.resize((width, height), Image.Resampling.BOX)
    overlap = seen_by(grid, tiler.core_size, tiler.seen_margin) > 1
    shown = tinted(shown, resized(overlap, width, height), ORANGE, MARGIN_STRENGTH)
    orange = " Orange: seen by more than one tile." if overlap.any() else ""
    pen = ImageDraw.Draw(shown)
    for row, column in np.ndindex(rows, columns):
        left, right = (number * width // columns for number in (column, column + 1))
        top, bottom = (number * height // rows for number in (row, row + 1))
        outline(pen, left, top, right - left, BLUE, height=bottom - top)
    return stacked([shown, note(f"{image.width} x {image.height} px.{orange}", COLUMN)], 6)


def draw_canvas(image: Image.Image, grid: Grid, config: FlashVLConfig) -> Image.Image:
    """The padded canvas with its cores; the padding is striped."""
    tiler, margin = config.tiler, config.tiler.seen_margin
    canvas = Image.fromarray(canvas_of(image, grid, tiler))
    size = fitted(*canvas.size, COLUMN, TALLEST)
    padding = ~inside_picture(grid, tiler.core_size, margin)
    shown = padded(canvas.resize(size, Image.Resampling.BOX), resized(padding, *size))
    pen, scale = ImageDraw.Draw(shown), size[0] / canvas.width
    for row, column in np.ndindex(*grid):
        left, top = margin + column * tiler.core_size, margin + row * tiler.core_size
        outline(pen, left * scale, top * scale, tiler.core_size * scale, BLUE)
    words = f"{canvas.width} x {canvas.height} px, "
    words += f"{margin} px of padding on each side." if margin else "no padding."
    return stacked([shown, note(words, COLUMN)], 6)


def draw_tiles(image: Image.Image, grid: Grid, config: FlashVLConfig) -> Image.Image:
    """Every tile apart, numbered, with its core, margin and padding marked; the thumbnail below.

    The numbers are those of the order in which the decoder reads the grid's tiles.
    """
    rows, columns = grid
    tiler, margin = config.tiler, config.tiler.seen_margin
    order = tiler.order(grid)
    tiles = tile_image(image, tiler)[0][np.argsort(order)]  # (S, side, side, C), row by row
    read = np.argsort([number for number in order if number < rows * columns])  # (rows * columns)
    truth = cut_tiles(inside_picture(grid, tiler.core_size, margin), grid, tiler.core_size)
    alone = inside_picture((1, 1), tiler.core_size, margin)  # the thumbnail, and any tile's core
    room = COLUMN - SMALL_TILE - columns * TILE_GAP  # beside the thumbnail
    high = TALLEST // rows - TILE_GAP
    high = high - 24 if high > 44 else min(high, 20)  # with a name above it, or without
    drawn = max(min(room // columns, high, TILE), 4)
    marked = []
    for index, tile in enumerate(tiles):
        thumbnail = index == rows * columns
        name = "thumbnail" if thumbnail else f"{'tile ' if drawn > 54 else ''}{read[index] + 1}"
        picture = alone if thumbnail else truth[index]  # (side, side)
        label = [paragraph(name, max(drawn, 90 * thumbnail))] if drawn > 20 or thumbnail else []
        marked.append(stacked([*label, draw_tile(tile, picture, alone, drawn)]))
    side, patch = tiles.shape[1], config.vision.patch_size
    across = side // patch
    words = f"A tile: {side} x {side} px = {across} x {across} patches of {patch} px."
    gap = min(TILE_GAP, drawn)
    lines = [beside(marked[row * columns : (row + 1) * columns], gap) for row in range(rows)]
    together = beside([stacked(lines, gap), *marked[rows * columns :]], 2 * gap)
    return stacked([together, note(words, COLUMN)], TILE_GAP)


def draw_tile(tile: np.ndarray, picture: np.ndarray, core: np.ndarray, drawn: int) -> Image.Image:
    """(side, side, C) as a square of `drawn` pixels.

    `picture` (side, side) is true where the tile shows the picture, `core` where its core is.
    """
    shown = Image.fromarray(tile).resize((drawn, drawn), Image.Resampling.BOX)
    margin, padding = (resized(places, drawn, drawn) for places in (picture & ~core, ~picture))
    shown = padded(tinted(shown, margin, ORANGE, MARGIN_STRENGTH), padding)
    pen, side = ImageDraw.Draw(shown), len(core)
    edge = (side - core[side // 2].sum()) / 2 * drawn / side
    outline(pen, 0, 0, drawn, BLACK, 1)
    outline(pen, edge, edge, drawn - 2 * edge, BLUE)
    return shown


def draw_tokens(image: Image.Image, grid: Grid, config: FlashVLConfig) -> Image.Image:
    """A square for each token, colored by how many tiles it comes from; and the count."""
    cells, shuffle = grid[0] * grid[1], config.compressor.shuffle
    averaged = tokens_averaged(grid, config)  # (rows * token side, columns * token side)
    width, height = fitted(grid[1], grid[0], COLUMN - SMALL_TILE - 12, TALLEST)
    parts = [draw_squares(image, averaged, grid, width, height)]
    total = len(tile_image(image, config.tiler)[0])
    if total > cells:
        side = round(math.sqrt(config.tokens_per_tile))
        alone = np.ones((side, side), dtype=int)
        drawn = min(max(width // grid[1], 60), SMALL_TILE)
        thumbnail = draw_squares(image, alone, (1, 1), drawn, drawn)
        parts = [beside([*parts, stacked([thumbnail, note("thumbnail", SMALL_TILE)], 2)], 12)]
    words = f"({cells} tile{'s' * (cells > 1)}{' + 1 thumbnail' * (total > cells)})"
    words += f" x {config.tokens_per_tile} = {total * config.tokens_per_tile} tokens"
    folded = f"Each token is {shuffle} x {shuffle} patches (pixel shuffle)." if shuffle > 1 else ""
    return stacked([*parts, paragraph(words, COLUMN, NORMAL), note(folded, COLUMN)], 6)


def draw_squares(
    image: Image.Image, averaged: np.ndarray, grid: Grid, width: int, height: int
) -> Image.Image:
    """The picture under the lines between tokens (gray) and between tiles (blue)."""
    shown = image.resize((width, height), Image.Resampling.BOX)
    for tiles in set(averaged.flat) - {1}:
        places = resized(averaged == tiles, width, height)
        shown = tinted(shown, places, token_color(tiles), 0.7)
    return ruled(ruled(shown, averaged.shape, TOKEN_LINE, 1), grid, BLUE, 2)
