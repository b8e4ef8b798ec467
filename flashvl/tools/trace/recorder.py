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
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...model.network import FlashVLModel

Shapes = list[list[int]]
Values = tuple[Tensor | np.ndarray, ...]

# Names of rows that are not the module's own; "" is the network. None: there is no row, and the
# modules that it calls lie under the row around it. In the first pass, the prompt's, the network's
# parts are the stages; a later one reads one token and is a stage itself.
IN_FIRST_PASS = {
    "": None,
    "decoder.embedding": "embed",
    "decoder": "prefill",
    "decoder.head": "head",
}
IN_LATER_PASS = {"": "decode", "decoder": None}


@dataclass
class TracedPart:
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
    """A parameter of a module's own: its id, how many numbers it has, their bytes, its rows."""

    id: int
    count: int
    bytes: int
    rows: int

    @classmethod
    def of(cls, parameter: nn.Parameter) -> Weight:
        rows = len(parameter) if parameter.dim() else 1
        return cls(id(parameter), parameter.numel(), parameter.nbytes, rows)


class Recorder(TorchFunctionMode):
    """While it is entered, every stage and every module down to `depth` becomes a `TracedPart`.

    It watches the passes of one run of a network, the prompt's first. A module's row lies under
    the module that called it, so a list of modules is no level.
    """

    def __init__(self, model: FlashVLModel, depth: int) -> None:
        super().__init__()
        self.model = model
        self.depth = depth
        self.passes = 0  # of the network that have begun
        self.rows: dict[tuple[str, str], TracedPart] = {}  # by stage and name
        self.stage = ""  # the one that runs, or ran last
        self.running: list[tuple[TracedPart, float]] = []  # the rows that run, and since when
        self.level = 0  # how deep the calls are, rows or not
        self.hooks = ExitStack()

    def __enter__(self) -> Recorder:
        for name, module in self.model.named_modules():
            weights = [Weight.of(parameter) for parameter in module.parameters(recurse=False)]
            before = partial(self._before, name, weights)
            self.hooks.enter_context(module.register_forward_pre_hook(before))
            self.hooks.enter_context(module.register_forward_hook(partial(self._after, name)))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.hooks.close()

    def __torch_function__(
        self,
        func: Callable,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Every function of torch passes here, once, before it is carried out."""
        operations = count_operations(func, args)
        if operations:
            for row, _ in self.running:
                row.operations += operations
        return func(*args, **(kwargs or {}))

    def stages(self) -> dict[str, TracedPart]:
        return {row.name: row for row in self.rows.values() if row.depth == 1}

    def begin(self, name: str, inputs: Values) -> None:
        """From here to `end` all that runs counts for the row `name`, as for those around it."""
        self.level += 1
        if self.level == 1:
            self.stage = name
        if self.level > self.depth:
            return
        key = (self.stage, name)
        if key not in self.rows:
            self.rows[key] = TracedPart(name, self.level, shapes(inputs))
        row = self.rows[key]
        row.calls += 1
        row.bytes += count_bytes(inputs)
        self.running.append((row, self._now()))

    def end(self, outputs: Values) -> None:
        """Ends what began last."""
        self.level -= 1
        if self.level >= self.depth:
            return
        row, start = self.running.pop()
        row.seconds += self._now() - start
        row.shapes_out = row.shapes_out or shapes(outputs)
        row.bytes += count_bytes(outputs)

    def _before(
        self, name: str, weights: list[Weight], module: nn.Module, inputs: tuple[Tensor, ...]
    ) -> None:
        if module is self.model:
            self.passes += 1
        if (row_name := self._row_name(name)) is not None:
            self.begin(row_name, inputs[:1])
        for weight in weights:
            # A module that takes ids and owns a weight looks them up: it reads a row for each.
            is_lookup = bool(inputs) and not inputs[0].is_floating_point()
            share = inputs[0].numel() / weight.rows if is_lookup else 1
            for row, _ in self.running:
                row.weights[weight.id] = weight.count
                row.bytes += round(weight.bytes * share)

    def _after(
        self, name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> None:
        if self._row_name(name) is not None:
            self.end((output,))

    def _row_name(self, name: str) -> str | None:
        names: dict[str, str | None] = IN_FIRST_PASS if self.passes == 1 else IN_LATER_PASS
        return names.get(name, name)

    def _now(self) -> float:
        if self.model.device.type not in ("cpu", "meta"):
            torch.accelerator.synchronize()  # else only the asking is timed
        return time.perf_counter()


def count_operations(func: Callable, args: tuple[Any, ...]) -> int:
    """Operations of one function of torch, told by its name; a multiply-add counts as 2.

    Counted are linear maps (the patch embedding and the head are such) and both products of
    attention, QK^T and attention x V, over all pairs of tokens even where attention is causal.
    Norms, activations, RoPE, softmax and sums count as 0.
    """
    name = getattr(func, "__name__", "")
    if name in ("linear", "_linear_pointwise"):  # the second is oneDNN's
        x, weight = args[:2]  # (..., width in), (width out, width in)
        return 2 * x.numel() * weight.shape[0]
    if name == "mv":  # a linear map of one row
        return 2 * args[0].numel()  # (width out, width in)
    if name == "scaled_dot_product_attention":
        q, k, v = args[:3]  # (B, H, T, head width), 2 x (B, K, seen + T, head width)
        pairs = q.shape[:-1].numel() * k.shape[-2]
        return 2 * pairs * (q.shape[-1] + v.shape[-1])
    return 0


def shapes(tensors: Values) -> Shapes:
    return [list(tensor.shape) for tensor in tensors]


def count_bytes(tensors: Values) -> int:
    return sum(tensor.nbytes for tensor in tensors)
