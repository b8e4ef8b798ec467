"""Runs what may hang, take all memory or end the process: in a child, under limits."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GIBIBYTE = 2**30

# Takes a pickled (task, variables, bytes of memory), and leaves a pickled report in a file.
CHILD = """
import pickle, resource, sys
task, variables, memory = pickle.load(sys.stdin.buffer)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
if memory:
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
report = {}
try:
    if isinstance(task, str):
        exec(task, variables)
        report["result"] = variables.get("result")
    else:
        report["result"] = task(**variables)
except BaseException as error:
    report["raised"] = tuple(one.__name__ for one in type(error).__mro__)
    report["text"] = str(error)
report["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if sys.platform == "linux":  # where that counts the parent's memory as well, and in KiB
    lines = open("/proc/self/status").read().splitlines()
    report["peak"] = 1024 * next(int(line.split()[1]) for line in lines if "VmHWM" in line)
with open(sys.argv[1], "wb") as file:
    pickle.dump(report, file)
"""


@dataclass(frozen=True)
class Outcome:
    """What became of a child.

    `kind` is "returned", "raised", "hung" (it took longer than it may) or "died" (by a signal, or
    ended from within).
    """

    kind: str
    result: Any = None  # what the function returned, or what the text called `result`
    raised: tuple[str, ...] = ()  # names of the error's class and of its bases
    text: str = ""  # of the error; of a dead child its exit status
    peak: int = 0  # bytes of memory that were resident at most
    printed: str = ""  # on both standard streams
    seconds: float = 0.0


def limited(
    task: str | Callable[..., Any],
    *,
    seconds: float = 20,
    memory: int | None = None,
    environment: Mapping[str, str] | None = None,
    **variables: Any,
) -> Outcome:
    """Runs a text of Python with `variables`, or a module's function with them as arguments.

    `memory` bounds the child's address space, in bytes, of which torch alone takes some 4 GiB.
    The child and all that it started are ended after `seconds`.

    >>> limited("result = image + 'x'", image="a").result
    'ax'
    """
    given = pickle.dumps((task, variables, memory))
    path = os.pathsep.join(place for place in sys.path if place)
    with tempfile.TemporaryDirectory() as folder:
        report, printed = Path(folder, "report"), Path(folder, "printed")
        begun = time.monotonic()
        with printed.open("wb") as stream:
            child = subprocess.Popen(
                [sys.executable, "-c", CHILD, str(report)],
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=stream,
                env={**os.environ, "PYTHONPATH": path, **(environment or {})},
                start_new_session=True,
            )
            hung = False
            try:
                child.communicate(given, timeout=seconds)
            except subprocess.TimeoutExpired:
                hung = True
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        known = {
            "printed": printed.read_text(encoding="utf-8", errors="replace"),
            "seconds": time.monotonic() - begun,
        }
        if hung:
            return Outcome("hung", **known)
        if not report.exists():
            return Outcome("died", text=f"exit status {child.returncode}", **known)
        known |= pickle.loads(report.read_bytes())
    return Outcome("raised" if "raised" in known else "returned", **known)
