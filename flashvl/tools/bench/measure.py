"""How `flashvl bench` measures: the clock, the memory and the name of a device.

Times are taken after a warm-up, one side after the other and again, and all of them are kept.
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...chat import HAS_FAST_PATHS
from ...terminal import end_progress, show_progress

# A run that took longer in seconds is not repeated, and its warm-up is the run.
LONG = 30.0
# Of the ceilings: how many series of runs, how long each at least, and when no more begin.
SERIES, SERIES_SECONDS, MAX_SECONDS = 20, 0.02, 1.5


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
            "seconds_min": min(self.runs),
            "seconds_max": max(self.runs),
            "runs": len(self.runs),
        }


def take_turns(
    title: str, sides: Mapping[str, Callable[[], object]], runs: int, device: torch.device
) -> dict[str, Timing]:
    """Runs every side once to warm up, then one side after the other, `runs` times.

    A side that takes longer than `LONG` runs once.
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
    sides: Mapping[str, Callable[[], object]],
    runs: int,
    device: torch.device,
    steps: int = 1,
) -> dict[str, Any]:
    """Two sides by turns -> each one's times by its name, and "ratio": the first's / the other's.

    Times are those of one of `steps` equal steps.
    """
    times = take_turns(title, sides, runs, device)
    one, other = (timing.median for timing in times.values())
    each = {name: timing.per(steps).as_json() for name, timing in times.items()}
    return each | {"ratio": one / other}


def best_of(run: Callable[[], object], device: torch.device) -> float:
    """The seconds of one run, in the fastest of `SERIES`.

    A series is as many runs as fill `SERIES_SECONDS`, so that asking the device weighs little. No
    more series begin after `MAX_SECONDS`.
    """
    first = seconds_of(run, device)
    if first > MAX_SECONDS:
        return first
    repeats = max(1, int(SERIES_SECONDS / seconds_of(run, device)))
    times: list[float] = []
    while len(times) < SERIES and sum(times) * repeats < MAX_SECONDS:
        times.append(seconds_of(lambda: [run() for _ in range(repeats)], device) / repeats)
    return min(times)


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """How long one run takes, until the device has done its work."""
    wait_for(device)
    start = time.perf_counter()
    run()
    wait_for(device)
    return time.perf_counter() - start


def wait_for(device: torch.device) -> None:
    """Returns when the device has done all that it was asked for."""
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)


def describe(device: torch.device) -> dict[str, Any]:
    """The device's exact name and what decides its speed, as JSON can hold it."""
    about: dict[str, Any] = {"device": str(device), "torch": torch.__version__}
    if device.type == "cuda":
        about |= {
            "name": torch.cuda.get_device_name(device),
            "memory": torch.cuda.get_device_properties(device).total_memory,
            "cuda": torch.version.cuda,
        }
    elif device.type == "cpu":
        about |= {
            "name": cpu_name(),
            "threads": torch.get_num_threads(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
        }
    else:
        about["name"] = device.type
    return about | {"bfloat16_arithmetic": multiplies_bfloat16(device)}


def cpu_name() -> str:
    """As the system tells it; Python itself knows it on few systems."""
    try:
        if sys.platform == "darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True).stdout.strip()
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether matrix products of bfloat16 are known to run in the device's own instructions."""
    if device.type != "cpu":
        return True
    if not HAS_FAST_PATHS:
        return False  # the fast paths alone ask the CPU
    from ...fast.cpu import has_bfloat16_arithmetic

    return has_bfloat16_arithmetic()
