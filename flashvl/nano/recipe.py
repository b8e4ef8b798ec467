"""The recipe of nano as data: the model's config, its tokenizer and the stages of its training.

The stages are those of the 2B in small: first the tower, then compressor and decoder with the
tower frozen. Training all together afterwards gained nothing; weights/nano/README.md tells more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from ..config import FlashVLConfig
from ..errors import ConfigError
from ..input.tokenizer import QWEN2_PATTERN, Tokenizer
from ..reading import copy_of
from ..training.loop import Schedule
from .world.scenes import scene, training_number

CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TOWER, READER = ("vision",), ("compressor", "decoder")


@dataclass(frozen=True)
class Stage(Schedule):
    """One stage: its name, its steps, its highest learning rate; what is trained, and on what.

    `data` is "tiles" (packed tiles with labels for each patch) or "scenes" (pictures with sides
    of `sides` pixels and `questions` about each, in conversations of up to `rounds` side by side).
    `things` are the minimum and the maximum in each tile or scene, `digits` the maximum of a
    number; `batch` counts tiles or scenes.
    """

    data: str
    parts: tuple[str, ...]
    things: tuple[int, int]
    digits: int
    batch: int
    sides: tuple[int, int] = (80, 640)
    max_aspect_ratio: float = 4.0
    questions: int = 10
    rounds: int = 10


@dataclass(frozen=True)
class Recipe:
    """A config in the published form, the size of the vocabulary, and the stages in order."""

    config: dict[str, Any]
    vocabulary: int
    stages: tuple[Stage, ...]


NANO = Recipe(
    config={
        "model_type": "FlashVLDynamicISSConfig",
        "vision_config": {
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 112,
            "patch_size": 14,
        },
        "llm_config": {
            "vocab_size": 768,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rope_theta": 1000000.0,
        },
        "intermediate_size": 256,
        "image_token_num": 36,
    },
    vocabulary=768,
    stages=(
        # Alone a thing is learned in a tenth of the steps that it takes among many.
        Stage("tower, one thing", 3000, 2e-3, "tiles", TOWER, things=(1, 1), digits=1, batch=32),
        Stage("tower, many", 6000, 1.5e-3, "tiles", TOWER, things=(1, 6), digits=4, batch=32),
        # Pictures of a single tile: the words are learned at a fifth of the cost.
        Stage(
            "words",
            2000,
            2e-3,
            "scenes",
            READER,
            things=(1, 3),
            digits=3,
            batch=16,
            sides=(80, 118),
            max_aspect_ratio=1.0,
        ),
        Stage("answers", 1200, 1.5e-3, "scenes", READER, things=(1, 4), digits=4, batch=16),
        Stage("longer", 640, 1e-3, "scenes", READER, things=(1, 4), digits=4, batch=16),
    ),
)
RECIPES = {"nano": NANO}


def nano_config(recipe: Recipe) -> FlashVLConfig:
    return FlashVLConfig.from_dict(recipe.config)


def with_config(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with a model whose config has these fields instead of its own.

    A section of the config keeps the fields that are not changed. Raises `ConfigError` if there is
    no such model, or its vocabulary is not the tokenizer's.
    """
    config = dict(recipe.config)
    for name, value in copy_of(changes, "the changes").items():
        own = config.get(name, {})
        both = isinstance(value, dict) and isinstance(own, dict)
        config[name] = own | value if both else value
    changed = replace(recipe, config=config)
    vocabulary = nano_config(changed).decoder.vocabulary
    if vocabulary != recipe.vocabulary:
        raise ConfigError(
            f"vocab_size must stay {recipe.vocabulary}, as the tokenizer has it, found {vocabulary}"
        )
    return changed


def train_tokenizer(recipe: Recipe) -> Tokenizer:
    """A byte-level BPE with Qwen2's rules of cutting, learned from nano's own conversations."""
    library = tokenizers.Tokenizer(models.BPE())
    library.normalizer = normalizers.NFC()
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(QWEN2_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary - len(CONTROL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    library.train_from_iterator(_texts(), trainer)
    library.add_special_tokens(list(CONTROL_TOKENS))
    return Tokenizer(json.loads(library.to_str()))


def _texts() -> Iterator[str]:
    """What nano reads and writes: roles, the system turn, questions and answers."""
    yield from ("system", "user", "assistant", "\n", "You are a helpful assistant.")
    for index in range(2000):
        for question in scene(training_number(0, index)).questions:
            yield question.text
            yield question.answer
