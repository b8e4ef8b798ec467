"""Gradients are the same however a step is cut: in passes, over processes, in shards."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

import pytest
import torch
from several import together
from tiny import encoded, picture, user

from flashvl import FlashVL
from flashvl.errors import ArgumentError, CheckpointError
from flashvl.finetuning.batches import Batches
from flashvl.finetuning.data import Sample, check_samples
from flashvl.finetuning.learner import Learner
from flashvl.finetuning.recipe import Recipe, read_recipe
from flashvl.reading import Reader
from flashvl.training.loop import Schedule, make_optimizers
from flashvl.training.processes import ALONE, Processes
from flashvl.training.sharding import whole_tensor
from flashvl.training.state import read_state

LORA = {"lora": 2}
FULL = {"train": "vision,compressor,decoder"}
SCHEDULE = Schedule("x", 4, 1e-2)


def recipe(**said) -> Recipe:
    return read_recipe(Reader({"data": "x", **said}, "a test"))


def samples(folder: Path, pictures: str) -> list[Sample]:
    """A sample for each letter, with a picture where it is P."""
    (folder / "a.png").write_bytes(encoded(picture(50, 30), "PNG"))
    return [
        Sample(
            "x",
            folder / "a.png" if letter == "P" else None,
            [*user("What? " * number), {"role": "assistant", "content": "a b c" * (number % 3)}],
        )
        for number, letter in enumerate(pictures)
    ]


def learner_of(folder: Path, here: Processes = ALONE, **said) -> Learner:
    learner = Learner.load(recipe(**said), str(folder), None, torch.device("cpu"), here)
    for name, one in learner.parameters.items():
        if name.endswith(".b"):  # else A has no gradient
            torch.nn.init.normal_(one, std=0.2)
    return learner


def gradients(
    folder: Path, given: list[Sample], here: Processes, batch: int, count: int, **said
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Of one step, by name, and its loss."""
    torch.manual_seed(0)
    learner = learner_of(folder, here, **said)
    checked = check_samples(given, learner.flash.processor, False, here)
    data = Batches(checked, learner.flash.processor, count, batch, here, learner.shards > 1)
    loss, _ = learner.loss(data[0])
    found = {
        name: torch.zeros(one.shape) if one.grad is None else whole_tensor(one.grad)
        for name, one in learner.parameters.items()
    }
    return found, loss


def assert_same(found, wanted, tolerance: float = 1e-6) -> None:
    (gradients, loss), (others, other) = found, wanted
    torch.testing.assert_close(loss, other)
    assert gradients.keys() == others.keys()
    for name, one in gradients.items():
        torch.testing.assert_close(one, others[name], atol=tolerance, rtol=1e-4, msg=name)


@pytest.mark.parametrize("said", [LORA, FULL])
def test_accumulated_passes_have_the_gradients_of_one(said, folder, tmp_path):
    given = samples(tmp_path, "PP.PP.PP")
    whole = gradients(folder, given, ALONE, 8, 8, **said)
    assert any(one.abs().max() > 1e-3 for one in whole[0].values())
    assert_same(gradients(folder, given, ALONE, 2, 8, **said), whole)
    assert_same(gradients(folder, given, ALONE, 8, 8, checkpointing=True, **said), whole)


@pytest.mark.parametrize(
    ("said", "pictures", "count"),
    [
        (LORA, "PP.PP.PP", 2),
        (FULL, "PP.PP.PP", 2),
        (FULL, "PP.PP.PP", 3),
        (FULL, "P.", 2),  # one process has no picture, and the tower learns
        ({"train": "decoder"}, "P.", 2),  # or is frozen
        (FULL, "PPP", 2),  # one has a sample less
        (FULL, "..", 2),
        ({"lora": 2, "lora-pattern": "(vit|llm).*"}, "P.", 2),
        (FULL | {"checkpointing": True}, "PP", 2),
    ],
)
def test_processes_have_the_gradients_of_one(said, pictures, count, folder, tmp_path):
    given = samples(tmp_path, pictures)
    number = len(pictures)
    alone = gradients(folder, given, ALONE, number, number, **said)
    found = together(
        count, lambda here: gradients(folder, given, here, 1, number, **said), tmp_path
    )
    for one in found:
        assert_same(one, alone)


def train(folder: Path, given: list[Sample], here: Processes, steps: range, state: Path, **said):
    """Some steps, resumed from a state and saved to it -> the weights afterwards."""
    learner = learner_of(folder, here, **said)
    checked = check_samples(given, learner.flash.processor, False, here)
    data = Batches(
        checked, learner.flash.processor, 3, 3, here, learner.shards > 1, seed=1, limit=None
    )
    optimizers = make_optimizers(learner.choose(learner.all_parts), SCHEDULE, muon=False)
    if steps.start:
        learner.load_state(state, optimizers, read_state(state))
    for step in steps:
        learner.loss(data[step])
        for optimizer in optimizers:
            optimizer.step()
    learner.save_state(state, {"stages": [4]}, optimizers, 0, steps.stop)
    return {name: whole_tensor(one) for name, one in learner.parameters.items()}


@pytest.mark.parametrize("said", [LORA, FULL])
def test_a_run_goes_on_with_another_number_of_processes(said, folder, tmp_path):
    given = samples(tmp_path, "PP.PP")
    wanted = train(folder, given, ALONE, range(4), tmp_path / "whole.safetensors", **said)
    state = tmp_path / "state.safetensors"
    train(folder, given, ALONE, range(1), state, **said)
    for count in (2, 3):
        steps = range(count - 1, count)
        work = partial(lambda steps, here: train(folder, given, here, steps, state, **said), steps)
        together(count, work, tmp_path)
    shards = [one.name for one in tmp_path.glob("shards-*")]
    assert shards == ([] if said is LORA else ["shards-0-3"])
    found = train(folder, given, ALONE, range(3, 4), state, **said)
    for name, one in wanted.items():
        torch.testing.assert_close(found[name], one, atol=2e-4, rtol=1e-3, msg=name)


def test_shards_that_are_damaged_are_refused_in_one_line(folder, tmp_path):
    given, state = samples(tmp_path, "PP.PP"), tmp_path / "state.safetensors"
    together(2, lambda here: train(folder, given, here, range(1), state, **FULL), tmp_path)
    (shards,) = tmp_path.glob("shards-*")
    file = min(shards.glob("*.safetensors"))
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b""):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"shards-0-1 is damaged") as refused:
            train(folder, given, ALONE, range(1, 2), state, **FULL)
        assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("dtype", ["float32", "mixed"])
def test_what_is_in_shards_is_saved_and_answers_as_a_whole(dtype, folder, tmp_path):
    given = samples(tmp_path, "PP")

    def work(here: Processes) -> tuple[list[tuple[str, str, str]], float]:
        learner = learner_of(folder, here, dtype=dtype, **FULL)
        checked = check_samples(given, learner.flash.processor, False, here)
        loss, _ = learner.held_out_loss(checked[:1], 2)  # one process has none
        said = list(learner.answers(checked))
        learner.save(tmp_path / "out")
        assert "; 0 were frozen" in learner.frozen_proof()
        return said, loss

    alone, loss = work(ALONE)
    whole = FlashVL.from_pretrained(tmp_path / "out", device="cpu")
    for said, its_loss in together(2, work, tmp_path):
        assert its_loss == pytest.approx(loss, rel=0.02 if dtype == "mixed" else 1e-5)
        assert len(said) == len(alone)
        assert dtype == "mixed" or said == alone
    again = FlashVL.from_pretrained(tmp_path / "out", device="cpu")
    for name, one in whole.model.state_dict().items():
        assert torch.equal(one, again.model.state_dict()[name]), name


@pytest.mark.parametrize("dtype", ["mixed", "bfloat16"])
def test_narrow_numbers_come_near(dtype, folder, tmp_path):
    given = samples(tmp_path, "PP.")
    wanted, loss = gradients(folder, given, ALONE, 3, 3, **FULL)
    found, narrow = gradients(folder, given, ALONE, 3, 3, dtype=dtype, **FULL)
    assert abs(loss - narrow) < 0.05 * loss
    kind = torch.float32 if dtype == "mixed" else torch.bfloat16
    assert {one.dtype for one in found.values()} == {kind}
    for one in (
        found,
        *(
            each
            for each, _ in together(
                2, lambda here: gradients(folder, given, here, 2, 3, dtype=dtype, **FULL), tmp_path
            )
        ),
    ):
        for name in ("decoder.layers.0.mlp.up.weight", "vision.layers.0.mlp.up.weight"):
            difference = (one[name].float() - wanted[name]).norm()
            assert difference < 0.1 * wanted[name].norm(), name


def test_only_what_was_chosen_learns_and_a_change_elsewhere_is_noticed(folder):
    learner = learner_of(folder, train="compressor")
    assert {name.partition(".")[0] for name in learner.parameters} == {"compressor"}
    assert "were frozen and are bitwise the same" in learner.frozen_proof()
    with torch.no_grad():
        learner.model.decoder.norm.weight[0] += 1e-3
    with pytest.raises(CheckpointError, match=r"llm.model.norm.weight was frozen and has changed"):
        learner.frozen_proof()


def test_a_loss_that_is_no_number_ends_the_run(folder, tmp_path):
    learner = learner_of(folder, **FULL)
    with torch.no_grad():
        learner.model.decoder.norm.weight.fill_(float("nan"))
    checked = check_samples(samples(tmp_path, "P"), learner.flash.processor, False, ALONE)
    data = Batches(checked, learner.flash.processor, 1, 1, ALONE, False)
    with pytest.raises(ArgumentError, match="take a lower rate"):
        learner.loss(data[0])


def test_answers_are_greedy(folder, tmp_path):
    learner = learner_of(folder, **LORA)
    checked = check_samples(samples(tmp_path, "P."), learner.flash.processor, False, ALONE)
    flash = learner.flash
    for one, (question, wanted, said) in itertools.zip_longest(checked, learner.answers(checked)):
        messages = one.sample.messages
        assert (question, wanted) == (messages[0]["content"], messages[1]["content"])
        assert said == flash.chat(one.sample.image, messages[:1], max_new_tokens=64)
