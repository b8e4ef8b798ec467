"""`flashvl verify`: what a checkpoint holds, read from its headers, and what it settles."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import torch

from ..checkpoint.files import STORED_DTYPES, Headers, open_safetensors, read_headers
from ..checkpoint.hub import fetch_headers, find_model, is_repository, published_models
from ..checkpoint.load import check_tensors
from ..checkpoint.published import read_config, read_stop_ids
from ..checkpoint.tensor_names import our_name
from ..config import FlashVLConfig
from ..errors import CheckpointError
from ..input.tokenizer import Tokenizer
from ..model.network import FlashVLModel
from ..terminal import table


def run(options: argparse.Namespace) -> None:
    """Prints the table; a checkpoint that does not fit its config raises `CheckpointError`."""
    if is_repository(options.model):
        # Without the weights: of a repository only the headers are fetched.
        folder, headers = fetch_headers(options.model, options.revision)
    else:
        folder = find_model(options.model)
        headers = read_headers(folder)
    config = read_config(folder, headers)
    with torch.device("meta"):
        check_tensors(FlashVLModel(config), headers)
    print(component_table(config, headers))
    print(f"\n{kind_of(config, headers)}\n")
    print(assumption_table(folder, config, headers))
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


def assumption_table(folder: Path, config: FlashVLConfig, headers: Headers) -> str:
    """What is in use of the facts that weights/ASSUMPTIONS.md lists, and what settles each."""
    vision, tiler = config.vision, config.tiler
    tokenizer = Tokenizer.from_folder(folder)
    markers = [f"[PLACEHOLDER_{number}]" for number in (0, 1)]
    found = [marker for marker in markers if marker in tokenizer.control]
    has_preprocessor = (folder / "preprocessor_config.json").exists()
    rows = [
        ("assumption", "in use", "settled by this checkpoint"),
        ("names of the tower begin with", vision.tensor_prefix, "yes, by its tensor names"),
        (
            "patches a tile",
            f"{vision.side} x {vision.side}",
            "yes, by the rows of the learned positions",
        ),
        (
            "tokens a tile",
            str(config.tokens_per_tile),
            "yes, by image_token_num"
            if "image_token_num" in config.source
            else "no, config.json has no image_token_num",
        ),
        (
            "compressor input",
            f"{config.compressor_input_width} = {config.compressor.shuffle**2} x {vision.width}",
            "yes, by adp.p0.0.weight",
        ),
        (
            "output head",
            "tied to the embedding" if config.decoder.tied_head else "stored separately",
            "yes, by its tensor names",
        ),
        (
            "margin of a tile",
            f"{tiler.margin // vision.patch_size} patches, {tiler.margin} px",
            "in part: its width, by patches and tokens; that it lies on all sides is assumed"
            if tiler.margin
            else "yes, every patch becomes a token",
        ),
        (
            "resize filter, mean, deviation",
            f"filter {tiler.resample}, mean {tiler.mean[0]:.4g} ...",
            "yes, by preprocessor_config.json"
            if has_preprocessor
            else "no, there is no preprocessor_config.json",
        ),
        (
            "answers end at",
            ", ".join(map(str, sorted(read_stop_ids(folder, tokenizer)))),
            "yes, by generation_config.json"
            if (folder / "generation_config.json").exists()
            else "no, there is no generation_config.json",
        ),
        (
            "slice markers",
            str(config.prompt.slice_markers or "not used"),
            f"no, the tokenizer has {len(found)} of the two placeholders",
        ),
        ("stitching", tiler.stitching, "no"),
        ("most tiles", str(tiler.max_tiles), "no"),
        ("thumbnail after the tiles", "yes" if tiler.thumbnail else "no", "no"),
        ("padding of the canvas", tiler.padding, "no"),
        ("layer of the features", _layer(vision.feature_layer), "no"),
        ("order of the tokens", config.compressor.token_order, "no"),
        ("system turn", config.prompt.system, "no"),
    ]
    return table(rows)


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


def _layer(feature_layer: int) -> str:
    return "the last, normed" if feature_layer < 0 else f"layer {feature_layer}"
