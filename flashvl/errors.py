"""Errors that tell a person what is wrong, what was found and what to do."""

MAX_LENGTH = 300  # characters of an error


class FlashVLError(Exception):
    """Base of every error that flashvl raises on purpose; its text is one short line.

    A file's name, a tensor's name or another library's words may stand in it: line breaks become
    spaces, and what could command a terminal is shown as an escape such as \\x1b.
    """

    def __init__(self, message: str) -> None:
        super().__init__(shortened(printable(message), MAX_LENGTH))


def printable(text: str) -> str:
    """A text in one line without control characters."""
    text = " ".join(text.splitlines())
    return "".join(
        letter
        if letter.isprintable()
        else letter.encode("unicode_escape", "surrogatepass").decode("ascii")
        for letter in text
    )


def shortened(text: str, length: int) -> str:
    """A text with its middle left out if it is longer; its end often says what to do."""
    if len(text) <= length:
        return text
    end = length // 3
    return f"{text[: length - end - 5]} ... {text[-end:]}"


class ImageError(FlashVLError):
    """The picture cannot be read or used."""


class MessageError(FlashVLError):
    """The messages are not a conversation that the model can answer."""


class ArgumentError(FlashVLError):
    """An argument has a value that makes no sense."""


class TableError(FlashVLError):
    """A table of questions or answers, or a row of it, cannot be read or used."""


class DataError(FlashVLError):
    """A file of samples, or one of them, cannot be learned from."""


class ConfigError(FlashVLError):
    """A config file cannot be read, or says something that this code does not build."""


class CheckpointError(FlashVLError):
    """Weights or tokenizer files are missing, damaged or do not fit the config."""


class DownloadError(FlashVLError):
    """The hub cannot be reached, or does not have what was asked for."""


class DeviceError(FlashVLError):
    """The device is not there, its memory does not suffice, or nothing compiles for it."""
