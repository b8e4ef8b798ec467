"""What is trained: the model, its labels' head, its losses and the values it starts from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import FlashVL
from ..vision import cut_patches
from .data import IGNORED, SceneBatch, TileBatch, TileBatches
from .recipe import Recipe, Stage, nano_config
from .scenes import OUTLINE
from .shapes import COLOURS, SHAPES

LABELS = (1 + len(SHAPES), 1 + len(COLOURS), OUTLINE**2)  # widths of the label head's parts
WHITENING = Stage("whitening", "tiles", (), most_objects=6, steps=1, batch=400, rate=0.0)


class Trainer(nn.Module):
    """The model, and a head for patch labels that is thrown away after the first stage."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.model = FlashVL(nano_config(recipe))
        width = self.model.config.vision.width
        self.label_head = nn.Linear(width, sum(LABELS))
        set_starting_values(self.model)

    def loss(self, batch: TileBatch | SceneBatch) -> tuple[Tensor, Tensor]:
        """-> the loss and the share of labels that are predicted, both ()."""
        if isinstance(batch, TileBatch):
            features = self.model.vision(batch.pixels)  # (S, N, D)
            shapes, colours, outlines = self.label_head(features).split(LABELS, dim=-1)
            shape_loss, shape_share = _loss_and_share(shapes, batch.shapes, least=1)
            colour_loss, _ = _loss_and_share(colours, batch.colours, least=1)
            # Outlines are what shapes are told by; learned alone, shapes come much later.
            outline_loss = F.binary_cross_entropy_with_logits(outlines, batch.outlines)
            return shape_loss + colour_loss + outline_loss, shape_share
        embeddings = self.model.embed(batch.input_ids, self.model.encode(batch.pixels))  # (B, T, D)
        hidden = self.model.decoder(embeddings)  # (B, T, D)
        answers = batch.labels[:, 1:] != IGNORED  # (B, T - 1)
        logits = self.model.decoder.head(hidden[:, :-1][answers])  # (answer tokens, V)
        return _loss_and_share(logits, batch.labels[:, 1:][answers], least=0)


@torch.no_grad()
def set_starting_values(model: FlashVL) -> None:
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


def _loss_and_share(logits: Tensor, labels: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Cross-entropy, and the share of labels from `least` on that are the likeliest; both ()."""
    loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED)
    counted = labels >= least
    return loss, (logits.argmax(-1) == labels)[counted].float().mean()
