"""From logits to the next token: pure functions, in the order in which they are applied.

Source: the usual definitions, equal to transformers' logits processors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import ArgumentError

POSITIVE = "a number from 1e-30 to 1e30"


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Raises `ArgumentError` for values that make no sense."""

    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _require(_positive(self.temperature), "temperature", POSITIVE, self)
        _require(
            _number(self.top_p) and 0 < self.top_p <= 1, "top_p", "above 0 and at most 1", self
        )
        _require(_whole(self.top_k) and self.top_k >= 0, "top_k", "a whole number, 0 for all", self)
        _require(_positive(self.repetition_penalty), "repetition_penalty", POSITIVE, self)
        seeded = self.seed is None or (_whole(self.seed) and 0 <= self.seed < 2**63)
        _require(seeded, "seed", "a whole number from 0, or None", self)


def next_token(
    logits: Tensor, seen: Tensor, sampling: Sampling, generator: torch.Generator | None
) -> Tensor:
    """logits (B, V), seen ids (B, T) -> ids (B, 1). Computes in float32."""
    logits = logits.float()
    if sampling.repetition_penalty != 1.0:
        logits = penalise(logits, seen, sampling.repetition_penalty)
    if not sampling.do_sample:
        return logits.argmax(dim=-1, keepdim=True)
    logits = (logits - logits.amax(-1, keepdim=True)) / sampling.temperature  # no overflow to inf
    if sampling.top_k:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Makes tokens that were seen less likely (arXiv 1909.05858). (B, V), (B, T) -> (B, V)."""
    of_seen = logits.gather(1, seen)  # (B, T)
    of_seen = torch.where(of_seen < 0, of_seen * penalty, of_seen / penalty)
    return logits.scatter(1, seen, of_seen)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """All but the k largest become -inf. (B, V) -> (B, V)."""
    least = logits.topk(min(k, logits.shape[-1])).values[:, -1:]  # (B, 1)
    return logits.masked_fill(logits < least, -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """The most likely tokens that reach p together stay, others become -inf. (B, V) -> (B, V)."""
    ordered, order = logits.sort(dim=-1)  # least likely first
    drop = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
    drop[:, -1] = False
    return logits.masked_fill(drop.scatter(1, order, drop), -math.inf)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _positive(value: object) -> bool:
    """Far enough from 0 and infinity that float32 logits stay finite."""
    return _number(value) and 1e-30 <= value <= 1e30


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(holds: bool, name: str, wanted: str, sampling: Sampling) -> None:
    if not holds:
        raise ArgumentError(f"{name} must be {wanted}, found {getattr(sampling, name)!r}")
