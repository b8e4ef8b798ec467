"""What is trained: the model, its labels' head, its losses and the values it starts from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import FlashVL
from ..tokenizer import Tokenizer
from ..vision import cut_patches
from .data import SceneBatch, TileBatch, TileBatches
from .numbers import DIGITS, MOST_DIGITS
from .packed import CELLS, IGNORED, NAMES
from .questions import LANGUAGES
from .recipe import Recipe, Stage, nano_config
from .shapes import COLOURS, SHAPES
from .wordings import COLOURS_ZH, SHAPES_ZH

# Widths of the label head's parts: names, colours, outlines, boxes, places.
LABELS = (1 + len(NAMES), 1 + len(COLOURS), CELLS**2, 4, MOST_DIGITS)
# Weight of boxes and of digits' places in the loss; places at 1 hold the names up for long.
LOCATION = 0.2
WORDS = (len(LANGUAGES) * len(NAMES), len(LANGUAGES) * len(COLOURS))
WHITENING = Stage("whitening", "tiles", (), things=(1, 6), digits=4, steps=1, batch=400, rate=0.0)


class Trainer(nn.Module):
    """The model, and a head for patch labels that is thrown away at the end."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.model = FlashVL(nano_config(recipe))
        width = self.model.config.vision.width
        self.label_head = nn.Linear(width, sum(LABELS))
        self.register_buffer("words", average_of_tokens(tokenizer, recipe.vocabulary))
        set_starting_values(self.model)

    def loss(self, batch: TileBatch | SceneBatch) -> tuple[Tensor, Tensor]:
        """-> the loss and the share of labels that are predicted, both ()."""
        features = self.model.vision(batch.pixels)  # (S, N, D)
        if isinstance(batch, TileBatch):
            return self.label_loss(features, batch)
        pictures = list(zip(features.split(batch.tiles), batch.grids))
        compressor = self.model.compressor
        tokens = torch.cat([compressor(one, grid) for one, grid in pictures])  # (S, tokens, D)
        embeddings = self.model.embed(batch.input_ids, tokens)  # (B, T, D)
        hidden = self.model.decoder(embeddings, positions=batch.positions, mask=batch.mask)
        answers = batch.labels[:, 1:] != IGNORED  # (B, T - 1)
        logits = self.model.decoder.head(hidden[:, :-1][answers])  # (answer tokens, V)
        loss, share = _loss_and_share(logits, batch.labels[:, 1:][answers], least=0)
        with torch.no_grad():
            stitched = torch.cat([compressor.reduce(one, grid) for one, grid in pictures])
        return loss + self.name_loss(stitched, tokens), share

    def label_loss(self, features: Tensor, batch: TileBatch) -> tuple[Tensor, Tensor]:
        """What the label head says of each patch against what the generator knows."""
        names, colours, outlines, boxes, places = self.label_head(features).split(LABELS, dim=-1)
        name_loss, share = _loss_and_share(names, batch.names, least=1)
        colour_loss, _ = _loss_and_share(colours, batch.colours, least=1)
        # Numbers are read by the places of digits.
        digits = batch.places != IGNORED  # (S, N)
        place_loss = F.cross_entropy(places[digits], batch.places[digits], reduction="sum")
        place_loss = place_loss / digits.sum().clamp(min=1)
        # Outlines and boxes are what names are told by; learned alone, names come much later.
        outline_loss = F.binary_cross_entropy_with_logits(outlines, batch.outlines)
        shown = batch.names > 0  # (S, N)
        box_loss = F.smooth_l1_loss(boxes[shown], batch.boxes[shown], reduction="sum")
        box_loss = box_loss / (4 * shown.sum()).clamp(min=1)
        location_loss = LOCATION * (box_loss + place_loss)
        return name_loss + colour_loss + outline_loss + location_loss, share

    def name_loss(self, stitched: Tensor, tokens: Tensor) -> Tensor:
        """How near image tokens lie to the decoder's words for what they show.

        stitched (S, tokens, D): the tower's features that the tokens are made of. -> ().

        What they show is what the tower's label head says. Without this the decoder finds a
        thing by its colour or shape only after many times as many steps.
        """
        with torch.no_grad():
            labels = self.label_head(stitched).split(LABELS, dim=-1)
            names, colours = (part.argmax(-1).flatten() for part in labels[:2])  # (S * tokens)
        words = self.words @ self.model.decoder.embedding.weight  # (words, D)
        nearness = (tokens @ words.T).flatten(0, 1)  # (S * tokens, words)
        of_names, of_colours = nearness.split(WORDS, dim=-1)
        loss = tokens.new_zeros(())
        for nearness, shown in ((of_names, names), (of_colours, colours)):
            for logits in nearness.chunk(len(LANGUAGES), dim=-1):
                logits = F.pad(logits, (1, 0))  # (S * tokens, 1 + words of the language)
                loss = loss + F.cross_entropy(logits, shown) / len(LANGUAGES)
        return loss


def average_of_tokens(tokenizer: Tokenizer, vocabulary: int) -> Tensor:
    """For each word for what patches show the mean over its tokens, as a matrix: (words, V)."""
    words = [f" {word}" for word in SHAPES] + list(DIGITS)
    words += [SHAPES_ZH[word][0] for word in SHAPES] + list(DIGITS)
    words += [f" {word}" for word in COLOURS] + [COLOURS_ZH[word] for word in COLOURS]
    rows = torch.zeros(len(words), vocabulary)
    for row, word in zip(rows, words):
        ids = tokenizer.encode(word)
        row[ids] = 1 / len(ids)
    return rows


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
