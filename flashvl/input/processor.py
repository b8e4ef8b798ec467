"""The processor: a picture and messages become a prompt, the network's input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..config import FlashVLConfig, Grid, PromptConfig
from .image import ImageLike, load_image
from .prompt import IGNORED, Message, encode_example, encode_messages
from .tiling import tile_image
from .tokenizer import Tokenizer


class Prompt(NamedTuple):
    """What `FlashVLModel.forward` takes, in its order.

    input_ids (1, T) int64; pixels (S, C, height, width) float32, or None for text alone; grids
    [(rows, columns)] of the picture, or none.
    """

    input_ids: Tensor
    pixels: Tensor | None
    grids: list[Grid]

    def to(self, device: torch.device) -> Prompt:
        pixels = None if self.pixels is None else self.pixels.to(device)
        return Prompt(self.input_ids.to(device), pixels, self.grids)


class TrainingExample(NamedTuple):
    """A conversation to learn from: ids, and the ids that are to be predicted.

    input_ids (B, T) int64; labels (B, T) int64, each at the place of its own id, `IGNORED` where
    nothing is learned; pixels (S, C, height, width) float32, or None; grids [(rows, columns)] of
    the picture of each row, or none. B is 1 unless an answer that begins with a line break is
    followed by others; then shorter rows are padded on the right.
    """

    input_ids: Tensor
    labels: Tensor
    pixels: Tensor | None
    grids: list[Grid]


class Processor:
    """Prepares prompts as the model of a config was trained to read them."""

    def __init__(self, config: FlashVLConfig, tokenizer: Tokenizer) -> None:
        self.config, self.tokenizer = config, tokenizer

    def __call__(self, image: ImageLike | None, messages: Sequence[Message]) -> Prompt:
        """A picture and a conversation -> the prompt, on the CPU.

        Raises `ImageError`, `MessageError`.
        """
        pixels, grids = self.look(image)
        return Prompt(self.encode(messages, 0 if pixels is None else len(pixels)), pixels, grids)

    def example(self, image: ImageLike | None, messages: Sequence[Message]) -> TrainingExample:
        """A picture and a conversation that ends with an answer -> what is learned, on the CPU.

        Raises `ImageError`, `MessageError`.
        """
        pixels, grids = self.look(image)
        rows = self.encode_example(messages, 0 if pixels is None else len(pixels))
        input_ids = pad([ids for ids, _ in rows], 0)  # (B, T)
        labels = pad([its_labels for _, its_labels in rows], IGNORED)  # (B, T)
        if pixels is not None:
            pixels = pixels.repeat(len(rows), 1, 1, 1)  # (S, C, height, width)
        return TrainingExample(input_ids, labels, pixels, grids * len(rows))

    def look(self, image: ImageLike | None) -> tuple[Tensor | None, list[Grid]]:
        """A picture -> pixels (S, C, height, width) and its grid. Raises `ImageError`."""
        if image is None:
            return None, []
        tiler = self.config.tiler
        tiles, grid = tile_image(load_image(image), tiler)  # (S, height, width, C)
        return normalize(tiles, tiler.mean, tiler.std), [grid]

    def encode_example(
        self, messages: Sequence[Message], tiles: int = 0
    ) -> list[tuple[list[int], list[int]]]:
        """A conversation with answers, about a picture of so many tiles -> rows of ids and labels.

        See `encode_example` in prompt.py. Raises `MessageError`.
        """
        return encode_example(messages, *self._encoding(tiles))

    def encode(self, messages: Sequence[Message], tiles: int = 0) -> Tensor:
        """A conversation, about a picture of so many tiles -> input ids (1, T).

        T may be more than the model's context; what is far more is refused with `MessageError`.
        """
        return torch.tensor([encode_messages(messages, *self._encoding(tiles))])  # (1, T)

    def _encoding(self, tiles: int) -> tuple[Tokenizer, PromptConfig, int, int, int]:
        config = self.config
        limits = (config.tokens_per_tile, config.decoder.context)
        return self.tokenizer, config.prompt, tiles, *limits


def normalize(tiles: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Tiles (S, height, width, C) uint8 -> pixels (S, C, height, width) float32.

    Scaled to 0..1, then less the mean and divided by the deviation of each channel. Source: the
    published preprocessor_config.json.
    """
    pixels = torch.tensor(tiles).permute(0, 3, 1, 2).float() / 255  # (S, C, height, width)
    channels = (1, -1, 1, 1)
    return (pixels - torch.tensor(mean).view(channels)) / torch.tensor(std).view(channels)


def pad(rows: Sequence[Sequence[int]], padding: int) -> Tensor:
    """Rows of ids -> (B, T), as long as the longest; shorter ones are padded on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[padding] * (longest - len(row))] for row in rows])  # (B, T)


def text_ids(input_ids: Tensor) -> Tensor:
    """The ids of a prompt (1, T) that are text, not places: (1, text tokens)."""
    return input_ids[input_ids >= 0][None]  # (1, text tokens)
