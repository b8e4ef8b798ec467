"""Weights in shards over several devices (FSDP2), and the state of such a run.

Each device holds a part of every weight, gradient and moment, and gathers those of a layer while it
runs. Gradients are summed; what they are divided by is the loss's own affair.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed import checkpoint
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..checkpoint.load import assign
from ..errors import CheckpointError
from ..model.network import FlashVLModel
from ..reading import one_line
from .processes import Processes


def shard(model: FlashVLModel, together: Processes, mixed: bool) -> None:
    """Spreads a model over the devices of all processes; `mixed`: layers compute in bfloat16.

    From here on every pass must be one of `FlashVLModel.forward`, in all processes at once.
    """
    mesh = init_device_mesh(model.device.type, (together.count,))
    policy = (
        MixedPrecisionPolicy(torch.bfloat16, torch.float32) if mixed else MixedPrecisionPolicy()
    )
    if mixed:
        model.computes_in = torch.bfloat16
    for module in (*getattr(model.vision, "layers", ()), *model.decoder.layers, model):
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # the one kind of sum that gloo has


def whole_tensor(one: Tensor) -> Tensor:
    """A tensor on the CPU, from the shards of all processes if it is one of them."""
    one = one.detach()
    if isinstance(one, DTensor):
        one = one.full_tensor().clone()  # it may be the beginning of something longer
    return one.cpu()


def whole_model(model: FlashVLModel, together: Processes) -> FlashVLModel:
    """A model with all of its weights on the CPU of the first process; others have none."""
    with torch.device("meta"):
        whole = FlashVLModel(model.config)
    for name, one in model.named_parameters():
        tensor = whole_tensor(one)
        if together.rank == 0:
            assign(whole, name, tensor)
    if model.config.decoder.tied_head:
        whole.decoder.head.weight = whole.decoder.embedding.weight
    return whole


def as_shard(full: Tensor, like: Tensor) -> Tensor:
    """This process's shard of a tensor, if the other one is in shards."""
    if not isinstance(like, DTensor):
        return full
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements)


def save_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Each process writes its shards as safetensors files. Raises `CheckpointError`."""
    writer = checkpoint.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with _failure_as_error(folder, "cannot be written; a state that was saved before is kept"):
        checkpoint.save({**tensors}, storage_writer=writer)


def load_shards(folder: Path, tensors: Mapping[str, Tensor], together: Processes) -> None:
    """Takes over what any number of processes wrote. Raises `CheckpointError` if it is damaged."""
    reader = checkpoint.HuggingFaceStorageReader(str(folder))
    with _failure_as_error(folder, "is damaged"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one process reads alone is known
        checkpoint.load({**tensors}, storage_reader=reader, no_dist=together.count == 1)


@contextmanager
def _failure_as_error(folder: Path, what: str) -> Iterator[None]:
    try:
        yield
    except (Exception, CheckpointException) as error:  # whatever planner and storage raise
        raise CheckpointError(f"{folder} {what} ({one_line(error)[:80]})") from error
