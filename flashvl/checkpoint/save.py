"""Writes a model as a folder in the published layout."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from safetensors import SafetensorError

from ..errors import CheckpointError, FlashVLError
from ..input.tokenizer import Tokenizer
from ..model.network import FlashVLModel
from ..reading import MAX_TEXT_BYTES, one_line
from ..storage import held, is_there, place_new, read_bounded
from .files import INDEX, SINGLE, read_weight_map
from .published import preprocessor
from .tensor_names import published_name

# The published files are cut at this size.
SHARD_SIZE = "5GB"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
# A folder in the model's own, for the time of writing; a save that is killed leaves it behind.
PASSING = ".flashvl-saving-"
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
    `dtype` None saves each tensor in its own. Each file appears whole or not at all. With
    `overwrite` the files of these names are replaced, and weights go that the model in `folder`
    has beside them. Raises `CheckpointError` if `folder` holds any such file and `overwrite` is
    false, if `folder` cannot be written, or if the model is on the meta device.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise CheckpointError("a model on the meta device has no weights that could be saved")
    try:
        if not overwrite:
            _refuse_present(folder, WRITTEN)
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        with (
            tempfile.TemporaryDirectory(dir=folder, prefix=PASSING) as beside,
            ExitStack() as lock,
        ):
            with suppress(OSError):  # where nothing can be locked, leftovers stay
                lock.enter_context(held(Path(beside)))
            written = Path(beside, "model")
            written.mkdir()
            _write_model(model, written, dtype)
            if tokenizer is not None:
                tokenizer.save(written / "tokenizer.json")
                _write_json(written / "tokenizer_config.json", TOKENIZER_CONFIG)
            if stop_ids:
                stated = {"eos_token_id": sorted(stop_ids)}
                _write_json(written / "generation_config.json", stated)
            if origin is not None:
                _copy_companions(origin, written)
            _move_into(folder, written, overwrite)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{folder} cannot be written: {one_line(error)}") from error


def _refuse_present(folder: Path, names: Iterable[str]) -> None:
    """Raises `CheckpointError` if one of the names is taken, be it by a link to nothing."""
    for name in names:
        if is_there(folder / name):
            os.lstat(folder / name)  # says why, if nobody may look
            raise CheckpointError(
                f"{folder} holds a model already ({name}); pass overwrite=True to replace it"
            )


def _remove_leftovers(folder: Path) -> None:
    """Removes what killed saves have left; a save that still runs holds its own."""
    for left in folder.glob(f"{PASSING}????????"):
        with suppress(OSError):
            if not left.is_symlink():
                with held(left):
                    shutil.rmtree(left)


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


def _copy_companions(origin: Path, folder: Path) -> None:
    for name in COMPANIONS:
        if is_there(origin / name):
            try:
                contents = read_bounded(origin / name, MAX_TEXT_BYTES)
            except OSError as error:
                raise CheckpointError(
                    f"{origin / name} cannot be read: {one_line(error)}"
                ) from error
            (folder / name).write_bytes(contents)


def _move_into(folder: Path, written: Path, overwrite: bool) -> None:
    """Puts the written files in place; nothing else is replaced or removed without `overwrite`."""
    names = sorted(file.name for file in written.iterdir())
    if not overwrite:
        _refuse_present(folder, names)
        _place_all(folder, written, names)
        return
    stale = [name for name in _weights_of(folder) if name not in names]
    for name in (*names, *stale):
        if (folder / name).is_dir() and not (folder / name).is_symlink():
            raise CheckpointError(f"{folder / name} is a folder; move it elsewhere first")
    for name in names:
        os.replace(written / name, folder / name)
    for name in stale:
        (folder / name).unlink(missing_ok=True)


def _place_all(folder: Path, written: Path, names: Iterable[str]) -> None:
    """All of the files under new names, or none."""
    placed: list[Path] = []
    try:
        for name in names:
            place_new(written / name, folder / name)
            placed.append(folder / name)
    except BaseException:
        for file in placed:
            file.unlink()
        raise


def _weights_of(folder: Path) -> list[str]:
    """Names of the weights of the model in a folder, those that are there or not."""
    names = [SINGLE, INDEX]
    with suppress(FlashVLError):  # no index, or a damaged one
        names += {name for name in read_weight_map(folder).values() if SHARD.fullmatch(name)}
    return names


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
    try:
        text = json.dumps(content, indent=2, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:  # of a config made in Python
        raise CheckpointError(f"{file.name} cannot be JSON: {one_line(error)}") from error
    file.write_text(f"{text}\n", encoding="utf-8")
