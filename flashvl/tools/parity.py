"""`flashvl parity`: every layer of a checkpoint beside transformers' own modules.

Both sides get the same checkpoint, picture and prompt, in float32 on the CPU, and each runs on its
own outputs from the first layer to the last. Stitching and pixel shuffle, which have no weights
and which transformers does not have, are flashvl's on both sides.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from ..chat import FlashVL
from ..checkpoint.hub import find_model
from ..config import DecoderConfig, VisionConfig
from ..device import device_failure_as_error
from ..errors import ArgumentError
from ..generation.generate import LAST
from ..input.image import load_image
from ..model.recording import INPUT, recorded
from ..terminal import table
from .transformers_modules import (
    Published,
    build_compressor,
    build_decoder,
    build_tower,
    import_transformers,
)

QUESTION = "What is in this picture?"

# A layer of ours, by its name in `FlashVLModel` -> the same layer in transformers' module. `INPUT`
# after both names: what goes into it.
Layers = dict[str, str]
Outputs = Mapping[str, Tensor]  # by a layer's name, as `recorded` gives them


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


def compare_layers(layers: Layers, ours: Outputs, reference: Outputs) -> list[Difference]:
    """Every layer's difference, in their order. Raises `ArgumentError` if shapes differ."""
    return [difference(name, ours[name], reference[other]) for name, other in layers.items()]


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


@torch.inference_mode()
def compare(flash: FlashVL, folder: Path, image: Image.Image) -> list[Difference]:
    """Every layer of a float32 model beside transformers' modules with the weights of `folder`.

    Ours runs first and as a whole. Then its tower and decoder are freed, for both sides at once
    would need twice the memory; `flash` cannot be used afterwards.
    """
    model, published = flash.model, Published(folder)
    in_tower = tower_layers(flash.config.vision)
    in_decoder = decoder_layers(flash.config.decoder)
    prompt = flash.prepare(image, [{"role": "user", "content": QUESTION}])
    input_ids, pixels, grids = prompt
    assert pixels is not None  # there is a picture
    with recorded(model, [*in_tower, *COMPRESSOR_LAYERS, *in_decoder]) as ours:
        model(*prompt, logits_at=LAST)
    del model.vision, model.decoder

    tower = build_tower(published, flash.config.vision, pixels.shape[-1])
    with recorded(tower, in_tower.values()) as reference:
        tower(pixels)
    differences = compare_layers(in_tower, ours, reference)
    features = reference[list(in_tower.values())[-1]]  # (S, N, vision width)
    del tower

    compressor = build_compressor(published)
    with recorded(compressor, COMPRESSOR_LAYERS.values()) as reference:
        tokens = compressor(model.compressor.reduce(features, grids))  # (S, tokens, D)
    differences += compare_layers(COMPRESSOR_LAYERS, ours, reference)

    decoder, places = build_decoder(published), input_ids < 0
    embed = decoder.get_submodule("model.embed_tokens")
    embeddings = embed(input_ids.masked_fill(places, 0))  # (1, T, D)
    embeddings[places] = tokens.flatten(0, 1)
    with recorded(decoder, in_decoder.values()) as reference:
        decoder(inputs_embeds=embeddings, use_cache=False, logits_to_keep=1)
    return differences + compare_layers(in_decoder, ours, reference)


def default_picture() -> Image.Image:
    """Two shapes on a gradient, twice as wide as high, so that a tiling model cuts two tiles."""
    gray = Image.linear_gradient("L").resize((896, 448))
    picture = Image.merge("RGB", (gray, gray.rotate(180), Image.new("L", gray.size, 160)))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((320, 100, 570, 350), fill="red")
    draw.rectangle((60, 60, 220, 220), fill="blue")
    return picture


def run(options: argparse.Namespace) -> int:
    """Prints the comparison; 1 if any layer differs beyond the tolerance, else 0."""
    import_transformers()
    image = load_image(options.image) if options.image else default_picture()
    folder = find_model(options.model, options.revision)
    with device_failure_as_error("comparing"):
        flash = FlashVL.from_pretrained(folder, "cpu", "float32", assumptions=options.assumptions)
        differences = compare(flash, folder, image)
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
