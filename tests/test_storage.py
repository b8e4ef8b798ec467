"""Locks and files: held by one process, written whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time

import pytest
from disk import holding, is_held

from flashvl.storage import (
    LOCK,
    append,
    held,
    is_there,
    open_regular,
    read_bounded,
    replace,
    write_new,
)

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked")


def test_a_folder_is_held_by_one_process_until_that_ends_or_is_killed(tmp_path):
    with holding(tmp_path) as (process, _):
        assert is_held(tmp_path)
        process.kill()
        process.wait()
        assert not is_held(tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_folder_is_held_once_in_a_process_too(tmp_path):
    with held(tmp_path):
        assert is_held(tmp_path)
    assert not is_held(tmp_path)


def test_a_folder_is_free_after_an_error(tmp_path):
    with pytest.raises(KeyError), held(tmp_path):
        raise KeyError
    assert not is_held(tmp_path)


@needs_fork
def test_a_forked_process_that_outlives_its_killed_parent_holds_nothing(tmp_path):
    with holding(tmp_path, "fork") as (process, child):
        try:
            assert is_held(tmp_path)
            process.kill()
            process.wait()
            os.kill(child, 0)  # it is there
            for _ in range(100):  # it lets go as soon as it runs for the first time
                if not is_held(tmp_path):
                    break
                time.sleep(0.1)
            assert not is_held(tmp_path)
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked")
def test_a_folder_that_cannot_be_locked_is_held_by_a_file(tmp_path, monkeypatch):
    import fcntl

    flock = fcntl.flock

    def as_on_nfs(descriptor: int, operation: int) -> None:
        if os.path.samestat(os.fstat(descriptor), os.stat(tmp_path)):
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", as_on_nfs)
    with held(tmp_path):
        assert is_held(tmp_path)
    assert not is_held(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [LOCK]


def test_what_is_added_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "log"
    append(file, b"one\n")
    append(file, b"two\n")
    assert file.read_bytes() == b"one\ntwo\n"
    write, parts = os.write, iter([3, OSError(errno.ENOSPC, "No space left on device")])

    def full_soon(descriptor: int, contents: memoryview) -> int:
        part = next(parts)
        if isinstance(part, OSError):
            raise part
        return write(descriptor, contents[:part])

    monkeypatch.setattr(os, "write", full_soon)
    with pytest.raises(OSError, match="No space left"):
        append(file, b"three\n")
    assert file.read_bytes() == b"one\ntwo\n"
    parts = iter([1, 2, 3])
    append(file, b"three\n")  # in parts
    assert file.read_bytes() == b"one\ntwo\nthree\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_nothing_is_added_to_what_is_no_file(tmp_path):
    for make in (os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/null", path)):
        make(tmp_path / make.__name__)
        with pytest.raises(OSError):  # noqa: PT011, each system has its own words
            append(tmp_path / make.__name__, b"line\n")


def test_what_a_kill_left_where_a_file_is_written_first_is_replaced(tmp_path):
    file, passing = tmp_path / "file", tmp_path / "file.writing"
    passing.write_bytes(b"half")
    replace(file, b"whole", passing)
    assert file.read_bytes() == b"whole"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_a_name_is_taken_by_whatever_has_it(tmp_path):
    for make in (os.mkdir, lambda path: os.symlink("nowhere", path), lambda path: path.touch()):
        file = tmp_path / str(len(list(tmp_path.iterdir())))
        assert not is_there(file)
        make(file)
        assert is_there(file)
    assert not is_there(tmp_path / "2" / "below a file")
    assert not is_there(tmp_path / "a\0b")
    assert is_there(tmp_path / ("x" * 5000))  # to open it says why not
    with pytest.raises(OSError, match="called so"):
        open_regular(tmp_path / "a\0b")


@pytest.mark.parametrize("links", [True, False])
def test_a_file_gets_a_new_name_or_none(tmp_path, monkeypatch, links):
    if not links:

        def refuse(*_) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    taken = [tmp_path / name for name in ("file", "folder", "link")]
    taken[0].write_bytes(b"mine")
    taken[1].mkdir()
    taken[2].symlink_to("nowhere")
    for place in taken:
        with pytest.raises(FileExistsError):
            write_new(place, b"new")
    assert {file.name for file in tmp_path.iterdir()} == {"file", "folder", "link"}
    assert taken[0].read_bytes() == b"mine"
    assert os.readlink(taken[2]) == "nowhere"
    write_new(tmp_path / "new", b"new")
    assert (tmp_path / "new").read_bytes() == b"new"
    if not links:
        monkeypatch.setattr(os, "replace", refuse)
        with pytest.raises(OSError, match="not permitted"):
            write_new(tmp_path / "newer", b"new")
    assert {file.name for file in tmp_path.iterdir()} == {"file", "folder", "link", "new"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_only_files_are_read_and_up_to_a_bound(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.symlink("/dev/zero", tmp_path / "device")
    for name in ("pipe", "device", "."):
        with pytest.raises(OSError, match="not a file"):
            read_bounded(tmp_path / name, 10)
    (tmp_path / "file").write_bytes(b"x" * 2**20)
    (tmp_path / "link").symlink_to("file")
    assert read_bounded(tmp_path / "link", 2**20) == b"x" * 2**20
    with pytest.raises(OSError, match=r"larger than 0\.5 MiB"):
        read_bounded(tmp_path / "file", 2**19)
