"""A checkpoint of random weights at the real sizes, to measure with where there are no real ones.

`python -m flashvl.tools.random_checkpoint FOLDER [REPOSITORY]` writes about 5 GB.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, pre_tokenizers

from ..config import FlashVLConfig
from ..hub import published_models
from ..model import FlashVL
from ..tokenizer import Tokenizer

CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def write_random_checkpoint(repository: str, folder: Path, seed: int = 0) -> None:
    """Writes a published model's shapes with random bfloat16 weights into `folder`.

    The tokenizer knows bytes alone. Raises `CheckpointError` if `folder` holds a model already.
    """
    config = FlashVLConfig.from_dict(published_models()[repository]["config"])
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = FlashVL(config)
    finally:
        torch.set_default_dtype(before)
    model.tokenizer = byte_tokenizer()
    model.stop_ids = frozenset(model.tokenizer.control[token] for token in CONTROL_TOKENS[::2])
    model.save_pretrained(folder)


def byte_tokenizer() -> Tokenizer:
    """A byte-level tokenizer without merges: each byte a token, then ChatML's control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = RawTokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(list(CONTROL_TOKENS))
    return Tokenizer(json.loads(raw.to_str()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a random checkpoint of the real sizes.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("repository", nargs="?", default=next(iter(published_models())))
    options = parser.parse_args()
    write_random_checkpoint(options.repository, options.folder)
