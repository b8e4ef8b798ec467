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

MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # AdamW's state of each parameter


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
