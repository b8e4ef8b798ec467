"""The network of Flash-VL: tower, compressor and decoder, wired. Read `forward`: it is all of it.

Chat, batches, conversations, training, scoring and every tool run this one pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..config import TILE_NEXT, TILE_START, FlashVLConfig, Grid
from ..errors import ArgumentError, ConfigError
from ..reading import is_integer, shown
from .aimv2 import AIMv2Encoder
from .cache import Cache, KVCache
from .compressor import Compressor
from .decoder import Decoder
from .siglip import SigLIPEncoder

# By the `architecture` of a `VisionConfig`. A tower of your own is one more row.
TOWERS: dict[str, type[AIMv2Encoder] | type[SigLIPEncoder]] = {
    "aimv2": AIMv2Encoder,
    "siglip": SigLIPEncoder,
}
WHOLE = (torch.int64, torch.int32)
FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class FlashVLModel(nn.Module):
    """input_ids (B, T), pixels (S, C, height, width) -> logits (..., V) in the weights' dtype.

    They are those of all tokens, (B, T, V), unless fewer are wanted. `FlashVLModel(config)` has
    random weights, on the meta device too. Raises `ConfigError` for an architecture that is not
    in `TOWERS`.
    """

    def __init__(self, config: FlashVLConfig) -> None:
        super().__init__()
        if config.vision.architecture not in TOWERS:
            raise ConfigError(
                f"there is no tower {config.vision.architecture}; known: {', '.join(TOWERS)}"
            )
        self.config = config
        self.computes_in: torch.dtype | None = None  # where that is not the weights' dtype
        self.vision = TOWERS[config.vision.architecture](config.vision)
        self.compressor = Compressor(config)
        self.decoder = Decoder(config.decoder)

    def forward(
        self,
        input_ids: Tensor,
        pixels: Tensor | None = None,
        grids: Sequence[Grid] | None = None,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
        logits_at: slice | Tensor = slice(None),
    ) -> Tensor:
        """One pass over B rows of T tokens, some of which are places for image tokens.

        `pixels` are the tiles of all pictures, one after the other, in the order of their places;
        None for text alone. `grids` says of each picture its (rows, columns) of tiles; it may be
        left out where each tile stands alone, in every stitching mode but `mean`.

        `cache` holds the tokens before these and takes these up. Rows that hold several texts side
        by side say so with `positions` (B, T) and `mask` (B, 1, T, seen + T), true where a token
        may attend. `logits_at` chooses whose logits are wanted, for the head is wide: a slice of
        the T tokens, which gives (B, their number, V), or bools (B, T), which give (their number,
        V).

        Raises `ArgumentError` for arguments that do not fit the model or each other.
        """
        check_input(self, input_ids, pixels, grids, positions, mask, cache, logits_at)
        words = input_ids.masked_fill(image_places(input_ids), 0)  # (B, T)
        embeddings = self.decoder.embedding(words)  # (B, T, D)
        if pixels is not None:
            features = self.vision(pixels)  # (S, N, vision width)
            image_tokens = self.compressor(features, grids)  # (S, tokens, D)
            embeddings = fill_places(embeddings, input_ids, image_tokens)  # (B, T, D)
        hidden = self.decoder(embeddings, positions, mask, cache)  # (B, T, D)
        wanted = hidden[:, logits_at] if isinstance(logits_at, slice) else hidden[logits_at]
        return self.decoder.head(wanted)  # (..., V)

    @property
    def device(self) -> torch.device:
        return self.decoder.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.decoder.embedding.weight.dtype

    @property
    def activation_dtype(self) -> torch.dtype:
        """Of what passes through the layers; float32 where `fast/cpu.py` widens bfloat16 weights.

        A LayerNorm's weight tells, for it must have the dtype of what it is given.
        """
        return self.computes_in or self.compressor.norm.weight.dtype


def image_places(input_ids: Tensor) -> Tensor:
    """Where input ids (B, T) stand for image tokens: bools (B, T)."""
    return (input_ids == TILE_START) | (input_ids == TILE_NEXT)  # (B, T)


def fill_places(embeddings: Tensor, input_ids: Tensor, image_tokens: Tensor) -> Tensor:
    """Puts image tokens, in their order, into the places that the ids keep for them.

    (B, T, D), (B, T), (S, tokens, D) -> (B, T, D).
    """
    flat = image_tokens.flatten(0, 1)  # (S * tokens, D)
    places = image_places(input_ids)[..., None]  # (B, T, 1)
    return embeddings.masked_scatter(places, flat.to(embeddings.dtype))  # (B, T, D)


def check_input(
    model: FlashVLModel,
    input_ids: object,
    pixels: object,
    grids: object,
    positions: object,
    mask: object,
    cache: object,
    logits_at: object,
) -> None:
    """Raises `ArgumentError` for arguments of `forward` that do not fit the model or each other.

    The grids of pixels are left to the compressor.
    """
    if torch.compiler.is_compiling():
        return
    config, device = model.config, model.device
    input_ids = required("input_ids", input_ids, WHOLE, device, "B", "T")
    rows, tokens = input_ids.shape
    if rows * tokens == 0:
        raise ArgumentError(f"input_ids must hold a token, found ({rows}, {tokens}) of them")
    image_tokens = 0
    if pixels is not None:
        channels, side = config.vision.channels, config.tiler.seen_size
        pixels = required("pixels", pixels, FLOATING, device, "S", channels, side, side)
        image_tokens = len(pixels) * config.tokens_per_tile
    elif grids is not None and not (isinstance(grids, Sequence) and len(grids) == 0):
        raise ArgumentError("grids are given and no pixels; pass both or neither")
    if positions is not None:
        required("positions", positions, WHOLE, device, {1, rows}, tokens)
    columns: int | str = tokens
    if isinstance(cache, KVCache):
        decoder = config.decoder
        shape = (decoder.layers, rows, decoder.key_value_heads, "capacity", decoder.head_width)
        required("keys of the cache", cache.keys, (model.activation_dtype,), device, *shape)
        columns = cache.length + tokens
    elif isinstance(cache, Cache):
        columns = "columns"  # as many as it has
    elif cache is not None:
        raise ArgumentError(f"cache must be a cache or None, found {shown(cache)}")
    if mask is not None:
        required("mask", mask, (torch.bool,), device, {1, rows}, 1, tokens, columns)
    if not isinstance(logits_at, slice):
        required("logits_at, if no slice,", logits_at, (torch.bool,), device, rows, tokens)
    elif not is_slice(logits_at):
        raise ArgumentError(f"logits_at must be a slice of whole numbers, found {shown(logits_at)}")
    check_values(input_ids, image_tokens, config.decoder.vocabulary)


def required(
    name: str,
    value: object,
    dtypes: Sequence[torch.dtype],
    device: torch.device,
    *shape: int | str | set[int],
) -> Tensor:
    """The value if it is such a tensor; a letter in the shape stands for any number.

    Raises `ArgumentError` if it is another, or none.
    """
    if isinstance(value, Tensor) and not value.is_nested and value.layout == torch.strided:
        fits = value.ndim == len(shape) and all(
            isinstance(one, str) or (size in one if isinstance(one, set) else size == one)
            for size, one in zip(value.shape, shape)
        )
        if fits and value.dtype in dtypes and value.device == device:
            return value
        found = f"{value.dtype} ({', '.join(map(str, value.shape))}) on {value.device}"
    else:
        found = shown(value)
    sizes = [" or ".join(map(str, one)) if isinstance(one, set) else str(one) for one in shape]
    raise ArgumentError(
        f"{name} must be {' or '.join(map(str, dtypes))} ({', '.join(sizes)}) on {device}, "
        f"found {found}"
    )


def is_slice(value: slice) -> bool:
    """Whether a tensor can be sliced so: whole numbers of 64 bits, and no steps back."""
    parts = (value.start, value.stop, value.step)
    whole = all(one is None or (is_integer(one) and abs(one) < 2**63) for one in parts)
    return whole and (value.step is None or value.step > 0)


def check_values(input_ids: Tensor, image_tokens: int, vocabulary: int) -> None:
    """Raises `ArgumentError` unless ids (B, T) are tokens, and places for the image tokens."""
    if input_ids.device.type == "meta":
        return  # there are no values to look at
    if input_ids.shape[1] == 1 and input_ids.device.type != "cpu":
        return  # a token that is decoded: a look at it would wait for the GPU
    places = image_places(input_ids)  # (B, T)
    lowest, highest = input_ids.masked_fill(places, 0).aminmax()
    count, low, high = torch.stack((places.sum(), lowest, highest)).tolist()
    if low < 0 or high >= vocabulary:
        raise ArgumentError(
            f"input_ids must be tokens from 0 to {vocabulary - 1}, or {TILE_START} and {TILE_NEXT} "
            f"for image tokens, found {low if low < 0 else high}"
        )
    if count != image_tokens:
        raise ArgumentError(
            f"input_ids have {count} places for image tokens, the pixels give {image_tokens}; take "
            "both from one call of prepare"
        )
