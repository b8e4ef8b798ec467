"""`flashvl verify`: counts that are right, headers alone, and every misfit named."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import PUBLISHED, tiny_model

from flashvl import FlashVLConfig, FlashVLModel
from flashvl.checkpoint.files import TensorHeader
from flashvl.checkpoint.hub import published_models
from flashvl.checkpoint.load import published_shapes
from flashvl.cli import main
from flashvl.tools.verify import kind_of


def verify(folder, capsys, *arguments) -> tuple[int, str, str]:
    code = main(["verify", str(folder), *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def cells(output: str, name: str) -> list[str]:
    return next(line.split() for line in output.splitlines() if line.split()[:1] == [name])


@pytest.mark.parametrize("kind", list(PUBLISHED))
def test_components_are_counted(kind, tmp_path, capsys):
    tiny_model(kind).save_pretrained(tmp_path / "model")
    code, output, _ = verify(tmp_path / "model", capsys)
    assert code == 0
    stored = load_file(tmp_path / "model" / "model.safetensors")
    prefixes = {"vision": "vit.", "compressor": "adp.", "decoder": "llm.", "all": ""}
    for component, prefix in prefixes.items():
        tensors = [tensor for name, tensor in stored.items() if name.startswith(prefix)]
        parameters = sum(tensor.numel() for tensor in tensors)
        wanted = [len(tensors), parameters, 4 * parameters]
        found = [int(cell.replace(",", "")) for cell in cells(output, component)[1:]]
        assert found == wanted
    assert f"kind: {PUBLISHED[kind]['model_type']}, of no published size" in output


def test_headers_alone_are_read(folder, capsys, monkeypatch):
    def refuse(*_):
        raise AssertionError("a weight was read")

    monkeypatch.setattr("flashvl.tools.verify.check_values", refuse)
    monkeypatch.setattr("flashvl.chat.load_tensors", refuse)
    monkeypatch.setattr("flashvl.checkpoint.load.load_tensors", refuse)
    assert verify(folder, capsys)[0] == 0


def test_a_published_size_is_recognized():
    repository, known = next(iter(published_models().items()))
    config = FlashVLConfig.from_dict(known["config"])
    with torch.device("meta"):
        shapes = published_shapes(FlashVLModel(config))
    headers = {name: TensorHeader(None, "BF16", tuple(shape)) for name, shape in shapes.items()}
    assert repository in kind_of(config, headers)


def test_what_is_settled_and_what_is_not(folder, capsys):
    rows = verify(folder, capsys)[1].splitlines()
    settled = {row.split("  ")[0]: row for row in rows if "  " in row}
    assert settled["patches a tile"].endswith("yes, by the rows of the learned positions")
    assert settled["output head"].endswith("yes, by its tensor names")
    assert settled["stitching"].endswith("no")
    (folder / "preprocessor_config.json").unlink()
    (folder / "generation_config.json").unlink()
    output = verify(folder, capsys)[1]
    assert "there is no preprocessor_config.json" in output
    assert "there is no generation_config.json" in output


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_named(value, folder, capsys):
    file = folder / "model.safetensors"
    assert verify(folder, capsys, "--values")[0] == 0
    tensors = load_file(file)
    tensors["adp.p0.3.weight"][0, 0] = value
    save_file(tensors, file)
    assert verify(folder, capsys)[0] == 0  # the headers are still right
    code, _, error = verify(folder, capsys, "--values")
    assert code == 2
    assert "adp.p0.3.weight" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("change", ["missing", "extra", "misshapen"])
def test_misfits_are_named(change, folder, capsys):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    if change == "missing":
        name = "llm.model.norm.weight"
        del tensors[name]
    elif change == "extra":
        name = "llm.model.layers.9.mlp.up_proj.weight"
        tensors[name] = torch.zeros(3)
    else:
        name = "vit.trunk.blocks.1.mlp.fc3.weight"
        tensors[name] = tensors[name].T.contiguous()
    save_file(tensors, file)
    code, output, error = verify(folder, capsys)
    assert (code, output) == (2, "")
    assert name in error
    assert error.count("\n") == 1


def test_the_file_is_not_held_open(folder, capsys):
    verify(folder, capsys, "--values")
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    (folder / "model.safetensors").write_bytes(b"")
    assert names
    assert verify(folder, capsys)[0] == 2


def test_a_broken_config_is_said(folder, capsys):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llava"}))
    code, _, error = verify(folder, capsys)
    assert code == 2
    assert "llava" in error
