"""The fast path of a CPU: the weights stay in bfloat16 as stored, mapped from the file.

A product of one row (decode) reads its weight once and is bound by memory: it is taken straight
from the bfloat16 weight, half as many bytes as float32 has. A product of many rows (tower, prefill)
is bound by arithmetic. Where the CPU has bfloat16 arithmetic it is used; elsewhere that is many
times slower than float32, so activations are float32 and a weight is widened on its way into the
product, a block at a time. For inference: a widened weight gets no gradient.
"""

from __future__ import annotations

import math
import platform

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint.files import Headers
from ..model.layers import replace_linears
from ..model.patches import PatchEmbedding

# So few rows cost less in emulated bfloat16 arithmetic than widening the weight does.
FEW_ROWS = 4
# Weights of fewer bytes lie in the processor's own cache; as float32 they are as fast and exact.
WORTHWHILE_BYTES = 2**26
BLOCK = 2**22  # numbers of a weight that are widened at a time
# oneDNN's float32 product by name: torch's own choice is its BLAS, which is slower on many
# processors. Without it `F.linear` does the same.
HAS_ONEDNN_PRODUCT = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, "_linear_pointwise"
)


def stays_in_bfloat16(headers: Headers) -> bool:
    """Whether a checkpoint is all bfloat16, and large enough for `fit_to_cpu` to be worth it."""
    numbers = sum(math.prod(header.shape) for header in headers.values())
    return 2 * numbers > WORTHWHILE_BYTES and all(
        header.dtype == "BF16" for header in headers.values()
    )


def fit_to_cpu(whole: nn.Module, arithmetic: bool | None = None) -> None:
    """Gives bfloat16 weights, in place, the products that suit the CPU.

    `whole` is a network or a part of one. `arithmetic`: whether the CPU multiplies bfloat16 in its
    own instructions; None looks.
    """
    if has_bfloat16_arithmetic() if arithmetic is None else arithmetic:
        replace_linears(whole, OneRowLinear)
        return
    replace_linears(whole, WideningLinear)
    for module in list(whole.modules()):
        if isinstance(module, nn.LayerNorm | PatchEmbedding):
            module.float()  # small, and they take float32 alone or one dtype with their input
        for name, child in module.named_children():
            if isinstance(child, nn.Embedding):
                setattr(module, name, WideningEmbedding(child))


def is_widened(whole: nn.Module) -> bool:
    """Whether `fit_to_cpu` has made some of the bfloat16 parameters float32."""
    return any(isinstance(module, WideningEmbedding) for module in whole.modules())


def has_bfloat16_arithmetic() -> bool:
    """Whether matrix products of bfloat16 run in the CPU's own instructions."""
    # Nothing public tells. Where a torch has these no more, products are of float32: slower, right.
    try:
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        if platform.machine() not in ("x86_64", "AMD64"):
            return True
        # oneDNN supports it by AVX-512 alone too, where it is emulated.
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    except AttributeError:
        return False


class OneRowLinear(nn.Module):
    """`nn.Linear` in bfloat16 with a product of its own for one row. (..., D) -> (..., width)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[:-1].numel() > 1:
            return F.linear(x, self.weight, self.bias)
        x = narrow_product(x, self.weight)  # with the bias in it torch takes a slower way
        return x if self.bias is None else x + self.bias


class WideningLinear(nn.Module):
    """A bfloat16 weight for activations in float32. (..., D) -> (..., width), both float32."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        if x.shape[:-1].numel() > FEW_ROWS:
            return wide_product(x, self.weight, bias)
        x = narrow_product(x.to(self.weight.dtype), self.weight).float()  # (..., width)
        return x if bias is None else x + bias


class WideningEmbedding(nn.Module):
    """A bfloat16 weight for activations in float32. Ids (...) -> (..., D) float32."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.weight = embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight).float()  # (..., D)


def narrow_product(x: Tensor, weight: Tensor) -> Tensor:
    """A product of few rows in bfloat16. (..., D) -> (..., width).

    One row is multiplied as a vector: `torch.mv` reads the weight faster than `F.linear` does.
    """
    if x.shape[:-1].numel() != 1 or torch.compiler.is_compiling():
        return F.linear(x, weight)
    return torch.mv(weight, x.flatten()).view(*x.shape[:-1], -1)


def wide_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` in float32 with a weight of any dtype, widened by blocks that a cache can hold.

    By oneDNN where it is: on many processors faster than torch's BLAS. (..., D) -> (..., width).
    """
    blocks = weight.split(max(1, BLOCK // weight.shape[1]))
    parts = [float32_product(x, block.float()) for block in blocks]  # each (..., block's width)
    product = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]  # (..., width)
    return product if bias is None else product + bias


def float32_product(x: Tensor, weight: Tensor) -> Tensor:
    if HAS_ONEDNN_PRODUCT:
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return F.linear(x, weight)
