"""Trainings that are killed, find no room, are started twice or read a damaged state."""

from __future__ import annotations

import functools
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import tiny_run
import torch
from disk import files_of_at_most, holding, is_held
from folders import assert_same_weights
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_run import FEW_TILES, shipped_tokenizer, tiny_recipe
from torch.utils.data import DataLoader

from flashvl import FlashVL
from flashvl.cli import main
from flashvl.errors import ArgumentError, CheckpointError, DeviceError, FlashVLError
from flashvl.nano import data, starting_values
from flashvl.nano import train as train_module
from flashvl.nano.recipe import Recipe, nano_config
from flashvl.nano.train import LOG, STATE, train
from flashvl.training import loading, loop, progress
from flashvl.training.progress import Progress

STEPS = 8  # 4, 4 and 1 of the stages


class Killed(BaseException):
    """What ends a run without its knowing."""


@pytest.fixture(scope="module", autouse=True)
def short_runs():
    """Of seconds, with a line of the log for each step."""
    tokenizer = shipped_tokenizer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(starting_values, "WHITENING", FEW_TILES)
        patch.setattr(train_module, "train_tokenizer", lambda recipe: tokenizer)
        patch.setitem(train_module.RECIPES, "nano", tiny_recipe())
        patch.setattr(progress, "LOG_EVERY", 1)
        yield


@pytest.fixture(scope="module")
def tiny() -> Recipe:
    return train_module.RECIPES["nano"]


@pytest.fixture(scope="module")
def whole(tiny, short_runs, tmp_path_factory) -> Path:
    """A run that nothing has disturbed -> its folder."""
    folder = tmp_path_factory.mktemp("nano") / "whole"
    train(tiny, folder, device="cpu", steps=STEPS)
    return folder


@pytest.fixture
def copied(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def resume(tiny, folder: Path) -> None:
    train(tiny, folder, device="cpu", steps=STEPS, resume=True)


def assert_same_run(folder: Path, whole: Path) -> None:
    """Model and log are those of a run that nothing has disturbed, and nothing lies about."""
    assert_same_weights(FlashVL.from_pretrained(folder), FlashVL.from_pretrained(whole))
    assert logged(folder) == logged(whole)
    assert {one.name for one in folder.iterdir()} == {one.name for one in whole.iterdir()}


def logged(folder: Path) -> list[tuple[str, int, float, float]]:
    lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    return [(line["stage"], line["step"], line["loss"], line["right"]) for line in lines]


@contextmanager
def killed_after(stage: str, step: int) -> Iterator[None]:
    add = Progress.add

    def and_killed(self, done, *rest):
        add(self, done, *rest)
        if (self.stage, done) == (stage, step):
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "add", and_killed)
        with pytest.raises(Killed):
            yield


def test_a_run_that_is_killed_after_its_first_step_can_be_resumed(tiny, whole, tmp_path):
    folder = tmp_path / "run"
    with killed_after("tower", 0):
        train(tiny, folder, device="cpu", steps=STEPS)
    assert {file.name for file in folder.iterdir()} == {STATE, LOG}
    with pytest.raises(ArgumentError, match="holds a run; resume it"):
        train(tiny, folder, device="cpu", steps=STEPS)
    with (folder / LOG).open("ab") as log:
        log.write(b'{"stage": "tower", "st')  # a torn line
    (folder / "state.writing").write_bytes(b"half")
    with killed_after("answers", 2), pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "SAVE_EVERY", -1)  # its state is of step 2, the log of step 3
        resume(tiny, folder)
    assert logged(folder)[-1][:2] == ("answers", 3)
    resume(tiny, folder)
    assert_same_run(folder, whole)


def test_a_run_that_is_killed_before_its_first_state_is_started_anew(tiny, tmp_path):
    for name in ("state.writing", ".flashvl-lock"):
        (tmp_path / name).write_bytes(b"half")
    with pytest.raises(ArgumentError, match="no run to resume"):
        resume(tiny, tmp_path)
    with killed_after("tower", 0):
        train(tiny, tmp_path, device="cpu", steps=STEPS)
    assert {file.name for file in tmp_path.iterdir()} == {STATE, LOG, ".flashvl-lock"}


def test_nothing_is_in_the_folder_before_the_first_state(tiny, tmp_path, monkeypatch):
    """Neither is a line of the log, whose folder could be resumed no more."""
    found = []

    def save(file, *rest):
        found.append([one.name for one in file.parent.iterdir()])
        raise Killed

    monkeypatch.setattr(train_module, "save_state", save)
    with pytest.raises(Killed):
        train(tiny, tmp_path / "run", device="cpu", steps=STEPS)
    assert found == [[]]


def test_a_finished_run_that_is_resumed_writes_its_model_again(tiny, whole, copied, capsys):
    (copied / "model.safetensors").unlink()
    (copied / "config.json").write_text("{")
    before = (copied / STATE).read_bytes()
    assert main(["train", "--steps", str(STEPS), "--out", str(copied), "--resume"]) == 0
    said = capsys.readouterr().out
    assert "all stages are done" in said
    assert "stage 1" not in said
    assert (copied / STATE).read_bytes() == before
    assert_same_run(copied, whole)


@pytest.mark.parametrize(
    ("tensors", "metadata", "words"),
    [
        ({}, {"stage": "99"}, "cannot be done"),
        ({}, {"stage": "1", "step": "-5"}, "not the state of a training"),
        ({}, {"stage": "1", "step": "3"}, "momentum_buffer/"),
        ({"weight/model.vision.positions": torch.zeros(1)}, {}, "has shape (1,)"),
        ({"weight/model.vision.positions": None}, {}, "is missing"),
        ({"weight/x": torch.zeros(1)}, {}, "is not known"),
        ({"exp_avg/model.vision.positions": torch.zeros(1)}, {}, "is not known"),
    ],
)
def test_a_damaged_state_is_refused_in_one_line_and_kept(copied, tensors, metadata, words, capsys):
    rewrite(copied / STATE, tensors, metadata)
    before = {file.name: file.read_bytes() for file in copied.iterdir()}
    assert main(["train", "--steps", str(STEPS), "--out", str(copied), "--resume"]) == 2
    assert words in the_line(capsys)
    assert {file.name: file.read_bytes() for file in copied.iterdir()} == before


def rewrite(file: Path, tensors: dict, metadata: dict) -> None:
    """Changes tensors and metadata of a state; None takes a tensor out."""
    with safe_open(file, framework="pt") as opened:
        said = opened.metadata() | metadata
    stored = {name: one for name, one in (load_file(file) | tensors).items() if one is not None}
    save_file(stored, file, said)


def the_line(capsys) -> str:
    return is_one_line(capsys.readouterr().err)


def is_one_line(error: str) -> str:
    assert len(error.splitlines()) == 1
    assert len(error) < 320
    assert "Traceback" not in error
    return error


def test_a_tower_of_a_damaged_state_is_not_taken(whole, copied, tmp_path):
    def refused(metadata: dict, words: str) -> None:
        rewrite(copied / STATE, {}, metadata)
        with pytest.raises(CheckpointError, match=words):
            train_with(copied)

    def train_with(tower: Path) -> None:
        train(tiny_recipe(), tmp_path / "other", device="cpu", steps=STEPS, tower=tower)

    refused({"stage": "99"}, "cannot be done")
    for mode in ("sideways", ["trim"], None):
        settings = {"recipe": "nano", "stages": [4, 4, 1], "stitching": mode}
        refused({"stage": "3", "settings": json.dumps(settings)}, "its stitching mode is")
    (copied / STATE).unlink()
    (copied / "label_head.safetensors").unlink()
    with pytest.raises(ArgumentError, match="neither state"):
        train_with(copied)


@pytest.fixture
def no_folders(tmp_path) -> list[Path]:
    """What cannot be the folder of a run."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
    return [
        *(tmp_path / name for name in ("file", "link", "pipe", "x" * 300, "file/under")),
        *(Path(name) for name in ("/dev/null", "/dev/zero", "/proc/x", "/proc/self/mem")),
        Path("/" + "x" * 5000),
        Path("a\0b"),
        Path("\ud800"),
    ]


def test_what_cannot_be_a_folder_is_refused_in_one_line(no_folders, tiny, tmp_path, capsys):
    before = sorted(tmp_path.iterdir())
    for path in no_folders:
        assert main(["train", "--steps", str(STEPS), "--out", str(path)]) == 2, path
        the_line(capsys)
        assert main(["train", "--out", str(path), "--resume"]) == 2, path
        the_line(capsys)
        tower = ["--out", str(tmp_path / "new"), "--tower", str(path)]
        assert main(["train", "--steps", str(STEPS), *tower]) == 2, path
        the_line(capsys)
        with pytest.raises(FlashVLError):
            train(tiny, path, device="cpu", steps=STEPS)
    assert not list(tmp_path.glob("new/*"))
    assert sorted(one for one in tmp_path.iterdir() if one.name != "new") == before
    assert (tmp_path / "file").read_text() == "mine"


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A folder that other users reach; that of pytest they do not."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may do everything; any other user is right already."""
    if os.getuid():
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.mark.skipif(not hasattr(os, "setresuid"), reason="nobody can be nobody")
@pytest.mark.parametrize("mode", [0o000, 0o444, 0o555, 0o333])
def test_a_folder_that_may_not_be_used_is_refused_in_one_line(open_to_all, tiny, mode, capsys):
    folder = open_to_all / "run"
    folder.mkdir()
    folder.chmod(mode)
    paths = [folder] if mode == 0o333 else [folder, folder / "under"]
    try:
        with as_nobody():
            for path in paths:
                for more in ([], ["--resume"]):
                    assert main(["train", "--out", str(path), *more]) == 2
                    said = capsys.readouterr()
                    assert said.out == ""  # at once
                    is_one_line(said.err)
    finally:
        folder.chmod(0o755)
    assert not any(folder.iterdir())


def test_a_home_is_a_home(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    with killed_after("tower", 0):
        train(tiny, Path("~/run"), device="cpu", steps=STEPS)
    assert (tmp_path / "run" / STATE).is_file()


@pytest.mark.parametrize(
    "settings",
    [
        *({"seed": value} for value in (-1, 10**30, True, 0.5)),
        *({"steps": value} for value in (0, 10**5000, 1.5)),
        *({"folder": value} for value in (None, 5, "")),
        {"tower": 5},
    ],
)
def test_arguments_that_make_no_sense_are_refused(tiny, tmp_path, settings):
    with pytest.raises(ArgumentError) as refused:
        train(tiny, **({"folder": tmp_path / "run", "device": "cpu"} | settings))
    assert len(str(refused.value)) <= 300
    assert not (tmp_path / "run").exists()


def test_a_second_training_in_a_folder_is_refused_at_its_start(copied, tiny, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder, more in ((empty, []), (copied, ["--resume"]), (copied, [])):
        before = {file.name: file.read_bytes() for file in folder.iterdir()}
        with holding(folder) as (process, _):
            command = ["train", "--steps", str(STEPS), "--out", str(folder), *more]
            assert main(command) == 2
            assert "another process trains in" in the_line(capsys)
            process.kill()  # which leaves no lock
            process.wait()
            assert not is_held(folder)
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_training_keeps_its_folder_until_it_ends(tiny, tmp_path, monkeypatch):
    folder, found = tmp_path / "run", []

    def looking(self, *rest):
        found.append(is_held(folder))
        raise Killed

    monkeypatch.setattr(Progress, "add", looking)
    with pytest.raises(Killed):
        train(tiny, folder, device="cpu", steps=STEPS)
    assert found == [True]
    assert not is_held(folder)


def test_ctrl_c_between_two_stages_saves_and_ends_the_run(
    tiny, whole, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "run"
    save, moments = train_module.save_state, []

    def interrupted(file, parameters, settings, optimizers, stage, step):
        if (stage, step) == (1, 0):
            moments.append(multiprocessing.active_children())
            signal.raise_signal(signal.SIGINT)
        save(file, parameters, settings, optimizers, stage, step)

    monkeypatch.setattr(train_module, "save_state", interrupted)
    command = ["train", "--steps", str(STEPS), "--out", str(folder)]
    assert main(command) == 130
    assert "go on with: flashvl train" in capsys.readouterr().out
    assert moments == [[]]  # what drew the batches of the first stage has ended
    monkeypatch.setattr(train_module, "save_state", save)
    assert main([*command, "--resume"]) == 0
    assert_same_run(folder, whole)


@pytest.mark.parametrize(
    ("module", "name", "time"),
    [
        (train_module, "save_state", 1),
        (train_module, "save_state", 2),
        (progress, "append", 3),
        pytest.param(train_module, "save_state", 4, marks=pytest.mark.slow),
        pytest.param(progress, "append", 1, marks=pytest.mark.slow),
        pytest.param(FlashVL, "save_pretrained", 1, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_finds_no_room_on_the_disk_can_be_resumed(
    tiny, whole, tmp_path, monkeypatch, capsys, module, name, time
):
    """What fails is what the function writes when it is called for this time."""
    folder = tmp_path / "run"
    write, times, before = getattr(module, name), itertools.count(1), {}

    def full_in_time(*arguments, **options):
        if next(times) != time:
            return write(*arguments, **options)
        before.update({one.name: one.read_bytes() for one in folder.iterdir()})
        with files_of_at_most(100):
            return write(*arguments, **options)

    monkeypatch.setattr(module, name, full_in_time)
    command = ["train", "--steps", str(STEPS), "--out", str(folder)]
    assert main(command) == 2
    assert "File too large" in the_line(capsys)
    after = {one.name: one.read_bytes() for one in folder.iterdir()}
    assert {name: contents for name, contents in after.items() if contents} == before
    if before:
        command.append("--resume")
    assert main(command) == 0
    assert_same_run(folder, whole)


@pytest.mark.slow
def test_a_run_on_a_disk_of_any_size_ends_or_can_be_resumed(tiny, whole, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None or mount(disk, 1000) != 0:
        pytest.skip("no file system can be mounted here")
    try:
        ends = set()
        for size in (0, 1, 50, 170, 250, 330, 340, 350, 400, 450, 500, 1000):  # KiB
            folder = disk / str(size)
            filling = disk / "filling"
            filling.write_bytes(bytes((1000 - size) * 1024 - 8192 if size < 1000 else 0))
            command = ["train", "--steps", str(STEPS), "--out", str(folder)]
            code = main(command)
            ends.add(code)
            if code:
                assert code == 2
                the_line(capsys)
                filling.unlink()
                resumed = ["--resume"] if (folder / STATE).exists() else []
                assert main([*command, *resumed]) == 0
            assert_same_run(folder, whole)
            shutil.rmtree(folder)
        assert ends == {0, 2}
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def mount(folder: Path, kibibytes: int) -> int:
    command = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode


def test_the_end_of_the_process_that_draws_batches_is_an_error_of_one_line(
    tiny, tmp_path, monkeypatch
):
    add = Progress.add

    def killing(self, step, *rest):
        add(self, step, *rest)
        for worker in multiprocessing.active_children():
            worker.kill()

    monkeypatch.setattr(Progress, "add", killing)
    with pytest.raises(DeviceError, match="process that draws the batches was ended") as refused:
        train(tiny, tmp_path / "run", device="cpu")
    assert len(str(refused.value)) <= 300
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no limits of files")
def test_batches_need_no_shared_memory(tiny, monkeypatch):
    """Where it is full, as in a container, a batch in it would be lost and waited for."""

    def without_room(worker: int) -> None:
        resource = pytest.importorskip("resource")
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    monkeypatch.setattr(loading, "_leave_interrupts_to_the_loop", without_room)
    monkeypatch.setattr(loading, "DataLoader", functools.partial(DataLoader, timeout=30))
    config, stage = nano_config(tiny), tiny.stages[0]
    with closing(data.batches(stage, 0, config, shipped_tokenizer(), 0, range(2))) as drawn:
        batch = next(drawn)
    assert torch.equal(batch.pixels, data.TileBatches(config, stage, 0, 0)[0].pixels)


def start(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    """A training in a process of its own, which saves and logs all the time."""
    path = os.pathsep.join(place for place in sys.path if place)
    command = [sys.executable, tiny_run.__file__, "train", "--steps", str(STEPS), "--device", "cpu"]
    return subprocess.Popen(
        [*command, "--out", str(folder), *more],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_is_killed_at_random_moments_ends_as_if_it_were_not(tmp_path, seed):
    begun = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0
    took = time.monotonic() - begun
    drawn, folder = random.Random(seed), tmp_path / "run"
    signals = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
    for _ in range(8):
        process = start(folder, *(["--resume"] if (folder / STATE).exists() else []))
        time.sleep(drawn.uniform(0.3, 1.0) * took)
        process.send_signal(drawn.choice(signals))
        code = process.wait()
        error = process.stderr.read().decode()
        assert "Traceback" not in error
        assert code in (0, 130, -signal.SIGKILL, -signal.SIGTERM), error
    assert start(folder, *(["--resume"] if (folder / STATE).exists() else [])).wait() == 0
    assert_same_run(folder, tmp_path / "whole")


@pytest.mark.slow
def test_the_second_of_two_real_trainings_is_refused(tmp_path):
    folder = tmp_path / "run"
    first, second = start(folder), start(folder)
    errors = [process.stderr.read().decode() for process in (first, second)]
    codes = [process.wait() for process in (first, second)]
    assert sorted(codes) == [0, 2]
    error = errors[codes.index(2)]
    assert "another process trains in" in error
    assert len(error.splitlines()) == 1
    assert start(folder, "--resume").wait() == 0
