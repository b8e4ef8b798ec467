"""The training loop: the loss falls, an interrupted run ends as an uninterrupted one."""

from __future__ import annotations

import copy
import dataclasses
import json
import signal

import pytest
import torch

from flashvl import FlashVL
from flashvl.cli import main
from flashvl.errors import ArgumentError
from flashvl.nano import recipe as recipe_module
from flashvl.nano import train as train_module
from flashvl.nano import trainer as trainer_module
from flashvl.nano.data import (
    IGNORED,
    SceneBatch,
    TileBatches,
    encode_conversation,
    encode_side_by_side,
    pad,
)
from flashvl.nano.recipe import NANO, READER, TOWER, Recipe, Stage, nano_config, train_tokenizer
from flashvl.nano.scenes import scene, training_number
from flashvl.nano.shapes import COLOURS, SHAPES
from flashvl.nano.train import make_optimizer, scaled, train
from flashvl.nano.trainer import Trainer
from flashvl.prompt import encode_messages


@pytest.fixture(scope="module")
def tiny() -> Recipe:
    config = copy.deepcopy(NANO.config)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config["vision_config"] |= small | {"num_attention_heads": 2}
    config["llm_config"] |= small | {"num_attention_heads": 2, "num_key_value_heads": 1}
    config["intermediate_size"] = 16
    stages = (
        Stage("tower", "tiles", TOWER, objects=(1, 3), steps=50, batch=8, rate=5e-3),
        Stage("answers", "scenes", READER, objects=(1, 2), steps=50, batch=2, rate=1e-2),
        Stage("together", "scenes", TOWER + READER, objects=(1, 2), steps=4, batch=2, rate=1e-3),
    )
    return Recipe(config, NANO.vocabulary, stages)


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return train_tokenizer(tiny)


@pytest.fixture(scope="module", autouse=True)
def few_tiles_for_the_starting_values():
    with pytest.MonkeyPatch.context() as patch:
        few = dataclasses.replace(trainer_module.WHITENING, batch=30)
        patch.setattr(trainer_module, "WHITENING", few)
        yield


@pytest.fixture(autouse=True)
def one_thread_and_one_tokenizer(monkeypatch, tokenizer):
    """Sums in one order; the tokenizer's training is the same each time and takes seconds."""
    monkeypatch.setattr(train_module, "train_tokenizer", lambda recipe: tokenizer)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(tiny, tokenizer, tmp_path_factory):
    """A whole run without an interruption -> its folder."""
    folder = tmp_path_factory.mktemp("nano") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "train_tokenizer", lambda recipe: tokenizer)
        train(tiny, folder, seed=5, device="cpu")
    return folder


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
def test_an_interrupted_run_resumes_to_the_same_numbers(
    moment, tiny, finished, tmp_path, monkeypatch, capsys
):
    add = train_module.Progress.add

    def interrupting(self, step, *rest):
        add(self, step, *rest)
        if (self.stage.name, step) == moment:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(train_module.Progress, "add", interrupting)
        with pytest.raises(KeyboardInterrupt):
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


def test_bad_arguments_are_one_line_and_exit_code_2(finished, capsys):
    for arguments in (
        ["--steps", "0"],
        ["--seed", "-1"],
        ["--out", str(finished)],
        ["--out", str(finished / "none"), "--resume"],
        ["--device", "nowhere"],
    ):
        try:
            code = main(["train", *arguments])
        except SystemExit as stop:
            code = stop.code
        error = capsys.readouterr().err
        assert code == 2
        assert len(error.splitlines()) == 1
        assert "Traceback" not in error


def test_steps_scale_all_stages_in_proportion():
    assert scaled(NANO.stages, None) == NANO.stages
    total = sum(stage.steps for stage in NANO.stages)
    for old, new in zip(NANO.stages, scaled(NANO.stages, total // 10)):
        assert new.steps == pytest.approx(old.steps / 10, abs=1)
        assert (new.name, new.batch) == (old.name, old.batch)


def test_a_stage_trains_its_parts_alone(tiny, tokenizer):
    trainer = Trainer(tiny, tokenizer)
    for stage in tiny.stages:
        optimizer = make_optimizer(trainer, stage)
        trained = {id(one) for group in optimizer.param_groups for one in group["params"]}
        for name, parameter in trainer.named_parameters():
            part = name.split(".")[1]
            wanted = part in stage.parts or (part == "weight" or part == "bias") * (
                stage.data == "tiles"
            )
            assert (id(parameter) in trained) == parameter.requires_grad == bool(wanted), name


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


def test_conversations_side_by_side_do_not_see_each_other(tiny, tokenizer):
    """Each gives the hidden states that it gives in a row of its own, whatever stands beside it."""
    torch.manual_seed(3)
    model = FlashVL(nano_config(tiny)).eval()
    drawn = [scene(training_number(1, index)) for index in (1, 2)]
    several = [[list(one.questions[:2]), [one.questions[-1]]] for one in drawn]
    rows = [encode_side_by_side(one, tokenizer, model.config, tiles=2) for one in several]
    pixels = torch.randn(2 * 2, 3, 112, 112)
    batch = SceneBatch(pixels, *pad(rows))
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


def test_image_tokens_are_drawn_to_the_words_for_what_they_show(tiny, tokenizer):
    trainer = Trainer(tiny, tokenizer)
    words = trainer.names @ trainer.model.decoder.embedding.weight  # (words, D)
    features = torch.zeros(1, 64, 16)
    with torch.no_grad():
        trainer.label_head.weight.zero_()
        trainer.label_head.bias.zero_()
        trainer.label_head.bias[1 + SHAPES.index("star")] = 1.0
        trainer.label_head.bias[1 + len(SHAPES) + 1 + list(COLOURS).index("red")] = 1.0
    of_star = words[SHAPES.index("star")] + words[len(SHAPES) + SHAPES.index("star")]
    first_colour = 2 * len(SHAPES)
    red = first_colour + list(COLOURS).index("red")
    of_red = words[red] + words[red + len(COLOURS)]
    right = (20 * (of_star + of_red)).detach().expand(1, 36, -1)
    blue = first_colour + list(COLOURS).index("blue")
    wrong = (20 * (of_star + words[blue] + words[blue + len(COLOURS)])).detach().expand(1, 36, -1)
    assert trainer.name_loss(features, right) < trainer.name_loss(features, wrong)
    with torch.no_grad():  # where the tower sees nothing, no word may be near
        trainer.label_head.bias.zero_()
        trainer.label_head.bias[[0, 1 + len(SHAPES)]] = 1.0
    nothing = -(words.sum(0) * 20).detach().expand(1, 36, -1)
    assert trainer.name_loss(features, nothing) < trainer.name_loss(features, right)


def test_the_tokenizer_is_the_same_each_time_and_reads_the_worlds_words_shortly(tiny, tokenizer):
    assert recipe_module.train_tokenizer(tiny).encode("红色的圆形 a red star") == tokenizer.encode(
        "红色的圆形 a red star"
    )
    assert tokenizer.vocabulary <= NANO.vocabulary
    controls = sorted(tokenizer.control.values())
    assert controls == list(range(tokenizer.vocabulary - 3, tokenizer.vocabulary))
    for text in ("purple", "triangle", "What colour is the circle?", "紫色", "颜色？😀"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("What colour is the circle?")) <= 8
    assert not set(tokenizer.encode("<|im_end|>")) & set(controls)
