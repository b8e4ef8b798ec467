"""What a training run says of itself: a line on the terminal, and a log of JSON lines."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from torch import Tensor

from .recipe import Stage

LOG_EVERY = 25  # steps


class Progress:
    """Prints and logs the loss, the share of right labels, the rate and the time left."""

    def __init__(self, stage: Stage, number: int, stages: int, first: int, log: Path) -> None:
        self.stage, self.log, self.first = stage, log, first
        self.title = f"stage {number + 1} of {stages}, {stage.name}"
        self.start = self.since = time.monotonic()
        self.losses: list[Tensor] = []
        self.shares: list[Tensor] = []
        self.pictures = 0

    def add(self, step: int, loss: Tensor, share: Tensor, pictures: int) -> None:
        self.losses.append(loss.detach())
        self.shares.append(share)
        self.pictures += pictures
        done = step + 1
        if done % LOG_EVERY and done != self.stage.steps:
            return
        now = time.monotonic()
        line = {
            "stage": self.stage.name,
            "step": done,
            "steps": self.stage.steps,
            "loss": round(torch.stack(self.losses).mean().item(), 4),
            "right": round(torch.stack(self.shares).mean().item(), 4),
            "pictures_per_second": round(self.pictures / (now - self.since), 1),
            "seconds": round(now - self.start, 1),
        }
        left = (now - self.start) / (done - self.first) * (self.stage.steps - done)
        print(
            f"\r{self.title}: step {done} of {self.stage.steps}, loss {line['loss']:.3f}, "
            f"right {line['right']:.1%}, {line['pictures_per_second']:.0f} pictures/s, "
            f"{left / 60:.0f} min left in this stage ",
            end="\n" if done == self.stage.steps else "",
            flush=True,
        )
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.losses, self.shares, self.pictures, self.since = [], [], 0, now
