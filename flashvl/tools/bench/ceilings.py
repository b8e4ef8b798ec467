"""The machine's ceilings at a model's shapes: how fast it reads, and how fast it multiplies.

- read: one number out of 1 GiB of memory (its largest, or its sum), the faster of the two.
- one-row products: a row through the matrices of the decoder's layers one after the other, as
  decode takes them, each matrix once. There are as many layers as fill 1 GiB in bfloat16, so that
  no cache holds them, or all that a smaller decoder has. In bfloat16 they are of the kind that a
  loaded model has on this device.
- wide products: both kinds of matrix of an MLP, up and down, with the tower's and prefill's rows;
  in float32 on a CPU by torch's BLAS or by oneDNN, the faster of the two.

The fastest of several runs counts: whatever disturbs a run only slows it down.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...chat import HAS_FAST_PATHS
from ...config import DecoderConfig, FlashVLConfig
from ...terminal import end_progress, show_progress
from .measure import best_of

READ_BYTES = 2**30
MEASURED = ("float32", "bfloat16")


@dataclass(frozen=True)
class Ceilings:
    """`read` and `one_row` (by dtype) in bytes a second, `products` in operations a second.

    `products` by part, "vision" and "prefill", and by dtype.
    """

    read: float
    one_row: dict[str, float]
    products: dict[str, dict[str, float]]

    @property
    def best_product(self) -> float:
        return max(rate for rates in self.products.values() for rate in rates.values())


@torch.inference_mode()
def measure_ceilings(
    config: FlashVLConfig, patches: int, prompt: int, device: torch.device
) -> Ceilings:
    """`patches`: rows of the tower's products; `prompt`: rows of prefill's."""
    vision, decoder = config.vision, config.decoder
    parts = {
        "vision": (patches, vision.width, vision.mlp_width),
        "prefill": (prompt, decoder.width, decoder.mlp_width),
    }
    show_progress("ceilings: reading memory", 0)
    read = read_rate(device)
    one_row: dict[str, float] = {}
    products: dict[str, dict[str, float]] = {part: {} for part in parts}
    for done, name in enumerate(MEASURED):
        dtype = getattr(torch, name)
        show_progress(f"ceilings: products of one row in {name}", 0.1 + done / 2)
        one_row[name] = one_row_rate(decoder, dtype, device)
        for part, shape in parts.items():
            show_progress(f"ceilings: products of {part} in {name}", 0.3 + done / 2)
            products[part][name] = product_rate(*shape, dtype, device)
    end_progress()
    return Ceilings(read, one_row, products)


def read_rate(device: torch.device) -> float:
    """Bytes a second out of memory."""
    numbers = torch.ones(READ_BYTES // 4, device=device)
    integers = numbers.view(torch.int64)  # unlike floats they may be added in any order
    seconds = min(best_of(numbers.amax, device), best_of(integers.sum, device))
    return numbers.nbytes / seconds


def one_row_rate(config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> float:
    """Bytes of weights a second in products of one row."""
    shapes = layer_shapes(config)
    layer_bytes = 2 * sum(math.prod(shape) for shape in shapes)
    layers = min(config.layers, math.ceil(READ_BYTES / layer_bytes))
    matrices = nn.ModuleList(new_linear(shape, dtype, device) for shape in shapes * layers)
    size = sum(weight.nbytes for weight in matrices.parameters())
    if HAS_FAST_PATHS and device.type == "cpu" and dtype == torch.bfloat16:
        from ...fast.cpu import fit_to_cpu

        fit_to_cpu(matrices)
    rows = {width: torch.ones(1, width, device=device, dtype=dtype) for _, width in shapes}
    inputs = [rows[width] for _, width in shapes * layers]  # each (1, width)

    def multiply() -> None:
        for matrix, row in zip(matrices, inputs):
            matrix(row)

    return size / best_of(multiply, device)


def layer_shapes(config: DecoderConfig) -> list[tuple[int, int]]:
    """(rows, columns) of every matrix of one decoder layer, in the order of their use."""
    queries = config.heads * config.head_width
    keys = config.key_value_heads * config.head_width
    width, mlp_width = config.width, config.mlp_width
    attention = [(queries, width), (keys, width), (keys, width), (width, queries)]
    return [*attention, (mlp_width, width), (mlp_width, width), (width, mlp_width)]


def new_linear(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> nn.Linear:
    """A matrix of (rows, columns) without the random numbers, which would take their time."""
    rows, columns = shape
    linear = nn.utils.skip_init(nn.Linear, columns, rows, bias=False, dtype=dtype, device=device)
    nn.init.constant_(linear.weight, 0.01)
    return linear


def product_rate(
    rows: int, width: int, mlp_width: int, dtype: torch.dtype, device: torch.device
) -> float:
    """Operations a second in the products of an MLP; a multiply-add counts as 2."""
    x = torch.randn(rows, width, device=device).to(dtype)  # (rows, D)
    hidden = torch.randn(rows, mlp_width, device=device).to(dtype)  # (rows, MLP width)
    up = torch.randn(mlp_width, width, device=device).to(dtype)  # (MLP width, D)
    down = torch.randn(width, mlp_width, device=device).to(dtype)  # (D, MLP width)
    kernels: list[Callable[[Tensor, Tensor], Tensor]] = [F.linear]
    if HAS_FAST_PATHS and device.type == "cpu" and dtype == torch.float32:
        from ...fast.cpu import wide_product

        kernels.append(partial(wide_product, bias=None))

    def multiply(kernel: Callable[[Tensor, Tensor], Tensor]) -> None:
        kernel(x, up)  # (rows, MLP width)
        kernel(hidden, down)  # (rows, D)

    seconds = min(best_of(partial(multiply, kernel), device) for kernel in kernels)
    return 2 * 2 * rows * width * mlp_width / seconds
