"""The fast path of a CUDA device: tower, prefill and decode through `torch.compile`.

The modules are those of the eager path. Decode is compiled for a cache of one shape, so that it can
be replayed as a CUDA graph: it writes at a position that is a tensor, and attends to all of the
cache under a mask.
"""

from __future__ import annotations

import os
import shutil
import sys
from threading import Lock

import torch
from torch import Tensor

from ..checkpoint.hub import own_cache
from ..errors import ArgumentError
from ..generation.generate import LAST, BeginDecode, DecodeStep
from ..model.cache import KVCache
from ..model.network import FlashVLModel
from .quantized import is_packed

MIN_CAPACITY = 1024
COMPILERS = {"darwin": "clang++", "win32": "cl"}  # others g++
# Shapes of the cache that decode may be compiled for. torch's own limit of 8, which only dynamo's
# config can raise in all versions, would end an answer with an error.
MAX_SHAPES = 64


def compile_model(model: FlashVLModel) -> BeginDecode:
    """Compiles tower and decoder in place, each at its first use -> how to decode.

    What was compiled is kept on disk, in $TORCHINDUCTOR_CACHE_DIR or the user's cache folder.
    Raises `ArgumentError` for quantized weights packed for a CPU, of which no graph can be made,
    and where there is no compiler.
    """
    if is_packed(model):
        raise ArgumentError("quantized weights on a CPU cannot be compiled; use one of the two")
    compiler = os.environ.get("CXX") or COMPILERS.get(sys.platform, "g++")
    if shutil.which(compiler.split()[0]) is None:
        raise ArgumentError(f"torch.compile needs a C++ compiler, found no {compiler}; install one")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(own_cache() / "compiled"))
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, MAX_SHAPES)
    model.vision.compile(fullgraph=True)  # from the second number of tiles on for any
    model.decoder.compile(fullgraph=True, dynamic=True)  # for prompts of any length
    return CompiledDecode()


class CompiledDecode:
    """Decode compiled once for each shape of the cache; called, it begins a row's or a batch's.

    Rows and capacity are powers of two, so that all answers share a few shapes. They take turns at
    the caches step by step, be they of one thread or of several.
    """

    def __init__(self) -> None:
        self._decode = torch.compile(
            decode_static, fullgraph=True, dynamic=False, mode="reduce-overhead"
        )
        self._caches: dict[tuple, StaticCache] = {}  # by rows, capacity, dtype and device
        self._answer: object = None  # whose tokens lie in the static caches
        self._lock = Lock()

    def __call__(self, model: FlashVLModel, cache: KVCache) -> DecodeStep:
        with self._lock:
            static = self._cache_for(cache, model.config.decoder.context)
        answer, rows = object(), cache.keys.shape[1]

        def step(tokens: Tensor) -> Tensor:
            with self._lock:
                if self._answer is not answer:
                    static.load(cache)
                    self._answer = answer
                static.tokens[:rows] = tokens
                torch.compiler.cudagraph_mark_step_begin()
                logits = self._decode(model, static.tokens, static)  # (rows of the cache, V)
                static.store(cache)
                return logits[:rows].clone()  # (B, V); a CUDA graph's next run writes over its own

        return step

    def _cache_for(self, cache: KVCache, context: int) -> StaticCache:
        rows = power_of_two(cache.keys.shape[1])
        capacity = max(MIN_CAPACITY, power_of_two(cache.capacity))
        if cache.capacity <= context:  # more is needed where a long prompt pads a long answer
            capacity = min(capacity, context)
        key = (rows, capacity, cache.keys.dtype, cache.keys.device)
        if key not in self._caches:
            self._caches[key] = StaticCache(cache, rows, capacity)
        return self._caches[key]


class StaticCache:
    """A cache of one shape and one place in memory, which a compiled decode writes and reads.

    keys, values: (layers, rows, K, capacity, head width), zero where nothing is stored yet.
    `position` (1) is the column of the next token, `padding` (rows) the columns before a row's
    own first one, `tokens` (rows, 1) the ids that are read next. A `model.cache.Cache`.
    """

    def __init__(self, cache: KVCache, rows: int, capacity: int) -> None:
        layers, _, heads, _, width = cache.keys.shape
        shape, device = (layers, rows, heads, capacity, width), cache.keys.device
        self.keys, self.values = cache.keys.new_zeros(shape), cache.values.new_zeros(shape)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.padding = torch.zeros(rows, dtype=torch.long, device=device)
        self.tokens = torch.zeros(rows, 1, dtype=torch.long, device=device)
        for tensor in (self.keys, self.values, self.position, self.padding, self.tokens):
            # dynamo has no public way to say it. Without it a CUDA graph would copy the whole cache
            # for each token.
            torch._dynamo.mark_static_address(tensor)

    def positions(self, tokens: int) -> Tensor:
        """Of the next token of each row: (rows, 1)."""
        return self.position - self.padding[:, None]  # (rows, 1)

    def mask(self, tokens: int) -> Tensor:
        """All columns up to the position, but a row's padding: (rows, 1, 1, capacity)."""
        columns = torch.arange(self.keys.shape[3], device=self.keys.device)  # (capacity)
        mask = (columns <= self.position) & (columns >= self.padding[:, None])  # (rows, capacity)
        return mask[:, None, None]  # (rows, 1, 1, capacity)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores (rows, K, 1, head width) at the position; returns all, the empty part too."""
        self.keys[layer].index_copy_(2, self.position, keys)
        self.values[layer].index_copy_(2, self.position, values)
        return self.keys[layer], self.values[layer]  # 2 x (rows, K, capacity, head width)

    def advance(self, tokens: int) -> None:
        self.position += tokens

    def load(self, cache: KVCache) -> None:
        """Copies what a `KVCache` holds."""
        rows, filled = slice(cache.keys.shape[1]), slice(cache.length)
        # What an answer before left behind is masked, but 0 times not a number is not a number.
        self.keys.zero_()
        self.values.zero_()
        self.keys[:, rows, :, filled] = cache.keys[:, :, :, filled]
        self.values[:, rows, :, filled] = cache.values[:, :, :, filled]
        self.position.fill_(cache.length)
        self.padding.zero_()
        if cache.padding is not None:
            self.padding[rows] = cache.padding

    def store(self, cache: KVCache) -> None:
        """Hands the newest token on to the `KVCache`, for the next round reads that."""
        rows, new = slice(cache.keys.shape[1]), slice(cache.length, cache.length + 1)
        cache.keys[:, :, :, new] = self.keys[:, rows, :, new]
        cache.values[:, :, :, new] = self.values[:, rows, :, new]
        cache.advance(1)


def decode_static(model: FlashVLModel, tokens: Tensor, cache: StaticCache) -> Tensor:
    """tokens (rows, 1) -> logits after them (rows, V)."""
    return model(tokens, cache=cache, logits_at=LAST)[:, -1]  # (rows, V)


def power_of_two(number: int) -> int:
    """The smallest that is at least `number`."""
    return 1 << (number - 1).bit_length()
