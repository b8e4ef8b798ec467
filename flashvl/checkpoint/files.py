"""The files of a checkpoint's folder, and what their headers say; no weights are read here.

Only safetensors is opened. This module does without torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError
from ..reading import one_line, read_json

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Bytes of a number, by safetensors' words for the formats that are loaded.
STORED_DTYPES = {"F32": 4, "BF16": 2, "F16": 2}


@dataclass(frozen=True)
class TensorHeader:
    """What a file's header says of one tensor; `dtype` in safetensors' words, such as BF16."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


Headers = dict[str, TensorHeader]  # by published name


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
        with open_safetensors(file, framework="numpy") as tensors:
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
def open_safetensors(file: Path, framework: str = "pt") -> Iterator[safe_open]:
    """A safetensors file, mapped into memory. Raises `CheckpointError` if it is damaged.

    `framework` is whose tensors it gives; "numpy" does not wait for torch.
    """
    try:
        with safe_open(file, framework=framework) as tensors:
            yield tensors
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{file.name} is damaged or cut short ({one_line(error)}); download or copy it again"
        ) from error
