"""`flashvl train`: from random weights to a folder that `flashvl chat` loads.

A run's folder holds `log.jsonl` (a line each few steps), `state.safetensors` (all that resuming
needs, replaced whole) and, when the run is done, the checkpoint in the published layout.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import shlex
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from ..chat import FlashVL
from ..device import choose_device
from ..errors import ArgumentError
from ..input.prompt import TURN_END
from ..training.loop import Interrupted, make_optimizers, run_stage
from ..training.progress import Progress
from ..training.state import load_state, read_state, restore_moments, save_state, take_weights
from .data import batches
from .losses import ModelWithLosses
from .recipe import RECIPES, Recipe, Stage, train_tokenizer, with_stitching

STATE, LOG = "state.safetensors", "log.jsonl"


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
    it are run. Ctrl-C saves before it ends the run.
    Raises `ArgumentError` if `folder` holds a run and `resume` is false, or none and it is true,
    or if `tower` holds no tower for this run.
    """
    # The tower's stages come first.
    stage_number = 0 if tower is None else sum(one.data == "tiles" for one in recipe.stages)
    stages = recipe.stages[:stage_number] + scaled(recipe.stages[stage_number:], steps)
    settings = {
        "recipe": _name_of(recipe),
        "stages": [stage.steps for stage in stages],
        "seed": seed,
        "steps": steps,
        "stitching": stitching,
        "tower": None if tower is None else str(tower),
    }
    recipe = with_stitching(recipe, stitching)
    where = choose_device(device)
    _check_folder(folder, resume)
    torch.manual_seed(seed)
    print("learning the tokenizer from drawn scenes", flush=True)
    tokenizer = train_tokenizer(recipe)
    trained = ModelWithLosses(recipe, tokenizer).to(where)
    parameters = dict(trained.named_parameters())
    step, moments = 0, {}
    if resume:
        state = load_state(folder / STATE, parameters, settings)
        stage_number, step, moments = state.stage, state.step, state.moments
    elif tower is not None:
        take_tower(parameters, tower, stage_number, stitching)
    save = functools.partial(save_state, folder / STATE, parameters, settings)
    for number in range(stage_number, len(stages)):
        stage = stages[number]
        print(f"stage {number + 1} of {len(stages)}: {stage.name}", flush=True)
        trained.train_parts(stage)
        optimizers = make_optimizers(parameters, stage)
        restore_moments(optimizers, parameters, moments)
        left = range(step, stage.steps)
        drawn = batches(stage, number, trained.model.config, tokenizer, seed, left)
        run_stage(
            trained.loss,
            optimizers,
            stage,
            (batch.to(where) for batch in drawn),
            step,
            Progress(stage.name, step, stage.steps, folder / LOG),
            functools.partial(save, optimizers, number),
        )
        save([], number + 1, 0)  # its optimizers are done
        step, moments = 0, {}
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


def take_tower(
    parameters: Mapping[str, nn.Parameter], folder: Path, stages: int, stitching: str
) -> None:
    """Gives tower and label head the weights of another run, which has done `stages`.

    Raises `CheckpointError` if they do not fit and `ArgumentError` if there are none, or they are
    not yet trained or were trained on tiles of another size.
    """
    if not (folder / STATE).exists():
        raise ArgumentError(f"{folder} has no {STATE} to take a tower from")
    state = read_state(folder / STATE)
    if state.stage < stages:
        raise ArgumentError(
            f"the tower of {folder} is not trained yet; let that run go on until its first "
            f"{stages} stages are done"
        )
    its_stitching = state.settings.get("stitching")
    if (its_stitching == "none") != (stitching == "none"):
        raise ArgumentError(
            f"the tower of {folder} was trained for the stitching mode {its_stitching}, this run "
            f"is of {stitching}: trim and mean can share a tower, none sees no margin and needs "
            "its own"
        )
    of_tower = {
        name: one
        for name, one in parameters.items()
        if name.startswith(("model.vision.", "label_head."))
    }
    take_weights(of_tower, state, folder / STATE)


def _check_folder(folder: Path, resume: bool) -> None:
    if resume and not (folder / STATE).exists():
        raise ArgumentError(f"{folder} has no {STATE}: there is no run to resume")
    if not resume and folder.exists() and any(folder.iterdir()):
        raise ArgumentError(f"{folder} is not empty; resume its run or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)


def _name_of(recipe: Recipe) -> str:
    return next((name for name, known in RECIPES.items() if known == recipe), "custom")


def run(options: argparse.Namespace) -> None:
    if options.steps is not None and options.steps < 1:
        raise ArgumentError(f"--steps must be at least 1, found {options.steps}")
    if not 0 <= options.seed < 2**20:
        raise ArgumentError(f"--seed must be from 0 to {2**20 - 1}, found {options.seed}")
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
