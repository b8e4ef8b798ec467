"""What is saved is the same model again, and nothing of the user's is lost on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import tokenizers
import torch
from folders import INDEX, SINGLE, assert_same_weights, in_shards, load, no_rights
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import picture, teach_answer, tiny_model, tiny_network, user

from flashvl import FlashVL, FlashVLConfig, FlashVLModel
from flashvl.checkpoint import save
from flashvl.checkpoint.tensor_names import our_name
from flashvl.errors import CheckpointError

SHARDS = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]


def contents_of(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["iss", "dynamic", "static"])
def test_a_round_trip_is_exact_to_the_bit(tmp_path, kind, dtype):
    flash = tiny_model(kind, stitching="none", slice_markers=["a", "b"])
    flash.model.to(dtype)
    flash.save_pretrained(tmp_path / "one")
    loaded = load(tmp_path / "one", dtype=dtype)
    assert loaded.config == flash.config
    assert loaded.stop_ids == flash.stop_ids
    assert loaded.tokenizer.control == flash.tokenizer.control
    ours, theirs = loaded.model.state_dict(), flash.model.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == dtype
        assert torch.equal(ours[name], tensor)
    loaded.save_pretrained(tmp_path / "two")
    assert contents_of(tmp_path / "one") == contents_of(tmp_path / "two")


def test_the_folder_has_the_published_layout(flash, folder):
    assert {file.name for file in folder.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    with safe_open(folder / SINGLE, "pt") as file:
        assert file.metadata()["format"] == "pt"
        assert {name.split(".")[0] for name in file.keys()} == {"vit", "llm", "adp"}
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["torch_dtype"]) == ("FlashVLDynamicISSConfig", "float32")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode("<|im_end|>").ids == [flash.tokenizer.control_id("<|im_end|>")]


def test_a_model_that_is_there_is_not_replaced_unasked(flash, folder):
    before = contents_of(folder)
    other = tiny_model(seed=5)
    with pytest.raises(CheckpointError, match="overwrite=True"):
        other.save_pretrained(folder)
    assert contents_of(folder) == before
    other.save_pretrained(folder, overwrite=True)
    loaded = load(folder)
    assert_same_weights(loaded, other)
    embedding = loaded.model.decoder.embedding.weight
    assert not torch.equal(embedding, flash.model.decoder.embedding.weight)


def test_a_model_may_be_saved_into_the_folder_it_was_loaded_from(folder):
    """Its tensors are views of the very file that is replaced."""
    loaded = load(folder, dtype="float32")
    teach_answer(loaded, "Yes!")
    loaded.save_pretrained(folder, overwrite=True)
    assert load(folder).chat(picture(), user()) == "Yes!"
    assert loaded.chat(picture(), user()) == "Yes!"


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "model.safetensors"])
def test_a_single_file_that_would_be_replaced_is_enough_to_refuse(flash, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(CheckpointError, match=name):
        flash.save_pretrained(tmp_path)
    assert contents_of(tmp_path) == {name: b"mine"}


def test_a_large_model_is_cut_into_shards_and_stale_files_go(flash, folder, monkeypatch):
    monkeypatch.setattr(save, "SHARD_SIZE", "20KB")
    backup = folder / "model-before.safetensors"
    backup.write_text("mine")
    flash.save_pretrained(folder, overwrite=True)
    assert backup.read_text() == "mine"
    backup.unlink()
    names = {file.name for file in folder.glob("*.safetensors*")}
    assert "model.safetensors.index.json" in names
    assert SINGLE not in names
    assert len(names) >= 4
    sharded = load(folder)
    assert_same_weights(sharded, flash)
    monkeypatch.undo()
    sharded.save_pretrained(folder, overwrite=True)
    assert [file.name for file in folder.glob("*.safetensors*")] == [SINGLE]
    assert_same_weights(load(folder), flash)


def not_saved(flash, folder, **options) -> str:
    with pytest.raises(CheckpointError) as refused:
        flash.save_pretrained(folder, **options)
    message = str(refused.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize("name", ["config.json", "special_tokens_map.json", SINGLE, INDEX])
def test_a_link_to_nothing_is_not_replaced_unasked(flash, tmp_path, name):
    (tmp_path / name).symlink_to("nowhere")
    assert name in not_saved(flash, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert os.readlink(tmp_path / name) == "nowhere"
    flash.save_pretrained(tmp_path, overwrite=True)
    assert_same_weights(load(tmp_path), flash)
    assert not (tmp_path / "nowhere").exists()


def test_weights_that_are_no_part_of_the_model_there_stay(flash, folder, tmp_path):
    """They may be another model's, or a part of one that is still being copied."""
    new = tmp_path / "new"
    new.mkdir()
    for name in SHARDS:
        (new / name).write_text("another's")
    flash.save_pretrained(new)
    assert {(new / name).read_text() for name in SHARDS} == {"another's"}
    flash.save_pretrained(new, overwrite=True)
    assert {(new / name).read_text() for name in SHARDS} == {"another's"}
    in_shards(folder)
    (folder / "model-00007-of-00009.safetensors").write_text("another's")
    flash.save_pretrained(folder, overwrite=True)
    names = {file.name for file in folder.glob("*.safetensors*")}
    assert names == {SINGLE, "model-00007-of-00009.safetensors"}


def test_shards_are_not_replaced_unasked(flash, tmp_path, monkeypatch):
    monkeypatch.setattr(save, "SHARD_SIZE", "40KB")
    flash.save_pretrained(tmp_path / "one")
    shards = sorted(file.name for file in (tmp_path / "one").glob("model-*.safetensors"))
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / shards[-1]).write_text("mine")
    assert shards[-1] in not_saved(flash, tmp_path / "two")
    assert contents_of(tmp_path / "two") == {shards[-1]: b"mine"}
    flash.save_pretrained(tmp_path / "two", overwrite=True)
    assert contents_of(tmp_path / "two") == contents_of(tmp_path / "one")


def test_of_an_index_only_shards_of_its_own_folder_go(flash, folder, tmp_path):
    weight_map = in_shards(folder)
    outside = tmp_path / SHARDS[0]
    outside.write_text("mine")
    (folder / "mine.safetensors").write_text("mine")
    names = [f"../{SHARDS[0]}", str(outside), "mine.safetensors", "generation_config.json", "."]
    changed = {str(number): name for number, name in enumerate(names)}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map | changed}))
    flash.save_pretrained(folder, overwrite=True)
    assert outside.read_text() == (folder / "mine.safetensors").read_text() == "mine"
    assert not [name for name in SHARDS if (folder / name).exists()]
    assert_same_weights(load(folder), flash)


def test_a_folder_in_the_place_of_a_file_is_named_before_anything_is_touched(flash, folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").mkdir()
    before = contents_of(folder)
    assert "tokenizer.json is a folder" in not_saved(tiny_model(seed=3), folder, overwrite=True)
    assert contents_of(folder) == before


def test_of_two_saves_at_once_into_a_new_folder_one_is_refused(tmp_path):
    models, barrier = [tiny_model(seed=seed) for seed in (1, 2)], threading.Barrier(2)

    def try_to_save(flash) -> bool:
        barrier.wait(60)
        with suppress(CheckpointError):
            flash.save_pretrained(folder)
            return True
        return False

    for number in range(4):
        folder = tmp_path / str(number)
        with ThreadPoolExecutor(2) as pool:
            saved = list(pool.map(try_to_save, models))
        assert sorted(saved) == [False, True]
        assert_same_weights(load(folder), models[saved.index(True)])
        assert all(file.is_file() for file in folder.iterdir())


SAVE_AND_WAIT = """
import sys, time
sys.path[:0] = sys.argv[2:]
from tiny import tiny_model
from flashvl.checkpoint import save
def wait(*_):
    print("written", flush=True)
    time.sleep(1000)
save._move_into = wait
tiny_model().save_pretrained(sys.argv[1])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no signal kills there")
def test_what_a_killed_save_has_left_goes_with_the_next_one(flash, tmp_path):
    """But not what one that still runs has written so far, nor what only looks like it."""
    kept = [tmp_path / f"{save.PASSING}mine", tmp_path / f"{save.PASSING}abcd1234"]
    kept[0].mkdir()
    kept[1].symlink_to(kept[0])
    (kept[0] / "file").write_text("mine")
    child = subprocess.Popen(
        [sys.executable, "-c", SAVE_AND_WAIT, str(tmp_path), *sys.path],
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"written\n"
        (left,) = set(tmp_path.iterdir()) - set(kept)
        flash.save_pretrained(tmp_path)
        assert (left / "model" / SINGLE).exists()
        child.send_signal(signal.SIGKILL)
        child.wait()
        flash.save_pretrained(tmp_path, overwrite=True)
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    assert not left.exists()
    assert {file for file in tmp_path.iterdir() if not file.is_file()} == set(kept)
    assert (kept[0] / "file").read_text() == "mine"
    assert_same_weights(load(tmp_path), flash)


def test_the_home_folder_is_meant_by_its_sign(flash, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    flash.save_pretrained("~/model")
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
    assert_same_weights(load("~/model"), flash)
    assert "model" in not_saved(flash, Path("~") / "model")


class Unfriendly:
    def __fspath__(self):
        raise ZeroDivisionError

    def __repr__(self):
        raise ZeroDivisionError


NO_FOLDERS = [None, 5, b"x", ["x"], Unfriendly(), 10**5000, "", "a\0b", "\ud800", "x" * 300]
NO_FOLDERS += ["x/" * 5000, "/dev/null", "/proc/1/x", "x\0" + "y" * 10**6]


@pytest.mark.parametrize("name", NO_FOLDERS, ids=lambda value: type(value).__name__)
def test_what_can_be_no_folder_is_refused(flash, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for overwrite in (False, True):
        assert len(not_saved(flash, name, overwrite=overwrite)) <= 300
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.skipif(sys.platform == "win32", reason="other rights there")
def test_a_folder_without_the_rights_is_refused(flash):
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o777)
        folder = Path(place, "folder")
        folder.mkdir()
        for mode in (0o000, 0o444, 0o555):
            folder.chmod(mode)
            with no_rights():
                for inside in (folder, folder / "new"):
                    for overwrite in (False, True):
                        message = not_saved(flash, inside, overwrite=overwrite)
                        assert "cannot be written" in message
                        assert "denied" in message
        folder.chmod(0o777)
        assert not list(folder.iterdir())
        folder.chmod(0o733)  # nobody else may list it, which is not needed
        with no_rights():
            flash.save_pretrained(folder)
        assert_same_weights(load(folder), flash)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes there")
def test_companions_of_the_first_folder_that_are_no_files_are_refused(folder, tmp_path):
    loaded = load(folder)
    for make in (os.mkfifo, os.mkdir, lambda file: os.symlink("/dev/zero", file)):
        file = folder / "special_tokens_map.json"
        make(file)
        message = not_saved(loaded, tmp_path / "new")
        assert str(file) in message
        assert "not a file" in message
        assert not list((tmp_path / "new").iterdir())
        os.rmdir(file) if stat.S_ISDIR(os.lstat(file).st_mode) else os.unlink(file)
    shutil.rmtree(folder)  # all that is gone cannot be copied
    loaded.save_pretrained(tmp_path / "new")
    assert_same_weights(load(tmp_path / "new"), loaded)


def test_a_model_without_weights_is_not_saved(flash, tmp_path):
    with torch.device("meta"):
        bare = FlashVLModel(flash.config)
    message = not_saved(FlashVL(bare, flash.tokenizer, flash.stop_ids), tmp_path / "new")
    assert "meta" in message
    assert not (tmp_path / "new").exists()


def test_a_config_that_json_cannot_hold_is_not_saved(flash, tmp_path):
    for value in (float("nan"), {1, 2}):
        config = FlashVLConfig.from_dict({**flash.config.to_dict(), "note": value})
        model = FlashVLModel(config)
        not_saved(FlashVL(model, flash.tokenizer, flash.stop_ids), tmp_path)
        assert not list(tmp_path.iterdir())


def test_what_is_not_ours_survives(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoModel": "code.py"}, "note": "半 \ud800"}
    config["llm_config"]["attention_dropout"] = 0.0
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"eos_token_id": [5], "top_k": 7}')
    (folder / "special_tokens_map.json").write_text('{"pad_token": "x"}')
    (folder / "notes.txt").write_text("mine")
    loaded = load(folder)
    loaded.save_pretrained(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text()) == config
    for name in ("generation_config.json", "special_tokens_map.json"):
        assert (tmp_path / "new" / name).read_text() == (folder / name).read_text()
    loaded.save_pretrained(folder, overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_save_that_fails_leaves_the_old_model_whole(folder, monkeypatch):
    before = contents_of(folder)
    loaded = load(folder)

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(loaded.tokenizer, "save", fail)
    with pytest.raises(CheckpointError, match="no space"):
        loaded.save_pretrained(folder, overwrite=True)
    assert contents_of(folder) == before
    assert all(file.is_file() for file in folder.iterdir())


def test_a_file_in_the_place_of_the_folder_is_refused(flash, tmp_path):
    (tmp_path / "taken").write_text("mine")
    for place in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(CheckpointError, match="taken"):
            flash.save_pretrained(place)
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_bare_network_can_be_saved_and_has_the_right_tensors(tmp_path):
    model, folder = tiny_network("static"), tmp_path / "a" / "b"
    save.save_checkpoint(model, folder)
    written = {file.name for file in folder.iterdir()}
    assert written == {"config.json", "preprocessor_config.json", SINGLE}
    tensors = load_file(folder / SINGLE)
    names = {name: our_name(name, "siglip", "vit.") for name in tensors}
    parameters = dict(model.named_parameters())
    assert sorted(names.values()) == sorted(parameters)
    assert all(torch.equal(tensors[name], parameters[ours]) for name, ours in names.items())


def test_a_folder_may_be_given_as_text(flash, tmp_path):
    flash.save_pretrained(str(tmp_path / "a" / "b"))
    assert_same_weights(load(tmp_path / "a" / "b"), flash)
