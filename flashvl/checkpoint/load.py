"""Weights out of a checkpoint's files into a network.

Headers are held against the config first, so that every missing, extra or misshapen tensor is named
before a byte of weights is touched; then each tensor is mapped from the file, not copied, unless
another dtype or device is asked for.

A mapped file may be replaced or removed while the model is in use, but not changed in place: what
is written into it may become the model's weights, and where it is cut short the system ends the
process (SIGBUS), which Python cannot catch. `save_pretrained` and downloads only replace files.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, shortened
from ..model.network import FlashVLModel
from ..reading import shown
from .files import MAX_NAME, STORED_DTYPES, Headers, open_safetensors
from .tensor_names import our_name, published_name


def check_tensors(model: FlashVLModel, headers: Headers) -> None:
    """Holds the headers against a model on the meta device.

    Raises `CheckpointError` that names every kind of misfit: missing, extra, misshapen, or of a
    dtype that is no floating-point number.
    """
    wanted = {name: tuple(shape) for name, shape in published_shapes(model).items()}
    problems = [f"{name} is missing" for name in wanted if name not in headers]
    for name, header in headers.items():
        if name not in wanted:
            problems.append(f"{shortened(name, MAX_NAME)} is not a part of this model")
        elif header.shape != wanted[name]:
            shape = shown(header.shape)
            problems.append(f"{name} has shape {shape}, the config needs {wanted[name]}")
        elif header.dtype not in STORED_DTYPES:
            problems.append(f"{name} has dtype {header.dtype}, wanted: {', '.join(STORED_DTYPES)}")
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(
            "the tensors do not fit the config: " + "; ".join(problems[:5]) + more
        )


def published_shapes(model: FlashVLModel) -> dict[str, torch.Size]:
    """Published tensor name -> shape, of all that a model stores; a tied head is stored once."""
    vision = model.config.vision
    return {
        published_name(name, vision.architecture, vision.tensor_prefix): parameter.shape
        for name, parameter in model.named_parameters()
    }


def load_tensors(
    model: FlashVLModel,
    headers: Headers,
    device: torch.device,
    dtype: torch.dtype | None,
) -> None:
    """Gives a model on the meta device its weights, one tensor at a time.

    With `dtype` None (as stored) on the CPU every tensor is a view of the mapped file. Otherwise
    the file is mapped anew for each, so that no more than one tensor is in memory twice.
    """
    vision = model.config.vision
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
            assign(model, our_name(name, vision.architecture, vision.tensor_prefix), tensor)
    if model.config.decoder.tied_head:
        model.decoder.head.weight = model.decoder.embedding.weight


def assign(model: FlashVLModel, name: str, tensor: Tensor) -> None:
    """Gives a model the weight of this name."""
    module, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(module), attribute, nn.Parameter(tensor))
