"""Quantized weights for the decoder: decode is bound by memory, and reads fewer bytes.

Where the model's own weights stay mapped from their file, quantized ones serve products of few
rows alone. A product of many rows (prefill) is bound by arithmetic: it is faster, and exact, with
the weights as they are, whose pages the system takes back when memory gets short. Elsewhere the
quantized weights replace them.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..checkpoint.files import Headers
from ..checkpoint.hub import own_cache
from ..model.network import FlashVLModel
from ..terminal import end_progress, show_progress
from .cpu import FEW_ROWS, has_bfloat16_arithmetic
from .int4 import (
    GROUP,
    Int4Linear,
    PackedInt4Linear,
    fits_int4,
    has_int4_product,
    pack,
    to_int4,
)
from .int8 import Int8Linear, PackedInt8Linear, has_fbgemm

QuantizedLinear = Int4Linear | PackedInt4Linear | Int8Linear | PackedInt8Linear
# Name of a linear map -> what `PackedInt4Linear` holds of it.
Packed = dict[str, tuple[Tensor, Tensor]]


class FewRowsQuantized(nn.Module):
    """A quantized map for few rows, and another for many. (..., D) -> (..., width)."""

    def __init__(self, few: QuantizedLinear, many: nn.Linear | Int4Linear) -> None:
        super().__init__()
        self.few, self.many = few, many

    def forward(self, x: Tensor) -> Tensor:
        return self.few(x) if x.shape[:-1].numel() <= FEW_ROWS else self.many(x)


def quantize_decoder(model: FlashVLModel, form: str, mapped: Headers | None = None) -> None:
    """Replaces, in place, every linear map of a model's decoder and its head by a quantized one.

    `form` is one of `QUANTIZATIONS`. With "int4" the head, and maps whose widths do not fit, become
    int8. `mapped`: the weights are mapped from the files of these headers; they stay for many
    rows, and what int4 makes of them is kept in the user's cache folder for the next time.
    """
    decoder = model.decoder
    on_cpu = decoder.embedding.weight.device.type == "cpu"
    linears = {name: one for name, one in decoder.named_modules() if type(one) is nn.Linear}
    of_int4 = {
        name: one
        for name, one in linears.items()
        if form == "int4" and name != "head" and fits_int4(one)
    }
    packs = on_cpu and has_int4_product()
    kept = _kept_file(mapped) if of_int4 and packs and mapped is not None else None
    packed = {} if kept is None else _read(kept, of_int4)
    is_new = not packed
    for number, (name, linear) in enumerate(linears.items()):
        show_progress(f"{form}: {number} of {len(linears)} weights", number / len(linears))
        few: QuantizedLinear
        many: nn.Linear | Int4Linear | None = None if mapped is None else linear
        if name not in of_int4:
            few = (PackedInt8Linear if on_cpu and has_fbgemm() else Int8Linear)(linear)
        elif not packs:
            few = Int4Linear(to_int4(linear.weight.detach()), linear.bias)
        else:
            if is_new:
                four_bits = to_int4(linear.weight.detach())
                packed[name] = pack(four_bits)
                if mapped is None:  # torch's kernel is slow with many rows
                    many = Int4Linear(four_bits, linear.bias)
            numbers, scales_and_zeros = packed[name]
            few = PackedInt4Linear(numbers, _typed(scales_and_zeros, linear), linear.bias)
        decoder.set_submodule(name, few if many is None else FewRowsQuantized(few, many))
    end_progress()
    if kept is not None and is_new:
        _keep(kept, packed)


def is_quantized(model: FlashVLModel) -> bool:
    return any(isinstance(module, QuantizedLinear) for module in model.modules())


def is_packed(model: FlashVLModel) -> bool:
    """Whether there are weights in an order of the CPU's own, which cannot be compiled."""
    packed = PackedInt4Linear | PackedInt8Linear
    return any(isinstance(module, packed) for module in model.modules())


def _typed(scales_and_zeros: Tensor, linear: nn.Linear) -> Tensor:
    """In bfloat16 where products are: the kernel multiplies in one dtype."""
    in_bfloat16 = linear.weight.dtype == torch.bfloat16 and has_bfloat16_arithmetic()
    return scales_and_zeros if in_bfloat16 else scales_and_zeros.float()


def _kept_file(mapped: Headers) -> Path:
    """Where the packed weights of these files are kept.

    The name changes with the files (no change of a file leaves its times as they were), and with
    the order in which torch packs for this processor.
    """
    files = {header.file.resolve() for header in mapped.values()}
    facts: list[object] = [torch.__version__, torch.backends.cpu.get_cpu_capability()]
    for file in sorted(files):
        stat = file.stat()
        facts.append([str(file), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino])
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return own_cache() / f"int4-{digest[:32]}.safetensors"


def _read(kept: Path, linears: dict[str, nn.Linear]) -> Packed:
    """What is kept of these maps; nothing unless all of it fits them.

    Copied, for a product reads memory of its own faster than pages mapped from a file.
    """
    packed: Packed = {}
    with suppress(OSError, SafetensorError, ValueError):
        with safe_open(kept, framework="pt") as tensors:
            for name in linears:
                numbers = tensors.get_tensor(f"{name}.packed").clone()
                packed[name] = numbers, tensors.get_tensor(f"{name}.scales").clone()
        if all(_fits(packed[name], linear) for name, linear in linears.items()):
            return packed
    return {}


def _fits(both: tuple[Tensor, Tensor], linear: nn.Linear) -> bool:
    width, depth = linear.weight.shape
    wanted = ((width, depth // 2), torch.uint8), ((depth // GROUP, width, 2), torch.bfloat16)
    return all((tuple(one.shape), one.dtype) == fact for one, fact in zip(both, wanted))


def _keep(kept: Path, packed: Packed) -> None:
    """Writes the file whole or not at all; without room for it the next load takes as long."""
    tensors: dict[str, Tensor] = {}
    for name, (numbers, scales) in packed.items():
        tensors |= {f"{name}.packed": numbers, f"{name}.scales": scales}
    with suppress(OSError, SafetensorError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent, prefix=f".{kept.stem}-") as beside:
            written = Path(beside, kept.name)
            save_file(tensors, written)
            os.replace(written, kept)
