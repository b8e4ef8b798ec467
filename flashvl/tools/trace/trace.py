"""`flashvl trace`: one run of the model told stage by stage, down to single layers.

What is counted, and how, stands in `recorder.py`; what is printed of it in `report.py`.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...assumptions import FIELDS, in_words
from ...chat import FlashVL
from ...checkpoint.files import read_headers
from ...checkpoint.hub import find_model, is_repository, published_models
from ...checkpoint.published import Assumptions, read_assumptions, read_config
from ...config import FlashVLConfig
from ...device import device_failure_as_error
from ...errors import ArgumentError
from ...generation.generate import (
    LAST,
    begin_decode,
    check_length,
    generate,
    new_cache,
    read_prompt,
)
from ...generation.sampling import Sampling
from ...input.image import load_image
from ...input.processor import Prompt, normalize
from ...input.tiling import tile_image
from ...model.network import FlashVLModel
from ..new_file import check_new, write_new
from .recorder import Recorder, TracedPart
from .report import page, text

QUESTION = "What is in the picture?"
TEXT_TOKENS = 32  # of a dry run
DRY_DTYPE = "bfloat16"  # of the published files


def run(options: argparse.Namespace) -> None:
    """Prints the table or the JSON document, and writes the page. Raises a `FlashVLError`."""
    check(options)
    limits = {"max_new_tokens": options.max_new_tokens, "depth": options.depth}
    with device_failure_as_error("tracing"):
        if options.dry:
            image = None if options.image is None else load_image(options.image)
            text_tokens = TEXT_TOKENS if options.prompt is None else options.prompt
            model = model_of_shapes(options.model, options.dtype, options.assumptions)
            result = trace_shapes(model, image, text_tokens, **limits)
            if options.model in published_models():
                result["notes"] += unsettled(model.config)
        else:
            image = load_image(options.image)
            question = QUESTION if options.question is None else options.question
            flash = FlashVL.from_pretrained(
                options.model,
                options.device,
                options.dtype,
                options.revision,
                options.assumptions,
            )
            result = trace(flash, image, question, **limits)
    result = {"model": options.model, **result}
    if options.html is not None:
        write_new(options.html, "--html", page(result).encode("utf-8", "replace"))
    print(json.dumps(result, indent=1, ensure_ascii=False) if options.json else text(result))


def check(options: argparse.Namespace) -> None:
    """Raises `ArgumentError` before anything is loaded."""
    Sampling(max_new_tokens=options.max_new_tokens)
    if options.depth < 1:
        raise ArgumentError(f"--depth must be from 1, found {options.depth}")
    if options.dry and options.question is not None:
        raise ArgumentError("--dry reads no tokenizer; leave the QUESTION out, or use --prompt N")
    if options.dry and options.revision is not None:
        raise ArgumentError("--dry asks no hub; leave --revision out")
    if not options.dry and options.image is None:
        raise ArgumentError("give --image FILE, or --dry for shapes alone")
    if not options.dry and options.prompt is not None:
        raise ArgumentError("--prompt is for --dry; give the QUESTION itself")
    if options.prompt is not None and options.prompt < 1:
        raise ArgumentError(f"--prompt must be from 1, found {options.prompt}")
    if options.html is not None:
        check_new(options.html, "--html")


def trace(
    flash: FlashVL, image: Image.Image, question: str, max_new_tokens: int = 32, depth: int = 1
) -> dict[str, Any]:
    """One greedy answer about an RGB picture -> what was done for it, as JSON can hold it.

    A short first answer warms up and the second is timed; times include what the watching costs,
    the more the greater `depth` is. Raises `MessageError`, `ArgumentError`.
    """
    watch_answer(Recorder(flash.model, 1), flash, image, question, max_new_tokens=2)
    recorder = Recorder(flash.model, depth)
    ids = watch_answer(recorder, flash, image, question, max_new_tokens)
    return {
        **facts_of_run(recorder, image),
        "question": question,
        "answer": flash.tokenizer.decode(ids),
        "new_tokens": len(ids),
        **counts(recorder, timed=True),
    }


def trace_shapes(
    model: FlashVLModel,
    image: Image.Image | None,
    text_tokens: int,
    max_new_tokens: int = 32,
    depth: int = 1,
) -> dict[str, Any]:
    """`trace` of a model on the meta device: the same counts, no times, no answer.

    There are `text_tokens` beside the image tokens of an RGB picture (None: a blank one of one
    tile), and every step of decode is taken. Raises `MessageError`.
    """
    notes = []
    if image is None:
        side = model.config.tiler.tile_size
        image = Image.new("RGB", (side, side))
        notes.append(f"nominal: a blank picture of {side} x {side} pixels")
    notes.append(f"nominal: {text_tokens} tokens of text, {max_new_tokens} new tokens")
    recorder = Recorder(model, depth)
    new_tokens = watch_shapes(recorder, model, image, text_tokens, max_new_tokens)
    result = {
        **facts_of_run(recorder, image),
        "question": None,
        "answer": None,
        "new_tokens": new_tokens,
        **counts(recorder, timed=False),
    }
    result["notes"] = notes + result["notes"]
    return result


def watch_answer(
    recorder: Recorder, flash: FlashVL, image: Image.Image, question: str, max_new_tokens: int
) -> list[int]:
    """What `FlashVL.chat` does, before the eyes of a recorder -> ids of the answer."""
    sampling = Sampling(max_new_tokens=max_new_tokens)
    with torch.inference_mode(), recorder:
        recorder.begin("preprocess", (np.asarray(image),))
        prompt = flash.prepare(image, [{"role": "user", "content": question}])
        recorder.end(tuple(part for part in prompt[:2] if part is not None))
        row = read_prompt(flash.model, prompt, sampling)
        for _ in generate(flash.model, [row], sampling, flash.stop_ids):
            pass  # the row holds the answer
    return row.ids


def watch_shapes(
    recorder: Recorder,
    model: FlashVLModel,
    image: Image.Image,
    text_tokens: int,
    max_new_tokens: int,
) -> int:
    """The same on the meta device, where tokens are not chosen -> how many an answer has."""
    with torch.inference_mode(), recorder:
        recorder.begin("preprocess", (np.asarray(image),))
        prompt = shapes_of_prompt(model.config, image, text_tokens)
        recorder.end(tuple(part for part in prompt[:2] if part is not None))
        tokens, context = prompt.input_ids.shape[1], model.config.decoder.context
        check_length(tokens, context)
        new_tokens = min(max_new_tokens, context - tokens)
        cache = new_cache(model)
        cache.reserve(tokens + new_tokens)
        model(*prompt, cache=cache, logits_at=LAST)
        step = begin_decode(model, cache)
        for _ in range(new_tokens - 1):
            step(prompt.input_ids[:, -1:])
    return new_tokens


def shapes_of_prompt(config: FlashVLConfig, image: Image.Image, text_tokens: int) -> Prompt:
    """What `FlashVL.prepare` gives, on the meta device, where ids have a count and no values."""
    tiles, grid = tile_image(image, config.tiler)  # (S, height, width, C)
    pixels = normalize(tiles, config.tiler.mean, config.tiler.std)  # (S, C, height, width)
    image_tokens = len(tiles) * config.tokens_per_tile
    marked = {"none": 0, "picture": 1}.get(str(config.prompt.slice_markers), len(tiles))
    tokens = text_tokens + image_tokens + 2 * marked
    input_ids = torch.empty(1, tokens, dtype=torch.long)  # (1, T)
    return Prompt(input_ids, pixels, [grid]).to(torch.device("meta"))


def model_of_shapes(
    name: str, dtype: str = "auto", assumptions: Assumptions = None
) -> FlashVLModel:
    """A model on the meta device; of a published one the config comes from published.json.

    `dtype` "auto": that of the published files. Raises `CheckpointError`, `ConfigError` or
    `ArgumentError`; asks no hub.
    """
    if not is_repository(name):
        folder = find_model(name)
        config = read_config(folder, read_headers(folder), assumptions)
    elif name in published_models():
        config = FlashVLConfig.from_dict(published_models()[name]["config"])
        config = config.with_assumptions(read_assumptions(assumptions))
    else:
        raise ArgumentError(
            f"without the network the shapes of {name} are not known; use nano, a folder, or one "
            f"of {', '.join(published_models())}"
        )
    with torch.device("meta"):
        model = FlashVLModel(config)
    return model.to(getattr(torch, DRY_DTYPE if dtype == "auto" else dtype)).eval()


def facts_of_run(recorder: Recorder, image: Image.Image) -> dict[str, Any]:
    """Of the model, the picture and the prompt."""
    model, stages = recorder.model, recorder.stages()
    tiles = stages["vision"].shapes_in[0][0]
    return {
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "picture": [image.height, image.width],
        "tiles": tiles,
        "image_tokens": tiles * model.config.tokens_per_tile,
        "prompt_tokens": stages["prefill"].shapes_in[0][1],
    }


def counts(recorder: Recorder, timed: bool) -> dict[str, Any]:
    """The rows and their totals; shares are of the stages' time, or without times of operations."""
    model, stages = recorder.model, recorder.stages().values()

    def measure(row: TracedPart) -> float:
        return row.seconds if timed else row.operations

    def milliseconds(*rows: TracedPart) -> float | None:
        return round(1000 * sum(row.seconds for row in rows), 3) if timed else None

    whole = sum(measure(row) for row in stages)
    rows = [
        {
            "name": row.name,
            "depth": row.depth,
            "calls": row.calls,
            "shapes_in": row.shapes_in,
            "shapes_out": row.shapes_out,
            "parameters": sum(row.weights.values()),
            "bytes": row.bytes,
            "operations": row.operations,
            "milliseconds": milliseconds(row),
            "share": measure(row) / whole,
        }
        for row in recorder.rows.values()
    ]
    return {
        "share_of": "time" if timed else "operations",
        "rows": rows,
        "total": {
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "bytes": sum(row.bytes for row in stages),
            "operations": sum(row.operations for row in stages),
            "milliseconds": milliseconds(*stages),
        },
        "notes": idle_weights(recorder),
    }


def idle_weights(recorder: Recorder) -> list[str]:
    """A line that names the weights that no stage has read; none if there are none."""
    used = {id for row in recorder.stages().values() for id in row.weights}
    idle = {name: one for name, one in recorder.model.named_parameters() if id(one) not in used}
    if not idle:
        return []
    parts = sorted({".".join(name.split(".")[:2]) for name in idle})
    count = sum(weight.numel() for weight in idle.values())
    return [f"held but never read: {', '.join(parts)} ({count:,} parameters)"]


def unsettled(config: FlashVLConfig) -> list[str]:
    """What the counts of a published model rest on that no published file settles."""
    tiler = config.tiler
    names, reported = ["feature_layer"], []
    if config.vision.architecture == "aimv2":
        reported += [f"tiles of {tiler.tile_size} pixels", "the tower's mathematics"]
        names += ["max_tiles", "grid", "thumbnail", "slice_markers"]
    if tiler.margin:
        reported.append(f"{config.tokens_per_tile} tokens a tile")
        names.append("stitching")
    values, layers = config.assumptions, config.vision.layers
    assumed = [f"{FIELDS[name].label} ({in_words(name, values[name], layers)})" for name in names]
    lines = [("assumed", assumed), ("reported by a third party", reported)]
    return [f"{how}: {', '.join(facts)}" for how, facts in lines if facts]
