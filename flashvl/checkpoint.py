"""Checkpoints in the published layout: config and tensors in, the same out.

Only safetensors is opened. Headers are read first and held against the config, so that every
missing, extra or misshapen tensor is named before a byte of weights is touched; then each tensor
is mapped from the file, not copied, unless another dtype or device is asked for.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .config import FlashVLConfig
from .errors import CheckpointError, ConfigError
from .json_reader import copy_of, shown
from .names import our_name, published_name
from .tokenizer import Tokenizer

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
DTYPES = ("F32", "BF16", "F16")
POSITIONS_AND_PATCHES = {
    "preprocessor.pos_embed": "preprocessor.patchifier.proj.weight",
    "embeddings.position_embedding.weight": "embeddings.patch_embedding.weight",
}
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class TensorHeader:
    """What a file's header says of one tensor; `dtype` in safetensors' words, such as BF16."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


Headers = dict[str, TensorHeader]  # by published name


def read_config(
    folder: Path, headers: Headers, assumptions: Mapping[str, Any] | None = None
) -> FlashVLConfig:
    """The folder's config; what the tensors say replaces what config.json says.

    `assumptions` override both. Raises `ConfigError`.
    """
    published = fit_to_tensors(read_json(folder / "config.json"), headers)
    if assumptions and isinstance(published["assumptions"], dict):
        published["assumptions"] = published["assumptions"] | dict(assumptions)
    config = FlashVLConfig.from_dict(published)
    preprocessor = folder / "preprocessor_config.json"
    return config.with_preprocessor(read_json(preprocessor)) if preprocessor.exists() else config


def fit_to_tensors(published: Mapping[str, Any], headers: Headers) -> dict[str, Any]:
    """A config.json's content with the facts that the tensors settle.

    They are the patch size and grid, the compressor's widths, whether the head is tied, whether
    there is a pooling head, and what stands before the tower's names.
    """
    published = copy_of(published, "config.json")
    vision, decoder = published.get("vision_config"), published.get("llm_config")
    stated = published.get("assumptions")
    assumed = published["assumptions"] = {} if stated is None else stated
    if not all(isinstance(part, dict) for part in (vision, decoder, assumed)):
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


def tensor_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, from its index if it has one.

    Raises `CheckpointError`: none there, pickle files instead, a shard missing, or an index that
    names a file outside the folder.
    """
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    if (folder / INDEX).exists():
        return [_shard(folder, name) for name in sorted(set(read_weight_map(folder).values()))]
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder} has only pickle files ({pickles[0]}); they can run code and are never "
            "opened, convert them to safetensors first"
        )
    raise CheckpointError(f"{folder} has no weights: neither {SINGLE} nor {INDEX}")


def read_weight_map(folder: Path) -> dict[str, str]:
    """The index's map of tensor name to file name. Raises `CheckpointError`."""
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) for name in weight_map.values()
    ):
        raise CheckpointError(f'{folder / INDEX} has no "weight_map" of tensor names to files')
    return weight_map


def _shard(folder: Path, name: str) -> Path:
    if PurePosixPath(name).name != name or PureWindowsPath(name).name != name:
        raise CheckpointError(f"{INDEX} names the file {name!r}, which lies outside its folder")
    if not name.endswith(".safetensors"):
        raise CheckpointError(f"{INDEX} names {name!r}; only .safetensors files are opened")
    if not os.path.isfile(folder / name):  # False for a name that cannot be one
        raise CheckpointError(
            f"the shard {name} is missing in {folder}; download the model again, it resumes"
        )
    return folder / name


def read_headers(folder: Path) -> Headers:
    """Every tensor's header, no weights. Raises `CheckpointError`."""
    headers: Headers = {}
    for file in tensor_files(folder):
        with open_safetensors(file) as tensors:
            for name in tensors.keys():
                if name in headers:
                    raise CheckpointError(
                        f"{name} stands in {headers[name].file.name} and {file.name}"
                    )
                part = tensors.get_slice(name)
                headers[name] = TensorHeader(file, part.get_dtype(), tuple(part.get_shape()))
    if not (folder / SINGLE).exists():
        _check_index(read_weight_map(folder), headers)
    return headers


def _check_index(weight_map: dict[str, str], headers: Headers) -> None:
    for name, file in weight_map.items():
        if name not in headers or headers[name].file.name != file:
            raise CheckpointError(f"{INDEX} says that {name} is in {file}, but it is not")


@contextmanager
def open_safetensors(file: Path) -> Iterator[safe_open]:
    """A safetensors file, mapped into memory. Raises `CheckpointError` if it is damaged."""
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{file.name} is damaged or cut short ({' '.join(str(error).split())}); "
            "download or copy it again"
        ) from error


def check_tensors(model: nn.Module, config: FlashVLConfig, headers: Headers) -> None:
    """Holds the headers against a model on the meta device.

    Raises `CheckpointError` that names every kind of misfit: missing, extra, misshapen, or of a
    dtype that is no floating-point number.
    """
    wanted = {name: tuple(shape) for name, shape in published_shapes(model, config).items()}
    problems = [f"{name} is missing" for name in wanted if name not in headers]
    for name, header in headers.items():
        if name not in wanted:
            problems.append(f"{name} is not a part of this model")
        elif header.shape != wanted[name]:
            problems.append(f"{name} has shape {header.shape}, the config needs {wanted[name]}")
        elif header.dtype not in DTYPES:
            problems.append(f"{name} has dtype {header.dtype}, wanted: {', '.join(DTYPES)}")
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(
            "the tensors do not fit the config: " + "; ".join(problems[:5]) + more
        )


def published_shapes(model: nn.Module, config: FlashVLConfig) -> dict[str, torch.Size]:
    """Published tensor name -> shape, of all that a model stores; a tied head is stored once."""
    vision = config.vision
    return {
        published_name(name, vision.architecture, vision.tensor_prefix): parameter.shape
        for name, parameter in model.named_parameters()
    }


def load_tensors(
    model: nn.Module,
    config: FlashVLConfig,
    headers: Headers,
    device: torch.device,
    dtype: torch.dtype | None,
) -> None:
    """Gives a model on the meta device its weights, one tensor at a time.

    With `dtype` None (as stored) on the CPU every tensor is a view of the mapped file. Otherwise
    the file is mapped anew for each, so that no more than one tensor is in memory twice.
    """
    stays = device.type == "cpu" and dtype is None
    with ExitStack() as opened:
        files = {
            file: opened.enter_context(open_safetensors(file))
            for file in {header.file for header in headers.values()}
            if stays
        }
        for name, header in headers.items():
            if stays:
                tensor = files[header.file].get_tensor(name)
            else:
                with open_safetensors(header.file) as file:
                    tensor = file.get_tensor(name).to(device, dtype)
            _assign(
                model,
                our_name(name, config.vision.architecture, config.vision.tensor_prefix),
                tensor,
            )
    if config.decoder.tied_head:
        model.decoder.head.weight = model.decoder.embedding.weight


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    module, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(module), attribute, nn.Parameter(tensor))


def read_stop_ids(folder: Path, tokenizer: Tokenizer) -> frozenset[int]:
    """The ids that end an answer: generation_config.json's, else ChatML's end and end of text.

    Raises `ConfigError`.
    """
    file = folder / "generation_config.json"
    stated = read_json(file).get("eos_token_id") if file.exists() else None
    if stated is None:
        control = tokenizer.control
        return frozenset(
            control[token] for token in ("<|im_end|>", "<|endoftext|>") if token in control
        )
    stop_ids = stated if isinstance(stated, list) else [stated]
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in stop_ids):
        raise ConfigError(f'"eos_token_id" of {file} must be ids, found {shown(stated)}')
    return frozenset(stop_ids)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises `ConfigError`."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{file.parent} has no {file.name}; it is not a model's folder"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not valid JSON: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file} must hold a JSON object")
    return content
