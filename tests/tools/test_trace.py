"""`flashvl trace`: counts that an independent count confirms, the same with and without weights."""

from __future__ import annotations

import itertools
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from browser import needs_browser, opened_browser
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import PUBLISHED, picture, teach_answer, tiny_model, user
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flashvl import FlashVL, FlashVLConfig, FlashVLModel
from flashvl.checkpoint.hub import published_models, weights_folder
from flashvl.cli import main
from flashvl.generation.generate import LAST
from flashvl.model.recording import INPUT, recorded
from flashvl.tools.trace.report import page, short
from flashvl.tools.trace.trace import model_of_shapes, trace, trace_shapes

STAGES = ["preprocess", "embed", "vision", "compressor", "prefill", "head", "decode"]
QUESTION = "What is in the picture?"
NANO_PICTURE = weights_folder() / "nano" / "pictures" / "red-circle-and-blue-star.png"


@pytest.fixture(scope="module")
def nano() -> FlashVL:
    return FlashVL.from_pretrained("nano", "cpu")


@pytest.fixture
def photo(tmp_path) -> str:
    picture(40, 20).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def stages(result: dict) -> dict[str, dict]:
    return {row["name"]: row for row in result["rows"] if row["depth"] == 1}


def counted_by_torch(run, *arguments) -> int:
    """Operations by torch's own counter, attention in the plain form that it can see into."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run(*arguments)
    return counter.get_total_flops()


# Equality with independent counts.


def test_nanos_operations_are_those_of_torchs_counter(nano):
    image = Image.open(NANO_PICTURE).convert("RGB")
    result = trace(nano, image, QUESTION, max_new_tokens=8)
    answers = []
    wanted = counted_by_torch(
        lambda: answers.append(nano.chat(image, user(QUESTION), max_new_tokens=8))
    )
    assert result["answer"] == answers[0]
    assert result["total"]["operations"] == wanted > 0


def test_each_stages_operations_are_those_of_torchs_counter(any_flash):
    """Each part of the network is run alone, with what it was given in the pass over the prompt."""
    image, model = picture(40, 20), any_flash.model
    found = stages(trace(any_flash, image, "Why?", max_new_tokens=3))
    prepared = counted_by_torch(any_flash.prepare, image, user("Why?"))
    assert found["preprocess"]["operations"] == prepared
    prompt = any_flash.prepare(image, user("Why?"))
    parts = {
        "embed": "decoder.embedding",
        "vision": "vision",
        "compressor": "compressor",
        "prefill": "decoder",
        "head": "decoder.head",
    }
    with torch.no_grad():
        with recorded(model, [name + INPUT for name in parts.values()]) as inputs:
            model(*prompt, logits_at=LAST)
        for stage, name in parts.items():
            alone = counted_by_torch(model.get_submodule(name), inputs[name + INPUT])
            assert found[stage]["operations"] == alone, stage


def test_nanos_parameters_are_its_tensors(nano):
    result = trace(nano, Image.open(NANO_PICTURE), QUESTION)
    found = {name: row["parameters"] for name, row in stages(result).items()}
    decoder = nano.model.decoder
    assert found == {
        "preprocess": 0,
        "embed": count(decoder.embedding),
        "vision": count(nano.model.vision),
        "compressor": count(nano.model.compressor),
        "prefill": count(decoder.layers) + count(decoder.norm),
        "head": count(decoder.head),
        "decode": count(decoder),
    }
    assert result["total"]["parameters"] == count(nano.model)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("repository", list(published_models()))
def test_the_published_models_by_arithmetic(repository):
    """From the numbers of their config alone; a picture that the grid cuts into 2 x 1 and 1."""
    known = published_models()[repository]
    text_tokens, new_tokens = 32, 3
    image = Image.new("RGB", (1200, 600))
    result = trace_shapes(model_of_shapes(repository), image, text_tokens, new_tokens)
    assert result["total"]["parameters"] == known["parameters"]
    assert result["total"]["milliseconds"] is None

    config = known["config"]
    tower, llm = config["vision_config"], config["llm_config"]
    static = config["model_type"] == "FlashVLStaticConfig"
    tiles = 1 if static else 3
    assert (result["tiles"], result["image_tokens"]) == (tiles, tiles * config["image_token_num"])

    patches, width = (tower["image_size"] // tower["patch_size"]) ** 2, tower["hidden_size"]
    layer = 4 * width**2 + (2 if static else 3) * width * tower["intermediate_size"]
    attention = 2 * patches * width  # multiply-adds of a patch, both products
    vision = tower["num_hidden_layers"] * (layer + attention) + 3 * tower["patch_size"] ** 2 * width
    folded = width if config["image_token_num"] == 576 else 4 * width
    hidden = config["intermediate_size"]
    compressor = folded * hidden + hidden**2 + hidden * llm["hidden_size"]
    prompt = tiles * config["image_token_num"] + text_tokens

    def decoder(tokens: int, seen: int) -> int:
        heads, groups = llm["num_attention_heads"], llm["num_key_value_heads"]
        width = llm["hidden_size"]
        linear = 2 * width**2 + 2 * width * width * groups // heads
        linear += 3 * width * llm["intermediate_size"]
        return llm["num_hidden_layers"] * tokens * (linear + 2 * seen * width)

    head = llm["vocab_size"] * llm["hidden_size"]
    wanted = {
        "preprocess": 0,
        "vision": tiles * patches * vision,
        "compressor": tiles * config["image_token_num"] * compressor,
        "embed": 0,
        "prefill": decoder(prompt, prompt),
        "head": head,
        "decode": decoder(1, prompt + 1) + decoder(1, prompt + 2) + 2 * head,
    }
    found = {name: row["operations"] for name, row in stages(result).items()}
    assert found == {name: 2 * multiply_adds for name, multiply_adds in wanted.items()}
    assert result["total"]["operations"] == 2 * sum(wanted.values())


def test_bytes_are_weights_read_and_what_goes_in_and_comes_out(flash):
    result = trace(flash, picture(40, 20), "Why?", max_new_tokens=3, depth=3)
    rows = {(row["depth"], row["name"]): row for row in result["rows"][::-1]}  # first call first
    decoder = flash.model.decoder
    tokens, width = result["prompt_tokens"], flash.config.decoder.width
    layer = decoder.layers[0]
    through = 2 * tokens * width * 4
    assert rows[2, "decoder.layers.0"]["calls"] == 1
    assert rows[2, "decoder.layers.0"]["bytes"] == 4 * count(layer) + through
    assert rows[3, "decoder.layers.0.mlp"]["bytes"] == 4 * count(layer.mlp) + through
    assert rows[1, "prefill"]["bytes"] == rows[1, "prefill"]["parameters"] * 4 + through
    # Ids go in, and the rows that they name are read and come out.
    assert rows[1, "embed"]["bytes"] == tokens * 8 + through
    decode = rows[1, "decode"]
    a_step = 4 * (count(decoder) - count(decoder.embedding))  # all weights but the embedding's
    a_step += 4 * width  # of which one row is read
    a_step += 8 + 4 * flash.config.decoder.vocabulary  # an id goes in, logits come out
    assert decode["bytes"] == decode["calls"] * a_step


# Properties.


@settings(max_examples=25)
@given(
    kind=st.sampled_from(list(PUBLISHED)),
    stitching=st.sampled_from(["trim", "mean", "none"]),
    size=st.tuples(st.integers(4, 80), st.integers(4, 80)),
    depth=st.integers(1, 6),
)
def test_shapes_alone_give_the_same_counts_as_a_run(kind, stitching, size, depth):
    flash = tiny_model(kind, stitching=stitching)
    flash.stop_ids = frozenset()  # an answer of exactly as many tokens as asked for
    image = picture(*size)
    real = trace(flash, image, "Why?", 3, depth)
    with torch.device("meta"):
        shapes = FlashVLModel(flash.config)
    text_tokens = real["prompt_tokens"] - real["image_tokens"]
    dry = trace_shapes(shapes, image, text_tokens, 3, depth)
    untimed = [{**row, "milliseconds": None, "share": None} for row in real["rows"]]
    assert [{**row, "share": None} for row in dry["rows"]] == untimed
    assert dry["total"] == {**real["total"], "milliseconds": None}
    assert list(stages(real)) == STAGES
    assert stages(real)["decode"]["calls"] == 2
    for result in (real, dry):
        assert sum(row["share"] for row in stages(result).values()) == pytest.approx(1)


@pytest.mark.parametrize("kind", list(PUBLISHED))
def test_deeper_rows_lie_within_their_stages(kind):
    """The parts' operations are the whole's, where the parts do all of the work."""
    flash = tiny_model(kind)
    flash.stop_ids = frozenset()
    results = [trace(flash, picture(), "Why?", 3, depth) for depth in (1, 2, 3, 4, 9)]
    for shallow, deep in itertools.pairwise(results):
        kept = [
            row
            for row in deep["rows"]
            if row["depth"] <= max(one["depth"] for one in shallow["rows"])
        ]
        counts = ("name", "calls", "shapes_in", "shapes_out", "parameters", "bytes", "operations")
        assert [[row[key] for key in counts] for row in kept] == [
            [row[key] for key in counts] for row in shallow["rows"]
        ]
    parts = {}
    for row in results[1]["rows"]:
        if row["depth"] == 1:
            stage = parts[row["name"]] = {"whole": row["operations"], "parts": 0}
        else:
            stage["parts"] += row["operations"]
    for name in ("vision", "compressor", "prefill", "decode"):
        assert parts[name]["parts"] == parts[name]["whole"] > 0, name
    names = [row["name"] for row in results[1]["rows"]]
    assert {"vision.patch_embedding", "vision.layers.1", "decoder.layers.1"} <= set(names)
    assert "vision.layers.1.attention" in [row["name"] for row in results[2]["rows"]]


def test_the_answer_is_chats_and_nothing_stays_behind(flash):
    wanted = flash.chat(picture(), user("Why?"), max_new_tokens=9)
    result = trace(flash, picture(), "Why?", 9, depth=5)
    assert result["answer"] == wanted
    for module in flash.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert flash.chat(picture(), user("Why?"), max_new_tokens=9) == wanted


def test_decoding_ends_with_the_answer():
    flash = tiny_model()
    ids = teach_answer(flash, "red")  # the last one is the stop token
    result = trace(flash, picture(), "Why?", 9)
    assert (result["answer"], result["new_tokens"]) == ("red", len(ids) - 1)
    assert stages(result)["decode"]["calls"] == len(ids) - 1
    cut = trace(flash, picture(), "Why?", 1)
    assert "decode" not in stages(cut)


def test_a_tied_head_counts_once():
    published = {**PUBLISHED["iss"]}
    published["llm_config"] = published["llm_config"] | {"tie_word_embeddings": True}
    with torch.device("meta"):
        model = FlashVLModel(FlashVLConfig.from_dict(published))
    result = trace_shapes(model, None, 4, 2)
    table = model.config.decoder.vocabulary * model.config.decoder.width
    assert stages(result)["head"]["parameters"] == table
    assert stages(result)["decode"]["parameters"] == count(model.decoder)
    assert result["total"]["parameters"] == count(model)


def test_what_is_never_read_is_named():
    static = tiny_model("static")
    notes = trace(static, picture(), "Why?", 2)["notes"]
    assert any(
        "vision.pooling_head" in note and f"{count(static.model.vision.pooling_head):,}" in note
        for note in notes
    )
    assert not trace(tiny_model(), picture(), "Why?", 2)["notes"]


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0"), (999, "999"), (1000, "1.00 k"), (2_532_538_880, "2.53 G")]
)
def test_short_numbers(number, said):
    assert short(number) == said


# The command.


def test_the_command_prints_a_table(nano, capsys):
    assert main(["trace", "--image", str(NANO_PICTURE), QUESTION]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2 : 2 + len(STAGES)]] == STAGES
    assert lines[0].split()[-4:] == ["ms", "share", "of", "time"]
    assert f"answer: {nano.chat(str(NANO_PICTURE), user(QUESTION), max_new_tokens=32)}" in lines
    total = next(line for line in lines if line.startswith("total: "))
    assert f"{count(nano.model):,} parameters" in total


def test_the_command_prints_json_and_writes_a_page(folder, photo, tmp_path, capsys):
    file = tmp_path / "trace.html"
    command = ["trace", "--model", str(folder), "--image", photo, "--depth", "2", "--json"]
    assert main([*command, "--html", str(file), "Why?"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["question"] == "Why?"
    assert result["picture"] == [20, 40]
    assert max(row["depth"] for row in result["rows"]) == 2
    assert result["total"]["milliseconds"] > 0
    assert file.read_text(encoding="utf-8") == page(result)


@needs_browser
def test_the_page_fits_into_a_window(tmp_path):
    command = ["trace", "--image", str(NANO_PICTURE), "--depth", "9"]
    assert main([*command, "--html", str(tmp_path / "trace.html")]) == 0
    with opened_browser() as browser:
        shown = browser.new_page(viewport={"width": 1280, "height": 800})
        shown.goto((tmp_path / "trace.html").as_uri())
        widths = "['html', '.wide', 'table'].map((one) => document.querySelector(one).scrollWidth)"
        whole, room, table = shown.evaluate(widths)
    assert whole == 1280
    assert table <= room == 1248


@pytest.mark.parametrize("repository", list(published_models()))
def test_published_models_need_no_weights_and_no_hub(repository, capsys, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.setattr("huggingface_hub.scan_cache_dir", refuse)
    assert main(["trace", "--model", repository, "--dry", "--max-new-tokens", "2"]) == 0
    output = capsys.readouterr().out
    assert f"{published_models()[repository]['parameters']:,} parameters" in output
    assert " ms" not in output
    assert "\nassumed: " in output
    assert "\nnominal: 32 tokens of text, 2 new tokens\n" in output


def test_a_folder_by_shapes_alone_loads_no_weight(folder, photo, capsys, monkeypatch):
    def refuse(*_):
        raise AssertionError("a weight was read")

    monkeypatch.setattr("flashvl.chat.load_tensors", refuse)
    monkeypatch.setattr("flashvl.checkpoint.load.load_tensors", refuse)
    command = ["trace", "--model", str(folder), "--dry", "--prompt", "7", "--image", photo]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["prompt_tokens"] == result["image_tokens"] + 7
    assert result["share_of"] == "operations"
    assert result["answer"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--image"),
        (["--image", "nowhere.png"], "nowhere.png"),
        (["--image", __file__], "not an image"),
        (["--image", str(NANO_PICTURE), "--depth", "0"], "--depth"),
        (["--image", str(NANO_PICTURE), "--max-new-tokens", "0"], "max_new_tokens"),
        (["--image", str(NANO_PICTURE), "--prompt", "3"], "--prompt"),
        (["--image", str(NANO_PICTURE), "--device", "toaster"], "toaster"),
        (["--image", str(NANO_PICTURE), "long " * 2000], "context"),
        (["--image", str(NANO_PICTURE), "--html", __file__], "is there already"),
        (["--image", str(NANO_PICTURE), "--html", "no/such/folder.html"], "no folder"),
        (["--image", str(NANO_PICTURE), "--html", "x" * 400], "--html"),
        (["--dry", "What is it?"], "--prompt"),
        (["--dry", "--prompt", "0"], "--prompt"),
        (["--dry", "--revision", "main"], "--revision"),
        (["--dry", "--prompt", "9999999"], "context"),
        (["--dry", "--model", "no/such"], "no/such"),
        (["--dry", "--model", "no-such"], "no-such"),
        (["--depth", "deep"], "deep"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, said, capsys):
    before = Path(__file__).read_bytes()
    try:
        code = main(["trace", *arguments])
    except SystemExit as end:  # argparse ends the process itself
        code = end.code
    captured = capsys.readouterr()
    assert (code, captured.out) == (2, "")
    assert captured.err.count("\n") == 1
    assert said in captured.err
    assert Path(__file__).read_bytes() == before


# The page.


class Elements(HTMLParser):
    """Every element with its attributes, and all text outside of <style>."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)


def test_the_page_stands_alone_and_says_what_the_table_says():
    result = {"model": "tiny", **trace(tiny_model(), picture(), "Why?", 3, depth=3)}
    source = page(result)
    read = Elements(source)
    assert read.open == []
    tags = {tag for tag, _ in read.elements}
    assert tags == {
        *("html", "head", "meta", "title", "style", "body", "h1", "p", "div"),
        *("table", "tr", "th", "td", "span"),
    }
    for _, attributes in read.elements:
        assert not {"src", "href", "srcset", "onload", "onclick"} & attributes.keys()
    assert "url(" not in source
    assert "@import" not in source
    assert len([tag for tag, _ in read.elements if tag == "tr"]) == 1 + len(result["rows"])
    for row in result["rows"]:
        assert row["name"] in read.texts
    titles = [attributes.get("title") for tag, attributes in read.elements if tag == "td"]
    assert f"{stages(result)['vision']['operations']:,}" in titles


@pytest.fixture(scope="module")
def traced() -> dict:
    with torch.device("meta"):
        shapes = FlashVLModel(FlashVLConfig.from_dict(PUBLISHED["iss"]))
    return trace_shapes(shapes, None, 4, 2)


@given(name=st.text(), question=st.text())
def test_texts_on_the_page_are_escaped(traced, name, question):
    hostile = '<script src="https://example.org/x.js">&amp;</script>'
    texts = {"question": question + hostile, "answer": hostile + "</td></table>"}
    read = Elements(page({"model": name + hostile, **traced, **texts}))
    assert "script" not in {tag for tag, _ in read.elements}
    assert read.open == []
    # The model's name stands in the title, the headline and the summary.
    assert sum(hostile in text for text in read.texts) == 5
