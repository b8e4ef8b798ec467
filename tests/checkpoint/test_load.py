"""What a folder's files say is what the model is; what does not fit is named."""

from __future__ import annotations

import json

import pytest
import torch
from folders import (
    NORM,
    SINGLE,
    assert_same_weights,
    edit_json,
    in_shards,
    load,
    refusal,
    rewrite,
)
from safetensors.torch import load_file, save_file
from tiny import picture, tiny_model, tiny_published, user

from flashvl.errors import ConfigError


def test_a_single_file_and_shards_give_the_same_model(flash, folder):
    assert_same_weights(load(folder), flash)
    in_shards(folder)
    loaded = load(folder)
    assert_same_weights(loaded, flash)
    assert loaded.chat(picture(), user()) == flash.chat(picture(), user())
    assert not loaded.model.training


def test_all_files_of_the_folder_are_heard(folder):
    edit_json(folder / "preprocessor_config.json", resample=0, image_mean=[0.0, 0.0, 0.0])
    edit_json(folder / "generation_config.json", eos_token_id=[5, 6])
    loaded = load(folder)
    assert (loaded.config.tiler.resample, loaded.config.tiler.mean) == (0, (0.0, 0.0, 0.0))
    assert loaded.stop_ids == {5, 6}
    edit_json(folder / "generation_config.json", eos_token_id=7)
    assert load(folder).stop_ids == {7}


def test_the_small_files_are_not_needed(flash, folder):
    for name in ("preprocessor_config.json", "generation_config.json", "tokenizer_config.json"):
        (folder / name).unlink()
    loaded = load(folder)
    assert loaded.config == flash.config
    assert loaded.stop_ids == flash.stop_ids


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_take_the_dtype_that_is_asked_for(flash, folder, dtype):
    loaded = load(folder, dtype=dtype)
    wanted = getattr(torch, dtype)
    assert {value.dtype for value in loaded.model.state_dict().values()} == {wanted}
    embedding = flash.model.decoder.embedding.weight.to(wanted)
    assert torch.equal(loaded.model.decoder.embedding.weight, embedding)


def test_weights_of_16_bits_are_loaded_as_float32_on_the_cpu(flash, folder):
    halves = {name: value.bfloat16() for name, value in load_file(folder / SINGLE).items()}
    save_file(halves, folder / SINGLE)
    loaded = load(folder)
    assert loaded.model.dtype == torch.float32
    embedding = flash.model.decoder.embedding.weight.bfloat16().float()
    assert torch.equal(loaded.model.decoder.embedding.weight, embedding)


@pytest.mark.parametrize("prefix", ["vit.model.", "vision_tower.", ""])
def test_another_prefix_of_the_tower_is_read_from_the_tensors(flash, folder, prefix):
    tensors = load_file(folder / SINGLE)
    renamed = {prefix + n[4:] if n.startswith("vit.") else n: t for n, t in tensors.items()}
    save_file(renamed, folder / SINGLE)
    loaded = load(folder)
    assert_same_weights(loaded, flash)
    assert loaded.config.vision.tensor_prefix == prefix


def test_a_tied_head_is_the_embedding(flash, folder, tmp_path):
    rewrite(folder, **{"llm.lm_head.weight": None})
    edit_json(folder / "config.json", note="the config still says untied")
    loaded = load(folder)
    assert loaded.config.decoder.tied_head
    assert loaded.model.decoder.head.weight is loaded.model.decoder.embedding.weight
    loaded.save_pretrained(tmp_path / "again")
    assert "llm.lm_head.weight" not in load_file(tmp_path / "again" / SINGLE)
    assert_same_weights(load(tmp_path / "again"), loaded)
    ids, embedding = flash.prepare(None, user()).input_ids, flash.model.decoder.embedding
    hidden = flash.model.decoder(embedding(ids))
    torch.testing.assert_close(loaded.model(ids), hidden @ embedding.weight.T)


def test_a_stored_head_wins_over_a_config_that_says_tied(flash, folder):
    config = json.loads((folder / "config.json").read_text())
    config["llm_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    assert_same_weights(load(folder), flash)


@pytest.mark.parametrize("kind", ["iss", "dynamic", "static"])
def test_tensors_win_over_a_config_that_contradicts_them(tmp_path, kind):
    """The patch grid, the compressor's widths and the pooling head are in the tensors' shapes."""
    flash = tiny_model(kind)
    flash.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"] |= {"image_size": 30, "patch_size": 3, "vision_use_head": False}
    config["intermediate_size"] = 999
    if kind != "iss":
        config["image_token_num"] = 64
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load(tmp_path)
    assert loaded.config == flash.config
    assert_same_weights(loaded, flash)


def test_assumptions_of_the_caller_win(folder):
    loaded = load(folder, assumptions={"max_tiles": 1, "stitching": "none"})
    assert (loaded.config.tiler.max_tiles, loaded.config.tiler.stitching) == (1, "none")
    assert "max_tilse" in refusal(folder, ConfigError, assumptions={"max_tilse": 1})
    edit_json(folder / "config.json", assumptions=None)
    assert load(folder, assumptions={"max_tiles": 1}).config.tiler.max_tiles == 1
    edit_json(folder / "config.json", assumptions=[])
    assert "assumptions" in refusal(folder, ConfigError, assumptions={"max_tiles": 1})


def test_a_file_may_be_replaced_while_the_model_is_in_use(flash, folder):
    """Also on the way that maps the file without a copy, which is taken when nothing changes."""
    loaded = load(folder, dtype="float32")
    before = loaded.chat(picture(), user())
    zeros = {name: torch.zeros_like(value) for name, value in load_file(folder / SINGLE).items()}
    save_file(zeros, folder / "new")
    (folder / "new").replace(folder / SINGLE)
    assert_same_weights(loaded, flash)
    assert loaded.chat(picture(), user()) == before


def test_weights_may_be_trained_without_changing_the_file(folder):
    before = (folder / SINGLE).read_bytes()
    loaded = load(folder)
    with torch.no_grad():
        loaded.model.decoder.norm.weight.zero_()
    assert (folder / SINGLE).read_bytes() == before


def test_a_missing_tensor_is_named(folder):
    rewrite(folder, **{NORM: None})
    assert f"{NORM} is missing" in refusal(folder)


def test_an_extra_tensor_is_named(folder):
    rewrite(folder, **{"llm.model.layers.9.mlp.up_proj.weight": torch.zeros(3)})
    assert "llm.model.layers.9.mlp.up_proj.weight is not a part" in refusal(folder)


def test_a_misshapen_tensor_is_named_with_both_shapes(folder):
    rewrite(folder, **{NORM: torch.zeros(17)})
    message = refusal(folder)
    assert NORM in message
    assert "(17,)" in message
    assert "(16,)" in message


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.float64])
def test_a_tensor_of_another_dtype_is_named(folder, dtype):
    rewrite(folder, **{NORM: torch.zeros(16, dtype=dtype)})
    assert NORM in refusal(folder)


def test_of_many_misfits_the_first_five_are_named(folder):
    published = tiny_published()
    published["llm_config"]["num_hidden_layers"] = 5
    (folder / "config.json").write_text(json.dumps(published))
    message = refusal(folder)
    assert message.count(" is missing") == 5
    assert "and 31 more" in message


def test_a_tokenizer_of_another_model_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["llm_config"]["vocab_size"] = 300
    (folder / "config.json").write_text(json.dumps(config))
    names = ("llm.model.embed_tokens.weight", "llm.lm_head.weight")
    rewrite(folder, **{name: load_file(folder / SINGLE)[name][:300].clone() for name in names})
    assert "305 tokens" in refusal(folder)
