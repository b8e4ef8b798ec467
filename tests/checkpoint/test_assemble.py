"""Towers and decoders that transformers saved, put together: they compute what they did there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints import make_checkpoint
from safetensors.torch import load_file, save_file
from tiny import QWEN2, SIGLIP, tokenizer_definition
from transformers import (
    Aimv2VisionConfig,
    Aimv2VisionModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from flashvl import FlashVL
from flashvl.cli import main

AIMV2 = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 2,
}
OF_SIGLIP = {name: value for name, value in SIGLIP.items() if name != "vision_use_head"}


@pytest.fixture
def decoder(tmp_path) -> Path:
    return saved_decoder(tmp_path / "decoder")


def saved_decoder(folder: Path, tied: bool = False) -> Path:
    Qwen2ForCausalLM(Qwen2Config(**QWEN2 | {"tie_word_embeddings": tied})).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_definition()))
    return folder


def saved_tower(folder: Path, kind: str) -> Path:
    if kind == "aimv2":
        Aimv2VisionModel(Aimv2VisionConfig(**AIMV2)).save_pretrained(folder)
    else:
        SiglipVisionModel(SiglipVisionConfig(**OF_SIGLIP)).save_pretrained(folder)
    return folder


def assembled(out: Path, tower: Path, decoder: Path, kind: str, *more: str) -> int:
    arguments = [
        "--tower",
        str(tower),
        "--decoder",
        str(decoder),
        "--kind",
        kind,
        "--out",
        str(out),
    ]
    return main(["assemble", *arguments, "--dtype", "float32", *more])


@torch.no_grad()
def assert_same(out: Path, tower: torch.nn.Module, decoder: torch.nn.Module) -> None:
    flash = FlashVL.from_pretrained(out, device="cpu")
    pixels = torch.randn(2, 3, 16, 16)
    wanted = tower(pixels).last_hidden_state
    torch.testing.assert_close(flash.model.vision(pixels), wanted, atol=1e-5, rtol=1e-4)
    ids = torch.randint(300, (1, 9))
    torch.testing.assert_close(flash.model(ids), decoder(ids).logits, atol=1e-5, rtol=1e-4)
    assert flash.model.compressor.expand.weight.std() > 0
    assert flash.chat(None, [{"role": "user", "content": "a"}], max_new_tokens=2) is not None


@pytest.mark.parametrize("kind", ["iss", "dynamic"])
@pytest.mark.parametrize("tied", [False, True])
def test_aimv2_and_qwen_as_transformers_saves_them(kind, tied, tmp_path, capsys):
    tower = saved_tower(tmp_path / "tower", "aimv2")
    decoder = saved_decoder(tmp_path / "decoder", tied)
    assert assembled(tmp_path / "out", tower, decoder, kind) == 0
    assert "5 tensors of the tower have no place, such as head." in capsys.readouterr().out
    theirs = Aimv2VisionModel.from_pretrained(tower, use_head=False).eval()
    assert_same(tmp_path / "out", theirs, Qwen2ForCausalLM.from_pretrained(decoder).eval())
    assert main(["verify", str(tmp_path / "out")]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["image_token_num"] == (36 if kind == "iss" else 16)
    assert config["intermediate_size"] == 16 * 14 // 3
    assert ("llm.lm_head.weight" in load_file(tmp_path / "out" / "model.safetensors")) != tied
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert len(generation["eos_token_id"]) == 2


def test_a_tied_head_that_is_stored_all_the_same_is_left_out(tmp_path):
    decoder = saved_decoder(tmp_path / "decoder", tied=True)
    tensors = load_file(decoder / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors | {"lm_head.weight": head}, decoder / "model.safetensors", {"format": "pt"})
    tower = saved_tower(tmp_path / "tower", "aimv2")
    assert assembled(tmp_path / "out", tower, decoder, "iss") == 0
    assert "llm.lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")


@pytest.mark.parametrize("whole", [False, True])
def test_siglip_alone_and_with_its_text_model(whole, decoder, tmp_path):
    if whole:
        text = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
        text |= {"num_attention_heads": 2, "vocab_size": 40, "projection_size": 16}
        model = SiglipModel(SiglipConfig(vision_config=OF_SIGLIP, text_config=text))
        model.save_pretrained(tmp_path / "tower")
        tower = model.vision_model
    else:
        saved_tower(tmp_path / "tower", "siglip")
        tower = SiglipVisionModel.from_pretrained(tmp_path / "tower")
    assert assembled(tmp_path / "out", tmp_path / "tower", decoder, "static") == 0
    assert_same(tmp_path / "out", tower.eval(), Qwen2ForCausalLM.from_pretrained(decoder).eval())


@pytest.mark.parametrize("kind", ["iss", "dynamic", "static"])
def test_the_parts_of_a_published_model_give_it_back(kind, tmp_path):
    """Apple's names are those of the published files; shards are read too."""
    checkpoint = {"iss": "dynamic-iss"}.get(kind, kind)
    make_checkpoint(tmp_path / "whole", kind=checkpoint)
    tensors = load_file(tmp_path / "whole" / "model.safetensors")
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    for part, prefix, section in (
        ("tower", "vit.", "vision_config"),
        ("decoder", "llm.", "llm_config"),
    ):
        folder = tmp_path / part
        folder.mkdir()
        its = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        save_file(its, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config[section]))
    for file in (tmp_path / "whole").glob("*"):
        if file.name not in ("config.json", "model.safetensors", "preprocessor_config.json"):
            (tmp_path / "decoder" / file.name).write_bytes(file.read_bytes())
    assert assembled(tmp_path / "out", tmp_path / "tower", tmp_path / "decoder", kind) == 0
    after = load_file(tmp_path / "out" / "model.safetensors")
    for name, one in tensors.items():
        if not name.startswith("adp."):
            assert torch.equal(after[name], one.float()), name


def test_it_learns_from_there(decoder, tmp_path):
    tower = saved_tower(tmp_path / "tower", "aimv2")
    assert assembled(tmp_path / "new", tower, decoder, "iss", "--compressor-width", "20") == 0
    file = tmp_path / "samples.json"
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "a b"}]
    file.write_text(json.dumps({"messages": turns}))
    arguments = ["--model", str(tmp_path / "new"), "--data", str(file)]
    arguments += ["--out", str(tmp_path / "run"), "--train", "compressor", "--steps", "2"]
    assert main(["finetune", *arguments]) == 0
    assert main(["verify", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize(
    ("kind", "part", "changes", "words"),
    [
        ("static", "tower", {}, "the tower of static must be of siglip"),
        ("iss", "tower", {"is_native": True}, '"is_native"'),
        ("iss", "tower", {"qkv_bias": True}, "qkv_bias"),
        ("iss", "tower", {"hidden_size": 18}, "has shape"),
        ("iss", "decoder", {"model_type": "llama"}, "must be a Qwen2"),
        ("iss", "decoder", {"num_hidden_layers": 3}, "is missing"),
        ("iss", "decoder", {"tie_word_embeddings": None}, ""),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_a_weight_is_read(
    kind, part, changes, words, decoder, tmp_path, capsys
):
    saved_tower(tmp_path / "tower", "aimv2")
    file = tmp_path / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    code = assembled(tmp_path / "out", tmp_path / "tower", decoder, kind)
    if not words:
        assert code == 0
        return
    assert code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("flashvl: ")
    assert words in line
    assert not (tmp_path / "out").exists()


def test_missing_tensors_are_named(decoder, tmp_path, capsys):
    tower = saved_tower(tmp_path / "tower", "aimv2")
    tensors = load_file(tower / "model.safetensors")
    del tensors["encoder.layers.1.attention.k_proj.weight"]
    save_file(tensors, tower / "model.safetensors", {"format": "pt"})
    assert assembled(tmp_path / "out", tower, decoder, "iss") == 2
    assert "trunk.blocks.1.attn.qkv.weight of the tower lacks k" in capsys.readouterr().err
    known = load_file(decoder / "model.safetensors")
    save_file(known | {"x": torch.zeros(1)}, decoder / "model.safetensors", {"format": "pt"})
    saved_tower(tmp_path / "whole", "aimv2")
    assert assembled(tmp_path / "out", tmp_path / "whole", decoder, "iss") == 2
    assert "is not a part of this model" in capsys.readouterr().err
