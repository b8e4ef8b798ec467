"""The training loop: the loss falls, an interrupted run ends as an uninterrupted one."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import shlex
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from folders import assert_same_weights
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_run import FEW_TILES, shipped_tokenizer, tiny_recipe
from torch import nn

from flashvl import FlashVL, FlashVLModel
from flashvl.cli import build_parser, main
from flashvl.config import TILE_NEXT, TILE_START
from flashvl.errors import ArgumentError, CheckpointError
from flashvl.input.processor import normalize
from flashvl.input.prompt import encode_messages
from flashvl.input.tiling import tile_image
from flashvl.input.tokenizer import Tokenizer
from flashvl.nano import recipe as recipe_module
from flashvl.nano import starting_values
from flashvl.nano import train as train_module
from flashvl.nano.data import (
    SPAN,
    SceneBatch,
    SceneBatches,
    TileBatch,
    TileBatches,
    batches,
    converse,
    converse_without_picture,
    encode_conversation,
    encode_side_by_side,
    pad,
    scene_numbers,
)
from flashvl.nano.losses import LABELS, ModelWithLosses, average_of_tokens
from flashvl.nano.recipe import (
    NANO,
    READER,
    TOWER,
    Recipe,
    nano_config,
    train_tokenizer,
    with_config,
)
from flashvl.nano.train import resume_command, scaled, take_tower, train
from flashvl.nano.world.packed import IGNORED, NAMES, packed_tile
from flashvl.nano.world.scenes import scene, training_number
from flashvl.nano.world.things import COLORS, DIGITS, SHAPES
from flashvl.nano.world.wordings import COLORS_ZH, SHAPES_ZH
from flashvl.training import progress
from flashvl.training.loop import MUON, Interrupted, make_optimizers
from flashvl.training.progress import Progress


@pytest.fixture(scope="module")
def tiny() -> Recipe:
    return tiny_recipe()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return shipped_tokenizer()


@pytest.fixture(scope="module", autouse=True)
def few_tiles_for_the_starting_values():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(starting_values, "WHITENING", FEW_TILES)
        yield


@pytest.fixture(scope="module", autouse=True)
def no_training_of_tokenizers(tokenizer):
    """It takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "train_tokenizer", lambda recipe: tokenizer)
        yield


@pytest.fixture(scope="module")
def finished(tiny, no_training_of_tokenizers, tmp_path_factory):
    """A whole run without an interruption, with a line of the log each ten steps -> its folder."""
    folder = tmp_path_factory.mktemp("nano") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "LOG_EVERY", 10)
        train(tiny, folder, seed=5, device="cpu")
    return folder


@contextmanager
def interrupted_at(moment: tuple[str, int]) -> Iterator[None]:
    """Ctrl-C after this step of this stage, (stage's name, step)."""
    add = Progress.add

    def interrupting(self, step, *rest):
        add(self, step, *rest)
        if (self.stage, step) == moment:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "add", interrupting)
        yield


def test_the_loss_falls_in_both_kinds_of_stage(finished):
    log = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    for stage in ("tower", "answers"):
        losses = [line["loss"] for line in log if line["stage"] == stage]
        assert len(losses) == 3
        assert losses[-1] < 0.9 * losses[0]


def test_the_result_is_a_checkpoint_that_answers(finished):
    flash = FlashVL.from_pretrained(finished)
    answer = flash.chat(
        scene(0).picture, [{"role": "user", "content": "What is it?"}], max_new_tokens=4
    )
    assert isinstance(answer, str)
    assert flash.stop_ids == {
        flash.tokenizer.control[one] for one in ("<|im_end|>", "<|endoftext|>")
    }
    assert flash.config.tokens_per_tile == 36


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(("tower", 12), marks=pytest.mark.slow),
        ("answers", 7),
        pytest.param(("together", 2), marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_resumes_to_the_same_numbers(moment, tiny, finished, tmp_path):
    with interrupted_at(moment), pytest.raises(Interrupted):
        train(tiny, tmp_path / "run", seed=5, device="cpu")
    assert not (tmp_path / "run" / "config.json").exists()
    train(tiny, tmp_path / "run", seed=5, device="cpu", resume=True)
    assert_same_weights(
        FlashVL.from_pretrained(finished), FlashVL.from_pretrained(tmp_path / "run")
    )
    assert not list((tmp_path / "run").glob("*.writing"))


def test_a_run_is_never_overwritten_nor_resumed_as_another(tiny, finished, tmp_path):
    before = {file.name: file.read_bytes() for file in finished.iterdir()}
    with pytest.raises(ArgumentError, match="holds a run; resume it"):
        train(tiny, finished, seed=5, device="cpu")
    with pytest.raises(ArgumentError, match="other settings"):
        train(tiny, finished, seed=6, device="cpu", resume=True)
    assert {file.name: file.read_bytes() for file in finished.iterdir()} == before
    with pytest.raises(ArgumentError, match="no run to resume"):
        train(tiny, tmp_path, device="cpu", resume=True)


def test_bad_arguments_are_one_line_and_exit_code_2(finished, tmp_path, capsys):
    for arguments in (
        ["--steps", "0"],
        ["--seed", "-1"],
        ["--out", str(finished)],
        ["--out", str(finished / "none"), "--resume"],
        ["--device", "nowhere", "--out", str(tmp_path / "new")],
        ["--tower", str(tmp_path / "nowhere"), "--out", str(tmp_path / "other")],
        ["--config", str(tmp_path / "nowhere.json"), "--out", str(tmp_path / "other")],
    ):
        try:
            code = main(["train", *arguments])
        except SystemExit as stop:
            code = stop.code
        error = capsys.readouterr().err
        assert code == 2
        assert len(error.splitlines()) == 1
        assert "Traceback" not in error


def test_the_command_trains_and_what_it_says_when_interrupted_goes_on(
    tiny, finished, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(train_module.RECIPES, "nano", tiny)
    folder = tmp_path / "my run"
    with interrupted_at(("answers", 1)):
        settings = ["--steps", "12", "--seed", "3", "--stitching", "mean", "--device", "cpu"]
        assert main(["train", *settings, "--out", str(folder)]) == 130
    *said, last = capsys.readouterr().out.splitlines()
    assert any("stage 2 of 3: answers" in line for line in said)
    command = shlex.split(last.split("go on with: ")[1])
    assert command[0] == "flashvl"
    assert main(command[1:]) == 0
    assert str(folder) in capsys.readouterr().out
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in log] == ["tower", "answers", "together"]
    assert FlashVL.from_pretrained(folder).config.tiler.stitching == "mean"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--steps", "12", "--seed", "3", "--stitching", "none"],
        ["--tower", "runs/the other", "--out", "runs/a new one"],
    ],
)
def test_the_command_to_resume_is_the_same_with_resume(arguments):
    options = build_parser().parse_args(["train", *arguments])
    folder = options.out or Path("runs/nano")
    name, *again = shlex.split(resume_command(options, folder))
    assert name == "flashvl"
    resumed = vars(build_parser().parse_args(again))
    assert resumed == vars(options) | {"resume": True, "out": folder}


@pytest.mark.parametrize("mode", ["mean", "none"])
def test_a_run_of_another_stitching_mode_is_a_model_of_that_mode(tiny, tmp_path, mode):
    train(tiny, tmp_path / "run", device="cpu", steps=3, stitching=mode)
    flash = FlashVL.from_pretrained(tmp_path / "run")
    assert flash.config.tiler.stitching == mode
    messages = [{"role": "user", "content": "What is it?"}]
    assert isinstance(flash.chat(scene(4).picture, messages, max_new_tokens=2), str)
    with pytest.raises(ArgumentError, match="other settings"):
        train(tiny, tmp_path / "run", device="cpu", steps=3, resume=True)


@pytest.mark.slow
def test_a_run_with_the_tower_of_another_goes_on_as_that_one_would_have(tiny, finished, tmp_path):
    folder = tmp_path / "with a tower"
    with interrupted_at(("answers", 26)):
        with pytest.raises(Interrupted):
            train(tiny, tmp_path / "other", seed=5, device="cpu")
        with pytest.raises(Interrupted):
            train(tiny, folder, seed=5, device="cpu", tower=tmp_path / "other")
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in log] == ["answers"]
    with pytest.raises(ArgumentError, match="other settings"):
        train(tiny, folder, seed=5, device="cpu", resume=True)
    train(tiny, folder, seed=5, device="cpu", resume=True, tower=tmp_path / "other")
    assert_same_weights(FlashVL.from_pretrained(finished), FlashVL.from_pretrained(folder))


def test_a_tower_that_does_not_fit_is_refused_in_words(tiny, finished, tmp_path):
    def refused(words: str, tower: Path, error=ArgumentError, **settings) -> None:
        with pytest.raises(error, match=words):
            train(tiny, tmp_path / "run", device="cpu", steps=3, tower=tower, **settings)
        assert not any((tmp_path / "run").iterdir())

    refused("neither state.safetensors nor label_head.safetensors", tmp_path / "nowhere")
    refused("other sizes", Path("nano"))
    refused("needs its own", finished, stitching="none")
    half, foreign = tmp_path / "half", tmp_path / "foreign"
    for folder in (half, foreign):
        folder.mkdir()
    with safe_open(finished / "state.safetensors", framework="pt") as state:
        metadata = state.metadata()
        weights = {name: state.get_tensor(name) for name in state.keys()}
    save_file(weights, half / "state.safetensors", metadata | {"stage": "0"})
    refused("not trained yet", half)
    save_file(weights, foreign / "state.safetensors")
    refused("not the state of a training", foreign, CheckpointError)
    weights["weight/model.vision.norm.weight"] = torch.zeros(3)
    save_file(weights, foreign / "state.safetensors", metadata)
    refused("does not fit", foreign, CheckpointError)


def test_the_tower_of_a_finished_model_is_taken_without_its_state(
    tiny, finished, tokenizer, tmp_path
):
    model = tmp_path / "model"
    shutil.copytree(finished, model, ignore=shutil.ignore_patterns("state.safetensors"))
    trained = ModelWithLosses(tiny, tokenizer)
    before = trained.model.compressor.norm.weight.clone()
    take_tower(trained, model, 1)
    tower = FlashVL.from_pretrained(finished, dtype="float32").model.vision.state_dict()
    for name, weight in trained.model.vision.state_dict().items():
        assert torch.equal(weight, tower[name])
    with safe_open(finished / "state.safetensors", framework="pt") as state:
        head = state.get_tensor("weight/label_head.weight")
    assert torch.equal(trained.label_head.weight, head)
    assert torch.equal(trained.model.compressor.norm.weight, before)
    none = ModelWithLosses(with_config(tiny, {"assumptions": {"stitching": "none"}}), tokenizer)
    with pytest.raises(ArgumentError, match="needs its own"):
        take_tower(none, model, 1)


def test_the_embedded_nano_gives_its_tower(tokenizer):
    trained = ModelWithLosses(NANO, tokenizer)
    take_tower(trained, Path("nano"), 2)
    nano = FlashVL.from_pretrained("nano", dtype="float32")
    weight = trained.model.vision.patch_embedding.weight
    assert torch.equal(weight, nano.model.vision.patch_embedding.weight)
    pictures = torch.rand(2, 3, nano.config.tiler.seen_size, nano.config.tiler.seen_size)
    with torch.no_grad():
        assert trained.label_head(trained.model.vision(pictures)).isfinite().all()


def test_a_config_of_ones_own_is_trained_and_resumed(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(train_module.RECIPES, "nano", tiny)
    changes, folder = tmp_path / "one head.json", tmp_path / "run"
    changes.write_text('{"llm_config": {"num_key_value_heads": 1}, "intermediate_size": 8}')
    command = ["train", "--steps", "3", "--device", "cpu", "--out", str(folder)]
    with interrupted_at(("answers", 0)):
        assert main([*command, "--config", str(changes)]) == 130
    again = shlex.split(capsys.readouterr().out.split("go on with: ")[1])
    assert main([*command, "--resume"]) == 2  # the recipe's own config
    assert "other settings" in capsys.readouterr().err
    assert main(again[1:]) == 0
    config, own = FlashVL.from_pretrained(folder).config, nano_config(tiny)
    assert config.decoder == dataclasses.replace(own.decoder, key_value_heads=1)
    assert config.compressor == dataclasses.replace(own.compressor, hidden_width=8)
    assert config.vision == own.vision


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"llm_config": {"vocab_size": 99}}, "vocab_size must stay"),
        ({"llm_config": {"num_key_value_heads": 3}}, "key"),
        ({"llm_config": 5}, "llm_config"),
        ({"assumptions": {"stitching": "glue"}}, "stitching"),
    ],
)
def test_a_config_that_cannot_be_is_refused_before_anything_is_written(
    changes, words, tmp_path, capsys
):
    (tmp_path / "changes.json").write_text(json.dumps(changes))
    out = tmp_path / "run"
    assert main(["train", "--config", str(tmp_path / "changes.json"), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert words in error
    assert not out.exists()


def test_steps_scale_all_stages_in_proportion():
    assert scaled(NANO.stages, None) == NANO.stages
    total = sum(stage.steps for stage in NANO.stages)
    for old, new in zip(NANO.stages, scaled(NANO.stages, total // 10)):
        assert new.steps == pytest.approx(old.steps / 10, abs=1)
        assert (new.name, new.batch) == (old.name, old.batch)


def test_a_stage_trains_its_parts_alone(tiny, tokenizer):
    trained = ModelWithLosses(tiny, tokenizer)
    parameters = dict(trained.named_parameters())
    for stage in tiny.stages:
        trained.train_parts(stage)
        optimizers = make_optimizers(parameters, stage)
        chosen = [
            id(one) for each in optimizers for group in each.param_groups for one in group["params"]
        ]
        assert len(chosen) == len(set(chosen))
        for name, parameter in parameters.items():
            part = name.split(".")[1]
            wanted = part in stage.parts
            if name.startswith("label_head"):
                wanted = stage.data == "tiles"
            assert (id(parameter) in chosen) == parameter.requires_grad == wanted, name
            assert parameter.grad is None  # the stage before must not count in the gradient's norm
            parameter.grad = torch.zeros_like(parameter)


def test_muon_has_the_hidden_matrices_and_adamw_the_rest(tiny, tokenizer):
    trained = ModelWithLosses(tiny, tokenizer)
    stage = dataclasses.replace(tiny.stages[0], parts=TOWER + READER)
    trained.train_parts(stage)
    parameters = dict(trained.named_parameters())
    muon, adamw = make_optimizers(parameters, stage)
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    assert muon.param_groups[0]["lr"] == MUON * stage.rate
    names = {id(one): name for name, one in parameters.items()}
    hidden = {names[id(one)] for group in muon.param_groups for one in group["params"]}
    in_blocks = {
        name
        for name, one in parameters.items()
        if one.ndim == 2 and (".layers." in name or ".compressor." in name)
    }
    assert len(hidden) > 10
    assert hidden == in_blocks
    for group in adamw.param_groups:
        for one in group["params"]:
            assert (group["weight_decay"] > 0) == (one.ndim >= 2), names[id(one)]


def test_starting_values_whiten_the_patches_and_tell_places_apart(tokenizer):
    trained = ModelWithLosses(NANO, tokenizer)
    pixels = TileBatches(trained.model.config, starting_values.WHITENING, seed=0, first=0)[0].pixels
    with torch.no_grad():
        embedded = trained.model.vision.patch_embedding(pixels).flatten(0, 1)  # (S * N, D)
    assert embedded.mean(0).abs().max() < 1e-2
    covariance = embedded.T.cov()  # (D, D)
    assert (covariance - torch.diag(covariance.diagonal())).abs().max() < 0.05
    places = trained.model.vision.positions[0]  # (N, D)
    assert torch.cdist(places, places).fill_diagonal_(9).min() > 0.5


def test_labels_are_the_answers_and_prompts_are_those_of_chat(tiny, tokenizer):
    config = nano_config(tiny)
    questions = list(scene(training_number(1, 1)).questions)[:4]
    ids, labels = encode_conversation(questions, tokenizer, config, tiles=3)
    assert len(ids) == len(labels)
    answers = [[]]
    for token, label in zip(ids, labels):
        assert label in (IGNORED, token)
        if label != IGNORED:
            answers[-1].append(label)
        if label == tokenizer.control["<|im_end|>"]:
            answers.append([])
    assert [tokenizer.decode(one) for one in answers[:-1]] == [one.answer for one in questions]
    assert answers[-1] == []
    first = [{"role": "user", "content": questions[0].text}]
    prompt = encode_messages(first, tokenizer, config.prompt, 3, config.tokens_per_tile)
    assert ids[: len(prompt)] == prompt
    assert labels[: len(prompt)] == [IGNORED] * len(prompt)


def test_a_scene_is_talked_about_in_conversations_of_its_questions():
    stage = dataclasses.replace(NANO.stages[-1], questions=5, rounds=3)
    rounds, kinds, could = Counter(), Counter(), Counter()
    for index in range(300):
        drawn = scene(training_number(2, index), (80, 100))
        talks = converse(drawn, stage)
        assert talks == converse(drawn, stage)
        asked = [question for talk in talks for question in talk]
        assert len(asked) == 5
        assert all(asked.count(one) == drawn.questions.count(one) == 1 for one in asked)
        rounds.update(len(talk) for talk in talks[:1])
        kinds.update(question.kind for question in asked)
        could.update(question.kind for question in drawn.questions)
        everything = dataclasses.replace(stage, questions=99)
        assert Counter(one for talk in converse(drawn, everything) for one in talk) == Counter(
            drawn.questions
        )
    assert set(rounds) == {1, 2, 3}
    assert 0.55 < rounds[1] / 300 < 0.78  # half, and a third of the others
    share = {kind: kinds[kind] / could[kind] for kind in could}
    assert share["number"] > 1.5 * share["color"] > 4 * share["self"] > 0
    assert share["color"] > share["outside"] > share["self"]


def test_without_a_picture_the_same_is_asked_and_answered_otherwise():
    stage = NANO.stages[-1]
    answers = Counter()
    for index in range(30):
        drawn = scene(training_number(2, index), (80, 100))
        blind = converse_without_picture(drawn, stage)
        for talk, seen in zip(blind, converse(drawn, stage), strict=True):
            for one, other in zip(talk, seen, strict=True):
                assert (one.kind, one.text) == (other.kind, other.text)
                chinese = one.language == "zh"
                if one.kind in ("outside", "self"):
                    assert one.answer == other.answer
                else:
                    assert one.answer == ("没有图片。" if chinese else "There is no picture.")
                answers[one.kind, one.language] += 1
    assert len(answers) == 20


def test_a_batch_of_tiles_has_their_labels_patch_by_patch(tiny):
    config, stage = nano_config(tiny), tiny.stages[0]
    batch = TileBatches(config, stage, seed=4, first=SPAN)[3]
    assert batch.pictures == stage.batch
    numbers = scene_numbers(stage, 4, SPAN, 3)
    assert len(set(numbers)) == stage.batch
    for row, number in enumerate(numbers):
        tile = packed_tile(number, 112, 14, 1, things=3, digits=2)
        pixels = normalize(tile.pixels[None], config.tiler.mean, config.tiler.std)[0]
        assert torch.equal(batch.pixels[row], pixels)
        for part in ("names", "colors", "places", "outlines", "boxes"):
            labels = getattr(tile, part)
            for place in (0, 7, 8, 37):  # in rows of eight patches
                wanted = torch.tensor(labels[place // 8, place % 8])
                assert torch.equal(getattr(batch, part)[row, place], wanted)


def test_tiles_are_as_large_as_the_tower_will_see_them(tiny, tokenizer):
    for mode, side in (("trim", 112), ("mean", 112), ("none", 84)):
        config = nano_config(with_config(tiny, {"assumptions": {"stitching": mode}}))
        tiles = TileBatches(config, tiny.stages[0], seed=4, first=SPAN)[0].pixels
        pictures = SceneBatches(config, tokenizer, tiny.stages[1], seed=4, first=SPAN)[0].pixels
        assert tiles.shape[1:] == pictures.shape[1:] == (3, side, side)


def test_a_batch_of_scenes_has_a_row_for_each_and_one_without_a_picture(tiny, tokenizer):
    config, stage = nano_config(tiny), tiny.stages[2]
    batch = SceneBatches(config, tokenizer, stage, seed=4, first=SPAN)[3]
    drawn = [
        scene(number, stage.sides, stage.things, stage.digits, stage.max_aspect_ratio)
        for number in scene_numbers(stage, 4, SPAN, 3)
    ]
    assert batch.pictures == len(drawn) == stage.batch
    assert len(batch.input_ids) == stage.batch + 1
    talks = [converse(one, stage) for one in drawn] + [converse_without_picture(drawn[0], stage)]
    cut = [tile_image(one.picture, config.tiler) for one in drawn]
    tiles = [len(its_tiles) for its_tiles, _ in cut] + [0]
    assert batch.grids == [grid for _, grid in cut]
    assert len(batch.pixels) == sum(tiles)
    places = (batch.input_ids == TILE_START) | (batch.input_ids == TILE_NEXT)  # (B, T)
    assert places.sum(1).tolist() == [36 * count for count in tiles]
    for row, talk in enumerate(talks):
        for number, one in enumerate(talk, 1):
            labels = batch.labels[row][batch.owners[row] == number]
            text = tokenizer.decode(labels[labels != IGNORED].tolist())
            assert text == "".join(question.answer for question in one)
        assert batch.owners[row].max() == len(talk)
    assert not (batch.owners[-1] == 0).any()  # without a picture nothing is shared


def test_a_row_without_a_picture_sees_nothing_of_the_others(tiny, tokenizer):
    stage = tiny.stages[2]
    trained = ModelWithLosses(tiny, tokenizer)
    batch = SceneBatches(trained.model.config, tokenizer, stage, seed=4, first=0)[0]

    def logits(pixels):
        return trained.model(
            batch.input_ids, pixels, batch.grids, positions=batch.positions, mask=batch.mask
        )  # (B, T, V)

    before, after = logits(batch.pixels), logits(batch.pixels.flip(0, 3) + 1)
    its = batch.owners[-1] > 0
    assert torch.equal(before[-1, its], after[-1, its])
    for row in range(stage.batch):
        its = batch.owners[row] > 0
        assert (before[row, its] - after[row, its]).abs().max() > 1e-4


def test_the_same_seed_gives_the_same_batches_from_any_step_on(tiny, tokenizer):
    config = nano_config(tiny)
    for number, stage in enumerate(tiny.stages[:2]):
        whole = list(batches(stage, number, config, tokenizer, 5, range(4)))
        later = list(batches(stage, number, config, tokenizer, 5, range(2, 4)))
        for one, other in zip(whole[2:], later, strict=True):
            for field in dataclasses.fields(one):
                part, again = getattr(one, field.name), getattr(other, field.name)
                assert torch.equal(part, again) if torch.is_tensor(part) else part == again
        other_seed = next(batches(stage, number, config, tokenizer, 6, range(1)))
        other_stage = next(batches(stage, number + 1, config, tokenizer, 5, range(1)))
        for other in (whole[1], other_seed, other_stage):
            assert other.pixels.shape != whole[0].pixels.shape or not torch.equal(
                other.pixels, whole[0].pixels
            )


def test_conversations_side_by_side_do_not_see_each_other(tiny, tokenizer):
    """Each gives the logits that it gives in a row of its own, whatever stands beside it."""
    torch.manual_seed(3)
    model = FlashVLModel(nano_config(tiny)).eval()
    drawn = [scene(training_number(1, index)) for index in (1, 2)]
    several = [[list(one.questions[:2]), [one.questions[-1]]] for one in drawn]
    rows = [encode_side_by_side(one, tokenizer, model.config, tiles=3) for one in several]
    pixels = torch.randn(2 * 3, 3, 112, 112)
    batch = SceneBatch(pixels, [(1, 2)] * 2, *pad(rows))
    assert batch.mask.shape == (2, 1, *[batch.input_ids.shape[1]] * 2)
    logits = model(
        batch.input_ids, pixels, batch.grids, positions=batch.positions, mask=batch.mask
    )  # (B, T, V)
    for row, conversations in enumerate(several):
        for number, one in enumerate(conversations, 1):
            ids, labels = encode_conversation(one, tokenizer, model.config, tiles=3)
            alone = model(torch.tensor([ids]), pixels[3 * row : 3 * row + 3], [(1, 2)])
            its = batch.owners[row] == number
            assert torch.allclose(logits[row, its], alone[0, -int(its.sum()) :], atol=1e-5)
            assert batch.labels[row, its].tolist() == labels[-int(its.sum()) :]
    padding = batch.owners == -1
    assert padding.any()
    assert (batch.labels[padding] == IGNORED).all()


def test_the_scene_loss_is_that_of_each_conversation_alone_and_of_names(tiny, tokenizer):
    """Worked out again, conversation by conversation and picture by picture."""
    trained = ModelWithLosses(tiny, tokenizer)
    model, stage = trained.model, tiny.stages[2]
    batch = SceneBatches(model.config, tokenizer, stage, seed=4, first=0)[0]
    drawn = [
        scene(number, stage.sides, stage.things, stage.digits, stage.max_aspect_ratio)
        for number in scene_numbers(stage, 4, 0, 0)
    ]
    its_tiles = batch.pixels.split([model.config.tiler.tiles(grid) for grid in batch.grids])
    talks = [(converse(one, stage), place) for place, one in enumerate(drawn)]
    talks.append((converse_without_picture(drawn[0], stage), None))
    says, answers = [], []
    for conversations, place in talks:
        pixels, grids = (None, []) if place is None else (its_tiles[place], [batch.grids[place]])
        for one in conversations:
            tiles = 0 if pixels is None else len(pixels)
            ids, labels = map(
                torch.tensor, encode_conversation(one, tokenizer, model.config, tiles)
            )
            logits = model(ids[None], pixels, grids)[0, :-1]  # (T - 1, V)
            says.append(logits[labels[1:] != IGNORED])
            answers.append(labels[1:][labels[1:] != IGNORED])
    says, answers = torch.cat(says), torch.cat(answers)
    features = [model.vision(pixels) for pixels in its_tiles]
    stitched, tokens = (
        torch.cat([part(one, [grid]) for one, grid in zip(features, batch.grids)])
        for part in (model.compressor.reduce, model.compressor)
    )
    wanted = nn.functional.cross_entropy(says, answers) + trained.name_loss(stitched, tokens)
    loss, share = trained.loss(batch)
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-5)
    assert share == (says.argmax(-1) == answers).float().mean()
    gradients = [
        torch.autograd.grad(one, model.compressor.output.weight)[0] for one in (loss, wanted)
    ]
    assert torch.allclose(*gradients, atol=1e-5)


def test_the_label_loss_is_of_what_is_known_alone(tiny, tokenizer):
    trained = ModelWithLosses(tiny, tokenizer)
    trained.label_head = nn.Identity()  # so that the features are what it would say
    names = torch.tensor([[0, 3, IGNORED, 16]])  # (S, N): nothing, an object, a touch, a digit
    colors = torch.tensor([[0, 8, IGNORED, 1]])
    places = torch.tensor([[IGNORED, IGNORED, IGNORED, 2]])
    outlines = torch.randint(0, 2, (1, 4, LABELS[2])).float()
    boxes = torch.randn(1, 4, 4) * (names > 0)[..., None]
    batch = TileBatch(torch.zeros(1, 3, 112, 112), names, colors, places, outlines, boxes)
    says = {
        "names": one_hot(names, LABELS[0]),
        "colors": one_hot(colors, LABELS[1]),
        "outlines": 20 * (2 * outlines - 1),
        "boxes": boxes,
        "places": one_hot(places, LABELS[4]),
    }
    known = {
        "names": (0, 1, 3),
        "colors": (0, 1, 3),
        "outlines": (0, 1, 2, 3),
        "boxes": (1, 3),
        "places": (3,),
    }
    loss, share = trained.label_loss(torch.cat(list(says.values()), -1), batch)
    assert loss < 1e-4
    assert share == 1
    for part, patch in itertools.product(says, range(4)):
        wrong = says | {part: says[part].clone()}
        wrong[part][0, patch] = -says[part][0, patch] - 1
        loss, share = trained.label_loss(torch.cat(list(wrong.values()), -1), batch)
        assert (loss > 0.01) == (patch in known[part]), (part, patch)
        assert share == (0.5 if part == "names" and patch in (1, 3) else 1)
    nothing = TileBatch(
        batch.pixels, names * 0, colors * 0, torch.full_like(places, IGNORED), outlines, boxes * 0
    )
    loss, _ = trained.label_loss(torch.cat(list(says.values()), -1), nothing)
    assert loss.isfinite()  # a batch may show no digit, or nothing at all


def one_hot(labels: torch.Tensor, width: int) -> torch.Tensor:
    """Sure logits (S, N, width); those of IGNORED are of the first."""
    return 20 * nn.functional.one_hot(labels.clamp(0), width).float()


def test_image_tokens_are_drawn_to_the_words_for_what_they_show(tiny, tokenizer):
    wide = with_config(tiny, {"llm_config": {"hidden_size": 256}})  # words lie apart
    trained = ModelWithLosses(wide, tokenizer)
    words = trained.words @ trained.model.decoder.embedding.weight  # (words, D)
    features = torch.zeros(1, 36, 16)

    def say(name: int, color: int) -> None:  # in every patch; 0 is nothing
        with torch.no_grad():
            trained.label_head.weight.zero_()
            trained.label_head.bias.zero_()
            trained.label_head.bias[[name, LABELS[0] + color]] = 1.0

    def near(*places: int) -> torch.Tensor:  # image tokens near these words
        return (20 * words[list(places)].sum(0)).detach().expand(1, 36, -1)

    first_color = 2 * len(NAMES)
    for name, color, other in (("star", "red", "blue"), ("7", "white", "black")):
        say(1 + NAMES.index(name), 1 + list(COLORS).index(color))
        named = [NAMES.index(name), len(NAMES) + NAMES.index(name)]
        right, wrong = (
            [place, len(COLORS) + place]
            for place in (first_color + list(COLORS).index(one) for one in (color, other))
        )
        loss = trained.name_loss(features, near(*named, *right))
        assert loss < trained.name_loss(features, near(*named, *wrong))
        assert loss < trained.name_loss(features, near(*right))
        assert loss < trained.name_loss(features, near(*named, right[0]))  # both languages count
    say(0, 0)  # where the tower sees nothing, no word may be near
    nothing = -(words.sum(0) * 20).detach().expand(1, 36, -1)
    assert trained.name_loss(features, nothing) < trained.name_loss(features, near(*named, *right))


def test_the_words_for_what_patches_show_are_the_means_of_their_tokens(tiny, tokenizer):
    words = average_of_tokens(tokenizer, tiny.vocabulary)
    assert words.sum(1).tolist() == pytest.approx([1.0] * len(words))
    chinese = [*(SHAPES_ZH[one][0] for one in SHAPES), *DIGITS]
    colors = [*(f" {one}" for one in COLORS), *(COLORS_ZH[one] for one in COLORS)]
    texts = [*(f" {one}" for one in SHAPES), *DIGITS, *chinese, *colors]
    for row, text in zip(words, texts, strict=True):
        assert set(row.nonzero().flatten().tolist()) == set(tokenizer.encode(text))


@pytest.mark.slow
def test_the_recipes_tokenizer_is_the_shipped_one(tokenizer, tmp_path):
    for number, one in enumerate((tokenizer, train_tokenizer(NANO))):
        one.save(tmp_path / f"{number}.json")
    assert (tmp_path / "0.json").read_bytes() == (tmp_path / "1.json").read_bytes()


def test_a_tokenizer_is_learned_from_questions_and_answers(tiny, monkeypatch):
    monkeypatch.setattr(recipe_module, "scene", few_questions_of)
    learned = train_tokenizer(tiny)
    texts = {text for number in range(60) for text in texts_of(few_questions_of(number))}
    assert all(learned.decode(learned.encode(text)) == text for text in texts)
    characters = sum(map(len, texts))
    assert sum(len(learned.encode(text)) for text in texts) < 0.4 * characters


@functools.cache
def few_questions_of(number: int) -> SimpleNamespace:
    """Scenes without their pictures, the same over and over; drawing 2,000 takes seconds."""
    if number >= 60:
        return few_questions_of(number % 60)
    return SimpleNamespace(questions=scene(number, sides=(80, 100)).questions)


def texts_of(drawn: SimpleNamespace) -> list[str]:
    return [text for one in drawn.questions for text in (one.text, one.answer)]


def test_the_tokenizer_reads_the_worlds_words_shortly(tokenizer):
    controls = sorted(tokenizer.control.values())
    assert controls == list(range(tokenizer.vocabulary - 3, tokenizer.vocabulary))
    assert tokenizer.vocabulary <= NANO.vocabulary
    for text in ("purple", "triangle", "What colour is the circle?", "紫色", "颜色？😀", "0427"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("What colour is the circle?")) <= 8
    assert len(tokenizer.encode("图中有几个红色的物体？")) <= 8
    assert [tokenizer.decode([token]) for token in tokenizer.encode("the number 0427")] == [
        *("the", " number", " ", "0", "4", "2", "7")
    ]
    assert not set(tokenizer.encode("<|im_end|>")) & set(controls)
