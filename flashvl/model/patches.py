"""What both towers do with patches: embed them, place them, and pass them through layers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import VisionConfig
from ..errors import ArgumentError


class PatchEmbedding(nn.Module):
    """One linear map from the pixels of a patch to a token.

    (S, C, height, width) of any floating dtype -> (S, N, D) in the weights' dtype. The weight has
    the shape of a convolution, as published; a matrix product gives the same numbers and leaves
    the tokens contiguous.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        patch = config.patch_size
        self.weight = nn.Parameter(torch.empty(config.width, config.channels, patch, patch))
        self.bias = nn.Parameter(torch.zeros(config.width))
        nn.init.normal_(self.weight, std=1 / math.sqrt(config.channels * patch * patch))

    def forward(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(self.weight.dtype)
        patches = cut_patches(pixels, self.weight.shape[-1])  # (S, N, C * patch * patch)
        return F.linear(patches, self.weight.flatten(1), self.bias)  # (S, N, D)


def cut_patches(pixels: Tensor, patch: int) -> Tensor:
    """(S, C, rows * patch, columns * patch) -> (S, rows * columns, C * patch * patch)."""
    x = pixels.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # (S, C, rows, p, columns, p)
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (S, N, C * patch * patch)


def middle_positions(positions: Tensor, patches: int) -> Tensor:
    """The middle square of learned positions. (1, N, D) -> (1, patches, D).

    Raises `ArgumentError` if a tile has more patches than there are positions.
    """
    side, wanted = math.isqrt(positions.shape[1]), math.isqrt(patches)
    if wanted > side:
        raise ArgumentError(
            f"a tile of {wanted} x {wanted} patches; this tower knows at most {side} x {side}"
        )
    start = (side - wanted) // 2
    grid = positions.unflatten(1, (side, side))  # (1, side, side, D)
    grid = grid[:, start : start + wanted, start : start + wanted]  # (1, wanted, wanted, D)
    return grid.flatten(1, 2)  # (1, patches, D)


def run_layers(x: Tensor, layers: nn.ModuleList, norm: nn.Module, feature_layer: int) -> Tensor:
    """All layers and the last norm, or (`feature_layer` >= 0) the bare output of that layer."""
    if feature_layer >= 0:
        layers, norm = layers[: feature_layer + 1], nn.Identity()
    for layer in layers:
        x = layer(x)
    return norm(x)
