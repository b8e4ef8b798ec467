"""Writes a model as a folder in the published layout."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from safetensors import SafetensorError

from ..errors import CheckpointError
from ..input.tokenizer import Tokenizer
from ..model.network import FlashVLModel
from .files import INDEX, SINGLE
from .published import preprocessor
from .tensor_names import published_name

# The published files are cut at this size.
SHARD_SIZE = "5GB"
# Files that this code does not need in full, but that other loaders read.
COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
WRITTEN = ("config.json", "preprocessor_config.json", "tokenizer.json", SINGLE, INDEX, *COMPANIONS)
TOKENIZER_CONFIG = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"}


def save_checkpoint(
    model: FlashVLModel,
    folder: Path,
    overwrite: bool = False,
    *,
    tokenizer: Tokenizer | None = None,
    stop_ids: Collection[int] = (),
    origin: Path | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Config, tensors, tokenizer, preprocessor and generation config into `folder`.

    The small files of `origin`, the folder that the model came from, are copied as they are.
    `dtype` None saves each tensor in its own. Each file appears whole or not at all. Raises
    `CheckpointError` if `folder` holds a model already and `overwrite` is false, or if `folder`
    cannot be written.
    """
    present = [name for name in WRITTEN if (folder / name).exists()]
    if present and not overwrite:
        raise CheckpointError(
            f"{folder} holds a model already ({present[0]}); pass overwrite=True to replace it"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as beside:
            written = Path(beside)
            _write_model(model, written, dtype)
            if tokenizer is not None:
                tokenizer.save(written / "tokenizer.json")
                _write_json(written / "tokenizer_config.json", TOKENIZER_CONFIG)
            if stop_ids:
                stated = {"eos_token_id": sorted(stop_ids)}
                _write_json(written / "generation_config.json", stated)
            for name in COMPANIONS:
                if origin is not None and (origin / name).exists():
                    shutil.copyfile(origin / name, written / name)
            _move_into(folder, written)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be written: {error}") from error


def _write_model(model: FlashVLModel, folder: Path, dtype: torch.dtype | None) -> None:
    """Tensors and configs."""
    huggingface_hub.save_torch_state_dict(
        published_state(model, dtype), folder, max_shard_size=SHARD_SIZE
    )
    stated = {"torch_dtype": str(dtype or model.dtype).removeprefix("torch.")}
    _write_json(folder / "config.json", model.config.to_dict() | stated)
    _write_json(folder / "preprocessor_config.json", preprocessor(model.config))
    for file in folder.glob("*.safetensors"):
        shutil.copymode(folder / "config.json", file)  # the library lets the owner alone read


def _move_into(folder: Path, written: Path) -> None:
    """Replaces files of the folder by those written, and removes weights of the model before."""
    names = {file.name for file in written.iterdir()}
    for name in names:
        os.replace(written / name, folder / name)
    for stale in (SINGLE, INDEX, "model-?????-of-?????.safetensors"):
        for file in folder.glob(stale):
            if file.name not in names:
                file.unlink()


def published_state(
    model: FlashVLModel, dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """Published tensor name -> tensor, in the files' order; a tied head is left out."""
    vision = model.config.vision
    return {
        published_name(name, vision.architecture, vision.tensor_prefix): parameter.detach().to(
            dtype=dtype
        )
        for part in ("vision", "decoder", "compressor")
        for name, parameter in model.named_parameters()
        if name.startswith(f"{part}.")
    }


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
