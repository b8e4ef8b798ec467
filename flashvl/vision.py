"""The AIMv2 tower of the Dynamic and Dynamic-ISS models: tiles in, patch features out.

Source: Apple's AIMv2 as published (arXiv 2411.14402); the names of the checkpoint stand in
`names.py`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config_parts import VisionConfig
from .errors import ArgumentError
from .layers import RMSNorm, SwiGLU


class VisionEncoder(nn.Module):
    """AIMv2: patches, RMSNorm, learned positions, pre-norm blocks, a last RMSNorm.

    pixels (S, C, height, width) -> features (S, N, D), patches row by row. A tile with fewer
    patches than there are positions takes the middle ones.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.feature_layer = config.feature_layer
        self.patch_embedding = PatchEmbedding(config)
        self.patch_norm = RMSNorm(config.width, config.eps)
        self.positions = nn.Parameter(torch.randn(1, config.patches, config.width) * 0.02)
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.eps)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_norm(self.patch_embedding(pixels))  # (S, N, D)
        x = x + middle_positions(self.positions, x.shape[1])
        return run_layers(x, self.layers, self.norm, self.feature_layer)


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


class VisionLayer(nn.Module):
    """x + attention(norm x), then x + mlp(norm x). (S, N, D) -> (S, N, D)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.eps)
        self.attention = VisionAttention(config)
        self.mlp_norm = RMSNorm(config.width, config.eps)
        self.mlp = SwiGLU(config.width, config.mlp_width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class VisionAttention(nn.Module):
    """Every patch attends to every patch of its own tile. (S, N, D) -> (S, N, D)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.output = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (S, N, 3, H, head width)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # 3 x (S, H, N, head width)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.output(x.transpose(1, 2).flatten(2))  # (S, N, D)


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
