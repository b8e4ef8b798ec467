"""Folders that another process holds, and a disk that is full."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flashvl.storage import held

HOLD = """
import os, sys, time
from pathlib import Path
from flashvl.storage import held
with held(Path(sys.argv[1])):
    forked = os.fork() if "fork" in sys.argv else 1
    if forked:
        print(forked, flush=True)
    time.sleep(60)
"""


@contextmanager
def holding(folder: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another process that holds the folder -> the process and the number it printed.

    With "fork" it has forked a third one, whose number that is.
    """
    command = [sys.executable, "-c", HOLD, str(folder), *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def is_held(folder: Path) -> bool:
    try:
        with held(folder):
            return False
    except BlockingIOError:
        return True


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system writes no file of this process beyond this size, as on a disk that is full."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
