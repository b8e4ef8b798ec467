"""The state of a training in one safetensors file, so that it can go on after an interruption."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from ..checkpoint.files import open_safetensors
from ..errors import ArgumentError, CheckpointError
from ..reading import is_integer, one_line, shown
from ..storage import replace

WEIGHT = "weight"  # before a parameter's name in the file; before others stands a moment's name
COUNT = "step"  # AdamW's moment that counts its steps
# Number formats of tensors in a state, in safetensors' words.
STORED = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@dataclass(frozen=True)
class State:
    """How far a training has come; `step` steps of stage number `stage` are done.

    After the last stage the number is that of all stages and the step is 0. `settings` are what
    makes it this training and no other; their "stages" are the steps of each stage.
    """

    settings: dict[str, Any]
    stage: int
    step: int


def save_state(
    file: Path,
    parameters: Mapping[str, nn.Parameter],
    settings: dict[str, Any],
    optimizers: Iterable[Optimizer],
    stage: int,
    step: int,
) -> None:
    """Replaces the file, which is whole at every moment, also if the process is killed.

    Weights are saved by their parameters' names, the optimizers' moments as "moment/parameter";
    none before a stage's first step. This process must be the only one that saves there. Raises
    `CheckpointError` if the file cannot be written.
    """
    tensors = state_tensors(parameters, optimizers if step else ())
    metadata = {"settings": json.dumps(settings), "stage": str(stage), "step": str(step)}
    try:
        replace(file, save(tensors, metadata), file.with_suffix(".writing"))
    except OSError as error:
        raise CheckpointError(
            f"the state cannot be written ({error.strerror or one_line(error)}); one that was "
            f"saved before is kept and can be resumed: {file}"
        ) from error


def read_state(file: Path) -> State:
    """How far a training has come; no tensor is read.

    Raises `CheckpointError` if the file is damaged or is no state of a training.
    """
    with open_safetensors(file) as opened:
        metadata = opened.metadata() or {}
    try:
        settings = json.loads(metadata["settings"])
        stage, step = _count(metadata["stage"]), _count(metadata["step"])
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not the state of a training") from error
    stages = settings.get("stages") if isinstance(settings, dict) else None
    if not isinstance(stages, list) or not all(is_integer(one) and one > 0 for one in stages):
        raise CheckpointError(f"{file} is the state of a training, but its settings are damaged")
    if stage > len(stages) or step > (0 if stage == len(stages) else stages[stage]):
        raise CheckpointError(
            f"{file} is damaged: {step} steps of stage {stage} cannot be done, "
            f"the stages' steps are {shown(stages)}"
        )
    return State(settings, stage, step)


def check_settings(state: State, settings: dict[str, Any], file: Path) -> None:
    """Raises `ArgumentError` if the state, read from `file`, is of a training with others."""
    its_own = ", ".join(
        f"{name} {shown(state.settings[name]) if name in state.settings else 'unknown'}"
        for name in state.settings | settings
        if name not in state.settings
        or name not in settings
        or not _are_same(state.settings[name], settings[name])
    )
    if its_own:
        raise ArgumentError(
            f"{file.parent} holds a run with other settings ({its_own}); resume it with the same"
        )


def load_state(
    file: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizers: Iterable[Optimizer],
    state: State,
    fitted: Callable[[Tensor, Tensor], Tensor] = lambda stored, own: stored,
) -> None:
    """Gives parameters and optimizers back what `save_state` wrote, of which `state` was read.

    The optimizers are new ones of the same stage, as `make_optimizers` gives them. `fitted` makes
    of a stored tensor and one's own what the latter takes, such as its shard. Raises
    `CheckpointError` if the file does not hold exactly what is wanted; then nothing was taken.
    """
    wanted = state_tensors(parameters, optimizers if state.step else ())
    with open_safetensors(file) as opened:
        unknown = set(opened.keys()) - set(wanted)
        if unknown:
            raise CheckpointError(
                f"{file} does not fit what is trained: {shown(min(unknown))} is not known"
            )
        _check_fit(file, opened, wanted)
        counts = [name for name in wanted if name.startswith(f"{COUNT}/")]
        _check_counts(file, [opened.get_tensor(name).item() for name in counts], state.step)
        _take(opened, wanted, fitted)


def take_weights(file: Path, parameters: Mapping[str, nn.Parameter]) -> None:
    """Gives these parameters, some of those that were trained, the weights of a state.

    Raises `CheckpointError` if one is missing, of another shape or number format; then none was
    taken.
    """
    wanted = state_tensors(parameters, ())
    with open_safetensors(file) as opened:
        _check_fit(file, opened, wanted)
        _take(opened, wanted)


def state_tensors(
    parameters: Mapping[str, nn.Parameter], optimizers: Iterable[Optimizer]
) -> dict[str, Tensor]:
    """Weights and moments by their names in the file, not copied."""
    tensors = {f"{WEIGHT}/{name}": one.detach() for name, one in parameters.items()}
    for optimizer in optimizers:
        for name, parameter in parameters.items():
            for moment, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{moment}/{name}"] = value
    return tensors


def _check_fit(file: Path, opened: safe_open, wanted: Mapping[str, Tensor]) -> None:
    present = set(opened.keys())
    for name, one in wanted.items():
        if name not in present:
            raise CheckpointError(f"{file} does not fit what is trained: {name} is missing")
        part = opened.get_slice(name)
        found = (tuple(part.get_shape()), part.get_dtype())
        right = (tuple(one.shape), STORED[one.dtype])
        if found != right:
            raise CheckpointError(
                f"{file} does not fit what is trained: {name} has shape "
                f"{shown(found[0])} and is {found[1]}, wanted {right[0]} and {right[1]}"
            )


def _check_counts(file: Path, counts: list[float], step: int) -> None:
    """A parameter without a gradient misses a step, but not all of them do."""
    if counts and not (all(0 <= one <= step for one in counts) and max(counts) == step):
        raise CheckpointError(
            f"{file} is damaged: it says that {step} steps of its stage are done, but "
            f"its optimizer counted {shown(max(counts))}"
        )


def _take(
    opened: safe_open,
    wanted: Mapping[str, Tensor],
    fitted: Callable[[Tensor, Tensor], Tensor] = lambda stored, own: stored,
) -> None:
    for name, one in wanted.items():
        one.copy_(fitted(opened.get_tensor(name), one))


def _count(text: str) -> int:
    """A whole number of at most nine digits and nothing else. Raises `ValueError`."""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError(f"{text!r} is no such number")
    return int(text)


def _are_same(one: Any, other: Any) -> bool:
    """Whether two values of JSON are equal and of one type: 1 is not True."""
    try:
        return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    except RecursionError:  # nested without end
        return False
