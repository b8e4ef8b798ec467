"""The compressor: fewer, wider tokens out of patch features, in the decoder's width.

Dynamic and Static fold 2 x 2 patches into one token (pixel shuffle); Dynamic-ISS keeps the core
of each tile instead (implicit semantic stitching, paper section 3). Both are one path here: stitch
with a margin that may be 0, then shuffle by a factor that may be 1.

Source of the stitching modes: assumption, see weights/ASSUMPTIONS.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, gelu

from ..config import FlashVLConfig, Grid, TilerConfig
from ..errors import ArgumentError
from ..reading import is_integer, shown


class Compressor(nn.Module):
    """features (S, N, vision width) of one or more pictures -> tokens (S, T, decoder width).

    `grids` are the (rows, columns) of each picture's tiles. They may be left out in all stitching
    modes but `mean`, which must know which tiles are neighbors. Raises `ArgumentError` if the
    grids do not fit the count of tiles, or are missing in that mode.
    """

    def __init__(self, config: FlashVLConfig) -> None:
        super().__init__()
        self.tiler = config.tiler
        self.margin = config.stitched_margin
        self.core_side = config.tiler.core_size // config.vision.patch_size
        self.shuffle = config.compressor.shuffle
        self.token_order = config.compressor.token_order
        width, hidden = config.compressor_input_width, config.compressor.hidden_width
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, hidden)
        self.hidden = nn.Linear(hidden, hidden)
        self.output = nn.Linear(hidden, config.decoder.width)

    def forward(self, features: Tensor, grids: Sequence[Grid] | None = None) -> Tensor:
        x = self.reduce(features, grids)  # (S, T, shuffle * shuffle * D)
        x = gelu(self.expand(self.norm(x)))  # (S, T, hidden width)
        return self.output(gelu(self.hidden(x)))  # (S, T, decoder width)

    def reduce(self, features: Tensor, grids: Sequence[Grid] | None = None) -> Tensor:
        """Stitching, then pixel shuffle, before any weight. (S, N, D) -> (S, T, factor² * D)."""
        side = math.isqrt(features.shape[1])
        x = features.unflatten(1, (side, side))  # (S, side, side, D)
        counts = None if grids is None else tiles_of(grids, len(x), self.tiler)
        if self.tiler.stitching == "mean" and self.margin > 0 and len(x) > 0:
            if grids is None or counts is None:
                raise ArgumentError(
                    "the stitching mode mean needs to know which tiles are neighbors; pass the "
                    "grids of the pictures"
                )
            pictures = zip(x.split(counts), grids)
            averaged = [
                average_margins(one, grid, self.margin, order=self.tiler.order(grid))
                for one, grid in pictures
            ]
            x = torch.cat(averaged)  # (S, core, core, D)
        elif self.tiler.stitching == "pool":
            x = average_windows(x, self.core_side)  # (S, core, core, D)
        else:
            x = trim_margins(x, self.margin)  # (S, core, core, D)
        x = pixel_shuffle(x, self.shuffle)  # (S, rows, columns, factor * factor * D)
        if self.token_order == "columns":
            x = x.transpose(1, 2)  # (S, columns, rows, factor * factor * D)
        return x.flatten(1, 2)  # (S, T, factor * factor * D)


def tiles_of(grids: Sequence[Grid], tiles: int, tiler: TilerConfig) -> list[int]:
    """How many tiles each picture has. Raises `ArgumentError` unless they are `tiles` in all."""
    if not isinstance(grids, Sequence) or not all(map(is_grid, grids)):
        raise ArgumentError(
            f"grids must be a list of (rows, columns), one for each picture; found {shown(grids)}"
        )
    counts = [tiler.tiles(grid) for grid in grids]
    if sum(counts) != tiles:
        raise ArgumentError(
            f"there are {tiles} tiles, the grids {shown(list(grids))} have {sum(counts)}"
            + (", thumbnails included" if tiler.thumbnail != "none" else "")
        )
    return counts


def is_grid(value: object) -> bool:
    """Whether a value is (rows, columns), each a whole number from 1."""
    return (
        isinstance(value, tuple | list)
        and len(value) == 2
        and all(is_integer(one) and one > 0 for one in value)
    )


def trim_margins(features: Tensor, margin: int) -> Tensor:
    """The stitching modes `trim` and `none`: the core of each tile goes on.

    (S, side, side, D) -> (S, side - 2 * margin, side - 2 * margin, D). `margin` in patches.
    """
    side = features.shape[1]
    return features[:, margin : side - margin, margin : side - margin]


def average_windows(features: Tensor, core: int) -> Tensor:
    """The stitching mode `pool`: all patches are averaged down to the core's size.

    Along a side, place i is the mean of the patches from i * side / core, rounded down, to
    (i + 1) * side / core, rounded up. (S, side, side, D) -> (S, core, core, D).
    """
    x = features.permute(0, 3, 1, 2)  # (S, D, side, side)
    return adaptive_avg_pool2d(x, core).permute(0, 2, 3, 1)  # (S, core, core, D)


def average_margins(
    features: Tensor, grid: Grid, margin: int, order: Sequence[int] | None = None
) -> Tensor:
    """The stitching mode `mean`: a core token becomes the mean of all that saw its place.

    Near a seam the neighbors' margins show the same place; their features are added and divided
    by how many there are. A thumbnail has no neighbors and is trimmed. `order` is that of the
    tiles, see `TilerConfig.order`; without it they stand row by row, and the thumbnail after them.
    (S, side, side, D) of one picture -> (S, core, core, D). `margin` in patches.
    """
    order = range(len(features)) if order is None else order
    rows, columns = grid
    side = features.shape[1]
    core = side - 2 * margin
    height, width = rows * core + 2 * margin, columns * core + 2 * margin
    total = features.new_zeros(height, width, features.shape[-1])
    count = features.new_zeros(height, width, 1)
    for tile, number in zip(features, order):  # tile: (side, side, D)
        if number == rows * columns:  # the thumbnail
            continue
        top, left = number // columns * core, number % columns * core
        total[top : top + side, left : left + side] += tile
        count[top : top + side, left : left + side] += 1
    mean = (total / count)[margin : height - margin, margin : width - margin]  # (rows * core, ...)
    mean = mean.unflatten(1, (columns, core))  # (rows * core, columns, core, D)
    mean = mean.unflatten(0, (rows, core))  # (rows, core, columns, core, D)
    mean = mean.transpose(1, 2).flatten(0, 1)  # (rows * columns, core, core, D)
    places = [place for place, number in enumerate(order) if number == rows * columns]
    thumbnail = trim_margins(features[places], margin)  # (0 or 1, core, core, D)
    return torch.cat((mean, thumbnail))[list(order)]  # (S, core, core, D)


def pixel_shuffle(x: Tensor, factor: int) -> Tensor:
    """factor x factor neighbors become one token, channel blocks (0, 0), (0, 1), (1, 0), (1, 1).

    (S, rows * factor, columns * factor, D) -> (S, rows, columns, factor * factor * D).
    """
    x = x.unflatten(2, (-1, factor)).unflatten(1, (-1, factor))  # (S, rows, f, columns, f, D)
    return x.transpose(2, 3).flatten(3)  # (S, rows, columns, factor * factor * D)
