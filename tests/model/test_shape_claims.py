"""Every shape comment and docstring of the boxes is true, and a wrong one is found."""

from __future__ import annotations

import importlib.util
import pkgutil

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint
from shape_claims import Checker, comment_claims, fits

import flashvl.model
from flashvl import FlashVL
from flashvl.checkpoint.adapter import matching
from flashvl.generation import generate, sampling
from flashvl.input import image, processor, tiling
from flashvl.model import lora
from flashvl.nano.world.scenes import scene

NETWORK = [
    importlib.import_module(f"flashvl.model.{module.name}")
    for module in pkgutil.iter_modules(flashvl.model.__path__)
]
BOXES = [*NETWORK, image, tiling, processor, generate, sampling]
SAMPLED = {"do_sample": True, "top_k": 5, "top_p": 0.9, "repetition_penalty": 1.1, "seed": 0}


def known(flash: FlashVL) -> dict[str, dict[str, int]]:
    """What the letters stand for in each box of one model."""
    config = flash.config
    tower, text = config.vision, config.decoder
    heads = {"H": text.heads, "K": text.key_value_heads, "head width": text.head_width}
    of_text = {"D": text.width, "V": text.vocabulary, **heads}
    of_tower = {"D": tower.width, "C": 3, "N": tower.side**2, "H": tower.heads}
    of_tower |= {"head width": tower.width // tower.heads, "p": tower.patch_size}
    of_tower |= {"patch": tower.patch_size}
    of_compressor = {
        "D": tower.width,
        "N": tower.side**2,
        "T": config.tokens_per_tile,
        "vision width": tower.width,
        "decoder width": text.width,
        "hidden width": config.compressor.hidden_width,
        "factor": config.compressor.shuffle,
        "shuffle": config.compressor.shuffle,
        "core": tower.side - 2 * config.stitched_margin,
    }
    tiles = {"C": 3, "vision width": tower.width, "tokens": config.tokens_per_tile}
    return {
        "cache": of_text,
        "decoder": of_text,
        "generate": of_text,
        "sampling": of_text,
        "network": of_text | tiles,
        "compressor": of_compressor,
        "patches": of_tower,
        "aimv2": of_tower,
        "siglip": of_tower,
        "lora": {"D": text.mlp_width, "width": text.width, "rank": 2},
        "image": {"C": 3},
        "tiling": {"C": 3},
        "processor": {"C": 3},
    }


def everything(flash: FlashVL) -> None:
    """Two rounds, a sampled answer, a batch, two pictures in two rows, and tiles put together."""
    picture = scene(4).picture.resize((500, 110))
    messages = [{"role": "user", "content": "What is in the picture?"}]
    conversation = flash.start(np.asarray(picture))
    for question in ("What is it?", "What colour?"):
        conversation.ask(question, max_new_tokens=3)
    flash.chat(picture, messages, max_new_tokens=3, **SAMPLED)
    longer = [{"role": "user", "content": "What? " * 9}]
    flash.chat_batch([(picture, messages), (None, messages), (None, longer)], max_new_tokens=9)
    input_ids, pixels, grids = flash.prepare(picture, messages)
    tiler, grid = flash.config.tiler, grids[0]
    canvas = tiling.canvas_of(picture, grid, tiler)
    tiling.stitch_tiles(tiling.cut_tiles(canvas, grid, tiler.core_size), grid, tiler.seen_margin)
    flash.training_example(picture, [*messages, {"role": "assistant", "content": "A star."}])
    two, both = input_ids.repeat(2, 1), pixels.repeat(2, 1, 1, 1)
    with torch.inference_mode():
        flash.model(two, both, grids * 2)
        flash.model(two, both, grids * 2, logits_at=slice(-3, None))
        flash.model(two, both, grids * 2, logits_at=two >= 0)
        lora.add_loras(flash.model, matching(flash.model, r".*llm.*down_proj"), 2, 4.0)
        flash.model(two, both, grids * 2)
        lora.merge_loras(flash.model)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("shapes")
    make_checkpoint(base / "static", kind="static")
    make_checkpoint(base / "dynamic", kind="dynamic", assumptions={"token_order": "columns"})
    make_checkpoint(base / "mean", kind="dynamic-iss", assumptions={"stitching": "mean"})
    make_checkpoint(base / "pool", kind="dynamic-iss", assumptions={"stitching": "pool"})
    return base


def test_all_claims_are_true_and_all_are_come_by(folders):
    checkers = []
    for name in ("nano", "static", "dynamic", "mean", "pool"):
        flash = FlashVL.from_pretrained(name if name == "nano" else folders / name)
        checker = Checker(BOXES, known(flash))
        checker.run(lambda flash=flash: everything(flash))
        assert checker.wrong == set(), name
        checkers.append(checker)
    assert len(checkers[0].all) > 120
    assert checkers[0].all == set().union(*(checker.seen for checker in checkers))


def wrong_in_two_ways(shape: str) -> list[str]:
    """The claim with its dimensions in reverse, and without the last one."""
    dims = shape.split(", ")
    return [", ".join(reversed(dims)), ", ".join(dims[:-1]) + ","]


@pytest.mark.parametrize("way", [0, 1])
def test_wrong_claims_are_found(way):
    """Each claim is made wrong in one way, all at once, and each must be told of.

    Of those in reverse, nearly each: names that stand for nothing known may change places.
    """
    flash = FlashVL.from_pretrained("nano")
    checker = Checker(BOXES, known(flash))
    wronged = set()
    for claim in (claim for claims in checker.comments.values() for claim in claims):
        if "..." not in claim.shape and len(set(claim.shape.split(", "))) > 1:
            claim.shape = wrong_in_two_ways(claim.shape)[way]
            wronged.add(claim.where)
    for code, (taken, given, where) in checker.docstrings.items():
        if taken and "..." not in taken[0]:
            changed = [wrong_in_two_ways(taken[0])[way], *taken[1:]]
            checker.docstrings[code] = (changed, given, where)
            wronged.add(where)
    checker.run(lambda: everything(flash))
    told = {line.split(": claimed")[0] for line in checker.wrong}
    assert len(told) >= (0.85, 1.0)[way] * len(wronged & checker.seen) > 80


@pytest.mark.parametrize(
    ("claimed", "shape", "fit"),
    [
        ("B, T, D", (2, 5, 8), True),
        ("B, D, T", (2, 5, 8), False),
        ("B, T", (2, 5, 8), False),
        ("B, T + 1, D", (2, 5, 8), True),  # T is not known yet
        ("K, K", (3, 3), True),
        ("K, K", (3, 4), False),
        ("D / 2, D * D", (4, 64), True),
        ("D / 2, D * D", (4, 63), False),
        ("1 or D, T", (8, 7), True),
        ("1 or D, T", (7, 7), False),
        ("..., D", (2, 5, 8), True),
        ("..., D", (2, 5, 7), False),
        ("B, D, ...", (2, 8, 1, 1), True),
        ("B, D, ...", (2, 7, 1, 1), False),
        ("head width, D²", (4, 64), True),
    ],
)
def test_shapes_and_claims(claimed, shape, fit):
    assert fits(claimed, shape, {"D": 8, "head width": 4}) == fit


def test_a_shape_comment_that_no_statement_ends_with_is_refused(tmp_path):
    file = tmp_path / "lost.py"
    file.write_text("def f(x):\n    y = x + 1  # (B, T)\n    x.sort()  # (B, T)\n    return y\n")
    spec = importlib.util.spec_from_file_location("lost", file)
    lost = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lost)
    with pytest.raises(AssertionError, match=r"lost\.py: no assignment or return ends at"):
        comment_claims(lost)
