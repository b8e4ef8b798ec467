"""Every assumption's alternatives, end to end, beside the reference, which has each once more."""

from __future__ import annotations

import pytest
import torch
from checkpoints import make_checkpoint
from photographs import photograph

from flashvl import FlashVL
from flashvl.assumptions import FIELDS, alternatives_of

LAYERS = 3
# The reference's vocabularies have no placeholders, and its padding no mode `symmetric`;
# tests/input holds both.
APART = {"tensor_prefix", "slice_markers"}
ALONE = [
    {name: one.value}
    for name in FIELDS
    if name not in APART
    for one in alternatives_of(name, LAYERS)
    if one.value != "symmetric" and (name != "max_tiles" or one.value in (2, 4, 6, 12))
]
TOGETHER = [
    {"thumbnail": "first", "tile_order": "columns", "stitching": "mean", "token_order": "columns"},
    {"grid": "slices", "max_tiles": 12, "stitching": "pool", "tile_order": "columns"},
    {"grid": "resolution", "padding": "edge", "thumbnail": "none", "system": False},
]


@pytest.mark.parametrize("assumptions", [*ALONE, *TOGETHER], ids=str)
def test_logits_are_those_of_the_reference(assumptions, tmp_path):
    sizes = {"side": 8, "patch": 4, "tower_layers": LAYERS, "layers": 2, "seed": 3}
    reference = make_checkpoint(tmp_path, assumptions=assumptions, **sizes)
    flash = FlashVL.from_pretrained(tmp_path, device="cpu", dtype="float32")
    image = photograph("rocket.jpg").resize((70, 50))  # 2 x 3 cores of 24 pixels
    messages = [{"role": "user", "content": "What is this?"}]
    prompt = flash.prepare(image, messages)
    assert prompt.grids == [reference.grid(image)]
    with torch.inference_mode():
        logits = flash.model(*prompt)
    expected = reference.logits(reference.prompt(image, messages))
    assert logits.shape == expected.shape
    # Where a picture is resized, the processor rounds to other gray levels now and then.
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()
    assert torch.nn.functional.cosine_similarity(logits, expected, dim=-1).min() > 0.999
    if assumptions in TOGETHER:
        plain = FlashVL.from_pretrained(
            tmp_path, "cpu", "float32", assumptions=dict.fromkeys(assumptions)
        )
        with torch.inference_mode():
            other = plain.model(*plain.prepare(image, messages))
        assert other.shape != logits.shape or (logits - other).abs().max() > 0.1 * logits.std()
