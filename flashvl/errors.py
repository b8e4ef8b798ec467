"""Errors that tell a person what is wrong, what was found and what to do."""


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
