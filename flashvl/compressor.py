"""The compressor: fewer, wider tokens out of patch features, in the decoder's width.

Dynamic and Static fold 2 x 2 patches into one token (pixel shuffle); Dynamic-ISS keeps the core
of each tile instead (implicit semantic stitching, `tiling.py`). Both are one path here: stitch
with a margin that may be 0, then shuffle by a factor that may be 1.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn.functional import gelu

from .config import FlashVLConfig
from .errors import ArgumentError
from .tiling import average_margins, trim_margins


class Compressor(nn.Module):
    """features (S, N, vision width) -> tokens (S, T, decoder width).

    `grid` (rows, columns) is read by the stitching mode `mean` alone, which must know which
    tiles are neighbours; without it that mode raises `ArgumentError`.
    """

    def __init__(self, config: FlashVLConfig) -> None:
        super().__init__()
        self.margin = config.stitched_margin
        self.stitching = config.tiler.stitching
        self.shuffle = config.compressor.shuffle
        self.token_order = config.compressor.token_order
        width, hidden = config.compressor_input_width, config.compressor.hidden_width
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, hidden)
        self.hidden = nn.Linear(hidden, hidden)
        self.output = nn.Linear(hidden, config.decoder.width)

    def forward(self, features: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        x = self.reduce(features, grid)  # (S, T, shuffle * shuffle * D)
        x = gelu(self.expand(self.norm(x)))  # (S, T, hidden width)
        return self.output(gelu(self.hidden(x)))  # (S, T, decoder width)

    def reduce(self, features: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Stitching, then pixel shuffle, before any weight. (S, N, D) -> (S, T, factor² * D)."""
        side = math.isqrt(features.shape[1])
        x = features.unflatten(1, (side, side))  # (S, side, side, D)
        if self.stitching == "mean" and self.margin > 0:
            if grid is None:
                raise ArgumentError(
                    "the stitching mode mean needs to know which tiles are neighbours; "
                    "pass grid=model.grid(image)"
                )
            x = average_margins(x, grid, self.margin)  # (S, core, core, D)
        else:
            x = trim_margins(x, self.margin)  # (S, core, core, D)
        x = pixel_shuffle(x, self.shuffle)  # (S, rows, columns, factor * factor * D)
        if self.token_order == "columns":
            x = x.transpose(1, 2)  # (S, columns, rows, factor * factor * D)
        return x.flatten(1, 2)  # (S, T, factor * factor * D)


def pixel_shuffle(x: Tensor, factor: int) -> Tensor:
    """factor x factor neighbours become one token, channel blocks (0, 0), (0, 1), (1, 0), (1, 1).

    (S, rows * factor, columns * factor, D) -> (S, rows, columns, factor * factor * D).
    """
    x = x.unflatten(2, (-1, factor)).unflatten(1, (-1, factor))  # (S, rows, f, columns, f, D)
    return x.transpose(2, 3).flatten(3)  # (S, rows, columns, factor * factor * D)
