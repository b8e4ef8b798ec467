"""`flashvl trace`: one run of the model told stage by stage, down to single layers.

The counts stand in `trace_recorder.py`: a multiply-add is 2 operations, attention counts over all
pairs of tokens, bytes are weights read plus what goes in and comes out.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..cache import KVCache
from ..device import DTYPES
from ..errors import ArgumentError, device_failure_as_error
from ..generate import check_length, check_max_new_tokens, decode_one_token
from ..hub import published_models
from ..image import load_image
from ..model import FlashVL
from .new_file import check_new, write_new
from .trace_page import page
from .trace_recorder import Recorder, Row
from .trace_shapes import DRY_DTYPE, model_of_shapes, prepare_shapes, unsettled
from .trace_table import MEANINGS, text

QUESTION = "What is in the picture?"
TEXT_TOKENS = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = f"{parser.description} {' '.join(MEANINGS)}"
    parser.add_argument("question", nargs="?", metavar="QUESTION", help=f"default: {QUESTION}")
    parser.add_argument(
        "--model", default="nano", help='"nano", a folder, or a repository (default: nano)'
    )
    parser.add_argument("--image", metavar="FILE", help="with --dry it may be left out: one tile")
    parser.add_argument(
        "--depth",
        type=int,
        default=1,
        metavar="N",
        help="1: stages (default); "
        "2: layers, patch embedding, ...; 3: attention, mlp, ...; and so on",
    )
    parser.add_argument("--max-new-tokens", type=int, default=32, metavar="N", help="default: 32")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", *DTYPES], help=f"auto with --dry: {DRY_DTYPE}"
    )
    parser.add_argument(
        "--dry",
        action="store_true",
        help="shapes alone: no weights, no tokenizer, no times, no network",
    )
    parser.add_argument(
        "--prompt",
        type=int,
        metavar="N",
        help=f"with --dry: tokens of text (default: {TEXT_TOKENS})",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document, not a table")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page as well")


def run(options: argparse.Namespace) -> None:
    """Prints the table or the JSON document, and writes the page. Raises a `FlashVLError`."""
    check(options)
    image = None if options.image is None else load_image(options.image)
    with device_failure_as_error("tracing"):
        if options.dry:
            model = model_of_shapes(options.model, options.dtype)
            prompt: str | int = TEXT_TOKENS if options.prompt is None else options.prompt
        else:
            model = FlashVL.from_pretrained(options.model, options.device, options.dtype)
            prompt = QUESTION if options.question is None else options.question
        result = trace(model, image, prompt, options.max_new_tokens, options.depth)
    result = {"model": options.model, **result}
    if options.dry and options.model in published_models():
        result["notes"] += unsettled(model.config)
    if options.html is not None:
        write_new(options.html, "--html", page(result).encode("utf-8", "replace"))
    print(json.dumps(result, indent=1, ensure_ascii=False) if options.json else text(result))


def check(options: argparse.Namespace) -> None:
    """Raises `ArgumentError` before anything is loaded."""
    check_max_new_tokens(options.max_new_tokens)
    if options.depth < 1:
        raise ArgumentError(f"--depth must be from 1, found {options.depth}")
    if options.dry and options.question is not None:
        raise ArgumentError("--dry reads no tokenizer; leave QUESTION away, or use --prompt N")
    if not options.dry and options.image is None:
        raise ArgumentError("give --image FILE, or --dry for shapes alone")
    if not options.dry and options.prompt is not None:
        raise ArgumentError("--prompt is for --dry; give the QUESTION itself")
    if options.prompt is not None and options.prompt < 1:
        raise ArgumentError(f"--prompt must be from 1, found {options.prompt}")
    if options.html is not None:
        check_new(options.html, "--html")


def trace(
    model: FlashVL,
    image: Image.Image | None,
    prompt: str | int,
    max_new_tokens: int = 32,
    depth: int = 1,
) -> dict[str, Any]:
    """One greedy run of `model` on an RGB picture -> what it did, as JSON can hold it.

    `prompt` is the question; for a model on the meta device, how many tokens of text there are,
    and no picture means a blank one of one tile. There every step of decoding is taken and nothing
    is timed. Otherwise a short first run warms up and the second is timed; times include what the
    watching costs, the more the greater `depth` is.
    """
    dry = model.device.type == "meta"
    notes = []
    if image is None:
        side = model.config.tiler.tile_size
        image = Image.new("RGB", (side, side))
        notes.append(f"nominal: a blank picture of {side} x {side} pixels")
    if dry:
        notes.append(f"nominal: {prompt} tokens of text, {max_new_tokens} new tokens")
    else:
        run_stages(model, image, prompt, max_new_tokens=2, recorder=Recorder(model, 1))
    recorder = Recorder(model, depth)
    new_tokens = run_stages(model, image, prompt, max_new_tokens, recorder)
    rows = list(recorder.rows.values())
    stages = {row.name: row for row in rows if row.depth == 1}
    used = {id for row in stages.values() for id in row.weights}
    idle = [name for name, weight in model.named_parameters() if id(weight) not in used]
    if idle:
        count = sum(model.get_parameter(name).numel() for name in idle)
        parts = sorted({".".join(name.split(".")[:2]) for name in idle})
        notes.append(f"held but never read: {', '.join(parts)} ({count:,} parameters)")
    tiles = stages["vision"].shapes_in[0][0]
    return {
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "picture": [image.height, image.width],
        "tiles": tiles,
        "image_tokens": tiles * model.config.tokens_per_tile,
        "prompt_tokens": stages["prefill"].shapes_in[0][1],
        "question": None if dry else prompt,
        "answer": None if dry else model.tokenizer.decode(new_tokens),
        "new_tokens": len(new_tokens),
        "share_of": "operations" if dry else "time",
        "rows": [entry(row, stages, dry) for row in rows],
        "total": {
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "bytes": sum(row.bytes for row in stages.values()),
            "operations": sum(row.operations for row in stages.values()),
            "milliseconds": None if dry else milliseconds(*stages.values()),
        },
        "notes": notes,
    }


def run_stages(
    model: FlashVL,
    image: Image.Image,
    prompt: str | int,
    max_new_tokens: int,
    recorder: Recorder,
) -> list[int]:
    """What `FlashVL.chat` does, greedy, each step a stage of `recorder` -> ids of the answer.

    On the meta device the ids are all 0, and as many as asked for.
    """
    decoder, stage = model.decoder, recorder.stage
    dry = model.device.type == "meta"
    if dry:
        prepare = partial(prepare_shapes, model, text_tokens=prompt)
    else:
        prepare = partial(model.prepare, messages=[{"role": "user", "content": prompt}])
    with torch.inference_mode(), recorder:
        input_ids, pixels = stage("preprocess", prepare, np.asarray(image))
        check_length(input_ids.shape[1], decoder.config.context)
        features = stage("vision", model.vision, pixels)  # (S, N, vision width)
        image_tokens = stage(
            "compressor", model.compressor, features, grid=model.grid(image)
        )  # (S, tokens, D)
        embeddings = stage("embed", model.embed, input_ids, image_tokens)  # (1, T, D)
        tokens = embeddings.shape[1]
        capacity = min(tokens + max_new_tokens, decoder.config.context)
        cache = KVCache(decoder.config, capacity, device=model.device, dtype=embeddings.dtype)
        hidden = stage("prefill", decoder, embeddings, cache=cache)  # (1, T, D)
        logits = stage("head", decoder.head, hidden[:, -1])  # (1, V)
        answer: list[int] = []
        decode = partial(decode_one_token, decoder)
        for step in range(capacity - tokens):
            token = logits.argmax(dim=-1, keepdim=True)  # (1, 1)
            token_id = 0 if dry else token.item()
            if not dry and token_id in model.stop_ids:
                break
            answer.append(token_id)
            if step + 1 < capacity - tokens:
                logits = stage("decode", decode, token, cache=cache)  # (1, V)
    return answer


def entry(row: Row, stages: dict[str, Row], dry: bool) -> dict[str, Any]:
    """A row as JSON holds it; its share is of the stages' time, or without times of operations."""
    whole = [(one.operations if dry else one.seconds) for one in stages.values()]
    return {
        "name": row.name,
        "depth": row.depth,
        "calls": row.calls,
        "shapes_in": row.shapes_in,
        "shapes_out": row.shapes_out,
        "parameters": sum(row.weights.values()),
        "bytes": row.bytes,
        "operations": row.operations,
        "milliseconds": None if dry else milliseconds(row),
        "share": (row.operations if dry else row.seconds) / sum(whole),
    }


def milliseconds(*rows: Row) -> float:
    return round(1000 * sum(row.seconds for row in rows), 3)
