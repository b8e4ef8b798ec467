"""`flashvl settle`: an exact measure, a search that finds what is hidden, honest verdicts."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import picture, teach_answer, tiny_model, tiny_published, user

from flashvl import FlashVL, FlashVLConfig, FlashVLModel
from flashvl.assumptions import FIELDS, Alternative, alternatives_of
from flashvl.checkpoint.hub import published_models
from flashvl.cli import main
from flashvl.errors import ArgumentError, ConfigError
from flashvl.tools.settle import measure as measure_module
from flashvl.tools.settle import settle as settle_module
from flashvl.tools.settle.answers import read_answers
from flashvl.tools.settle.measure import Measure, Measured, Sample, with_config
from flashvl.tools.settle.scenes import scene_sample
from flashvl.tools.settle.search import (
    BLOCK,
    FIELDS_ASKED,
    PAIRS,
    Search,
    Verdict,
    compare,
    evidence,
    fields_to_ask,
)

CONFIG = FlashVLConfig.from_dict(tiny_published())
CONTROL = {"[PLACEHOLDER_0]": 1, "[PLACEHOLDER_1]": 2}
OTHER = [
    {"padding": "reflect"},
    {"thumbnail": "first", "tile_order": "columns", "token_order": "columns"},
    {"stitching": "pool", "feature_layer": 0},
    {"stitching": "none", "system": False, "image_place": "text"},
    {"slice_markers": "picture", "grid": "slices", "max_tiles": 2},
]


def of(losses, right=1.0, tokens=2, likeliest=2) -> Measured:
    return Measured(tuple(losses), right, tokens, likeliest, None)


# The measure.


@pytest.mark.parametrize("assumptions", OTHER, ids=str)
def test_other_assumptions_with_the_same_weights_are_as_if_loaded_so(assumptions, tmp_path):
    flash = tiny_model()
    flash.save_pretrained(tmp_path / "model")
    loaded = FlashVL.from_pretrained(tmp_path / "model", "cpu", assumptions=assumptions)
    config = flash.config.with_assumptions(assumptions)
    prompt = loaded.prepare(picture(70, 50), user())
    with torch.inference_mode():
        expected = loaded.model(*prompt)
        before = flash.model(*flash.prepare(picture(), user()))
        found = with_config(flash.model, config, OrderedDict())(*prompt)
        after = flash.model(*flash.prepare(picture(), user()))
    torch.testing.assert_close(found, expected)
    assert torch.equal(before, after)  # nothing of the model itself has changed


@pytest.mark.parametrize("assumptions", [{}, *OTHER], ids=str)
@pytest.mark.parametrize("own", [True, False])
def test_answers_side_by_side_are_measured_as_if_each_were_alone(assumptions, own, tmp_path):
    flash = tiny_model()
    flash.save_pretrained(tmp_path / "model")
    loaded = FlashVL.from_pretrained(tmp_path / "model", "cpu", assumptions=assumptions)
    conversations = [(user("What colour?"), "red"), (user("颜色?"), "红色的圆形"), (user("x"), "y")]
    found = Measure(flash, own)(Sample("a", picture(70, 50), conversations), assumptions)
    end = [] if own else [flash.tokenizer.control_id("<|im_end|>")]
    losses, wrong, tokens, likeliest = [], 0, 0, 0
    for messages, answer in conversations:
        ids, pixels, grids = loaded.prepare(picture(70, 50), messages)
        wanted = flash.tokenizer.encode(answer) + end
        loss, all_likeliest = 0.0, True
        for token_id in wanted:  # one after another, as in generating
            with torch.inference_mode():
                chances = loaded.model(ids, pixels, grids)[0, -1].log_softmax(dim=-1)
            loss += (chances.max().item() if own else 0.0) - chances[token_id].item()
            best = int(chances.argmax()) == token_id
            all_likeliest, likeliest, tokens = all_likeliest and best, likeliest + best, tokens + 1
            ids = torch.cat((ids, torch.tensor([[token_id]])), dim=1)
        losses.append(loss)
        wrong += not all_likeliest
    assert found.losses == pytest.approx(losses, rel=1e-4)
    assert (found.tokens, found.likeliest) == (tokens, likeliest)
    assert found.right == pytest.approx(1 - wrong / 3)


def test_the_models_own_answer_is_the_likeliest_and_the_first_other_token_is_named():
    flash = tiny_model()
    *ids, _ = teach_answer(flash, "red c")
    answer = flash.chat(picture(), user())
    measure = Measure(flash, own=True)
    own = measure(Sample("a", picture(), [(user(), answer)]), {})
    assert (own.losses, own.right, own.likeliest, own.other) == ((0,), 1, own.tokens, None)
    changed = answer[0] + "x"
    other = measure(Sample("a", picture(), [(user(), answer), (user(), changed)]), {}).other
    assert (other.answer, other.place) == (1, 1)
    assert other.token_id == flash.tokenizer.encode("x")[0]
    assert other.likelier_id == ids[1]


def test_a_tile_is_computed_once_for_all_that_show_it(monkeypatch):
    flash, computed = tiny_model(), []
    flash.model.vision.register_forward_pre_hook(lambda _, inputs: computed.append(len(inputs[0])))
    measure = Measure(flash, own=False)
    sample = Sample("a", picture(), [(user(), "red")])  # 1 x 2 tiles and a thumbnail
    measure(sample, {})
    assert sum(computed) == 3
    for same in (
        {"thumbnail": "first", "tile_order": "columns"},
        {"stitching": "mean", "token_order": "columns"},
        {"stitching": "pool", "thumbnail": "none", "image_place": "text", "system": False},
    ):
        measure(sample, same)
    assert sum(computed) == 3
    measure(sample, {"max_tiles": 1})  # the thumbnail alone
    assert sum(computed) == 3
    for other, tiles in (({"padding": "edge"}, 3), ({"stitching": "none"}, 3)):
        before = sum(computed)
        measure(sample, other)
        assert sum(computed) == before + tiles
    before = sum(computed)
    measure(sample, {"feature_layer": 1})
    assert sum(computed) == before + 3
    assert flash.model.vision.feature_layer == -1
    # With room for nothing but the tiles in use all is still right.
    monkeypatch.setattr(measure_module, "MAX_KEPT_BYTES", 1)
    kept = Measure(flash, own=False)
    assert kept(sample, {}).losses == pytest.approx(measure(sample, {}).losses)
    assert len(kept._kept) == 3


# The search.


class Hidden:
    """A model in words: each wrong value costs, each answer has a luck of its own.

    `together` costs unless all of several fields are right.
    """

    def __init__(self, truth: dict[str, Any], costs: dict[str, float], seed: int, noise=0.05):
        self.truth, self.costs, self.noise = truth, costs, noise
        self.together: tuple[tuple[str, ...], float] = ((), 0.0)
        self.seed, self.passes = seed, 0

    def __call__(self, values, number) -> Measured:
        self.passes += 1
        wrong = [name for name, value in self.truth.items() if values[name] != value]
        cost = sum(self.costs.get(name, 0.0) for name in wrong)
        names, more = self.together
        cost += more if set(names) & set(wrong) else 0.0
        key = (self.seed, number, *(repr(values[name]) for name in sorted(self.truth)))
        luck = random.Random(repr(key)).gauss(0, self.noise)
        base = random.Random(f"{self.seed} {number}").random()
        return of([base + cost + luck, base + cost / 2 - luck / 2])


def asked_of(*names: str) -> dict[str, tuple[Alternative, ...]]:
    found = fields_to_ask(CONFIG, CONTROL)
    return {name: found[name] for name in names or found}


@given(st.integers(0, 10**6), st.data())
@settings(max_examples=25)
def test_what_costs_is_found_wherever_the_search_begins(seed, data):
    asked = asked_of()
    truth = {name: data.draw(st.sampled_from(found)).value for name, found in asked.items()}
    hidden = Hidden(truth, dict.fromkeys(asked, 0.1), seed, noise=0.01)
    search = Search(CONFIG, hidden, 24, asked)
    search.run()
    assert search.best == truth
    assert {verdict.word for verdict in search.verdicts.values()} == {"settled"}
    assert all(verdict.best == truth[name] for name, verdict in search.verdicts.items())
    assert hidden.passes <= search.planned() * search.rounds


def test_what_stands_beyond_doubt_stops_early():
    asked = asked_of("padding")
    clear = Hidden({"padding": "edge"}, {"padding": 1.0}, seed=1)
    Search(CONFIG, clear, 200, asked).run()
    assert clear.passes == 4 * 2 * BLOCK
    unclear = Hidden({"padding": "edge"}, {"padding": 0.0}, seed=1)
    Search(CONFIG, unclear, 40, asked).run()
    assert unclear.passes == 4 * 40  # each measured once


def test_fields_that_only_tell_together_are_found_in_pairs():
    asked = asked_of("padding", "thumbnail", "system")
    hidden = Hidden({"padding": "edge", "thumbnail": "first", "system": False}, {}, seed=3)
    hidden.together = (("padding", "thumbnail"), 0.3)
    hidden.costs = {"system": 0.2}
    search = Search(CONFIG, hidden, 24, asked)
    search.run()
    assert search.best == hidden.truth
    assert search.verdicts["padding"].word == "settled"


@given(st.integers(0, 10**6))
@settings(max_examples=10)
def test_chance_settles_nothing(seed):
    asked = asked_of("padding", "grid", "tile_order")
    nothing = dict.fromkeys(asked)
    search = Search(CONFIG, Hidden(nothing, {}, seed, noise=1.0), 24, asked)
    search.run()
    assert "settled" not in {verdict.word for verdict in search.verdicts.values()}


def test_a_verdict_needs_samples_and_a_difference():
    one, two = Alternative("a", ""), Alternative("b", "")
    few, many = BLOCK - 1, BLOCK + 4
    noise = [0.01 * math.sin(n) for n in range(many)]
    best = [of([1.0]) for _ in range(many)]

    def word(worse: float, samples: int, **how) -> str:
        measured = [of([1.0 + worse + noise[n]]) for n in range(samples)]
        differences = (compare(one, best[:samples], best), compare(two, measured, best))
        return Verdict("padding", "a", differences, **how).word

    assert word(0.5, many) == "settled"
    assert word(0.5, few) == "cannot be told"
    assert word(0.0, many) == "cannot be told"
    assert word(0.006, many) == "preferred"
    alike = Verdict("padding", "a", (compare(one, best, best), compare(two, best, best)))
    assert alike.word == "cannot be told"
    assert alike.rivals == (two,)


def test_of_own_answers_one_token_that_is_not_the_likeliest_refutes():
    whole = [of([0.5]) for _ in range(3)]
    lacking = [*whole[:2], of([0.5], tokens=2, likeliest=1)]
    one, two = Alternative("a", ""), Alternative("b", "")
    differences = (compare(one, whole, whole), compare(two, lacking, whole))
    assert Verdict("padding", "a", differences, proof=True).word == "settled"
    differences = (compare(one, whole, whole), compare(two, whole, whole))
    assert Verdict("padding", "a", differences, proof=True).word == "cannot be told"


def test_one_token_of_own_answers_finds_the_truth_and_what_it_cannot_tell():
    asked, samples = asked_of("padding", "system"), 20

    def measured(values, number) -> Measured:
        wrong = number == samples - 1 and values["padding"] != "reflect"
        return of([0.3 if wrong else 0.0], likeliest=1 if wrong else 2)

    search = Search(CONFIG, measured, samples, asked, own=True)
    search.run()
    assert search.best == {"padding": "reflect", "system": CONFIG.assumptions["system"]}
    words = {name: verdict.word for name, verdict in search.verdicts.items()}
    assert words == {"padding": "settled", "system": "cannot be told"}
    # Where the answers are not the model's own, a single one is chance.
    chance = Search(CONFIG, measured, samples, asked)
    chance.run()
    assert chance.best == chance.stated()


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), min_size=2, max_size=20))
def test_evidence_is_paired_bounded_and_odd(losses):
    first = [of([a, a]) for a, _ in losses]
    second = [of([b, b]) for _, b in losses]
    loss, errors = evidence(first, second)
    assert loss == pytest.approx(sum(a - b for a, b in losses) / len(losses), abs=1e-9)
    again = evidence(second, first)
    assert again[0] == pytest.approx(-loss, abs=1e-9)
    assert again[1] == pytest.approx(-errors, rel=1e-6)
    bounded = torch.tensor([max(-0.1, min(0.1, a - b)) for a, b in losses], dtype=torch.float64)
    if bounded.std() > 1e-6:
        assert errors == pytest.approx(
            (bounded.mean() / bounded.std() * len(losses) ** 0.5).item(), rel=1e-6
        )
    assert evidence(first, first) == (0.0, 0.0)
    assert evidence(first[:1], second) == (0.0, 0.0)


def test_what_is_asked_of_each_kind_of_model():
    kinds = {kind: FlashVLConfig.from_dict(tiny_published(kind)) for kind in ("dynamic", "static")}
    assert tuple(fields_to_ask(CONFIG, CONTROL)) == FIELDS_ASKED
    assert "slice_markers" not in fields_to_ask(CONFIG, {})
    dynamic = fields_to_ask(kinds["dynamic"], CONTROL)
    assert set(FIELDS_ASKED) - set(dynamic) == {"stitching", "padding"}
    static = fields_to_ask(kinds["static"], CONTROL)
    assert {"grid", "thumbnail", "tile_order", "max_tiles", "padding"} & set(static) == set()
    assert "token_order" in static
    assert list(fields_to_ask(CONFIG, CONTROL, ["padding"])) == ["padding"]
    own = FlashVLConfig.from_dict(tiny_published(max_tiles=20, system="Be brief."))
    for name in ("max_tiles", "system"):
        assert own.assumptions[name] in [one.value for one in fields_to_ask(own, CONTROL)[name]]
    assert set(itertools.chain(*PAIRS)) <= set(FIELDS_ASKED)
    assert set(FIELDS_ASKED) == {name for name in FIELDS if alternatives_of(name, 2)}


# What is asked, and recorded answers.


def test_scenes_have_from_one_tile_to_many_and_are_none_that_were_trained_on():
    iss = FlashVLConfig.from_dict(published_models()["FlashVL/FlashVL-2B-Dynamic-ISS"]["config"])
    nano = FlashVL.from_pretrained("nano", "cpu").config
    tiles = set()
    for index in range(12):
        sample = scene_sample(index, nano.tiler)
        assert len(sample.conversations) >= 8
        tiles.add(settle_module.shapes_of_prompt(nano, sample.picture, 1).pixels.shape[0])
        for messages, answer in sample.conversations:
            assert answer
            assert messages[0]["role"] == "user"
    assert min(tiles) == 1
    assert max(tiles) >= 6
    small, large = (scene_sample(0, config.tiler).picture.size for config in (nano, iss))
    assert large[0] / small[0] == pytest.approx(
        iss.tiler.core_size / nano.tiler.core_size, rel=0.05
    )
    asked, brief = (scene_sample(3, nano.tiler, briefly) for briefly in (False, True))
    for (plain, answer), (longer, same) in zip(asked.conversations, brief.conversations):
        assert answer == same
        assert longer[0]["content"].startswith(plain[0]["content"] + "\n")


def lines(folder, *values) -> Any:
    text = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in values)
    (folder / "answers.jsonl").write_text(text, encoding="utf-8")
    return folder / "answers.jsonl"


@pytest.fixture
def place(tmp_path):
    """A folder with the picture that `GOOD` names."""
    picture().save(tmp_path / "a.png")
    return tmp_path


GOOD = {"image": "a.png", "messages": user(), "answer": "red"}


def test_recorded_answers_are_read(place):
    tokenizer = tiny_model().tokenizer
    longer = [*user(), {"role": "assistant", "content": "no"}, *user("And?")]
    file = lines(place, GOOD, "", GOOD | {"messages": longer}, GOOD | {"answer": ""})
    first, second = read_answers(file, tokenizer)
    assert (first.name, second.name) == ("line 1", "line 3")
    assert first.picture == place / "a.png"
    assert [(list(one), answer) for one, answer in second.conversations] == [(longer, "red")]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "5",
        "[" * 100_000,
        {"image": "a.png"},
        GOOD | {"image": None},
        GOOD | {"image": "b.png"},
        GOOD | {"image": "answers.jsonl"},
        GOOD | {"answer": 5},
        GOOD | {"answer": "\ud800"},
        GOOD | {"messages": "What?"},
        GOOD | {"messages": []},
        GOOD | {"messages": [{"role": "assistant", "content": "x"}]},
        '{"image": "\x1b[2J", "messages": 0}',
    ],
    ids=lambda line: str(line)[:30],
)
def test_a_line_of_another_form_is_named(line, place):
    with pytest.raises(ArgumentError, match=r"line 2 of .*answers\.jsonl") as refused:
        read_answers(lines(place, GOOD, line), tiny_model().tokenizer)
    assert len(str(refused.value).splitlines()) == 1


def test_a_file_without_answers_is_refused(tmp_path):
    tokenizer = tiny_model().tokenizer
    for file in (tmp_path, tmp_path / "none.jsonl", lines(tmp_path, "")):
        with pytest.raises(ArgumentError):
            read_answers(file, tokenizer)
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ArgumentError, match="UTF-8"):
        read_answers(tmp_path / "bytes.jsonl", tokenizer)


# The user's path.


@pytest.fixture(scope="module")
def erased(tmp_path_factory):
    """nano without a word of what it was trained under."""
    folder = tmp_path_factory.mktemp("erased") / "model"
    return save_erased(FlashVL.from_pretrained("nano", "cpu"), folder)


@pytest.fixture(scope="module")
def nano_stated():
    return FlashVL.from_pretrained("nano", "cpu").config.assumptions


def settle(capsys, *arguments) -> tuple[int, str, str]:
    code = main(["settle", "--device", "cpu", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def save_erased(flash: FlashVL, folder: Path) -> Path:
    """A folder whose config states no assumptions."""
    flash.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"assumptions": {}}))
    return folder


def record(folder, assumptions, count: int, asked: int, first=300):
    """What nano answers under other assumptions, as somebody with the published code records it."""
    folder.mkdir()
    flash = FlashVL.from_pretrained("nano", "cpu", assumptions=assumptions)
    recorded = []
    for index in range(first, first + count):
        sample = scene_sample(index, flash.config.tiler)
        sample.picture.save(folder / f"{index}.png")
        messages = [list(one) for one, _ in sample.conversations[-asked:]]
        answers = flash.chat_batch([(sample.picture, one) for one in messages], max_new_tokens=40)
        for one, answer in zip(messages, answers):
            recorded.append({"image": f"{index}.png", "messages": one, "answer": answer})
    return lines(folder, *recorded)


def test_an_erased_model_tells_its_padding(erased, nano_stated, tmp_path, capsys):
    out, figures = tmp_path / "assumptions.json", tmp_path / "figures.json"
    arguments = ["--scenes", 16, "--only", "padding", "--out", out, "--json", figures]
    code, output, error = settle(capsys, "--model", erased, *arguments)
    assert (code, error) == (0, "")
    assert json.loads(out.read_text()) == {"padding": nano_stated["padding"]}
    said = json.loads(figures.read_text())
    assert said["fields"]["padding"]["best"] == nano_stated["padding"]
    assert said["sees"]["standard_errors"] > 4
    assert f"padding of the canvas: {said['fields']['padding']['verdict']}" in output
    assert FIELDS["padding"].what in output
    assert "operations each" in output
    loaded = FlashVL.from_pretrained(erased, "cpu", assumptions=out)
    assert loaded.config.tiler.padding == nano_stated["padding"]
    verified = ["verify", str(erased), "--assumptions", str(out)]
    assert main(verified) == 0
    assert f"padding of the canvas           {nano_stated['padding']}" in capsys.readouterr().out
    assert settle(capsys, "--model", erased, *arguments)[0] == 2  # nothing is written over


def test_recorded_answers_name_the_setting_and_prove_it(tmp_path, capsys):
    file = record(tmp_path / "recorded", {"token_order": "columns"}, count=5, asked=2)
    arguments = ["--answers", file, "--only", "token_order", "--json", tmp_path / "f.json"]
    code, output, _ = settle(capsys, *arguments)
    assert code == 0
    assert "order of the tokens: settled: columns" in output
    assert "this is proof" in output
    said = json.loads((tmp_path / "f.json").read_text())
    assert said["answers"]["likeliest"] == said["answers"]["tokens"] > 50
    rows, columns = said["fields"]["token_order"]["alternatives"]
    assert columns["tokens_likeliest"] == 1 > rows["tokens_likeliest"]
    # Of a setting that is not asked for there is no proof, and a token that says so.
    code, output, _ = settle(capsys, "--answers", file, "--only", "image_place")
    assert code == 0
    assert "proof" not in output
    assert "The first that is not: line" in " ".join(output.split())


def test_of_a_model_that_cannot_see_nothing_can_be_told(tmp_path, capsys):
    nano = FlashVL.from_pretrained("nano", "cpu")
    torch.manual_seed(5)
    blind = FlashVL(FlashVLModel(nano.config), nano.tokenizer, nano.stop_ids)
    folder = save_erased(blind, tmp_path / "model")
    only = ["padding", "system"]
    out, figures = tmp_path / "o.json", tmp_path / "f.json"
    arguments = ["--scenes", 8, "--only", *only, "--out", out, "--json", figures]
    code, output, _ = settle(capsys, "--model", folder, *arguments)
    assert code == 0
    fields = json.loads(figures.read_text())["fields"]
    assert {one["verdict"] for one in fields.values()} == {"cannot be told"}
    assert output.count("the model does not see") == len(only)
    stated = FlashVLConfig.from_dict(json.loads((folder / "config.json").read_text()))
    assert json.loads(out.read_text()) == {
        name: stated.assumptions[name] for name in ("system", "padding")
    }


def test_an_interruption_keeps_what_is_known(erased, tmp_path, capsys, monkeypatch):
    real, passes = Measure.__call__, []

    def until_interrupted(self, *arguments):
        passes.append(1)
        if len(passes) == 2 + 4 + 2 * 10 + 5:  # how long it takes, a field, and some of the next
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(Measure, "__call__", until_interrupted)
    out = tmp_path / "o.json"
    arguments = ["--scenes", 10, "--only", "token_order", "padding", "--out", out]
    code, output, _ = settle(capsys, "--model", erased, *arguments)
    assert code == 130
    assert "order of the tokens: " in output
    assert "padding of the canvas: not asked yet" in output
    assert json.loads(out.read_text())["token_order"] == "rows"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scenes", "0"], "--scenes"),
        (["--only", "colour"], "feature_layer"),
        (["--out", "."], "there already"),
        (["--json", "nowhere/x.json"], "nowhere"),
        (["--answers", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--only", "slice_markers"], "nothing is open"),
        (["--assumptions", "nowhere.json"], "nowhere.json"),
    ],
)
def test_bad_input_is_one_line(arguments, words, capsys):
    code, output, error = settle(capsys, *arguments)
    assert (code, output) == (2, "")
    assert words in error
    assert error.count("\n") == 1


def test_a_file_of_assumptions_is_taken_or_refused(tmp_path, capsys):
    file = tmp_path / "a.json"
    file.write_text('{"thumbnail": "first", "system": false}')
    for form in (file, str(file)):
        config = FlashVL.from_pretrained("nano", "cpu", assumptions=form).config
        assert (config.tiler.thumbnail, config.prompt.system) == ("first", None)
    for content in ("", "[]", '{"thumbnail": "middle"}', '{"tiles": 1}', '{"a": NaN}'):
        file.write_text(content)
        with pytest.raises(ConfigError) as refused:
            FlashVL.from_pretrained("nano", "cpu", assumptions=file)
        assert len(str(refused.value).splitlines()) == 1
        for command in (["chat", "Hi"], ["verify", "nano"], ["score", "--scenes", "1"]):
            assert main([*command, "--assumptions", str(file)]) == 2
        assert capsys.readouterr().err.count("\n") == 3
    for command in ("chat", "verify", "parity", "trace", "tiles", "look", "score", "evaluate"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert "--assumptions FILE" in capsys.readouterr().out


# The long way: what nano was trained under, and answers recorded otherwise.


def found_by(capsys, tmp_path, *arguments) -> tuple[dict[str, Any], dict[str, str]]:
    """The best values, and the verdict on each."""
    out, figures = tmp_path / "found.json", tmp_path / "figures.json"
    for file in (out, figures):
        file.unlink(missing_ok=True)
    code, _, error = settle(capsys, *arguments, "--out", out, "--json", figures)
    assert (code, error) == (0, "")
    fields = json.loads(figures.read_text())["fields"]
    return json.loads(out.read_text()), {name: one["verdict"] for name, one in fields.items()}


@pytest.mark.slow
def test_an_erased_model_tells_all_that_it_was_trained_under(erased, nano_stated, tmp_path, capsys):
    found, verdicts = found_by(capsys, tmp_path, "--model", erased)
    assert found == {name: nano_stated[name] for name in found}
    assert set(found) == set(FIELDS_ASKED) - {"slice_markers"}
    for name in ("token_order", "thumbnail"):
        assert verdicts[name] == "settled", name
    assert verdicts["padding"] in ("settled", "preferred")


WRONG = [
    {"token_order": "columns"},
    {"thumbnail": "none"},
    {"thumbnail": "first"},
    {"stitching": "pool"},
    {"padding": "reflect"},
    {"max_tiles": 2},
]


@pytest.mark.slow
@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_answers_recorded_under_a_wrong_setting_name_it(wrong, tmp_path, capsys):
    file = record(tmp_path / "recorded", wrong, count=16, asked=3)
    arguments = ["--answers", file, "--only", *sorted({name for one in WRONG for name in one})]
    found, verdicts = found_by(capsys, tmp_path, *arguments)
    said = json.loads((tmp_path / "figures.json").read_text())
    assert said["answers"]["likeliest"] == said["answers"]["tokens"]  # the proof
    stated = FlashVL.from_pretrained("nano", "cpu").config.assumptions
    for name, verdict in verdicts.items():
        fits = [
            one["value"]
            for one in said["fields"][name]["alternatives"]
            if one["tokens_likeliest"] == 1
        ]
        assert found[name] in fits
        assert (stated | wrong)[name] in fits
        # What so few answers cannot tell, such as 7 tiles from 6, is said to be so.
        assert verdict == ("settled" if len(fits) == 1 else "cannot be told")
        if name in wrong:
            assert stated[name] not in fits
