"""The stages of an answer, each by itself, at sizes of choice; and what each does by count.

Operations are those of linear maps and of both products of attention, a multiply-add as 2, over
all pairs of tokens even where attention is causal. Bytes are the weights that a stage reads, each
once, in the format in which they are held (of an embedding the rows asked for); the keys and values
that it reads and writes; and what goes in and comes out. What passes between layers is not counted,
nor is a weight that is written once more in another format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..cache import KVCache
from ..config import FlashVLConfig
from ..config_parts import TilerConfig
from ..errors import ArgumentError
from ..generate import decode_one_token, prefill
from ..model import FlashVL
from .trace_recorder import Recorder

QUESTION = "What is in the picture?"


@dataclass(frozen=True)
class Sizes:
    """Tiles for the tower, tokens of the prompt in all, and tokens to decode after it."""

    tiles: int
    prompt: int
    new: int


class Stages:
    """A loaded model with the input of each stage: a drawn picture, random pixels, features, ids.

    Each method named in `STAGES` runs that stage once; none needs another to have run.
    """

    @torch.inference_mode()
    def __init__(self, model: FlashVL, sizes: Sizes) -> None:
        config, device = model.config, model.device
        self.model, self.sizes = model, sizes
        self.picture = picture_of(sizes.tiles, config.tiler)
        random = torch.Generator().manual_seed(0)
        pixels, features = input_shapes(config, sizes.tiles)
        self.pixels = torch.randn(pixels, generator=random).to(device)  # (S, C, height, width)
        ids = torch.randint(config.decoder.vocabulary, (1, sizes.prompt), generator=random)
        self.embeddings = model.decoder.embedding(ids.to(device))  # (1, T, D)
        self.features = torch.randn(features, generator=random).to(
            device, self.embeddings.dtype
        )  # (S, N, vision width)
        self.first = torch.zeros(1, 1, dtype=torch.long, device=device)  # (1, 1)
        self.cache = self.new_cache()  # as if the prompt were read
        self.cache.keys.normal_()
        self.cache.values.normal_()
        self.cache.advance(sizes.prompt)

    def new_cache(self, capacity: int | None = None) -> KVCache:
        """With room for `capacity` tokens, or for the prompt and all new ones."""
        capacity = capacity or self.sizes.prompt + self.sizes.new
        embeddings, config = self.embeddings, self.model.config.decoder
        return KVCache(config, capacity, device=embeddings.device, dtype=embeddings.dtype)

    @property
    def cache_bytes(self) -> int:
        return self.cache.keys.nbytes + self.cache.values.nbytes

    def preprocess(self) -> tuple[Tensor, Tensor]:
        return self.model.prepare(self.picture, [{"role": "user", "content": QUESTION}])

    @torch.inference_mode()
    def vision(self) -> Tensor:
        return self.model.vision(self.pixels)  # (S, N, vision width)

    @torch.inference_mode()
    def compressor(self) -> Tensor:
        return self.model.compressor(self.features, self.model.grid(self.picture))  # (S, T, D)

    @torch.inference_mode()
    def prefill(self) -> Tensor:
        cache = self.new_cache()
        return self.model.steps.prefill(self.model.decoder, self.embeddings, cache)  # (1, V)

    @torch.inference_mode()
    def decode(self) -> None:
        """All new tokens, one after the other; each is looked at, as an answer's end would be."""
        self.cache.roll_back(self.sizes.prompt)
        decode_step = self.model.steps.begin(self.model.decoder, self.cache)
        token = self.first
        for _ in range(self.sizes.new):
            token = decode_step(token).argmax(dim=-1, keepdim=True)  # (1, 1)
            token.item()

    def stage(self, name: str) -> Callable[[], Any]:
        """One of `STAGES`, to be called."""
        return getattr(self, name)


STAGES = ("preprocess", "vision", "compressor", "prefill", "decode")


def picture_of(tiles: int, tiler: TilerConfig) -> Image.Image:
    """A drawn picture that is cut into `tiles` tiles, a thumbnail included.

    Raises `ArgumentError` if the model cuts no picture into as many.
    """
    thumbnail = tiler.thumbnail and tiler.max_tiles > 1
    possible = [columns + (thumbnail and columns > 1) for columns in range(1, tiler.max_tiles + 1)]
    if tiles not in possible:
        raise ArgumentError(
            f"--tiles {tiles}: this model cuts a picture into "
            f"{', '.join(map(str, possible))} tiles"
            + (", the thumbnail included" if thumbnail else "")
        )
    columns = possible.index(tiles) + 1
    grey = Image.linear_gradient("L").resize((columns * tiler.core_size, tiler.core_size))
    return Image.merge("RGB", (grey, grey.rotate(180), Image.new("L", grey.size, 160)))


def input_shapes(
    config: FlashVLConfig, tiles: int
) -> tuple[tuple[int, int, int, int], tuple[int, int, int]]:
    """Shapes of the tower's and the compressor's input.

    (S, C, height, width), (S, N, vision width).
    """
    side = config.tiler.seen_size
    patches = (side // config.vision.patch_size) ** 2
    return (tiles, config.vision.channels, side, side), (tiles, patches, config.vision.width)


@dataclass(frozen=True)
class Count:
    """What one run of a stage does; `decode` counts all its tokens."""

    operations: int
    weights: int  # bytes
    cache: int  # bytes read and written
    ends: int  # bytes in and out

    @property
    def bytes(self) -> int:
        return self.weights + self.cache + self.ends


def count_stages(
    config: FlashVLConfig, sizes: Sizes, held: torch.dtype, computed: torch.dtype
) -> dict[str, Count]:
    """Stage -> count, by shapes alone: weights held in one dtype, activations in another."""
    with torch.device("meta"):
        model = FlashVL(config).to(held).eval()
        pixels, features = input_shapes(config, sizes.tiles)
        tower_input = torch.empty(pixels)  # (S, C, height, width)
        compressor_input = torch.empty(features, dtype=held)  # (S, N, vision width)
        embeddings = torch.empty(1, sizes.prompt, config.decoder.width, dtype=held)  # (1, T, D)
        token = torch.empty(1, 1, dtype=torch.long)  # (1, 1)
    cache = KVCache(config.decoder, sizes.prompt + sizes.new, device="meta", dtype=held)
    a_token = 2 * cache.keys.numel() // cache.capacity * computed.itemsize  # bytes
    grid = model.grid(picture_of(sizes.tiles, config.tiler))

    def count(stage: Callable[[Tensor], Tensor], put_in: Tensor, cached: int = 0) -> Count:
        recorder = Recorder(model, depth=1)
        with torch.inference_mode(), recorder:
            put_out = recorder.stage("", stage, put_in)
        (row,) = recorder.rows.values()
        ends = sum(
            one.numel() * (computed if one.dtype == held else one.dtype).itemsize
            for one in (put_in, put_out)
        )
        # The recorder counts the ends too, in the dtype of the weights.
        return Count(row.operations, row.bytes - put_in.nbytes - put_out.nbytes, cached, ends)

    compressor = partial(model.compressor, grid=grid)
    prefill_all = partial(prefill, model.decoder, cache=cache)
    counts = {
        "vision": count(model.vision, tower_input),
        "compressor": count(compressor, compressor_input),
        "prefill": count(prefill_all, embeddings, cached=2 * sizes.prompt * a_token),
    }
    # A step writes one token and reads all up to it. Its operations grow evenly from step to step.
    decode = partial(decode_one_token, model.decoder, cache=cache)
    first = count(decode, token)
    cache.length = sizes.prompt + sizes.new - 1
    last = count(decode, token)
    lengths = range(sizes.prompt + 1, sizes.prompt + sizes.new + 1)
    counts["decode"] = Count(
        operations=(first.operations + last.operations) * sizes.new // 2,
        weights=first.weights * sizes.new,
        cache=(sizes.new + sum(lengths)) * a_token,
        ends=first.ends * sizes.new,
    )
    return counts
