"""The loop over the steps of a stage: loss, gradients, optimizers; saved now and then.

What is learned, and from what, is the caller's.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ..terminal import end_progress
from .processes import ALONE, Processes
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
    warm_up: int = field(default=WARM_UP, kw_only=True)  # steps; at most all of them


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
    together: Processes = ALONE,
    then: Callable[[int], None] = lambda done: None,
) -> None:
    """The steps of one stage from `first` on, each with the next batch.

    `loss_of` a batch is the loss and the share of labels that are predicted, both (); if it has
    taken the gradients itself, part by part, the loss comes without a graph. `optimizers` are those
    of `make_optimizers`. `save` is called with the number of steps that are done: every two
    minutes, and on Ctrl-C in any of the processes `together`, which then raises `Interrupted` in
    all of them. `then` is called with that number after each step.
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
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss, share = loss_of(batch)
            if loss.requires_grad:
                loss.backward()
            nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["ratio"] * rate_at(step, schedule)
                optimizer.step()
            progress.add(step, loss, share, batch.pictures)
            then(step + 1)
            due = time.monotonic() - saved > SAVE_EVERY
            stop, due = map(bool, together.sums(len(interrupts), due))
            if stop or due:
                save(step + 1)
                saved = time.monotonic()
            if stop:
                end_progress()
                raise Interrupted


def make_optimizers(
    parameters: Mapping[str, nn.Parameter],
    schedule: Schedule,
    ratio_of: Callable[[str], float] = lambda name: 1.0,
    muon: bool = True,
) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for the rest, of the parameters that require a gradient.

    Muon (torch.optim.Muon) makes all directions of a matrix's step equally long. What is looked
    up or looks up (embedding, heads) and what is no matrix of its own keeps AdamW; without `muon`
    all do. `ratio_of` a parameter's name is its rate over the schedule's. The moments are there
    from the start, at zero, so that a state to resume from can be held against them.
    """
    trained = {name: one for name, one in parameters.items() if one.requires_grad}
    hidden = {
        name: one
        for name, one in trained.items()
        if muon and one.ndim == 2 and "head." not in name and "embed" not in name
    }
    rest = {name: one for name, one in trained.items() if name not in hidden}

    def groups(some: Mapping[str, nn.Parameter], scale: float, decay: float) -> list[Any]:
        """A group for each rate; one at least, for a stage may have none of a kind."""
        by_ratio: dict[float, list[nn.Parameter]] = {} if some else {scale: []}
        for name, one in some.items():
            by_ratio.setdefault(scale * ratio_of(name), []).append(one)
        return [
            {"params": its, "lr": schedule.rate * ratio, "ratio": ratio, "weight_decay": decay}
            for ratio, its in by_ratio.items()
        ]

    matrices = {name: one for name, one in rest.items() if one.ndim >= 2}
    others = {name: one for name, one in rest.items() if one.ndim < 2}
    optimizers: list[torch.optim.Optimizer] = []
    if muon:
        of_muon = groups(hidden, MUON, DECAY)
        optimizers.append(torch.optim.Muon(of_muon, adjust_lr_fn="match_rms_adamw"))
    of_adamw = groups(matrices, 1.0, DECAY) + groups(others, 1.0, 0.0)
    optimizers.append(torch.optim.AdamW(of_adamw, betas=(0.9, 0.98)))
    # As their own first steps would begin them.
    for one in hidden.values():
        optimizers[0].state[one]["momentum_buffer"] = torch.zeros_like(one)
    for one in rest.values():
        state = optimizers[-1].state[one]
        state["step"] = torch.zeros((), dtype=torch.float32)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(one), torch.zeros_like(one)
    return optimizers


def rate_at(step: int, schedule: Schedule) -> float:
    """AdamW's learning rate: a linear warm-up, then a cosine down to a hundredth."""
    warm_up = min(1.0, (step + 1) / min(schedule.warm_up, schedule.steps))
    return schedule.rate * warm_up * (0.505 + 0.495 * math.cos(math.pi * step / schedule.steps))


@contextmanager
def noted_interrupts() -> Iterator[list[int]]:
    """Ctrl-C is put on the list instead of raised, so that a step is never half done.

    So is SIGTERM where torchrun started the process, which passes Ctrl-C on as that. Both reach the
    main thread alone; in another one nothing is noted.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    numbers = [signal.SIGINT, *([signal.SIGTERM] if "TORCHELASTIC_RUN_ID" in os.environ else [])]
    before = [signal.signal(one, lambda number, frame: noted.append(number)) for one in numbers]
    try:
        yield noted
    finally:
        for one, handler in zip(numbers, before):
            signal.signal(one, handler)
