"""The parts of a model's config. A number that follows from others is a property.

What nobody has published is in `ASSUMPTIONS`: each such field can be overridden, in a config.json
under the key "assumptions" or in Python.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VisionConfig:
    """The tower. Sizes in pixels; `feature_layer` -1 is the last layer after the last norm."""

    architecture: str  # "aimv2" or "siglip"
    width: int
    mlp_width: int
    layers: int
    heads: int
    image_size: int
    patch_size: int
    eps: float
    channels: int = 3
    pooling_head: bool = False
    feature_layer: int = -1
    tensor_prefix: str = "vit."  # of its names in the file

    @property
    def side(self) -> int:
        """Patches along one side of a tile."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        return self.side**2


@dataclass(frozen=True)
class CompressorConfig:
    """`shuffle` x `shuffle` neighbouring patches become one token (1: no pixel shuffle)."""

    hidden_width: int
    shuffle: int
    token_order: str = "rows"


@dataclass(frozen=True)
class DecoderConfig:
    """Qwen2. `context` is the most tokens that a prompt and its answer may have."""

    vocabulary: int
    width: int
    mlp_width: int
    layers: int
    heads: int
    key_value_heads: int
    head_width: int
    context: int
    rope_theta: float
    eps: float
    tied_head: bool = False


@dataclass(frozen=True)
class TilerConfig:
    """How a picture is cut. Sizes in pixels; `resample` is Pillow's number of the filter."""

    tile_size: int
    margin: int
    max_tiles: int
    resample: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    stitching: str = "trim"
    padding: str = "edge"
    thumbnail: bool = True

    @property
    def core_size(self) -> int:
        return self.tile_size - 2 * self.margin

    @property
    def seen_margin(self) -> int:
        """The margin that the tower sees: none in the stitching mode `none`."""
        return 0 if self.stitching == "none" else self.margin

    @property
    def seen_size(self) -> int:
        """The side of what the tower sees of a tile."""
        return self.core_size + 2 * self.seen_margin


@dataclass(frozen=True)
class PromptConfig:
    """`slice_markers`: two control tokens around each tile's tokens, or None."""

    system: str = "You are a helpful assistant."
    slice_markers: tuple[str, str] | None = None


# Fields that no published file settles, and the part of the config that holds them.
ASSUMPTIONS = {
    "max_tiles": "tiler",
    "stitching": "tiler",
    "padding": "tiler",
    "thumbnail": "tiler",
    "feature_layer": "vision",
    "tensor_prefix": "vision",
    "token_order": "compressor",
    "system": "prompt",
    "slice_markers": "prompt",
}
CHOICES = {
    "stitching": ("trim", "mean", "none"),
    "padding": ("edge", "reflect", "symmetric", "constant"),
    "token_order": ("rows", "columns"),
}
