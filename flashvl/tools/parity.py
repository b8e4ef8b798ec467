"""`flashvl parity`: every layer of a checkpoint beside transformers' own modules.

Both sides get the same checkpoint, picture and prompt, in float32 on the CPU, and each runs on its
own outputs from the first layer to the last. Stitching and pixel shuffle, which have no weights
and which transformers does not have, are flashvl's on both sides.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn

from ..config import DecoderConfig, VisionConfig
from ..errors import ArgumentError, device_failure_as_error
from ..hub import find_model
from ..image import load_image
from ..model import FlashVL
from ..tiling import Grid
from .transformers_modules import (
    Published,
    build_compressor,
    build_decoder,
    build_tower,
    import_transformers,
)
from .verify import table

TOLERANCE = 1e-5
QUESTION = "What is in this picture?"
INPUT = " input"  # after a layer's name: what goes into it, not what comes out

Layers = dict[str, str]  # a layer of ours -> the same layer in transformers' module
Outputs = dict[str, Tensor]


@dataclass(frozen=True)
class Difference:
    """One layer's output on both sides.

    `largest`: the largest |ours - reference|; `relative`: that over the largest |reference|;
    `cosine`: between the two outputs, each as one long vector.
    """

    layer: str
    largest: float
    relative: float
    cosine: float


def difference(layer: str, ours: Tensor, reference: Tensor) -> Difference:
    """Compares two outputs of any shape. Raises `ArgumentError` if their shapes differ."""
    if ours.shape != reference.shape:
        raise ArgumentError(f"{layer}: shapes {tuple(ours.shape)} and {tuple(reference.shape)}")
    ours, reference = ours.flatten().double(), reference.flatten().double()
    largest = (ours - reference).abs().max().item()
    scale = reference.abs().max().item() or 1.0
    cosine = F.cosine_similarity(ours, reference, dim=0).item()
    return Difference(layer, largest, largest / scale, cosine)


def first_beyond(differences: list[Difference], tolerance: float) -> Difference | None:
    """The first layer whose relative difference is above the tolerance, or not a number."""
    return next((one for one in differences if not one.relative <= tolerance), None)


@torch.inference_mode()
def compare_layers(
    layers: Layers,
    ours: nn.Module,
    reference: nn.Module,
    run_ours: Callable[[], Any],
    run_reference: Callable[[], Any],
) -> tuple[list[Difference], Tensor, Tensor]:
    """Runs both sides once -> every layer's difference, and both sides' last output."""
    with recorded(ours, layers.keys()) as our_outputs:
        run_ours()
    with recorded(reference, layers.values()) as outputs:
        run_reference()
    pairs = {name: (our_outputs[name], outputs[theirs]) for name, theirs in layers.items()}
    differences = [difference(name, *pair) for name, pair in pairs.items()]
    return differences, *list(pairs.values())[-1]


@contextmanager
def recorded(module: nn.Module, names: Iterable[str]) -> Iterator[Outputs]:
    """The outputs (or inputs, see `INPUT`) of the named submodules while the context lasts."""
    outputs: Outputs = {}

    def keep(name: str, value: Any) -> None:
        outputs[name] = value[0] if isinstance(value, tuple) else value

    def watch(name: str) -> Any:
        layer = module.get_submodule(name.removesuffix(INPUT))
        if name.endswith(INPUT):
            return layer.register_forward_pre_hook(lambda _, inputs: keep(name, inputs))
        return layer.register_forward_hook(lambda _, inputs, output: keep(name, output))

    handles = [watch(name) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def tower_layers(vision: VisionConfig) -> Layers:
    aimv2 = vision.architecture == "aimv2"
    used = vision.layers if vision.feature_layer < 0 else vision.feature_layer + 1
    layers = {"vision.patch_norm": "embeddings.rms_norm"} if aimv2 else {}
    layers[f"vision.layers.0{INPUT}"] = f"encoder.layers.0{INPUT}"
    layers |= {f"vision.layers.{n}": f"encoder.layers.{n}" for n in range(used)}
    if vision.feature_layer < 0:
        layers["vision.norm"] = "rms_norm" if aimv2 else "post_layernorm"
    return layers


COMPRESSOR_LAYERS: Layers = {
    f"compressor.norm{INPUT}": f"0{INPUT}",
    "compressor.norm": "0",
    "compressor.expand": "1",
    "compressor.hidden": "3",
    "compressor.output": "5",
}


def decoder_layers(decoder: DecoderConfig) -> Layers:
    layers = {f"decoder.layers.0{INPUT}": f"model.layers.0{INPUT}"}
    layers |= {f"decoder.layers.{n}": f"model.layers.{n}" for n in range(decoder.layers)}
    return layers | {"decoder.norm": "model.norm", "decoder.head": "lm_head"}


def compare(model: FlashVL, folder: Path, image: Image.Image) -> list[Difference]:
    """Every layer of a float32 model beside transformers' modules with the weights of `folder`.

    One part after the other; a tower is freed before the decoder is built, so `model` cannot
    be used afterwards.
    """
    published = Published(folder)
    input_ids, pixels = model.prepare(image, [{"role": "user", "content": QUESTION}])
    grid = model.grid(image)
    in_tower, *features = compare_towers(model, published, pixels)
    del model.vision
    in_compressor, *tokens = compare_compressors(model, published, features, grid)
    return in_tower + in_compressor + compare_decoders(model, published, input_ids, tokens)


def compare_towers(
    model: FlashVL, published: Published, pixels: Tensor
) -> tuple[list[Difference], Tensor, Tensor]:
    """pixels (S, C, height, width) -> differences, both sides' features (S, N, vision width)."""
    vision = model.config.vision
    tower = build_tower(published, vision, pixels.shape[-1])
    return compare_layers(
        tower_layers(vision), model, tower, lambda: model.vision(pixels), lambda: tower(pixels)
    )


def compare_compressors(
    model: FlashVL, published: Published, features: list[Tensor], grid: Grid
) -> tuple[list[Difference], Tensor, Tensor]:
    """Both sides' features -> differences, both sides' image tokens (S, T, decoder width)."""
    ours, theirs = features
    compressor = build_compressor(published)
    return compare_layers(
        COMPRESSOR_LAYERS,
        model,
        compressor,
        lambda: model.compressor(ours, grid),
        lambda: compressor(model.compressor.reduce(theirs, grid)),
    )


def compare_decoders(
    model: FlashVL, published: Published, input_ids: Tensor, tokens: list[Tensor]
) -> list[Difference]:
    """Prompt ids (1, T) and both sides' image tokens -> differences up to the last logits."""
    decoder = build_decoder(published)
    places = input_ids < 0  # (1, T)
    with torch.inference_mode():
        ours = model.embed(input_ids, tokens[0])  # (1, T, D)
        theirs = decoder.get_input_embeddings()(input_ids.masked_fill(places, 0))  # (1, T, D)
        theirs[places] = tokens[1].flatten(0, 1)
    differences, *_ = compare_layers(
        decoder_layers(model.config.decoder),
        model,
        decoder,
        lambda: model.decoder.head(model.decoder(ours)[:, -1:]),
        lambda: decoder(inputs_embeds=theirs, use_cache=False, logits_to_keep=1),
    )
    return differences


def default_picture() -> Image.Image:
    """Two shapes on a gradient, twice as wide as high, so that a tiling model cuts two tiles."""
    grey = Image.linear_gradient("L").resize((896, 448))
    picture = Image.merge("RGB", (grey, grey.rotate(180), Image.new("L", grey.size, 160)))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((320, 100, 570, 350), fill="red")
    draw.rectangle((60, 60, 220, 220), fill="blue")
    return picture


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="nano", help="nano, a folder or a repository")
    parser.add_argument("--revision", help="commit, branch or tag of a repository")
    parser.add_argument("--image", metavar="FILE", help="the picture (default: one that is drawn)")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        help=f"largest relative difference that counts as equal (default: {TOLERANCE:g})",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(options: argparse.Namespace) -> int:
    """Prints the comparison; 1 if any layer differs beyond the tolerance, else 0."""
    import_transformers()
    image = load_image(options.image) if options.image else default_picture()
    folder = find_model(options.model, options.revision)
    with device_failure_as_error("comparing"):
        model = FlashVL.from_pretrained(folder, device="cpu", dtype="float32")
        differences = compare(model, folder, image)
    first = first_beyond(differences, options.tolerance)
    if options.json:
        layers = [asdict(one) for one in differences]
        report = {"tolerance": options.tolerance, "layers": layers}
        print(json.dumps(report | {"first_beyond": first and first.layer}, indent=1))
    else:
        print(difference_table(differences))
        print(f"\n{verdict(differences, first, options.tolerance)}")
    return 1 if first else 0


def difference_table(differences: list[Difference]) -> str:
    rows = [("layer", "largest difference", "relative", "cosine")]
    for one in differences:
        rows.append((one.layer, f"{one.largest:.3g}", f"{one.relative:.3g}", f"{one.cosine:.9f}"))
    return table(rows)


def verdict(differences: list[Difference], first: Difference | None, tolerance: float) -> str:
    """One line: all agree, or where they begin to differ."""
    if first is None:
        return f"all {len(differences)} layers agree within {tolerance:g} relative"
    return (
        f"{first.layer} is the first layer that differs: {first.relative:.3g} relative, "
        f"{tolerance:g} allowed"
    )
