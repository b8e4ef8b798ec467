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
LOCK = ".flashvl-lock"  # a file in a folder that cannot be locked itself


def is_there(file: str | os.PathLike[str]) -> bool:
    """Whether something has this name, be it a link to nothing.

    Also true if that cannot be found out: opening it then says why.
    """
    try:
        os.lstat(file)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no name of a file
        return False
    except OSError:
        return True
    return True


def open_regular(file: str | os.PathLike[str]) -> BinaryIO:
    """A regular file, opened for reading.

    A pipe would wait for ever, and a device may have no end. Raises `OSError` for these and for
    all that cannot be opened.
    """
    return os.fdopen(_open_regular(file, os.O_RDONLY), "rb")


def read_bounded(file: str | os.PathLike[str], max_bytes: int) -> bytes:
    """The contents of a regular file. Raises `OSError`, also if they are more than `max_bytes`."""
    with open_regular(file) as opened:
        contents = opened.read(max_bytes + 1) or b""  # None where the system has none to give yet
    if len(contents) > max_bytes:
        raise OSError(f"it is larger than {max_bytes / MEBIBYTE:g} MiB")
    return contents


def write_new(file: Path, contents: bytes) -> None:
    """A new file, all of it or nothing. Raises `FileExistsError` rather than replace one."""

    _write_beside(file, contents, lambda written: place_new(written, file))


def place_new(written: Path, file: Path) -> None:
    """Gives a written file of the same file system another name; the old one may stay beside it.

    Raises `FileExistsError` rather than replace anything, a link to nothing included.
    """
    try:
        os.link(written, file)  # unlike a rename it never replaces
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        file.open("xb").close()
        try:
            os.replace(written, file)
        except BaseException:
            file.unlink()
            raise


def replace(file: Path, contents: bytes, passing: Path | None = None) -> None:
    """A file, new or in the place of the one before, all of it or nothing. Raises `OSError`.

    `passing` is where it is written first, if this process alone writes there: kills then leave
    one such file at most.
    """
    _write_beside(file, contents, lambda written: os.replace(written, file), passing)


def append(file: Path, contents: bytes) -> None:
    """Adds to a regular file, new or there already, all of it or nothing. Raises `OSError`."""
    descriptor = _open_regular(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        size = os.fstat(descriptor).st_size
        left = memoryview(contents)
        try:
            while left:
                left = left[os.write(descriptor, left) :]
        except BaseException:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps a folder for this process while the context lasts; the lock ends with the process.

    Raises `BlockingIOError` if it is held already, here or by another process.
    """
    descriptor = _lock(folder)
    _locks.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _locks:  # not in a process that was forked meanwhile
            _locks.remove(descriptor)
            os.close(descriptor)


def _lock(folder: Path) -> int:
    """-> what to close so that the lock ends."""
    if sys.platform == "win32":  # where a folder itself cannot be locked
        import msvcrt

        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            os.close(descriptor)
            raise BlockingIOError(str(error)) from error
        return descriptor
    import fcntl

    def locked(descriptor: int) -> int:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    itself = os.open(folder, os.O_RDONLY)
    try:
        return locked(itself)
    except BlockingIOError:
        raise
    except OSError:  # NFS locks only what is open for writing
        return locked(os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666))


def _leave_locks_to_the_parent() -> None:
    """A forked process that outlives its parent must not keep the parent's locks."""
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()


_locks: set[int] = set()  # descriptors
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_locks_to_the_parent)


def _open_regular(file: str | os.PathLike[str], flags: int) -> int:
    """-> its descriptor."""
    flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(file, flags, 0o666)
    except ValueError as error:
        raise OSError("no file can be called so") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("it is a folder, a pipe or a device, not a file")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _write_beside(
    file: Path, contents: bytes, place: Callable[[Path], None], written: Path | None = None
) -> None:
    """Writes a file of a passing name in the same folder, puts it in place, and cleans up."""
    if written is None:
        written = file.parent / f".flashvl-{secrets.token_hex(8)}"
    else:
        written.unlink(missing_ok=True)
    try:
        with written.open("xb") as opened:
            opened.write(contents)
            opened.flush()
            os.fsync(opened.fileno())
        place(written)
    finally:
        with suppress(FileNotFoundError):
            written.unlink()
