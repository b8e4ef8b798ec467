"""The config of a whole model, read from the published config.json and written again.

A key that a config.json leaves out has the default of the library class that wrote it.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .config_parts import (
    ASSUMPTIONS,
    CHOICES,
    CompressorConfig,
    DecoderConfig,
    PromptConfig,
    TilerConfig,
    VisionConfig,
)
from .errors import ConfigError
from .json_reader import MOST, Reader, copy_of
from .kinds import KINDS, Kind


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

    @classmethod
    def from_dict(cls, published: Mapping[str, Any]) -> FlashVLConfig:
        """Reads a published config.json as it is. Raises `ConfigError`."""
        from_file = Reader(published, "config.json")
        source = copy_of(published, "config.json")
        model_type = from_file.choice("model_type", tuple(KINDS))
        kind = KINDS[model_type]
        assumed = from_file.section("assumptions", optional=True)
        assumed.only(ASSUMPTIONS)
        vision = _vision(from_file.section("vision_config"), kind, assumed)
        margin, shuffle = _reduction(from_file, vision, kind)
        return cls(
            model_type=model_type,
            vision=vision,
            compressor=CompressorConfig(
                hidden_width=from_file.integer("intermediate_size"),
                shuffle=shuffle,
                token_order=assumed.choice("token_order", CHOICES["token_order"], "rows"),
            ),
            decoder=_decoder(from_file.section("llm_config")),
            tiler=TilerConfig(
                tile_size=vision.image_size,
                margin=margin * vision.patch_size,
                max_tiles=assumed.integer("max_tiles", kind.max_tiles, most=1000),
                resample=kind.resample,
                mean=kind.mean,
                std=kind.std,
                stitching=assumed.choice("stitching", CHOICES["stitching"], "trim"),
                padding=assumed.choice("padding", CHOICES["padding"], "edge"),
                thumbnail=assumed.boolean("thumbnail", True),
            ),
            prompt=PromptConfig(
                system=assumed.text("system", PromptConfig.system),
                slice_markers=assumed.pair("slice_markers"),
            ),
            source=source,
        )

    def to_dict(self) -> dict[str, Any]:
        """The published form again, keys of the file that are not ours included."""
        vision, decoder = self.vision, self.decoder
        published = copy.deepcopy(dict(self.source))
        published |= {
            "model_type": self.model_type,
            "intermediate_size": self.compressor.hidden_width,
            "image_token_num": self.tokens_per_tile,
            "assumptions": {
                name: getattr(getattr(self, part), name) for name, part in ASSUMPTIONS.items()
            },
        }
        eps_name = "rms_norm_eps" if vision.architecture == "aimv2" else "layer_norm_eps"
        tower = published.setdefault("vision_config", {})
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
            resample=from_file.integer("resample", self.tiler.resample, least=0, most=5),
            mean=from_file.channels("image_mean", self.tiler.mean),
            std=from_file.channels("image_std", self.tiler.std, positive=True),
        )
        return dataclasses.replace(self, tiler=tiler)


def _vision(from_file: Reader, kind: Kind, assumed: Reader) -> VisionConfig:
    """Defaults are those of the library classes that write these sections."""
    siglip = kind.architecture == "siglip"
    if siglip and "vision_config" in from_file.values:  # a whole SigLIP config holds the tower's
        from_file = from_file.section("vision_config")
    for key in ("qkv_bias", "use_bias"):
        from_file.must_be(key, siglip or False, "biases are as in the published tower")
    vision = VisionConfig(
        architecture=kind.architecture,
        width=from_file.integer("hidden_size", 768 if siglip else 1024),
        mlp_width=from_file.integer("intermediate_size", 3072 if siglip else 2816),
        layers=from_file.integer("num_hidden_layers", 12 if siglip else 24, most=1000),
        heads=from_file.integer("num_attention_heads", 12 if siglip else 8),
        image_size=from_file.integer("image_size", 224, most=10_000),
        patch_size=from_file.integer("patch_size", 16 if siglip else 14, most=10_000),
        eps=from_file.number(*(("layer_norm_eps", 1e-6) if siglip else ("rms_norm_eps", 1e-5))),
        channels=from_file.integer("num_channels", 3, least=3, most=3),
        pooling_head=siglip and from_file.boolean("vision_use_head", True),
        feature_layer=assumed.integer("feature_layer", -1, least=-1, most=1000),
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


def _reduction(from_file: Reader, vision: VisionConfig, kind: Kind) -> tuple[int, int]:
    """(margin in patches, shuffle factor): what turns the tower's patches into the tokens."""
    default = vision.side - 2 * (vision.side // 8) if kind.stitched else vision.side // 2
    tokens = from_file.integer("image_token_num", default**2 or None)
    side = math.isqrt(tokens)
    if side**2 == tokens and side <= vision.side:
        if kind.stitched and (vision.side - side) % 2 == 0:
            return (vision.side - side) // 2, 1
        shuffle, rest = divmod(vision.side, side)
        if not kind.stitched and rest == 0 and vision.width * shuffle**2 <= MOST:
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
        layers=from_file.integer("num_hidden_layers", 32, most=1000),
        heads=heads,
        key_value_heads=from_file.integer("num_key_value_heads", heads),
        head_width=from_file.integer("head_dim", max(width // heads, 1), most=10_000),
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
