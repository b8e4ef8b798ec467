"""Batches for training: drawn anew for each step from its number, never stored."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from ..config import FlashVLConfig, Grid
from ..input.processor import normalize
from ..input.prompt import IGNORED, encode_example
from ..input.tiling import tile_image
from ..input.tokenizer import Tokenizer
from ..training.loading import loaded
from .recipe import Stage
from .world.packed import packed_tile
from .world.questions import Question, without_picture
from .world.scenes import Scene, scene, training_number

# How often a kind is asked in training, others 1: what is learned soon needs few.
WEIGHTS = {
    "number": 3.0,
    "count": 2.5,
    "presence": 0.7,
    "absent": 0.6,
    "outside": 0.4,
    "self": 0.2,
}
MAX_SEED = 2**20 - 1  # the numbers of scenes and tiles begin with the seed
SPAN = 2**32  # scene numbers of one stage; no stage draws as many


@dataclass
class TileBatch:
    """pixels (S, C, height, width) float32, and labels of each patch as `PackedTile` has them.

    names, colors and places (S, N) int64, outlines (S, N, cells) and boxes (S, N, 4) float32.
    """

    pixels: Tensor
    names: Tensor
    colors: Tensor
    places: Tensor
    outlines: Tensor
    boxes: Tensor

    def to(self, device: torch.device) -> TileBatch:
        labels = (self.names, self.colors, self.places, self.outlines, self.boxes)
        return TileBatch(*(part.to(device) for part in (self.pixels, *labels)))

    @property
    def pictures(self) -> int:
        return len(self.pixels)


@dataclass
class SceneBatch:
    """pixels (S, C, height, width) of all rows, and rows (B, T) int64, each of a picture or none.

    `grids` are those of the pictures. A row is the beginning of the prompt up to the picture's last
    token, and then conversations side by side: each goes on from that beginning and does not see
    the others. A label is the id to be predicted at its own place, or IGNORED; positions are the
    decoder's; owners are 0 for the beginning, 1, 2, ... for the conversations and -1 for padding.
    """

    pixels: Tensor
    grids: list[Grid]
    input_ids: Tensor
    labels: Tensor
    positions: Tensor
    owners: Tensor

    def to(self, device: torch.device) -> SceneBatch:
        rows = (self.input_ids, self.labels, self.positions, self.owners)
        return SceneBatch(self.pixels.to(device), self.grids, *(part.to(device) for part in rows))

    @property
    def pictures(self) -> int:
        return len(self.grids)

    @property
    def is_answer(self) -> Tensor:
        """Which ids are to be predicted: bools (B, T)."""
        return self.labels != IGNORED

    @property
    def before_answer(self) -> Tensor:
        """Where they are predicted, each one place before: bools (B, T)."""
        return F.pad(self.is_answer[:, 1:], (0, 1), value=False)

    @property
    def mask(self) -> Tensor:
        """(B, 1, T, T), true where the token of the row may attend to that of the column."""
        rows, columns = self.owners[:, :, None], self.owners[:, None, :]
        return ((columns == 0) | (rows == columns)).tril()[:, None]  # (B, 1, T, T)


class TileBatches(Dataset[TileBatch]):
    """Item i is the batch of step i: packed tiles and the labels of their patches."""

    def __init__(self, config: FlashVLConfig, stage: Stage, seed: int, first: int) -> None:
        self.config, self.stage, self.seed, self.first = config, stage, seed, first

    def __getitem__(self, step: int) -> TileBatch:
        vision, tiler, stage = self.config.vision, self.config.tiler, self.stage
        margin = tiler.margin // vision.patch_size
        sizes = (tiler.tile_size, vision.patch_size, margin)
        cut = margin - self.config.stitched_margin
        drawn = [
            packed_tile(number, *sizes, stage.things[1], stage.digits, tiler.padding, cut)
            for number in scene_numbers(stage, self.seed, self.first, step)
        ]
        pixels = np.stack([tile.pixels for tile in drawn])  # (S, height, width, C)
        labels = (
            torch.from_numpy(np.stack(part)).flatten(1, 2)  # (S, N) or (S, N, values)
            for part in zip(*((t.names, t.colors, t.places, t.outlines, t.boxes) for t in drawn))
        )
        return TileBatch(normalize(pixels, tiler.mean, tiler.std), *labels)


class SceneBatches(Dataset[SceneBatch]):
    """Item i is the batch of step i: scenes with conversations about each.

    The last row is without a picture.
    """

    def __init__(
        self, config: FlashVLConfig, tokenizer: Tokenizer, stage: Stage, seed: int, first: int
    ) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.stage, self.seed, self.first = stage, seed, first

    def __getitem__(self, step: int) -> SceneBatch:
        stage, tiler = self.stage, self.config.tiler
        drawn = [
            scene(number, stage.sides, stage.things, stage.digits, stage.max_aspect_ratio)
            for number in scene_numbers(stage, self.seed, self.first, step)
        ]
        tiles, grids = zip(*(tile_image(one.picture, tiler) for one in drawn))
        asked = [(converse(one, stage), len(its_tiles)) for one, its_tiles in zip(drawn, tiles)]
        asked.append((converse_without_picture(drawn[0], stage), 0))
        rows = [
            encode_side_by_side(conversations, self.tokenizer, self.config, count)
            for conversations, count in asked
        ]
        pixels = normalize(np.concatenate(tiles), tiler.mean, tiler.std)  # (S, C, height, width)
        return SceneBatch(pixels, list(grids), *pad(rows))


def scene_numbers(stage: Stage, seed: int, first: int, step: int) -> list[int]:
    """The numbers of what a step draws; `first` keeps the stages apart."""
    start = first + step * stage.batch
    return [training_number(seed, number) for number in range(start, start + stage.batch)]


def converse(one: Scene, stage: Stage) -> list[list[Question]]:
    """Conversations of some of a scene's questions.

    Each is of a single round or, half of the time, of up to `stage.rounds`.
    """
    random = np.random.default_rng((one.number, 1))
    weights = np.array([WEIGHTS.get(question.kind, 1.0) for question in one.questions])
    count = min(stage.questions, len(one.questions))
    left = list(random.choice(len(weights), count, replace=False, p=weights / weights.sum()))
    conversations = []
    while left:
        rounds = int(random.integers(1, stage.rounds + 1)) if random.random() < 0.5 else 1
        conversations.append([one.questions[index] for index in left[:rounds]])
        left = left[rounds:]
    return conversations


def converse_without_picture(one: Scene, stage: Stage) -> list[list[Question]]:
    """The same questions where no picture is shown."""
    return [[without_picture(each) for each in rounds] for rounds in converse(one, stage)]


def encode_side_by_side(
    conversations: list[list[Question]], tokenizer: Tokenizer, config: FlashVLConfig, tiles: int
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Conversations about one picture -> ids, labels, positions and owners, each (T)."""
    return side_by_side(
        [encode_conversation(one, tokenizer, config, tiles) for one in conversations]
    )


def side_by_side(
    encoded: Sequence[tuple[list[int], list[int]]],
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Ids and labels of conversations -> those of one row, positions and owners, each (T).

    They share all up to the picture's last place; without a picture they share nothing.
    """
    first, _ = encoded[0]
    shared = max((place for place, token in enumerate(first) if token < 0), default=-1) + 1
    ids, labels = first[:shared], [IGNORED] * shared
    positions, owners = list(range(shared)), [0] * shared
    for number, (its_ids, its_labels) in enumerate(encoded, 1):
        ids += its_ids[shared:]
        labels += its_labels[shared:]
        positions += range(shared, len(its_ids))
        owners += [number] * (len(its_ids) - shared)
    return ids, labels, positions, owners


def encode_conversation(
    questions: list[Question], tokenizer: Tokenizer, config: FlashVLConfig, tiles: int
) -> tuple[list[int], list[int]]:
    """Questions and their answers as one conversation -> ids (T), labels (T).

    The labels are the ids of the answers and of the `<|im_end|>` after each, elsewhere IGNORED.
    """
    messages = [
        {"role": role, "content": text}
        for question in questions
        for role, text in (("user", question.text), ("assistant", question.answer))
    ]
    ((ids, labels),) = encode_example(
        messages, tokenizer, config.prompt, tiles, config.tokens_per_tile
    )
    return ids, labels


def pad(rows: Sequence[tuple[list[int], ...]]) -> list[Tensor]:
    """Rows of `encode_side_by_side` -> input_ids, labels, positions, owners, each (B, T).

    Padded on the right.
    """
    longest = max(len(row[0]) for row in rows)
    return [
        torch.tensor([part + [padding] * (longest - len(part)) for part in parts])
        for parts, padding in zip(zip(*rows), (0, IGNORED, 0, -1))
    ]


def batches(
    stage: Stage,
    stage_number: int,
    config: FlashVLConfig,
    tokenizer: Tokenizer,
    seed: int,
    steps: range,
) -> Generator[TileBatch | SceneBatch, None, None]:
    """The batches of the given steps of a stage, drawn in a second process.

    The same seed gives the same batches, whatever ran before.
    """
    first = stage_number * SPAN
    if stage.data == "tiles":
        yield from loaded(TileBatches(config, stage, seed, first), steps)
    else:
        yield from loaded(SceneBatches(config, tokenizer, stage, seed, first), steps)
