"""The fast path of a CUDA device: tower, prefill and decode through `torch.compile`.

The modules are those of the eager path. Decode is compiled for one shape, so that it can be
replayed as a CUDA graph: it writes into a cache of fixed capacity at a position that is a tensor,
and attends to all of it under a mask.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .cache import KVCache
from .config_parts import DecoderConfig
from .decoder import Decoder
from .errors import ArgumentError
from .generate import Steps, prefill
from .hub import own_cache
from .quantising import PackedInt8Linear

LEAST_CAPACITY = 1024
COMPILERS = {"darwin": "clang++", "win32": "cl"}  # others g++


def compile_model(model: nn.Module) -> None:
    """Compiles a `FlashVL`'s tower, prefill and decode, in place; each at its first use.

    What was compiled is kept on disk, in $TORCHINDUCTOR_CACHE_DIR or the user's cache folder.
    Raises `ArgumentError` for weights in fbgemm's packed form, of which no graph can be made, and
    where there is no compiler.
    """
    if any(isinstance(module, PackedInt8Linear) for module in model.modules()):
        raise ArgumentError("int8 weights on a CPU cannot be compiled; use one of the two")
    compiler = os.environ.get("CXX") or COMPILERS.get(sys.platform, "g++")
    if shutil.which(compiler.split()[0]) is None:
        raise ArgumentError(f"torch.compile needs a C++ compiler, found no {compiler}; install one")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(own_cache() / "compiled"))
    model.vision.compile(fullgraph=True)  # from the second number of tiles on for any
    model.steps = CompiledSteps()


class CompiledSteps(Steps):
    """Prefill compiled for prompts of any length, decode for each capacity of the cache once.

    Capacities are powers of two, so that answers of all lengths share a few.
    """

    def __init__(self) -> None:
        self._prefill = torch.compile(prefill, fullgraph=True, dynamic=True)
        self._decode = torch.compile(
            decode_static, fullgraph=True, dynamic=False, mode="reduce-overhead"
        )
        self._caches: dict[tuple, StaticCache] = {}  # by capacity, dtype and device
        self._answer: object = None  # whose tokens lie in the static caches

    def prefill(self, decoder: Decoder, embeddings: Tensor, cache: KVCache) -> Tensor:
        return self._prefill(decoder, embeddings, cache)

    def begin(self, decoder: Decoder, cache: KVCache) -> Callable[[Tensor], Tensor]:
        static, answer = self._cache_for(decoder.config, cache), object()

        def decode(token: Tensor) -> Tensor:
            if self._answer is not answer:
                static.load(cache)
                self._answer = answer
            static.position.fill_(cache.length)
            torch.compiler.cudagraph_mark_step_begin()
            logits = self._decode(decoder, token, static)  # (1, V)
            static.store(cache)
            return logits

        return decode

    def _cache_for(self, config: DecoderConfig, cache: KVCache) -> StaticCache:
        capacity = max(LEAST_CAPACITY, 1 << (cache.capacity - 1).bit_length())
        capacity = min(capacity, config.context)
        key = (capacity, cache.keys.dtype, cache.keys.device)
        if key not in self._caches:
            self._caches[key] = StaticCache(cache, capacity)
        return self._caches[key]


class StaticCache:
    """A cache of one shape and one place in memory, which a compiled decode writes and reads.

    keys, values: (layers, 1, K, capacity, head width), zero where nothing is stored yet.
    """

    length = 0  # the decoder is told the positions and the mask

    def __init__(self, cache: KVCache, capacity: int) -> None:
        shape = (*cache.keys.shape[:3], capacity, cache.keys.shape[4])
        self.keys, self.values = cache.keys.new_zeros(shape), cache.values.new_zeros(shape)
        self.position = torch.zeros(1, dtype=torch.long, device=cache.keys.device)
        for tensor in (self.keys, self.values, self.position):
            torch._dynamo.mark_static_address(tensor)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores (1, K, 1, head width) at the position; returns everything, the empty part too."""
        self.keys[layer].index_copy_(2, self.position, keys)
        self.values[layer].index_copy_(2, self.position, values)
        return self.keys[layer], self.values[layer]  # 2 x (1, K, capacity, head width)

    def advance(self, tokens: int) -> None:
        """The position is set from outside, before each token."""

    def load(self, cache: KVCache) -> None:
        """Copies what a `KVCache` holds."""
        filled = slice(0, cache.length)
        # What an answer before left behind is masked, but 0 times not a number is not a number.
        self.keys.zero_()
        self.values.zero_()
        self.keys[:, :, :, filled] = cache.keys[:, :, :, filled]
        self.values[:, :, :, filled] = cache.values[:, :, :, filled]

    def store(self, cache: KVCache) -> None:
        """Hands the one new token on to the `KVCache`, for the next round reads that."""
        new = slice(cache.length, cache.length + 1)
        cache.keys[:, :, :, new] = self.keys[:, :, :, new]
        cache.values[:, :, :, new] = self.values[:, :, :, new]
        cache.advance(1)


def decode_static(decoder: Decoder, token: Tensor, cache: StaticCache) -> Tensor:
    """`decode_one_token` with a static cache: a token (1, 1) -> logits after it (1, V)."""
    columns = torch.arange(cache.keys.shape[3], device=token.device)  # (capacity)
    mask = (columns <= cache.position)[None, None, None]  # (1, 1, 1, capacity)
    hidden = decoder(decoder.embedding(token), cache, cache.position[None], mask)  # (1, 1, D)
    return decoder.head(hidden[:, -1])  # (1, V)
