"""Values from outside, such as a JSON file or an argument: read by type, refused in words."""

from __future__ import annotations

import copy
import json
import math
import os
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from .errors import ArgumentError, ConfigError, FlashVLError
from .storage import MEBIBYTE, read_bounded

# Far above any model, and low enough that a damaged number is an error and not a hang.
MAX_INTEGER = 10_000_000

# Of a file: as lists of lists JSON takes some 40 times its size in memory.
MAX_TEXT_BYTES = 32 * MEBIBYTE  # a tokenizer's; the largest published one has 11
MAX_CONFIG_BYTES = 4 * MEBIBYTE  # another JSON file's; the largest published one has a twentieth

Text = TypeVar("Text", bound=str)

_SHORT = reprlib.Repr()  # shows a few levels and elements of what may be nested without end
_SHORT.maxstring = 60


def read_json(
    file: Path, error: type[FlashVLError] = ConfigError, max_bytes: int = MAX_TEXT_BYTES
) -> dict[str, Any]:
    """The JSON object in a file of at most so many bytes. Raises `error` if there is none.

    What JSON does not have or leaves open, Python's NaN or a key that stands there twice, is
    refused.
    """
    try:
        content = STRICT_JSON.decode(read_bounded(file, max_bytes).decode("utf-8"))
    except FileNotFoundError as cause:
        raise error(f"{file.parent} has no {file.name}; it is not a model's folder") from cause
    except OSError as cause:
        raise error(f"{file} cannot be read: {one_line(cause)}") from cause
    except (ValueError, RecursionError) as cause:
        raise error(f"{file} is not valid JSON: {one_line(cause)}") from cause
    if not isinstance(content, dict):
        raise error(f"{file} must hold a JSON object")
    return content


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {shown(key)} stands there twice")
    return values


def _finite(text: str) -> float:
    """A number, or one of the words NaN, Infinity and -Infinity."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{shown(text)} is not a finite number")
    return number


# Of JSON without what it does not have or leaves open.
STRICT_JSON = json.JSONDecoder(
    object_pairs_hook=_without_repetition, parse_float=_finite, parse_constant=_finite
)


class Reader:
    """A JSON object of the config file `name`. Every method raises `ConfigError`."""

    def __init__(self, values: Any, name: str) -> None:
        if not isinstance(values, Mapping):
            raise ConfigError(f"{name} must be a JSON object, found {shown(values)}")
        self.values = values
        self.name = name

    def section(self, key: str, optional: bool = False) -> Reader:
        values = self.values.get(key)
        if values is None and optional:
            values = {}
        if values is None:
            raise ConfigError(f'{self.name} has no "{key}"')
        return Reader(values, f'"{key}" of {self.name}')

    def only(self, known: Iterable[str]) -> None:
        unknown = [key for key in self.values if key not in known]
        if unknown:
            raise ConfigError(
                f"{self.name} has the unknown key {shown(unknown[0])}; known: {', '.join(known)}"
            )

    def integer(
        self, key: str, default: int | None = None, minimum: int = 1, maximum: int = MAX_INTEGER
    ) -> int:
        value = self._get(key, default)
        if not is_integer(value) or not minimum <= value <= maximum:
            raise self._wrong(key, value, f"a whole number from {minimum} to {maximum}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if not is_number(value) or not 0 < value < 1e12:
            raise self._wrong(key, value, "a number above 0")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        value = self._get(key, default)
        if not isinstance(value, str) or lone_surrogate(value) is not None:
            raise self._wrong(key, value, "a text")
        return value

    def choice(self, key: str, choices: tuple[Text, ...], default: Text | None = None) -> Text:
        value = self._get(key, default)
        if not isinstance(value, str) or value not in choices:
            raise self._wrong(key, value, "one of " + ", ".join(choices))
        return value

    def pair(self, key: str) -> tuple[str, str] | None:
        value = self.values.get(key)
        if value is None:
            return None
        if (
            not isinstance(value, list | tuple)
            or len(value) != 2
            or not all(isinstance(one, str) for one in value)
        ):
            raise self._wrong(key, value, "two texts or null")
        return (value[0], value[1])

    def channels(
        self, key: str, default: tuple[float, ...], positive: bool = False
    ) -> tuple[float, ...]:
        value = self._get(key, default)
        fits = (
            isinstance(value, list | tuple)
            and len(value) == len(default)
            and all(is_number(one) and -1e12 < one < 1e12 for one in value)
        )
        if not fits or (positive and min(value) <= 0):
            kind = "numbers above 0" if positive else "numbers"
            raise self._wrong(key, value, f"{len(default)} {kind}")
        return tuple(map(float, value))

    def must_be(self, key: str, wanted: Any, why: str) -> None:
        """Refuses a published option that this code does not build."""
        if self.values.get(key, wanted) not in (wanted, None):
            raise self._wrong(key, self.values[key], f"{shown(wanted)} ({why})")

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key, default)
        if value is None and default is None:
            raise ConfigError(f'{self.name} has no "{key}"')
        return default if value is None else value

    def _wrong(self, key: str, value: Any, wanted: str) -> ConfigError:
        return ConfigError(f'"{key}" of {self.name} must be {wanted}, found {shown(value)}')


def is_integer(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def copy_of(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A copy that shares nothing. Raises `ConfigError` for what cannot be copied.

    So are values that are nested without end, or a Python object such as a lock.
    """
    try:
        return copy.deepcopy(dict(values))
    except RecursionError as error:
        raise ConfigError(f"{name} is nested too deeply to be a config") from error
    except Exception as error:  # whatever an object raises
        raise ConfigError(f"{name} cannot be copied: {one_line(error)}") from error


def read_path(value: object, what: str, error: type[FlashVLError] = ArgumentError) -> Path:
    """A path that a person gives as text or `Path`, with `~` for the home folder.

    `what` is the argument's name. Raises `error` for what no file can be called, or not in UTF-8.
    """
    try:
        path = os.fspath(value)  # type: ignore[call-overload]
    except Exception as cause:  # not only TypeError: an object may have a method of its own
        raise error(f"{what} must be a text or a path, found {shown(value)}") from cause
    if not isinstance(path, str):
        raise error(f"{what} must be a text or a path, found {shown(path)}")
    if not path or "\0" in path:
        raise error(f"no file can be called {shown(path)}; give another {what}")
    if lone_surrogate(path) is not None:  # the libraries that read the files take no other
        raise error(f"the name {shown(path)} is not in UTF-8; give another {what}")
    return Path(os.path.expanduser(path))


def shown(value: Any) -> str:
    """A value from a file or a person, in at most 60 characters of an error's line."""
    try:
        text = " ".join(_SHORT.repr(value).split())
    except Exception:  # an integer of thousands of digits has none, by Python's own limit
        text = f"a value of the type {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def one_line(error: BaseException) -> str:
    """What an error of another library says, in one line; its kind if it says nothing.

    Of the system's errors without the file, which the caller names.
    """
    said = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return " ".join(said.split()) or type(error).__name__


def lone_surrogate(text: str) -> int | None:
    """Where a text has half a character, which JSON can hold and Unicode cannot; else None."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None
