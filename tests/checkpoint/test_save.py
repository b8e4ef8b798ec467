"""What is saved is the same model again, and nothing of the user's is lost on the way."""

from __future__ import annotations

import json

import pytest
import tokenizers
import torch
from folders import SINGLE, assert_same_weights, load
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import picture, teach_answer, tiny_model, tiny_network, user

from flashvl.checkpoint import save
from flashvl.checkpoint.tensor_names import our_name
from flashvl.errors import CheckpointError


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
