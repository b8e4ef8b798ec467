"""The page's model in JavaScript against the same in PyTorch, tokenizers and Pillow."""

from __future__ import annotations

import dataclasses
import decimal
import itertools
import json
import math
import random
import unicodedata

import hypothesis
import numpy as np
import pytest
import torch
from explorer.in_node import bytes_of, needs_node, picture_of, run_in_node, tensor_of
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import PUBLISHED, picture, tiny_model, tiny_published, tokenizer_definition, user

from flashvl import FlashVL, FlashVLConfig, FlashVLModel
from flashvl.assumptions import PLACEHOLDERS, choices_of
from flashvl.checkpoint.hub import weights_folder
from flashvl.config import PADDINGS, PromptConfig, TilerConfig
from flashvl.generation.sampling import Sampling, keep_top_k, keep_top_p
from flashvl.input.prompt import encode_messages
from flashvl.input.tiling import GRID_RULES, grids_of, tile_image
from flashvl.input.tokenizer import Tokenizer
from flashvl.model.cache import KVCache
from flashvl.model.compressor import average_windows
from flashvl.model.decoder import rope_rotation
from flashvl.model.recording import recorded
from flashvl.nano.world.scenes import scene, scoring_number
from flashvl.tools.explore import page_data, resizes_height_first
from flashvl.tools.look import attention_weights, lay_on_picture

pytestmark = needs_node

FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
STITCHING = choices_of("stitching")
# In which order tiles come.
ORDERS = list(itertools.product(choices_of("thumbnail"), choices_of("tile_order")))


@pytest.fixture(scope="module")
def nano() -> FlashVL:
    return FlashVL.from_pretrained("nano", device="cpu", dtype="float32")


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


# Pictures.


@pytest.mark.parametrize("resample", FILTERS.values(), ids=list(FILTERS))
def test_resizing_is_pillows_to_the_byte(resample, tmp_path):
    sizes = [(7, 9, 30, 40), (60, 50, 12, 33), (31, 64, 31, 20), (5, 5, 5, 5), (90, 3, 11, 40)]
    sizes += [(64, 48, 17, 48), (1, 1, 8, 9), (200, 150, 1, 1)]
    pictures = [noise(height, width, seed) for seed, (height, width, *_) in enumerate(sizes)]
    cases = [
        {"picture": picture_of(one), "height": height, "width": width, "resample": resample}
        for one, (_, _, height, width) in zip(pictures, sizes)
    ]
    found = run_in_node(tmp_path, "resize", cases=cases, heightFirst=resizes_height_first())
    for one, size, result in zip(pictures, sizes, found):
        wanted = np.asarray(one.resize((size[3], size[2]), resample))
        assert np.array_equal(bytes_of(result), wanted), size


def test_tiles_and_grids_are_pythons(tmp_path, nano):
    """In every mode of padding and stitching, with a margin that is wider than the picture too."""
    config = nano.config
    cases, wanted = [], []
    for number, padding in enumerate(PADDINGS):
        for stitching in STITCHING:
            for height, width in [(50, 80), (300, 110), (97, 400), (100, 100)]:
                tiler = dataclasses.replace(config.tiler, padding=padding, stitching=stitching)
                if number % 2:  # a tiler of other sizes: cores of 4 pixels in margins of 7
                    tiler = dataclasses.replace(tiler, tile_size=18, margin=7, thumbnail="none")
                image = noise(height, width, number)
                wanted.append(tile_image(image, tiler))
                cases.append({"picture": picture_of(image), "config": as_json(config, tiler)})
    assert_tiles_are_equal(tmp_path, cases, wanted)


def test_tiles_come_in_pythons_order_by_every_rule(tmp_path, nano):
    cases, wanted = [], []
    for (thumbnail, order), rule in itertools.product(ORDERS, GRID_RULES):
        changes = {"thumbnail": thumbnail, "tile_order": order, "grid": rule}
        tiler = dataclasses.replace(nano.config.tiler, tile_size=14, margin=2, **changes)
        for height, width in [(9, 9), (23, 31), (12, 90), (40, 18)]:
            image = noise(height, width, len(cases))
            wanted.append(tile_image(image, tiler))
            cases.append({"picture": picture_of(image), "config": as_json(nano.config, tiler)})
    assert len({grid for _, grid in wanted}) > 4
    assert_tiles_are_equal(tmp_path, cases, wanted)


def as_json(config: FlashVLConfig, tiler: TilerConfig) -> dict:
    """The config with another tiler, as the page gets it."""
    values = dataclasses.asdict(dataclasses.replace(config, tiler=tiler, source={}))
    values["tiler"]["height_first"] = resizes_height_first()
    return values


def assert_tiles_are_equal(folder, cases, wanted):
    found = run_in_node(folder, "tiles", cases=cases)
    for (tiles, grid), result in zip(wanted, found, strict=True):
        assert tuple(result["grid"]) == grid
        assert np.array_equal(np.stack([bytes_of(one) for one in result["tiles"]]), tiles)


def halfway_pictures(max_tiles: int) -> list[tuple[int, int]]:
    """(height, width) of each shape halfway, in the logarithm, between two grids.

    There rounding alone decides between them.
    """
    shapes = set()
    for one, other in itertools.combinations(grids_of(max_tiles), 2):
        across, down = one[1] * other[1], one[0] * other[0]
        common = math.gcd(across, down)
        width, height = math.isqrt(across // common), math.isqrt(down // common)
        if width**2 * common == across and height**2 * common == down:
            shapes.add((height, width))
    return sorted(shapes)


def test_grids_are_pythons_by_every_rule(tmp_path):
    dice = random.Random(0)
    sizes = [
        (dice.randrange(1, 4000), dice.randrange(1, 4000), core, dice.randrange(1, 15))
        for core in (12, 84, 336)
        for _ in range(1000)
    ]
    sizes += [
        (height * 120, width * 120, core, max_tiles)
        for height, width in halfway_pictures(12)
        for core in (37, 84, 120, 300)
        for max_tiles in range(1, 13)
    ]
    cases = [(rule, *one) for rule in GRID_RULES for one in sizes]
    found = run_in_node(tmp_path, "grids", cases=cases)
    assert found["rules"] == list(GRID_RULES) == list(choices_of("grid"))
    for (rule, *one), grid in zip(cases, found["grids"], strict=True):
        assert tuple(grid) == GRID_RULES[rule](*one), (rule, one)
    counts = {rows * columns for rows, columns in found["grids"]}
    assert counts == set(range(1, 15))


def test_logarithms_are_the_nearest_numbers(tmp_path):
    values = [columns / rows for rows, columns in grids_of(300)] + [1 / 30000, 30000.0]
    with decimal.localcontext() as context:
        context.prec = 50
        wanted = [float(decimal.Decimal(value).ln()) for value in values]
    assert run_in_node(tmp_path, "logarithms", values=values) == wanted


# Texts.


def known_to_all(text: str) -> bool:
    """Engines differ in the newest characters of Unicode; those of its version 13 all know."""
    return all(unicodedata.category(letter) not in ("Cn", "Cs", "Co") for letter in text)


def texts(count: int) -> list[str]:
    """Texts that hypothesis finds, and those that are hard on purpose."""
    hard = ["", " ", "\n", "\r\n \n", "I'll we'VE it'ſ 'S'd", "don’t", "a\u0085b\ufeffc\u2028d"]
    hard += ["<|im_end|>", "<|im_start|>user\n", "e\u0301 é ﬁ Å", "红色的圆形。", "12345 3.14"]
    hard += [
        "  two  spaces\t\ttabs  ",
        "🟥🔵 👩‍👩‍👧",
        "x" * 300,
        "¼ Ⅷ ௧",
        "\x00\x1f",
        "…!!!\n\n\n?",
    ]
    found: list[str] = []
    pieces = st.sampled_from([" ", "\n", "'s", "'LL", "star", "红", "7", "?!", "\u3000", "é", "\t"])
    letters = st.characters(max_codepoint=0x1FFFF, exclude_categories=("Cs", "Cn", "Co"))
    whole = st.one_of(
        st.text(letters), st.lists(st.one_of(pieces, letters), max_size=30).map("".join)
    )

    @hypothesis.settings(max_examples=count)
    @given(whole.filter(known_to_all))
    def collect(text: str) -> None:
        found.append(text)

    collect()
    return hard + found


@pytest.mark.parametrize("vocabulary", ["nano", "tiny"])
def test_ids_and_texts_are_those_of_the_library(vocabulary, tmp_path):
    if vocabulary == "nano":
        file = weights_folder() / "nano" / "tokenizer.json"
        definition = json.loads(file.read_text(encoding="utf-8"))
    else:
        definition = tokenizer_definition()
    tokenizer = Tokenizer(definition)
    given_texts = texts(300)
    dice = random.Random(0)
    given_ids = [
        [dice.randrange(tokenizer.vocabulary) for _ in range(dice.randrange(12))]
        for _ in range(200)
    ]
    found = run_in_node(
        tmp_path,
        "tokens",
        definition=tokenizer.definition(),
        texts=given_texts,
        ids=given_ids,
    )
    for text, ids in zip(given_texts, found["ids"], strict=True):
        assert ids == tokenizer.encode(text), repr(text)
    for ids, text in zip(given_ids, found["texts"], strict=True):
        assert text == tokenizer.decode(ids), ids
    assert {token for ids in found["ids"] for token in ids}.isdisjoint(tokenizer.control.values())


def test_a_text_that_is_not_cut_or_normalized_stays_whole(tmp_path):
    definition = tokenizer_definition() | {"normalizer": None}
    definition["pre_tokenizer"] = definition["pre_tokenizer"]["pretokenizers"][1]
    tokenizer = Tokenizer(definition)
    given_texts = ["What colour is", "e\u0301", "user\nassistant", ""]
    found = run_in_node(
        tmp_path, "tokens", definition=tokenizer.definition(), texts=given_texts, ids=[]
    )
    assert found["ids"] == [tokenizer.encode(text) for text in given_texts]


PROMPTS = [
    PromptConfig(*values)
    for values in itertools.product(
        (PromptConfig.system, None, ""),
        choices_of("image_place"),
        (*choices_of("slice_markers"), ("<|im_end|>", "<|im_start|>")),
    )
]


def test_prompts_are_pythons(tmp_path):
    tokenizer = Tokenizer(tokenizer_definition())
    conversation = [
        {"role": "system", "content": "Short."},
        {"role": "user", "content": "\nWhat is it?"},
        {"role": "assistant", "content": "a star"},
        {"role": "user", "content": "它是什么颜色？"},
    ]
    said = [conversation, conversation[1:], user("What is <|im_end|> this?"), user("")]
    said += [user(text) for text in texts(30)]
    cases, wanted = [], []
    for config, messages in itertools.product(PROMPTS, said):
        for tiles, tokens in ((0, 0), (1, 1), (3, 4)):
            wanted.append(encode_messages(messages, tokenizer, config, tiles, tokens))
            cases.append(
                {
                    "messages": messages,
                    "config": {
                        "system": config.system,
                        "imagePlace": config.image_place,
                        "sliceMarkers": config.slice_markers,
                    },
                    "tiles": tiles,
                    "tokensPerTile": tokens,
                }
            )
    definition = tokenizer.definition()
    assert run_in_node(tmp_path, "prompts", definition=definition, cases=cases) == wanted


@pytest.mark.parametrize(
    ("markers", "system", "thumbnail"),
    [
        ("none", "You see.", "last"),
        ("tile", False, "first"),
        ("tile", "You see.", "last"),
        ("picture", "You see.", "first"),
        (("<|im_end|>", "<|im_start|>"), False, "none"),
    ],
)
def test_each_part_of_a_prompt_is_what_it_is_called(markers, system, thumbnail, tmp_path):
    flash = tiny_model("iss", slice_markers=markers, system=system, thumbnail=thumbnail)
    image, question = picture(60, 40), "Why?"
    prompt = flash.prepare(image, user(question))
    ids, tokens = prompt.input_ids[0].tolist(), flash.config.tokens_per_tile
    job = {"picture": picture_of(image), "question": question, "sampling": {"maxNewTokens": 1}}
    (messages,) = run_in_node(tmp_path, "jobs", flash, jobs=[job], whole=True)
    (parts,) = [one["parts"] for one in messages if one["kind"] == "prompt"]
    assert [one["image"] for one in parts if one["image"] is not None] == list(
        range(tokens * len(prompt.pixels))
    )
    assert [one["image"] is None for one in parts] == [token >= 0 for token in ids]
    kinds = [kind for kind, _ in itertools.groupby(one["kind"] for one in parts)]
    seen = {"last": ["tiles", "thumbnail"], "first": ["thumbnail", "tiles"], "none": ["tiles"]}
    assert kinds == ["system"] * bool(system) + ["question", *seen[thumbnail], "question", "answer"]
    count = {kind: sum(one["kind"] == kind for one in parts) for kind in kinds}
    pairs = {"none": 0, "picture": 1}.get(markers, len(prompt.pixels))
    cells = prompt.grids[0][0] * prompt.grids[0][1]
    assert count["tiles"] + count.get("thumbnail", 0) == len(prompt.pixels) * tokens + 2 * pairs
    if markers in ("none", "tile"):
        assert count["tiles"] == cells * (tokens + 2 * (markers == "tile"))


def test_the_placeholders_are_pythons(tmp_path):
    assert tuple(run_in_node(tmp_path, "placeholders")) == PLACEHOLDERS


# Sampling.


def test_chances_are_pythons(tmp_path):
    settings = [(1.0, 1.0, 0, 1.0), (0.5, 1.0, 0, 1.3), (2.0, 0.7, 0, 1.0), (1.0, 1.0, 3, 1.0)]
    settings += [(0.8, 0.4, 5, 2.0), (1.5, 0.05, 0, 0.7), (1.0, 0.9, 99, 1.0)]
    cases, wanted = [], []
    for seed, (temperature, top_p, top_k, penalty) in enumerate(settings):
        torch.manual_seed(seed)
        logits, seen = torch.randn(40) * 3, [1, 5, 5, 39]
        kept = logits[None].clone()
        for token in set(seen):
            kept[0, token] *= penalty if kept[0, token] < 0 else 1 / penalty
        kept = kept / temperature
        kept = keep_top_k(kept, top_k) if top_k else kept
        kept = keep_top_p(kept, top_p) if top_p < 1 else kept
        wanted.append(kept.softmax(-1)[0])
        sampling = {"temperature": temperature, "topP": top_p, "topK": top_k}
        sampling["repetitionPenalty"] = penalty
        cases.append({"logits": logits.tolist(), "seen": seen, "sampling": sampling})
    for found, chances in zip(run_in_node(tmp_path, "chances", cases=cases), wanted, strict=True):
        torch.testing.assert_close(
            torch.tensor(found, dtype=torch.float32), chances, atol=1e-6, rtol=1e-5
        )


def test_tokens_are_drawn_by_their_chances(tmp_path):
    chances = torch.tensor([0.5, 0.3, 0.15, 0.05])
    sampling = {"doSample": True, "temperature": 1, "topP": 1, "topK": 0, "repetitionPenalty": 1}
    drawn = run_in_node(
        tmp_path, "draws", logits=chances.log().tolist(), sampling=sampling, seed=7, count=4000
    )
    shares = torch.bincount(torch.tensor(drawn), minlength=4) / len(drawn)
    torch.testing.assert_close(shares, chances, atol=0.03, rtol=0)


# The network.


def assert_layers_are_equal(flash, image, folder, columns=(), heads=()):
    """One pass in both, with columns that nobody attends to and heads that are silent."""
    prompt = flash.prepare(image, user("What is in the picture?"))
    model, ids = flash.model, prompt.input_ids
    without = {"columns": list(columns), "heads": [f"{layer}.{head}" for layer, head in heads]}
    found = run_in_node(
        folder,
        "layers",
        flash,
        picture=picture_of(image),
        ids=ids[0].tolist(),
        without=without,
    )
    tokens, width = ids.shape[1], flash.config.decoder.head_width
    mask = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    mask[:, list(columns)] = False
    towers = [name for name, _ in model.named_modules() if name.startswith("vision.layers.")]
    layers = [name for name in towers if name.count(".") == 2]
    if (last := flash.config.vision.feature_layer) >= 0:
        layers = layers[: last + 1]
    decoders = [f"decoder.layers.{index}" for index in range(flash.config.decoder.layers)]
    silenced = []
    with torch.inference_mode():
        for layer, head in heads:
            weight = model.decoder.layers[layer].attention.output.weight
            silenced.append((weight, weight.clone()))
            weight[:, head * width : (head + 1) * width] = 0
        names = ["vision", "compressor", *layers, *decoders]
        with recorded(model, names) as seen:
            logits = model(*prompt, mask=mask[None, None])
        for weight, before in silenced:
            weight.copy_(before)
    wanted = {name: seen[name] for name in names} | {"logits": logits, "pixels": prompt.pixels}
    for name, tensor in wanted.items():
        ours = torch.from_numpy(tensor_of(found[name]).copy())
        if name in decoders or name == "logits":
            tensor = tensor[0, -2:]  # the two tokens after the cache
        assert ours.shape == tensor.shape, name
        difference = (ours - tensor).norm() / tensor.norm()
        assert difference < 1e-5, (name, difference)
    return found


@pytest.mark.parametrize("kind", list(PUBLISHED))
def test_every_layer_of_the_three_kinds_is_pytorchs(kind, tmp_path):
    assert_layers_are_equal(tiny_model(kind, seed=3), picture(60, 40), tmp_path)


@pytest.mark.parametrize(
    "assumptions",
    [
        {"stitching": "mean", "token_order": "columns"},
        {"stitching": "none"},
        {"stitching": "pool", "thumbnail": "first", "tile_order": "columns"},
        {"stitching": "mean", "thumbnail": "first", "tile_order": "columns"},
        {"stitching": "mean", "thumbnail": "none", "grid": "resolution"},
        {"feature_layer": 0, "padding": "constant", "thumbnail": "none", "grid": "slices"},
        {"feature_layer": 1, "padding": "symmetric", "system": False, "image_place": "text"},
        {"padding": "reflect", "slice_markers": PLACEHOLDERS},
        {"slice_markers": "picture"},
    ],
    ids=str,
)
def test_every_layer_is_pytorchs_whatever_is_assumed(assumptions, tmp_path):
    assert_layers_are_equal(tiny_model("iss", **assumptions), picture(60, 40), tmp_path)


@pytest.mark.parametrize(
    ("kind", "stitching"), [("dynamic", "mean"), ("dynamic", "pool"), ("static", "pool")]
)
def test_models_without_margins_take_all_assumptions_too(kind, stitching, tmp_path):
    assumptions = {"token_order": "columns", "feature_layer": 0, "thumbnail": "first"}
    assumptions |= {"tile_order": "columns", "max_tiles": 6, "slice_markers": "tile"}
    flash = tiny_model(kind, stitching=stitching, **assumptions)
    assert_layers_are_equal(flash, picture(60, 40), tmp_path)


def test_pooling_is_pytorchs_for_every_size(tmp_path):
    cases, wanted = [], []
    for side, core in [(8, 6), (32, 24), (7, 3), (5, 4), (6, 6), (9, 1)]:
        torch.manual_seed(side)
        features = torch.randn(2, side, side, 3)
        wanted.append(average_windows(features, core))
        values = features.flatten().tolist()
        cases.append({"shape": list(features.shape), "values": values, "core": core})
    for found, tensor in zip(run_in_node(tmp_path, "windows", cases=cases), wanted, strict=True):
        torch.testing.assert_close(torch.from_numpy(tensor_of(found).copy()), tensor)


def test_a_tied_head_is_the_embedding(tmp_path):
    published = tiny_published()
    published["llm_config"]["tie_word_embeddings"] = True
    model = FlashVLModel(FlashVLConfig.from_dict(published)).eval()
    tokenizer = Tokenizer(tokenizer_definition())
    assert_layers_are_equal(FlashVL(model, tokenizer, [300]), picture(), tmp_path)


def test_every_layer_of_nano_is_pytorchs(tmp_path, nano):
    assert_layers_are_equal(nano, scene(scoring_number(1, 0)).picture, tmp_path)


def test_what_is_taken_away_is_gone_as_in_pytorch(tmp_path, nano):
    found = assert_layers_are_equal(
        nano, picture(90, 90), tmp_path, columns=range(20, 34), heads=[(1, 2), (3, 0)]
    )
    for layer in range(nano.config.decoder.layers):
        weights = tensor_of(found[f"decoder.layers.{layer}.attention.weights"])
        assert not weights[:, :, 20:34].any()
    assert not tensor_of(found["decoder.layers.1.attention.weights"])[2].any()


def test_attention_is_what_look_draws(tmp_path, nano):
    image = picture(200, 100)
    found = assert_layers_are_equal(nano, image, tmp_path)
    prompt = nano.prepare(image, user("What is in the picture?"))
    tokens = prompt.input_ids.shape[1]
    names = [f"decoder.layers.{n}.attention" for n in range(nano.config.decoder.layers)]
    parts = [f"{name}.{part}" for name in names for part in ("query", "key")]
    with torch.inference_mode(), recorded(nano.model, parts) as seen:
        nano.model(*prompt)
        rotation = rope_rotation(
            nano.config.decoder, torch.arange(tokens)[None], nano.model.activation_dtype
        )
        for name in names:
            wanted = attention_weights(
                seen[f"{name}.query"], seen[f"{name}.key"], rotation, tokens - 2
            )
            ours = torch.from_numpy(tensor_of(found[f"{name}.weights"]).copy())
            torch.testing.assert_close(ours, wanted[0], atol=1e-5, rtol=0)


# Answers.


def ask_both(flash: FlashVL, folder, count: int) -> None:
    """The first questions of unseen scenes, a picture of each in turn."""
    jobs, wanted, number = [], [], 0
    while len(jobs) < count:
        drawn = scene(scoring_number(11, number))
        number += 1
        for place, question in enumerate(drawn.questions[number % 3 :: 5]):
            image = picture_of(drawn.picture) if place == 0 else None
            jobs.append({"picture": image, "question": question.text})
            wanted.append(flash.chat(drawn.picture, user(question.text)))
    found = run_in_node(folder, "jobs", flash, jobs=jobs[:count])
    assert [messages[-1]["answer"] for messages in found] == wanted[:count]
    assert len(set(wanted)) > count / 20


def test_answers_are_those_of_chat(tmp_path, nano):
    ask_both(nano, tmp_path, 10)


@pytest.mark.parametrize("wait", [0, 30])
def test_the_newest_question_is_about_the_newest_picture(wait, tmp_path, nano):
    """Also if the job that brought the picture never had its turn."""
    pictures = [scene(scoring_number(11, number)).picture for number in (0, 1, 2)]
    question = "What is in the picture?"
    jobs = [{"picture": picture_of(one), "question": question} for one in pictures]
    jobs.append({"picture": None, "question": question})
    found = run_in_node(tmp_path, "hurried", nano, jobs=jobs, wait=wait)
    assert found[-1] == [4, nano.chat(pictures[2], user(question))]
    for number, answer in found[:-1]:
        assert answer == nano.chat(pictures[number - 1], user(question))


def test_answers_of_other_assumptions_are_those_of_chat(tmp_path):
    assumptions = {"thumbnail": "first", "tile_order": "columns", "stitching": "pool"}
    assumptions |= {"grid": "slices", "system": False, "image_place": "text"}
    other = FlashVL.from_pretrained("nano", device="cpu", dtype="float32", assumptions=assumptions)
    ask_both(other, tmp_path, 5)


@pytest.mark.slow
def test_two_hundred_answers_are_those_of_chat(tmp_path, nano):
    ask_both(nano, tmp_path, 200)


def test_an_answer_of_a_tiny_model_that_never_stops_ends_with_its_limit(tmp_path):
    flash = tiny_model("dynamic", seed=5)
    image = picture(50, 70)
    jobs = [{"picture": picture_of(image), "question": "Why?", "sampling": {"maxNewTokens": 9}}]
    ((done,),) = run_in_node(tmp_path, "jobs", flash, jobs=jobs)
    sampling = Sampling(max_new_tokens=9)
    assert done["answer"] == flash.chat(image, user("Why?"), max_new_tokens=sampling.max_new_tokens)


@pytest.mark.parametrize("token_order", choices_of("token_order"))
def test_tokens_lie_where_look_draws_them(token_order, tmp_path):
    cases, wanted = [], []
    for (thumbnail, tile_order), grid in itertools.product(ORDERS, [(1, 1), (1, 3), (2, 3)]):
        config = FlashVLConfig.from_dict(
            tiny_published(thumbnail=thumbnail, tile_order=tile_order, token_order=token_order)
        )
        tokens = config.tiler.tiles(grid) * config.tokens_per_tile
        numbers = np.arange(tokens).reshape(-1, config.tokens_per_tile)
        order = list(config.tiler.order(grid))
        wanted.append((order, numbers, *lay_on_picture(numbers, grid, config)))
        cases.append({"config": as_json(config, config.tiler), "grid": grid})
    found = run_in_node(tmp_path, "places", cases=cases)
    for places, (order, numbers, tiles, thumbnail) in zip(found, wanted, strict=True):
        assert places["tiles"] == tiles.ravel().tolist()
        assert places["thumbnail"] == (None if thumbnail is None else thumbnail.ravel().tolist())
        assert places["again"] == list(range(len(places["boxes"])))
        for one in (tiles, thumbnail):
            if one is None:
                continue
            for (row, column), token in np.ndenumerate(one):
                rows, columns = one.shape
                box = [column / columns, row / rows, 1 / columns, 1 / rows]
                assert places["boxes"][token] == box
        for number, one in enumerate(places["ofTiles"]):
            assert one == numbers[order.index(number)].tolist()


def test_erased_tokens_are_those_that_nobody_attends_to(tmp_path, nano):
    """A star that is erased is not there, for the tiles and the thumbnail."""
    image = Image.open(weights_folder() / "nano" / "pictures" / "red-circle-and-blue-star.png")
    prompt = nano.prepare(image, user("What colour is the star?"))
    rows, columns = prompt.grids[0]
    side = 6
    erased = []
    for token in range(prompt.pixels.shape[0] * side**2):
        tile, y, x = token // side**2, token // side % side, token % side
        if tile < rows * columns:
            x = (tile % columns * side + x + 0.5) / (columns * side)
            y = (tile // columns * side + y + 0.5) / (rows * side)
        else:
            x, y = (x + 0.5) / side, (y + 0.5) / side
        if 0.55 <= x < 0.9 and 0.2 <= y < 0.85:
            erased.append(token)
    jobs = [
        {"picture": picture_of(image), "question": "What colour is the star?"},
        {
            "picture": None,
            "question": "What colour is the star?",
            "without": {"tokens": erased, "heads": []},
        },
    ]
    before, after = run_in_node(tmp_path, "jobs", nano, jobs=jobs)
    assert before[-1]["answer"] == "blue"
    places = (prompt.input_ids[0] < 0).nonzero()[:, 0]
    mask = torch.ones(2 * [prompt.input_ids.shape[1]], dtype=torch.bool).tril()
    mask[:, places[erased]] = False
    cache = KVCache(nano.config.decoder, prompt.input_ids.shape[1])
    with torch.inference_mode():
        logits = nano.model(*prompt, mask=mask[None, None], cache=cache)[0, -1]
    first = nano.tokenizer.decode([int(logits.argmax())])
    assert after[-1]["answer"].startswith(first)
    assert after[-1]["answer"] == "There is no star."


def test_the_data_of_the_page_is_the_models(nano):
    data = page_data(nano)
    tiler = data["config"]["tiler"]
    del tiler["height_first"]
    assert TilerConfig(**tiler) == nano.config.tiler
    assert set(data["stopIds"]) == nano.stop_ids
