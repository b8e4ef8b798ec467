"""The files of a checkpoint's folder, and what their headers say; no weights are read here.

Only safetensors is opened. This module does without torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError, shortened
from ..reading import MAX_CONFIG_BYTES, one_line, read_json, shown
from ..storage import MEBIBYTE, is_there, open_regular

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
# Of what a safetensors file says of its tensors; the largest published one has 0.1 MiB.
MAX_HEADER_BYTES = 8 * MEBIBYTE
MAX_NAME = 80  # characters of a tensor's or a file's name in an error
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
    if is_there(folder / SINGLE):
        return [folder / SINGLE]
    if is_there(folder / INDEX):
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
    content = read_json(folder / INDEX, CheckpointError, MAX_CONFIG_BYTES)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) for name in weight_map.values()
    ):
        raise CheckpointError(f'{folder / INDEX} has no "weight_map" of tensor names to files')
    return weight_map


def _shard(folder: Path, name: str) -> Path:
    if not is_plain(name):
        raise CheckpointError(
            f"{INDEX} names the file {shown(name)}, which lies outside its folder"
        )
    if not name.endswith(".safetensors"):
        raise CheckpointError(f"{INDEX} names {shown(name)}; only .safetensors files are opened")
    if not is_there(folder / name):
        raise CheckpointError(
            f"the shard {shortened(name, MAX_NAME)} is missing in {folder}; download the model "
            "again, it resumes"
        )
    return folder / name


def is_plain(name: str) -> bool:
    """Whether a file's name leads nowhere else, on any system."""
    return PurePosixPath(name).name == name and PureWindowsPath(name).name == name


def read_headers(folder: Path) -> Headers:
    """Every tensor's header, no weights. Raises `CheckpointError`."""
    headers: Headers = {}
    for file in tensor_files(folder):
        with open_safetensors(file, framework="numpy") as tensors:
            for name in tensors.keys():
                if name in headers:
                    raise CheckpointError(
                        f"{shortened(name, MAX_NAME)} stands in {shown(headers[name].file.name)} "
                        f"and {shown(file.name)}"
                    )
                part = tensors.get_slice(name)
                headers[name] = TensorHeader(file, part.get_dtype(), tuple(part.get_shape()))
    if not is_there(folder / SINGLE):
        _check_index(read_weight_map(folder), headers)
    return headers


def _check_index(weight_map: dict[str, str], headers: Headers) -> None:
    for name, file in weight_map.items():
        if name not in headers or headers[name].file.name != file:
            raise CheckpointError(
                f"{INDEX} says that {shortened(name, MAX_NAME)} is in {shown(file)}, but it is not"
            )


@contextmanager
def open_safetensors(file: Path, framework: str = "pt") -> Iterator[safe_open]:
    """A safetensors file, mapped into memory. Raises `CheckpointError` if it is damaged.

    Only a regular file is opened, with a header of at most `MAX_HEADER_BYTES`. `framework` is whose
    tensors it gives; "numpy" does not wait for torch.
    """
    try:
        with open_regular(file) as opened:
            header_bytes = int.from_bytes(opened.read(8) or b"", "little")
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {one_line(error)}") from error
    try:
        if header_bytes > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {header_bytes} bytes")
        with safe_open(file, framework=framework) as tensors:
            yield tensors
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{file.name} is damaged or cut short ({one_line(error)}); download or copy it again"
        ) from error
