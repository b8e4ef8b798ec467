"""From logits to the next token: pure functions, in the order in which they are applied.

Source: the usual definitions, equal to transformers' logits processors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..reading import is_integer, is_number, shown

POSITIVE = "a number from 1e-30 to 1e30"


class SamplingOptions(TypedDict, total=False):
    """The keyword arguments of `chat`, `stream`, `ask` and `chat_batch`, as `Sampling` has them."""

    do_sample: bool
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    seed: int | None


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, and how many at most: greedy, unless `do_sample`.

    `temperature` divides the logits; then the `top_k` likeliest tokens stay (0: all), and of these
    the likeliest that reach `top_p` together. `repetition_penalty` above 1 makes tokens less
    likely that the prompt's text or the answer has. A `seed` makes drawing repeatable. Source: the
    model card for the names and defaults. Raises `ArgumentError` for values that make no sense.
    """

    do_sample: bool = False
    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        counts = is_integer(self.max_new_tokens) and self.max_new_tokens >= 1
        _require(counts, "max_new_tokens", "a whole number from 1", self)
        _require(_positive(self.temperature), "temperature", POSITIVE, self)
        _require(
            is_number(self.top_p) and 0 < self.top_p <= 1, "top_p", "above 0 and at most 1", self
        )
        _require(
            is_integer(self.top_k) and self.top_k >= 0, "top_k", "a whole number, 0 for all", self
        )
        _require(_positive(self.repetition_penalty), "repetition_penalty", POSITIVE, self)
        seeded = self.seed is None or (is_integer(self.seed) and 0 <= self.seed < 2**63)
        _require(seeded, "seed", "a whole number from 0, or None", self)


def next_token(
    logits: Tensor, seen: Tensor, sampling: Sampling, generator: torch.Generator | None
) -> Tensor:
    """logits (B, V), seen ids (B, T) -> ids (B, 1). Computes in float32."""
    logits = logits.float()
    if sampling.repetition_penalty != 1.0:
        logits = penalize(logits, seen, float(sampling.repetition_penalty))
    if not sampling.do_sample:
        return logits.argmax(dim=-1, keepdim=True)
    logits = logits - logits.amax(-1, keepdim=True)  # no overflow to inf
    logits = logits / float(sampling.temperature)  # torch takes no integer above 2**63
    if sampling.top_k:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Makes tokens that were seen less likely (arXiv 1909.05858). (B, V), (B, T) -> (B, V)."""
    of_seen = logits.gather(1, seen)  # (B, T)
    of_seen = torch.where(of_seen < 0, of_seen * penalty, of_seen / penalty)
    return logits.scatter(1, seen, of_seen)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """All but the k largest become -inf. (B, V) -> (B, V)."""
    smallest = logits.topk(min(k, logits.shape[-1])).values[:, -1:]  # (B, 1)
    return logits.masked_fill(logits < smallest, -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """The most likely tokens that reach p together stay, others become -inf. (B, V) -> (B, V)."""
    ordered, order = logits.sort(dim=-1)  # least likely first
    drop = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
    drop[:, -1] = False
    return logits.masked_fill(drop.scatter(1, order, drop), -math.inf)


def _positive(value: object) -> bool:
    """Far enough from 0 and infinity that float32 logits stay finite."""
    return is_number(value) and 1e-30 <= value <= 1e30


def _require(holds: bool, name: str, wanted: str, sampling: Sampling) -> None:
    if not holds:
        raise ArgumentError(f"{name} must be {wanted}, found {shown(getattr(sampling, name))}")
