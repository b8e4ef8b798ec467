"""`flashvl train`: the training loop, from random weights to a folder that `flashvl chat` loads.

A run's folder holds `log.jsonl` (a line each few steps), `state.safetensors` (all that resuming
needs, replaced whole) and, when the run is done, the checkpoint in the published layout.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from ..checkpoint import open_safetensors
from ..device import choose_device
from ..errors import ArgumentError, CheckpointError
from ..model import FlashVL
from ..prompt import END
from ..vision import cut_patches
from .data import IGNORED, SceneBatch, TileBatch, TileBatches, batches
from .recipe import RECIPES, Recipe, Stage, nano_config, train_tokenizer
from .scenes import COLOURS, OUTLINE, SHAPES

WARM_UP = 100  # steps
SAVE_EVERY = 120  # seconds
LOG_EVERY = 25  # steps
WHITENING = Stage("whitening", "tiles", (), most_objects=6, steps=1, batch=400, rate=0.0)
MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # AdamW's state of each parameter
LABELS = (1 + len(SHAPES), 1 + len(COLOURS), OUTLINE**2)  # widths of the label head's parts
STATE, LOG = "state.safetensors", "log.jsonl"


class Trainer(nn.Module):
    """The model, and a head for patch labels that is thrown away after the first stage."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.model = FlashVL(nano_config(recipe))
        width = self.model.config.vision.width
        self.label_head = nn.Linear(width, sum(LABELS))
        set_starting_values(self.model)

    def loss(self, batch: TileBatch | SceneBatch) -> tuple[Tensor, Tensor]:
        """-> the loss and the share of labels that are predicted, both ()."""
        if isinstance(batch, TileBatch):
            features = self.model.vision(batch.pixels)  # (S, N, D)
            shapes, colours, outlines = self.label_head(features).split(LABELS, dim=-1)
            shape_loss, shape_share = _loss_and_share(shapes, batch.shapes, least=1)
            colour_loss, _ = _loss_and_share(colours, batch.colours, least=1)
            # Outlines are what shapes are told by; learned alone, shapes come much later.
            outline_loss = F.binary_cross_entropy_with_logits(outlines, batch.outlines)
            return shape_loss + colour_loss + outline_loss, shape_share
        embeddings = self.model.embed(batch.input_ids, self.model.encode(batch.pixels))  # (B, T, D)
        hidden = self.model.decoder(embeddings)  # (B, T, D)
        answers = batch.labels[:, 1:] != IGNORED  # (B, T - 1)
        logits = self.model.decoder.head(hidden[:, :-1][answers])  # (answer tokens, V)
        return _loss_and_share(logits, batch.labels[:, 1:][answers], least=0)


@torch.no_grad()
def set_starting_values(model: FlashVL) -> None:
    """Patches start as their principal components, positions as waves along both axes.

    White noise hardly sees smooth pictures, and small random positions hardly tell places apart.
    """
    vision, embedding = model.config.vision, model.vision.patch_embedding
    pixels = TileBatches(model.config, WHITENING, seed=0, first=0)[0].pixels
    patches = cut_patches(pixels, vision.patch_size).flatten(0, 1)  # (S * N, C * patch * patch)
    mean = patches.mean(0)  # (C * patch * patch)
    variance, axes = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    variance, axes = variance[-vision.width :], axes[:, -vision.width :]  # the D largest
    weight = (axes / (variance + 1e-4 * variance[-1]).sqrt()).T  # (D, C * patch * patch)
    embedding.weight.copy_(weight.view_as(embedding.weight))
    embedding.bias.copy_(-weight @ mean)
    model.vision.positions.copy_(sine_positions(vision.side, vision.width))


def sine_positions(side: int, width: int) -> Tensor:
    """Sines and cosines of row and column, wave lengths 4 to 32 patches. -> (1, N, D)."""
    frequencies = torch.pi / 2 * 0.5 ** torch.linspace(0, 3, width // 4)  # (D / 4)
    angles = torch.arange(side)[:, None] * frequencies  # (side, D / 4)
    line = torch.cat((angles.sin(), angles.cos()), dim=1)  # (side, D / 2)
    rows = line[:, None].expand(side, side, -1)  # (side, side, D / 2)
    columns = line[None].expand(side, side, -1)  # (side, side, D / 2)
    return torch.cat((rows, columns), dim=2).flatten(0, 1)[None]  # (1, N, D)


def _loss_and_share(logits: Tensor, labels: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Cross-entropy, and the share of labels from `least` on that are the likeliest; both ()."""
    loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED)
    counted = labels >= least
    return loss, (logits.argmax(-1) == labels)[counted].float().mean()


def train(
    recipe: Recipe,
    folder: Path,
    seed: int = 0,
    device: str = "auto",
    steps: int | None = None,
    resume: bool = False,
) -> FlashVL:
    """Runs a recipe, or the rest of it, and writes the model to `folder`.

    `steps` scales all stages to that many steps together. Ctrl-C saves before it ends the run.
    Raises `ArgumentError` if `folder` holds a run and `resume` is false, or none and it is true.
    """
    stages = scaled(recipe.stages, steps)
    run = {"recipe": _name_of(recipe), "seed": seed, "steps": [stage.steps for stage in stages]}
    _check_folder(folder, resume)
    where = choose_device(device)
    torch.manual_seed(seed)
    trainer = Trainer(recipe).to(where)
    tokenizer = train_tokenizer(recipe)
    stage_number, step, moments = 0, 0, {}
    if resume:
        stage_number, step, moments = load_state(trainer, folder / STATE, run)
    for number in range(stage_number, len(stages)):
        optimizer = make_optimizer(trainer, stages[number])
        restore_moments(optimizer, trainer, moments, step)
        run_stage(trainer, tokenizer, optimizer, stages, number, step, folder, run)
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


def make_optimizer(trainer: Trainer, stage: Stage) -> torch.optim.AdamW:
    """AdamW over the stage's parts; everything else is frozen. Only matrices decay."""
    trained = [getattr(trainer.model, part) for part in stage.parts]
    trained += [trainer.label_head] if stage.data == "tiles" else []
    trainer.zero_grad(set_to_none=True)  # the stage before must not count in the gradient's norm
    trainer.requires_grad_(False)
    for part in trained:
        part.requires_grad_(True)
    parameters = [one for one in trainer.parameters() if one.requires_grad]
    groups = [
        {"params": [one for one in parameters if one.ndim >= 2], "weight_decay": 0.05},
        {"params": [one for one in parameters if one.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=stage.rate, betas=(0.9, 0.98))


def rate_at(step: int, stage: Stage) -> float:
    """The learning rate: a linear warm-up, then a cosine down to a hundredth."""
    warm_up = min(1.0, (step + 1) / min(WARM_UP, stage.steps))
    return stage.rate * warm_up * (0.505 + 0.495 * math.cos(math.pi * step / stage.steps))


def run_stage(
    trainer: Trainer,
    tokenizer: Any,
    optimizer: torch.optim.AdamW,
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
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step, stage)
            loss, share = trainer.loss(batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(trainer.parameters(), 1.0)
            optimizer.step()
            progress.add(step, loss, share, batch.pictures)
            if interrupts or time.monotonic() - saved > SAVE_EVERY:
                save_state(trainer, optimizer, folder / STATE, run, number, step + 1)
                saved = time.monotonic()
            if interrupts:
                print(f"\nsaved; go on with: flashvl train --out {folder} --resume")
                raise KeyboardInterrupt
    save_state(trainer, optimizer, folder / STATE, run, number + 1, 0)


@contextmanager
def noted_interrupts() -> Iterator[list[int]]:
    """Ctrl-C is put on the list instead of raised, so that a step is never half done."""
    noted: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: noted.append(number))
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


class Progress:
    """Prints and logs the loss, the share of right labels, the rate and the time left."""

    def __init__(self, stage: Stage, number: int, stages: int, first: int, log: Path) -> None:
        self.stage, self.log, self.first = stage, log, first
        self.title = f"stage {number + 1} of {stages}, {stage.name}"
        self.start = self.since = time.monotonic()
        self.losses: list[Tensor] = []
        self.shares: list[Tensor] = []
        self.pictures = 0

    def add(self, step: int, loss: Tensor, share: Tensor, pictures: int) -> None:
        self.losses.append(loss.detach())
        self.shares.append(share)
        self.pictures += pictures
        done = step + 1
        if done % LOG_EVERY and done != self.stage.steps:
            return
        now = time.monotonic()
        line = {
            "stage": self.stage.name,
            "step": done,
            "steps": self.stage.steps,
            "loss": round(torch.stack(self.losses).mean().item(), 4),
            "right": round(torch.stack(self.shares).mean().item(), 4),
            "pictures_per_second": round(self.pictures / (now - self.since), 1),
            "seconds": round(now - self.start, 1),
        }
        left = (now - self.start) / (done - self.first) * (self.stage.steps - done)
        print(
            f"\r{self.title}: step {done} of {self.stage.steps}, loss {line['loss']:.3f}, "
            f"right {line['right']:.1%}, {line['pictures_per_second']:.0f} pictures/s, "
            f"{left / 60:.0f} min left in this stage ",
            end="\n" if done == self.stage.steps else "",
            flush=True,
        )
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.losses, self.shares, self.pictures, self.since = [], [], 0, now


def save_state(
    trainer: Trainer,
    optimizer: torch.optim.AdamW,
    file: Path,
    run: dict[str, Any],
    stage: int,
    step: int,
) -> None:
    """Weights and AdamW's moments as safetensors; the next stage and step as its metadata."""
    tensors = {f"weight/{name}": one.detach() for name, one in trainer.named_parameters()}
    for name, parameter in trainer.named_parameters():
        for moment in MOMENTS:
            if parameter in optimizer.state:
                tensors[f"{moment}/{name}"] = optimizer.state[parameter][moment]
    temporary = file.with_suffix(".writing")
    metadata = {"run": json.dumps(run), "stage": str(stage), "step": str(step)}
    save_file(tensors, temporary, metadata)
    os.replace(temporary, file)


def load_state(
    trainer: Trainer, file: Path, run: dict[str, Any]
) -> tuple[int, int, dict[str, Tensor]]:
    """Gives the trainer its weights back -> stage, step, moments by name.

    Raises `CheckpointError` if the state is damaged and `ArgumentError` if it is another run's.
    """
    with open_safetensors(file) as state:
        metadata = state.metadata() or {}
        stored = {name: state.get_tensor(name).clone() for name in state.keys()}
    if metadata.get("run") != json.dumps(run):
        raise ArgumentError(
            f"{file.parent} holds a run with other settings ({metadata.get('run')}); "
            "resume with the same recipe, seed and steps"
        )
    try:
        for name, parameter in trainer.named_parameters():
            parameter.data.copy_(stored[f"weight/{name}"])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{file} does not fit the recipe: {error}") from error
    moments = {name: one for name, one in stored.items() if not name.startswith("weight/")}
    return int(metadata["stage"]), int(metadata["step"]), moments


def restore_moments(
    optimizer: torch.optim.AdamW, trainer: Trainer, moments: dict[str, Tensor], step: int
) -> None:
    """AdamW's state as it was after `step` steps of its stage; at step 0 there is none."""
    if step == 0:
        return
    for name, parameter in trainer.named_parameters():
        if parameter.requires_grad:
            state = {moment: moments[f"{moment}/{name}"].to(parameter.device) for moment in MOMENTS}
            optimizer.state[parameter] = state


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
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")


def run(options: argparse.Namespace) -> None:
    if options.steps is not None and options.steps < 1:
        raise ArgumentError(f"--steps must be at least 1, found {options.steps}")
    if not 0 <= options.seed < 2**20:
        raise ArgumentError(f"--seed must be from 0 to {2**20 - 1}, found {options.seed}")
    folder = options.out or Path("runs") / options.recipe
    recipe = RECIPES[options.recipe]
    train(recipe, folder, options.seed, options.device, options.steps, options.resume)
    print(f"done; try: flashvl score --model {folder}")
