"""The key/value cache: what the decoder remembers of the tokens that it has seen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .config_parts import DecoderConfig
from .errors import ArgumentError


class KVCache:
    """Keys and values of every layer, allocated ahead and filled from the left.

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
        self.length = 0

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

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

    def roll_back(self, length: int) -> None:
        """Forgets all but the first `length` tokens. Raises `ArgumentError` if they are fewer."""
        if not 0 <= length <= self.length:
            raise ArgumentError(f"the cache has {self.length} tokens, {length} were to be kept")
        self.length = length

    def reserve(self, capacity: int) -> None:
        """Makes room for `capacity` tokens in all; if there is less, the filled part is copied."""
        if capacity > self.capacity:
            # Both before either is replaced: if memory runs out, the cache is as it was.
            keys, values = self._grown(self.keys, capacity), self._grown(self.values, capacity)
            self.keys, self.values = keys, values

    def keep(self, rows: Sequence[int], start: int = 0) -> None:
        """Copies some `rows` of the batch without their first `start` tokens, drops the rest."""
        rows = list(rows)
        self.keys, self.values = self.keys[:, rows, :, start:], self.values[:, rows, :, start:]
        self.length -= start

    def _grown(self, filled: Tensor, capacity: int) -> Tensor:
        grown = filled.new_empty(*filled.shape[:3], capacity, filled.shape[4])
        grown[:, :, :, : self.length] = filled[:, :, :, : self.length]
        return grown  # (layers, B, K, capacity, head width)
