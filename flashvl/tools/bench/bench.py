"""`flashvl bench`: how fast a model runs here, and how near that is to what the machine can do.

The ceilings are measured first (`ceilings.py`); then memory, in a process of its own (`memory.py`);
then each stage, held against its count of operations and bytes (`stages.py`); then, if asked for,
transformers and other ways of running the model, by turns with it (`peers.py`). The last line of
the report is all of it as JSON. With `--train` a step of training is measured instead
(`training.py`).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...chat import FlashVL
from ...checkpoint.files import STORED_DTYPES, read_headers
from ...checkpoint.hub import find_model
from ...checkpoint.published import read_config
from ...config import FlashVLConfig
from ...device import choose_device, device_failure_as_error
from ...errors import ArgumentError
from ...model.network import FlashVLModel
from ..new_file import check_new, write_new
from ..transformers_modules import import_transformers
from . import report
from .ceilings import Ceilings, measure_ceilings
from .measure import Timing, describe, take_turns
from .memory import measure_memory
from .peers import compare_batch, compare_compiled, compare_quantized, compare_with_transformers
from .random_checkpoint import kept_random_checkpoint
from .stages import Count, Sizes, Stages, count_stages, grid_of, input_shapes
from .training import as_text, compare_training, import_peft


def run(options: argparse.Namespace) -> None:
    """Prints the report as it comes, and writes the JSON. Raises a `FlashVLError`."""
    check(options)
    device = choose_device(options.device)
    if options.random is None:
        folder = find_model(options.model or "nano")
    else:
        folder = kept_random_checkpoint(options.random)
        print(f"random weights: {folder} (kept for the next time; it may be deleted)")
    config = read_config(folder, read_headers(folder))
    sizes = Sizes(options.tiles, options.prompt, options.new)
    check_sizes(sizes, config)
    with device_failure_as_error("measuring"):
        result = bench(folder, config, sizes, device, options)
    line = json.dumps(result)
    if options.json is not None:
        write_new(options.json, "--json", f"{line}\n".encode())
    print(f"\n{line}")


def check(options: argparse.Namespace) -> None:
    """Raises `ArgumentError`, or `FlashVLError` if transformers is not there, before any work."""
    for name in ("tiles", "prompt", "new", "runs"):
        if getattr(options, name) < 1:
            raise ArgumentError(f"--{name} must be at least 1, found {getattr(options, name)}")
    if options.batch is not None and options.batch < 2:
        raise ArgumentError(f"--batch must be at least 2, found {options.batch}")
    if options.json is not None:
        check_new(options.json, "--json")
    if options.peer is not None:
        import_transformers()
    if options.train:
        import_peft()


def check_sizes(sizes: Sizes, config: FlashVLConfig) -> None:
    """Raises `ArgumentError` for what this model never sees."""
    grid_of(sizes.tiles, config.tiler)
    if sizes.prompt + sizes.new > config.decoder.context:
        raise ArgumentError(
            f"a prompt of {sizes.prompt} tokens and {sizes.new} new ones are more than the model's "
            f"context of {config.decoder.context} tokens; take fewer"
        )


def bench(
    folder: Path,
    config: FlashVLConfig,
    sizes: Sizes,
    device: torch.device,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Measures and prints one part after the other -> all of them, as JSON can hold it."""
    result: dict[str, Any] = {
        "machine": describe(device),
        "model": options.model or (f"random {options.random}" if options.random else "nano"),
        "sizes": asdict(sizes),
    }

    def show(name: str, part: dict[str, Any], text: Callable[[dict[str, Any]], str]) -> None:
        result[name] = part
        print(f"\n{text(result)}", flush=True)

    def timed(name: str, stage: Callable[[], object]) -> Timing:
        return take_turns(name, {"flashvl": stage}, options.runs, device)["flashvl"]

    print(report.machine(result), flush=True)
    if options.train:
        training = compare_training(folder, sizes, options.runs, device)
        show("training", training, lambda whole: as_text(whole["training"]))
        return result
    patches = math.prod(input_shapes(config, sizes.tiles)[1][:2])
    ceilings = measure_ceilings(config, patches, sizes.prompt, device)
    show("ceilings", asdict(ceilings), report.ceilings)

    peaks = measure_memory(folder, sizes, device, options.dtype)
    load = partial(FlashVL.from_pretrained, folder, device, options.dtype)
    times = {"load": timed("load", load)}
    stages = Stages(load(), sizes)
    times |= {name: timed(name, stage) for name, stage in stages.by_name.items()}
    show("stages", entries(stages, folder, times, peaks, ceilings), report.stages)
    show("memory", memory_entry(stages, folder, peaks), report.memory)

    if options.peer is not None:
        peer = compare_with_transformers(stages, folder, options.runs)
        peaks = measure_memory(folder, sizes, device, options.dtype, peer=True)
        show("peer", peer | {"memory": memory_entry(stages, folder, peaks)}, report.peer)
    if options.quantize is not None:
        other = load(quantize=options.quantize)
        found = compare_quantized(stages, other, options.quantize, options.runs)
        show("quantized", found, report.quantized)
    if options.batch is not None:
        show("batch", compare_batch(stages, options.batch, options.runs), report.batch)
    if options.compile:
        compiled = load()
        compiled.compile()
        show("compiled", compare_compiled(stages, compiled, options.runs), report.compiled)
    return result


def entries(
    stages: Stages,
    folder: Path,
    times: dict[str, Timing],
    peaks: dict[str, int],
    ceilings: Ceilings,
) -> dict[str, Any]:
    """Stage -> its time, counts, rates, shares of the ceilings and peak; decode's for one token."""
    model, sizes = stages.flash.model, stages.sizes
    prompt, (width, height) = stages.preprocess(), stages.picture.size
    assert prompt.pixels is not None  # there is a picture
    seen = 3 * width * height + prompt.input_ids.nbytes + prompt.pixels.nbytes
    counts = {
        "load": Count(0, loaded_bytes(model, folder), 0, 0),
        "preprocess": Count(0, 0, 0, seen),
    } | count_stages(model.config, sizes, model.dtype, model.activation_dtype)
    one_row = ceilings.one_row["float32" if model.dtype == torch.float32 else "bfloat16"]
    result: dict[str, Any] = {}
    for name, count in counts.items():
        steps = sizes.steps(name)
        timing = times[name].per(steps)
        seconds, operations, moved = timing.median, count.operations / steps, count.bytes / steps
        entry = result[name] = timing.as_json() | {
            "operations": operations,
            "bytes": moved,
            "operations_per_second": operations / seconds,
            "bytes_per_second": moved / seconds,
            "peak_bytes": peaks[name] - peaks["before"],
        }
        if name == "decode":
            entry["share_of_read"] = moved / seconds / ceilings.read
            entry["share_of_one_row"] = moved / seconds / one_row
        elif operations:
            entry["share_of_products"] = operations / seconds / ceilings.best_product
    return result


def loaded_bytes(model: FlashVLModel, folder: Path) -> int:
    """What loading reads and writes: nothing of weights that stay as they are in a mapped file."""
    kept = {STORED_DTYPES[header.dtype] for header in read_headers(folder).values()}
    if model.device.type == "cpu" and kept == {model.dtype.itemsize}:
        return 0
    return stored_bytes(folder) + sum(weight.nbytes for weight in model.parameters())


def stored_bytes(folder: Path) -> int:
    """Of all tensors in a checkpoint's files."""
    headers = read_headers(folder).values()
    return sum(STORED_DTYPES[header.dtype] * math.prod(header.shape) for header in headers)


def memory_entry(stages: Stages, folder: Path, peaks: dict[str, int]) -> dict[str, Any]:
    """The highest peak above what the process had, also in relation to checkpoint and cache."""
    peak = max(peaks.values()) - peaks["before"]
    stored = stored_bytes(folder)
    return {
        "before_bytes": peaks["before"],
        "peak_bytes": peak,
        "checkpoint_bytes": stored,
        "cache_bytes": stages.cache_bytes,
        "ratio": peak / (stored + stages.cache_bytes),
    }
