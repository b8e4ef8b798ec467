"""Batches for training: drawn anew for each step from its number, never stored."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..config import FlashVLConfig
from ..image import normalise
from ..prompt import END, encode_messages
from ..tiling import tile_image
from ..tokenizer import Tokenizer
from .questions import Question
from .recipe import Stage
from .scenes import packed_tile, scene, training_number

IGNORED = -100  # torch's cross-entropy passes over this label
MOST_ROUNDS = 4
SPAN = 2**32  # scene numbers of one stage; no stage draws as many


@dataclass
class TileBatch:
    """pixels (S, C, height, width) float32, and labels of each patch as `packed_tile` gives them.

    shapes and colours (S, N) int64, outlines (S, N, cells) float32.
    """

    pixels: Tensor
    shapes: Tensor
    colours: Tensor
    outlines: Tensor

    def to(self, device: torch.device) -> TileBatch:
        parts = (self.pixels, self.shapes, self.colours, self.outlines)
        return TileBatch(*(part.to(device) for part in parts))

    @property
    def pictures(self) -> int:
        return len(self.pixels)


@dataclass
class SceneBatch:
    """pixels (S, C, height, width) of all rows; input_ids and labels (B, T) int64.

    A label is the id to be predicted at its own place, or IGNORED.
    """

    pixels: Tensor
    input_ids: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> SceneBatch:
        parts = (self.pixels, self.input_ids, self.labels)
        return SceneBatch(*(part.to(device) for part in parts))

    @property
    def pictures(self) -> int:
        return len(self.input_ids)


class TileBatches(Dataset):
    """Item i is the batch of step i: packed tiles and the labels of their patches."""

    def __init__(self, config: FlashVLConfig, stage: Stage, seed: int, first: int) -> None:
        self.config, self.stage, self.seed, self.first = config, stage, seed, first

    def __getitem__(self, step: int) -> TileBatch:
        vision, tiler = self.config.vision, self.config.tiler
        drawn = [
            packed_tile(number, vision.image_size, vision.patch_size, self.stage.most_objects)
            for number in scene_numbers(self.stage, self.seed, self.first, step)
        ]
        tiles, shapes, colours, outlines = (np.stack(part) for part in zip(*drawn))
        return TileBatch(
            normalise(tiles, tiler.mean, tiler.std),  # (S, C, height, width)
            torch.from_numpy(shapes).flatten(1),  # (S, N)
            torch.from_numpy(colours).flatten(1),  # (S, N)
            torch.from_numpy(outlines).flatten(1, 2),  # (S, N, cells)
        )


class SceneBatches(Dataset):
    """Item i is the batch of step i: scenes, each with a conversation about it."""

    def __init__(
        self, config: FlashVLConfig, tokenizer: Tokenizer, stage: Stage, seed: int, first: int
    ) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.stage, self.seed, self.first = stage, seed, first

    def __getitem__(self, step: int) -> SceneBatch:
        stage = self.stage
        drawn = [
            scene(number, stage.sides, stage.most_objects, stage.most_elongated)
            for number in scene_numbers(stage, self.seed, self.first, step)
        ]
        tiles = [tile_image(one.picture, self.config.tiler)[0] for one in drawn]
        conversations = [
            encode_conversation(
                _some(one.questions, one.number), self.tokenizer, self.config, len(t)
            )
            for one, t in zip(drawn, tiles)
        ]
        tiler = self.config.tiler
        pixels = normalise(np.concatenate(tiles), tiler.mean, tiler.std)  # (S, C, height, width)
        return SceneBatch(pixels, *pad(conversations))


def scene_numbers(stage: Stage, seed: int, first: int, step: int) -> list[int]:
    """The numbers of what a step draws; `first` keeps the stages apart."""
    start = first + step * stage.batch
    return [training_number(seed, number) for number in range(start, start + stage.batch)]


def _some(questions: tuple[Question, ...], number: int) -> list[Question]:
    """One to MOST_ROUNDS of a scene's questions, in a random order."""
    random = np.random.default_rng((number, 1))
    order = random.permutation(len(questions))[: random.integers(1, MOST_ROUNDS + 1)]
    return [questions[index] for index in order]


def encode_conversation(
    questions: list[Question], tokenizer: Tokenizer, config: FlashVLConfig, tiles: int
) -> tuple[list[int], list[int]]:
    """Questions and their answers as one conversation -> ids (T), labels (T).

    The labels are the ids of the answers and of the `<|im_end|>` after each, elsewhere IGNORED.
    """
    ids: list[int] = []
    labels: list[int] = []
    messages = []
    for question in questions:
        messages.append({"role": "user", "content": question.text})
        prompt = encode_messages(messages, tokenizer, config.prompt, tiles, config.tokens_per_tile)
        answer = [*tokenizer.encode(question.answer), tokenizer.control_id(END)]
        labels += [IGNORED] * (len(prompt) - len(ids)) + answer
        ids = prompt + answer
        messages.append({"role": "assistant", "content": question.answer})
    return ids, labels


def pad(conversations: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """Conversations of any lengths -> input_ids (B, T), labels (B, T), padded on the right."""
    longest = max(len(ids) for ids, _ in conversations)
    input_ids = torch.zeros(len(conversations), longest, dtype=torch.int64)
    labels = torch.full((len(conversations), longest), IGNORED)
    for row, (its_ids, its_labels) in enumerate(conversations):
        input_ids[row, : len(its_ids)] = torch.tensor(its_ids)
        labels[row, : len(its_labels)] = torch.tensor(its_labels)
    return input_ids, labels


def batches(
    stage: Stage,
    stage_number: int,
    config: FlashVLConfig,
    tokenizer: Tokenizer,
    seed: int,
    steps: range,
) -> Iterator[TileBatch | SceneBatch]:
    """The batches of the given steps of a stage, drawn in a second process.

    The same seed gives the same batches, whatever ran before.
    """
    first = stage_number * SPAN
    if stage.data == "tiles":
        data = TileBatches(config, stage, seed, first)
    else:
        data = SceneBatches(config, tokenizer, stage, seed, first)
    loader = DataLoader(
        data,
        sampler=steps,
        batch_size=None,
        num_workers=1,
        prefetch_factor=4,
        worker_init_fn=_leave_interrupts_to_the_trainer,
    )
    return iter(loader)


def _leave_interrupts_to_the_trainer(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
