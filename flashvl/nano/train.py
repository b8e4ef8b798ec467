"""`flashvl train`: from random weights to a folder that `flashvl chat` loads.

A run's folder holds `state.safetensors` (all that resuming needs, replaced whole; the first thing
in it), `log.jsonl` (a line each few steps; cut back to the state when a killed run is resumed) and,
when the run is done, the checkpoint in the published layout, with the head for patch labels beside
it, so that other runs can take the tower of either.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import shlex
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from ..assumptions import choices_of
from ..chat import FlashVL
from ..device import choose_device, device_failure_as_error
from ..errors import ArgumentError, CheckpointError, ConfigError, shortened
from ..input.prompt import TURN_END
from ..reading import (
    MAX_CONFIG_BYTES,
    MAX_INTEGER,
    is_integer,
    read_json,
    read_path,
    shown,
)
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
from .recipe import RECIPES, Recipe, Stage, nano_config, train_tokenizer, with_config

LABEL_HEAD = "label_head.safetensors"
CUSTOM = "custom"  # a recipe that is not in `RECIPES`


def train(
    recipe: Recipe,
    folder: Path,
    seed: int = 0,
    device: str = "auto",
    steps: int | None = None,
    resume: bool = False,
    stitching: str | None = None,
    tower: Path | None = None,
) -> FlashVL:
    """Runs a recipe, or the rest of it, and writes the model to `folder`.

    `steps` scales the stages to that many steps together; `stitching` is the model's stitching
    mode, None for the recipe's; `tower` is "nano" or the folder of another run, whose tower is
    taken, so that only the stages after it are run. Ctrl-C saves before it ends the run; a run that
    was killed at any moment, or whose disk was full, is resumed from what it saved last. To resume
    a run that is done writes its model again.
    Raises `ArgumentError` if `folder` holds a run and `resume` is false, or none and it is true,
    if it cannot be used or another process trains there, or if `tower` holds no tower for this
    run; `CheckpointError` if a state is damaged or cannot be written; `ConfigError`; `DeviceError`.
    """
    name = _name_of(recipe)
    changes = {} if stitching is None else {"assumptions": {"stitching": stitching}}
    recipe = with_config(recipe, changes)
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
        return _train(name, recipe, folder, seed, where, steps, resume, tower)


def _train(
    name: str,
    recipe: Recipe,
    folder: Path,
    seed: int,
    device: torch.device,
    steps: int | None,
    resume: bool,
    tower: Path | None,
) -> FlashVL:
    # The tower's stages come first.
    first = 0 if tower is None else sum(one.data == "tiles" for one in recipe.stages)
    stages = recipe.stages[:first] + scaled(recipe.stages[first:], steps)
    settings: dict[str, Any] = {
        "recipe": name,
        "stages": [stage.steps for stage in stages],
        "seed": seed,
        "steps": steps,
        "stitching": nano_config(recipe).tiler.stitching,
        "tower": None if tower is None else str(tower),
    }
    if name == CUSTOM:
        settings["config"] = recipe.config
    state = State(settings, first, 0)
    if resume:
        state = read_state(folder / STATE)
        check_settings(state, settings, folder / STATE)
    torch.manual_seed(seed)
    print("learning the tokenizer from drawn scenes", flush=True)
    tokenizer = train_tokenizer(recipe)
    trained = ModelWithLosses(recipe, tokenizer).to(device)
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
        if tower is not None:
            take_tower(trained, tower, first)
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
    head = {name: one for name, one in parameters.items() if name.startswith("label_head.")}
    save_state(folder / LABEL_HEAD, head, settings, [], len(stages), 0)
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


def take_tower(trained: ModelWithLosses, folder: Path, stages: int) -> None:
    """Gives the tower, and the label head that learned with it, what another run has learned.

    From its state if it is there, in which `stages` must be done, else from the model that it
    wrote. Raises `CheckpointError` if a file is damaged and `ArgumentError` if there is none, or
    the tower is not yet trained or of other sizes, or was trained on tiles of another size.
    """
    parameters = dict(trained.named_parameters())
    tower = {name: one for name, one in parameters.items() if name.startswith("model.vision.")}
    head = {name: one for name, one in parameters.items() if name.startswith("label_head.")}
    file = folder / STATE
    if os.path.isfile(file):  # False for all that cannot be one
        state = read_state(file)
        if state.stage < stages:
            raise ArgumentError(
                f"the tower of {folder} is not trained yet; let that run go on until its first "
                f"{stages} stages are done"
            )
        its_stitching = state.settings.get("stitching")
        if its_stitching not in choices_of("stitching"):
            raise CheckpointError(
                f"{file} is damaged: its stitching mode is {shown(its_stitching)}"
            )
        check_stitching(folder, its_stitching, trained.model.config.tiler.stitching)
        take_weights(file, tower | head)
        return
    if str(folder) != "nano" and not os.path.isfile(folder / LABEL_HEAD):
        name = shortened(str(folder), MAX_SHOWN)
        raise ArgumentError(f"{name} has neither {STATE} nor {LABEL_HEAD} to take a tower from")
    flash = FlashVL.from_pretrained(str(folder), device="cpu", dtype="float32")
    learned, file = flash.model, (flash.folder or folder) / LABEL_HEAD
    check_stitching(folder, learned.config.tiler.stitching, trained.model.config.tiler.stitching)
    if learned.config.vision != trained.model.config.vision:
        raise ArgumentError(f"the tower of {folder} has other sizes than that of this run")
    take_weights(file, head)
    trained.model.vision.load_state_dict(learned.vision.state_dict())


def check_stitching(folder: Path, its_own: str, wanted: str) -> None:
    """Raises `ArgumentError` if the tower there was trained on tiles of another size."""
    if (its_own == "none") != (wanted == "none"):
        raise ArgumentError(
            f"the tower of {folder} was trained for the stitching mode {its_own}, this run is of "
            f"{wanted}: trim, mean and pool can share a tower, none sees no margin and needs its "
            "own"
        )


def _name_of(recipe: Recipe) -> str:
    return next((name for name, known in RECIPES.items() if known == recipe), CUSTOM)


def run(options: argparse.Namespace) -> None:
    folder = options.out or Path("runs") / options.recipe
    recipe = RECIPES[options.recipe]
    if options.config is not None:
        file = read_path(options.config, "file of changes", ConfigError)
        if not os.path.lexists(file):
            raise ConfigError(f"there is no file {shown(str(file))}; check the path of --config")
        recipe = with_config(recipe, read_json(file, max_bytes=MAX_CONFIG_BYTES))
    try:
        train(
            recipe,
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
    settings += [] if options.config is None else ["--config", str(options.config)]
    settings += [] if options.stitching is None else ["--stitching", options.stitching]
    settings += [] if options.tower is None else ["--tower", str(options.tower)]
    return shlex.join(["flashvl", "train", *settings, "--out", str(folder), "--resume"])
