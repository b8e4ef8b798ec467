"""Every layer and the logits beside transformers, float32, on random checkpoints of all kinds.

"Within 1e-5 relative" means: the largest |ours - reference| of a layer's output is at most 1e-5
of the largest |reference| in it.
"""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from checkpoints import KINDS, make_checkpoint
from photographs import photograph
from reference import Reference
from safetensors.torch import load_file

from flashvl import FlashVL
from flashvl.model.recording import recorded
from flashvl.tools.parity import (
    COMPRESSOR_LAYERS,
    Difference,
    compare_layers,
    decoder_layers,
    difference,
    tower_layers,
)

TOLERANCE = 1e-5
SINGLE = "model.safetensors"
QUESTION = [{"role": "user", "content": "What is in this picture?"}]
WIDER = {
    "tower_width": 80,
    "tower_mlp_width": 144,
    "tower_layers": 5,
    "tower_heads": 5,
    "patch": 6,
    "side": 16,
    "compressor_width": 72,
    "width": 96,
    "mlp_width": 160,
    "layers": 5,
    "heads": 6,
    "key_value_heads": 3,
    "unused_rows": 0,
}
CHECKPOINTS = {
    "one file, head of its own": {},
    "shards, tied head": {"seed": 1, "shards": 3, "tied": True, "tokenizer_form": "parts"},
    "other sizes": {"seed": 2, "shards": 2} | WIDER,
    "one key/value head": {"seed": 3, "heads": 4, "key_value_heads": 1, "layers": 2},
    "bfloat16 file": {"seed": 4, "dtype": torch.bfloat16},
    "float16 file, config by transformers": {
        "seed": 5,
        "dtype": torch.float16,
        "config_by_library": True,
    },
    "head of its own, config says tied": {"seed": 6, "config_says_tied": True},
    "tied head, config says not": {"seed": 7, "tied": True, "config_says_tied": False},
}


def layer_differences(flash: FlashVL, reference: Reference, images: list) -> list[Difference]:
    """One pass of each side over a row that holds a question about each of the pictures."""
    prompts = [flash.prepare(image, QUESTION) for image in images]
    input_ids = torch.cat([prompt.input_ids for prompt in prompts], dim=1)
    their_pixels = [reference.pixels(image) for image in images]
    their_ids = [reference.input_ids(QUESTION, len(tiles)) for tiles in their_pixels]
    assert torch.equal(input_ids, torch.cat(their_ids, dim=1))
    tower = reference.tower_for(their_pixels[0])
    parts = [
        (tower_layers(flash.config.vision), tower),
        (COMPRESSOR_LAYERS, reference.compressor),
        (decoder_layers(flash.config.decoder), reference.decoder),
    ]
    with torch.inference_mode(), ExitStack() as stack:
        names = [name for layers, _ in parts for name in layers]
        ours = stack.enter_context(recorded(flash.model, names))
        flash.model(
            input_ids,
            torch.cat([prompt.pixels for prompt in prompts]),
            [grid for prompt in prompts for grid in prompt.grids],
        )
        theirs = [stack.enter_context(recorded(part, layers.values())) for layers, part in parts]
        features = tower(torch.cat(their_pixels)).last_hidden_state
        pictures = zip(features.split([len(tiles) for tiles in their_pixels]), images)
        reduced = [reference.reduce(of_one, reference.grid(image)) for of_one, image in pictures]
        tokens = reference.compressor(torch.cat(reduced))
        reference.logits(reference.embed(torch.cat(their_ids, dim=1), tokens))
    pairs = zip(parts, theirs)
    return [one for (layers, _), outputs in pairs for one in compare_layers(layers, ours, outputs)]


def assert_all_within(differences: list[Difference], tolerance: float = TOLERANCE) -> None:
    beyond = [one for one in differences if not one.relative <= tolerance]
    assert not beyond, beyond


def load(folder, dtype: str = "float32") -> FlashVL:
    return FlashVL.from_pretrained(folder, device="cpu", dtype=dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", CHECKPOINTS)
def test_every_layer(kind, form, tmp_path):
    reference = make_checkpoint(tmp_path, kind=kind, **CHECKPOINTS[form])
    differences = layer_differences(load(tmp_path), reference, [photograph("chelsea.png")])
    spec = reference.spec
    others = 10 if kind == "static" else 11
    assert len(differences) == spec.tower_layers + spec.layers + others
    assert_all_within(differences)


@pytest.mark.parametrize("stitching", ["trim", "mean", "none"])
@pytest.mark.parametrize("side", [8, 16])
def test_every_layer_of_each_stitching_mode(stitching, side, tmp_path):
    reference = make_checkpoint(tmp_path, side=side, assumptions={"stitching": stitching})
    flash = load(tmp_path)
    for name in ("chelsea.png", "text.png", "astronaut.png"):
        assert_all_within(layer_differences(flash, reference, [photograph(name)]))


SIZES = [(150, 100), (64, 64), (100, 150), (310, 100)]
SEVERAL = [(kind, "trim", True) for kind in ("dynamic", "static")]
SEVERAL += [("dynamic-iss", mode, small) for mode in ("trim", "mean", "none") for small in (0, 1)]


@pytest.mark.parametrize(("kind", "stitching", "thumbnail"), SEVERAL)
def test_every_layer_of_several_pictures_in_one_pass(kind, stitching, thumbnail, tmp_path):
    """Pictures with grids of their own, a single tile among them, with and without thumbnails."""
    assumptions = {"stitching": stitching, "thumbnail": bool(thumbnail)}
    reference = make_checkpoint(tmp_path, kind=kind, seed=33, assumptions=assumptions)
    images = [photograph("coffee.png").resize(size) for size in SIZES]
    grids = {reference.grid(image) for image in images}
    assert len(grids) == (1 if kind == "static" else len(SIZES))
    assert_all_within(layer_differences(load(tmp_path), reference, images))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(64, 64), (150, 100), (100, 150), (620, 100), (90, 500)])
def test_logits_of_any_number_of_tiles(kind, size, tmp_path):
    reference = make_checkpoint(tmp_path, kind=kind, seed=5)
    flash = load(tmp_path)
    image = photograph("coffee.png").resize(size)
    prompt = flash.prepare(image, QUESTION)
    assert prompt.grids == [reference.grid(image)]
    with torch.inference_mode():
        logits = flash.model(*prompt)
    assert_all_within(
        [difference("logits", logits, reference.logits(reference.prompt(image, QUESTION)))]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_public_parts_and_logits(kind, tmp_path):
    """The surface that other tools rely on: vision, compressor, forward, with and without image."""
    reference = make_checkpoint(tmp_path, kind=kind, seed=6)
    flash = load(tmp_path)
    image = photograph("rocket.jpg")
    prompt, text = flash.prepare(image, QUESTION), flash.prepare(None, QUESTION)
    with torch.inference_mode():
        features = flash.model.vision(prompt.pixels)
        their_tokens = reference.image_tokens(prompt.pixels, reference.grid(image))
        their_text = reference.logits(reference.prompt(None, QUESTION))
        pairs = {
            "features": (features, reference.features(prompt.pixels)),
            "tokens": (flash.model.compressor(features, prompt.grids), their_tokens),
            "tokens without grids": (flash.model.compressor(features), their_tokens),
            "text": (flash.model(*text), their_text),
            "text by ids": (flash.model(text.input_ids), their_text),
        }
    assert (text.pixels, text.grids) == (None, [])
    assert_all_within([difference(name, *pair) for name, pair in pairs.items()])


@pytest.mark.parametrize(
    ("kind", "stitching"),
    [("dynamic", "trim"), ("static", "trim")]
    + [("dynamic-iss", mode) for mode in ("trim", "mean", "none")],
)
def test_rows_of_a_batch_are_apart(kind, stitching, tmp_path):
    """Two prompts of the same length with a picture each give the logits that each gives alone.

    One picture is two tiles wide, the other two tiles high.
    """
    reference = make_checkpoint(tmp_path, kind=kind, seed=7, assumptions={"stitching": stitching})
    flash = load(tmp_path)
    images = [
        photograph("coffee.png").resize((150, 75)),
        photograph("rocket.jpg").resize((75, 150)),
    ]
    prompts = [flash.prepare(image, QUESTION) for image in images]
    with torch.inference_mode():
        logits = flash.model(
            torch.cat([prompt.input_ids for prompt in prompts]),
            torch.cat([prompt.pixels for prompt in prompts]),
            [grid for prompt in prompts for grid in prompt.grids],
        )
    expected = [reference.logits(reference.prompt(image, QUESTION)) for image in images]
    assert_all_within([difference("logits", logits, torch.cat(expected))])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_saved_tensors_are_the_published_ones(kind, tied, tmp_path):
    """Names, shapes and every number of the file that transformers' modules were written to."""
    make_checkpoint(tmp_path / "first", kind=kind, seed=31, tied=tied)
    load(tmp_path / "first").save_pretrained(tmp_path / "again")
    first, again = (load_file(tmp_path / name / SINGLE) for name in ("first", "again"))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("kind", KINDS)
def test_compressor_of_small_features(kind, tmp_path):
    """So small that the LayerNorm's epsilon counts."""
    reference = make_checkpoint(tmp_path, kind=kind, seed=30)
    flash = load(tmp_path)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 64, reference.spec.tower_width, generator=generator) * 1e-2
    with torch.inference_mode():
        tokens = flash.model.compressor(features)
        expected = reference.compressor(reference.reduce(features, (1, 2)))
    assert_all_within([difference("tokens", tokens, expected)])


def test_feature_layer(tmp_path):
    """The assumption `feature_layer` takes a layer's bare output."""
    reference = make_checkpoint(tmp_path, seed=8, assumptions={"feature_layer": 1})
    pixels = reference.pixels(photograph("text.png"))
    with torch.inference_mode():
        states = reference.tower(pixels, output_hidden_states=True).hidden_states
        ours = load(tmp_path).model.vision(pixels)
    assert_all_within([difference("features", ours, states[2])])  # 0 is the embeddings


REAL_TOWERS = {
    "dynamic-iss": {
        "tower_width": 1536,
        "tower_mlp_width": 4096,
        "tower_heads": 12,
        "patch": 14,
        "width": 1536,
        "mlp_width": 8960,
        "heads": 12,
        "key_value_heads": 2,
        "compressor_width": 7168,
    },
    # A small decoder, since the one above is the same; the compressor is 4608 to 7168.
    "static": {
        "tower_width": 1152,
        "tower_mlp_width": 4304,
        "tower_heads": 16,
        "patch": 16,
        "compressor_width": 7168,
    },
}


@pytest.mark.parametrize("kind", REAL_TOWERS)
def test_one_layer_of_each_part_at_the_real_sizes(kind, tmp_path):
    reference = make_checkpoint(
        tmp_path,
        kind=kind,
        side=32,
        tower_layers=1,
        layers=1,
        dtype=torch.bfloat16,
        **REAL_TOWERS[kind],
    )
    flash = load(tmp_path)
    (tmp_path / "model.safetensors").unlink()  # 300 MB
    assert flash.config.vision.patches == 1024
    image = photograph("text.png").resize((200, 200))
    assert_all_within(layer_differences(flash, reference, [image]))


# bfloat16 has 8 bits of precision, 4e-3 relative, which a dozen layers multiply.
BFLOAT16_TOLERANCE = 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16(kind, tmp_path):
    """Looser: the logits of both sides in bfloat16 differ by at most 0.1 relative.

    And ours are at most twice as far from those in float32 as transformers' are.
    """
    reference = make_checkpoint(tmp_path, kind=kind, seed=9, dtype=torch.bfloat16)
    flash, exact = load(tmp_path, "bfloat16"), load(tmp_path)
    image = photograph("text.png")
    prompt = flash.prepare(image, QUESTION)
    with torch.inference_mode():
        logits, in_float32 = flash.model(*prompt), exact.model(*prompt)
    assert logits.dtype == torch.bfloat16
    for module in (reference.tower, reference.compressor, reference.decoder):
        module.to(torch.bfloat16)
    tokens = reference.image_tokens(reference.pixels(image).bfloat16(), reference.grid(image))
    theirs = reference.logits(reference.embed(prompt.input_ids, tokens))
    ours_off = difference("logits", logits.float(), in_float32).relative
    theirs_off = difference("logits", theirs.float(), in_float32).relative
    assert difference("logits", logits.float(), theirs.float()).relative <= BFLOAT16_TOLERANCE
    assert 0 < ours_off <= 2 * theirs_off


def test_a_broken_layer_is_seen(tmp_path):
    """The comparison itself: a small change of one weight goes beyond the tolerance."""
    reference = make_checkpoint(tmp_path)
    flash = load(tmp_path)
    with torch.no_grad():
        flash.model.decoder.layers[1].mlp.down.weight[0] *= 1.001
    differences = layer_differences(flash, reference, [photograph("text.png")])
    beyond = [one.layer for one in differences if one.relative > TOLERANCE]
    assert beyond[0] == "decoder.layers.1"
