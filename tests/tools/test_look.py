"""`flashvl look`: the attention is the model's own, and it is laid where its tokens come from."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from checkpoints import KINDS, make_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import picture, teach_answer, tiny_model, tiny_published, user

from flashvl import FlashVL, FlashVLConfig
from flashvl.cli import main
from flashvl.errors import ArgumentError, MessageError
from flashvl.input.processor import Prompt
from flashvl.input.tiling import cut_tiles
from flashvl.model.compressor import Compressor
from flashvl.model.decoder import DecoderAttention, rope_rotation
from flashvl.model.recording import recorded
from flashvl.tools import drawing
from flashvl.tools.drawing import (
    FADED,
    HEAT,
    LEAST_CHANCE,
    STRONGEST,
    bar_length,
    heated,
    paragraph,
    printable,
)
from flashvl.tools.look import (
    attention_weights,
    hardest,
    lay_on_picture,
    look,
    read_and_watch,
    spelled,
)

QUESTION = "What is this?"
grids = st.tuples(st.integers(1, 3), st.integers(1, 3))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder, and what transformers computes from it."""
    folder = tmp_path_factory.mktemp("look") / "model"
    return folder, make_checkpoint(folder)


# First the attention.


@pytest.mark.parametrize("image", [None, picture(60, 40)])
def test_attention_is_that_of_transformers(checkpoint, image):
    folder, reference = checkpoint
    flash = FlashVL.from_pretrained(folder, device="cpu")
    prompt, model = flash.prepare(image, user(QUESTION)), flash.model
    embeddings = reference.prompt(image, user(QUESTION))  # (1, T, D)
    tokens = embeddings.shape[1]
    first = tokens - 9
    reference.decoder.set_attn_implementation("eager")
    with torch.inference_mode():
        output = reference.decoder(inputs_embeds=embeddings, output_attentions=True)
        theirs = torch.cat(list(output.attentions))  # (layers, H, T, T)
        decoder = model.config.decoder
        assert theirs.shape == (decoder.layers, decoder.heads, tokens, tokens)
        assert len(theirs) == 3
        logits, found = read_and_watch(model, prompt, first)
        torch.testing.assert_close(found, theirs[:, :, first:], atol=1e-5, rtol=0)
        assert torch.equal(logits, model(*prompt, logits_at=slice(first, None)))


@given(
    st.sampled_from([(1, 1), (2, 1), (4, 2), (6, 2), (3, 3)]),
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(0, 99),
)
def test_applied_to_the_values_it_gives_the_modules_own_output(heads, half, tokens, seed):
    torch.manual_seed(seed)
    config = dataclasses.replace(
        FlashVLConfig.from_dict(tiny_published()).decoder,
        heads=heads[0],
        key_value_heads=heads[1],
        head_width=2 * half,
    )
    module = DecoderAttention(config, 0)
    x = torch.randn(2, tokens, config.width) * 3
    rotation = rope_rotation(config, torch.arange(tokens)[None], x.dtype)
    with torch.no_grad(), recorded(module, ["query", "key", "value"]) as outputs:
        wanted = module(x, rotation, None, None)  # (B, T, D)
    weights = attention_weights(outputs["query"], outputs["key"], rotation)  # (B, H, T, T)
    assert weights.shape == (2, heads[0], tokens, tokens)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:3]))
    assert weights.min() >= 0
    assert not weights.triu(diagonal=1).any()
    values = outputs["value"].unflatten(-1, (heads[1], -1))  # (B, T, K, head width)
    values = values.repeat_interleave(heads[0] // heads[1], dim=2)  # (B, T, H, head width)
    read = torch.einsum("bhts,bshd->bthd", weights, values).flatten(2)  # (B, T, H * head width)
    with torch.no_grad():
        torch.testing.assert_close(module.output(read), wanted, atol=1e-5, rtol=1e-5)
    for first in range(tokens):
        later = attention_weights(outputs["query"], outputs["key"], rotation, first)
        torch.testing.assert_close(later, weights[:, :, first:])


def test_the_answer_at_once_is_read_as_the_answer_one_by_one(flash):
    """A token's attention does not change when more of the answer follows."""
    ids = torch.randint(flash.tokenizer.vocabulary, (1, 9))
    with torch.inference_mode():
        _, at_once = read_and_watch(flash.model, Prompt(ids, None, []), 4)
        for row in range(5):
            _, alone = read_and_watch(flash.model, Prompt(ids[:, : 5 + row], None, []), 4 + row)
            torch.testing.assert_close(alone[:, :, 0], at_once[:, :, row, : 5 + row])
            assert not at_once[:, :, row, 5 + row :].any()


# Then its place in the picture.


@given(
    st.sampled_from(["trim", "mean", "none", "shuffle"]),
    st.sampled_from(["rows", "columns"]),
    st.sampled_from(["rows", "columns"]),
    grids,
    st.sampled_from(["last", "first", "none"]),
    st.data(),
)
def test_a_marked_feature_is_found_at_its_place(
    stitching, order, tile_order, grid, thumbnail, data
):
    """One patch of the tower's output is marked; the compressor folds and orders the tokens."""
    kind = "dynamic" if stitching == "shuffle" else "iss"
    assumed = {"token_order": order, "tile_order": tile_order, "thumbnail": thumbnail}
    assumed |= {} if kind == "dynamic" else {"stitching": stitching}
    config = FlashVLConfig.from_dict(tiny_published(kind, **assumed))
    margin, factor = config.stitched_margin, config.compressor.shuffle
    core = config.tiler.core_size // config.vision.patch_size
    y = data.draw(st.integers(0, grid[0] * core - 1))
    x = data.draw(st.integers(0, grid[1] * core - 1))
    canvas = np.zeros((grid[0] * core, grid[1] * core, 1), dtype=np.float32)
    canvas[y, x] = 1
    padding = ((margin, margin), (margin, margin), (0, 0))
    tiles = [cut_tiles(np.pad(canvas, padding), grid, core)]
    has_thumbnail = thumbnail != "none" and grid != (1, 1)
    if has_thumbnail:
        mark = data.draw(st.tuples(*[st.integers(0, core - 1)] * 2))
        small = np.zeros((core, core, 1), dtype=np.float32)
        small[mark] = 1
        tiles.append(np.pad(small, padding)[None])
    places = list(range(grid[0] * grid[1]))
    if tile_order == "columns":
        places = np.arange(grid[0] * grid[1]).reshape(grid).T.ravel().tolist()
    if has_thumbnail:
        places.insert(0 if thumbnail == "first" else len(places), grid[0] * grid[1])
    features = torch.from_numpy(np.concatenate(tiles)[places]).flatten(1, 2)  # (S, N, 1)
    features = features.expand(-1, -1, config.vision.width)
    tokens = Compressor(config).reduce(features, [grid]).sum(dim=-1).numpy()  # (S, tokens)
    assert tokens.shape[1] == config.tokens_per_tile

    laid, laid_thumbnail = lay_on_picture(tokens, grid, config)
    assert laid.shape == (grid[0] * core // factor, grid[1] * core // factor)
    assert np.argwhere(laid).tolist() == [[y // factor, x // factor]]
    assert (laid_thumbnail is not None) == has_thumbnail
    if has_thumbnail:
        wanted = [at // factor for at in mark]
        assert np.argwhere(laid_thumbnail).tolist() == [wanted]


@given(grids, st.integers(1, 4), st.data())
def test_the_hottest_token_glows_at_its_pixels_alone(grid, side, data):
    rows, columns = grid[0] * side, grid[1] * side
    row, column = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    values = np.zeros((rows, columns), dtype=np.float32)
    values[row, column] = 1
    shown = np.asarray(heated(Image.new("RGB", (7, 5)), values, (columns * 8, rows * 6), grid))
    middles = shown[3::6, 4::8]  # (rows, columns, 3), each from within one square
    gray = 255 * (1 - FADED)  # of a black picture
    assert np.argwhere((middles != round(gray)).any(axis=-1)).tolist() == [[row, column]]
    hot = STRONGEST * np.array(HEAT) + (1 - STRONGEST) * gray
    assert np.abs(middles[row, column] - hot).max() <= 1


@given(st.floats(0, 1), st.floats(0, 1))
def test_bars_are_logarithmic(one, other):
    lengths = [bar_length(chance) for chance in (one, other)]
    assert sorted(lengths) == [bar_length(chance) for chance in sorted((one, other))]
    assert (bar_length(1), bar_length(0), bar_length(LEAST_CHANCE)) == (1, 0, 0)
    assert bar_length(0.1) - bar_length(0.01) == pytest.approx(bar_length(1) - bar_length(0.1))


# Then the tokens of an answer.


def test_the_tokens_are_the_models_own_answer(any_flash):
    answer = look(any_flash, picture(), QUESTION, 6)
    ids = [token.token_id for token in answer if token.token_id not in any_flash.stop_ids]
    assert any_flash.tokenizer.decode(ids) == any_flash.chat(
        picture(), user(QUESTION), max_new_tokens=6
    )
    [grid] = any_flash.prepare(picture(), user(QUESTION)).grids
    side = round(any_flash.config.tokens_per_tile**0.5)
    for token in answer:
        assert len(token.strongest) == 4
        for seen in (token.mean, *(seen for _, _, seen in token.strongest)):
            assert seen.tiles.shape == (grid[0] * side, grid[1] * side)
            assert (seen.thumbnail is None) == (grid == (1, 1))
            parts = [seen.tiles.sum(), seen.text]
            parts += [] if seen.thumbnail is None else [seen.thumbnail.sum()]
            assert min(parts) > 0
            assert sum(parts) == pytest.approx(1, abs=1e-5)
            assert seen.brightest == max(
                seen.tiles.max(), 0 if grid == (1, 1) else seen.thumbnail.max()
            )


def test_the_candidates_are_the_models_own_logits(any_flash):
    answer = look(any_flash, picture(), QUESTION, 3)
    ids, pixels, grids = any_flash.prepare(picture(), user(QUESTION))
    with torch.inference_mode():
        for token in answer:
            logits = any_flash.model(ids, pixels, grids)[0, -1]
            best = logits.softmax(dim=-1).topk(5)
            assert [token_id for token_id, _ in token.candidates] == best.indices.tolist()
            chances = [chance for _, chance in token.candidates]
            assert chances == pytest.approx(best.values.tolist(), rel=1e-4)
            assert (token.token_id, token.probability) == token.candidates[0]
            ids = torch.cat((ids, torch.tensor([[token.token_id]])), dim=1)


@pytest.mark.parametrize("assumptions", [{"stitching": "mean"}, {"slice_markers": ["a", "b"]}])
def test_attention_goes_to_the_places_of_the_picture(assumptions):
    """By hand: the places of -200 and -201 alone, in all layers or in one."""
    if "slice_markers" in assumptions:
        assumptions = {"slice_markers": ["[PLACEHOLDER_0]", "[PLACEHOLDER_1]"]}
    flash = tiny_model("iss", **assumptions)
    prompt = flash.prepare(picture(), user(QUESTION))
    places = (prompt.input_ids[0] < 0).nonzero().flatten()
    first = prompt.input_ids.shape[1] - 1
    with torch.inference_mode():
        _, attention = read_and_watch(flash.model, prompt, first)  # (layers, H, 1, T)
    for layer, head in ((None, None), (0, None), (1, None), (None, 3), (1, 2)):
        token = look(flash, picture(), QUESTION, 1, layer, head)[0]
        chosen = attention if layer is None else attention[layer : layer + 1]
        chosen = chosen if head is None else chosen[:, head : head + 1]
        on_tokens = chosen.mean(dim=(0, 1))[0, places].reshape(3, 6, 6).numpy()  # 1 x 2 tiles, ...
        np.testing.assert_allclose(token.mean.tiles, np.hstack(on_tokens[:2]), atol=1e-6)
        np.testing.assert_allclose(token.mean.thumbnail, on_tokens[2], atol=1e-6)
        for one, two, seen in token.strongest:
            assert (one, two) == (one if layer is None else layer, two if head is None else head)
            on_tokens = attention[one, two, 0, places].reshape(3, 6, 6).numpy()
            np.testing.assert_allclose(seen.tiles, np.hstack(on_tokens[:2]), atol=1e-6)


def test_the_hardest_heads_look_at_few_tokens_of_the_picture():
    everywhere, one_place, little = torch.full((5,), 0.2), torch.eye(5)[1], torch.eye(5)[1] * 0.1
    heads = torch.stack([torch.stack([everywhere, little]), torch.stack([little / 2, one_place])])
    assert hardest(heads, 9) == [(1, 1), (0, 0), (0, 1), (1, 0)]
    assert hardest(heads, 1) == [(1, 1)]


def test_the_stop_token_is_one_of_them_unless_the_answer_was_cut_off():
    flash = tiny_model()
    ids = teach_answer(flash, "red!")
    assert [token.token_id for token in look(flash, picture(), QUESTION, 20)] == ids
    for limit in range(1, len(ids)):
        found = look(flash, picture(), QUESTION, limit)
        assert [token.token_id for token in found] == ids[:limit]


def test_what_cannot_be_looked_at_is_refused(flash):
    for layer in (-1, 2):
        with pytest.raises(ArgumentError, match="layers 0 to 1"):
            look(flash, picture(), QUESTION, 1, layer)
    with pytest.raises(ArgumentError, match="heads 0 to 3"):
        look(flash, picture(), QUESTION, 1, 0, 4)
    with pytest.raises(ArgumentError, match="max_new_tokens"):
        look(flash, picture(), QUESTION, 0)
    with pytest.raises(MessageError, match="context"):
        look(flash, picture(), "long " * 600, 1)


# Then words.


@pytest.fixture
def without_fonts(monkeypatch):
    """A machine whose fonts have no Chinese."""
    monkeypatch.setattr(drawing, "WIDE_FONTS", ())
    drawing._wide_font.cache_clear()
    yield
    drawing._wide_font.cache_clear()


@given(st.text())
def test_words_are_printable_and_stay_so(text):
    for shows in (None, str.isprintable, lambda letter: False):
        shown = printable(text, shows)
        assert shown.isprintable()
        assert printable(shown, shows) == shown
    assert shown.isascii()


def test_without_a_font_chinese_is_spelled_and_never_a_box(without_fonts):
    assert printable("颜色 ok\n") == "\\u989c\\u8272 ok\\n"
    drawn = paragraph("颜色", 300)
    assert drawn.tobytes() == paragraph("\\u989c\\u8272", 300).tobytes()


@pytest.mark.skipif(not drawing.has_glyph("颜"), reason="no font of this machine has Chinese")
def test_with_a_font_chinese_is_drawn_and_what_it_lacks_is_spelled():
    assert printable("颜色\U0001f9ff\x00") == "颜色\\U0001f9ff\\x00"
    pictures = {paragraph(word, 300).tobytes() for word in ("颜色", "\\u989c\\u8272", "红色", "")}
    assert len(pictures) == 4


def test_every_token_has_a_name_of_its_own(flash):
    tokenizer = flash.tokenizer
    names = [spelled(token_id, tokenizer) for token_id in range(tokenizer.vocabulary)]
    assert len(set(names)) == len(names)
    assert all(name.isprintable() for name in names)
    assert names[tokenizer.control_id("<|im_end|>")] == "<|im_end|>"
    assert names[tokenizer.encode("a")[0]] == '"a"'
    assert any(name.startswith("part of a character") for name in names)
    assert spelled(tokenizer.vocabulary + 3, tokenizer) == f"id {tokenizer.vocabulary + 3}"


# The user's path.


def command(folder, tmp_path, capsys, *more, question="颜色?") -> tuple[int, str, str]:
    picture(60, 40).save(tmp_path / "photo.png")
    image = ["--image", str(tmp_path / "photo.png")]
    out = ["--out", str(tmp_path / "o.png"), "--max-new-tokens", "4"]
    code = main(["look", "--model", str(folder), *image, question, *out, *more])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["rows", "columns"])
def test_each_published_kind(kind, order, tmp_path, capsys):
    reference = make_checkpoint(tmp_path / "model", kind=kind, assumptions={"token_order": order})
    code, output, error = command(tmp_path / "model", tmp_path, capsys)
    assert (code, error) == (0, "")
    with Image.open(tmp_path / "o.png") as drawn:
        assert drawn.format == "PNG"
        assert min(drawn.size) > 600
    rows = output.splitlines()[2:]
    assert 1 <= len(rows) <= 4
    if order == "rows":  # the reference's answer, token by token
        messages = [{"role": "user", "content": "颜色?"}]
        ids = reference.generate(reference.prompt(picture(60, 40), messages), 4, stop=False)
        tokenizer = FlashVL.from_pretrained(tmp_path / "model", device="cpu").tokenizer
        for row, token_id in zip(rows, ids):
            assert row.startswith(spelled(token_id, tokenizer, str.isprintable))
    assert all(row.count("%") == (3 if kind == "static" else 4) for row in rows)


def test_one_layer_gives_another_picture_than_all(checkpoint, tmp_path, capsys):
    folder, _ = checkpoint
    drawn = []
    choices = (
        [],
        ["--layer", "0"],
        ["--layer", "2"],
        ["--head", "1"],
        ["--layer", "2", "--head", "1"],
    )
    for number, more in enumerate(choices):
        out = tmp_path / f"{number}.png"
        assert command(folder, tmp_path, capsys, *more, "--out", str(out))[0] == 0
        drawn.append(out.read_bytes())
    assert len(set(drawn)) == len(choices)


def test_nano_looks_at_its_picture(tmp_path, capsys):
    """The embedded model, whatever it answers."""
    code, output, _ = command("nano", tmp_path, capsys, question=QUESTION)
    assert code == 0
    assert len(output.splitlines()) > 2
    assert (tmp_path / "o.png").exists()


def test_a_picture_that_is_there_is_not_replaced(folder, tmp_path, capsys):
    (tmp_path / "o.png").write_text("mine")
    code, output, error = command(folder, tmp_path, capsys)
    assert (code, output, error.count("\n")) == (2, "", 1)
    assert "there already" in error
    assert (tmp_path / "o.png").read_text() == "mine"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--out", "drawn.jpg"], "drawn.jpg"),
        (["--out", "no-such-folder/o.png"], "no-such-folder"),
        (["--image", "nowhere.png"], "nowhere.png"),
        (["--model", "no-such-model"], "no-such-model"),
        (["--layer", "9"], "layers 0 to 1"),
        (["--head", "4"], "heads 0 to 3"),
        (["--max-new-tokens", "0"], "max_new_tokens"),
        (["--device", "toaster"], "toaster"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(more, said, folder, tmp_path, capsys):
    code, output, error = command(folder, tmp_path, capsys, *more)
    assert (code, output, error.count("\n")) == (2, "", 1)
    assert error.startswith("flashvl: ")
    assert said in error
    assert not (tmp_path / "o.png").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--image", "a.png", "--out", "b.png"], "QUESTION"),
        (["--image", "a.png", "what?"], "--out"),
        (["--out", "b.png", "what?"], "--image"),
        (["--image", "a.png", "--out", "b.png", "--layer", "last", "what?"], "last"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(arguments, said, capsys):
    with pytest.raises(SystemExit) as end:
        main(["look", *arguments])
    error = capsys.readouterr().err
    assert (end.value.code, error.count("\n")) == (2, 1)
    assert said in error
