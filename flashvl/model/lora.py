"""LoRA: a matrix of low rank that is learned beside one that stays as it is.

Source: arXiv 2106.09685; the first values are those of its published code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArgumentError
from .network import FlashVLModel


class LoRA(nn.Module):
    """base(x) + alpha / rank * B(A(x)). (..., D) -> (..., width).

    `base` is any linear map, of int8 or bfloat16 weights too. `a` (rank, D) and `b` (width, rank)
    are float32 and multiplied in the dtype of x.
    """

    def __init__(self, base: nn.Module, a: Tensor, b: Tensor, alpha: float) -> None:
        super().__init__()
        self.base, self.alpha = base, alpha
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(x, self.a.to(x.dtype))  # (..., rank)
        return self.base(x) + F.linear(low, self.b.to(x.dtype)) * self.scale  # (..., width)

    @property
    def scale(self) -> float:
        return self.alpha / len(self.a)


def adaptable(model: FlashVLModel) -> dict[str, nn.Linear]:
    """The linear maps that a LoRA can stand beside, by name; a tied head is none of them."""
    tied = model.decoder.embedding.weight
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and module.weight is not tied
    }


def loras(model: FlashVLModel) -> Iterator[tuple[str, LoRA]]:
    """Those that a model has, by the name of the map that each stands beside."""
    for name, module in model.named_modules():
        if isinstance(module, LoRA):
            yield name, module


def put_beside(model: FlashVLModel, name: str, a: Tensor, b: Tensor, alpha: float) -> None:
    """Puts a LoRA beside the map of this name: a (rank, D), b (width, rank), both float32."""
    model.set_submodule(name, LoRA(model.get_submodule(name), a, b, alpha))


def add_loras(model: FlashVLModel, names: list[str], rank: int, alpha: float) -> None:
    """Puts new ones, which change nothing yet, beside maps of `adaptable`; no others learn.

    The random numbers are torch's, drawn on the CPU.
    """
    model.requires_grad_(False)
    maps = adaptable(model)
    for name in names:
        width, inputs = maps[name].weight.shape
        a = nn.init.kaiming_uniform_(torch.empty(rank, inputs), a=math.sqrt(5))  # (rank, D)
        put_beside(
            model, name, a.to(model.device), a.new_zeros(width, rank, device=model.device), alpha
        )


@torch.no_grad()
def merge_loras(model: FlashVLModel) -> None:
    """Adds each LoRA into the weight that it stands beside, in float32, and removes it.

    Raises `ArgumentError` for quantized weights, into which nothing can be added.
    """
    found = list(loras(model))
    if not all(isinstance(getattr(one.base, "weight", None), nn.Parameter) for _, one in found):
        raise ArgumentError(
            "an adapter is not merged into quantized weights; load without quantize"
        )
    for name, one in found:
        weight = one.base.weight
        assert isinstance(weight, nn.Parameter)
        merged = weight.float() + one.scale * (one.b @ one.a)  # (width, D)
        one.base.weight = nn.Parameter(merged.to(weight.dtype))
        model.set_submodule(name, one.base)
