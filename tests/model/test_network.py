"""The one forward: what it gives, what it may be asked for, and what it refuses."""

from __future__ import annotations

import ast
import dataclasses
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import picture, tiny_model, tiny_network, user
from torch import Tensor

import flashvl
from flashvl import FlashVL, FlashVLModel
from flashvl.errors import ArgumentError, ConfigError
from flashvl.input.processor import Prompt
from flashvl.model.cache import KVCache
from flashvl.model.recording import INPUT, recorded

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
# Pictures that are cut into different grids: 1 x 2, 2 x 2, 1 x 1, 3 x 1.
SIZES = [(40, 20), (36, 36), (12, 12), (16, 50)]
WAYS = [
    *(("iss", {"stitching": mode}) for mode in ("trim", "mean", "none", "pool")),
    ("iss", {"stitching": "mean", "thumbnail": False}),
    ("iss", {"stitching": "mean", "thumbnail": "first", "tile_order": "columns"}),
    ("dynamic", {}),
    ("dynamic", {"stitching": "mean"}),  # which there is no margin for
    ("static", {}),
]


def another(model: FlashVLModel, seed: int = 0) -> FlashVLModel:
    """Other weights of the same kind."""
    torch.manual_seed(seed)
    return FlashVLModel(model.config)


@torch.inference_mode()
def logits_of(model: FlashVLModel, *prompt, **more) -> Tensor:
    return model(*prompt, **more)


def new_cache(model: FlashVLModel, capacity: int, batch: int = 1) -> KVCache:
    return KVCache(model.config.decoder, capacity, batch)


@contextmanager
def sizes_seen(part):
    """The leading dimensions of what each pass gives to a part."""
    seen = []
    handle = part.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[:-1]))
    yield seen
    handle.remove()


def test_logits_of_text_and_of_a_picture_depend_on_them(any_flash):
    model, prompt = any_flash.model, any_flash.prepare(picture(), user())
    text = any_flash.prepare(None, user()).input_ids
    assert logits_of(model, text).shape == (1, text.shape[1], 320)
    ids, pixels, grids = prompt
    logits = logits_of(model, *prompt)
    assert logits.shape == (1, ids.shape[1], 320)
    assert logits.isfinite().all()
    other = logits_of(model, ids, pixels + 1, grids)
    first = (ids[0] == -200).nonzero()[0].item()
    assert torch.equal(logits[:, :first], other[:, :first])  # the causal mask
    assert not torch.equal(logits[:, -1], other[:, -1])


def test_a_row_does_not_depend_on_the_row_beside_it(any_flash):
    """Rows of the same length; see below for others."""
    model = any_flash.model
    one, two = (any_flash.prepare(picture(*size), user()) for size in ((40, 20), (20, 40)))
    assert one.input_ids.shape == two.input_ids.shape
    both = Prompt(
        torch.cat((one.input_ids, two.input_ids)),
        torch.cat((one.pixels, two.pixels)),
        one.grids + two.grids,
    )
    alone = torch.cat((logits_of(model, *one), logits_of(model, *two)))
    torch.testing.assert_close(logits_of(model, *both), alone, **CLOSE)


@given(st.none() | st.integers(-70, 70), st.none() | st.integers(-70, 70), st.integers(1, 5))
def test_logits_at_a_slice_are_those_rows_of_all_logits(flash, start, stop, step):
    prompt, wanted = flash.prepare(picture(12, 12), user()), slice(start, stop, step)
    everywhere = logits_of(flash.model, *prompt)
    with sizes_seen(flash.model.decoder.head) as seen:
        some = logits_of(flash.model, *prompt, logits_at=wanted)
    assert some.shape == everywhere[:, wanted].shape
    torch.testing.assert_close(some, everywhere[:, wanted], **CLOSE)
    assert seen == [some.shape[:2]]  # the head is run for no others


@given(st.data())
def test_logits_at_bools_are_those_rows_of_all_logits(flash, data):
    one, two = flash.prepare(picture(40, 20), user()), flash.prepare(picture(20, 40), user())
    ids, pixels = (torch.cat(pair) for pair in zip(one[:2], two[:2]))
    everywhere = logits_of(flash.model, ids, pixels)
    chosen = data.draw(st.sets(st.integers(0, ids.numel() - 1)))
    wanted = torch.zeros(ids.numel(), dtype=torch.bool)
    wanted[list(chosen)] = True
    wanted = wanted.view(ids.shape)
    with sizes_seen(flash.model.decoder.head) as seen:
        some = logits_of(flash.model, ids, pixels, logits_at=wanted)
    assert some.shape == (len(chosen), 320)
    torch.testing.assert_close(some, everywhere[wanted], **CLOSE)
    assert seen == [some.shape[:1]]


@settings(max_examples=25)
@given(st.lists(st.integers(1, 25), max_size=6), st.sampled_from([None, *SIZES]))
def test_with_a_cache_in_pieces_it_is_what_it_is_at_once(any_flash, cuts, size):
    """After a piece that ends with the picture's last place, however the rest is cut."""
    model = any_flash.model
    ids, pixels, grids = any_flash.prepare(size and picture(*size), user("One? Two? Three?"))
    whole = logits_of(model, ids, pixels, grids)
    start = int((ids[0] < 0).nonzero()[-1]) + 1 if size else 0
    cache, parts = new_cache(model, ids.shape[1]), []
    if size:
        parts.append(logits_of(model, ids[:, :start], pixels, grids, cache=cache))
    for length in [*cuts, ids.shape[1]]:
        piece = ids[:, cache.length : cache.length + length]
        if piece.shape[1]:
            parts.append(logits_of(model, piece, cache=cache))
    assert cache.length == ids.shape[1]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, **CLOSE)


def test_a_piece_for_each_picture_is_what_all_are_at_once(any_flash):
    model = any_flash.model
    prompts = [any_flash.prepare(picture(*size), user()) for size in SIZES]
    ids, pixels, grids = joined(prompts, dim=1)
    cache = new_cache(model, ids.shape[1])
    parts = [logits_of(model, *prompt, cache=cache) for prompt in prompts]
    whole = logits_of(model, ids, pixels, grids)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, **CLOSE)


def joined(prompts: list[Prompt], dim: int) -> Prompt:
    """One after the other in a row, or each in a row of its own, filled up on the right."""
    ids = [prompt.input_ids for prompt in prompts]
    if dim == 0:
        longest = max(one.shape[1] for one in ids)
        ids = [torch.nn.functional.pad(one, (0, longest - one.shape[1]), value=5) for one in ids]
    pixels = [prompt.pixels for prompt in prompts if prompt.pixels is not None]
    grids = [grid for prompt in prompts for grid in prompt.grids]
    return Prompt(torch.cat(ids, dim), torch.cat(pixels) if pixels else None, grids)


def side_by_side(lengths: list[int], seen: int = 0) -> tuple[Tensor, Tensor]:
    """positions (1, T) and mask (1, 1, T, seen + T) of texts in one row, all after `seen` tokens.

    By plain loops: a token attends to what was seen, and to its own text up to itself.
    """
    total = sum(lengths)
    positions = torch.zeros(1, total, dtype=torch.long)
    mask = torch.zeros(1, 1, total, seen + total, dtype=torch.bool)
    start = 0
    for length in lengths:
        for token in range(length):
            positions[0, start + token] = seen + token
            mask[0, 0, start + token, :seen] = True
            mask[0, 0, start + token, seen + start : seen + start + token + 1] = True
        start += length
    return positions, mask


@settings(max_examples=20)
@given(
    st.lists(st.sampled_from([None, *SIZES]), min_size=1, max_size=3), st.text("ab是", max_size=9)
)
def test_conversations_side_by_side_in_a_row_are_what_each_is_alone(any_flash, sizes, text):
    model = any_flash.model
    prompts = [
        any_flash.prepare(size and picture(*size), user(text * number))
        for number, size in enumerate(sizes)
    ]
    lengths = [prompt.input_ids.shape[1] for prompt in prompts]
    positions, mask = side_by_side(lengths)
    together = logits_of(model, *joined(prompts, dim=1), positions=positions, mask=mask)
    alone = torch.cat([logits_of(model, *prompt) for prompt in prompts], dim=1)
    torch.testing.assert_close(together, alone, **CLOSE)


def test_questions_side_by_side_about_what_a_cache_holds_are_what_each_is_alone(any_flash):
    model = any_flash.model
    questions = ("One?", "And two, three?", "")
    prompts = [any_flash.prepare(picture(), user(question)) for question in questions]
    seen = int((prompts[0].input_ids[0] < 0).nonzero()[-1]) + 1
    cache = new_cache(model, 400)
    ids, pixels, grids = prompts[0]
    nothing = logits_of(model, ids[:, :seen], pixels, grids, cache=cache, logits_at=slice(0))
    assert nothing.shape == (1, 0, 320)
    rest = [prompt.input_ids[:, seen:] for prompt in prompts]
    positions, mask = side_by_side([one.shape[1] for one in rest], seen)
    together = logits_of(model, torch.cat(rest, 1), positions=positions, mask=mask, cache=cache)
    alone = torch.cat([logits_of(model, *prompt)[:, seen:] for prompt in prompts], dim=1)
    torch.testing.assert_close(together, alone, **CLOSE)


def prepared(flash: FlashVL) -> list[Prompt]:
    """Prompts of different lengths about pictures of different grids."""
    return [
        flash.prepare(picture(*size), user("What? " * number)) for number, size in enumerate(SIZES)
    ]


def assert_image_tokens_are_those_alone(
    flash: FlashVL, prompts: list[Prompt], together: Prompt
) -> None:
    """The image tokens in what the decoder reads, in their order, are each picture's own."""
    entering, tokens = "decoder" + INPUT, []
    with recorded(flash.model, [entering]) as seen:
        for prompt in prompts:
            logits_of(flash.model, *prompt)
            tokens.append(seen[entering][prompt.input_ids < 0])
        logits_of(flash.model, *together)
        found = seen[entering][together.input_ids < 0]
    torch.testing.assert_close(found, torch.cat(tokens), **CLOSE)
    assert len(found) == len(together.pixels) * flash.config.tokens_per_tile


@pytest.mark.parametrize(("kind", "assumptions"), WAYS, ids=str)
def test_pictures_in_rows_of_a_batch_are_each_as_it_is_alone(kind, assumptions):
    flash = tiny_model(kind, **assumptions)
    prompts = prepared(flash)
    together = joined(prompts, dim=0)
    assert len(set(together.grids)) == (1 if kind == "static" else len(SIZES))
    logits = logits_of(flash.model, *together)
    for row, prompt in enumerate(prompts):
        alone = logits_of(flash.model, *prompt)[0]
        torch.testing.assert_close(logits[row, : len(alone)], alone, **CLOSE)
    assert_image_tokens_are_those_alone(flash, prompts, together)


@pytest.mark.parametrize(("kind", "assumptions"), WAYS, ids=str)
@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 1, 2, 3)])
def test_pictures_within_a_row_are_each_as_it_is_alone(kind, assumptions, order):
    flash = tiny_model(kind, **assumptions)
    prompts = [prepared(flash)[number] for number in order]
    together = joined(prompts, dim=1)
    positions, mask = side_by_side([prompt.input_ids.shape[1] for prompt in prompts])
    logits = logits_of(flash.model, *together, positions=positions, mask=mask)
    alone = torch.cat([logits_of(flash.model, *prompt) for prompt in prompts], dim=1)
    torch.testing.assert_close(logits, alone, **CLOSE)
    assert_image_tokens_are_those_alone(flash, prompts, together)


def test_in_the_mean_mode_every_picture_of_several_is_averaged():
    """Trimming any of them instead, which the grids of another would do, is seen."""
    mean, trim = tiny_model(stitching="mean"), tiny_model()
    prompts = [mean.prepare(picture(*size), user()) for size in ((40, 20), (36, 36))]
    together = joined(prompts, dim=0)
    averaged, trimmed = logits_of(mean.model, *together), logits_of(trim.model, *together)
    for row, prompt in enumerate(prompts):
        last = prompt.input_ids.shape[1] - 1
        assert not torch.allclose(averaged[row, last], trimmed[row, last], **CLOSE)
        alone = logits_of(mean.model, *prompt)[0, -1]
        torch.testing.assert_close(averaged[row, last], alone, **CLOSE)


@pytest.mark.parametrize(("kind", "assumptions"), WAYS, ids=str)
def test_grids_may_be_left_out_where_each_tile_stands_alone(kind, assumptions):
    flash = tiny_model(kind, **assumptions)
    ids, pixels, grids = joined(prepared(flash), dim=0)
    if (kind, assumptions.get("stitching")) == ("iss", "mean"):
        with pytest.raises(ArgumentError, match="pass the grids"):
            flash.model(ids, pixels)
        return
    wanted = logits_of(flash.model, ids, pixels, grids)
    assert torch.equal(logits_of(flash.model, ids, pixels), wanted)


WRONG_GRIDS = {
    "one grid that is not in a list": (6, 6),
    "a flat list": [1, 2],
    "none": [],
    "one too few": [(1, 2)],
    "one too many": [(1, 2), (2, 2), (1, 1)],
    "thumbnails not counted": [(2, 2), (2, 2)],
    "a picture too large": [(1, 2), (2, 3)],
    "a picture too small": [(1, 2), (1, 2)],
    "nothing": [(1, 2), (0, 4)],
    "negative numbers": [(-1, -2), (2, 2)],
    "bools": [(True, 2), (2, 2)],
    "floats": [(1.0, 2), (2, 2)],
    "one number": [(1,), (2, 2)],
    "three numbers": [(1, 2, 1), (2, 2)],
    "texts": ["12", (2, 2)],
    "a text": "1x2",
    "None among them": [None, (2, 2)],
    "a tensor": torch.tensor([[1, 2], [2, 2]]),
    "a huge number": [(10**40, 1), (2, 2)],
    "lines": ["1\n2", (2, 2)],
}


@pytest.mark.parametrize("stitching", ["trim", "mean", "none"])
@pytest.mark.parametrize("name", WRONG_GRIDS)
def test_grids_that_do_not_fit_are_refused_in_one_line(stitching, name):
    """Of two pictures, 1 x 2 and 2 x 2, with their thumbnails: 8 tiles."""
    flash = tiny_model(stitching=stitching)
    prompts = [flash.prepare(picture(*size), user()) for size in SIZES[:2]]
    ids, pixels, grids = joined(prompts, dim=0)
    assert (grids, len(pixels)) == ([(1, 2), (2, 2)], 8)
    with pytest.raises(ArgumentError, match="grids") as refusal:
        flash.model(ids, pixels, WRONG_GRIDS[name])
    assert len(str(refusal.value).splitlines()) == 1
    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize("change", ["no pixels", "a tile less", "a tile more", "a place less"])
def test_a_wrong_number_of_places_is_refused(any_flash, change):
    ids, pixels, _ = any_flash.prepare(picture(), user())
    if change == "a place less":
        ids = ids.masked_fill(ids == -200, 5)
    tiles = {"no pixels": None, "a tile less": pixels[1:], "a place less": pixels}
    with pytest.raises(ArgumentError, match="places for image tokens") as refusal:
        any_flash.model(ids, tiles.get(change, torch.cat((pixels, pixels[:1]))))
    assert len(str(refusal.value).splitlines()) == 1


def test_pixels_without_a_place_are_refused(any_flash):
    _, pixels, grids = any_flash.prepare(picture(), user())
    text = any_flash.prepare(None, user()).input_ids
    with pytest.raises(ArgumentError, match="have 0 places"):
        any_flash.model(text, pixels, grids)


def whole(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.long)


NO_TENSORS = [5, "ids", [[1, 2]], np.ones((1, 4), int), object(), 10**5000, "x\n" * 10**6]
# For 1 x 4 tokens of text.
MALFORMED = {
    "input_ids": [
        *(None, *NO_TENSORS, whole(), whole(4), whole(1, 1, 4), whole(1, 0), whole(0, 4)),
        *(whole(1, 4).to(dtype) for dtype in (torch.float32, torch.bool, torch.uint8)),
        *(whole(1, 4).to_sparse(), whole(1, 4).to("meta")),
        *(torch.tensor([[1, 2, 3, one]]) for one in (320, -1, -199, -202, 2**62, -(2**63))),
        *(torch.tensor([[one]]) for one in (320, -1, -200)),
    ],
    "pixels": [
        *(*NO_TENSORS, torch.ones(3, 16, 16), torch.ones(1, 1, 16, 16), torch.ones(1, 3, 16)),
        *(torch.ones(1, 3, *size) for size in ((15, 16), (16, 15), (16, 32), (8, 8), (18, 18))),
        *(
            torch.ones(1, 3, 16, 16).to(dtype)
            for dtype in (torch.uint8, torch.complex64, torch.bool)
        ),
        *(torch.ones(1, 16, 16, 3), torch.ones(1, 3, 16, 16).to("meta"), torch.ones(1, 3, 0, 0)),
        torch.ones(1, 3, 16, 16).to_sparse(),
    ],
    "grids": [[(1, 1)], 5, "grids", np.ones((1, 2)), torch.ones(1, 2), object(), 10**5000],
    "positions": [*NO_TENSORS, whole(4), whole(1, 5), whole(2, 4), torch.ones(1, 4), whole(1, 1)],
    "mask": [
        *(*NO_TENSORS, torch.ones(1, 1, 4, 4), torch.ones(4, 4) > 0, torch.ones(1, 2, 4, 4) > 0),
        *(torch.ones(2, 1, 4, 4) > 0, torch.ones(1, 1, 4, 5) > 0, torch.ones(1, 1, 5, 4) > 0),
    ],
    "cache": [5, "cache", object(), {}, 10**5000],
    "logits_at": [
        *(None, *NO_TENSORS, torch.tensor(1), whole(1, 4), torch.ones(1, 3) > 0, torch.ones(4) > 0),
        *(
            slice("a", None),
            slice(None, None, -1),
            slice(None, None, 0),
            slice(0.5),
            slice(10**40),
            (0, 1),
            [True],
        ),
    ],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_arguments_are_refused_in_one_line(flash, name):
    for value in MALFORMED[name]:
        arguments = {"input_ids": whole(1, 4), name: value}
        with pytest.raises(ArgumentError) as refusal:
            flash.model(**arguments)
        message = str(refusal.value)
        assert name.partition("_")[0] in message
        assert len(message) <= 300
        assert message.isprintable()


def test_a_cache_of_another_model_or_batch_is_refused(flash):
    config = flash.model.config.decoder
    caches = [
        KVCache(config, 9, 2),
        KVCache(dataclasses.replace(config, layers=3), 9),
        KVCache(dataclasses.replace(config, head_width=8), 9),
        KVCache(dataclasses.replace(config, key_value_heads=1), 9),
        KVCache(config, 9, dtype=torch.bfloat16),
        KVCache(config, 9, device="meta"),
    ]
    for cache in caches:
        with pytest.raises(ArgumentError, match="cache"):
            flash.model(whole(1, 4), cache=cache)
        assert cache.length == 0
    cache = new_cache(flash.model, 9)
    logits_of(flash.model, whole(1, 4), cache=cache)
    with pytest.raises(ArgumentError, match=r"mask .* \(1, 1, 4, 8\)"):
        flash.model(whole(1, 4), mask=torch.ones(1, 1, 4, 4) > 0, cache=cache)


def test_what_fits_is_not_refused(any_flash):
    """Other dtypes and one row for all; numbers that are not finite are the caller's own."""
    model = any_flash.model
    ids, pixels, grids = any_flash.prepare(picture(), user())
    wanted = logits_of(model, ids, pixels, grids)
    for dtype in (torch.float64, torch.float32):
        assert torch.equal(logits_of(model, ids.int(), pixels.to(dtype), grids), wanted)
    assert logits_of(model, ids, pixels.half(), grids).isfinite().all()
    assert logits_of(model, ids, pixels * torch.nan, grids).isnan().any()
    assert torch.equal(logits_of(model, ids, pixels, tuple(grids)), wanted)
    text = ids.masked_fill(ids < 0, 3).expand(2, -1)
    positions = torch.arange(text.shape[1], dtype=torch.int32)[None]
    mask = torch.ones(1, 1, *2 * text.shape[1:], dtype=torch.bool).tril()
    alone = logits_of(model, text)
    torch.testing.assert_close(
        logits_of(model, text, None, [], positions=positions, mask=mask), alone
    )
    for wanted_at in (slice(10**9), slice(-(10**9), None, 10**9)):
        assert logits_of(model, text, logits_at=wanted_at).shape[0] == 2


def test_an_unknown_tower_is_refused(flash):
    vision = dataclasses.replace(flash.config.vision, architecture="vit")
    with pytest.raises(ConfigError, match="no tower vit; known: aimv2, siglip"):
        FlashVLModel(dataclasses.replace(flash.config, vision=vision))


def test_on_the_meta_device_it_has_shapes_alone(any_flash):
    with torch.device("meta"):
        model = FlashVLModel(any_flash.config)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert model.device.type == "meta"
    ids, pixels, grids = any_flash.prepare(picture(), user()).to(model.device)
    assert model(ids, pixels, grids).shape == (1, ids.shape[1], 320)
    assert model(ids, pixels).shape == (1, ids.shape[1], 320)
    assert model(ids, pixels, grids, logits_at=slice(-1, None)).shape == (1, 1, 320)


def test_random_weights_are_finite_and_a_seed_repeats_them(any_flash):
    one, two, three = (another(any_flash.model, seed) for seed in (1, 1, 2))
    pairs = zip(one.parameters(), two.parameters(), three.parameters())
    equal = [(torch.equal(a, b), torch.equal(a, c)) for a, b, c in pairs]
    assert all(same for same, _ in equal)
    assert not all(other for _, other in equal)
    assert all(parameter.isfinite().all() for parameter in one.parameters())


def test_a_feature_layer_can_be_chosen():
    last, first = tiny_network(), tiny_network(feature_layer=0)
    pixels = torch.randn(2, 3, 16, 16)
    assert first.vision(pixels).shape == last.vision(pixels).shape
    assert not torch.equal(first.vision(pixels), last.vision(pixels))


def test_bfloat16_weights_give_bfloat16_logits():
    flash = tiny_model()
    model = flash.model.bfloat16()
    assert (model.dtype, model.activation_dtype) == (torch.bfloat16, torch.bfloat16)
    ids, pixels, grids = flash.prepare(picture(), user())
    assert pixels.dtype == torch.float32
    assert model(ids, pixels, grids).dtype == torch.bfloat16
    assert model.compressor(model.vision(pixels), grids).dtype == torch.bfloat16


@pytest.mark.parametrize("logits_at", ["all", "last", "bools"])
def test_a_gradient_reaches_every_part(any_flash, logits_at):
    model = another(any_flash.model)
    ids, pixels, grids = any_flash.prepare(picture(), user())
    wanted = {"all": slice(None), "last": slice(-1, None), "bools": ids == ids[0, -1]}[logits_at]
    model(ids, pixels, grids, logits_at=wanted).logsumexp(-1).sum().backward()
    gradients = {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if not name.startswith("vision.pooling_head.")
    }
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    for part in ("vision.patch_embedding.weight", "compressor.expand.weight"):
        assert gradients[part].ne(0).any()
    assert gradients["decoder.embedding.weight"].ne(0).any()


def test_nobody_replays_the_forward():
    """Nothing else embeds ids, fills places or calls the head; whoever looks inside records."""
    package = Path(flashvl.__file__).parent
    found = set()
    for file in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                last = called.rpartition(".")[2]
                if last in ("embedding", "head", "fill_places") and called != "F.embedding":
                    found.add((file.relative_to(package).as_posix(), called))
    network = "model/network.py"
    calls = {"self.decoder.embedding", "self.decoder.head", "fill_places"}
    assert found == {(network, call) for call in calls}
