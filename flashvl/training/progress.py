"""What a training says of itself: a line on the terminal, and a log of JSON lines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..reading import is_integer, one_line
from ..storage import MEBIBYTE, append, read_bounded, replace
from ..terminal import end_progress, show_progress

LOG_EVERY = 25  # steps
MAX_LOG_BYTES = 64 * MEBIBYTE


class Progress:
    """Logs the loss, the share of right labels and the speed of a stage; shows the time left.

    `first` is the stage's first step in this process. A line is appended to the log whole or not
    at all; without a log nothing is said. `measures` are what a line has beside that. At the end of
    the stage a line is printed.
    """

    def __init__(
        self,
        stage: str,
        first: int,
        steps: int,
        log: Path | None,
        measures: Callable[[], dict[str, float]] = dict,
    ) -> None:
        self.stage, self.first, self.steps, self.log = stage, first, steps, log
        self.measures = measures
        self.start = self.since = time.monotonic()
        self.losses: list[Tensor] = []
        self.shares: list[Tensor] = []
        self.pictures = 0

    def add(self, step: int, loss: Tensor, share: Tensor, pictures: int) -> None:
        """Raises `CheckpointError` if the log cannot be written."""
        if self.log is None:
            return
        self.losses.append(loss.detach())
        self.shares.append(share)
        self.pictures += pictures
        done = step + 1
        if done % LOG_EVERY and done != self.steps:
            return
        now = time.monotonic()
        mean_loss = torch.stack(self.losses).mean().item()
        right = torch.stack(self.shares).mean().item()
        self.note(
            done,
            {
                "loss": round(mean_loss, 4),
                "right": round(right, 4),
                "pictures_per_second": round(self.pictures / (now - self.since), 1),
                "seconds": round(now - self.start, 1),
                **self.measures(),
            },
        )
        text = f"{self.stage}: loss {mean_loss:.3f}, right {right:.1%}"
        if done < self.steps:
            left = (now - self.start) / (done - self.first) * (self.steps - done)
            show_progress(f"{text}, {left / 60:.0f} min left", done / self.steps)
        else:
            end_progress()
            print(f"{text}, {(now - self.start) / 60:.0f} min", flush=True)
        self.losses, self.shares, self.pictures, self.since = [], [], 0, now

    def note(self, done: int, measured: dict[str, float]) -> None:
        """Appends a line to the log. Raises `CheckpointError` if it cannot be written."""
        if self.log is None:
            return
        line = {"stage": self.stage, "step": done, "steps": self.steps, **measured}
        try:
            append(self.log, f"{json.dumps(line)}\n".encode())
        except OSError as error:
            raise _unusable(self.log, error) from error


def cut_log(log: Path, stages: Sequence[str], stage: int, step: int) -> None:
    """Leaves in a log what a state has, `step` steps of stage number `stage` of these.

    After a kill the log is ahead of the state and may end in a torn line; the run that is resumed
    writes these steps again. What is no whole line of a stage goes too. Raises `CheckpointError`
    if the log cannot be read or written.
    """

    def is_done(line: bytes) -> bool:
        try:
            said = json.loads(line)
            its_stage, its_step = stages.index(said["stage"]), said["step"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return False
        is_whole = line.endswith(b"\n") and is_integer(its_step)
        return is_whole and (its_stage, its_step) <= (stage, step)

    passing = log.with_suffix(".writing")
    try:
        passing.unlink(missing_ok=True)
        written = read_bounded(log, MAX_LOG_BYTES)
        kept = b"".join(line for line in written.splitlines(keepends=True) if is_done(line))
        if kept != written:
            replace(log, kept, passing)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unusable(log, error) from error


def _unusable(log: Path, error: OSError) -> CheckpointError:
    reason = error.strerror or one_line(error)
    return CheckpointError(f"the log cannot be written ({reason}); the state is kept: {log}")
