"""The loop, its state and its progress, with a network of three small layers."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import re
import signal
import sys
from collections.abc import Iterator

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flashvl.errors import ArgumentError, CheckpointError
from flashvl.training import loop, state
from flashvl.training.loop import (
    MUON,
    WARM_UP,
    Interrupted,
    Schedule,
    make_optimizers,
    rate_at,
    run_stage,
)
from flashvl.training.progress import LOG_EVERY, Progress
from flashvl.training.state import (
    load_state,
    read_state,
    restore_moments,
    save_state,
    take_weights,
)

SCHEDULE = Schedule("letters", 50, 5e-2)
SETTINGS = {"seed": 0, "stages": [50]}


@dataclasses.dataclass
class Letters:
    """Which letter follows which: ids (B) and labels (B)."""

    ids: Tensor
    labels: Tensor
    pictures: int = 7


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 8)
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, 6, bias=False)

    def loss(self, batch: Letters) -> tuple[Tensor, Tensor]:
        logits = self.head(self.hidden(self.embedding(batch.ids)).relu())
        right = logits.argmax(-1) == batch.labels
        return nn.functional.cross_entropy(logits, batch.labels), right.float().mean()


def batches(first: int) -> Iterator[Letters]:
    for step in itertools.count(first):
        ids = torch.randint(6, (7,), generator=torch.Generator().manual_seed(step))
        yield Letters(ids, (ids + 1) % 6)


def new_net() -> tuple[Net, dict[str, nn.Parameter]]:
    torch.manual_seed(1)
    net = Net()
    return net, dict(net.named_parameters())


def run(folder, first=0, net=None, moments=None, loss_of=None, optimizers=None, save=None):
    """The stage from step `first` on, saved as a real training saves -> the parameters."""
    net, parameters = net or new_net()
    optimizers = optimizers or make_optimizers(parameters, SCHEDULE)
    restore_moments(optimizers, parameters, moments or {})
    file = folder / "state.safetensors"
    run_stage(
        loss_of or net.loss,
        optimizers,
        SCHEDULE,
        batches(first),
        first,
        Progress(SCHEDULE.name, first, SCHEDULE.steps, folder / "log.jsonl"),
        save or functools.partial(save_state, file, parameters, SETTINGS, optimizers, 0),
    )
    return parameters


def interrupting(net: Net, at: int):
    """The net's loss; Ctrl-C arrives in the middle of the step `at`, counted in calls."""
    calls = itertools.count()

    def loss_of(batch):
        if next(calls) == at:
            signal.raise_signal(signal.SIGINT)
        return net.loss(batch)

    return loss_of


@pytest.fixture
def saved(tmp_path):
    """The state of a training that was interrupted after eleven steps -> its file."""
    net, parameters = new_net()
    with pytest.raises(Interrupted):
        run(tmp_path, net=(net, parameters), loss_of=interrupting(net, 10))
    return tmp_path / "state.safetensors"


def test_an_interrupted_stage_resumes_to_the_same_numbers(saved, tmp_path):
    (tmp_path / "whole").mkdir()
    whole = run(tmp_path / "whole")
    net, parameters = new_net()
    for parameter in parameters.values():
        parameter.data.zero_()
    found = load_state(saved, parameters, SETTINGS)
    assert (found.stage, found.step) == (0, 11)  # the step in which Ctrl-C arrived is done
    resumed = run(tmp_path, found.step, (net, parameters), found.moments)
    for name, parameter in whole.items():
        assert torch.equal(parameter, resumed[name]), name


def test_a_stage_learns(tmp_path):
    before, after = new_net()[1], run(tmp_path)
    assert not any(torch.equal(before[name], after[name]) for name in before)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]


def test_ctrl_c_is_an_interrupt_again_after_the_stage(tmp_path, saved):
    before = signal.getsignal(signal.SIGINT)
    assert issubclass(Interrupted, KeyboardInterrupt)
    run(tmp_path)
    assert signal.getsignal(signal.SIGINT) is before


def test_the_state_is_saved_now_and_then(tmp_path, monkeypatch):
    done: list[int] = []
    run(tmp_path, save=done.append)
    assert done == []  # in two minutes it is
    monkeypatch.setattr(loop, "SAVE_EVERY", -1)
    run(tmp_path, save=done.append)
    assert done == list(range(1, SCHEDULE.steps + 1))


def test_gradients_have_a_norm_of_at_most_one(tmp_path, monkeypatch):
    net, parameters = new_net()
    norms = []

    def loss_of(batch):
        loss, share = net.loss(batch)
        return 1000 * loss, share

    def save(step):
        norms.append(torch.cat([one.grad.flatten() for one in parameters.values()]).norm())

    monkeypatch.setattr(loop, "SAVE_EVERY", -1)
    run(tmp_path, net=(net, parameters), loss_of=loss_of, save=save)
    assert torch.allclose(torch.stack(norms), torch.ones(SCHEDULE.steps), atol=1e-4)


def test_the_rate_warms_up_and_comes_down():
    schedule = Schedule("long", 3000, 2e-3)
    rates = [rate_at(step, schedule) for step in range(schedule.steps)]
    assert rates[0] == pytest.approx(schedule.rate / WARM_UP)
    assert max(rates) == pytest.approx(schedule.rate, rel=0.02)
    assert all(one < other for one, other in itertools.pairwise(rates[:WARM_UP]))
    assert all(one > other for one, other in itertools.pairwise(rates[WARM_UP:]))
    assert 0.01 * schedule.rate <= rates[-1] < 0.011 * schedule.rate


def test_both_optimizers_follow_the_rate(tmp_path, monkeypatch):
    net, parameters = new_net()
    optimizers, rates = make_optimizers(parameters, SCHEDULE), []

    def save(step):
        rates.append([group["lr"] for one in optimizers for group in one.param_groups])

    monkeypatch.setattr(loop, "SAVE_EVERY", -1)
    run(tmp_path, net=(net, parameters), optimizers=optimizers, save=save)
    for step, (of_muon, *of_adamw) in enumerate(rates):
        wanted = rate_at(step, SCHEDULE)
        assert of_muon == pytest.approx(MUON * wanted)
        assert of_adamw == pytest.approx([wanted, wanted])


def test_what_is_frozen_is_in_no_optimizer():
    net, parameters = new_net()
    net.head.requires_grad_(False)
    muon, adamw = make_optimizers(parameters, SCHEDULE)
    of_muon, of_adamw = (
        {id(one) for group in each.param_groups for one in group["params"]}
        for each in (muon, adamw)
    )
    assert of_muon == {id(net.hidden.weight)}
    assert of_adamw == {id(net.embedding.weight), id(net.hidden.bias)}


def test_a_state_brings_weights_and_moments_of_both_optimizers_back(tmp_path):
    net, parameters = new_net()
    optimizers = make_optimizers(parameters, SCHEDULE)
    for batch in itertools.islice(batches(0), 2):
        net.loss(batch)[0].backward()
        for optimizer in optimizers:
            optimizer.step()
    file = tmp_path / "state.safetensors"
    save_state(file, parameters, SETTINGS, optimizers, 1, 7)
    _, again = new_net()
    found = load_state(file, again, SETTINGS)
    assert (found.settings, found.stage, found.step) == (SETTINGS, 1, 7)
    restored = make_optimizers(again, SCHEDULE)
    restore_moments(restored, again, found.moments)
    for name, parameter in parameters.items():
        assert torch.equal(parameter, again[name]), name
        for before, after in zip(optimizers, restored):
            moments = before.state.get(parameter, {})
            assert moments.keys() == after.state.get(again[name], {}).keys()
            for moment, value in moments.items():
                assert torch.equal(value, after.state[again[name]][moment]), (name, moment)
    assert [len(one.state) > 0 for one in restored] == [True, True]
    names = load_file(file).keys()
    assert {"weight/hidden.weight", "momentum_buffer/hidden.weight", "exp_avg/head.weight"} <= names


def test_a_state_of_other_settings_is_refused_and_nothing_taken(saved):
    _, parameters = new_net()
    before = {name: one.clone() for name, one in parameters.items()}
    with pytest.raises(ArgumentError, match="other settings") as refused:
        load_state(saved, parameters, SETTINGS | {"seed": 1})
    assert "(seed 0)" in str(refused.value)
    assert all(torch.equal(one, before[name]) for name, one in parameters.items())


@pytest.mark.parametrize(
    ("name", "weight", "words"),
    [
        ("weight/head.weight", None, "head.weight is missing"),
        ("weight/hidden.bias", torch.zeros(1), r"shape \(1,\), wanted \(8,\)"),  # not spread out
    ],
)
def test_weights_that_do_not_fit_are_refused(saved, name, weight, words):
    found = read_state(saved)
    stored = {f"weight/{its}": one for its, one in found.weights.items()} | {name: weight}
    metadata = {"settings": json.dumps(SETTINGS), "stage": "0", "step": "0"}
    save_file({its: one for its, one in stored.items() if one is not None}, saved, metadata)
    _, parameters = new_net()
    with pytest.raises(CheckpointError, match=words):
        take_weights(parameters, read_state(saved), saved)


def test_what_is_no_state_is_refused_in_one_line(saved):
    stored = load_file(saved)
    settings = {"settings": json.dumps(SETTINGS)}
    for metadata in (None, settings, settings | {"stage": "x", "step": "1"}, {"settings": "{"}):
        save_file(stored, saved, metadata)
        with pytest.raises(CheckpointError, match="not the state of a training"):
            read_state(saved)
    saved.write_bytes(saved.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="damaged") as refused:
        read_state(saved)
    assert len(str(refused.value).splitlines()) == 1


def test_a_state_that_could_not_be_written_leaves_the_one_before(saved, monkeypatch):
    before = saved.read_bytes()

    def fails(tensors, file, metadata):
        file.write_bytes(b"half of it")
        raise OSError("no space left")

    monkeypatch.setattr(state, "save_file", fails)
    with pytest.raises(OSError, match="no space"):
        save_state(saved, new_net()[1], SETTINGS, [], 0, 1)
    assert saved.read_bytes() == before


def test_the_log_has_a_line_each_few_steps_and_one_at_the_end(tmp_path, capsys):
    run(tmp_path, first=3)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [LOG_EVERY, SCHEDULE.steps]
    for line in log:
        assert list(line) == [
            *("stage", "step", "steps", "loss", "right", "pictures_per_second", "seconds")
        ]
        assert (line["stage"], line["steps"]) == (SCHEDULE.name, SCHEDULE.steps)
        assert 0 <= line["right"] <= 1
    said = capsys.readouterr()
    assert said.err == ""  # no terminal, no line that is replaced
    assert re.fullmatch(r"letters: loss [\d.]+, right [\d.]+%, 0 min\n", said.out)
    assert float(said.out.split()[2].strip(",")) == pytest.approx(log[-1]["loss"], abs=6e-4)


def test_a_terminal_shows_the_loss_and_the_time_left(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run(tmp_path)
    shown = capsys.readouterr().err
    assert "letters: loss" in shown
    assert "min left" in shown
    assert shown.endswith("\r")  # the line is gone at the end


def test_the_line_on_the_terminal_is_gone_after_ctrl_c(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    net = new_net()
    with pytest.raises(Interrupted):
        run(tmp_path, net=net, loss_of=interrupting(net[0], 27))
    assert capsys.readouterr().err.endswith("\r")
