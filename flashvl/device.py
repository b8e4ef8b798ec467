"""Which device and which number format a model is loaded to."""

from __future__ import annotations

import torch

from .errors import ArgumentError, DeviceError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str | torch.device) -> torch.device:
    """ "auto" (CUDA if there is one, else the CPU) or a torch device. Raises `DeviceError`."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except Exception as error:  # RuntimeError, AssertionError, ModuleNotFoundError: as the kind is
        raise DeviceError(
            f"the device {name} is not there; use auto, cpu"
            + (", cuda" if torch.cuda.is_available() else " (no CUDA device was found)")
        ) from error
    if device.type == "meta":
        raise DeviceError("the meta device holds no weights; build FlashVL(config) there instead")
    return device


def choose_dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype | None:
    """ "auto" (as stored, but float32 on the CPU), a name or a torch dtype; None means as stored.

    Large models on the CPU have a way of their own, `cpu.py`. Raises `ArgumentError`.
    """
    if name == "auto":
        return torch.float32 if device.type == "cpu" else None
    dtype = DTYPES.get(name) if isinstance(name, str) else name
    if dtype not in DTYPES.values():
        raise ArgumentError(f"dtype must be auto, {', '.join(DTYPES)}; found {name!r}")
    return dtype
