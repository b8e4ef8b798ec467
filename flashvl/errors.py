"""Errors that tell a person what is wrong, what was found and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class FlashVLError(Exception):
    """Base of every error that flashvl raises on purpose; its text is one line."""

    def __init__(self, message: str) -> None:
        # A file's name or another library's words may have line breaks.
        super().__init__(" ".join(message.splitlines()))


class ImageError(FlashVLError):
    """The picture cannot be read or used."""


class MessageError(FlashVLError):
    """The messages are not a conversation that the model can answer."""


class ArgumentError(FlashVLError):
    """An argument has a value that makes no sense."""


class ConfigError(FlashVLError):
    """A config file cannot be read, or says something that this code does not build."""


class CheckpointError(FlashVLError):
    """Weights or tokenizer files are missing, damaged or do not fit the config."""


class DownloadError(FlashVLError):
    """The hub cannot be reached, or does not have what was asked for."""


class DeviceError(FlashVLError):
    """The device is not there, its memory does not suffice, or nothing compiles for it."""


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
            raise DeviceError(f"torch.compile failed, go without --compile: {reason}") from error
        raise


def _no_memory(what: str) -> str:
    return (
        f"memory ran out while {what}; use a smaller picture or prompt, fewer new tokens, "
        "--dtype bfloat16, or another --device"
    )
