"""The network of Flash-VL: tower, compressor and decoder, wired. Read `forward`: it is all of it.

Chat, batches, conversations, training, scoring and every tool run this one pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..config import TILE_NEXT, TILE_START, FlashVLConfig, Grid
from ..errors import ArgumentError, ConfigError
from .aimv2 import AIMv2Encoder
from .cache import Cache
from .compressor import Compressor
from .decoder import Decoder
from .siglip import SigLIPEncoder

# By the `architecture` of a `VisionConfig`. A tower of your own is one more row.
TOWERS: dict[str, type[AIMv2Encoder] | type[SigLIPEncoder]] = {
    "aimv2": AIMv2Encoder,
    "siglip": SigLIPEncoder,
}


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

        Raises `ArgumentError` if pixels, grids and places do not fit each other.
        """
        words = input_ids.masked_fill(image_places(input_ids), 0)  # (B, T)
        embeddings = self.decoder.embedding(words)  # (B, T, D)
        if pixels is not None:
            features = self.vision(pixels)  # (S, N, vision width)
            image_tokens = self.compressor(features, grids)  # (S, tokens, D)
            embeddings = fill_places(embeddings, input_ids, image_tokens)  # (B, T, D)
        elif grids:
            raise ArgumentError("grids are given and no pixels; pass both or neither")
        elif input_ids.shape[1] > 1:  # one token is decoded: no look at it, which a GPU waits for
            check_places(input_ids, 0)
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
        return self.compressor.norm.weight.dtype


def image_places(input_ids: Tensor) -> Tensor:
    """Where input ids (B, T) stand for image tokens: bools (B, T)."""
    return (input_ids == TILE_START) | (input_ids == TILE_NEXT)  # (B, T)


def fill_places(embeddings: Tensor, input_ids: Tensor, image_tokens: Tensor) -> Tensor:
    """Puts image tokens, in their order, into the places that the ids keep for them.

    (B, T, D), (B, T), (S, tokens, D) -> (B, T, D). Raises `ArgumentError` if there are not as many
    places as tokens.
    """
    flat = image_tokens.flatten(0, 1)  # (S * tokens, D)
    check_places(input_ids, len(flat))
    places = image_places(input_ids)[..., None]  # (B, T, 1)
    return embeddings.masked_scatter(places, flat.to(embeddings.dtype))  # (B, T, D)


def check_places(input_ids: Tensor, tokens: int) -> None:
    """Raises `ArgumentError` unless input ids (B, T) have a place for each of the image tokens."""
    if input_ids.device.type == "meta" or torch.compiler.is_compiling():
        return  # there are no values to look at
    places = int(image_places(input_ids).sum())
    if places != tokens:
        raise ArgumentError(
            f"input_ids have {places} places for image tokens, the pixels give {tokens}; take both "
            "from one call of prepare"
        )
