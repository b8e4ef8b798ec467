"""`flashvl train`: the training loop, from random weights to a folder that `flashvl chat` loads.

A run's folder holds `log.jsonl` (a line each few steps), `state.safetensors` (all that resuming
needs, replaced whole) and, when the run is done, the checkpoint in the published layout.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config_parts import CHOICES
from ..device import choose_device
from ..errors import ArgumentError
from ..model import FlashVL
from ..prompt import END
from .data import batches
from .progress import Progress
from .recipe import RECIPES, Recipe, Stage, train_tokenizer, with_stitching
from .state import load_state, load_tower, restore_moments, save_state
from .trainer import Trainer

WARM_UP = 100  # steps
DECAY = 0.05  # of weights, times the learning rate
MUON = 3.0  # its learning rate over AdamW's
SAVE_EVERY = 120  # seconds
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
    run = {"recipe": _name_of(recipe), "seed": seed, "limit": steps, "stitching": stitching}
    run |= {} if tower is None else {"tower": str(tower)}
    recipe = with_stitching(recipe, stitching)
    run["steps"] = [stage.steps for stage in stages]
    where = choose_device(device)
    _check_folder(folder, resume)
    torch.manual_seed(seed)
    print("learning the tokenizer from drawn scenes", flush=True)
    tokenizer = train_tokenizer(recipe)
    trainer = Trainer(recipe, tokenizer).to(where)
    step, moments = 0, {}
    if resume:
        stage_number, step, moments = load_state(trainer, folder / STATE, run)
    elif tower is not None:
        load_tower(trainer, tower / STATE, stage_number, run)
    for number in range(stage_number, len(stages)):
        optimizers = make_optimizers(trainer, stages[number])
        restore_moments(optimizers, trainer, moments)
        run_stage(trainer, tokenizer, optimizers, stages, number, step, folder, run)
        step, moments = 0, {}
    model = trainer.model
    model.tokenizer = tokenizer
    model.stop_ids = frozenset(tokenizer.control_id(one) for one in (END, "<|endoftext|>"))
    model.to(torch.bfloat16).save_pretrained(folder, overwrite=resume)
    return model.float().eval()


def scaled(stages: tuple[Stage, ...], steps: int | None) -> tuple[Stage, ...]:
    """The stages with their steps in proportion, `steps` together; as they are for None."""
    if steps is None:
        return stages
    total = sum(stage.steps for stage in stages)
    return tuple(
        dataclasses.replace(stage, steps=max(1, round(stage.steps * steps / total)))
        for stage in stages
    )


def make_optimizers(trainer: Trainer, stage: Stage) -> list[torch.optim.Optimizer]:
    """Muon for the stage's hidden matrices, AdamW for the rest of it; all else is frozen.

    Muon (torch.optim.Muon) makes all directions of a matrix's step equally long. What is looked
    up or looks up (embedding, heads) and what is no matrix of its own keeps AdamW.
    """
    trained = [getattr(trainer.model, part) for part in stage.parts]
    trained += [trainer.label_head] if stage.data == "tiles" else []
    trainer.zero_grad(set_to_none=True)  # the stage before must not count in the gradient's norm
    trainer.requires_grad_(False)
    for part in trained:
        part.requires_grad_(True)
    named = [(name, one) for name, one in trainer.named_parameters() if one.requires_grad]
    hidden = {
        name: one
        for name, one in named
        if one.ndim == 2 and "head." not in name and "embed" not in name
    }
    rest = [one for name, one in named if name not in hidden]
    groups = [
        {"params": [one for one in rest if one.ndim >= 2], "weight_decay": DECAY},
        {"params": [one for one in rest if one.ndim < 2], "weight_decay": 0.0},
    ]
    muon = torch.optim.Muon(
        list(hidden.values()),
        lr=MUON * stage.rate,
        weight_decay=DECAY,
        adjust_lr_fn="match_rms_adamw",
    )
    return [muon, torch.optim.AdamW(groups, lr=stage.rate, betas=(0.9, 0.98))]


def rate_at(step: int, stage: Stage) -> float:
    """AdamW's learning rate: a linear warm-up, then a cosine down to a hundredth."""
    warm_up = min(1.0, (step + 1) / min(WARM_UP, stage.steps))
    return stage.rate * warm_up * (0.505 + 0.495 * math.cos(math.pi * step / stage.steps))


def run_stage(
    trainer: Trainer,
    tokenizer: Any,
    optimizers: list[torch.optim.Optimizer],
    stages: tuple[Stage, ...],
    number: int,
    first: int,
    folder: Path,
    run: dict[str, Any],
) -> None:
    """The steps of one stage from `first` on; logs, saves now and then and on Ctrl-C."""
    stage, device = stages[number], next(trainer.parameters()).device
    data = batches(
        stage, number, trainer.model.config, tokenizer, run["seed"], range(first, stage.steps)
    )
    progress = Progress(stage, number, len(stages), first, folder / LOG)
    saved = time.monotonic()
    with noted_interrupts() as interrupts:
        for step in range(first, stage.steps):
            batch = next(data).to(device)
            loss, share = trainer.loss(batch)
            trainer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(trainer.parameters(), 1.0)
            for optimizer, ratio in zip(optimizers, (MUON, 1.0)):
                for group in optimizer.param_groups:
                    group["lr"] = ratio * rate_at(step, stage)
                optimizer.step()
            progress.add(step, loss, share, batch.pictures)
            if interrupts or time.monotonic() - saved > SAVE_EVERY:
                save_state(trainer, optimizers, folder / STATE, run, number, step + 1)
                saved = time.monotonic()
            if interrupts:
                print(f"\nsaved; go on with: {resume_command(folder, run)}")
                raise KeyboardInterrupt
    save_state(trainer, [], folder / STATE, run, number + 1, 0)  # its optimizers are done


def resume_command(folder: Path, run: dict[str, Any]) -> str:
    limit = [] if run["limit"] is None else ["--steps", str(run["limit"])]
    settings = ["--recipe", run["recipe"], "--seed", str(run["seed"]), *limit]
    settings += [] if run["stitching"] == "trim" else ["--stitching", run["stitching"]]
    settings += ["--tower", run["tower"]] if "tower" in run else []
    return shlex.join(["flashvl", "train", *settings, "--out", str(folder), "--resume"])


@contextmanager
def noted_interrupts() -> Iterator[list[int]]:
    """Ctrl-C is put on the list instead of raised, so that a step is never half done."""
    noted: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: noted.append(number))
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def _check_folder(folder: Path, resume: bool) -> None:
    if resume and not (folder / STATE).exists():
        raise ArgumentError(f"{folder} has no {STATE} to resume from; leave --resume away")
    if not resume and folder.exists() and any(folder.iterdir()):
        raise ArgumentError(
            f"{folder} is not empty; use --resume to go on with its run, or another --out"
        )
    folder.mkdir(parents=True, exist_ok=True)


def _name_of(recipe: Recipe) -> str:
    return next((name for name, known in RECIPES.items() if known == recipe), "custom")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", choices=list(RECIPES), default="nano")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: runs/RECIPE")
    parser.add_argument("--steps", type=int, metavar="N", help="all stages together; scales them")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same data (default: 0)")
    modes = CHOICES["stitching"]
    parser.add_argument("--stitching", choices=modes, default="trim", help="default: trim")
    parser.add_argument(
        "--tower",
        type=Path,
        metavar="FOLDER",
        help="folder of a run whose tower is taken; --steps are then those after it",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")


def run(options: argparse.Namespace) -> None:
    if options.steps is not None and options.steps < 1:
        raise ArgumentError(f"--steps must be at least 1, found {options.steps}")
    if not 0 <= options.seed < 2**20:
        raise ArgumentError(f"--seed must be from 0 to {2**20 - 1}, found {options.seed}")
    folder = options.out or Path("runs") / options.recipe
    recipe = RECIPES[options.recipe]
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
    print(f"done; try: flashvl score --model {folder}")
