"""LoRA: PEFT on transformers' modules as the reference, files that are damaged, merging."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from checkpoints import make_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import JUNK, picture, tiny_model, user
from torch import nn

from flashvl import FlashVL
from flashvl.checkpoint.adapter import DECODER_LAYERS, matching
from flashvl.cli import main
from flashvl.errors import ArgumentError, CheckpointError, FlashVLError
from flashvl.model.lora import add_loras, loras

ANSWERED = [*user("What?"), {"role": "assistant", "content": "A circle."}]


def adapted(
    flash: FlashVL, pattern: str = DECODER_LAYERS, rank: int = 3, alpha: float = 5.0
) -> None:
    """Gives a model an adapter whose B is not zero."""
    add_loras(flash.model, matching(flash.model, pattern), rank, alpha)
    for _, one in loras(flash.model):
        nn.init.normal_(one.b, std=0.3)


@torch.no_grad()
def logits(flash: FlashVL) -> torch.Tensor:
    ids, _, pixels, grids = flash.training_example(picture(), ANSWERED)
    return flash.model(ids, pixels, grids)


@pytest.fixture
def saved(folder, tmp_path):
    """A model's folder, its adapter's folder, and the logits of both together."""
    flash = FlashVL.from_pretrained(folder, device="cpu")
    before = logits(flash)
    adapted(flash)
    flash.save_adapter(tmp_path / "adapter")
    after = logits(flash)
    assert (after - before).abs().max() > 0.1
    return folder, tmp_path / "adapter", after


def test_a_new_adapter_changes_nothing_and_learns_alone():
    flash = tiny_model()
    before = logits(flash)
    add_loras(flash.model, matching(flash.model, DECODER_LAYERS), 2, 4.0)
    assert torch.equal(logits(flash), before)
    learns = {name for name, one in flash.model.named_parameters() if one.requires_grad}
    assert len(learns) == 2 * 7 * 2
    assert all(name.endswith((".a", ".b")) for name in learns)
    bound = flash.config.decoder.width**-0.5  # of Kaiming's values with a = sqrt 5
    query = flash.model.decoder.layers[0].attention.query
    assert 0.8 * bound < query.a.abs().max() <= bound


def test_loaded_merged_and_saved_it_is_the_same(saved, tmp_path, capsys):
    folder, adapter, wanted = saved
    beside = FlashVL.from_pretrained(folder, device="cpu", adapter=adapter)
    torch.testing.assert_close(logits(beside), wanted)
    with pytest.raises(CheckpointError, match="merge it first"):
        beside.save_pretrained(tmp_path / "no")
    beside.merge_adapter()
    assert not list(loras(beside.model))
    torch.testing.assert_close(logits(beside), wanted, atol=1e-5, rtol=1e-4)
    arguments = ["--model", str(folder), "--adapter", str(adapter), "--out", str(tmp_path / "m")]
    assert main(["merge", *arguments]) == 0
    merged = FlashVL.from_pretrained(tmp_path / "m", device="cpu")
    torch.testing.assert_close(logits(merged), wanted, atol=1e-5, rtol=1e-4)
    assert main(["verify", str(tmp_path / "m")]) == 0
    assert main(["merge", *arguments]) == 2
    assert "holds a model already" in capsys.readouterr().err


def test_merging_keeps_how_the_weights_are_stored(saved, tmp_path):
    folder, adapter, _ = saved
    half = FlashVL.from_pretrained(folder, device="cpu", dtype="bfloat16")
    half.save_pretrained(tmp_path / "half")
    options = ["--adapter", str(adapter), "--out", str(tmp_path / "m")]
    assert main(["merge", "--model", str(tmp_path / "half"), *options]) == 0
    stored = load_file(tmp_path / "m" / "model.safetensors")
    assert {one.dtype for one in stored.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "options", [{"quantize": "int8"}, {"quantize": "int4"}, {"dtype": "bfloat16"}]
)
def test_it_stands_beside_other_weights(saved, options):
    folder, adapter, wanted = saved
    flash = FlashVL.from_pretrained(folder, device="cpu", adapter=adapter, **options)
    without = FlashVL.from_pretrained(folder, device="cpu", **options)
    error = (logits(flash).float() - wanted).abs().max()
    assert error < 0.2 * (logits(without).float() - wanted).abs().max()
    assert flash.chat(None, user(), max_new_tokens=2) is not None
    if "quantize" in options:
        with pytest.raises(ArgumentError, match="not merged into quantized"):
            flash.merge_adapter()


@pytest.mark.parametrize("kind", ["dynamic-iss", "static"])
def test_peft_loads_it_on_an_independent_decoder_and_loads_back(kind, tmp_path):
    reference = make_checkpoint(tmp_path / "model", kind=kind)
    flash = FlashVL.from_pretrained(tmp_path / "model", device="cpu")
    adapted(flash)
    flash.save_adapter(tmp_path / "adapter")
    whole = nn.Module()  # the names that the published files have
    whole.vit, whole.llm = reference.tower, reference.decoder
    theirs = peft.PeftModel.from_pretrained(whole, tmp_path / "adapter")
    hit = {name for name, _ in theirs.named_modules() if name.endswith("lora_A.default")}
    assert len(hit) == 7 * len(reference.decoder.model.layers)
    assert all(".llm.model.layers." in name for name in hit)  # and none of the tower
    ids = flash.prepare(None, user()).input_ids
    with torch.no_grad():
        ours, wanted = flash.model(ids), reference.decoder(ids).logits
    torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-4)
    theirs.save_pretrained(tmp_path / "theirs")
    again = FlashVL.from_pretrained(tmp_path / "model", device="cpu", adapter=tmp_path / "theirs")
    with torch.no_grad():
        torch.testing.assert_close(again.model(ids), ours)


@pytest.mark.parametrize(
    "pattern",
    [r"llm\.model\.layers\.1\.mlp\.up_proj", r"(vit|adp)\..*", r"llm\.lm_head|adp\.proj", r".*fc1"],
)
def test_its_pattern_fits_what_was_chosen_and_no_more(pattern, tmp_path):
    flash = tiny_model()
    names = matching(flash.model, pattern)
    adapted(flash, pattern)
    flash.save_adapter(tmp_path / "adapter")
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert matching(tiny_model().model, written["target_modules"]) == names
    other = tiny_model()
    other.save_pretrained(tmp_path / "model")
    options = {"device": "cpu", "adapter": tmp_path / "adapter"}
    again = FlashVL.from_pretrained(tmp_path / "model", **options)
    torch.testing.assert_close(logits(again), logits(flash))


@pytest.mark.parametrize(
    ("pattern", "words"), [("(", "regular expression"), ("x", "no linear map")]
)
def test_a_pattern_that_fits_nothing_is_refused(flash, pattern, words):
    with pytest.raises(ArgumentError, match=words):
        matching(flash.model, pattern)


QUERY = "base_model.model.llm.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("tensors", "config", "words"),
    [
        ({f"{QUERY}.lora_B.weight": None}, {}, "half of the matrices of llm.model.layers.0"),
        ({f"{QUERY}.lora_A.weight": torch.zeros(3, 7)}, {}, "shape (3, 7), the model and rank 3"),
        ({f"{QUERY}.lora_A.weight": torch.zeros(3, 16).int()}, {}, "is I32 of shape"),
        ({"base_model.model.llm.x.lora_A.weight": torch.zeros(3, 16)}, {}, "no linear map"),
        ({"nonsense": torch.zeros(1)}, {}, "nonsense stands beside"),
        ({}, {"r": 4}, "rank 4 need"),
        ({}, {"use_dora": True}, "plain LoRA"),
        ({}, {"peft_type": "IA3"}, "plain LoRA"),
        ({}, {"rank_pattern": {"q_proj": 2}}, "plain LoRA"),
        ({}, {"lora_alpha": "x"}, "lora_alpha"),
    ],
)
def test_damaged_files_are_refused(saved, tensors, config, words):
    folder, adapter, _ = saved
    file = adapter / "adapter_model.safetensors"
    changed = load_file(file) | tensors
    save_file({name: one for name, one in changed.items() if one is not None}, file)
    described = adapter / "adapter_config.json"
    described.write_text(json.dumps(json.loads(described.read_text()) | config))
    with pytest.raises(FlashVLError) as refused:
        FlashVL.from_pretrained(folder, device="cpu", adapter=adapter)
    assert words in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@given(st.data())
def test_a_config_of_nonsense_is_refused_or_means_plain_lora(tmp_path_factory, data):
    base = tmp_path_factory.mktemp("junk")
    flash = tiny_model()
    adapted(flash, r"llm\.model\.layers\.0\.mlp\.up_proj")
    flash.save_adapter(base)
    flash.save_adapter(base, overwrite=True)
    described = base / "adapter_config.json"
    config = json.loads(described.read_text())
    config[data.draw(st.sampled_from(sorted(config)))] = data.draw(st.sampled_from(JUNK))
    described.write_text(json.dumps(config))
    from flashvl.checkpoint.adapter import read_adapter

    try:
        adapter = read_adapter(base, tiny_model().model)
    except FlashVLError:
        return
    assert len(adapter.matrices) == 1


def test_nothing_is_replaced_and_no_adapter_is_missed(saved, tmp_path):
    folder, adapter, _ = saved
    flash = FlashVL.from_pretrained(folder, device="cpu", adapter=adapter)
    with pytest.raises(CheckpointError, match="holds an adapter already"):
        flash.save_adapter(adapter)
    for other in (tmp_path, tmp_path / "none", "\0"):
        with pytest.raises(CheckpointError):
            FlashVL.from_pretrained(folder, device="cpu", adapter=other)
    with pytest.raises(CheckpointError, match="no adapter"):
        FlashVL.from_pretrained(folder, device="cpu").save_adapter(tmp_path / "new")
