"""Values from outside: files of JSON, paths, and how a value or an error is shown in one line."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from limits import GIBIBYTE, limited

from flashvl.errors import ArgumentError, CheckpointError, ConfigError
from flashvl.reading import (
    MAX_CONFIG_BYTES,
    MAX_TEXT_BYTES,
    copy_of,
    one_line,
    read_json,
    read_path,
    shown,
)


def test_json_is_read_with_what_is_large_and_odd(tmp_path):
    text = '{"a": [1.5, -0, 1e-999, "\\ud800", {"": null}], "b": ' + "7" * 4000 + "}"
    (tmp_path / "x.json").write_text(text)
    read = read_json(tmp_path / "x.json")
    assert read == {"a": [1.5, 0, 0.0, "\ud800", {"": None}], "b": int("7" * 4000)}


def test_a_file_that_is_not_there_is_told_from_one_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"has no x\.json"):
        read_json(tmp_path / "x.json")
    (tmp_path / "x.json").mkdir()
    with pytest.raises(CheckpointError, match=r"x\.json cannot be read: it is a folder"):
        read_json(tmp_path / "x.json", CheckpointError)


# Bytes of JSON that take the most memory and time, in the place of what is read.
WIDE = "result = len(read_json(Path(file), max_bytes=size)['a'])"
FIRST = "from pathlib import Path\nfrom flashvl.reading import read_json\n"


@pytest.mark.slow
@pytest.mark.parametrize(("size", "gibibytes"), [(MAX_CONFIG_BYTES, 0.25), (MAX_TEXT_BYTES, 1.5)])
@pytest.mark.parametrize("part", ["[]", "[[[[]]]]", "{}", '{"a":{}}', "1.5", '"\xe9"'])
def test_of_the_largest_file_memory_and_time_have_a_bound(tmp_path, size, gibibytes, part):
    file = tmp_path / "x.json"
    count = (size - 8) // (len(part.encode()) + 1)
    file.write_text('{"a":[' + ",".join([part] * count) + "]}", encoding="utf-8")
    outcome = limited(FIRST + WIDE, file=str(file), size=size, seconds=90)
    assert outcome.result == count, outcome
    assert outcome.peak < gibibytes * GIBIBYTE


@pytest.mark.parametrize("path", ["x", "~x/y", "a/b.json", "圖", Path("a") / "b"])
def test_a_path_is_taken_as_it_is(path):
    assert read_path(path, "folder") == Path(path)


def test_the_sign_of_the_home_folder_is_replaced(monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/somebody")
    monkeypatch.setenv("USERPROFILE", "/home/of/somebody")
    for path in ("~/x", Path("~/x")):
        assert read_path(path, "folder") == Path("/home/of/somebody/x")


class Raising:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __fspath__(self):
        raise self.error

    def __repr__(self):
        raise self.error


class OfBytes:
    def __fspath__(self):
        return b"x"


NO_PATHS = [None, 5, True, b"x", ["x"], "", "a\0b", "~\0", "\ud800", 10**5000, OfBytes()]
NO_PATHS += ["folder\udcff"]  # not UTF-8
NO_PATHS += [Raising(ZeroDivisionError()), Raising(ValueError()), Raising(RecursionError())]


@pytest.mark.parametrize("value", NO_PATHS, ids=lambda value: type(value).__name__)
def test_what_is_no_path_is_refused(value):
    for error in (ArgumentError, CheckpointError):
        with pytest.raises(error, match="folder") as refusal:
            read_path(value, "folder", error)
        assert len(str(refusal.value)) < 200
        assert str(refusal.value).isprintable()


def test_a_value_of_any_kind_is_shown_in_sixty_characters():
    endless: list = []
    endless.append(endless)
    values = [
        "x" * 10**6,
        10**5000,
        10**4000,
        endless,
        {"a": endless},
        Raising(KeyError()),
        "\x1b[2J",
    ]
    for value in [*values, [values] * 9, b"\0" * 999, "\ud800\n"]:
        assert len(shown(value)) <= 60
        assert len(shown(value).splitlines()) == 1
    assert (shown("a\nb"), shown(5), shown((1, 2))) == (r"'a\nb'", "5", "(1, 2)")


def test_an_error_is_told_in_one_line():
    with pytest.raises(OSError, match="no/such") as found:
        os.stat("no/such\nfile")
    assert one_line(found.value) == os.strerror(2)
    assert one_line(OSError("it is a folder")) == "it is a folder"
    assert one_line(ValueError("two\nlines")) == "two lines"
    assert one_line(KeyError()) == "KeyError"


def test_what_cannot_be_copied_is_refused():
    endless: dict = {}
    deep: list = []
    for _ in range(10**4):
        deep = [deep]
    for values, words in (
        ({"a": threading.Lock()}, "cannot be copied"),
        ({"a": deep}, "nested too deeply"),
        ({"a": Raising(KeyError()), "b": threading.Lock()}, "cannot be copied"),
    ):
        with pytest.raises(ConfigError, match=words):
            copy_of(values, "config.json")
    endless["a"] = endless
    copied = copy_of(endless, "config.json")
    assert copied["a"]["a"] is not endless
