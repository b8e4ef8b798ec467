"""Batches of samples: rows with little padding, and the same steps on any number of devices.

Of what a batch holds, shorter conversations stand side by side in rows no longer than the longest.
They do not see each other, so that the loss is what it would be in rows of their own.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad as pad_ends
from torch.utils.data import Dataset

from ..config import Grid
from ..errors import DataError, FlashVLError
from ..input.processor import Processor, pad
from ..input.prompt import IGNORED, picture_ids
from ..training.processes import Processes
from .data import Checked


@dataclass(frozen=True)
class Batch:
    """input_ids, labels (B, T) int64, and the pictures of their places.

    pixels (S, C, height, width) float32, or None. A label stands at the place of its own id. Where
    rows hold several texts, positions (B, T) are those in each text, and `ends` (B, T) the place
    in the row where it ends: it is seen up to there.
    """

    input_ids: Tensor
    labels: Tensor
    pixels: Tensor | None
    grids: list[Grid]
    positions: Tensor | None
    ends: Tensor | None
    tokens: int  # without padding

    def to(self, device: torch.device) -> Batch:
        moved: dict[str, Any] = {
            name: part.to(device) for name, part in vars(self).items() if isinstance(part, Tensor)
        }
        return replace(self, **moved)

    @property
    def is_answer(self) -> Tensor:
        """Which ids are to be predicted: bools (B, T)."""
        return self.labels != IGNORED

    @property
    def before_answer(self) -> Tensor:
        """Where they are predicted, each one place before: bools (B, T)."""
        return pad_ends(self.is_answer[:, 1:], (0, 1), value=False)

    @property
    def mask(self) -> Tensor | None:
        """(B, 1, T, T), true where the token of the row may attend to that of the column."""
        if self.ends is None:
            return None
        places = torch.arange(self.ends.shape[1], device=self.ends.device)  # (T)
        in_time = places[:, None] < self.ends[:, None, :]  # (B, T, T)
        return in_time.tril()[:, None]  # (B, 1, T, T)


@dataclass(frozen=True)
class Text:
    """One row of a sample: ids and labels (T); pixels (S, C, height, width) and grid, or none."""

    ids: list[int]
    labels: list[int]
    pixels: Tensor | None = None
    grids: Sequence[Grid] = ()


def read_texts(checked: Checked, processor: Processor) -> list[Text]:
    """A sample's rows. Raises `DataError` if its picture has changed since it was checked."""
    sample = checked.sample
    try:
        pixels, grids = processor.look(sample.image)
        rows = processor.encode_example(sample.messages, 0 if pixels is None else len(pixels))
    except FlashVLError as error:
        raise DataError(f"{sample.place}: {error}") from error
    return [Text(ids, labels, pixels, grids) for ids, labels in rows]


def blank_text(processor: Processor) -> Text:
    """A gray tile that nobody asks about, so that the tower runs where no picture is."""
    config = processor.config
    ids = picture_ids(1, config.tokens_per_tile, processor.tokenizer, "none")
    side = config.tiler.seen_size
    pixels = torch.zeros(1, config.vision.channels, side, side)  # (S, C, height, width)
    return Text(ids, [IGNORED] * len(ids), pixels, [(1, 1)])


def lay(texts: Sequence[Text]) -> Batch:
    """Texts -> a batch, of as few rows as they fit into."""
    rows = [[texts[number] for number in row] for row in pack([len(text.ids) for text in texts])]
    ids, labels, positions, ends = [], [], [], []
    for row in rows:
        lengths = [len(text.ids) for text in row]
        ids.append([token for text in row for token in text.ids])
        labels.append([label for text in row for label in text.labels])
        positions.append([place for length in lengths for place in range(length)])
        stops = [sum(lengths[: number + 1]) for number in range(len(row))]
        ends.append([stop for stop, length in zip(stops, lengths) for _ in range(length)])
    side_by_side = any(len(row) > 1 for row in rows)
    in_order = [text for row in rows for text in row]
    pixels = [text.pixels for text in in_order if text.pixels is not None]
    input_ids = pad(ids, 0)  # (B, T)
    return Batch(
        input_ids,
        pad(labels, IGNORED),
        torch.cat(pixels) if pixels else None,
        [grid for text in in_order for grid in text.grids],
        pad(positions, 0) if side_by_side else None,
        # What never ends sees itself: attention must have something to look at.
        pad(ends, input_ids.shape[1]) if side_by_side else None,
        sum(map(len, ids)),
    )


def pack(lengths: Sequence[int]) -> list[list[int]]:
    """Numbers of texts, by rows that are no longer than the longest text: first fit, decreasing."""
    rows: list[list[int]] = []
    room: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        row = next((row for row, left in enumerate(room) if left >= lengths[number]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(max(lengths))
        rows[row].append(number)
        room[row] -= lengths[number]
    return rows


@dataclass(frozen=True)
class Step:
    """What one process learns from in a step, part by part."""

    parts: list[Batch]

    @property
    def pictures(self) -> int:
        return sum(len(part.grids) for part in self.parts)

    @property
    def answers(self) -> int:
        """Ids that are to be predicted."""
        return sum(int(part.is_answer.sum()) for part in self.parts)

    @property
    def tokens(self) -> int:
        return sum(part.tokens for part in self.parts)

    @property
    def places(self) -> int:
        """Tokens and padding."""
        return sum(part.labels.numel() for part in self.parts)


class Batches(Dataset[Step]):
    """Item i is what one process learns from in step i, in parts of at most `batch` samples.

    A step takes the next `together` of the samples, in an order that is drawn anew for each epoch,
    whatever the number of processes. `limit` is after how many samples all is done. Each process
    gets as many parts; with `blank`, a part without a picture has a tile that nobody asks about.
    """

    def __init__(
        self,
        samples: Sequence[Checked],
        processor: Processor,
        together: int,
        batch: int,
        processes: Processes,
        blank: bool,
        seed: int | None = None,
        limit: int | None = None,
    ) -> None:
        self.samples, self.processor, self.seed, self.limit = samples, processor, seed, limit
        self.together, self.batch, self.blank = together, batch, blank
        self.processes = processes

    def __getitem__(self, step: int) -> Step:
        numbers = self.numbers(step)
        # Of like lengths in each part, and of like work for each process.
        numbers.sort(key=lambda number: -sum(self.samples[number].lengths))
        mine = numbers[self.processes.rank :: self.processes.count]
        parts = math.ceil(math.ceil(len(numbers) / self.processes.count) / self.batch)
        starts = range(0, parts * self.batch, self.batch)
        return Step([self.part(mine[start : start + self.batch]) for start in starts])

    def part(self, numbers: Sequence[int]) -> Batch:
        texts = [
            text for number in numbers for text in read_texts(self.samples[number], self.processor)
        ]
        if not texts or (self.blank and all(text.pixels is None for text in texts)):
            texts.append(blank_text(self.processor))
        return lay(texts)

    def numbers(self, step: int) -> list[int]:
        """The samples of a step; without a seed in the order of their file."""
        count = len(self.samples)
        places = range(step * self.together, (step + 1) * self.together)
        if self.limit is not None:
            places = range(places.start, min(places.stop, self.limit))
        return [order(count, self.seed, place // count)[place % count] for place in places]


@lru_cache(maxsize=2)
def order(count: int, seed: int | None, epoch: int) -> list[int]:
    """In what order an epoch takes its samples."""
    numbers = list(range(count))
    if seed is not None:
        random.Random(f"{seed} {epoch}").shuffle(numbers)
    return numbers
