"""What nano's stages minimize: the losses of patch labels, answers and image tokens' names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..input.tokenizer import Tokenizer
from ..model.network import FlashVLModel
from ..model.recording import recorded
from .data import SceneBatch, TileBatch
from .recipe import Recipe, Stage, nano_config
from .starting_values import set_starting_values
from .world.packed import CELLS, IGNORED, NAMES
from .world.questions import LANGUAGES
from .world.things import COLORS, DIGITS, MAX_DIGITS, SHAPES
from .world.wordings import COLORS_ZH, SHAPES_ZH

# Widths of the label head's parts: names, colors, outlines, boxes, places.
LABELS = (1 + len(NAMES), 1 + len(COLORS), CELLS**2, 4, MAX_DIGITS)
# Weight of boxes and of digits' places in the loss; places at 1 hold the names up for long.
LOCATION = 0.2
WORDS = (len(LANGUAGES) * len(NAMES), len(LANGUAGES) * len(COLORS))


class ModelWithLosses(nn.Module):
    """The model in training, its losses, and a head for patch labels that training alone needs."""

    words: Tensor

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.model = FlashVLModel(nano_config(recipe))
        self.label_head = nn.Linear(self.model.config.vision.width, sum(LABELS))
        self.register_buffer("words", average_of_tokens(tokenizer, recipe.vocabulary))
        set_starting_values(self.model)

    def train_parts(self, stage: Stage) -> None:
        """Lets the parts of a stage learn, with tiles the label head too; all else is frozen."""
        self.zero_grad(set_to_none=True)
        self.requires_grad_(False)
        for part in stage.parts:
            self.model.get_submodule(part).requires_grad_(True)
        self.label_head.requires_grad_(stage.data == "tiles")

    def loss(self, batch: TileBatch | SceneBatch) -> tuple[Tensor, Tensor]:
        """-> the loss and the share of labels that are predicted, both ()."""
        if isinstance(batch, TileBatch):
            return self.label_loss(self.model.vision(batch.pixels), batch)
        return self.scene_loss(batch)

    def label_loss(self, features: Tensor, batch: TileBatch) -> tuple[Tensor, Tensor]:
        """What the label head says of each patch against what the generator knows.

        features (S, N, D) of the tower. -> as `loss`, of which the share counts names.
        """
        names, colors, outlines, boxes, places = self.label_head(features).split(LABELS, dim=-1)
        name_loss = cross_entropy_of_patches(names, batch.names)
        color_loss = cross_entropy_of_patches(colors, batch.colors)
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
        share = share_right(names[shown], batch.names[shown])
        return name_loss + color_loss + outline_loss + location_loss, share

    def scene_loss(self, batch: SceneBatch) -> tuple[Tensor, Tensor]:
        """What the decoder says in each place of an answer against the answer, and `name_loss`."""
        with recorded(self.model, ["vision", "compressor"]) as seen:
            logits = self.model(
                batch.input_ids,
                batch.pixels,
                batch.grids,
                positions=batch.positions,
                mask=batch.mask,
                logits_at=batch.before_answer,
            )  # (answer tokens, V)
        answers = batch.labels[batch.is_answer]  # (answer tokens)
        answer_loss = F.cross_entropy(logits, answers)
        with torch.no_grad():
            stitched = self.model.compressor.reduce(seen["vision"], batch.grids)  # (S, tokens, D)
        name_loss = self.name_loss(stitched, seen["compressor"])
        return answer_loss + name_loss, share_right(logits, answers)

    def name_loss(self, stitched: Tensor, tokens: Tensor) -> Tensor:
        """How near image tokens lie to the decoder's words for what they show.

        stitched (S, tokens, D): the tower's features that the tokens are made of. -> ().

        What they show is what the tower's label head says. Without this the decoder finds a
        thing by its color or shape only after many times as many steps.
        """
        with torch.no_grad():
            labels = self.label_head(stitched).split(LABELS, dim=-1)
            names, colors = (part.argmax(-1).flatten() for part in labels[:2])  # (S * tokens)
        words = self.words @ self.model.decoder.embedding.weight  # (words, D)
        nearness = (tokens @ words.T).flatten(0, 1)  # (S * tokens, words)
        of_names, of_colors = nearness.split(WORDS, dim=-1)
        loss = tokens.new_zeros(())
        for near, shown in ((of_names, names), (of_colors, colors)):
            for of_language in near.chunk(len(LANGUAGES), dim=-1):
                logits = F.pad(of_language, (1, 0))  # (S * tokens, 1 + words of the language)
                loss = loss + F.cross_entropy(logits, shown) / len(LANGUAGES)
        return loss


def average_of_tokens(tokenizer: Tokenizer, vocabulary: int) -> Tensor:
    """For each word for what patches show the mean over its tokens, as a matrix: (words, V)."""
    words = [f" {word}" for word in SHAPES] + list(DIGITS)
    words += [SHAPES_ZH[word][0] for word in SHAPES] + list(DIGITS)
    words += [f" {word}" for word in COLORS] + [COLORS_ZH[word] for word in COLORS]
    rows = torch.zeros(len(words), vocabulary)
    for row, word in zip(rows, words):
        ids = tokenizer.encode(word)
        row[ids] = 1 / len(ids)
    return rows


def cross_entropy_of_patches(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over patches whose label is not IGNORED. (S, N, classes), (S, N) -> ()."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def share_right(logits: Tensor, labels: Tensor) -> Tensor:
    """How many of the labels are the likeliest. (labels, classes), (labels) -> ()."""
    return (logits.argmax(-1) == labels).float().mean()
