"""int4 weights: a quarter of bfloat16's bytes, and a scale and a zero for each group of 64.

weight = (number - 8) * scale + zero, with numbers from 0 to 15 along a row. Rounding to the nearest
of 16 evenly spaced values between a group's smallest and largest weight leaves a ninth more
squared error than is needed: here scale and zero are then fitted to the numbers by least squares,
the numbers are rounded anew, and so on, as k-means does with free centers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUP = 64  # weights of a row that share a scale and a zero
ROUNDS = 3  # of fitting; further ones bring next to nothing
LEVELS = 15
ROWS = 512  # that are quantized at a time: they stay in the processor's cache
# Torch's kernel takes channels by sixteens.
CHANNELS = 16


class Int4(NamedTuple):
    """A weight (width, D) in four bits.

    numbers (width, D) uint8, 0 to 15; scales and zeros (width, D / GROUP) bfloat16.
    """

    numbers: Tensor
    scales: Tensor
    zeros: Tensor


def fits_int4(linear: nn.Linear) -> bool:
    """Whether a linear map can be cut into groups, and into what the kernels take."""
    return linear.in_features % GROUP == 0 and linear.out_features % CHANNELS == 0


def has_int4_product() -> bool:
    """Whether torch has its int4 kernel for CPUs; without it the product is plain torch."""
    return hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu")


def to_int4(weight: Tensor) -> Int4:
    """A weight (width, D) of any floating dtype in four bits; D is a multiple of `GROUP`."""
    parts = [_quantize(rows) for rows in weight.split(ROWS)]
    return Int4(*(torch.cat(same) for same in zip(*parts)))


def _quantize(weight: Tensor) -> Int4:
    values = weight.float().unflatten(1, (-1, GROUP))  # (rows, groups, GROUP)
    low, high = (edge[..., None] for edge in values.aminmax(dim=-1))  # (rows, groups, 1)
    tiny = torch.finfo(torch.float32).tiny  # for groups of one value
    scale = ((high - low) / LEVELS).clamp(min=tiny)
    for _ in range(ROUNDS):
        numbers = _round(values, low, scale)
        middle = numbers.mean(dim=-1, keepdim=True)
        apart = numbers - middle
        spread = apart.square().sum(dim=-1, keepdim=True)
        fitted = (apart * values).sum(dim=-1, keepdim=True) / spread.clamp(min=tiny)
        scale = torch.where(fitted > tiny, fitted, scale)
        low = values.mean(dim=-1, keepdim=True) - middle * scale
    # The kernels hold them in bfloat16, so the last rounding must know them as they will be.
    scale = scale.bfloat16()
    zero = (low + 8 * scale.float()).bfloat16()
    numbers = _round(values, zero.float() - 8 * scale.float(), scale.float())
    return Int4(numbers.to(torch.uint8).flatten(1), scale[..., 0], zero[..., 0])


def _round(values: Tensor, low: Tensor, scale: Tensor) -> Tensor:
    return ((values - low) / scale).round_().clamp_(0, LEVELS)


def widened(weight: Int4) -> Tensor:
    """The float32 weight (width, D) that four bits stand for."""
    numbers = weight.numbers.float().unflatten(1, (-1, GROUP))  # (width, groups, GROUP)
    groups = (numbers - 8) * weight.scales.float()[..., None] + weight.zeros.float()[..., None]
    return groups.flatten(1)  # (width, D)


class Int4Linear(nn.Module):
    """An int4 linear map in plain torch, two numbers in a byte. (..., D) -> (..., width)."""

    packed: Tensor  # (width, D / 2) uint8: of each pair of numbers the first in the low bits
    scales: Tensor  # (width, D / GROUP)
    zeros: Tensor  # (width, D / GROUP)

    def __init__(self, weight: Int4, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.register_buffer("packed", weight.numbers[:, ::2] | weight.numbers[:, 1::2] << 4)
        self.register_buffer("scales", weight.scales)
        self.register_buffer("zeros", weight.zeros)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        numbers = torch.stack((self.packed & 15, self.packed >> 4), dim=-1).flatten(1)  # (width, D)
        weight = widened(Int4(numbers, self.scales, self.zeros))  # (width, D)
        return F.linear(x, weight.to(x.dtype), self.bias)


class PackedInt4Linear(nn.Module):
    """An int4 linear map by torch's kernel for CPUs. (..., D) -> (..., width) in the same dtype.

    `packed` (width, D / 2) uint8 is in the order that the kernel of this processor wants;
    `scales_and_zeros` (D / GROUP, width, 2) are of the dtype in which it multiplies.
    """

    packed: Tensor
    scales_and_zeros: Tensor

    def __init__(self, packed: Tensor, scales_and_zeros: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.register_buffer("packed", packed)
        self.register_buffer("scales_and_zeros", scales_and_zeros)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2).to(self.scales_and_zeros.dtype)  # (rows, D)
        product = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows, self.packed, GROUP, self.scales_and_zeros
        )  # (rows, width)
        product = product.unflatten(0, x.shape[:-1]).to(x.dtype)  # (..., width)
        return product if self.bias is None else product + self.bias.to(x.dtype)


def pack(weight: Int4) -> tuple[Tensor, Tensor]:
    """What `PackedInt4Linear` holds: the numbers, and scales and zeros in bfloat16."""
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(weight.numbers.int(), 1)
    both = torch.stack((weight.scales, weight.zeros), dim=-1)  # (width, D / GROUP, 2)
    return packed, both.transpose(0, 1).contiguous()
