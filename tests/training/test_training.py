"""The loop, its state and its progress, with a network of three small layers."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import torch
from disk import files_of_at_most
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flashvl.errors import ArgumentError, CheckpointError, FlashVLError
from flashvl.training import loop
from flashvl.training.loop import (
    MUON,
    WARM_UP,
    Interrupted,
    Schedule,
    make_optimizers,
    rate_at,
    run_stage,
)
from flashvl.training.progress import LOG_EVERY, Progress, cut_log
from flashvl.training.state import (
    check_settings,
    load_state,
    read_state,
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


def run(folder, first=0, net=None, loss_of=None, optimizers=None, save=None):
    """The stage from step `first` on, saved as a real training saves -> the parameters."""
    net, parameters = net or new_net()
    optimizers = optimizers or make_optimizers(parameters, SCHEDULE)
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
    found = read_state(saved)
    assert (found.stage, found.step) == (0, 11)  # the step in which Ctrl-C arrived is done
    optimizers = make_optimizers(parameters, SCHEDULE)
    load_state(saved, parameters, optimizers, found)
    resumed = run(tmp_path, found.step, (net, parameters), optimizers=optimizers)
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
    settings = SETTINGS | {"stages": [50, 7]}
    save_state(file, parameters, settings, optimizers, 1, 2)
    found = read_state(file)
    assert (found.settings, found.stage, found.step) == (settings, 1, 2)
    _, again = new_net()
    restored = make_optimizers(again, SCHEDULE)
    load_state(file, again, restored, found)
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


@pytest.mark.parametrize("other", [{"seed": 1}, {"seed": False}, {"seed": 0.0}, {"steps": 3}])
def test_a_state_of_other_settings_is_refused(saved, other):
    check_settings(read_state(saved), SETTINGS, saved)
    with pytest.raises(ArgumentError, match="other settings") as refused:
        check_settings(read_state(saved), SETTINGS | other, saved)
    assert ("(seed 0)" if "seed" in other else "(steps unknown)") in str(refused.value)


def rewrite(file, tensors=None, **metadata) -> None:
    """Changes tensors and metadata of a state; None takes one out."""
    with safe_open(file, framework="pt") as opened:
        stored = {name: opened.get_tensor(name).clone() for name in opened.keys()}
        said = opened.metadata()
    stored, said = (
        {name: one for name, one in whole.items() if one is not None}
        for whole in (stored | (tensors or {}), said | metadata)
    )
    save_file(stored, file, said)


def refused_state(file, kind=CheckpointError) -> str:
    """How it is refused to resume from a state; nothing was taken -> what the error says."""
    _, parameters = new_net()
    optimizers = make_optimizers(parameters, SCHEDULE)
    before = copy.deepcopy([one.state_dict() for one in optimizers])
    weights = {name: one.clone() for name, one in parameters.items()}

    def resume():
        found = read_state(file)
        check_settings(found, SETTINGS, file)
        load_state(file, parameters, optimizers if found.stage == 0 else [], found)

    with pytest.raises(kind) as refused:
        resume()
    assert all(torch.equal(one, weights[name]) for name, one in parameters.items())
    for optimizer, its_own in zip(optimizers, before):
        after = optimizer.state_dict()["state"]
        for number, moments in its_own["state"].items():
            assert all(torch.equal(one, after[number][name]) for name, one in moments.items())
    message = str(refused.value)
    assert len(message) <= 300
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("weight/head.weight", None, "head.weight is missing"),
        ("weight/head.weight.more", torch.zeros(6, 8), "'weight/head.weight.more' is not known"),
        ("nonsense", torch.zeros(1), "'nonsense' is not known"),
        ("weight/hidden.bias", torch.zeros(1), r"shape (1,) and is F32, wanted (8,)"),
        ("weight/hidden.bias", torch.zeros(8).double(), "is F64, wanted (8,) and F32"),
        ("weight/hidden.bias", torch.zeros(8).int(), "is I32, wanted (8,) and F32"),
        ("momentum_buffer/hidden.weight", None, "momentum_buffer/hidden.weight is missing"),
        ("momentum_buffer/hidden.weight", torch.zeros(()), "has shape () and is F32"),
        ("momentum_buffer/hidden.bias", torch.zeros(8), "is not known"),  # that is AdamW's
        ("exp_avg/hidden.bias", None, "exp_avg/hidden.bias is missing"),
        ("exp_avg_sq/hidden.bias", torch.zeros(8).half(), "is F16, wanted (8,) and F32"),
        ("exp_avg/hidden.weight", torch.zeros(8, 8), "is not known"),  # that is Muon's
        ("step/hidden.bias", torch.zeros(8), "has shape (8,)"),
        ("step/hidden.bias", torch.tensor(11), "is I64, wanted () and F32"),
        ("step/hidden.bias", torch.tensor(-1.0), "11 steps of its stage"),
        ("step/hidden.bias", torch.tensor(12.0), "counted 12.0"),
        ("step/hidden.bias", torch.tensor(float("nan")), "11 steps of its stage"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_and_nothing_is_taken(saved, name, tensor, words):
    rewrite(saved, {name: tensor})
    assert words in refused_state(saved)
    if name in ("weight/hidden.bias", "weight/head.weight"):
        _, parameters = new_net()
        before = {its: one.clone() for its, one in parameters.items()}
        with pytest.raises(CheckpointError) as refused:
            take_weights(saved, parameters)
        assert words in str(refused.value)
        assert all(torch.equal(one, before[its]) for its, one in parameters.items())


def test_some_of_the_weights_can_be_taken(saved):
    _, parameters = new_net()
    before = {name: one.clone() for name, one in parameters.items()}
    take_weights(saved, {name: parameters[name] for name in ("head.weight", "hidden.bias")})
    changed = {name for name, one in parameters.items() if not torch.equal(one, before[name])}
    assert changed == {"head.weight", "hidden.bias"}


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        *(
            ({name: value}, "not the state of a training")
            for name in ("stage", "step")
            for value in (
                None,
                "x",
                "",
                "-1",
                "1.0",
                "1e1",
                " 1",
                "1_0",
                "٣",
                "0000000011",
                "9" * 5000,
            )
        ),
        *(
            ({"settings": value}, "not the state of a training")
            for value in (None, "{", "", "[" * 100_000, '{"seed": ' + "9" * 5000 + "}")
        ),
        *(
            ({"settings": value}, "its settings are damaged")
            for value in ("7", "null", "[]", '"stages"', "{}", '{"stages": 50}')
        ),
        *(
            ({"settings": json.dumps({"seed": 0, "stages": value})}, "its settings are damaged")
            for value in (["50"], [50.0], [True], [0], [-50], {"0": 50}, [[50]], None)
        ),
        ({"stage": "99"}, "11 steps of stage 99 cannot be done"),
        ({"stage": "2", "step": "0"}, "0 steps of stage 2 cannot be done"),
        ({"stage": "1"}, "11 steps of stage 1 cannot be done"),  # all is done; none are left
        ({"step": "51"}, "51 steps of stage 0 cannot be done"),
        ({"step": "50"}, "counted 11.0"),
        ({"step": "10"}, "counted 11.0"),
        ({"step": "0"}, "is not known"),  # moments before the first step
        ({"stage": "1", "step": "0"}, "is not known"),
    ],
)
def test_a_state_that_lies_is_refused(saved, metadata, words):
    rewrite(saved, **metadata)
    assert words in refused_state(saved)


@pytest.mark.parametrize(
    "settings",
    [
        {"seed": 1, "stages": [50]},
        {"seed": False, "stages": [50]},
        {"seed": "0", "stages": [50]},
        {"seed": 0, "stages": [50, 50]},
        {"stages": [50]},
        {"seed": 0, "stages": [50], "more": "\x1b[2J\n" * 1000},
    ],
)
def test_a_state_of_other_settings_is_no_damage(saved, settings):
    rewrite(saved, settings=json.dumps(settings))
    assert "other settings" in refused_state(saved, ArgumentError)


def test_settings_that_are_nested_without_end_are_refused(saved):
    for depth in range(800, 1000, 2):  # some are too deep to be read, others to be compared
        nested = "[" * depth + "]" * depth
        rewrite(saved, settings=json.dumps(SETTINGS)[:-1] + f', "more": {nested}}}')
        with pytest.raises(FlashVLError):
            check_settings(read_state(saved), SETTINGS | {"more": []}, saved)


def test_a_state_before_the_first_step_and_after_the_last_has_no_moments(saved, tmp_path):
    for stage, step in ((0, 0), (1, 0)):
        file = tmp_path / "another.safetensors"
        _, parameters = new_net()
        optimizers = make_optimizers(parameters, SCHEDULE)
        save_state(file, parameters, SETTINGS, optimizers, stage, step)
        assert load_file(file).keys() == {f"weight/{name}" for name in parameters}
        load_state(file, parameters, optimizers, read_state(file))
        rewrite(file, {"exp_avg/hidden.bias": torch.zeros(8)})
        assert "is not known" in refused_state(file)


def test_what_is_no_file_or_cut_short_is_refused(saved, tmp_path):
    whole = saved.read_bytes()
    for size in (0, 4, 8, 100, len(whole) - 1):
        saved.write_bytes(whole[:size])
        assert "damaged" in refused_state(saved)
    for number in range(0, len(whole), len(whole) // 60):
        saved.write_bytes(whole[:number] + bytes([whole[number] ^ 0x40]) + whole[number + 1 :])
        with suppress(FlashVLError):  # a number of a tensor may be another one
            check_settings(read_state(saved), SETTINGS, saved)
            _, parameters = new_net()
            optimizers = make_optimizers(parameters, SCHEDULE)
            load_state(saved, parameters, optimizers, read_state(saved))
    saved.unlink()
    refused_state(saved)
    saved.symlink_to(tmp_path / "nowhere")
    refused_state(saved)


@pytest.mark.parametrize("size", [0, 100, 700])
def test_a_state_that_cannot_be_written_leaves_the_one_before(saved, size):
    before = saved.read_bytes()
    assert len(before) > size
    with files_of_at_most(size), pytest.raises(CheckpointError, match="kept and can be resumed"):
        save_state(saved, new_net()[1], SETTINGS, [], 0, 1)
    assert saved.read_bytes() == before
    assert {file.name for file in saved.parent.iterdir()} <= {saved.name, "log.jsonl"}


def test_a_state_that_a_kill_left_half_written_does_not_matter(saved):
    half = saved.with_suffix(".writing")
    half.write_bytes(saved.read_bytes()[:1000])
    half.chmod(0o400)
    before = load_file(saved)
    _, parameters = new_net()
    optimizers = make_optimizers(parameters, SCHEDULE)
    load_state(saved, parameters, optimizers, read_state(saved))
    save_state(saved, parameters, SETTINGS, optimizers, 0, 11)
    after = load_file(saved)
    assert after.keys() == before.keys()
    assert all(torch.equal(one, after[name]) for name, one in before.items())
    assert not half.exists()


def test_a_state_is_written_through_no_link(saved, tmp_path):
    (tmp_path / "precious").write_text("mine")
    saved.with_suffix(".writing").symlink_to(tmp_path / "precious")
    save_state(saved, new_net()[1], SETTINGS, [], 0, 0)
    assert (tmp_path / "precious").read_text() == "mine"
    assert not saved.is_symlink()


@pytest.mark.skipif(os.name == "nt", reason="files have no modes")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_state_has_the_mode_of_other_files(tmp_path, mask):
    before = os.umask(mask)
    try:
        save_state(tmp_path / "state.safetensors", new_net()[1], SETTINGS, [], 0, 0)
        (tmp_path / "other").write_text("")
    finally:
        os.umask(before)
    modes = {(tmp_path / name).stat().st_mode for name in ("state.safetensors", "other")}
    assert len(modes) == 1


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


LINES = [
    b'{"stage": "one", "step": 25}\n',
    b'{"stage": "one", "step": 30}\n',
    b'{"stage": "two", "step": 25}\n',
    b'{"stage": "two", "step": 50}\n',
]


@pytest.mark.parametrize(
    ("stage", "step", "left"),
    [(0, 0, 0), (0, 25, 1), (0, 29, 1), (0, 30, 2), (1, 0, 2), (1, 26, 3), (1, 50, 4), (2, 0, 4)],
)
def test_a_log_is_cut_back_to_what_the_state_has(tmp_path, stage, step, left):
    log = tmp_path / "log.jsonl"
    torn = b'{"stage": "two", "st'
    for written in (LINES, [*LINES, torn], [LINES[0], torn + b"\n", *LINES[1:]]):
        log.write_bytes(b"".join(written))
        (tmp_path / "log.writing").write_bytes(b"half")  # what a kill left
        cut_log(log, ["one", "two"], stage, step)
        assert log.read_bytes() == b"".join(LINES[:left])
        assert [file.name for file in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_log_that_was_taken_away_is_not_missed(tmp_path):
    cut_log(tmp_path / "log.jsonl", ["one"], 0, 0)
    assert not any(tmp_path.iterdir())


def test_nonsense_in_a_log_goes(tmp_path):
    log = tmp_path / "log.jsonl"
    nonsense = [
        *(b"", b"7", b"[]", b"null", b"{}", b"\xff\xfe", b"\0", b"[" * 100_000),
        *(b'{"stage": "one"}', b'{"stage": 1, "step": 2}', b'{"stage": [], "step": 2}'),
        *(b'{"stage": "one", "step": "2"}', b'{"stage": "three", "step": 2}'),
    ]
    log.write_bytes(b"\n".join([*nonsense, LINES[0], *nonsense]))
    cut_log(log, ["one", "two"], 1, 50)
    assert log.read_bytes() == LINES[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_a_log_that_is_no_file_is_refused_at_once(tmp_path):
    log = tmp_path / "log.jsonl"
    for make in (os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)):
        make(log)
        with pytest.raises(CheckpointError, match="log cannot be"):
            cut_log(log, ["one"], 0, 0)
        if not log.is_dir():
            with pytest.raises(CheckpointError, match="log cannot be"):
                run(tmp_path)
            log.unlink()
        else:
            log.rmdir()


def test_a_line_of_the_log_is_written_whole_or_not_at_all(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_bytes(LINES[0])
    for size in (0, len(LINES[0]), len(LINES[0]) + 50):
        with files_of_at_most(size), pytest.raises(CheckpointError, match="the state is kept"):
            run(tmp_path)
        assert log.read_bytes() == LINES[0]


def test_a_stage_can_be_run_beside_the_main_thread(tmp_path):
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(run, tmp_path).result()
    whole = run(tmp_path)
    assert all(torch.equal(one, whole[name]) for name, one in beside.items())


def test_moments_are_those_that_the_optimizers_would_begin():
    (_, ours), (_, theirs) = new_net(), new_net()
    begun, bare = (make_optimizers(parameters, SCHEDULE) for parameters in (ours, theirs))
    for optimizer in bare:
        optimizer.state.clear()
    for step in range(3):
        for name in ours:
            gradient = torch.full_like(ours[name], step + 1.0)
            ours[name].grad, theirs[name].grad = gradient, gradient.clone()
        for optimizer in (*begun, *bare):
            optimizer.step()
        for name, (one, other) in itertools.product(ours, zip(begun, bare)):
            moments, their_moments = (
                one.state.get(ours[name], {}),
                other.state.get(theirs[name], {}),
            )
            assert moments.keys() == their_moments.keys()
            for moment, value in moments.items():
                assert value.dtype == their_moments[moment].dtype
                assert torch.equal(value, their_moments[moment])
    assert all(torch.equal(one, theirs[name]) for name, one in ours.items())
