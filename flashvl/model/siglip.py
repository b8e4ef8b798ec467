"""The SigLIP2 tower of the Static models: one picture in, patch features out.

Source: SigLIP (arXiv 2303.15343) and SigLIP2 (arXiv 2502.14786) as published.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import VisionConfig
from .patches import PatchEmbedding, middle_positions, run_layers


class SigLIPEncoder(nn.Module):
    """pixels (S, C, height, width) -> features (S, N, D), patches row by row."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.feature_layer = config.feature_layer
        self.patch_embedding = PatchEmbedding(config)
        self.positions = nn.Parameter(torch.randn(config.patches, config.width) * 0.02)
        self.layers = nn.ModuleList(SigLIPLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, config.eps)
        if config.pooling_head:
            self.pooling_head = PoolingHead(config)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embedding(pixels)  # (S, N, D)
        x = x + middle_positions(self.positions[None], x.shape[1])
        return run_layers(x, self.layers, self.norm, self.feature_layer)


class SigLIPLayer(nn.Module):
    """x + attention(norm x), then x + mlp(norm x). (S, N, D) -> (S, N, D)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, config.eps)
        self.attention = SigLIPAttention(config)
        self.mlp_norm = nn.LayerNorm(config.width, config.eps)
        self.mlp = SigLIPMLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class SigLIPAttention(nn.Module):
    """Every patch attends to every patch of the picture. (S, N, D) -> (S, N, D)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.output = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (S, H, N, head width)
        k = self.key(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (S, H, N, head width)
        v = self.value(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (S, H, N, head width)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.output(x.transpose(1, 2).flatten(2))  # (S, N, D)


class SigLIPMLP(nn.Module):
    """Two linear maps around a tanh-GELU. (S, N, D) -> (S, N, D)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.mlp_width)
        self.down = nn.Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class PoolingHead(nn.Module):
    """SigLIP's attention-pooling head: its weights are in the published files.

    A vision-language model uses the patch features alone, so this is never called; it is held
    so that loading stays strict and `save_pretrained` gives back the whole file.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.randn(1, 1, config.width))
        self.attention = nn.MultiheadAttention(config.width, config.heads, batch_first=True)
        self.norm = nn.LayerNorm(config.width, config.eps)
        self.mlp = SigLIPMLP(config)
