"""Files on disk: opened only if they are files, read up to a bound, written whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

MEBIBYTE = 2**20


def open_regular(file: str | os.PathLike[str]) -> BinaryIO:
    """A regular file, opened for reading.

    A pipe would wait for ever, and a device may have no end. Raises `OSError` for these and for
    all that cannot be opened.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(file, flags)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("it is a folder, a pipe or a device, not a file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bounded(file: str | os.PathLike[str], max_bytes: int) -> bytes:
    """The contents of a regular file. Raises `OSError`, also if they are more than `max_bytes`."""
    with open_regular(file) as opened:
        contents = opened.read(max_bytes + 1)
    if len(contents) > max_bytes:
        raise OSError(f"it is larger than {max_bytes / MEBIBYTE:g} MiB")
    return contents


def write_new(file: Path, contents: bytes) -> None:
    """A new file, all of it or nothing. Raises `FileExistsError` rather than replace one."""

    def place(written: Path) -> None:
        try:
            os.link(written, file)  # unlike a rename it never replaces
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            with file.open("xb") as opened:
                opened.write(contents)

    _write_beside(file, contents, place)


def replace(file: Path, contents: bytes) -> None:
    """A file, new or in the place of the one before, all of it or nothing. Raises `OSError`."""
    _write_beside(file, contents, lambda written: os.replace(written, file))


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps a folder for this process while the context lasts; the lock ends with the process.

    Raises `BlockingIOError` if another process has it.
    """
    if sys.platform == "win32":  # where a folder itself cannot be locked
        import msvcrt

        with (folder / ".flashvl-lock").open("ab") as opened:
            try:
                msvcrt.locking(opened.fileno(), msvcrt.LK_NBLCK, 1)
            except OSError as error:
                raise BlockingIOError(str(error)) from error
            yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _write_beside(file: Path, contents: bytes, place: Callable[[Path], None]) -> None:
    """Writes a file of a passing name in the same folder, puts it in place, and cleans up."""
    written = file.parent / f".flashvl-{secrets.token_hex(8)}"
    try:
        with written.open("xb") as opened:
            opened.write(contents)
            opened.flush()
            os.fsync(opened.fileno())
        place(written)
    finally:
        with suppress(FileNotFoundError):
            written.unlink()
