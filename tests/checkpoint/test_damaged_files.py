"""A damaged folder is one error that names what is wrong; pickles are never opened."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
import struct
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
    refusal,
)
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import mutated, picture, user

from flashvl import FlashVL, FlashVLError
from flashvl.errors import ArgumentError, ConfigError, DeviceError


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
NAMES += ["https://example.org/model", "a\0b", "two\nlines"]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:20].replace("\0", "0"))
def test_a_name_of_no_model_says_what_may_be_given(name):
    message = refusal(name)
    assert '"nano"' in message
    assert "FlashVL/FlashVL-2B" in message


def test_a_file_instead_of_its_folder_is_refused(folder):
    assert "folder" in refusal(folder / SINGLE)


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
