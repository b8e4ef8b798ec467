"""The state of a training run in one file, so that it can go on after an interruption."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..checkpoint import open_safetensors
from ..errors import ArgumentError, CheckpointError
from .trainer import Trainer


def save_state(
    trainer: Trainer,
    optimizers: list[torch.optim.Optimizer],
    file: Path,
    run: dict[str, Any],
    stage: int,
    step: int,
) -> None:
    """Weights and the optimizers' moments as safetensors; the next stage and step as metadata."""
    tensors = {f"weight/{name}": one.detach() for name, one in trainer.named_parameters()}
    for name, parameter in trainer.named_parameters():
        for optimizer in optimizers:
            for moment, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{moment}/{name}"] = value
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
    metadata, stored = _read(file)
    if metadata.get("run") != json.dumps(run):
        raise ArgumentError(
            f"{file.parent} holds a run with other settings ({metadata.get('run')}); "
            "resume with the same recipe, seed, steps, stitching and tower"
        )
    _take(trainer, stored, file)
    moments = {name: one for name, one in stored.items() if not name.startswith("weight/")}
    return int(metadata["stage"]), int(metadata["step"]), moments


def load_tower(trainer: Trainer, file: Path, stages: int, run: dict[str, Any]) -> None:
    """Gives the trainer the tower and the label head of another run, which has done `stages`.

    Raises `CheckpointError` if they do not fit and `ArgumentError` if there are none, or they are
    not yet trained or were trained on tiles of another size.
    """
    if not file.exists():
        raise ArgumentError(f"{file.parent} has no {file.name} to take a tower from")
    metadata, stored = _read(file)
    if "run" not in metadata:
        raise CheckpointError(f"{file} is not the state of a training run")
    other = json.loads(metadata["run"])
    if int(metadata["stage"]) < stages:
        raise ArgumentError(
            f"the tower of {file.parent} is not trained yet; let that run go on until its first "
            f"{stages} stages are done"
        )
    if (other["stitching"] == "none") != (run["stitching"] == "none"):
        raise ArgumentError(
            f"the tower of {file.parent} was trained for stitching mode {other['stitching']}, this "
            f"run is of {run['stitching']}: trim and mean can share a tower, none sees no margin "
            "and needs its own"
        )
    _take(trainer, stored, file, ("model.vision.", "label_head."))


def _read(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """-> the metadata and the tensors of a state."""
    with open_safetensors(file) as state:
        stored = {name: state.get_tensor(name).clone() for name in state.keys()}
        return state.metadata() or {}, stored


def _take(
    trainer: Trainer, stored: dict[str, Tensor], file: Path, beginnings: str | tuple[str, ...] = ""
) -> None:
    """Copies the stored weights whose names begin so, by default all, to the trainer."""
    try:
        for name, parameter in trainer.named_parameters():
            if name.startswith(beginnings):
                parameter.data.copy_(stored[f"weight/{name}"])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{file} does not fit the recipe: {error}") from error


def restore_moments(
    optimizers: list[torch.optim.Optimizer], trainer: Trainer, moments: dict[str, Tensor]
) -> None:
    """The optimizers' state as `load_state` found it; a stage's first step has none."""
    named = dict(trainer.named_parameters())
    optimizer_of = {
        parameter: optimizer
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for key, value in moments.items():
        moment, name = key.split("/", 1)
        parameter = named[name]
        if parameter in optimizer_of:
            optimizer_of[parameter].state[parameter][moment] = value.to(parameter.device)
