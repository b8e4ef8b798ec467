"""Batches made in a second process, while the first one learns."""

from __future__ import annotations

import pickle
import signal
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import DeviceError, FlashVLError
from ..reading import one_line

Item = TypeVar("Item", covariant=True)


def loaded(data: Dataset[Item], numbers: Sequence[int]) -> Generator[Item, None, None]:
    """The items of these numbers, made in a second process.

    That starts with the first item and ends when the generator is closed. A `FlashVLError` that is
    raised there is raised here.
    """
    loader = DataLoader(
        _Whole(data),
        sampler=numbers,
        batch_size=None,
        num_workers=1,
        prefetch_factor=4,
        # Through a pipe. A batch that finds no room in shared memory is lost, and waited for.
        collate_fn=pickle.dumps,
        worker_init_fn=_leave_interrupts_to_the_loop,
    )
    for packed in loader:
        item = pickle.loads(packed)
        if isinstance(item, FlashVLError):
            raise item
        yield item


class _Whole(Dataset[Any]):
    """A data set whose errors are items: the loader would add their tracebacks to their texts."""

    def __init__(self, data: Dataset[Any]) -> None:
        self.data = data

    def __getitem__(self, number: int) -> Any:
        try:
            return self.data[number]
        except FlashVLError as error:
            return error


@contextmanager
def loading_failure_as_error() -> Iterator[None]:
    """Turns the end of the process that makes batches, whenever torch tells it, into an error.

    Raises `DeviceError`.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DeviceError(
            f"the process that draws the batches was ended ({one_line(error)}); memory may have "
            "run out; the run can be resumed"
        ) from error


def _leave_interrupts_to_the_loop(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the loop's own handler only takes note of it
    torch.set_num_threads(1)
