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

import torch
from PIL import Image
from torch import Tensor

from ...chat import FlashVL
from ...config import FlashVLConfig, Grid, TilerConfig
from ...errors import ArgumentError
from ...generation.generate import LAST, Row, new_cache, read_prompt
from ...generation.sampling import Sampling
from ...input.processor import Prompt
from ...model.network import FlashVLModel
from ..trace.recorder import Recorder
from ..trace.trace import QUESTION


@dataclass(frozen=True)
class Sizes:
    """Tiles for the tower, tokens of the prompt in all, and tokens to decode after it."""

    tiles: int
    prompt: int
    new: int

    def steps(self, stage: str) -> int:
        """How many equal steps a stage has: decode one for each new token, others one."""
        return self.new if stage == "decode" else 1


class Stages:
    """A loaded model with the input of each stage: a drawn picture, random pixels, features, ids.

    `by_name` holds the stages in the order of an answer. Each can be called again and again, and
    none needs another to have run.
    """

    @torch.inference_mode()
    def __init__(self, flash: FlashVL, sizes: Sizes) -> None:
        self.flash, self.sizes = flash, sizes
        model, config = flash.model, flash.config
        self.grid = grid_of(sizes.tiles, config.tiler)
        self.picture = picture_of(self.grid, config.tiler)
        random = torch.Generator().manual_seed(0)
        pixels, features = input_shapes(config, sizes.tiles)
        self.pixels = torch.randn(pixels, generator=random).to(model.device)  # (S, C, h, w)
        self.features = torch.randn(features, generator=random).to(
            model.device, model.activation_dtype
        )  # (S, N, vision width)
        ids = torch.randint(config.decoder.vocabulary, (1, sizes.prompt), generator=random)
        self.text = Prompt(ids, None, []).to(model.device)  # ids (1, T)
        self.first = torch.zeros(1, 1, dtype=torch.long, device=model.device)  # (1, 1)
        self.cache = new_cache(model)  # as if the prompt were read
        self.cache.reserve(sizes.prompt + sizes.new)
        self.cache.keys.normal_()
        self.cache.values.normal_()
        self.cache.advance(sizes.prompt)
        self.by_name: dict[str, Callable[[], object]] = {
            "preprocess": self.preprocess,
            "vision": self.vision,
            "compressor": self.compressor,
            "prefill": self.prefill,
            "decode": self.decode,
        }

    @property
    def cache_bytes(self) -> int:
        return self.cache.keys.nbytes + self.cache.values.nbytes

    def preprocess(self) -> Prompt:
        return self.flash.prepare(self.picture, [{"role": "user", "content": QUESTION}])

    @torch.inference_mode()
    def vision(self) -> Tensor:
        return self.flash.model.vision(self.pixels)  # (S, N, vision width)

    @torch.inference_mode()
    def compressor(self) -> Tensor:
        return self.flash.model.compressor(self.features, [self.grid])  # (S, tokens, D)

    def prefill(self) -> Row:
        return read_prompt(self.flash.model, self.text, Sampling())

    @torch.inference_mode()
    def decode(self) -> None:
        """All new tokens, one after the other; each is looked at, as an answer's end would be."""
        self.cache.roll_back(self.sizes.prompt)
        step = self.flash.begin_decode(self.flash.model, self.cache)
        token = self.first
        for _ in range(self.sizes.new):
            token = step(token).argmax(dim=-1, keepdim=True)  # (1, 1)
            token.item()


def grid_of(tiles: int, tiler: TilerConfig) -> Grid:
    """One row of tiles that are `tiles` in all, with the thumbnail if there is one.

    Raises `ArgumentError` if the model cuts no picture into as many.
    """
    rows = [(1, columns) for columns in range(1, tiler.max_tiles + 1)]
    grids = {tiler.tiles(row): row for row in rows}
    if tiles not in grids:
        raise ArgumentError(
            f"this model cuts a picture into {', '.join(map(str, grids))} tiles"
            + (", the thumbnail included" if len(grids) > 1 and tiler.thumbnail != "none" else "")
            + f"; found {tiles}"
        )
    return grids[tiles]


def picture_of(grid: Grid, tiler: TilerConfig) -> Image.Image:
    """A drawn picture that is cut into the tiles of `grid`."""
    rows, columns = grid
    gray = Image.linear_gradient("L").resize((columns * tiler.core_size, rows * tiler.core_size))
    return Image.merge("RGB", (gray, gray.rotate(180), Image.new("L", gray.size, 160)))


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
        model = FlashVLModel(config).to(held).eval()
        pixels, features = input_shapes(config, sizes.tiles)
        tower_input = torch.empty(pixels)  # (S, C, height, width)
        compressor_input = torch.empty(features, dtype=held)  # (S, N, vision width)
        prompt = torch.empty(1, sizes.prompt, dtype=torch.long)  # (1, T)
        token = torch.empty(1, 1, dtype=torch.long)  # (1, 1)
    cache = new_cache(model)
    cache.reserve(sizes.prompt + sizes.new)
    token_bytes = 2 * cache.keys.numel() // cache.capacity * computed.itemsize  # in the cache

    def count(stage: Callable[[Tensor], Tensor], put_in: Tensor, cached: int = 0) -> Count:
        recorder = Recorder(model, depth=1)
        with torch.inference_mode(), recorder:
            recorder.begin("stage", ())  # of what goes in and out the recorder sees held dtypes
            put_out = stage(put_in)
            recorder.end(())
        (row,) = recorder.rows.values()
        ends = sum(
            one.numel() * (computed if one.dtype == held else one.dtype).itemsize
            for one in (put_in, put_out)
        )
        return Count(row.operations, weights=row.bytes, cache=cached, ends=ends)

    compressor = partial(model.compressor, grids=[grid_of(sizes.tiles, config.tiler)])
    read = partial(model, cache=cache, logits_at=LAST)  # prefill and decode alike
    counts = {
        "vision": count(model.vision, tower_input),
        "compressor": count(compressor, compressor_input),
        "prefill": count(read, prompt, cached=2 * sizes.prompt * token_bytes),
    }
    # A step writes one token and reads all up to it. Its operations grow evenly from step to step.
    first = count(read, token)
    cache.length = sizes.prompt + sizes.new - 1
    last = count(read, token)
    lengths = range(sizes.prompt + 1, sizes.prompt + sizes.new + 1)
    counts["decode"] = Count(
        operations=(first.operations + last.operations) * sizes.new // 2,
        weights=first.weights * sizes.new,
        cache=(sizes.new + sum(lengths)) * token_bytes,
        ends=first.ends * sizes.new,
    )
    return counts
