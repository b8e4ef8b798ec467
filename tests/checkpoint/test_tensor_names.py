"""The table of names: every parameter has one published name, and back again."""

from __future__ import annotations

import pytest

from flashvl.checkpoint.tensor_names import (
    COMPRESSOR_AND_DECODER,
    VISION,
    our_name,
    published_name,
)


@pytest.mark.parametrize("architecture", VISION)
def test_the_table_is_one_to_one(architecture):
    table = VISION[architecture] | COMPRESSOR_AND_DECODER
    assert len(set(table.values())) == len(table)
    for theirs, ours in table.items():
        assert theirs.count("#") == ours.count("#") <= 1


@pytest.mark.parametrize("prefix", ["vit.", "vit.model.", ""])
def test_every_parameter_goes_there_and_back(any_flash, prefix):
    architecture = any_flash.config.vision.architecture
    names = [name for name, _ in any_flash.model.named_parameters()]
    theirs = [published_name(name, architecture, prefix) for name in names]
    assert len(set(theirs)) == len(names)
    assert not set(theirs) & set(names)
    assert [our_name(name, architecture, prefix) for name in theirs] == names


def test_layer_numbers_of_several_digits():
    ours = our_name("vit.trunk.blocks.23.attn.qkv.weight", "aimv2", "vit.")
    assert ours == "vision.layers.23.attention.qkv.weight"
    theirs = published_name("decoder.layers.107.mlp.up.weight", "siglip", "vit.")
    assert theirs == "llm.model.layers.107.mlp.up_proj.weight"


@pytest.mark.parametrize(
    "name", ["", "#", "llm", "adp.p0.2.weight", "vit.trunk.blocks.0", "x" * 99]
)
def test_a_name_that_is_not_in_the_table_stays(name):
    assert our_name(name, "aimv2", "vit.") == name
