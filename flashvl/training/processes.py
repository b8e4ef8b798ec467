"""The processes of one run, as `torchrun` starts them, and what they do together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

from ..errors import DeviceError

BUCKET = 2**26  # numbers that are summed at a time
Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """The processes of one run: this one's number, from 0, and how many there are.

    What waits for the others raises `DeviceError` if one of them has ended.
    """

    rank: int = 0
    count: int = 1

    def wait(self) -> None:
        """Until all are here."""
        self.sums(0)

    def device(self, name: str) -> str:
        """Each process on its own CUDA device, if there are several of both."""
        if self.count > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
            place = int(os.environ.get("LOCAL_RANK", self.rank))
            return f"cuda:{place % torch.cuda.device_count()}"
        return name

    def sums(self, *numbers: float) -> list[float]:
        """Each of the numbers, added up over all processes."""
        total = torch.tensor(numbers, dtype=torch.float64)
        if self.count > 1:
            with _ended_as_error():
                distributed.all_reduce(total)
        return total.tolist()

    def gathered(self, value: Value) -> list[Value]:
        """What each process has, in their order."""
        if self.count == 1:
            return [value]
        values: list[Value] = [value] * self.count
        with _ended_as_error():
            distributed.all_gather_object(values, value)
        return values

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Adds gradients up over all processes; where there is none for a parameter, it is zero."""
        bucket: list[Tensor] = []
        for one in parameters:
            one.grad = torch.zeros_like(one) if one.grad is None else one.grad
            if self.count > 1:
                bucket.append(one.grad)
            if sum(grad.numel() for grad in bucket) >= BUCKET:
                _sum_together(bucket)
                bucket = []
        _sum_together(bucket)


ALONE = Processes()


def _sum_together(tensors: list[Tensor]) -> None:
    if not tensors:
        return
    flat = torch.cat([one.flatten() for one in tensors])
    with _ended_as_error():
        distributed.all_reduce(flat)
    for one, summed in zip(tensors, flat.split([one.numel() for one in tensors])):
        one.copy_(summed.view_as(one))


@contextmanager
def _ended_as_error() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise DeviceError("another process of this run has ended; run it again") from error


@contextmanager
def processes() -> Iterator[Processes]:
    """Those that torchrun has started, or this one alone."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    # One may have to wait for hours until another has its last answer.
    distributed.init_process_group(backend, timeout=timedelta(days=30))
    try:
        yield Processes(distributed.get_rank(), count)
    finally:
        distributed.destroy_process_group()
