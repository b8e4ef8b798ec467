"""What `flashvl trace` sees of a run: hooks on the modules, and an ear for matrix products."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..cpu import WideningEmbedding

Shapes = list[list[int]]


@dataclass
class Row:
    """One stage or module, all its calls together; depth 1 is a stage.

    Shapes are those of the first call. `weights` are the parameters read, id -> how many numbers,
    each once; `bytes` the weights read in every call plus what went in and came out.
    """

    name: str
    depth: int
    shapes_in: Shapes
    shapes_out: Shapes = field(default_factory=list)
    calls: int = 0
    weights: dict[int, int] = field(default_factory=dict)
    bytes: int = 0
    operations: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Weight:
    """A parameter of a module's own: its id, how many numbers it has, and their bytes."""

    id: int
    count: int
    bytes: int


class Recorder(TorchFunctionMode):
    """While it is entered, every stage and every module down to `depth` becomes a `Row`.

    The tower, the compressor and the decoder are stages and get no second row as modules. A
    module's row lies under the module that called it, so a list of modules is no level.
    """

    def __init__(self, model: nn.Module, depth: int) -> None:
        super().__init__()
        self.model = model
        self.depth = depth
        self.rows: dict[tuple[str, str], Row] = {}  # by stage and name
        self.open: list[tuple[Row, float]] = []  # the rows that run now, and since when
        self.level = 0  # how deep the calls are, rows or not
        self.stage_name, self.stage_module = "", None
        self.hooks = ExitStack()

    def __enter__(self) -> Recorder:
        for name, module in self.model.named_modules():
            weights = [
                Weight(id(parameter), parameter.numel(), parameter.nbytes)
                for parameter in module.parameters(recurse=False)
            ]
            before = partial(self._before, name, weights)
            self.hooks.enter_context(module.register_forward_pre_hook(before))
            self.hooks.enter_context(module.register_forward_hook(partial(self._after, name)))
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.hooks.close()

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        """Every function of torch passes here, once, before it is carried out."""
        operations = count_operations(func, args)
        if operations:
            for row, _ in self.open:
                row.operations += operations
        return func(*args, **(kwargs or {}))

    def stage(self, name: str, function: Callable, *inputs: Tensor | np.ndarray, **more: Any):
        """Runs `function(*inputs, **more)` as a stage -> its output."""
        self.stage_name = name
        self.stage_module = function if isinstance(function, nn.Module) else None
        self._open(name, inputs)
        output = function(*inputs, **more)
        self._close(output if isinstance(output, tuple) else (output,))
        return output

    def _before(
        self, name: str, weights: list[Weight], module: nn.Module, inputs: tuple[Tensor, ...]
    ) -> None:
        if not self._is_stage(name, module):
            self._open(name, inputs[:1])
        # Of an embedding the rows of the ids alone are read.
        is_lookup = isinstance(module, nn.Embedding | WideningEmbedding)
        for row, _ in self.open:
            for weight in weights:
                row.weights[weight.id] = weight.count
                share = inputs[0].numel() / len(module.weight) if is_lookup else 1
                row.bytes += round(weight.bytes * share)

    def _after(
        self, name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> None:
        if not self._is_stage(name, module):
            self._close((output,))

    def _is_stage(self, name: str, module: nn.Module) -> bool:
        return "." not in name or module is self.stage_module

    def _open(self, name: str, inputs: tuple[Tensor | np.ndarray, ...]) -> None:
        self.level += 1
        if self.level > self.depth:
            return
        key = (self.stage_name, name)
        if key not in self.rows:
            self.rows[key] = Row(name, self.level, _shapes(inputs))
        row = self.rows[key]
        row.calls += 1
        row.bytes += _bytes(inputs)
        self.open.append((row, self._now()))

    def _close(self, outputs: tuple[Tensor, ...]) -> None:
        self.level -= 1
        if self.level >= self.depth:
            return
        row, start = self.open.pop()
        row.seconds += self._now() - start
        row.shapes_out = row.shapes_out or _shapes(outputs)
        row.bytes += _bytes(outputs)

    def _now(self) -> float:
        if self.model.device.type not in ("cpu", "meta"):
            torch.accelerator.synchronize()  # else only the asking is timed
        return time.perf_counter()


def count_operations(func: Callable, args: tuple[Any, ...]) -> int:
    """Operations of one function of torch; a multiply-add counts as 2.

    Counted are linear maps (the patch embedding and the head are such) and both products of
    attention, QK^T and attention x V, over all pairs of tokens even where attention is causal.
    Norms, activations, RoPE, softmax and sums count as 0.
    """
    if func is F.linear or func is torch.ops.mkldnn._linear_pointwise:
        x, weight = args[:2]  # (..., width in), (width out, width in)
        return 2 * x.numel() * weight.shape[0]
    if func is F.scaled_dot_product_attention:
        q, k, v = args[:3]  # (B, H, T, head width), 2 x (B, K, seen + T, head width)
        pairs = q.shape[:-1].numel() * k.shape[-2]
        return 2 * pairs * (q.shape[-1] + v.shape[-1])
    return 0


def _shapes(tensors: tuple[Tensor | np.ndarray, ...]) -> Shapes:
    return [list(tensor.shape) for tensor in tensors]


def _bytes(tensors: tuple[Tensor | np.ndarray, ...]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
