"""A file that a tool writes: it must be new, so that nothing a user has is ever replaced."""

from __future__ import annotations

from pathlib import Path

from .. import storage
from ..errors import ArgumentError
from ..reading import one_line


def check_new(file: Path, option: str) -> None:
    """Raises `ArgumentError` unless `file`, given as `option`, is new and can be made."""
    try:
        there, folder = file.exists(), file.parent.is_dir()
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{option} {file} cannot be a file: {one_line(error)}") from error
    if there:
        raise ArgumentError(_taken(file, option))
    if not folder:
        raise ArgumentError(f"there is no folder {file.parent}; make it first")


def write_new(file: Path, option: str, content: bytes) -> None:
    """A new file, whole. Raises `ArgumentError` if there is one by now, or it cannot be written."""
    try:
        storage.write_new(file, content)
    except FileExistsError as error:
        raise ArgumentError(_taken(file, option)) from error
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{file} cannot be written: {one_line(error)}") from error


def _taken(file: Path, option: str) -> str:
    return f"{file} is there already; give another {option}, or remove it first"
