"""Training states: damaged metadata, weights and moments; folders of no run, or half of one."""

from __future__ import annotations

import dataclasses
import json
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from tiny_run import shipped_tokenizer, tiny_recipe
from torch import Tensor

from flashvl import FlashVL
from flashvl.input.tokenizer import Tokenizer
from flashvl.nano import data, starting_values
from flashvl.nano import train as train_module
from flashvl.nano.data import SceneBatch, SceneBatches, TileBatch, TileBatches
from flashvl.nano.recipe import Recipe, Stage
from flashvl.nano.train import STATE, train
from flashvl.training.loop import Interrupted
from flashvl.training.progress import Progress
from fuzz.checkpoints import joined, split
from fuzz.damage import damaged, hostile_name, mutated, plant, text, value
from fuzz.promise import Case

SETTINGS: dict[str, Any] = {"seed": 5, "device": "cpu"}


@cache
def tiny() -> Recipe:
    """A recipe of two stages of three steps, which take some milliseconds.

    What nano's training takes its time for, a tokenizer, starting values and a second process, is
    put out of the way.
    """
    recipe, tokenizer = tiny_recipe(), shipped_tokenizer()
    train_module.train_tokenizer = lambda recipe: tokenizer
    train_module.batches = drawn_here
    starting_values.WHITENING = dataclasses.replace(starting_values.WHITENING, batch=2)
    few = [dataclasses.replace(stage, steps=3, batch=2) for stage in recipe.stages[:2]]
    return dataclasses.replace(recipe, stages=tuple(few))


def drawn_here(
    stage: Stage, number: int, config: Any, tokenizer: Tokenizer, seed: int, steps: range
) -> Iterator[TileBatch | SceneBatch]:
    first = number * data.SPAN
    if stage.data == "tiles":
        yield from (TileBatches(config, stage, seed, first)[step] for step in steps)
    else:
        yield from (SceneBatches(config, tokenizer, stage, seed, first)[step] for step in steps)


@cache
def runs() -> list[dict[str, bytes]]:
    """The files of runs that were interrupted, early and late, and of a whole one."""
    moments = [("tower", 0), ("tower", 1), ("answers", 1), None]
    add, found = Progress.add, []
    try:
        for moment in moments:

            def interrupting(self: Progress, step: int, *rest: Any, moment: Any = moment) -> None:
                add(self, step, *rest)
                if (self.stage, step) == moment:
                    signal.raise_signal(signal.SIGINT)

            Progress.add = interrupting  # type: ignore[method-assign]
            with tempfile.TemporaryDirectory() as folder:
                run = Path(folder) / "run"
                with suppress(Interrupted):
                    train(tiny(), run, **SETTINGS)
                found.append({file.name: file.read_bytes() for file in run.iterdir()})
    finally:
        Progress.add = add  # type: ignore[method-assign]
    return found


def case(random: Random, place: Path) -> Case:
    return random.choices([damaged_run, hostile_settings], [85, 15])[0](random, place)


def hostile_settings(random: Random, place: Path) -> Case:
    """A new run, of settings that make no sense."""
    odd: dict[str, list[Any]] = {
        "folder": [hostile_name(random), Path(hostile_name(random)), value(random), b"run"],
        "seed": [value(random), 2**64, -1],
        "steps": [0, -1, 2, "2", 2.0, True, 10**400, [], float("nan")],
        "stitching": [value(random), "mean", "none"],
        "tower": [hostile_name(random), value(random), Path("nowhere")],
        "device": [value(random), "meta", "cuda:99", "cpu"],
    }
    names = random.sample(sorted(odd), k=random.choice([1, 1, 2]))
    settings: dict[str, Any] = {"folder": place / "run", **SETTINGS}
    settings |= {name: random.choice(odd[name]) for name in names}
    what = ", ".join(f"{name} of type {type(settings[name]).__name__}" for name in names)
    return Case(f"settings: {what}", lambda: train(tiny(), **settings), writes=(place,))


def damaged_run(random: Random, place: Path) -> Case:
    run = place / "run"
    run.mkdir()
    chosen = random.choice(runs())
    for name, contents in chosen.items():
        (run / name).write_bytes(contents)
    what, must_refuse = random.choice(DAMAGES)(random, run)
    how = random.choices(["resume", "tower", "anew"], [80, 12, 8])[0]
    settings: dict[str, Any] = dict(SETTINGS)
    target = run
    if how == "resume":
        settings["resume"] = True
    elif how == "tower":
        settings["tower"], target = run, place / "new"

    def do() -> None:
        train(tiny(), target, **settings)
        FlashVL.from_pretrained(target, device="cpu")

    resumes = how == "resume"  # a tower is a part of the state, which may be whole
    must_refuse = must_refuse and resumes
    leaves = " as " in what  # a file that cannot be written shows when it is to be written
    return Case(f"{how}: {what}", do, must_refuse, (target,), replaces=resumes, leaves=leaves)


State = tuple[dict[str, str], dict[str, Tensor]]


def read(run: Path) -> State:
    with safe_open(run / STATE, framework="pt") as opened:
        return opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}


def write(run: Path, metadata: Any, tensors: dict[str, Tensor]) -> None:
    (run / STATE).write_bytes(save(tensors, metadata))


def wrong_metadata(random: Random, run: Path) -> tuple[str, bool]:
    metadata, tensors = read(run)
    name = random.choice(["stage", "step", "step", "settings"])
    if name == "settings":
        metadata[name] = json.dumps(mutated(json.loads(metadata[name]), random))
        odd = ["", "{", "[]", "null", "5", '{"a": NaN}', "[" * 100_000]
        if random.random() < 0.3:
            metadata[name] = random.choice(odd)
        wrong = False
    else:
        odd = ["99", "-1", "3.5", "x", "", " ", "1e3", "9" * 5000, "NaN", "-99", "4"]
        metadata[name] = random.choice(odd)
        wrong = True
    if random.random() < 0.2:
        del metadata[name]
        wrong = True
    write(run, metadata or None, tensors)
    return f"{name} {metadata.get(name)!a:.40}", wrong


def wrong_tensor(random: Random, run: Path) -> tuple[str, bool]:
    """A weight or a moment of another shape or dtype, under another name, or none."""
    metadata, tensors = read(run)
    kinds = sorted({name.partition("/")[0] for name in tensors})
    kind = random.choice([*kinds, "weight"])
    name = random.choice([one for one in tensors if one.startswith(f"{kind}/")])
    tensor = tensors.pop(name)
    what = "weight" if kind == "weight" else "moment"
    how = random.choice(["gone", "shape", "dtype", "name", "numbers"])
    if how == "shape":
        shapes = [(1,), (), (0,), (1, *tensor.shape), (*tensor.shape, 2)]
        shape = random.choice([one for one in shapes if one != tensor.shape])
        tensors[name] = tensor.new_zeros(shape)
    elif how == "dtype":
        dtypes = [torch.int64, torch.bool, torch.float64, torch.uint8, torch.complex64]
        tensors[name] = tensor.to(random.choice(dtypes))
    elif how == "name":
        odd = ["x", "", "/", f"{name}/x", f"x/{name}", "\x1b[2J/x", "x" * 70_000]
        odd += [name.replace("/", "."), name.replace("weight/", "momentum_buffer/")]
        tensors[random.choice(odd)] = tensor
    elif how == "numbers":
        odd_numbers = [float("nan"), float("inf"), -1.0, 3e38]
        tensors[name] = torch.full_like(tensor, random.choice(odd_numbers))
    write(run, metadata, tensors)
    must_refuse = how in ("shape", "dtype") or (how in ("gone", "name") and what == "weight")
    return f"{what} of other {how}: {name}", must_refuse


def more_tensors(random: Random, run: Path) -> tuple[str, bool]:
    metadata, tensors = read(run)
    for _ in range(random.choice([1, 3])):
        kind = random.choice(["weight", "exp_avg", "momentum_buffer", "step", "x", "exp_avg_sq"])
        asked = text(random).encode("utf-8", "replace").decode()
        whose = random.choice([asked, "label_head.bias", "x"])
        name = random.choice([f"{kind}/{whose}", kind])
        tensors.setdefault(name, torch.zeros(random.choice([(), (1,), (3,)])))
    write(run, metadata, tensors)
    return "more tensors", False


def all_moments_gone(random: Random, run: Path) -> tuple[str, bool]:
    metadata, tensors = read(run)
    kept = {name: one for name, one in tensors.items() if name.startswith("weight/")}
    write(run, metadata, kept)
    return "no moment", len(kept) < len(tensors)


def wrong_header(random: Random, run: Path) -> tuple[str, bool]:
    header, contents = split(run / STATE)
    name = random.choice(sorted(header))
    header[name] = value(random) if random.random() < 0.3 else mutated(header[name], random)
    (run / STATE).write_bytes(joined(json.dumps(header), contents))
    return "a changed header", False


def wrong_bytes(random: Random, run: Path) -> tuple[str, bool]:
    whole = (run / STATE).read_bytes()
    if random.random() < 0.5:
        (run / STATE).write_bytes(damaged(whole, random))
        return "damaged bytes", False
    (run / STATE).write_bytes(whole[: random.randrange(len(whole))])
    return "a state that is cut off", True


def no_file(random: Random, run: Path) -> tuple[str, bool]:
    """No ordinary file in the place of one of the run's."""
    name = random.choice([STATE, STATE, "log.jsonl", "model.safetensors", "state.writing"])
    return f"{plant(run / name, random)} as {name}", name == STATE


def wrong_log(random: Random, run: Path) -> tuple[str, bool]:
    """Lines that are torn, of other trainings, or none."""
    log = run / "log.jsonl"
    line = json.dumps(mutated({"stage": "tower", "step": 1, "steps": 3, "loss": 0.5}, random))
    odd = [line.encode(), b'{"stage": "tower", "st', b"\xff\xfe", b"\0" * 5000, b"[" * 100_000]
    whole = log.read_bytes() if log.exists() else b""
    before, after = random.choice([b"", whole]), random.choice([b"", b"\n", whole])
    log.write_bytes(before + random.choice([*odd, b"null"]) + after)
    return "a changed log", False


def fewer_files(random: Random, run: Path) -> tuple[str, bool]:
    kept = random.choice([[], ["log.jsonl"], [STATE], ["config.json"], ["config.json", STATE]])
    for file in run.iterdir():
        if file.name not in kept:
            file.unlink()
    return f"a run of the files {kept}", False


DAMAGES: list[Callable[[Random, Path], tuple[str, bool]]] = [
    *(wrong_metadata, wrong_metadata, wrong_tensor, wrong_tensor, wrong_tensor, more_tensors),
    *(all_moments_gone, wrong_log, wrong_header, wrong_bytes, no_file, fewer_files),
]
