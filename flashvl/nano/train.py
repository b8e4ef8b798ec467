"""`flashvl train`: from random weights to a folder that `flashvl chat` loads.

A run's folder holds `state.safetensors` (all that resuming needs, replaced whole; the first thing
in it), `log.jsonl` (a line each few steps; cut back to the state when a killed run is resumed) and,
when the run is done, the checkpoint in the published layout.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import shlex
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import torch
from torch import nn

from ..assumptions import choices_of
from ..chat import FlashVL
from ..device import choose_device, device_failure_as_error
from ..errors import ArgumentError, CheckpointError, shortened
from ..input.prompt import TURN_END
from ..reading import MAX_INTEGER, is_integer, read_path, shown
from ..training.folder import LOG, MAX_SHOWN, STATE, kept_for_this_run
from ..training.loading import loading_failure_as_error
from ..training.loop import Interrupted, make_optimizers, noted_interrupts, run_stage
from ..training.progress import Progress, cut_log
from ..training.state import (
    State,
    check_settings,
    load_state,
    read_state,
    save_state,
    take_weights,
)
from .data import MAX_SEED, batches
from .losses import ModelWithLosses
from .recipe import RECIPES, Recipe, Stage, train_tokenizer, with_stitching


def train(
    recipe: Recipe,
    folder: Path,
    seed: int = 0,
    device: str = "auto",
    steps: int | None = None,
    resume: bool = False,
    stitching: str = "trim",
    tower: Path | None = None,
) -> FlashVL:
    """Runs a recipe, or the rest of it, and writes the model to `folder`.

    `steps` scales the stages to that many steps together; `stitching` is the model's stitching
    mode; `tower` is the folder of another run whose tower is taken, so that only the stages after
    it are run. Ctrl-C saves before it ends the run; a run that was killed at any moment, or whose
    disk was full, is resumed from what it saved last. To resume a run that is done writes its
    model again.
    Raises `ArgumentError` if `folder` holds a run and `resume` is false, or none and it is true,
    if it cannot be used or another process trains there, or if `tower` holds no tower for this
    run; `CheckpointError` if a state is damaged or cannot be written; `DeviceError`.
    """
    if not is_integer(seed) or not 0 <= seed <= MAX_SEED:
        raise ArgumentError(f"the seed must be from 0 to {MAX_SEED}, found {shown(seed)}")
    if steps is not None and not (is_integer(steps) and 1 <= steps <= MAX_INTEGER):
        raise ArgumentError(f"the steps must be from 1 to {MAX_INTEGER}, found {shown(steps)}")
    where = choose_device(device)
    folder = read_path(folder, "folder")
    tower = None if tower is None else read_path(tower, "tower")
    with (
        kept_for_this_run(folder, resume),
        device_failure_as_error("training"),
        loading_failure_as_error(),
    ):
        return _train(recipe, folder, seed, where, steps, resume, stitching, tower)


def _train(
    recipe: Recipe,
    folder: Path,
    seed: int,
    device: torch.device,
    steps: int | None,
    resume: bool,
    stitching: str,
    tower: Path | None,
) -> FlashVL:
    # The tower's stages come first.
    first = 0 if tower is None else sum(one.data == "tiles" for one in recipe.stages)
    stages = recipe.stages[:first] + scaled(recipe.stages[first:], steps)
    settings = {
        "recipe": _name_of(recipe),
        "stages": [stage.steps for stage in stages],
        "seed": seed,
        "steps": steps,
        "stitching": stitching,
        "tower": None if tower is None else str(tower),
    }
    state = State(settings, first, 0)
    tower_state = None
    if resume:
        state = read_state(folder / STATE)
        check_settings(state, settings, folder / STATE)
    elif tower is not None:
        tower_state = state_with_tower(tower, first, stitching)
    torch.manual_seed(seed)
    print("learning the tokenizer from drawn scenes", flush=True)
    tokenizer = train_tokenizer(recipe)
    trained = ModelWithLosses(with_stitching(recipe, stitching), tokenizer).to(device)
    parameters = dict(trained.named_parameters())
    save = functools.partial(save_state, folder / STATE, parameters, settings)

    def begin(number: int) -> list[torch.optim.Optimizer]:
        """The optimizers of a stage; none after the last."""
        if number == len(stages):
            return []
        trained.train_parts(stages[number])
        return make_optimizers(parameters, stages[number])

    optimizers = begin(state.stage)
    if resume:
        load_state(folder / STATE, parameters, optimizers, state)
        cut_log(folder / LOG, [stage.name for stage in stages], state.stage, state.step)
    else:
        if tower_state is not None:
            take_weights(tower_state, of_tower(parameters))
        save([], first, 0)  # before all else in the folder, which can then always be resumed
    if state.stage == len(stages):
        print("all stages are done; writing the model again", flush=True)
    with noted_interrupts() as interrupts:  # in the steps, and between the stages
        for number in range(state.stage, len(stages)):
            stage = stages[number]
            print(f"stage {number + 1} of {len(stages)}: {stage.name}", flush=True)
            step = state.step if number == state.stage else 0
            left = range(step, stage.steps)
            config = trained.model.config
            with closing(batches(stage, number, config, tokenizer, seed, left)) as drawn:
                run_stage(
                    trained.loss,
                    optimizers,
                    stage,
                    (batch.to(device) for batch in drawn),
                    step,
                    Progress(stage.name, step, stage.steps, folder / LOG),
                    functools.partial(save, optimizers, number),
                )
            optimizers = begin(number + 1)
            save(optimizers, number + 1, 0)
            if interrupts:
                raise Interrupted
    stop_ids = [tokenizer.control_id(token) for token in (TURN_END, "<|endoftext|>")]
    flash = FlashVL(trained.model.to(torch.bfloat16), tokenizer, stop_ids)
    flash.save_pretrained(folder, overwrite=resume)
    flash.model.float().eval()
    return flash


def scaled(stages: tuple[Stage, ...], steps: int | None) -> tuple[Stage, ...]:
    """The stages with their steps in proportion, `steps` together; as they are for None."""
    if steps is None:
        return stages
    total = sum(stage.steps for stage in stages)
    return tuple(
        dataclasses.replace(stage, steps=max(1, round(stage.steps * steps / total)))
        for stage in stages
    )


def of_tower(parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Those of the tower and of the label head, which is trained with it."""
    return {
        name: one
        for name, one in parameters.items()
        if name.startswith(("model.vision.", "label_head."))
    }


def state_with_tower(folder: Path, stages: int, stitching: str) -> Path:
    """The state of another run, which has done `stages`, for its tower -> its file.

    Raises `CheckpointError` if it is damaged and `ArgumentError` if there is none, or the tower is
    not yet trained or was trained on tiles of another size.
    """
    file = folder / STATE
    if not os.path.isfile(file):  # False for all that cannot be one
        name = shortened(str(folder), MAX_SHOWN)
        raise ArgumentError(f"{name} has no {STATE} to take a tower from")
    state = read_state(file)
    if state.stage < stages:
        raise ArgumentError(
            f"the tower of {folder} is not trained yet; let that run go on until its first "
            f"{stages} stages are done"
        )
    its_stitching = state.settings.get("stitching")
    if its_stitching not in choices_of("stitching"):
        raise CheckpointError(f"{file} is damaged: its stitching mode is {shown(its_stitching)}")
    if (its_stitching == "none") != (stitching == "none"):
        raise ArgumentError(
            f"the tower of {folder} was trained for the stitching mode {its_stitching}, this run "
            f"is of {stitching}: trim and mean can share a tower, none sees no margin and needs "
            "its own"
        )
    return file


def _name_of(recipe: Recipe) -> str:
    return next((name for name, known in RECIPES.items() if known == recipe), "custom")


def run(options: argparse.Namespace) -> None:
    folder = options.out or Path("runs") / options.recipe
    try:
        train(
            RECIPES[options.recipe],
            folder,
            options.seed,
            options.device,
            options.steps,
            options.resume,
            options.stitching,
            options.tower,
        )
    except Interrupted:
        print(f"saved; go on with: {resume_command(options, folder)}")
        raise
    print(f"done; try: flashvl score --model {folder}")


def resume_command(options: argparse.Namespace, folder: Path) -> str:
    settings = ["--recipe", options.recipe, "--seed", str(options.seed)]
    settings += [] if options.steps is None else ["--steps", str(options.steps)]
    settings += [] if options.stitching == "trim" else ["--stitching", options.stitching]
    settings += [] if options.tower is None else ["--tower", str(options.tower)]
    return shlex.join(["flashvl", "train", *settings, "--out", str(folder), "--resume"])
