"""The training loop: the loss falls, an interrupted run ends as an uninterrupted one."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import json
import shlex
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from flashvl import FlashVL
from flashvl.cli import main
from flashvl.errors import ArgumentError, CheckpointError
from flashvl.image import normalise
from flashvl.nano import recipe as recipe_module
from flashvl.nano import train as train_module
from flashvl.nano import trainer as trainer_module
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
from flashvl.nano.numbers import DIGITS
from flashvl.nano.packed import IGNORED, NAMES, packed_tile
from flashvl.nano.recipe import (
    NANO,
    READER,
    TOWER,
    Recipe,
    Stage,
    nano_config,
    train_tokenizer,
    with_stitching,
)
from flashvl.nano.scenes import scene, training_number
from flashvl.nano.shapes import COLOURS, SHAPES
from flashvl.nano.state import load_state, restore_moments, save_state
from flashvl.nano.train import MUON, WARM_UP, make_optimizers, rate_at, scaled, train
from flashvl.nano.trainer import LABELS, Trainer
from flashvl.nano.wordings import COLOURS_ZH, SHAPES_ZH
from flashvl.prompt import TILE_NEXT, TILE_START, encode_messages
from flashvl.tiling import tile_image


@pytest.fixture(scope="module")
def tiny() -> Recipe:
    config = copy.deepcopy(NANO.config)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config["vision_config"] |= small | {"num_attention_heads": 2}
    config["llm_config"] |= small | {"num_attention_heads": 2, "num_key_value_heads": 1}
    config["intermediate_size"] = 16
    few = {"questions": 4, "rounds": 3, "sides": (80, 300)}
    stages = (
        Stage("tower", "tiles", TOWER, (1, 3), 2, steps=50, batch=8, rate=1e-2),
        Stage("answers", "scenes", READER, (1, 2), 2, steps=50, batch=2, rate=1e-2, **few),
        Stage("together", "scenes", TOWER + READER, (1, 4), 4, steps=4, batch=2, rate=1e-3, **few),
    )
    return Recipe(config, NANO.vocabulary, stages)


@pytest.fixture(scope="module")
def tokenizer(tiny):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe_module, "scene", questions_of)
        return train_tokenizer(tiny)


@functools.cache
def questions_of(number: int) -> SimpleNamespace:
    """A scene without its picture, so that 2,000 can be kept; drawing them takes seconds."""
    return SimpleNamespace(questions=scene(number).questions)


@pytest.fixture(scope="module", autouse=True)
def few_tiles_for_the_starting_values():
    with pytest.MonkeyPatch.context() as patch:
        few = dataclasses.replace(trainer_module.WHITENING, batch=30)
        patch.setattr(trainer_module, "WHITENING", few)
        yield


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums in one order, in `finished` too, which is why this is the module's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def one_tokenizer(monkeypatch, tokenizer):
    """The tokenizer's training is the same each time and takes seconds."""
    monkeypatch.setattr(train_module, "train_tokenizer", lambda recipe: tokenizer)


@pytest.fixture(scope="module")
def finished(tiny, tokenizer, tmp_path_factory):
    """A whole run without an interruption -> its folder."""
    folder = tmp_path_factory.mktemp("nano") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "train_tokenizer", lambda recipe: tokenizer)
        train(tiny, folder, seed=5, device="cpu")
    return folder


@contextmanager
def interrupted_at(moment: tuple[str, int]) -> Iterator[None]:
    """Ctrl-C after this step of this stage, (stage's name, step)."""
    add = train_module.Progress.add

    def interrupting(self, step, *rest):
        add(self, step, *rest)
        if (self.stage.name, step) == moment:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module.Progress, "add", interrupting)
        yield


def test_the_loss_falls_in_both_kinds_of_stage(finished):
    log = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    for stage in ("tower", "answers"):
        losses = [line["loss"] for line in log if line["stage"] == stage]
        assert len(losses) == 2
        assert losses[-1] < 0.9 * losses[0]


def test_the_result_is_a_checkpoint_that_answers(finished):
    model = FlashVL.from_pretrained(finished)
    answer = model.chat(
        scene(0).picture, [{"role": "user", "content": "What is it?"}], max_new_tokens=4
    )
    assert isinstance(answer, str)
    assert model.stop_ids == {
        model.tokenizer.control[one] for one in ("<|im_end|>", "<|endoftext|>")
    }
    assert model.config.tokens_per_tile == 36


@pytest.mark.parametrize("moment", [("tower", 30), ("answers", 7), ("together", 2)])
def test_an_interrupted_run_resumes_to_the_same_numbers(moment, tiny, finished, tmp_path, capsys):
    with interrupted_at(moment), pytest.raises(KeyboardInterrupt):
        train(tiny, tmp_path / "run", seed=5, device="cpu")
    assert "--resume" in capsys.readouterr().out
    assert not (tmp_path / "run" / "config.json").exists()
    train(tiny, tmp_path / "run", seed=5, device="cpu", resume=True)
    whole = FlashVL.from_pretrained(finished).state_dict()
    resumed = FlashVL.from_pretrained(tmp_path / "run").state_dict()
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name
    assert not list((tmp_path / "run").glob("*.writing"))


def test_a_run_is_never_overwritten_nor_resumed_as_another(tiny, finished, tmp_path):
    before = {file.name: file.read_bytes() for file in finished.iterdir()}
    with pytest.raises(ArgumentError, match="--resume"):
        train(tiny, finished, seed=5, device="cpu")
    with pytest.raises(ArgumentError, match="other settings"):
        train(tiny, finished, seed=6, device="cpu", resume=True)
    assert {file.name: file.read_bytes() for file in finished.iterdir()} == before
    with pytest.raises(ArgumentError, match="resume"):
        train(tiny, tmp_path, device="cpu", resume=True)


def test_bad_arguments_are_one_line_and_exit_code_2(finished, tmp_path, capsys):
    for arguments in (
        ["--steps", "0"],
        ["--seed", "-1"],
        ["--out", str(finished)],
        ["--out", str(finished / "none"), "--resume"],
        ["--device", "nowhere", "--out", str(tmp_path / "new")],
        ["--tower", str(tmp_path / "nowhere"), "--out", str(tmp_path / "other")],
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
    *_, last = capsys.readouterr().out.splitlines()
    command = shlex.split(last.split("go on with: ")[1])
    assert command[0] == "flashvl"
    assert main(command[1:]) == 0
    assert str(folder) in capsys.readouterr().out
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in log] == ["tower", "answers", "together"]
    assert FlashVL.from_pretrained(folder).config.tiler.stitching == "mean"


@pytest.mark.parametrize("mode", ["mean", "none"])
def test_a_run_of_another_stitching_mode_is_a_model_of_that_mode(tiny, tmp_path, mode):
    train(tiny, tmp_path / "run", device="cpu", steps=3, stitching=mode)
    model = FlashVL.from_pretrained(tmp_path / "run")
    assert model.config.tiler.stitching == mode
    messages = [{"role": "user", "content": "What is it?"}]
    assert isinstance(model.chat(scene(4).picture, messages, max_new_tokens=2), str)
    with pytest.raises(ArgumentError, match="other settings"):
        train(tiny, tmp_path / "run", device="cpu", steps=3, resume=True)


def test_a_run_with_the_tower_of_another_goes_on_as_that_one_would_have(
    tiny, finished, tmp_path, capsys
):
    folder = tmp_path / "with a tower"
    with interrupted_at(("answers", 30)):
        with pytest.raises(KeyboardInterrupt):
            train(tiny, tmp_path / "other", seed=5, device="cpu")
        with pytest.raises(KeyboardInterrupt):
            train(tiny, folder, seed=5, device="cpu", tower=tmp_path / "other")
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in log] == ["answers"]
    assert f"--tower {shlex.quote(str(tmp_path / 'other'))} --out" in capsys.readouterr().out
    with pytest.raises(ArgumentError, match="other settings"):
        train(tiny, folder, seed=5, device="cpu", resume=True)
    train(tiny, folder, seed=5, device="cpu", resume=True, tower=tmp_path / "other")
    wanted = FlashVL.from_pretrained(finished).state_dict()
    found = FlashVL.from_pretrained(folder).state_dict()
    for name, tensor in wanted.items():
        assert torch.equal(tensor, found[name]), name


def test_a_tower_that_does_not_fit_is_refused_in_words(tiny, finished, tmp_path):
    def refused(words: str, tower: Path, error=ArgumentError, **settings) -> None:
        with pytest.raises(error, match=words):
            train(tiny, tmp_path / "run", device="cpu", steps=3, tower=tower, **settings)
        assert not any((tmp_path / "run").iterdir())

    refused("has no state.safetensors", tmp_path / "nowhere")
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
    refused("not the state of a training run", foreign, CheckpointError)
    weights["weight/model.vision.norm.weight"] = torch.zeros(3)
    save_file(weights, foreign / "state.safetensors", metadata)
    refused("does not fit", foreign, CheckpointError)


def test_steps_scale_all_stages_in_proportion():
    assert scaled(NANO.stages, None) == NANO.stages
    total = sum(stage.steps for stage in NANO.stages)
    for old, new in zip(NANO.stages, scaled(NANO.stages, total // 10)):
        assert new.steps == pytest.approx(old.steps / 10, abs=1)
        assert (new.name, new.batch) == (old.name, old.batch)


def test_a_stage_trains_its_parts_alone(tiny, tokenizer):
    trainer = Trainer(tiny, tokenizer)
    for stage in tiny.stages:
        optimizers = make_optimizers(trainer, stage)
        trained = [
            id(one) for each in optimizers for group in each.param_groups for one in group["params"]
        ]
        assert len(trained) == len(set(trained))
        for name, parameter in trainer.named_parameters():
            part = name.split(".")[1]
            wanted = part in stage.parts
            if name.startswith("label_head"):
                wanted = stage.data == "tiles"
            assert (id(parameter) in trained) == parameter.requires_grad == wanted, name


def test_muon_has_the_hidden_matrices_and_adamw_the_rest(tiny, tokenizer):
    trainer = Trainer(tiny, tokenizer)
    stage = dataclasses.replace(tiny.stages[0], parts=TOWER + READER)
    muon, adamw = make_optimizers(trainer, stage)
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    assert muon.param_groups[0]["lr"] == MUON * stage.rate
    names = {id(one): name for name, one in trainer.named_parameters()}
    hidden = {names[id(one)] for group in muon.param_groups for one in group["params"]}
    in_blocks = {
        name
        for name, one in trainer.named_parameters()
        if one.ndim == 2 and (".layers." in name or ".compressor." in name)
    }
    assert len(hidden) > 10
    assert hidden == in_blocks
    for group in adamw.param_groups:
        for one in group["params"]:
            assert (group["weight_decay"] > 0) == (one.ndim >= 2), names[id(one)]


def test_the_rate_warms_up_and_comes_down():
    stage = NANO.stages[0]
    rates = [rate_at(step, stage) for step in range(stage.steps)]
    assert rates[0] == pytest.approx(stage.rate / WARM_UP)
    assert max(rates) == pytest.approx(stage.rate, rel=0.02)
    assert all(one < other for one, other in itertools.pairwise(rates[:WARM_UP]))
    assert all(one > other for one, other in itertools.pairwise(rates[WARM_UP:]))
    assert 0.01 * stage.rate <= rates[-1] < 0.011 * stage.rate


def test_a_saved_state_brings_weights_and_moments_of_both_optimizers_back(
    tiny, tokenizer, tmp_path
):
    stage, run = tiny.stages[0], {"recipe": "custom", "seed": 0}
    trainer = Trainer(tiny, tokenizer)
    optimizers = make_optimizers(trainer, stage)
    data = TileBatches(trainer.model.config, stage, seed=0, first=0)
    for step in range(2):
        trainer.zero_grad(set_to_none=True)
        trainer.loss(data[step])[0].backward()
        for optimizer in optimizers:
            optimizer.step()
    save_state(trainer, optimizers, tmp_path / "state.safetensors", run, 1, 7)
    other = Trainer(tiny, tokenizer)
    *place, moments = load_state(other, tmp_path / "state.safetensors", run)
    assert place == [1, 7]
    restored = make_optimizers(other, stage)
    restore_moments(restored, other, moments)
    for (name, one), again in zip(trainer.named_parameters(), other.parameters()):
        assert torch.equal(one, again), name
        for before, after in zip(optimizers, restored):
            assert before.state.get(one, {}).keys() == after.state.get(again, {}).keys()
            for moment, value in before.state.get(one, {}).items():
                assert torch.equal(value, after.state[again][moment]), (name, moment)
    assert [len(one.state) > 0 for one in restored] == [True, True]
    with pytest.raises(ArgumentError, match="other settings"):
        load_state(other, tmp_path / "state.safetensors", run | {"seed": 1})


def test_starting_values_whiten_the_patches_and_tell_places_apart(tokenizer):
    trainer = Trainer(NANO, tokenizer)
    pixels = TileBatches(trainer.model.config, trainer_module.WHITENING, seed=0, first=0)[0].pixels
    with torch.no_grad():
        embedded = trainer.model.vision.patch_embedding(pixels).flatten(0, 1)  # (S * N, D)
    assert embedded.mean(0).abs().max() < 1e-2
    covariance = embedded.T.cov()  # (D, D)
    assert (covariance - torch.diag(covariance.diagonal())).abs().max() < 0.05
    places = trainer.model.vision.positions[0]  # (N, D)
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
    assert share["number"] > 1.5 * share["colour"] > 4 * share["self"] > 0
    assert share["colour"] > share["outside"] > share["self"]


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
        pixels = normalise(tile.pixels[None], config.tiler.mean, config.tiler.std)[0]
        assert torch.equal(batch.pixels[row], pixels)
        for part in ("names", "colours", "places", "outlines", "boxes"):
            labels = getattr(tile, part)
            for place in (0, 7, 8, 37):  # in rows of eight patches
                wanted = torch.tensor(labels[place // 8, place % 8])
                assert torch.equal(getattr(batch, part)[row, place], wanted)


def test_tiles_are_as_large_as_the_tower_will_see_them(tiny, tokenizer):
    for mode, side in (("trim", 112), ("mean", 112), ("none", 84)):
        config = nano_config(with_stitching(tiny, mode))
        tiles = TileBatches(config, tiny.stages[0], seed=4, first=SPAN)[0].pixels
        pictures = SceneBatches(config, tokenizer, tiny.stages[1], seed=4, first=SPAN)[0].pixels
        assert tiles.shape[1:] == pictures.shape[1:] == (3, side, side)


def test_a_batch_of_scenes_has_a_row_for_each_and_one_without_a_picture(tiny, tokenizer):
    config, stage = nano_config(tiny), tiny.stages[2]
    batch = SceneBatches(config, tokenizer, stage, seed=4, first=SPAN)[3]
    drawn = [
        scene(number, stage.sides, stage.things, stage.digits, stage.most_elongated)
        for number in scene_numbers(stage, 4, SPAN, 3)
    ]
    assert batch.pictures == len(drawn) == stage.batch
    assert len(batch.input_ids) == stage.batch + 1
    talks = [converse(one, stage) for one in drawn] + [converse_without_picture(drawn[0], stage)]
    cut = [tile_image(one.picture, config.tiler) for one in drawn]
    tiles = [len(its_tiles) for its_tiles, _ in cut] + [0]
    assert batch.tiles == tiles[:-1]
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
    trainer = Trainer(tiny, tokenizer)
    batch = SceneBatches(trainer.model.config, tokenizer, stage, seed=4, first=0)[0]

    def logits(pixels):
        tokens = trainer.model.encode(pixels)  # (S, tokens, D)
        embeddings = trainer.model.embed(batch.input_ids, tokens)  # (B, T, D)
        hidden = trainer.model.decoder(embeddings, positions=batch.positions, mask=batch.mask)
        return trainer.model.decoder.head(hidden)  # (B, T, V)

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
    """Each gives the hidden states that it gives in a row of its own, whatever stands beside it."""
    torch.manual_seed(3)
    model = FlashVL(nano_config(tiny)).eval()
    drawn = [scene(training_number(1, index)) for index in (1, 2)]
    several = [[list(one.questions[:2]), [one.questions[-1]]] for one in drawn]
    rows = [encode_side_by_side(one, tokenizer, model.config, tiles=2) for one in several]
    pixels = torch.randn(2 * 2, 3, 112, 112)
    batch = SceneBatch(pixels, [(1, 2)] * 2, [2, 2], *pad(rows))
    assert batch.mask.shape == (2, 1, *[batch.input_ids.shape[1]] * 2)
    tokens = model.encode(pixels)  # (S, tokens, D)
    hidden = model.decoder(
        model.embed(batch.input_ids, tokens), positions=batch.positions, mask=batch.mask
    )  # (B, T, D)
    for row, conversations in enumerate(several):
        for number, one in enumerate(conversations, 1):
            ids, labels = encode_conversation(one, tokenizer, model.config, tiles=2)
            alone = model.decoder(model.embed(torch.tensor([ids]), tokens[2 * row : 2 * row + 2]))
            its = batch.owners[row] == number
            assert torch.allclose(hidden[row, its], alone[0, -int(its.sum()) :], atol=1e-5)
            assert batch.labels[row, its].tolist() == labels[-int(its.sum()) :]
    padding = batch.owners == -1
    assert padding.any()
    assert (batch.labels[padding] == IGNORED).all()


def test_the_label_loss_is_of_what_is_known_alone(tiny, tokenizer):
    trainer = Trainer(tiny, tokenizer)
    trainer.label_head = nn.Identity()  # so that the features are what it would say
    names = torch.tensor([[0, 3, IGNORED, 16]])  # (S, N): nothing, an object, a touch, a digit
    colours = torch.tensor([[0, 8, IGNORED, 1]])
    places = torch.tensor([[IGNORED, IGNORED, IGNORED, 2]])
    outlines = torch.randint(0, 2, (1, 4, LABELS[2])).float()
    boxes = torch.randn(1, 4, 4) * (names > 0)[..., None]
    batch = TileBatch(torch.zeros(1, 3, 112, 112), names, colours, places, outlines, boxes)
    says = {
        "names": one_hot(names, LABELS[0]),
        "colours": one_hot(colours, LABELS[1]),
        "outlines": 20 * (2 * outlines - 1),
        "boxes": boxes,
        "places": one_hot(places, LABELS[4]),
    }
    known = {
        "names": (0, 1, 3),
        "colours": (0, 1, 3),
        "outlines": (0, 1, 2, 3),
        "boxes": (1, 3),
        "places": (3,),
    }
    loss, share = trainer.label_loss(torch.cat(list(says.values()), -1), batch)
    assert loss < 1e-4
    assert share == 1
    for part, patch in itertools.product(says, range(4)):
        wrong = says | {part: says[part].clone()}
        wrong[part][0, patch] = -says[part][0, patch] - 1
        loss, share = trainer.label_loss(torch.cat(list(wrong.values()), -1), batch)
        assert (loss > 0.01) == (patch in known[part]), (part, patch)
        assert share == (0.5 if part == "names" and patch in (1, 3) else 1)
    nothing = TileBatch(
        batch.pixels, names * 0, colours * 0, torch.full_like(places, IGNORED), outlines, boxes * 0
    )
    loss, _ = trainer.label_loss(torch.cat(list(says.values()), -1), nothing)
    assert loss.isfinite()  # a batch may show no digit, or nothing at all


def one_hot(labels: torch.Tensor, width: int) -> torch.Tensor:
    """Sure logits (S, N, width); those of IGNORED are of the first."""
    return 20 * nn.functional.one_hot(labels.clamp(0), width).float()


def test_image_tokens_are_drawn_to_the_words_for_what_they_show(tiny, tokenizer):
    trainer = Trainer(tiny, tokenizer)
    words = trainer.words @ trainer.model.decoder.embedding.weight  # (words, D)
    features = torch.zeros(1, 36, 16)

    def say(name: int, colour: int) -> None:  # in every patch; 0 is nothing
        with torch.no_grad():
            trainer.label_head.weight.zero_()
            trainer.label_head.bias.zero_()
            trainer.label_head.bias[[name, LABELS[0] + colour]] = 1.0

    def near(*places: int) -> torch.Tensor:  # image tokens near these words
        return (20 * words[list(places)].sum(0)).detach().expand(1, 36, -1)

    first_colour = 2 * len(NAMES)
    for name, colour, other in (("star", "red", "blue"), ("7", "white", "black")):
        say(1 + NAMES.index(name), 1 + list(COLOURS).index(colour))
        named = [NAMES.index(name), len(NAMES) + NAMES.index(name)]
        right, wrong = (
            [place, len(COLOURS) + place]
            for place in (first_colour + list(COLOURS).index(one) for one in (colour, other))
        )
        loss = trainer.name_loss(features, near(*named, *right))
        assert loss < trainer.name_loss(features, near(*named, *wrong))
        assert loss < trainer.name_loss(features, near(*right))
        assert loss < trainer.name_loss(features, near(*named, right[0]))  # both languages count
    say(0, 0)  # where the tower sees nothing, no word may be near
    nothing = -(words.sum(0) * 20).detach().expand(1, 36, -1)
    assert trainer.name_loss(features, nothing) < trainer.name_loss(features, near(*named, *right))


def test_the_words_for_what_patches_show_are_the_means_of_their_tokens(tiny, tokenizer):
    words = trainer_module.average_of_tokens(tokenizer, tiny.vocabulary)
    assert words.sum(1).tolist() == pytest.approx([1.0] * len(words))
    chinese = [*(SHAPES_ZH[one][0] for one in SHAPES), *DIGITS]
    colours = [*(f" {one}" for one in COLOURS), *(COLOURS_ZH[one] for one in COLOURS)]
    texts = [*(f" {one}" for one in SHAPES), *DIGITS, *chinese, *colours]
    for row, text in zip(words, texts, strict=True):
        assert set(row.nonzero().flatten().tolist()) == set(tokenizer.encode(text))


def test_the_tokenizer_is_the_same_each_time_and_reads_the_worlds_words_shortly(
    tiny, tokenizer, monkeypatch
):
    monkeypatch.setattr(recipe_module, "scene", questions_of)
    text = "红色的圆形 a red star"
    assert recipe_module.train_tokenizer(tiny).encode(text) == tokenizer.encode(text)
    assert tokenizer.vocabulary <= NANO.vocabulary
    controls = sorted(tokenizer.control.values())
    assert controls == list(range(tokenizer.vocabulary - 3, tokenizer.vocabulary))
    for text in ("purple", "triangle", "What colour is the circle?", "紫色", "颜色？😀", "0427"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("What colour is the circle?")) <= 8
    assert len(tokenizer.encode("图中有几个红色的物体？")) <= 8
    assert [tokenizer.decode([token]) for token in tokenizer.encode("the number 0427")] == [
        *("the", " number", " ", "0", "4", "2", "7")
    ]
    assert not set(tokenizer.encode("<|im_end|>")) & set(controls)
