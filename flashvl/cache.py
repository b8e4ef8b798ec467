"""The key/value cache: what the decoder remembers of the tokens that it has seen."""

from __future__ import annotations

import torch
from torch import Tensor

from .config_parts import DecoderConfig
from .errors import ArgumentError


class KVCache:
    """Keys and values of every layer, allocated once and filled from the left.

    keys, values: (layers, B, K, capacity, head width). `length` tokens are filled; `append`
    returns views of the filled part alone, so nothing is copied and nothing empty is attended.
    """

    def __init__(
        self,
        config: DecoderConfig,
        capacity: int,
        batch: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (config.layers, batch, config.key_value_heads, capacity, config.head_width)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.capacity = capacity
        self.length = 0

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores (B, K, T, head width) after the filled part of a layer; returns all so far.

        The decoder calls `advance` once all layers have stored the same tokens. Raises
        `ArgumentError` if the tokens do not fit.
        """
        end = self.length + keys.shape[2]
        if end > self.capacity:
            raise ArgumentError(f"the cache holds {self.capacity} tokens, {end} were to be stored")
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]  # (B, K, end, ...)

    def advance(self, tokens: int) -> None:
        """Counts `tokens` as seen, after every layer has stored them."""
        self.length += tokens
