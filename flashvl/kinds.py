"""The three kinds of published model, by the model_type of their config.json."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """What a published model_type says beyond its config.json (reference: the four models)."""

    architecture: str
    max_tiles: int
    stitched: bool  # implicit semantic stitching instead of pixel shuffle
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int


CLIP = dict(
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    resample=3,  # bicubic
)
SIGLIP = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resample=2)  # bilinear
KINDS = {
    "FlashVLDynamicISSConfig": Kind("aimv2", max_tiles=6, stitched=True, **CLIP),
    "FlashVLDynamicConfig": Kind("aimv2", max_tiles=12, stitched=False, **CLIP),
    "FlashVLStaticConfig": Kind("siglip", max_tiles=1, stitched=False, **SIGLIP),
}
