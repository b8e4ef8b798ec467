"""A damaged folder is one error that names what is wrong; pickles are never opened."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import struct
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch
from folders import (
    INDEX,
    NORM,
    SINGLE,
    edit_json,
    in_shards,
    load,
    no_rights,
    refusal,
    rewrite,
)
from hypothesis import given
from hypothesis import strategies as st
from limits import GIBIBYTE, limited
from safetensors.torch import load_file, save_file
from tiny import mutated, picture, user

from flashvl import FlashVL, FlashVLError
from flashvl.checkpoint.files import MAX_HEADER_BYTES, open_safetensors
from flashvl.errors import ArgumentError, CheckpointError, ConfigError, DeviceError
from flashvl.reading import MAX_CONFIG_BYTES, MAX_TEXT_BYTES


def test_a_truncated_file_is_refused(folder):
    contents = (folder / SINGLE).read_bytes()
    for size in (0, 4, 8, 100, len(contents) // 2, len(contents) - 1):
        (folder / SINGLE).write_bytes(contents[:size])
        assert f"{SINGLE} is damaged or cut short" in refusal(folder)


@pytest.mark.parametrize(
    "header", [b"{", b"[]", b"\xff\xfe", b'{"a": 1}', b'{"a":{"dtype":"F32","shape":[-1]}}']
)
def test_a_corrupt_header_is_refused(folder, header):
    (folder / SINGLE).write_bytes(struct.pack("<Q", len(header)) + header + bytes(100))
    assert "damaged" in refusal(folder)


def test_a_header_that_claims_to_be_huge_is_refused(folder):
    (folder / SINGLE).write_bytes(struct.pack("<Q", 2**62) + b"{}")
    assert "damaged" in refusal(folder)


def test_a_missing_shard_is_named(folder):
    in_shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors is missing" in refusal(folder)


OUTSIDE = ["../x.safetensors", "/etc/x.safetensors", "a/../../x.safetensors", "a/x.safetensors"]
OUTSIDE += ["C:\\x.safetensors", "C:x.safetensors", "\\\\host\\x.safetensors", "..\\x.safetensors"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_that_points_outside_its_folder_is_refused(folder, name):
    weight_map = in_shards(folder)
    shutil.copy(folder / "model-00002-of-00002.safetensors", folder.parent / "x.safetensors")
    weight_map = {n: name if "adp" in n else file for n, file in weight_map.items()}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert "outside" in refusal(folder)


@pytest.mark.parametrize("name", ["x.bin", "config.json", "", ".", "..", "a\0.safetensors"])
def test_an_index_that_names_no_safetensors_file_is_refused(folder, name):
    weight_map = in_shards(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map | {NORM: name}}))
    refusal(folder)


def test_a_file_name_longer_than_the_system_allows_is_refused(folder):
    weight_map = in_shards(folder) | {NORM: "x" * 5000 + ".safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    refusal(folder)


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}']
)
def test_a_damaged_index_is_refused(folder, content):
    in_shards(folder)
    (folder / INDEX).write_text(content)
    assert INDEX in refusal(folder, FlashVLError)


def test_an_index_that_disagrees_with_its_shards_is_refused(folder):
    weight_map = in_shards(folder)
    shards = sorted(set(weight_map.values()))
    for change in ({"new": shards[0]}, {NORM: shards[1]}):
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map | change}))
        assert next(iter(change)) in refusal(folder)


def test_a_tensor_that_stands_in_two_shards_is_refused(folder):
    in_shards(folder)
    second = folder / "model-00002-of-00002.safetensors"
    save_file(load_file(second) | {NORM: torch.ones(16)}, second)
    assert NORM in refusal(folder)


class Trap:
    """Unpickling this creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.pkl"])
def test_pickles_are_never_opened(folder, tmp_path, name):
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    (folder / name).write_bytes(trap)
    load(folder)  # beside good weights it is no matter
    (folder / SINGLE).unlink()
    message = refusal(folder)
    assert name in message
    assert "never opened" in message
    (folder / SINGLE).write_bytes(trap)
    refusal(folder)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(trap)  # the trap is real
    assert (tmp_path / "sprung").exists()


def test_a_folder_without_weights_config_or_tokenizer_is_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no weights" in refusal(tmp_path / "empty")
    (folder / "tokenizer.json").rename(folder / "elsewhere.json")
    assert "tokenizer" in refusal(folder)
    (folder / "elsewhere.json").rename(folder / "tokenizer.json")
    (folder / "config.json").unlink()
    assert "no config.json" in refusal(folder, ConfigError)


SMALL_FILES = ("config.json", "preprocessor_config.json", "generation_config.json")


@pytest.mark.parametrize("name", SMALL_FILES)
@pytest.mark.parametrize(
    "content", ["", "{", "[]", "5", "\ufffe", "[" * 100_000, b"\xff\xff", None]
)
def test_broken_json_is_named(folder, name, content):
    (folder / name).unlink()
    if content is None:
        (folder / name).mkdir()
    else:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert name in refusal(folder, ConfigError)


# Each of the files in turn is replaced by each of these; prints what became of it.
NO_FILES = """
import os
from pathlib import Path
from flashvl.chat import FlashVL
from flashvl.errors import FlashVLError
folder, result = Path(folder), []
for name in names:
    (folder / name).rename(folder / "kept")
    for kind in ("pipe", "link to pipe", "folder", "link to folder", "/dev/zero", "/dev/stdin"):
        file = folder / name if kind in ("pipe", "folder") else folder / "elsewhere"
        if "pipe" in kind:
            os.mkfifo(file)
        elif "folder" in kind:
            file.mkdir()
        if kind.startswith("link"):
            (folder / name).symlink_to(file)
        elif kind.startswith("/"):
            (folder / name).symlink_to(kind)
        try:
            FlashVL.from_pretrained(folder, device="cpu")
            result.append((name, kind, "loaded"))
        except FlashVLError as error:
            result.append((name, kind, str(error)))
        for made in {folder / name, file}:
            if os.path.lexists(made):
                made.rmdir() if made.is_dir() and not made.is_symlink() else made.unlink()
    (folder / "kept").rename(folder / name)
FlashVL.from_pretrained(folder, device="cpu")
"""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes there")
def test_pipes_devices_and_folders_are_refused_at_once(folder):
    """Nothing is waited for that never comes, nothing read that never ends."""
    in_shards(folder)
    names = sorted(file.name for file in folder.iterdir())
    names.remove("tokenizer_config.json")  # which nobody reads beside a tokenizer.json
    assert len(names) == 7
    outcome = limited(NO_FILES, folder=str(folder), names=names, seconds=60, memory=12 * GIBIBYTE)
    assert outcome.kind == "returned", outcome
    assert len(outcome.result) == 6 * len(names)
    for name, kind, message in outcome.result:
        assert name in message, (name, kind, message)
        assert "it is a folder, a pipe or a device, not a file" in message, (name, kind, message)


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        *((name, MAX_CONFIG_BYTES) for name in (*SMALL_FILES, INDEX)),
        ("tokenizer.json", MAX_TEXT_BYTES),
    ],
)
def test_a_file_that_is_too_large_is_refused(folder, name, limit):
    if name == INDEX:
        in_shards(folder)
    contents = (folder / name).read_bytes()
    (folder / name).write_bytes(contents.ljust(limit))
    load(folder)
    (folder / name).write_bytes(contents.ljust(limit + 1))
    message = refusal(folder, FlashVLError)
    assert name in message
    assert f"larger than {limit // 2**20} MiB" in message


def test_a_header_that_is_too_large_is_refused(folder):
    header = (folder / SINGLE).read_bytes()
    size = struct.unpack("<Q", header[:8])[0]
    for padded, refused in ((MAX_HEADER_BYTES, False), (MAX_HEADER_BYTES + 8, True)):
        text = header[8 : 8 + size].ljust(padded)
        (folder / SINGLE).write_bytes(struct.pack("<Q", padded) + text + header[8 + size :])
        if refused:
            assert f"a header of {padded} bytes" in refusal(folder)
        else:
            load(folder)


NO_JSON = ['{"a": NaN}', '{"a": [-Infinity]}', '{"a": 1e999}', '{"a": 1, "a": 1}']
NO_JSON += ['[{"a": {"b": 1, "c": 2, "b": 1}}]', '{"a": {"b": 1, "c": 2, "b": 1}}']
NO_JSON += ['{"a": ' + "9" * 10**5 + "}", '{"a":' * 10**5 + "1" + "}" * 10**5, "\ufeff{}"]
NO_JSON += ["[" * 10**5 + "]" * 10**5, '{"a": 1} {}', '"a"', "{'a': 1}", '{"a": "\t"}']


@pytest.mark.parametrize("name", [*SMALL_FILES, "tokenizer.json", INDEX])
def test_what_is_no_json_or_says_two_things_is_refused(folder, name):
    if name == INDEX:
        in_shards(folder)
    for content in NO_JSON:
        (folder / name).write_text(content)
        message = refusal(folder, FlashVLError)
        assert name in message
        assert len(message) <= 300


def test_a_repeated_key_is_named(folder):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"image_size"', '"patch_size"', 1))
    assert "'patch_size' stands there twice" in refusal(folder, ConfigError)


def test_a_config_nested_to_the_limit_loads_and_saves_or_is_refused(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    for levels in range(100, 1000, 50):
        text = json.dumps(config | {"note": "here"})
        nested = "[" * levels + "]" * levels
        (folder / "config.json").write_text(text.replace('"here"', nested))
        with contextlib.suppress(FlashVLError):
            load(folder).save_pretrained(tmp_path / str(levels))


def test_lone_surrogates_are_kept_or_refused_in_words(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    edit_json(folder / "config.json", **{"half \ud800": "\udfff"})
    load(folder).save_pretrained(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["half \ud800"] == "\udfff"
    for key, value in (("system", "\ud800"), ("padding", "\ud800"), ("\ud800", 1)):
        edit_json(folder / "config.json", assumptions={key: value})
        message = refusal(folder, FlashVLError)
        message.encode("utf-8")
    config["vision_config"]["architecture"] = "\ud800"
    (folder / "config.json").write_text(json.dumps(config))
    refusal(folder, ConfigError).encode("utf-8")


@pytest.mark.parametrize(
    "name", ["x" * 70_000, "\x1b[2J\x1b]0;owned\x07", "\u202eevil", "a\nb", ""]
)
def test_a_tensor_of_any_name_is_told_of_in_one_short_line(folder, name):
    rewrite(folder, **{name: torch.zeros(2)})
    message = refusal(folder)
    assert len(message) <= 300
    assert message.isprintable()
    assert "is not a part of this model" in message
    in_shards(folder)
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    (folder / INDEX).write_text(json.dumps({"weight_map": {name: name} | weight_map}))
    message = refusal(folder)
    assert len(message) <= 300
    assert message.isprintable()


NO_ASSUMPTIONS = [
    5,
    0,
    "max_tiles",
    "",
    [],
    [("max_tiles", 1)],
    {5: 1},
    {None: 1},
    {"max_tiles": None, 1: 2},
]
NO_ASSUMPTIONS += [{"max_tiles": 10**5000}, {"system": threading.Lock()}, {"slice_markers": [[]]}]
NO_ASSUMPTIONS += [{"max_tiles": float("nan")}, {("a",): 1}, {"x" * 10**6: 1}, {b"max_tiles": 1}]


@pytest.mark.parametrize("assumptions", NO_ASSUMPTIONS, ids=lambda value: type(value).__name__)
def test_assumptions_that_are_none_are_refused(folder, assumptions):
    assert len(refusal(folder, FlashVLError, assumptions=assumptions)) <= 300


def test_options_of_other_types_are_refused(folder):
    for option in ("device", "dtype", "quantize"):
        for value in (5, 10**5000, b"x", "x" * 10**6, [], {"a": 1}, object()):
            with pytest.raises(FlashVLError) as refused:
                FlashVL.from_pretrained(folder, **({"device": "cpu"} | {option: value}))
            assert len(str(refused.value).splitlines()) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="other rights there")
def test_what_may_not_be_read_is_refused(flash):
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o777)
        folder = Path(place, "folder")
        flash.save_pretrained(folder)
        load(folder)
        for mode in (0o000, 0o444, 0o644):
            folder.chmod(mode)
            with no_rights():
                assert "denied" in refusal(folder)
        folder.chmod(0o711)  # others may not list it, which is not needed
        with no_rights():
            assert load(folder).config == flash.config
        folder.chmod(0o755)
        for name in (*SMALL_FILES, "tokenizer.json", SINGLE):
            (folder / name).chmod(0o600)
            with no_rights():
                message = refusal(folder, FlashVLError)
            assert name in message
            assert "denied" in message
            (folder / name).chmod(0o644)
        os.chmod(place, 0o700)
        with no_rights():
            assert "there is no model" in refusal(folder)


@pytest.mark.parametrize("name", ["generation_config.json", "preprocessor_config.json", SINGLE])
def test_a_link_to_nothing_does_not_count_as_absent(folder, name):
    (folder / name).unlink()
    (folder / name).symlink_to("nowhere")
    assert name in refusal(folder, FlashVLError)


def test_a_state_of_a_training_is_opened_as_weights_are(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(CheckpointError, match="not a file"), open_safetensors(tmp_path / "x"):
        pass


def test_wrong_stop_ids_are_refused(folder):
    for stop_ids in ("<|im_end|>", [1, "x"], [True], {"a": 1}, 0.5):
        edit_json(folder / "generation_config.json", eos_token_id=stop_ids)
        assert "eos_token_id" in refusal(folder, ConfigError)


def test_an_unknown_model_type_is_named(folder):
    edit_json(folder / "config.json", model_type="Qwen2VLForConditionalGeneration")
    message = refusal(folder, ConfigError)
    assert "Qwen2VLForConditionalGeneration" in message
    assert "FlashVLStaticConfig" in message


NAMES = ["nanoo", "no/such/folder", "./missing", "", "a b", "x" * 5000, "~nobody-of-this-name/x"]
NAMES += ["https://example.org/model", "a\0b", "two\nlines", "~\0", "~\0/x", "\ud800", "x/" * 5000]
NAMES += ["\x1b[2J", "x\0" + "y" * 10**6, None, 5, b"nano", ["nano"], True, 10**5000]


class Unfriendly:
    def __fspath__(self):
        raise ZeroDivisionError

    def __str__(self):
        raise ZeroDivisionError

    __repr__ = __str__


@pytest.mark.parametrize("name", [*NAMES, Unfriendly()], ids=lambda name: type(name).__name__)
def test_a_name_of_no_model_says_what_may_be_given(name):
    message = refusal(name)
    assert '"nano"' in message
    assert "FlashVL/FlashVL-2B" in message


def test_a_file_instead_of_its_folder_is_refused(folder):
    (folder / "nothing").symlink_to("nowhere")
    for name in (SINGLE, "nothing"):
        assert "is not a folder" in refusal(folder / name)
    assert "is not a folder" in refusal("/dev/null")


def test_wrong_devices_and_dtypes_are_refused(folder):
    with pytest.raises(DeviceError):
        FlashVL.from_pretrained(folder, device="nonsense")
    refusal(folder, ArgumentError, dtype="int8")


def loads_or_refuses(folder: Path) -> None:
    with contextlib.suppress(FlashVLError):
        load(folder).chat(picture(), user(), max_new_tokens=1)


@pytest.mark.parametrize("name", [*SMALL_FILES, "tokenizer.json"])
def test_mutated_json_files_give_a_model_or_an_error(flash, tmp_path, name):
    flash.save_pretrained(tmp_path)
    content = json.loads((tmp_path / name).read_text())
    content.pop("architectures", None)

    @given(mutated(content))
    def check(changed):
        (tmp_path / name).write_text(json.dumps(changed))
        loads_or_refuses(tmp_path)

    check()


def test_a_mutated_index_gives_a_model_or_an_error(folder):
    index = {"metadata": {"total_size": 5}, "weight_map": in_shards(folder)}

    @given(mutated(index))
    def check(changed):
        (folder / INDEX).write_text(json.dumps(changed))
        loads_or_refuses(folder)

    check()


def test_mutated_bytes_of_the_tensors_give_a_model_or_an_error(folder):
    good = (folder / SINGLE).read_bytes()
    header = 8 + struct.unpack("<Q", good[:8])[0]
    places = st.integers(0, 7) | st.integers(0, header - 1) | st.integers(0, len(good) - 1)

    @given(
        st.dictionaries(places, st.integers(0, 255), min_size=1, max_size=4),
        st.just(len(good)) | st.integers(0, len(good)),
    )
    def check(changes, kept):
        contents = bytearray(good)
        for place, byte in changes.items():
            contents[place] = byte
        (folder / SINGLE).write_bytes(contents[:kept])
        loads_or_refuses(folder)

    check()


def test_a_mutated_header_gives_a_model_or_an_error(folder):
    good = (folder / SINGLE).read_bytes()
    size = struct.unpack("<Q", good[:8])[0]
    header, data = json.loads(good[8 : 8 + size]), good[8 + size :]

    @given(mutated(header))
    def check(changed):
        text = json.dumps(changed).encode()
        (folder / SINGLE).write_bytes(struct.pack("<Q", len(text)) + text + data)
        loads_or_refuses(folder)

    check()
