"""`flashvl finetune`: a model learns from pictures and conversations of one's own.

A run's folder is what `from_pretrained` loads once the run is done: an adapter, or a model in the
published layout. `best/` is the same at the lowest loss of what is held out. Beside them lie the
state to resume from and `log.jsonl`, as in every training.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shlex
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ..chat import FlashVL
from ..checkpoint.hub import find_model
from ..device import choose_device, device_failure_as_error
from ..reading import is_integer, read_path
from ..terminal import table
from ..training.folder import LOG, STATE, kept_for_this_run
from ..training.loading import loaded, loading_failure_as_error
from ..training.loop import Interrupted, Schedule, make_optimizers, noted_interrupts, run_stage
from ..training.processes import Processes, processes
from ..training.progress import cut_log
from ..training.state import State, check_settings, read_state
from .batches import Batches
from .data import Checked, check_samples, held_out, read_samples
from .learner import Learner, Log
from .memory import as_table, bytes_needed
from .recipe import Recipe, Stage, recipe_of

EPOCHS, LEAST_STEPS = 3, 200  # unless said otherwise
WARM_UP = 20  # of so many steps one warms up
EVALUATIONS = 10  # of what is held out, in a stage
SHOWN_ANSWERS = 4  # each time
HELD_OUT = "held_out_loss"  # in the log


@dataclass(frozen=True)
class Data:
    """What a stage learns from, and what is held out; `digest` is of the files."""

    samples: list[Checked]
    held_out: list[Checked]
    digest: str


def run(options: argparse.Namespace) -> None:
    with (
        processes() as together,
        device_failure_as_error("training"),
        loading_failure_as_error(),
    ):
        try:
            finetune(recipe_of(options), options, together)
        except Interrupted:
            _say(together, "saved; go on with the same command and --resume")
            raise


def finetune(recipe: Recipe, options: argparse.Namespace, together: Processes) -> None:
    """All of a run, or the rest of it; `options` name the model, the folder and the device.

    Raises a `FlashVLError`; `Interrupted` once all is saved.
    """
    say = partial(_say, together)
    out = read_path(options.out, "out")
    device = choose_device(together.device(options.device))
    if together.rank == 0:
        find_model(options.model, options.revision)  # one process alone downloads
    together.wait()
    learner = Learner.load(recipe, options.model, options.revision, device, together)
    data = [read_data(stage, recipe.seed, learner.flash, together) for stage in recipe.stages]
    with ExitStack() as kept:
        if together.rank == 0:
            kept.enter_context(kept_for_this_run(out, options.resume))
        together.wait()
        state = read_state(out / STATE) if options.resume else None
        counts = samples_of_steps(recipe.stages, together, state)
        schedules = [
            schedule_of(stage, count, its, learner.default_rate)
            for stage, count, its in zip(recipe.stages, counts, data)
        ]
        settings = {
            "model": options.model,
            "stages": [schedule.steps for schedule in schedules],
            "samples": counts,
            "data": [its.digest for its in data],
            "recipe": dict(recipe.said),
        }
        save = partial(learner.save_state, out / STATE, settings)

        def begin(number: int) -> list[torch.optim.Optimizer]:
            """The optimizers of a stage; none after the last."""
            if number == len(schedules):
                return []
            stage, schedule = recipe.stages[number], schedules[number]
            ratios = {part: rate / schedule.rate for part, rate in stage.rates.items()}
            return make_optimizers(
                learner.choose(stage.train),
                schedule,
                lambda name: ratios.get(name.partition(".")[0], 1.0),
                stage.optimizer == "muon",
            )

        if state is None:
            state = State(settings, 0, 0)
            optimizers = begin(0)
            save([], 0, 0)  # before all else in the folder, which can then always be resumed
        else:
            check_settings(state, settings, out / STATE)
            optimizers = begin(state.stage)
            learner.load_state(out / STATE, optimizers, state)
            if together.rank == 0:
                cut_log(out / LOG, [one.name for one in schedules], state.stage, state.step)
        with noted_interrupts() as interrupts:  # in the steps, and between the stages
            for number in range(state.stage, len(schedules)):
                stage, schedule, its = recipe.stages[number], schedules[number], data[number]
                say(f"stage {number + 1} of {len(schedules)}: {schedule.name}")
                say(summary(learner, stage, schedule, its))
                first = state.step if number == state.stage else 0
                batches = Batches(
                    its.samples,
                    learner.flash.processor,
                    counts[number],
                    stage.batch,
                    together,
                    learner.shards > 1,  # the tower must run in all processes at once
                    recipe.seed,
                    None if stage.epochs is None else stage.epochs * len(its.samples),
                )
                log = out / LOG if together.rank == 0 else None
                progress = Log(schedule.name, first, schedule.steps, log, learner.measures)
                learner.begin(optimizers, progress)
                evaluate = partial(
                    evaluate_now_and_then, learner, stage, schedule, its.held_out, out, say
                )
                with closing(loaded(batches, range(first, schedule.steps))) as made:
                    run_stage(
                        learner.loss,
                        optimizers,
                        schedule,
                        learner.timed(made),
                        first,
                        progress,
                        partial(save, optimizers, number),
                        together,
                        evaluate,
                    )
                optimizers = begin(number + 1)
                save(optimizers, number + 1, 0)
                if together.sums(len(interrupts))[0]:
                    raise Interrupted
        say(learner.frozen_proof())
        learner.save(out, recipe.merge)
    say(f"done; try: {shlex.join(chat_command(recipe, options.model, str(out)))}")


def _say(together: Processes, text: str) -> None:
    if together.rank == 0:
        print(text, flush=True)


def read_data(stage: Stage, seed: int, flash: FlashVL, together: Processes) -> Data:
    """Reads and checks all that a stage learns from and is held out. Raises `DataError`."""

    def read(file: Path) -> list[Checked]:
        samples = read_samples(file, stage.images)
        checked = check_samples(samples, flash.processor, stage.skip_long, together)
        if len(checked) < len(samples):
            skipped = len(samples) - len(checked)
            _say(together, f"{file.name}: {skipped} samples are longer than the context, skipped")
        return checked

    samples = [one for file in stage.data for one in read(file)]
    apart: list[Checked] = []
    digest = hashlib.sha256()
    for file in stage.data:
        digest.update(file.read_bytes())
    if isinstance(stage.held_out, Path):
        apart = read(stage.held_out)
        digest.update(stage.held_out.read_bytes())
    elif stage.held_out is not None:
        samples, apart = held_out(samples, stage.held_out, seed)
    return Data(samples, apart, digest.hexdigest())


def samples_of_steps(
    stages: tuple[Stage, ...], together: Processes, state: State | None
) -> list[int]:
    """How many samples a step takes, in each stage; a run that is resumed goes on as it began."""
    counts = [stage.batch * stage.accumulate * together.count for stage in stages]
    if state is None:
        return counts
    found = state.settings.get("samples")
    if not isinstance(found, list) or len(found) != len(counts):
        return counts  # the settings differ, which will be said
    return [one if is_integer(one) and one > 0 else count for one, count in zip(found, counts)]


def schedule_of(stage: Stage, count: int, data: Data, default_rate: float) -> Schedule:
    """`count` samples are in a step. Few of them are seen more often than `EPOCHS` times."""
    epochs = stage.epochs or EPOCHS
    steps = stage.steps or math.ceil(epochs * len(data.samples) / count)
    if stage.epochs is None and stage.steps is None:
        steps = max(steps, LEAST_STEPS)
    rate = stage.rate or default_rate
    return Schedule(stage.name, steps, rate, warm_up=max(1, steps // WARM_UP))


def summary(learner: Learner, stage: Stage, schedule: Schedule, data: Data) -> str:
    """What learns, how long, and the memory that it needs."""
    rows = [("learns", "tensors", "parameters", "share", "rate")]
    whole = sum(one.numel() for one in learner.model.parameters())
    for part, learned in learner.learned().items():
        count = sum(one.numel() for one in learned)
        rate = stage.rates.get(part, schedule.rate)
        share = f"{count / whole:.2%}"
        rows.append((part, str(len(learned)), f"{count:,}", share, f"{rate:.3g}"))
    needed = bytes_needed(
        learner.model,
        data.samples,
        stage.batch,
        2 if stage.optimizer == "adamw" else 1,
        learner.shards,
        learner.recipe.checkpointing,
        learner.narrow,
    )
    tokens = sum(sum(one.lengths) for one in data.samples)
    apart = f", {len(data.held_out)} held out" if data.held_out else ""
    return "\n".join(
        [
            table(rows),
            as_table(needed),
            f"{len(data.samples)} samples of {tokens:,} tokens{apart}; {schedule.steps} steps",
        ]
    )


def evaluate_now_and_then(
    learner: Learner,
    stage: Stage,
    schedule: Schedule,
    samples: list[Checked],
    out: Path,
    say: Callable[[str], None],
    done: int,
) -> None:
    """After some steps: the loss of what is held out, a few answers, and the best of them saved."""
    every = stage.eval_every or math.ceil(schedule.steps / EVALUATIONS)
    if not samples or (done % every and done != schedule.steps):
        return
    loss, right = learner.held_out_loss(samples, stage.batch)
    best = min(losses_so_far(out / LOG), default=math.inf) if learner.together.rank == 0 else 0.0
    (best,) = learner.together.sums(best)
    learner.note(done, {HELD_OUT: loss, "held_out_right": right})
    say(f"{schedule.name}, step {done}: held out loss {loss:.4f}, right {right:.1%}")
    for question, wanted, answer in learner.answers(samples[:SHOWN_ANSWERS]):
        say(f"  {question!r}: {answer!r}, right is {wanted!r}")
    if loss < best:
        learner.save(out / "best")


def losses_so_far(log: Path) -> list[float]:
    """Of what was held out, before this step."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return [said[HELD_OUT] for said in map(json.loads, lines) if HELD_OUT in said]


def chat_command(recipe: Recipe, model: str, out: str) -> list[str]:
    if recipe.rank is None or recipe.merge:
        return ["flashvl", "chat", "--model", out]
    return ["flashvl", "chat", "--model", model, "--adapter", out]
