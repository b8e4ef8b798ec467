"""`flashvl bench`: how fast a model runs here, and how near that is to what the machine can do.

The ceilings are measured first (`bench_ceilings.py`); then memory, in a process of its own
(`bench_memory.py`); then each stage, held against its count of operations and bytes
(`bench_stages.py`); then, if asked for, transformers (`bench_peer.py`) and other ways of running
the model (`bench_modes.py`), turn about with it. The last line of the report is all of it as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import read_config, read_headers
from ..config import FlashVLConfig
from ..device import DTYPES, choose_device
from ..errors import ArgumentError, device_failure_as_error
from ..hub import find_model
from ..model import FlashVL
from ..quantising import WIDTHS
from . import bench_table
from .bench_ceilings import Ceilings, measure_ceilings
from .bench_device import describe
from .bench_memory import measure_memory
from .bench_modes import compare_compiled, compare_int8
from .bench_peer import compare_with_peer
from .bench_stages import STAGES, Count, Sizes, Stages, count_stages, input_shapes, picture_of
from .bench_timing import Timing, take_turns
from .new_file import check_new, write_new
from .random_checkpoint import NAMES, kept_random_checkpoint
from .transformers_modules import import_transformers
from .verify import BYTES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    # A default would hide from argparse that both were given.
    which.add_argument("--model", help='"nano", a folder, or a repository (default: nano)')
    which.add_argument(
        "--random",
        choices=list(NAMES),
        help="random weights of these sizes; written once to the user's cache folder",
    )
    parser.add_argument(
        "--tiles", type=int, default=1, metavar="N", help="of the picture (default: 1)"
    )
    parser.add_argument(
        "--prompt",
        type=int,
        default=600,
        metavar="N",
        help="tokens in all, the picture's included (default: 600)",
    )
    parser.add_argument(
        "--new", type=int, default=32, metavar="N", help="tokens to decode (default: 32)"
    )
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="timed (default: 3)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--dtype", default="auto", choices=["auto", *DTYPES])
    parser.add_argument("--peer", choices=["transformers"], help="the same weights there as well")
    parser.add_argument("--quantize", choices=list(WIDTHS), help="this against the weights as is")
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile against the model as it is"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the last line as well")


def run(options: argparse.Namespace) -> None:
    """Prints the report as it comes, and writes the JSON. Raises a `FlashVLError`."""
    check(options)
    device = choose_device(options.device)
    if options.random is None:
        options.model = options.model or "nano"
        folder = find_model(options.model)
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
            raise ArgumentError(f"--{name} must be from 1, found {getattr(options, name)}")
    if options.json is not None:
        check_new(options.json, "--json")
    if options.peer is not None:
        import_transformers()


def check_sizes(sizes: Sizes, config: FlashVLConfig) -> None:
    """Raises `ArgumentError` for what this model never sees."""
    picture_of(sizes.tiles, config.tiler)
    if sizes.prompt + sizes.new > config.decoder.context:
        raise ArgumentError(
            f"--prompt {sizes.prompt} and --new {sizes.new} are more than the model's context of "
            f"{config.decoder.context} tokens"
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
        "model": options.model if options.random is None else f"random {options.random}",
        "sizes": vars(sizes),
    }

    def show(name: str, part: dict[str, Any]) -> None:
        result[name] = part
        print(f"\n{getattr(bench_table, name)(result)}", flush=True)

    print(bench_table.machine(result), flush=True)
    patches = math.prod(input_shapes(config, sizes.tiles)[1][:2])
    ceilings = measure_ceilings(config, patches, sizes.prompt, device)
    show("ceilings", asdict(ceilings))

    peaks = measure_memory(folder, sizes, options.device, options.dtype)
    load = partial(FlashVL.from_pretrained, folder, device, options.dtype)
    times = {"load": take_turns("load", {"flashvl": load}, options.runs, device)["flashvl"]}
    model = load()
    stages = Stages(model, sizes)
    for name in STAGES:
        sides = {"flashvl": stages.stage(name)}
        times[name] = take_turns(name, sides, options.runs, device)["flashvl"]
    show("stages", entries(stages, folder, times, peaks, ceilings))
    show("memory", memory_entry(stages, folder, peaks))

    if options.peer is not None:
        comparison = compare_with_peer(stages, folder, options.runs)
        peaks = measure_memory(folder, sizes, options.device, options.dtype, peer=True)
        show("peer", comparison | {"memory": memory_entry(stages, folder, peaks)})
    if options.quantize is not None:
        show("int8", compare_int8(stages, load(quantize=options.quantize), options.runs))
    if options.compile:
        compiled = load()
        compiled.compile()
        show("compiled", compare_compiled(stages, compiled, options.runs))
    return result


def entries(
    stages: Stages,
    folder: Path,
    times: dict[str, Timing],
    peaks: dict[str, int],
    ceilings: Ceilings,
) -> dict[str, Any]:
    """Stage -> its time, counts, rates, shares of the ceilings and peak; decode's for one token."""
    model, new = stages.model, stages.sizes.new
    counts = count_stages(model.config, stages.sizes, model.dtype, model.activation_dtype)
    input_ids, pixels = stages.preprocess()
    width, height = stages.picture.size
    seen = 3 * width * height + input_ids.nbytes + pixels.nbytes
    counts = {
        "load": Count(0, loaded_bytes(model, folder), 0, 0),
        "preprocess": Count(0, 0, 0, seen),
    } | counts
    one_row = ceilings.one_row["float32" if model.dtype == torch.float32 else "bfloat16"]
    result: dict[str, Any] = {}
    for name, count in counts.items():
        steps = new if name == "decode" else 1
        seconds = times[name].per(steps).median
        operations, moved = count.operations / steps, count.bytes / steps
        entry = result[name] = times[name].per(steps).as_json() | {
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


def loaded_bytes(model: FlashVL, folder: Path) -> int:
    """What loading reads and writes: nothing of weights that stay as they are in a mapped file."""
    kept = {BYTES[header.dtype] for header in read_headers(folder).values()}
    if model.device.type == "cpu" and kept == {model.dtype.itemsize}:
        return 0
    return stored_bytes(folder) + sum(weight.nbytes for weight in model.parameters())


def stored_bytes(folder: Path) -> int:
    """Of all tensors in a checkpoint's files."""
    headers = read_headers(folder).values()
    return sum(BYTES[header.dtype] * math.prod(header.shape) for header in headers)


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
