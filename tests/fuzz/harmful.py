"""Inputs that break the promises, one each, so that a test sees the suite find them."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from flashvl import FlashVLError
from fuzz.damage import pickled, planted_code
from fuzz.promise import WATCH, Broken, Case


def raises(error: BaseException) -> None:
    raise error


def runs_code() -> None:
    Path("planted.py").write_bytes(planted_code())
    sys.path.insert(0, os.getcwd())
    __import__("planted")


def connects() -> None:
    with socket.socket() as opened:
        opened.connect_ex(("127.0.0.1", 9))


def starts_in_a_fork() -> None:
    if WATCH.fork() == 0:
        subprocess.run(["true"])
        os._exit(0)
    os.wait()


# What is done -> words of the finding, None for a promise that is kept.
HARMS: list[tuple[Callable[[], object], str | None]] = [
    (lambda: None, None),
    (lambda: raises(FlashVLError("it is refused")), None),
    (lambda: raises(FlashVLError("")), "says nothing"),
    (lambda: raises(ValueError("no")), "ValueError was raised"),
    (lambda: raises(KeyboardInterrupt()), "KeyboardInterrupt was raised"),
    (lambda: raises(Broken("a wrong result")), "a wrong result"),
    (lambda: time.sleep(60), "it hung"),
    (lambda: bytearray(2**40), "MemoryError was raised"),
    (lambda: os.kill(os.getpid(), signal.SIGSEGV), "the process ended with the code -11"),
    (lambda: os._exit(0), "the process ended with the code 0"),
    (lambda: subprocess.run(["true"]), "it made flashvl start"),
    (lambda: os.system("true"), "it made flashvl start"),
    (starts_in_a_fork, "it made flashvl start"),
    (connects, "it made flashvl connect"),
    (lambda: pickle.loads(pickled()), "it made flashvl unpickle"),
    (runs_code, "it made flashvl execute"),
    (lambda: Path("new").touch(), "it changed files"),
    (lambda: Path("there").write_text("changed"), "it changed files"),
    (lambda: Path("there").unlink(), "it changed files"),
]


def case(random: Random, place: Path) -> Case:
    """The one of a number; `random` is of that number, which is asked for here once more."""
    Path("there").write_text("there")
    number = NUMBERS[random.random()]
    do, words = HARMS[number]
    return Case(words or "a promise that is kept", do)


NUMBERS = {Random(number).random(): number for number in range(len(HARMS))}
