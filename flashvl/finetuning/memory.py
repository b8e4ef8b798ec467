"""The memory that a fine-tuning will need, known or estimated before its first step."""

from __future__ import annotations

import math

from torch import nn

from ..model.network import FlashVLModel
from ..terminal import table
from .data import Checked


def bytes_needed(
    model: FlashVLModel,
    samples: list[Checked],
    batch: int,
    moments: int,
    shards: int,
    checkpointing: bool,
    narrow: bool,
) -> dict[str, int]:
    """Bytes on each device, by what they are for.

    `moments` are those that the optimizer keeps of each number that learns; `shards` over how many
    devices weights, gradients and moments are spread; `narrow`: whether layers compute in bfloat16.
    """
    weights = list(model.parameters())
    learned = [one for one in weights if one.requires_grad]
    longest = max(max(one.lengths) for one in samples)
    tokens = longest * min(batch, math.ceil(sum(sum(one.lengths) for one in samples) / longest))
    size = 2 if narrow else 4
    return {
        "weights": _bytes(weights) // shards,
        "gradients": _bytes(learned) // shards,
        "optimizer": moments * _bytes(learned) // shards,
        # Answers are a small part of a conversation with a picture, but all of it at most.
        "logits, at most": tokens * model.config.decoder.vocabulary * (size + 8),
        "activations, about": activations(model, tokens, size, checkpointing),
    }


def activations(model: FlashVLModel, tokens: int, size: int, checkpointing: bool) -> int:
    """An estimate of what is kept of a pass for its gradients: the inputs of each layer's maps."""
    config = model.config
    text, tower = config.decoder, config.vision
    heads = (text.heads + 2 * text.key_value_heads) * text.head_width
    layer = 6 * text.width + 2 * heads + 4 * text.mlp_width  # numbers a token
    kept = _kept(layer, text.width, text.layers, checkpointing) * tokens
    if any(one.requires_grad for one in model.vision.parameters()):
        tower_layer = 12 * tower.width + 4 * tower.mlp_width  # numbers a patch
        patches = tokens * tower.patches // config.tokens_per_tile
        kept += _kept(tower_layer, tower.width, tower.layers, checkpointing) * patches
    return kept * size


def _kept(layer: int, width: int, layers: int, checkpointing: bool) -> int:
    """Of all layers, or of their inputs and of the one layer that is computed again."""
    return layers * width + layer if checkpointing else layers * layer


def _bytes(parameters: list[nn.Parameter]) -> int:
    return sum(one.numel() * one.element_size() for one in parameters)


def as_table(needed: dict[str, int]) -> str:
    rows = [("memory of each device", "bytes")]
    rows += [
        (name, f"{count:,}") for name, count in (needed | {"all": sum(needed.values())}).items()
    ]
    return table(rows)
