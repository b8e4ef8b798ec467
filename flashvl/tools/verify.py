"""`flashvl verify`: what a checkpoint holds, read from its headers, and what it settles."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import torch

from ..assumptions import PLACEHOLDERS, TABLE, in_words
from ..checkpoint.files import STORED_DTYPES, Headers, open_safetensors, read_headers
from ..checkpoint.hub import fetch_headers, find_model, is_repository, published_models
from ..checkpoint.load import check_tensors
from ..checkpoint.published import read_config, read_stop_ids
from ..checkpoint.tensor_names import our_name
from ..config import FlashVLConfig
from ..errors import CheckpointError, printable, shortened
from ..input.tokenizer import Tokenizer
from ..model.network import FlashVLModel
from ..terminal import table

MAX_SHOWN = 60  # characters of a value
NOT_SETTLED = (
    "Where it says no, no file tells: `flashvl settle` asks the model, and weights/ASSUMPTIONS.md "
    "explains each."
)


def run(options: argparse.Namespace) -> None:
    """Prints the table; a checkpoint that does not fit its config raises `CheckpointError`."""
    if is_repository(options.model):
        # Without the weights: of a repository only the headers are fetched.
        folder, headers = fetch_headers(options.model, options.revision)
    else:
        folder = find_model(options.model)
        headers = read_headers(folder)
    config = read_config(folder, headers, options.assumptions)
    with torch.device("meta"):
        check_tensors(FlashVLModel(config), headers)
    print(component_table(config, headers))
    print(f"\n{kind_of(config, headers)}\n")
    print(assumption_table(folder, config))
    if options.values:
        check_values(headers)
        print("\nevery weight is a finite number")


def component_table(config: FlashVLConfig, headers: Headers) -> str:
    """Tensors, parameters and bytes of tower, compressor, decoder and all."""
    tensors: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    size: Counter[str] = Counter()
    for name, header in headers.items():
        ours = our_name(name, config.vision.architecture, config.vision.tensor_prefix)
        for component in (ours.partition(".")[0], "all"):
            count = torch.Size(header.shape).numel()
            tensors[component] += 1
            parameters[component] += count
            size[component] += count * STORED_DTYPES[header.dtype]
    rows: list[tuple[str, ...]] = [("component", "tensors", "parameters", "bytes")]
    for component in ("vision", "compressor", "decoder", "all"):
        counts = (tensors[component], parameters[component], size[component])
        rows.append((component, *(f"{count:,}" for count in counts)))
    return table(rows)


def kind_of(config: FlashVLConfig, headers: Headers) -> str:
    """One line: which published model this is, or that it is none of them."""
    total = sum(torch.Size(header.shape).numel() for header in headers.values())
    same = [
        repository
        for repository, known in published_models().items()
        if known["parameters"] == total and known["config"]["model_type"] == config.model_type
    ]
    size = f"the size of {' or '.join(same)}" if same else "of no published size"
    return f"kind: {config.model_type}, {size}"


def assumption_table(folder: Path, config: FlashVLConfig) -> str:
    """What is in use of the facts in assumptions.py, and whether this checkpoint settles each."""
    from_files, vision_layers = read_from_files(folder, config), config.vision.layers
    rows = [("assumption", "in use", "settled by this checkpoint")]
    for one in TABLE:
        if one.name in from_files:
            rows.append((one.label, *from_files[one.name]))
        elif one.part:
            shown = in_words(one.name, config.assumptions[one.name], vision_layers)
            rows.append((one.label, shortened(printable(shown), MAX_SHOWN), "no"))
    return table(rows) + f"\n\n{NOT_SETTLED}"


def read_from_files(folder: Path, config: FlashVLConfig) -> dict[str, tuple[str, str]]:
    """By the names of assumptions: what the files say, and whether that settles it."""
    vision, tiler = config.vision, config.tiler
    tokenizer = Tokenizer.from_folder(folder)
    found = [marker for marker in PLACEHOLDERS if marker in tokenizer.control]
    has_preprocessor = (folder / "preprocessor_config.json").exists()
    tokens = f"{config.tokens_per_tile}"
    if tiler.margin:
        tokens += f", the margin is {tiler.margin} px"
    elif config.compressor.shuffle > 1:
        tokens += f", a shuffle of {config.compressor.shuffle} x {config.compressor.shuffle}"
    markers = in_words("slice_markers", config.prompt.slice_markers, vision.layers)
    return {
        "model_type": (config.model_type, "yes, by config.json"),
        "tensor_prefix": (vision.tensor_prefix, "yes, by its tensor names"),
        "patches": (
            f"{vision.side} x {vision.side}",
            "yes, by the rows of the learned positions",
        ),
        "tokens": (
            tokens,
            "yes, by image_token_num and adp.p0.0.weight"
            if "image_token_num" in config.source
            else "no, config.json has no image_token_num",
        ),
        "preprocessing": (
            f"filter {tiler.resample}, mean {tiler.mean[0]:.4g} ...",
            "yes, by preprocessor_config.json"
            if has_preprocessor
            else "no, there is no preprocessor_config.json",
        ),
        "slice_markers": (
            shortened(printable(markers), MAX_SHOWN),
            f"no; the tokenizer has {len(found)} of the two placeholders",
        ),
        "head": (
            "tied to the embedding" if config.decoder.tied_head else "stored separately",
            "yes, by its tensor names",
        ),
        "stop_ids": (
            ", ".join(map(str, sorted(read_stop_ids(folder, tokenizer)))),
            "yes, by generation_config.json"
            if (folder / "generation_config.json").exists()
            else "no, there is no generation_config.json",
        ),
    }


def check_values(headers: Headers) -> None:
    """Reads every weight. Raises `CheckpointError` that names the tensors with NaN or infinity."""
    broken = []
    for name, header in headers.items():
        if not header.file.exists():
            raise CheckpointError(
                f"the weights of {name} are not on this machine; run `flashvl download` first"
            )
        with open_safetensors(header.file) as tensors:
            if not tensors.get_tensor(name).isfinite().all():
                broken.append(name)
    if broken:
        raise CheckpointError("NaN or infinite weights in " + ", ".join(broken))
