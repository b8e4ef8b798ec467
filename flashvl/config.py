"""The config of a model: one dataclass for each part, and the published form of the whole.

A number that follows from others is a property. What nobody has published is in assumptions.py:
each such field can be overridden, in a config.json under the key "assumptions" or in Python. A key
that a config.json leaves out has the default of the library class that wrote it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from .assumptions import FIELDS, choices_of
from .errors import ConfigError
from .reading import MAX_INTEGER, Reader, copy_of

Grid = tuple[int, int]  # rows, columns of tiles
# NumPy's words; constant is black.
Padding = Literal["constant", "edge", "reflect", "symmetric"]

# In input ids: a tile's first image token, and each of its further ones. Source: published code.
TILE_START, TILE_NEXT = -200, -201

# Number formats that a model can be loaded in, and that its decoder can be quantized to.
DTYPES = ("float32", "bfloat16", "float16")
QUANTIZATIONS = ("int8", "int4")


@dataclass(frozen=True)
class VisionConfig:
    """The tower. Sizes in pixels; `feature_layer` -1 is the last layer after the last norm."""

    architecture: str  # a name of `TOWERS` in model/network.py
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
    """`shuffle` x `shuffle` neighboring patches become one token (1: no pixel shuffle)."""

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
    padding: Padding = "constant"
    grid: str = "aspect"
    thumbnail: str = "last"
    tile_order: str = "rows"

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

    def tiles(self, grid: Grid) -> int:
        """How many tiles a picture of this grid has, its thumbnail included."""
        cells = grid[0] * grid[1]
        return cells + (self.thumbnail != "none" and cells > 1)

    def order(self, grid: Grid) -> list[int]:
        """The numbers of a picture's tiles in the order in which the decoder reads them.

        Those of the grid are numbered row by row from 0, and the thumbnail comes after them.
        """
        rows, columns = grid
        order = list(range(rows * columns))
        if self.tile_order == "columns":
            order.sort(key=lambda tile: (tile % columns, tile))
        thumbnail = [rows * columns] if self.thumbnail != "none" and grid != (1, 1) else []
        return thumbnail + order if self.thumbnail == "first" else order + thumbnail


@dataclass(frozen=True)
class PromptConfig:
    """How a conversation is written.

    `system` None: no system turn but a user's own. `slice_markers` says where the placeholders
    stand, or it is two other control tokens, which stand around each tile.
    """

    system: str | None = "You are a helpful assistant."
    image_place: str = "line"
    slice_markers: str | tuple[str, str] = "none"


PADDINGS: tuple[Padding, ...] = get_args(Padding)


@dataclass(frozen=True)
class ModelKind:
    """What a published model_type says beyond its config.json (reference: the four models)."""

    architecture: str  # of the tower
    max_tiles: int
    stitched: bool  # implicit semantic stitching instead of pixel shuffle
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int


CLIP: dict[str, Any] = dict(
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    resample=3,  # bicubic
)
SIGLIP: dict[str, Any] = dict(
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    resample=2,  # bilinear
)
MODEL_KINDS = {
    "FlashVLDynamicISSConfig": ModelKind("aimv2", max_tiles=6, stitched=True, **CLIP),
    "FlashVLDynamicConfig": ModelKind("aimv2", max_tiles=12, stitched=False, **CLIP),
    "FlashVLStaticConfig": ModelKind("siglip", max_tiles=1, stitched=False, **SIGLIP),
}


@dataclass(frozen=True)
class FlashVLConfig:
    """One model: its tower, compressor, decoder, tiler and prompt.

    `source` is the config.json that it was read from; keys that are not ours survive in it.
    """

    model_type: str
    vision: VisionConfig
    compressor: CompressorConfig
    decoder: DecoderConfig
    tiler: TilerConfig
    prompt: PromptConfig = field(default_factory=PromptConfig)
    source: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def compressor_input_width(self) -> int:
        return self.vision.width * self.compressor.shuffle**2

    @property
    def stitched_margin(self) -> int:
        """Patches that stitching removes on each side of the tower's output."""
        return self.tiler.seen_margin // self.vision.patch_size

    @property
    def tokens_per_tile(self) -> int:
        core_side = self.tiler.core_size // self.vision.patch_size
        return (core_side // self.compressor.shuffle) ** 2

    @property
    def assumptions(self) -> dict[str, Any]:
        """What is in use of each field of `FIELDS`, as a config.json states it."""
        values = {name: getattr(getattr(self, one.part), name) for name, one in FIELDS.items()}
        return {name: False if value is None else value for name, value in values.items()}

    def with_assumptions(self, assumptions: Mapping[str, Any]) -> FlashVLConfig:
        """This config with other values of some fields of `FIELDS`. Raises `ConfigError`."""
        stated = self.to_dict()
        stated["assumptions"] |= assumptions
        other = FlashVLConfig.from_dict(stated)
        mine = {name: getattr(self.tiler, name) for name in ("resample", "mean", "std")}
        return dataclasses.replace(other, tiler=dataclasses.replace(other.tiler, **mine))

    @classmethod
    def from_dict(cls, published: Mapping[str, Any]) -> FlashVLConfig:
        """Reads a published config.json as it is. Raises `ConfigError`."""
        from_file = Reader(published, "config.json")
        source = copy_of(published, "config.json")
        model_type = from_file.choice("model_type", tuple(MODEL_KINDS))
        kind = MODEL_KINDS[model_type]
        assumed = from_file.section("assumptions", optional=True)
        assumed.only(FIELDS)
        vision = _vision(from_file.section("vision_config"), kind, assumed)
        margin, shuffle = _reduction(from_file, vision, kind)
        return cls(
            model_type=model_type,
            vision=vision,
            compressor=CompressorConfig(
                hidden_width=from_file.integer("intermediate_size"),
                shuffle=shuffle,
                token_order=_choice(assumed, "token_order"),
            ),
            decoder=_decoder(from_file.section("llm_config")),
            tiler=TilerConfig(
                tile_size=vision.image_size,
                margin=margin * vision.patch_size,
                max_tiles=assumed.integer("max_tiles", kind.max_tiles, maximum=1000),
                resample=kind.resample,
                mean=kind.mean,
                std=kind.std,
                stitching=_choice(assumed, "stitching"),
                padding=assumed.choice("padding", PADDINGS, TilerConfig.padding),
                grid=_choice(assumed, "grid"),
                thumbnail=_thumbnail(assumed),
                tile_order=_choice(assumed, "tile_order"),
            ),
            prompt=PromptConfig(
                system=_system(assumed),
                image_place=_choice(assumed, "image_place"),
                slice_markers=_slice_markers(assumed),
            ),
            source=source,
        )

    def to_dict(self) -> dict[str, Any]:
        """The published form again, keys of the file that are not ours included.

        Raises `ConfigError` if those are nested too deeply to be copied.
        """
        vision, decoder = self.vision, self.decoder
        published = copy_of(self.source, "config.json")
        published |= {
            "model_type": self.model_type,
            "intermediate_size": self.compressor.hidden_width,
            "image_token_num": self.tokens_per_tile,
            "assumptions": self.assumptions,
        }
        eps_name = "layer_norm_eps" if vision.architecture == "siglip" else "rms_norm_eps"
        tower = published.setdefault("vision_config", {})
        if vision.architecture != MODEL_KINDS[self.model_type].architecture:
            tower["architecture"] = vision.architecture
        if vision.architecture == "siglip":
            tower = tower.get("vision_config", tower)
            tower["vision_use_head"] = vision.pooling_head
        tower |= {
            "hidden_size": vision.width,
            "intermediate_size": vision.mlp_width,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "num_channels": vision.channels,
            eps_name: vision.eps,
        }
        published["llm_config"] = published.get("llm_config", {}) | {
            "vocab_size": decoder.vocabulary,
            "hidden_size": decoder.width,
            "intermediate_size": decoder.mlp_width,
            "num_hidden_layers": decoder.layers,
            "num_attention_heads": decoder.heads,
            "num_key_value_heads": decoder.key_value_heads,
            "head_dim": decoder.head_width,
            "max_position_embeddings": decoder.context,
            "rope_theta": decoder.rope_theta,
            "rms_norm_eps": decoder.eps,
            "tie_word_embeddings": decoder.tied_head,
        }
        if rope := published["llm_config"].get("rope_parameters"):
            rope["rope_theta"] = decoder.rope_theta
        return published

    def with_preprocessor(self, preprocessor: Mapping[str, Any]) -> FlashVLConfig:
        """This config with what a published preprocessor_config.json says. Raises `ConfigError`."""
        from_file = Reader(preprocessor, "preprocessor_config.json")
        tiler = dataclasses.replace(
            self.tiler,
            resample=from_file.integer("resample", self.tiler.resample, minimum=0, maximum=5),
            mean=from_file.channels("image_mean", self.tiler.mean),
            std=from_file.channels("image_std", self.tiler.std, positive=True),
        )
        return dataclasses.replace(self, tiler=tiler)


def _choice(assumed: Reader, name: str) -> str:
    """A field that is chosen from a list, whose first value is the default."""
    choices = choices_of(name)
    return assumed.choice(name, choices, choices[0])


def _thumbnail(assumed: Reader) -> str:
    """Older configs say whether there is one, true or false; it is the last tile then."""
    stated = assumed.values.get("thumbnail")
    if isinstance(stated, bool):
        return "last" if stated else "none"
    return _choice(assumed, "thumbnail")


def _system(assumed: Reader) -> str | None:
    if assumed.values.get("system") is False:
        return None
    return assumed.text("system", str(PromptConfig.system))


def _slice_markers(assumed: Reader) -> str | tuple[str, str]:
    if isinstance(assumed.values.get("slice_markers"), str):
        return _choice(assumed, "slice_markers")
    return assumed.pair("slice_markers") or PromptConfig.slice_markers


def _vision(from_file: Reader, kind: ModelKind, assumed: Reader) -> VisionConfig:
    """Defaults are those of the library classes that write these sections.

    `architecture` is a key of ours, for towers that no published model has.
    """
    architecture = from_file.text("architecture", kind.architecture)
    siglip = architecture == "siglip"
    if siglip and "vision_config" in from_file.values:  # a whole SigLIP config holds the tower's
        from_file = from_file.section("vision_config")
    for key in ("qkv_bias", "use_bias"):
        from_file.must_be(key, siglip or False, "biases are as in the published tower")
    vision = VisionConfig(
        architecture=architecture,
        width=from_file.integer("hidden_size", 768 if siglip else 1024),
        mlp_width=from_file.integer("intermediate_size", 3072 if siglip else 2816),
        layers=from_file.integer("num_hidden_layers", 12 if siglip else 24, maximum=1000),
        heads=from_file.integer("num_attention_heads", 12 if siglip else 8),
        image_size=from_file.integer("image_size", 224, maximum=10_000),
        patch_size=from_file.integer("patch_size", 16 if siglip else 14, maximum=10_000),
        eps=from_file.number(
            "layer_norm_eps" if siglip else "rms_norm_eps", 1e-6 if siglip else 1e-5
        ),
        channels=from_file.integer("num_channels", 3, minimum=3, maximum=3),
        pooling_head=siglip and from_file.boolean("vision_use_head", True),
        feature_layer=assumed.integer("feature_layer", -1, minimum=-1, maximum=1000),
        tensor_prefix=assumed.text("tensor_prefix", VisionConfig.tensor_prefix),
    )
    _divides(from_file, "num_attention_heads", vision.heads, "hidden_size", vision.width)
    _divides(from_file, "patch_size", vision.patch_size, "image_size", vision.image_size)
    if vision.feature_layer >= vision.layers:
        raise ConfigError(
            f"{assumed.name}: feature_layer {vision.feature_layer} does not exist, "
            f"the tower has {vision.layers} layers"
        )
    return vision


def _reduction(from_file: Reader, vision: VisionConfig, kind: ModelKind) -> tuple[int, int]:
    """(margin in patches, shuffle factor): what turns the tower's patches into the tokens."""
    # Tiles overlap by about 12.5 %, and an eighth on each side leaves the reported 576 of 1024.
    default = vision.side - 2 * (vision.side // 8) if kind.stitched else vision.side // 2
    tokens = from_file.integer("image_token_num", default**2 or None)
    side = math.isqrt(tokens)
    if side**2 == tokens and side <= vision.side:
        if kind.stitched and (vision.side - side) % 2 == 0:
            return (vision.side - side) // 2, 1
        shuffle, rest = divmod(vision.side, side)
        if not kind.stitched and rest == 0 and vision.width * shuffle**2 <= MAX_INTEGER:
            return 0, shuffle
    raise ConfigError(
        f'"image_token_num" of {from_file.name} is {tokens}, which does not come out of '
        f"{vision.side} x {vision.side} patches"
    )


def _decoder(from_file: Reader) -> DecoderConfig:
    from_file.must_be("hidden_act", "silu", "the decoder is Qwen2's")
    from_file.must_be("use_sliding_window", False, "attention is over the whole context")
    rope = from_file.section("rope_parameters", optional=True)
    rope.must_be("rope_type", "default", "positions are not rescaled")
    from_file.must_be("rope_scaling", None, "positions are not rescaled")
    heads, width = (
        from_file.integer("num_attention_heads", 32),
        from_file.integer("hidden_size", 4096),
    )
    if "head_dim" not in from_file.values:
        _divides(from_file, "num_attention_heads", heads, "hidden_size", width)
    decoder = DecoderConfig(
        vocabulary=from_file.integer("vocab_size", 151936),
        width=width,
        mlp_width=from_file.integer("intermediate_size", 22016),
        layers=from_file.integer("num_hidden_layers", 32, maximum=1000),
        heads=heads,
        key_value_heads=from_file.integer("num_key_value_heads", heads),
        head_width=from_file.integer("head_dim", max(width // heads, 1), maximum=10_000),
        context=from_file.integer("max_position_embeddings", 32768),
        rope_theta=rope.number("rope_theta", from_file.number("rope_theta", 10000.0)),
        eps=from_file.number("rms_norm_eps", 1e-6),
        tied_head=from_file.boolean("tie_word_embeddings", False),
    )
    _divides(
        from_file, "num_key_value_heads", decoder.key_value_heads, "num_attention_heads", heads
    )
    if decoder.head_width % 2:
        raise ConfigError(
            f"{from_file.name}: heads of {decoder.head_width} cannot be rotated in pairs"
        )
    return decoder


def _divides(from_file: Reader, name: str, part: int, whole_name: str, whole: int) -> None:
    if whole % part:
        raise ConfigError(
            f'{from_file.name}: "{whole_name}" {whole} is not a multiple of "{name}" {part}'
        )
