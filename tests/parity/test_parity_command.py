"""`flashvl parity` from end to end: equal models, a broken layer, and what it says of each."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from checkpoints import KINDS, make_checkpoint
from photographs import photograph
from safetensors.torch import load_file, save_file

from flashvl import FlashVL
from flashvl.cli import main
from flashvl.tools.parity import Difference, compare, default_picture, difference, first_beyond


@pytest.mark.parametrize("kind", KINDS)
def test_equal(kind, tmp_path, capsys):
    spec = make_checkpoint(tmp_path, kind=kind, seed=20, shards=2).spec
    assert main(["parity", "--model", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["layer", "largest", "difference", "relative", "cosine"]
    for number in range(spec.tower_layers):
        assert any(line.startswith(f"vision.layers.{number} ") for line in lines)
    for number in range(spec.layers):
        assert any(line.startswith(f"decoder.layers.{number} ") for line in lines)
    assert lines[-1].endswith("layers agree within 1e-05 relative")


# A published tensor that is changed on one side alone -> the first layer that must be named.
BROKEN = {
    ("dynamic-iss", "vit.trunk.blocks.1.mlp.fc2.weight"): "vision.layers.1",
    ("dynamic", "vit.preprocessor.pos_embed"): "vision.layers.0 input",
    ("dynamic", "adp.p0.3.bias"): "compressor.hidden",
    ("static", "vit.encoder.layers.2.self_attn.k_proj.weight"): "vision.layers.2",
    ("static", "llm.model.embed_tokens.weight"): "decoder.layers.0 input",
    ("dynamic-iss", "llm.model.layers.1.self_attn.v_proj.bias"): "decoder.layers.1",
    ("dynamic-iss", "llm.lm_head.weight"): "decoder.head",
}


@pytest.mark.parametrize(("kind", "tensor"), BROKEN)
def test_the_first_layer_that_differs(kind, tensor, tmp_path):
    """flashvl computes with a copy of the checkpoint in which one tensor is off by a tenth."""
    make_checkpoint(tmp_path, kind=kind, seed=21)
    (tmp_path / "broken").mkdir()
    for file in tmp_path.glob("*.json"):
        (tmp_path / "broken" / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[tensor] = tensors[tensor] * 1.1
    save_file(tensors, tmp_path / "broken" / "model.safetensors")
    flash = FlashVL.from_pretrained(tmp_path / "broken", device="cpu", dtype="float32")
    first = first_beyond(compare(flash, tmp_path, default_picture()), 1e-5)
    assert first.layer == BROKEN[kind, tensor]


def test_the_command_fails_where_a_layer_differs(tmp_path, capsys, monkeypatch):
    """The real command with a decoder layer that computes something else."""
    make_checkpoint(tmp_path, seed=22)
    load = FlashVL.from_pretrained

    def load_and_break(*arguments, **options) -> FlashVL:
        flash = load(*arguments, **options)
        flash.model.decoder.layers[1].mlp.forward = lambda x: 1.01 * x
        return flash

    monkeypatch.setattr(FlashVL, "from_pretrained", load_and_break)
    assert main(["parity", "--model", str(tmp_path)]) == 1
    verdict = capsys.readouterr().out.splitlines()[-1]
    assert verdict.startswith("decoder.layers.1 is the first layer that differs: ")
    assert main(["parity", "--model", str(tmp_path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["first_beyond"] == "decoder.layers.1"
    relative = {layer["layer"]: layer["relative"] for layer in report["layers"]}
    assert relative["decoder.layers.0"] <= 1e-5 < relative["decoder.layers.1"]


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "flashvl", "parity", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | environment, check=False
    )


def test_with_a_picture_and_json(tmp_path):
    make_checkpoint(tmp_path, seed=23, assumptions={"stitching": "mean", "feature_layer": 1})
    photograph("coffee.png").save(tmp_path / "coffee.png")
    done = run("--model", tmp_path, "--image", tmp_path / "coffee.png", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["first_beyond"] is None
    names = [layer["layer"] for layer in report["layers"]]
    assert "vision.layers.1" in names
    assert "vision.layers.2" not in names
    assert names[-1] == "decoder.head"
    assert all(layer["cosine"] > 0.999999 for layer in report["layers"])


def test_bad_input_is_one_line(tmp_path, capsys):
    make_checkpoint(tmp_path, seed=24)
    for arguments in (["--model", str(tmp_path / "none")], ["--image", "none.png"]):
        assert main(["parity", "--model", str(tmp_path), *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len(captured.err.splitlines()) == 1, captured.err
        assert "none" in captured.err


def test_without_transformers_installed(tmp_path):
    """A module of that name that cannot be imported stands in for a missing library."""
    make_checkpoint(tmp_path / "model", seed=25)
    (tmp_path / "transformers.py").write_text("raise ImportError('not here')")
    done = run(
        "--model", tmp_path / "model", PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path])
    )
    assert done.returncode == 2
    assert 'pip install "flashvl[test]"' in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_difference():
    reference = torch.tensor([[3.0, -4.0], [0.0, 0.0]])
    ours = torch.tensor([[3.0, -4.0], [0.0, 1.0]])
    found = difference("layer", ours, reference)
    assert (found.largest, found.relative) == (1.0, 0.25)
    assert found.cosine == pytest.approx(25 / (5 * 26**0.5))
    assert difference("layer", reference, reference) == Difference("layer", 0.0, 0.0, 1.0)
    assert first_beyond([found], 0.25) is None
    assert first_beyond([difference("layer", ours * torch.nan, reference)], 1.0) is not None
