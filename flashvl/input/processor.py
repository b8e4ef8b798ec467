"""The processor: a picture and messages become a prompt, the network's input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..config import FlashVLConfig, Grid
from .image import ImageLike, load_image
from .prompt import Message, encode_messages
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


class Processor:
    """Prepares prompts as the model of a config was trained to read them."""

    def __init__(self, config: FlashVLConfig, tokenizer: Tokenizer) -> None:
        self.config, self.tokenizer = config, tokenizer

    def __call__(self, image: ImageLike | None, messages: Sequence[Message]) -> Prompt:
        """A picture and a conversation -> the prompt, on the CPU.

        Raises `ImageError`, `MessageError`.
        """
        if image is None:
            return Prompt(self.encode(messages), None, [])
        tiler = self.config.tiler
        tiles, grid = tile_image(load_image(image), tiler)  # (S, height, width, C)
        pixels = normalize(tiles, tiler.mean, tiler.std)  # (S, C, height, width)
        return Prompt(self.encode(messages, len(tiles)), pixels, [grid])

    def encode(self, messages: Sequence[Message], tiles: int = 0) -> Tensor:
        """A conversation, about a picture of so many tiles -> input ids (1, T).

        T may be more than the model's context; what is far more is refused with `MessageError`.
        """
        ids = encode_messages(
            messages,
            self.tokenizer,
            self.config.prompt,
            tiles,
            self.config.tokens_per_tile,
            self.config.decoder.context,
        )
        return torch.tensor([ids])  # (1, T)


def normalize(tiles: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Tiles (S, height, width, C) uint8 -> pixels (S, C, height, width) float32.

    Scaled to 0..1, then less the mean and divided by the deviation of each channel. Source: the
    published preprocessor_config.json.
    """
    pixels = torch.tensor(tiles).permute(0, 3, 1, 2).float() / 255  # (S, C, height, width)
    channels = (1, -1, 1, 1)
    return (pixels - torch.tensor(mean).view(channels)) / torch.tensor(std).view(channels)


def text_ids(input_ids: Tensor) -> Tensor:
    """The ids of a prompt (1, T) that are text, not places: (1, text tokens)."""
    return input_ids[input_ids >= 0][None]  # (1, text tokens)
