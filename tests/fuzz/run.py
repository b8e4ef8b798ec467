"""Feeds hostile inputs to flashvl in child processes under limits, and says what was broken.

    python tests/fuzz/run.py --count 10000 --seed 7
    python tests/fuzz/run.py --only pictures:7000123

A child takes input after input; one that hangs or dies is replaced, and its input is a finding.
"""

from __future__ import annotations

import argparse
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[:1] = [str(TESTS), str(TESTS.parent)]

from flashvl.terminal import end_progress, show_progress  # noqa: E402
from fuzz.promise import Problem  # noqa: E402
from fuzz.worker import ASK  # noqa: E402

# Kind -> how many of a hundred inputs are of it.
KINDS = {
    "pictures": 30,
    "messages": 25,
    "checkpoints": 20,
    "tokenizer_files": 15,
    "training_states": 5,
    "command_lines": 5,
}
SPAN = 1_000_000  # numbers of one seed
SECONDS = 60.0  # for one input, on a machine that does other work as well
MEMORY = 3 * 2**30  # bytes of one child
START = 120.0  # seconds in which a child must have imported all that a kind needs


@dataclass(frozen=True)
class Finding:
    kind: str
    number: int
    what: str
    problem: Problem

    def __str__(self) -> str:
        lines = [f"{self.kind}:{self.number}  {self.problem.words}: {self.what:.200}"]
        if self.problem.where:
            lines.append(f"    where: {self.problem.where}")
        lines += [f"    {line:.200}" for line in self.problem.detail.splitlines()[:20]]
        lines.append(f"    again: python tests/fuzz/run.py --only {self.kind}:{self.number}")
        return "\n".join(lines)


@dataclass
class Report:
    """What became of all inputs; `refused` and `seconds` are by kind."""

    findings: list[Finding] = field(default_factory=list)
    count: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    refused: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    slowest: dict[str, tuple[float, int, str]] = field(default_factory=dict)

    def add(self, kind: str, number: int, outcome: Outcome) -> None:
        self.count[kind] += 1
        self.refused[kind] += outcome.refused
        self.seconds[kind] += outcome.seconds
        slowest = (outcome.seconds, number, outcome.what)
        self.slowest[kind] = max(self.slowest.get(kind, slowest), slowest)
        if outcome.problem is not None:
            self.findings.append(Finding(kind, number, outcome.what, outcome.problem))

    def __str__(self) -> str:
        """A line for each kind, and one finding of each sort with the numbers of others."""
        lines = []
        for kind, count in sorted(self.count.items()):
            seconds, number, what = self.slowest[kind]
            lines.append(
                f"{kind}: {count} inputs, {self.refused[kind]} refused, {self.seconds[kind]:.0f} s"
                f"; slowest {seconds:.1f} s, {kind}:{number} ({what:.80})"
            )
        sorts: dict[tuple[str, ...], list[Finding]] = defaultdict(list)
        for one in sorted(self.findings, key=lambda one: one.number):
            sorts[one.kind, one.problem.words, one.problem.where].append(one)
        for alike in sorted(sorts.values(), key=len, reverse=True):
            others = ", ".join(str(one.number) for one in alike[1:9])
            lines += ["", str(alike[0])]
            lines += [f"    {len(alike) - 1} alike: {others}"] if others else []
        lines.append(f"{len(self.findings)} of {sum(self.count.values())} inputs broke a promise")
        return "\n".join(lines)


@dataclass(frozen=True)
class Outcome:
    what: str
    refused: bool
    problem: Problem | None
    seconds: float


class Worker:
    """A child process, started when an input needs it and ended by what it cannot bear."""

    def __init__(self, folder: Path, seconds: float, memory: int) -> None:
        self.folder, self.seconds, self.memory = folder, seconds, memory
        self.process: subprocess.Popen[bytes] | None = None
        self.connection: Connection

    def try_one(self, kind: str, number: int) -> Outcome:
        if self.process is None:
            self._start()
        begun = time.monotonic()
        try:
            self.connection.send((kind, number))
            if not self.connection.poll(START):
                return self._ended("the child does not start", begun)
            self.connection.recv()
            begun = time.monotonic()
            if not self.connection.poll(self.seconds):
                self.process.send_signal(ASK)  # it writes where it hangs
                return self._ended("it hung", begun)
            return Outcome(*self.connection.recv())
        except (EOFError, OSError):
            return self._ended("the process ended", begun)

    def close(self) -> None:
        """Ends the child and all that it has started."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.connection.close()
        self.process = None

    def _start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.connection, theirs = Pipe()
        command = [sys.executable, "-m", "fuzz.worker", str(theirs.fileno()), str(self.folder)]
        self.process = subprocess.Popen(
            [*command, str(self.memory)],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=environment(self.folder),
            start_new_session=True,
        )
        theirs.close()

    def _ended(self, words: str, begun: float) -> Outcome:
        """What the log of a child says that hangs or is dead; ends it."""
        assert self.process is not None
        with suppress(subprocess.TimeoutExpired):
            words += f" with the code {self.process.wait(1)}"
        self.close()
        log = self.folder / "log"
        written = log.read_text(errors="replace") if log.exists() else ""
        what, _, rest = written.partition("\n")
        problem = Problem(words, where_in(rest), rest)
        return Outcome(what or "?", False, problem, time.monotonic() - begun)


def where_in(stack: str) -> str:
    """The innermost function of flashvl in what `faulthandler` has written."""
    for line in stack.splitlines():
        if f"{os.sep}flashvl{os.sep}" in line and line.count('"') == 2:
            _, file, rest = line.split('"')
            return f"{Path(file).name}:{rest.rpartition(' in ')[2]}"
    return ""


def environment(folder: Path) -> dict[str, str]:
    """One that knows no network and no settings of the person who runs this."""
    kept = {
        name: one
        for name, one in os.environ.items()
        if not name.upper().startswith(("HF_", "HUGGING", "XDG_", "PYTHON"))
        and not name.upper().endswith("_PROXY")
    }
    return kept | {
        "PYTHONHASHSEED": "0",  # the same number is the same input
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
        "HF_ENDPOINT": "http://127.0.0.1:9",  # where nobody answers
        "HF_HOME": str(folder / "hub"),
        "TMPDIR": str(folder),
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }


def run(
    inputs: Iterable[tuple[str, int]],
    seconds: float = SECONDS,
    memory: int = MEMORY,
    workers: int = 2,
) -> Report:
    """Tries inputs, each a kind and a number, side by side in `workers` children."""
    report, waiting = Report(), queue.SimpleQueue[tuple[str, int]]()
    for one in inputs:
        waiting.put(one)
    whole = waiting.qsize()

    def work(folder: Path) -> None:
        worker = Worker(folder, seconds, memory)
        try:
            while True:
                kind, number = waiting.get_nowait()
                outcome = worker.try_one(kind, number)
                with lock:
                    report.add(kind, number, outcome)
                    done = sum(report.count.values())
                    text = f"{done} of {whole} inputs, {len(report.findings)} findings"
                    show_progress(text, done / whole)
        except queue.Empty:
            pass
        finally:
            worker.close()

    lock = threading.Lock()
    with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as folder:
        threads = [
            threading.Thread(target=work, args=[Path(folder, str(number))])
            for number in range(workers)
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except KeyboardInterrupt:
            while not waiting.empty():
                with suppress(queue.Empty):
                    waiting.get_nowait()
            for thread in threads:
                thread.join()
        end_progress()
    return report


def shared_out(count: int, seed: int, kinds: Iterable[str] = KINDS) -> list[tuple[str, int]]:
    """`count` inputs of a seed, of the kinds in their shares."""
    chosen = {kind: KINDS[kind] for kind in kinds}
    whole = sum(chosen.values())
    return [
        (kind, seed * SPAN + number)
        for kind, share in chosen.items()
        for number in range(max(1, count * share // whole))
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="inputs of all kinds together")
    parser.add_argument("--seed", type=int, default=0, help="another one gives other inputs")
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="default: all")
    parser.add_argument("--only", metavar="KIND:NUMBER", help="one input, as a finding names it")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for one input")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    if options.only is None:
        inputs = shared_out(options.count, options.seed, options.kind or KINDS)
    else:
        kind, _, number = options.only.partition(":")
        inputs = [(kind, int(number))]
    report = run(inputs, options.seconds, workers=options.workers)
    print(report)
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
