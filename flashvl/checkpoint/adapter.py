"""Adapters as files, in the form of the library PEFT: LoRA's matrices under published names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from ..errors import ArgumentError, CheckpointError, shortened
from ..model.lora import adaptable, loras, put_beside
from ..model.network import FlashVLModel
from ..reading import MAX_CONFIG_BYTES, Reader, one_line, read_json, shown
from ..storage import is_there, replace, write_new
from .files import MAX_NAME, STORED_DTYPES, open_safetensors
from .tensor_names import our_name, published_name

TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
LAYER = re.compile(r"(?<=\.)\d+(?=\\\.)")  # a layer's number in a name that is escaped
# Whole published names of the maps beside which new adapters stand: all of the decoder's layers.
DECODER_LAYERS = r"llm\.model\.layers\..*"
# What PEFT can do beyond plain LoRA, and what it is when it is not done.
PLAIN = {
    "peft_type": "LORA",
    "bias": "none",
    "use_dora": False,
    "use_rslora": False,
    "fan_in_fan_out": False,
    "lora_bias": False,
    "modules_to_save": [],
    "rank_pattern": {},
    "alpha_pattern": {},
}


@dataclass(frozen=True)
class Adapter:
    """LoRA's matrices a (rank, D) and b (width, rank), by our name of the map beside them."""

    alpha: float
    matrices: dict[str, tuple[Tensor, Tensor]]


def matching(model: FlashVLModel, pattern: str) -> list[str]:
    """Our names of the linear maps whose whole published name fits a regular expression.

    Raises `ArgumentError` if it is none, or fits none.
    """
    try:
        fits = re.compile(pattern).fullmatch
    except (re.error, RecursionError, OverflowError) as error:
        raise ArgumentError(
            f"{shown(pattern)} is not a regular expression: {one_line(error)}"
        ) from error
    names = [name for name in adaptable(model) if fits(_published(model, name))]
    if not names:
        raise ArgumentError(
            f"no linear map of the model has a name that fits {shown(pattern)}; names are such as "
            "llm.model.layers.0.self_attn.q_proj"
        )
    return names


def read_adapter(folder: Path, model: FlashVLModel) -> Adapter:
    """An adapter for this model, which may be on the meta device, held against it.

    Raises `CheckpointError` or `ConfigError`.
    """
    if not is_there(folder / CONFIG):
        raise CheckpointError(f"{folder} has no {CONFIG}; it is not an adapter's folder")
    config = Reader(read_json(folder / CONFIG, max_bytes=MAX_CONFIG_BYTES), CONFIG)
    for key, plain in PLAIN.items():
        config.must_be(key, plain, "only plain LoRA is built")
    rank = config.integer("r", 8, maximum=100_000)
    alpha = config.number("lora_alpha", 8.0)
    linears = adaptable(model)
    parts: dict[str, dict[str, Tensor]] = {}
    with open_safetensors(folder / TENSORS) as opened:
        for stored in opened.keys():
            found = NAME.fullmatch(stored)
            vision = model.config.vision
            name = found and our_name(found[1], vision.architecture, vision.tensor_prefix)
            if found is None or name not in linears:
                raise CheckpointError(
                    f"{TENSORS}: {shortened(stored, MAX_NAME)} stands beside no linear map of this "
                    "model; take the model that the adapter was trained on"
                )
            width, inputs = linears[name].weight.shape
            wanted = (rank, inputs) if found[2] == "A" else (width, rank)
            part = opened.get_slice(stored)
            if tuple(part.get_shape()) != wanted or part.get_dtype() not in STORED_DTYPES:
                raise CheckpointError(
                    f"{TENSORS}: {shortened(stored, MAX_NAME)} is {part.get_dtype()} of shape "
                    f"{shown(tuple(part.get_shape()))}, the model and rank {rank} need {wanted}"
                )
            parts.setdefault(name, {})[found[2]] = opened.get_tensor(stored).float()
    half = [name for name, both in parts.items() if len(both) < 2]
    if half or not parts:
        what = f"half of the matrices of {_published(model, half[0])}" if half else "no matrices"
        raise CheckpointError(f"{folder / TENSORS} is damaged: it has {what}")
    return Adapter(alpha, {name: (both["A"], both["B"]) for name, both in parts.items()})


def attach(model: FlashVLModel, adapter: Adapter) -> None:
    """Puts an adapter beside the maps of its model, whatever their weights have become."""
    for name, (a, b) in adapter.matrices.items():
        put_beside(model, name, a.to(model.device), b.to(model.device), adapter.alpha)


def save_adapter(model: FlashVLModel, folder: Path, base: str, overwrite: bool = False) -> None:
    """Writes the LoRAs of a model; `base` is the name of the model that they were trained on.

    Raises `CheckpointError` if there are none, the folder cannot be written, or it holds an
    adapter and `overwrite` is false.
    """
    found = dict(loras(model))
    if not found:
        raise CheckpointError("the model has no adapter that could be saved")
    one = next(iter(found.values()))
    config = PLAIN | {
        "r": len(one.a),
        "lora_alpha": one.alpha,
        "lora_dropout": 0.0,
        "target_modules": _pattern_of(
            [_published(model, name) for name in found],
            [_published(model, name) for name in (*found, *adaptable(model))],
        ),
        "base_model_name_or_path": base,
        "task_type": None,  # any module that has the names will do
        "inference_mode": True,
    }
    tensors = {
        f"base_model.model.{_published(model, name)}.lora_{letter}.weight": matrix
        for name, lora in found.items()
        for letter, matrix in (("A", lora.a.detach().cpu()), ("B", lora.b.detach().cpu()))
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, contents in (
            (TENSORS, save(tensors, {"format": "pt"})),
            (CONFIG, f"{json.dumps(config, indent=2)}\n".encode()),
        ):
            (replace if overwrite else write_new)(folder / name, contents)
    except FileExistsError as error:
        raise CheckpointError(
            f"{folder} holds an adapter already; choose another folder"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {one_line(error)}") from error


def _published(model: FlashVLModel, name: str) -> str:
    vision = model.config.vision
    return published_name(name, vision.architecture, vision.tensor_prefix)


def _pattern_of(names: Iterable[str], known: Iterable[str]) -> str:
    """A regular expression that fits these of the known names whole, and no other."""
    names = set(names)
    short = "|".join(sorted({LAYER.sub(r"\\d+", re.escape(name)) for name in names}))
    if {name for name in known if re.fullmatch(short, name)} == names:
        return short
    return "|".join(map(re.escape, sorted(names)))
