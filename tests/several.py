"""Several processes of one run, forked from the test's: torch is not imported again."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from flashvl.training.processes import Processes, processes


def together(count: int, work: Callable[[Processes], Any], folder: Path, seconds: int = 60) -> list:
    """What each of `count` processes returns; one that fails or hangs fails the test."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run(rank: int) -> None:
        settings = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in settings.items()}
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        torch.set_num_threads(1)
        with processes() as here:
            (folder / f"{rank}.result").write_bytes(pickle.dumps(work(here)))

    started = [
        multiprocessing.get_context("fork").Process(target=run, args=(n,)) for n in range(count)
    ]
    for one in started:
        one.start()
    for one in started:
        one.join(seconds)
    hanging = [one for one in started if one.is_alive()]
    for one in hanging:
        one.kill()
    assert not hanging, "some processes hang"
    assert [one.exitcode for one in started] == [0] * count
    return [pickle.loads((folder / f"{rank}.result").read_bytes()) for rank in range(count)]
