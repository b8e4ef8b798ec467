"""How likely a model finds given answers under other assumptions than its own.

One pass over a picture, the questions about it and their answers tells it. What the tower makes of
a tile is kept, so that all assumptions which show it the same tile share it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...chat import FlashVL
from ...config import FlashVLConfig
from ...input.image import ImageLike, load_image
from ...input.processor import Processor, normalize
from ...input.prompt import IGNORED, TURN_END, Message
from ...input.tiling import tile_image
from ...model.aimv2 import AIMv2Encoder
from ...model.network import FlashVLModel
from ...model.siglip import SigLIPEncoder
from ...nano.data import SceneBatch, pad, side_by_side
from ...storage import MEBIBYTE

Tower = AIMv2Encoder | SigLIPEncoder
MAX_KEPT_BYTES = 1024 * MEBIBYTE  # of the tower's outputs


@dataclass(frozen=True)
class Sample:
    """A picture and conversations about it, each with the answer that it is to get.

    `name` is what a person calls it.
    """

    name: str
    picture: ImageLike
    conversations: Sequence[tuple[Sequence[Message], str]]


@dataclass(frozen=True)
class Token:
    """A token of an answer that is not the likeliest there, and the one that is.

    `answer` and `place` count from 0.
    """

    answer: int
    place: int
    token_id: int
    likelier_id: int


@dataclass(frozen=True)
class Measured:
    """How likely a sample's answers are under some assumptions.

    `losses` are those of the answers in nats, as `Measure` takes them; `right` is the share of them
    all of whose tokens are the likeliest. `likeliest` of all `tokens` are, and `other` is the first
    that is not.
    """

    losses: tuple[float, ...]
    right: float
    tokens: int
    likeliest: int
    other: Token | None


class Measure:
    """Measures samples with the weights of one model, under any assumptions.

    An answer's loss is its negative log-likelihood, the token that ends it included. With `own` the
    answers are those that the model gave, perhaps without their ends. Wrong assumptions can make
    them likelier than the true ones do, but only the true ones make all their tokens the likeliest:
    a loss is then by how much the likeliest ones are likelier, and 0 if there are none.
    """

    def __init__(self, flash: FlashVL, own: bool) -> None:
        self._flash, self._own = flash, own
        self._kept: OrderedDict[tuple[int, bytes], Tensor] = OrderedDict()

    @torch.inference_mode()
    def __call__(
        self, sample: Sample, assumptions: Mapping[str, Any], picture: ImageLike | None = None
    ) -> Measured:
        """One pass; `picture` is shown instead of the sample's own.

        Raises `ImageError`, `MessageError`, `ConfigError`, and `CheckpointError` for a control
        token that the tokenizer does not have.
        """
        flash = self._flash
        config = flash.config.with_assumptions(assumptions)
        shown = load_image(sample.picture if picture is None else picture)
        tiles, grid = tile_image(shown, config.tiler)  # (S, height, width, C)
        pixels = normalize(tiles, config.tiler.mean, config.tiler.std)  # (S, C, height, width)
        processor, tokenizer = Processor(config, flash.tokenizer), flash.tokenizer
        encoded = []
        for messages, answer in sample.conversations:
            prompt = processor.encode(messages, len(tiles))[0].tolist()
            ids = tokenizer.encode(answer)
            ids += [] if self._own else [tokenizer.control_id(TURN_END)]
            encoded.append((prompt + ids, [IGNORED] * len(prompt) + ids))
        batch = SceneBatch(pixels, [grid], *pad([side_by_side(encoded)])).to(flash.model.device)
        logits = with_config(flash.model, config, self._kept)(
            batch.input_ids,
            batch.pixels,
            batch.grids,
            positions=batch.positions,
            mask=batch.mask,
            logits_at=batch.before_answer,
        )  # (answer tokens, V)
        wanted = batch.labels[batch.is_answer]  # (answer tokens)
        chances = logits.float().log_softmax(dim=-1)  # (answer tokens, V)
        losses = -chances.gather(-1, wanted[:, None])[:, 0]  # (answer tokens)
        if self._own:
            losses = losses + chances.amax(dim=-1)  # (answer tokens)
        return summed(
            losses.tolist(),
            wanted.tolist(),
            logits.argmax(dim=-1).tolist(),
            (batch.owners[batch.is_answer] - 1).tolist(),
            len(sample.conversations),
        )


def summed(
    losses: Sequence[float],
    wanted: Sequence[int],
    likeliest: Sequence[int],
    owners: Sequence[int],
    answers: int,
) -> Measured:
    """Of the tokens of all answers, each with its loss, its id, the likeliest id and its answer."""
    others: list[Token] = []
    of_answers = [0.0] * answers
    for number, (owner, token_id, best) in enumerate(zip(owners, wanted, likeliest)):
        of_answers[owner] += losses[number]
        if token_id != best:
            others.append(Token(owner, number - owners.index(owner), token_id, best))
    wrong = len({one.answer for one in others})
    return Measured(
        losses=tuple(of_answers),
        right=1 - wrong / answers,
        tokens=len(wanted),
        likeliest=len(wanted) - len(others),
        other=others[0] if others else None,
    )


def with_config(
    model: FlashVLModel, config: FlashVLConfig, kept: OrderedDict[tuple[int, bytes], Tensor]
) -> FlashVLModel:
    """The same weights under another config, which differs in its assumptions alone."""
    with torch.device("meta"):
        other = FlashVLModel(config)
    for name, part in model.compressor.named_children():
        other.compressor.add_module(name, part)
    other.add_module("vision", KeepingTower(model.vision, config.vision.feature_layer, kept))
    other.add_module("decoder", model.decoder)
    return other.eval()


class KeepingTower(nn.Module):
    """A tower that computes a tile once. pixels (S, C, height, width) -> features (S, N, D).

    `kept` holds what is known, by the layer of the features and the tile's pixels, up to
    `MAX_KEPT_BYTES`; what was used last stays longest.
    """

    def __init__(
        self, tower: Tower, layer: int, kept: OrderedDict[tuple[int, bytes], Tensor]
    ) -> None:
        super().__init__()
        self.tower, self.layer, self.kept = tower, layer, kept

    def forward(self, pixels: Tensor) -> Tensor:
        keys = [
            (self.layer, hashlib.blake2b(tile.cpu().numpy().tobytes()).digest()) for tile in pixels
        ]
        new = {key: number for number, key in enumerate(keys) if key not in self.kept}
        if new:
            before, self.tower.feature_layer = self.tower.feature_layer, self.layer
            try:
                features = self.tower(pixels[list(new.values())])  # (new tiles, N, D)
            finally:
                self.tower.feature_layer = before
            # Copies, so that each can be forgotten by itself.
            self.kept.update((key, one.clone()) for key, one in zip(new, features))
        for key in keys:
            self.kept.move_to_end(key)
        features = torch.stack([self.kept[key] for key in keys])  # (S, N, D)
        each = features[0].nbytes
        while len(self.kept) > max(len(keys), MAX_KEPT_BYTES // each):
            self.kept.popitem(last=False)
        return features
