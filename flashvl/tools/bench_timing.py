"""How `flashvl bench` takes its times: after a warm-up, turn about, all of them kept."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .bench_device import wait_for

# A run that took longer in seconds is not repeated, and its warm-up is the run.
LONG = 30.0
# Of the ceilings: how many series of runs, how long each at least, and when no more begin.
SERIES, SERIES_SECONDS, MOST_SECONDS = 20, 0.02, 1.5
BAR = 20  # letters of a progress bar


@dataclass(frozen=True)
class Timing:
    """The seconds of each run, in their order."""

    runs: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.runs)

    def per(self, count: int) -> Timing:
        """The seconds of one of `count` equal steps."""
        return Timing(tuple(seconds / count for seconds in self.runs))

    def as_json(self) -> dict[str, Any]:
        return {
            "seconds": self.median,
            "seconds_least": min(self.runs),
            "seconds_most": max(self.runs),
            "runs": len(self.runs),
        }


def take_turns(
    title: str, sides: Mapping[str, Callable[[], Any]], runs: int, device: torch.device
) -> dict[str, Timing]:
    """Runs every side once to warm up, then one side after the other, `runs` times.

    A side that takes `LONG` runs once.
    """
    first = {}
    for number, (name, side) in enumerate(sides.items()):
        show_progress(f"{title}, {name}: warming up", number / (len(sides) * (runs + 1)))
        first[name] = seconds_of(side, device)
    times = {name: [seconds] if seconds > LONG else [] for name, seconds in first.items()}
    for turn in range(runs):
        for number, (name, side) in enumerate(sides.items()):
            if first[name] <= LONG:
                done = (len(sides) * (turn + 1) + number) / (len(sides) * (runs + 1))
                show_progress(f"{title}, {name}: run {turn + 1} of {runs}", done)
                times[name].append(seconds_of(side, device))
    end_progress()
    return {name: Timing(tuple(seconds)) for name, seconds in times.items()}


def compare(
    title: str,
    sides: Mapping[str, Callable[[], Any]],
    runs: int,
    device: torch.device,
    steps: int = 1,
) -> dict[str, Any]:
    """Two sides turn about -> each one's times by its name, and "ratio": the first's / the other's.

    Times are those of one of `steps` equal steps.
    """
    times = take_turns(title, sides, runs, device)
    one, other = (timing.median for timing in times.values())
    each = {name: timing.per(steps).as_json() for name, timing in times.items()}
    return each | {"ratio": one / other}


def best_of(run: Callable[[], Any], device: torch.device) -> float:
    """The seconds of one run, in the fastest of `SERIES`.

    A series is as many runs as fill `SERIES_SECONDS`, so that asking the device weighs little. No
    more series begin after `MOST_SECONDS`.
    """
    first = seconds_of(run, device)
    if first > MOST_SECONDS:
        return first
    repeats = max(1, int(SERIES_SECONDS / seconds_of(run, device)))
    times: list[float] = []
    while len(times) < SERIES and sum(times) * repeats < MOST_SECONDS:
        times.append(seconds_of(lambda: [run() for _ in range(repeats)], device) / repeats)
    return min(times)


def seconds_of(run: Callable[[], Any], device: torch.device) -> float:
    """How long one run takes, until the device has done its work."""
    wait_for(device)
    start = time.perf_counter()
    run()
    wait_for(device)
    return time.perf_counter() - start


def show_progress(text: str, done: float) -> None:
    """A line on standard error with a bar that is full at 1; the next one replaces it."""
    bar = ("#" * round(BAR * min(done, 1.0))).ljust(BAR, ".")
    print(f"\r[{bar}] {text:58.58}", end="", file=sys.stderr, flush=True)


def end_progress() -> None:
    """Takes the line away."""
    print("\r" + " " * (BAR + 61) + "\r", end="", file=sys.stderr, flush=True)
