"""The state of a training in one safetensors file, so that it can go on after an interruption."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from ..checkpoint.files import open_safetensors
from ..errors import ArgumentError, CheckpointError
from ..reading import shown

WEIGHT = "weight"  # before a parameter's name in the file; before others stands a moment's name


@dataclass(frozen=True)
class State:
    """How far a training has come; `step` steps of stage number `stage` are done.

    `settings` is what makes it this training and no other. Weights are by their parameters' names,
    the optimizers' moments by "moment/parameter".
    """

    settings: dict[str, Any]
    stage: int
    step: int
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]


def save_state(
    file: Path,
    parameters: Mapping[str, nn.Parameter],
    settings: dict[str, Any],
    optimizers: Iterable[Optimizer],
    stage: int,
    step: int,
) -> None:
    """Replaces the file, which is whole at every moment."""
    tensors = {f"{WEIGHT}/{name}": one.detach() for name, one in parameters.items()}
    for name, parameter in parameters.items():
        for optimizer in optimizers:
            for moment, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{moment}/{name}"] = value
    temporary = file.with_suffix(".writing")
    metadata = {"settings": json.dumps(settings), "stage": str(stage), "step": str(step)}
    save_file(tensors, temporary, metadata)
    os.replace(temporary, file)


def read_state(file: Path) -> State:
    """Raises `CheckpointError` if the file is damaged or is no state of a training."""
    with open_safetensors(file) as opened:
        metadata = opened.metadata() or {}
        stored = {name: opened.get_tensor(name).clone() for name in opened.keys()}
    try:
        settings = json.loads(metadata["settings"])
        stage, step = int(metadata["stage"]), int(metadata["step"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{file} is not the state of a training") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{file} is the state of a training, but its settings are damaged")
    start = f"{WEIGHT}/"
    weights = {
        name.removeprefix(start): one for name, one in stored.items() if name.startswith(start)
    }
    moments = {name: one for name, one in stored.items() if not name.startswith(start)}
    return State(settings, stage, step, weights, moments)


def load_state(
    file: Path, parameters: Mapping[str, nn.Parameter], settings: dict[str, Any]
) -> State:
    """Gives the parameters their weights back; the moments are for `restore_moments`.

    Raises `CheckpointError` if the state is damaged and `ArgumentError` if it is of a training
    with other settings.
    """
    state = read_state(file)
    if state.settings != settings:
        its_own = ", ".join(
            f"{name} {shown(state.settings.get(name))}"
            for name in state.settings | settings
            if state.settings.get(name) != settings.get(name)
        )
        raise ArgumentError(
            f"{file.parent} holds a run with other settings ({its_own}); resume it with the same"
        )
    take_weights(parameters, state, file)
    return state


def take_weights(parameters: Mapping[str, nn.Parameter], state: State, file: Path) -> None:
    """Gives these parameters the weights of a state, which was read from `file`.

    Raises `CheckpointError` if one is missing or of another shape.
    """
    for name, parameter in parameters.items():
        if name not in state.weights:
            raise CheckpointError(f"{file} does not fit what is trained: {name} is missing")
        weight = state.weights[name]
        if weight.shape != parameter.shape:
            raise CheckpointError(
                f"{file} does not fit what is trained: {name} has shape {tuple(weight.shape)}, "
                f"wanted {tuple(parameter.shape)}"
            )
        parameter.data.copy_(weight)


def restore_moments(
    optimizers: Iterable[Optimizer],
    parameters: Mapping[str, nn.Parameter],
    moments: Mapping[str, Tensor],
) -> None:
    """The optimizers' moments as a `State` has them; before a stage's first step it has none."""
    optimizer_of = {
        parameter: optimizer
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for key, value in moments.items():
        moment, name = key.split("/", 1)
        parameter = parameters[name]
        if parameter in optimizer_of:
            optimizer_of[parameter].state[parameter][moment] = value.to(parameter.device)
