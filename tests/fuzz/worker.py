"""The child process: takes inputs by kind and number, and says of each what became of it.

Started by `run.py` with the number of an open connection, a folder of its own and the bytes of
memory that it may take; see `Worker` there. A hang or a crash is the end of this process: `run.py`
sees it, and the log in the folder shows where it was.
"""

from __future__ import annotations

import faulthandler
import os
import random
import shutil
import signal
import sys
import time
import traceback
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path

from fuzz.promise import WATCH, Case, Problem, judge

# At this signal the process writes into its log where it is; Windows has none.
ASK = getattr(signal, "SIGUSR1", None)


def main(connection: Connection, folder: Path, memory: int) -> None:
    place = folder / "place"
    log = open(folder / "log", "w+b", buffering=0)  # noqa: SIM115, it stays open
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    faulthandler.enable(log)
    faulthandler.register(ASK, log, all_threads=False)
    limit_memory(memory)
    WATCH.install()
    while True:
        kind, number = connection.recv()
        module = import_module(f"fuzz.{kind}")
        connection.send("ready")
        os.ftruncate(log.fileno(), 0)
        log.seek(0)
        make_place(place)
        begun = time.monotonic()
        what, refused, problem = try_one(module.case, number, place)
        connection.send((what, refused, problem, time.monotonic() - begun))


def try_one(draw, number: int, place: Path) -> tuple[str, bool, Problem | None]:
    """The input of a number, made and given to flashvl -> what it is, whether it was refused."""
    try:
        case: Case = draw(random.Random(number), place)
    except Exception as error:
        lines = "".join(traceback.format_exception(error))
        return "?", False, Problem("the input could not be made", "", lines)
    print(case.what.encode("ascii", "backslashreplace").decode(), flush=True)  # for a dead process
    return case.what, *judge(case, place)


def make_place(place: Path) -> None:
    """A fresh folder with a home, and a folder that this process stands in."""
    os.chdir(place.parent)
    shutil.rmtree(place, ignore_errors=True)
    for folder in (place / "home", place / "here"):
        folder.mkdir(parents=True)
    os.chdir(place / "here")
    os.environ |= {"HOME": str(place / "home"), "XDG_CACHE_HOME": str(place / "cache")}


def limit_memory(memory: int) -> None:
    try:
        import resource
    except ImportError:
        return  # Windows has no such limits
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))  # of the system alone: Linux


if __name__ == "__main__":
    descriptor, given, of_memory = sys.argv[1:]
    main(Connection(int(descriptor)), Path(given), int(of_memory))
