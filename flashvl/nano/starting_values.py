"""The values that nano's tower starts from where random ones would cost many steps."""

from __future__ import annotations

import torch
from torch import Tensor

from ..model.network import FlashVLModel
from ..model.patches import cut_patches
from .data import TileBatches
from .recipe import Stage

# Its single batch is only looked at.
WHITENING = Stage("whitening", 1, 0.0, "tiles", (), things=(1, 6), digits=4, batch=400)


@torch.no_grad()
def set_starting_values(model: FlashVLModel) -> None:
    """Patches start as their principal components, positions as waves along both axes.

    White noise hardly sees smooth pictures, and small random positions hardly tell places apart.
    """
    vision, embedding = model.config.vision, model.vision.patch_embedding
    pixels = TileBatches(model.config, WHITENING, seed=0, first=0)[0].pixels
    patches = cut_patches(pixels, vision.patch_size).flatten(0, 1)  # (S * N, C * patch * patch)
    mean = patches.mean(0)  # (C * patch * patch)
    variance, axes = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    variance, axes = variance[-vision.width :], axes[:, -vision.width :]  # the D largest
    weight = (axes / (variance + 1e-4 * variance[-1]).sqrt()).T  # (D, C * patch * patch)
    embedding.weight.copy_(weight.view_as(embedding.weight))
    embedding.bias.copy_(-weight @ mean)
    model.vision.positions.copy_(sine_positions(vision.side, vision.width))


def sine_positions(side: int, width: int) -> Tensor:
    """Sines and cosines of row and column, wave lengths 4 to 32 patches. -> (1, N, D)."""
    frequencies = torch.pi / 2 * 0.5 ** torch.linspace(0, 3, width // 4)  # (D / 4)
    angles = torch.arange(side)[:, None] * frequencies  # (side, D / 4)
    line = torch.cat((angles.sin(), angles.cos()), dim=1)  # (side, D / 2)
    rows = line[:, None].expand(side, side, -1)  # (side, side, D / 2)
    columns = line[None].expand(side, side, -1)  # (side, side, D / 2)
    return torch.cat((rows, columns), dim=2).flatten(0, 1)[None]  # (1, N, D)
