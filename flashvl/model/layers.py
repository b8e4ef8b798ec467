"""Two small layers that the AIMv2 tower and the Qwen2 decoder share; how layers are replaced."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root mean square norm: in float32, cast back, then times its weight.

    (..., D) -> (..., D). Source: the published AIMv2 and Qwen2 code.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normed = F.rms_norm(x.float(), x.shape[-1:], eps=self.eps)
        return normed.to(x.dtype) * self.weight


class SwiGLU(nn.Module):
    """The gated MLP `down(silu(gate x) * up x)`, without bias. (..., D) -> (..., D)."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden_width, bias=False)
        self.up = nn.Linear(width, hidden_width, bias=False)
        self.down = nn.Linear(hidden_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def replace_linears(whole: nn.Module, build: Callable[[nn.Linear], nn.Module]) -> None:
    """Puts `build(linear)` in the place of every `nn.Linear` of a module."""
    for module in list(whole.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, build(child))
