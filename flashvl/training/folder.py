"""A run's folder: its files, and that one process alone trains in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..errors import ArgumentError, shortened
from ..reading import one_line
from ..storage import LOCK, held

STATE, LOG = "state.safetensors", "log.jsonl"
# What a run that was killed before its first state may leave in its folder.
LEFTOVERS = {"state.writing", LOCK}
MAX_SHOWN = 100  # characters of a folder's name in an error


@contextmanager
def kept_for_this_run(folder: Path, resume: bool) -> Iterator[None]:
    """Makes a run's folder and keeps other processes from training there while the context lasts.

    Raises `ArgumentError` if it cannot be used or does not hold what it should.
    """
    name = shortened(str(folder), MAX_SHOWN)
    with ExitStack() as lock:
        try:
            if resume and not os.path.isfile(folder / STATE):
                raise ArgumentError(f"{name} has no {STATE}: there is no run to resume")
            folder.mkdir(parents=True, exist_ok=True)
            lock.enter_context(held(folder))
            names = {one.name for one in folder.iterdir()}
            if not resume and STATE in names:
                raise ArgumentError(f"{name} holds a run; resume it or choose another folder")
            if not resume and not names <= LEFTOVERS:
                raise ArgumentError(f"{name} is not empty; choose another folder")
            if not os.access(folder, os.W_OK | os.X_OK):
                raise ArgumentError(f"{name} may not be written; choose another folder")
        except BlockingIOError as error:
            raise ArgumentError(f"another process trains in {name}; let it end first") from error
        except OSError as error:
            there = os.path.lexists(folder) and not os.path.isdir(folder)
            reason = error.strerror or one_line(error)
            reason = "it is a file or a link to nothing, not a folder" if there else reason
            raise ArgumentError(f"{name} cannot hold a run ({reason})") from error
        yield
