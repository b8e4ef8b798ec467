"""The key/value cache: what the decoder remembers of the tokens that it has seen."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..config import DecoderConfig
from ..errors import ArgumentError


@runtime_checkable
class Cache(Protocol):
    """What the decoder asks of a cache: where new tokens stand, and to store them.

    `KVCache` grows with its tokens; the compiled path has one of a fixed shape.
    """

    def positions(self, tokens: int) -> Tensor:
        """Of the next T tokens: (B or 1, T)."""

    def mask(self, tokens: int) -> Tensor | None:
        """What they attend to: (B or 1, 1, T, columns), or None where each sees all before it.

        Columns are the tokens that `append` returns.
        """

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores a layer's (B, K, T, head width); returns 2 x (B, K, columns, head width)."""

    def advance(self, tokens: int) -> None:
        """Counts T tokens as seen, after every layer has stored them."""


class KVCache:
    """Keys and values of every layer, allocated ahead and filled from the left.

    keys, values: (layers, B, K, capacity, head width). `length` tokens are filled; `append`
    returns views of the filled part alone, so nothing is copied and nothing empty is attended.

    Rows of different lengths end at the same column: `padding` (B) says how many columns before a
    row's first token are not its own, and nothing attends to them. None: there is no padding.
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
        self.padding: Tensor | None = None

    @classmethod
    def side_by_side(
        cls, config: DecoderConfig, caches: Sequence[KVCache], capacity: int
    ) -> KVCache:
        """A cache whose rows are copies of caches of one row each; shorter ones get padding."""
        first = caches[0].keys
        both = cls(config, capacity, len(caches), first.device, first.dtype)
        both.length = max(cache.length for cache in caches)
        counts = [both.length - cache.length for cache in caches]
        for row, (cache, padding) in enumerate(zip(caches, counts)):
            for ours, theirs in ((both.keys, cache.keys), (both.values, cache.values)):
                # What is masked counts 0 times, but 0 times not a number is not a number.
                ours[:, row, :, :padding] = 0
                ours[:, row, :, padding : both.length] = theirs[:, 0, :, : cache.length]
        both.padding = torch.tensor(counts, device=first.device)  # (B)
        return both

    def copied(self, capacity: int) -> KVCache:
        """A cache of its own with the same tokens and room for `capacity` in all."""
        other = copy(self)
        other.keys = self._grown(self.keys, capacity)
        other.values = self._grown(self.values, capacity)
        return other

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def positions(self, tokens: int) -> Tensor:
        """Of the next T tokens, each row counted from its own first one: (B or 1, T)."""
        device = self.keys.device
        columns = torch.arange(self.length, self.length + tokens, device=device)[None]  # (1, T)
        if self.padding is None:
            return columns
        return columns - self.padding[:, None]  # (B, T)

    def mask(self, tokens: int) -> Tensor | None:
        """True where one of the next T tokens may attend: (B or 1, 1, T, length + T)."""
        if self.padding is None and (self.length == 0 or tokens == 1):
            return None
        columns = torch.arange(self.length + tokens, device=self.keys.device)  # (length + T)
        mask = (columns <= columns[self.length :, None])[None, None]  # (1, 1, T, length + T)
        if self.padding is not None:
            mask = mask & (columns >= self.padding[:, None, None, None])  # (B, 1, T, length + T)
        return mask

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

    def keep(self, rows: Sequence[int]) -> None:
        """Copies some rows, less the padding that none of them needs, and drops the rest."""
        rows, unneeded = list(rows), 0
        if self.padding is not None:
            padding = self.padding[rows]  # (B)
            unneeded = int(padding.min())
            self.padding = padding - unneeded  # (B)
        capacity, filled = self.capacity - unneeded, slice(unneeded, self.length)
        self.length -= unneeded
        # The filled part alone is copied: there may be room for many more tokens.
        self.keys = self._grown(self.keys[:, rows, :, filled], capacity)
        self.values = self._grown(self.values[:, rows, :, filled], capacity)

    def _grown(self, filled: Tensor, capacity: int) -> Tensor:
        grown = filled.new_empty(*filled.shape[:3], capacity, filled.shape[4])
        grown[:, :, :, : self.length] = filled[:, :, :, : self.length]
        return grown  # (layers, B, K, capacity, head width)
