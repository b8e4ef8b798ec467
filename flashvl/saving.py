"""Writes a model as a folder in the published layout."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from safetensors import SafetensorError
from torch import nn

from .checkpoint import INDEX, SINGLE
from .config import FlashVLConfig
from .cpu import is_widened
from .errors import CheckpointError
from .names import published_name
from .quantising import is_quantised

# The published files are cut at this size.
SHARD_SIZE = "5GB"
# Files that this code does not need in full, but that other loaders read.
COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
WRITTEN = ("config.json", "preprocessor_config.json", "tokenizer.json", SINGLE, INDEX, *COMPANIONS)
TOKENIZER_CONFIG = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"}


def save_checkpoint(model: nn.Module, folder: Path, overwrite: bool) -> None:
    """A `FlashVL`'s config, tensors, tokenizer, preprocessor and generation config into `folder`.

    The small files of the folder that the model came from are copied as they are. Each file
    appears whole or not at all. Raises `CheckpointError` if `folder` holds a model already and
    `overwrite` is false, or if `folder` cannot be written.
    """
    if is_quantised(model):
        raise CheckpointError("a model with int8 weights is not saved; load it without quantize")
    present = [name for name in WRITTEN if (folder / name).exists()]
    if present and not overwrite:
        raise CheckpointError(
            f"{folder} holds a model already ({present[0]}); pass overwrite=True to replace it"
        )
    try:
        _write_folder(model, folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be written: {error}") from error


def _write_folder(model: nn.Module, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
        written = Path(temporary)
        huggingface_hub.save_torch_state_dict(
            published_state(model, model.config), written, max_shard_size=SHARD_SIZE
        )
        dtype = str(model.dtype).removeprefix("torch.")
        _write_json(written / "config.json", model.config.to_dict() | {"torch_dtype": dtype})
        _write_json(written / "preprocessor_config.json", preprocessor(model.config))
        if model.tokenizer is not None:
            model.tokenizer.save(written / "tokenizer.json")
            _write_json(written / "tokenizer_config.json", TOKENIZER_CONFIG)
        if model.stop_ids:
            stop_ids = {"eos_token_id": sorted(model.stop_ids)}
            _write_json(written / "generation_config.json", stop_ids)
        for name in COMPANIONS:
            if model.folder is not None and (model.folder / name).exists():
                shutil.copyfile(model.folder / name, written / name)
        for file in written.glob("*.safetensors"):
            shutil.copymode(written / "config.json", file)  # the library lets the owner alone read
        names = {file.name for file in written.iterdir()}
        for name in names:
            os.replace(written / name, folder / name)
    for stale in (SINGLE, INDEX, "model-?????-of-?????.safetensors"):
        for file in folder.glob(stale):
            if file.name not in names:
                file.unlink()


def published_state(model: nn.Module, config: FlashVLConfig) -> dict[str, torch.Tensor]:
    """Published tensor name -> tensor, in the files' order; a tied head is left out."""
    architecture, prefix = config.vision.architecture, config.vision.tensor_prefix
    dtype = model.dtype if is_widened(model) else None
    return {
        published_name(name, architecture, prefix): parameter.detach().to(dtype=dtype)
        for part in ("vision", "decoder", "compressor")
        for name, parameter in model.named_parameters()
        if name.startswith(f"{part}.")
    }


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


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
