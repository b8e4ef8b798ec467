"""The AIMv2 tower of the Dynamic and Dynamic-ISS models: tiles in, patch features out.

Source: Apple's AIMv2 as published (arXiv 2411.14402).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import VisionConfig
from .layers import RMSNorm, SwiGLU
from .patches import PatchEmbedding, middle_positions, run_layers


class AIMv2Encoder(nn.Module):
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
        self.layers = nn.ModuleList(AIMv2Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.eps)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_norm(self.patch_embedding(pixels))  # (S, N, D)
        x = x + middle_positions(self.positions, x.shape[1])
        return run_layers(x, self.layers, self.norm, self.feature_layer)


class AIMv2Layer(nn.Module):
    """x + attention(norm x), then x + mlp(norm x). (S, N, D) -> (S, N, D)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.eps)
        self.attention = AIMv2Attention(config)
        self.mlp_norm = RMSNorm(config.width, config.eps)
        self.mlp = SwiGLU(config.width, config.mlp_width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class AIMv2Attention(nn.Module):
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
