"""A checkpoint's config as its files say it: config.json, its companions, the tensors' headers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import FlashVLConfig
from ..errors import ConfigError
from ..input.tokenizer import Tokenizer
from ..reading import MAX_CONFIG_BYTES, copy_of, is_integer, read_json, read_path, shown
from ..storage import is_there
from .files import Headers

POSITIONS_AND_PATCHES = {
    "preprocessor.pos_embed": "preprocessor.patchifier.proj.weight",
    "embeddings.position_embedding.weight": "embeddings.patch_embedding.weight",
}


Assumptions = Mapping[str, Any] | str | Path | None  # names and values, or a JSON file of them


def read_assumptions(assumptions: Assumptions) -> Mapping[str, Any]:
    """Values of fields of assumptions.py, out of a JSON file if it is one. Raises `ConfigError`."""
    if assumptions is None or isinstance(assumptions, Mapping):
        return assumptions or {}
    if not isinstance(assumptions, str | Path):
        raise ConfigError(
            "assumptions must be a dict of names and values, or a JSON file of one, found "
            f"{shown(assumptions)}"
        )
    file = read_path(assumptions, "file of assumptions", ConfigError)
    if not is_there(file):
        raise ConfigError(f"there is no file {shown(str(file))}; check the path of the assumptions")
    return read_json(file, max_bytes=MAX_CONFIG_BYTES)


def read_config(folder: Path, headers: Headers, assumptions: Assumptions = None) -> FlashVLConfig:
    """The folder's config; what the tensors say replaces what config.json says.

    `assumptions` override both. Raises `ConfigError`.
    """
    assumptions = read_assumptions(assumptions)
    stated = read_json(folder / "config.json", max_bytes=MAX_CONFIG_BYTES)
    published = fit_to_tensors(stated, headers)
    if assumptions and isinstance(published["assumptions"], dict):
        published["assumptions"] = published["assumptions"] | dict(assumptions)
    config = FlashVLConfig.from_dict(published)
    file = folder / "preprocessor_config.json"
    if not is_there(file):
        return config
    return config.with_preprocessor(read_json(file, max_bytes=MAX_CONFIG_BYTES))


def fit_to_tensors(published: Mapping[str, Any], headers: Headers) -> dict[str, Any]:
    """A config.json's content with the facts that the tensors settle.

    They are the patch size and grid, the compressor's widths, whether the head is tied, whether
    there is a pooling head, and what stands before the tower's names.
    """
    published = copy_of(published, "config.json")
    vision, decoder = published.get("vision_config"), published.get("llm_config")
    stated = published.get("assumptions")
    assumed = published["assumptions"] = {} if stated is None else stated
    if (
        not isinstance(vision, dict)
        or not isinstance(decoder, dict)
        or not isinstance(assumed, dict)
    ):
        return published  # `FlashVLConfig.from_dict` says what is wrong
    if isinstance(vision.get("vision_config"), dict):
        vision = vision["vision_config"]
    decoder["tie_word_embeddings"] = "llm.lm_head.weight" not in headers
    for positions, patches in POSITIONS_AND_PATCHES.items():
        for prefix in [
            name.removesuffix(positions) for name in headers if name.endswith(positions)
        ]:
            position_shape = headers[prefix + positions].shape
            patch_shape = headers[prefix + patches].shape if prefix + patches in headers else ()
            if len(position_shape) < 2 or len(patch_shape) != 4:
                continue
            side, patch = math.isqrt(position_shape[-2]), patch_shape[-1]
            vision |= {"image_size": side * patch, "patch_size": patch}
            if patches.startswith("embeddings."):  # SigLIP's names
                vision["vision_use_head"] = prefix + "head.probe" in headers
            assumed["tensor_prefix"] = prefix
            folded = _width(headers, "adp.p0.0.weight") // max(patch_shape[0], 1)
            if folded > 1:
                published["image_token_num"] = (side // math.isqrt(folded)) ** 2
    hidden_width = _width(headers, "adp.p0.1.weight")
    if hidden_width:
        published["intermediate_size"] = hidden_width
    return published


def _width(headers: Headers, name: str) -> int:
    """Rows of a tensor; 0 if it is not there, which the strict check will say."""
    return headers[name].shape[0] if name in headers and headers[name].shape else 0


def read_stop_ids(folder: Path, tokenizer: Tokenizer) -> frozenset[int]:
    """The ids that end an answer: generation_config.json's, else ChatML's end and end of text.

    Raises `ConfigError`.
    """
    file, stated = folder / "generation_config.json", None
    if is_there(file):
        stated = read_json(file, max_bytes=MAX_CONFIG_BYTES).get("eos_token_id")
    if stated is None:
        control = tokenizer.control
        return frozenset(
            control[token] for token in ("<|im_end|>", "<|endoftext|>") if token in control
        )
    stop_ids = stated if isinstance(stated, list) else [stated]
    if not all(map(is_integer, stop_ids)):
        raise ConfigError(f'"eos_token_id" of {file} must be ids, found {shown(stated)}')
    return frozenset(stop_ids)


def preprocessor(config: FlashVLConfig) -> dict[str, Any]:
    """preprocessor_config.json in CLIP's or SigLIP's form."""
    siglip = config.vision.architecture == "siglip"
    size = config.tiler.tile_size
    return {
        "image_processor_type": "SiglipImageProcessor" if siglip else "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "do_center_crop": False,
        "do_rescale": True,
        "do_normalize": True,
        "size": {"height": size, "width": size},
        "resample": config.tiler.resample,
        "rescale_factor": 1 / 255,
        "image_mean": list(config.tiler.mean),
        "image_std": list(config.tiler.std),
    }
