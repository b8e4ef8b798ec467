"""The loop over the steps of a stage: loss, gradients, optimizers; saved now and then.

What is learned, and from what, is the caller's.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from ..terminal import end_progress
from .progress import Progress

WARM_UP = 100  # steps
DECAY = 0.05  # of weights, times the learning rate
MUON = 3.0  # its learning rate over AdamW's
MAX_GRADIENT = 1.0  # norm of all gradients together
SAVE_EVERY = 120  # seconds


@dataclass(frozen=True)
class Schedule:
    """How long a stage trains and how fast; `rate` is its highest learning rate."""

    name: str
    steps: int
    rate: float


class Batch(Protocol):
    @property
    def pictures(self) -> int:
        """How many pictures are in it."""


SomeBatch = TypeVar("SomeBatch", bound=Batch)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; the state has been saved."""


def run_stage(
    loss_of: Callable[[SomeBatch], tuple[Tensor, Tensor]],
    optimizers: list[torch.optim.Optimizer],
    schedule: Schedule,
    batches: Iterator[SomeBatch],
    first: int,
    progress: Progress,
    save: Callable[[int], None],
) -> None:
    """The steps of one stage from `first` on, each with the next batch.

    `loss_of` a batch is the loss and the share of labels that are predicted, both (). `optimizers`
    are those of `make_optimizers`. `save` is called with the number of steps that are done: every
    two minutes, and on Ctrl-C, which then raises `Interrupted`.
    """
    parameters = [
        one
        for optimizer in optimizers
        for group in optimizer.param_groups
        for one in group["params"]
    ]
    saved = time.monotonic()
    with noted_interrupts() as interrupts:
        for step in range(first, schedule.steps):
            batch = next(batches)
            loss, share = loss_of(batch)
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT)
            for optimizer, ratio in zip(optimizers, (MUON, 1.0)):
                for group in optimizer.param_groups:
                    group["lr"] = ratio * rate_at(step, schedule)
                optimizer.step()
            progress.add(step, loss, share, batch.pictures)
            if interrupts or time.monotonic() - saved > SAVE_EVERY:
                save(step + 1)
                saved = time.monotonic()
            if interrupts:
                end_progress()
                raise Interrupted


def make_optimizers(
    parameters: Mapping[str, nn.Parameter], schedule: Schedule
) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for the rest, of the parameters that require a gradient.

    Muon (torch.optim.Muon) makes all directions of a matrix's step equally long. What is looked
    up or looks up (embedding, heads) and what is no matrix of its own keeps AdamW. The moments are
    there from the start, at zero, so that a state to resume from can be held against them.
    """
    trained = {name: one for name, one in parameters.items() if one.requires_grad}
    hidden = {
        name: one
        for name, one in trained.items()
        if one.ndim == 2 and "head." not in name and "embed" not in name
    }
    rest = [one for name, one in trained.items() if name not in hidden]
    groups = [
        {"params": [one for one in rest if one.ndim >= 2], "weight_decay": DECAY},
        {"params": [one for one in rest if one.ndim < 2], "weight_decay": 0.0},
    ]
    muon = torch.optim.Muon(
        [{"params": list(hidden.values())}],  # a stage may have none
        lr=MUON * schedule.rate,
        weight_decay=DECAY,
        adjust_lr_fn="match_rms_adamw",
    )
    adamw = torch.optim.AdamW(groups, lr=schedule.rate, betas=(0.9, 0.98))
    # As their own first steps would begin them.
    for one in hidden.values():
        muon.state[one]["momentum_buffer"] = torch.zeros_like(one)
    for one in rest:
        adamw.state[one]["step"] = torch.zeros((), dtype=torch.float32)
        adamw.state[one]["exp_avg"] = torch.zeros_like(one)
        adamw.state[one]["exp_avg_sq"] = torch.zeros_like(one)
    return [muon, adamw]


def rate_at(step: int, schedule: Schedule) -> float:
    """AdamW's learning rate: a linear warm-up, then a cosine down to a hundredth."""
    warm_up = min(1.0, (step + 1) / min(WARM_UP, schedule.steps))
    return schedule.rate * warm_up * (0.505 + 0.495 * math.cos(math.pi * step / schedule.steps))


@contextmanager
def noted_interrupts() -> Iterator[list[int]]:
    """Ctrl-C is put on the list instead of raised, so that a step is never half done.

    It reaches the main thread alone; in another one nothing is noted.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: noted.append(number))
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)
