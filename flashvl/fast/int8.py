"""int8 weights: half the bytes of bfloat16.

Weight-only, symmetric, one scale for each output channel: weight = int8 * scale, scale the
channel's largest weight / 127. What goes in and comes out keeps its dtype.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Activations are cut into two parts of -63 to 63. That is 7 bits: fbgemm adds products up in pairs
# of 16 bits, which 8 bits can overflow.
LEVELS = 63
CHANNELS = 1024  # that are quantized at a time


def has_fbgemm() -> bool:
    """Whether torch has its int8 kernels for x86 processors; without them it is plain torch."""
    # The private function alone takes weights that are int8 already.
    makes_quantized = hasattr(torch, "_make_per_channel_quantized_tensor")
    return makes_quantized and "fbgemm" in torch.backends.quantized.supported_engines


def to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(width, D) -> int8 (width, D) and float32 scales (width); a channel of zeros has scale 1."""
    quantized, scales = torch.empty_like(weight, dtype=torch.int8), []
    # By blocks that stay in the processor's cache, which is several times as fast.
    for block, place in zip(weight.split(CHANNELS), quantized.split(CHANNELS)):
        scale = block.abs().amax(dim=1).float() / 127  # (channels)
        scale = scale.clamp(min=torch.finfo(torch.float32).tiny)  # zeros; keeps what is not finite
        place.copy_((block / scale[:, None]).round())
        scales.append(scale)
    return quantized, torch.cat(scales)


class Int8Linear(nn.Module):
    """An int8 linear map in plain torch, which `torch.compile` makes one kernel.

    (..., D) -> (..., width) in the same dtype.
    """

    weight: Tensor  # (width, D) int8
    scale: Tensor  # (width) float32

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = to_int8(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        # Divided first: 127 times large activations would leave no room in float16.
        x = F.linear(x / 128, self.weight.to(x.dtype)) * (self.scale * 128)  # (..., width)
        return (x if self.bias is None else x + self.bias).to(dtype)


class PackedInt8Linear(nn.Module):
    """An int8 linear map by fbgemm, for x86. (..., D) -> (..., width) in the same dtype.

    fbgemm multiplies integers by integers. So that the activations lose next to nothing, each row
    is divided by its largest value and cut into a coarse part and, 126 times enlarged, the rest:
    two rows of 7 bits that stand for one of 14. The weight is read once for both.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = to_int8(linear.weight.detach())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*quantized tensor creation.*")
            quantized = torch._make_per_channel_quantized_tensor(
                weight, scale.double(), torch.zeros(len(scale), dtype=torch.long), 0
            )
        self.packed = torch.ops.quantized.linear_prepack(quantized, None)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2).float()  # (rows, D)
        unit = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / LEVELS  # (rows, 1)
        rows = rows / unit
        coarse = rows.round()
        parts = torch.cat((coarse, (rows - coarse) * (2 * LEVELS)))  # (2 * rows, D)
        product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            parts, 1.0, LEVELS + 1, self.packed
        )  # (2 * rows, width)
        coarse, rest = product.chunk(2)  # 2 x (rows, width)
        product = coarse.add(rest, alpha=1 / (2 * LEVELS)) * unit  # (rows, width)
        product = product.unflatten(0, x.shape[:-1]).to(x.dtype)  # (..., width)
        return product if self.bias is None else product + self.bias.to(x.dtype)
