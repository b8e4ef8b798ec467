"""What a training says of itself: a line on the terminal, and a log of JSON lines."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from torch import Tensor

from ..terminal import end_progress, show_progress

LOG_EVERY = 25  # steps


class Progress:
    """Logs the loss, the share of right labels and the speed of a stage; shows the time left.

    `first` is the stage's first step in this process. At the end of the stage a line is printed.
    """

    def __init__(self, stage: str, first: int, steps: int, log: Path) -> None:
        self.stage, self.first, self.steps, self.log = stage, first, steps, log
        self.start = self.since = time.monotonic()
        self.losses: list[Tensor] = []
        self.shares: list[Tensor] = []
        self.pictures = 0

    def add(self, step: int, loss: Tensor, share: Tensor, pictures: int) -> None:
        self.losses.append(loss.detach())
        self.shares.append(share)
        self.pictures += pictures
        done = step + 1
        if done % LOG_EVERY and done != self.steps:
            return
        now = time.monotonic()
        mean_loss = torch.stack(self.losses).mean().item()
        right = torch.stack(self.shares).mean().item()
        line = {
            "stage": self.stage,
            "step": done,
            "steps": self.steps,
            "loss": round(mean_loss, 4),
            "right": round(right, 4),
            "pictures_per_second": round(self.pictures / (now - self.since), 1),
            "seconds": round(now - self.start, 1),
        }
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        text = f"{self.stage}: loss {mean_loss:.3f}, right {right:.1%}"
        if done < self.steps:
            left = (now - self.start) / (done - self.first) * (self.steps - done)
            show_progress(f"{text}, {left / 60:.0f} min left", done / self.steps)
        else:
            end_progress()
            print(f"{text}, {(now - self.start) / 60:.0f} min", flush=True)
        self.losses, self.shares, self.pictures, self.since = [], [], 0, now
