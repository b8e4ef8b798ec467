"""The device that a model runs on, the number format of its weights, and what fails on a device."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from .config import DTYPES
from .errors import ArgumentError, DeviceError
from .reading import shown


def choose_device(name: str | torch.device) -> torch.device:
    """ "auto" (CUDA if there is one, else the CPU) or a torch device. Raises `DeviceError`."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except Exception as error:  # RuntimeError, AssertionError, ModuleNotFoundError: as the kind is
        raise DeviceError(
            f"the device {shown(name)} is not there; use auto, cpu"
            + (", cuda" if torch.cuda.is_available() else " (no CUDA device was found)")
        ) from error
    check_weights(device)
    return device


def check_weights(device: torch.device) -> None:
    """Raises `DeviceError` for the meta device, on which a network computes shapes alone."""
    if device.type == "meta":
        raise DeviceError(
            "the meta device holds no weights; load a model on another device for answers, or "
            "build FlashVLModel(config) there for its shapes"
        )


def choose_dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype | None:
    """ "auto" (as stored, but float32 on a CPU), a name of `DTYPES` or a dtype; None: as stored.

    Large models on a CPU have a way of their own, `fast/cpu.py`. Raises `ArgumentError`.
    """
    if name == "auto":
        return torch.float32 if device.type == "cpu" else None
    dtype = getattr(torch, name) if isinstance(name, str) and name in DTYPES else name
    if not isinstance(dtype, torch.dtype) or str(dtype).removeprefix("torch.") not in DTYPES:
        raise ArgumentError(f"dtype must be auto, {', '.join(DTYPES)}; found {shown(name)}")
    return dtype


@contextmanager
def device_failure_as_error(what: str) -> Iterator[None]:
    """Turns memory that runs out while doing `what`, in all its forms, into a `DeviceError`.

    So too what `torch.compile` raises when it cannot compile.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise DeviceError(_no_memory(what)) from error
    except RuntimeError as error:
        # The CPU allocator reports exhaustion as a plain RuntimeError.
        if "can't allocate memory" in str(error) or "not enough memory" in str(error):
            raise DeviceError(_no_memory(what)) from error
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            reason = " ".join(str(error).split())[:200]
            raise DeviceError(
                f"torch.compile failed, use the model without compiling it: {reason}"
            ) from error
        raise


def _no_memory(what: str) -> str:
    return (
        f"memory ran out while {what}; use a smaller picture or prompt, fewer new tokens, "
        "the dtype bfloat16, or another device"
    )


def peak_bytes(device: torch.device) -> int:
    """The peak of memory so far: of tensors on a CUDA device, else of the process.

    A process's memory includes the parts of mapped files that it has read.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":  # where `getrusage` counts what the process that started it had
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    import resource  # not there on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
