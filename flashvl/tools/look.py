"""`flashvl look`: where the decoder looks in the picture for each token of its answer.

Attention is no explanation: it says which tokens were read, not what was made of them.
Characters that are not ASCII are shown as escapes, such as \\u989c (see `drawing.py`); a token that
holds only part of a character is shown by its id.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..decoder import Decoder, rope_rotation, rotate
from ..device import DTYPES
from ..errors import ArgumentError, device_failure_as_error
from ..generate import check_max_new_tokens, generate
from ..image import ImageLike, load_image
from ..model import FlashVL
from ..prompt import TILE_NEXT, TILE_START
from ..sampling import Sampling
from ..tiling import Grid, stitch_tiles
from ..tokenizer import Tokenizer
from .drawing import (
    GREY,
    LARGE,
    NORMAL,
    WHITE,
    bars,
    beside,
    check_out,
    fitted,
    framed,
    heated,
    note,
    paragraph,
    printable,
    ruled,
    save,
    stacked,
)
from .parity import recorded
from .verify import table

CANDIDATES = 5
PANEL, PICTURE, TALLEST, GAP = 420, 280, 280, 36  # pixels
PANELS_IN_A_ROW = 3


@dataclass(frozen=True)
class Step:
    """One token of the answer, and what the decoder read to choose it.

    `tiles` (rows * token side, columns * token side) and `thumbnail` (token side, token side) or
    None are attention laid on the picture, float32; with `text`, the rest, they add up to 1.
    `candidates` are the likeliest ids and their probabilities, the likeliest first.
    """

    token_id: int
    probability: float
    candidates: list[tuple[int, float]]
    tiles: np.ndarray
    thumbnail: np.ndarray | None
    text: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("question", metavar="QUESTION")
    parser.add_argument("--image", required=True, metavar="FILE")
    parser.add_argument("--out", required=True, type=Path, metavar="PICTURE.png", help="a new file")
    parser.add_argument("--model", default="nano", help="nano, a folder, or a repository")
    parser.add_argument("--revision", help="commit, branch or tag of a repository")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--dtype", default="auto", choices=["auto", *DTYPES])
    parser.add_argument("--max-new-tokens", type=int, default=24, metavar="N")
    parser.add_argument(
        "--layer", type=int, metavar="N", help="one layer, from 0 (default: the mean of all)"
    )


def run(options: argparse.Namespace) -> None:
    """Draws the picture and prints the table. Raises `ImageError`, `ArgumentError`, ..."""
    check_out(options.out)
    image = load_image(options.image)
    model = FlashVL.from_pretrained(options.model, options.device, options.dtype, options.revision)
    steps = look(model, image, options.question, options.max_new_tokens, options.layer)
    layers = "the mean of all layers" if options.layer is None else f"layer {options.layer}"
    words = f"Attention of {options.model}: {layers}, mean of all heads."
    save(draw(image, model, options.question, steps, words), options.out)
    print(shares(steps, model.tokenizer))


def look(
    model: FlashVL, image: ImageLike, question: str, max_new_tokens: int, layer: int | None = None
) -> list[Step]:
    """The greedy answer to a question, token by token; the stop token that ends it is the last.

    Attention is the mean over heads, and over layers unless `layer` names one. Raises
    `ArgumentError`, `ImageError`, `MessageError`.
    """
    layers = model.config.decoder.layers
    if layer is not None and not 0 <= layer < layers:
        raise ArgumentError(f"the decoder has the layers 0 to {layers - 1}, there is no {layer}")
    check_max_new_tokens(max_new_tokens)
    image = load_image(image)
    grid = model.grid(image)
    decoder = model.decoder
    with device_failure_as_error("answering"), torch.inference_mode():
        input_ids, embeddings = model.embed_prompt(image, [{"role": "user", "content": question}])
        text_ids = input_ids[input_ids >= 0][None]  # (1, text tokens)
        answer = generate(decoder, embeddings, text_ids, max_new_tokens, Sampling(), model.stop_ids)
        ids = list(answer)
        # The whole answer at once gives each of its tokens the same attention as one by one.
        fed = decoder.embedding(torch.tensor([ids], dtype=torch.long, device=model.device))
        first = input_ids.shape[1] - 1
        hidden, attention = attend(decoder, torch.cat((embeddings, fed), dim=1), first, layer)
        chances = decoder.head(hidden[0, first:]).float().softmax(dim=-1)  # (answer + 1, V)
    places = ((input_ids == TILE_START) | (input_ids == TILE_NEXT))[0]  # (T)
    on_tokens = attention[:, : len(places)][:, places]  # (answer + 1, S * N)
    # What follows the answer is a step of its own if it is the end, and not if N cut it off.
    ended = int(chances[-1].argmax())
    chosen = [*ids, ended] if ended in model.stop_ids and len(ids) < max_new_tokens else ids
    steps = []
    for token_id, chance, seen in zip(chosen, chances.cpu(), on_tokens.cpu()):
        values = seen.unflatten(0, (-1, model.config.tokens_per_tile)).numpy()  # (S, tokens)
        tiles, thumbnail = lay_on_picture(values, grid, model.config.compressor.token_order)
        best = chance.topk(min(CANDIDATES, len(chance)))
        candidates = list(zip(best.indices.tolist(), best.values.tolist()))
        text = 1 - seen.sum().item()
        steps.append(Step(token_id, chance[token_id].item(), candidates, tiles, thumbnail, text))
    return steps


def attend(
    decoder: Decoder, embeddings: Tensor, first: int, layer: int | None = None
) -> tuple[Tensor, Tensor]:
    """Runs the decoder and watches -> hidden states (1, T, D), attention (T - first, T).

    The attention of the tokens from `first` on, float32: the mean over the heads of one layer,
    or of all.
    """
    watched = range(decoder.config.layers) if layer is None else [layer]
    names = [f"layers.{n}.attention.{part}" for n in watched for part in ("query", "key")]
    with recorded(decoder, names) as outputs:
        hidden = decoder(embeddings)  # (1, T, D)
    positions = torch.arange(embeddings.shape[1], device=embeddings.device)[None]  # (1, T)
    rotation = rope_rotation(decoder.config, positions, embeddings.dtype)
    total = sum(
        attention_weights(
            outputs[f"layers.{n}.attention.query"],
            outputs[f"layers.{n}.attention.key"],
            rotation,
            first,
        ).mean(dim=(0, 1))  # (T - first, T)
        for n in watched
    )
    return hidden, total / len(watched)


def attention_weights(
    query: Tensor, key: Tensor, rotation: tuple[Tensor, Tensor], first: int = 0
) -> Tensor:
    """What the projections gave -> how much each token from `first` on attends to which.

    query (B, T, H * head width), key (B, T, K * head width), rotation 2 x (B or 1, 1, T, head
    width) -> (B, H, T - first, T) float32; each row adds up to 1 and sees nothing after itself.
    """
    split = (-1, rotation[0].shape[-1])
    q = rotate(query.unflatten(-1, split).transpose(1, 2), rotation)  # (B, H, T, head width)
    k = rotate(key.unflatten(-1, split).transpose(1, 2), rotation)  # (B, K, T, head width)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # (B, H, T, head width)
    scores = q[:, :, first:].float() @ k.float().transpose(2, 3)  # (B, H, T - first, T)
    later = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(diagonal=first + 1)
    return (scores / math.sqrt(split[1])).masked_fill(later, -math.inf).softmax(dim=-1)


def lay_on_picture(
    values: np.ndarray, grid: Grid, token_order: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """A number for each image token (S, tokens) -> the grid's numbers in place, the thumbnail's.

    (rows * side, columns * side), and (side, side) or None, side * side = tokens. A tile's tokens
    are those of its core, so that they lie side by side without overlap.
    """
    side = math.isqrt(values.shape[1])
    squares = values.reshape(-1, side, side)  # (S, side, side)
    if token_order == "columns":
        squares = squares.transpose(0, 2, 1)  # (S, side, side)
    cells = grid[0] * grid[1]
    tiles = stitch_tiles(squares[:cells, ..., None], grid, 0)[..., 0]  # (rows * side, ...)
    return tiles, squares[cells] if len(squares) > cells else None


def spelled(token_id: int, tokenizer: Tokenizer) -> str:
    """A token as ASCII text: quoted, a control token by its name, else by its id."""
    names = {number: name for name, number in tokenizer.control.items()}
    if token_id in names:
        return printable(names[token_id])
    text = tokenizer.decode([token_id])
    if not text or "\ufffd" in text:
        return f"part of a character (id {token_id})" if text else f"id {token_id}"
    return f'"{printable(text)}"'


def shares(steps: list[Step], tokenizer: Tokenizer) -> str:
    """A table: each token, its probability, and the shares of its attention."""
    rows = [("token", "probability", "tiles", "thumbnail", "text")]
    for step in steps:
        thumbnail = "" if step.thumbnail is None else f"{step.thumbnail.sum():.1%}"
        where = (f"{step.tiles.sum():.1%}", thumbnail, f"{step.text:.1%}")
        rows.append((spelled(step.token_id, tokenizer), f"{step.probability:.1%}", *where))
    return table(rows)


def draw(
    image: Image.Image, model: FlashVL, question: str, steps: list[Step], words: str
) -> Image.Image:
    """The whole sheet: the question, the legend, and a panel for each token of the answer."""
    tokenizer, stops = model.tokenizer, model.stop_ids
    answer = tokenizer.decode([step.token_id for step in steps if step.token_id not in stops])
    cut = "" if steps[-1].token_id in stops else f" (cut off after {len(steps)} tokens)"
    grid, width = model.grid(image), (PANELS_IN_A_ROW - 1) * (PANEL + GAP) - GAP
    how = (
        "Each panel shows what the decoder read to choose the token named above it. One square is "
        "one token of the picture. Within a panel all squares share one scale, those of the "
        "thumbnail too."
    )
    head = [
        paragraph(f"Question: {question}", width, LARGE),
        paragraph(f"Answer{cut}: {answer}", width, LARGE),
        paragraph(words, width, NORMAL),
        paragraph(how, width),
        scale(),
    ]
    size = fitted(*image.size, PICTURE, TALLEST)
    plain = image.resize(size, Image.Resampling.BOX)
    plain = ruled(plain, (1, 1), GREY, 1)
    panels = [
        draw_panel(image, grid, step, number, tokenizer) for number, step in enumerate(steps, 1)
    ]
    rows = [
        beside(panels[start : start + PANELS_IN_A_ROW], GAP)
        for start in range(0, len(panels), PANELS_IN_A_ROW)
    ]
    top = beside([stacked(head, 10), stacked([plain, note("the picture", PANEL)], 6)], GAP)
    return framed(stacked([top, *rows], GAP), 24)


def draw_panel(
    image: Image.Image, grid: Grid, step: Step, number: int, tokenizer: Tokenizer
) -> Image.Image:
    """One token: its name, the heat over the picture and the thumbnail, and the candidates."""
    thumbnail = step.thumbnail
    most = max(part.max() for part in (step.tiles, thumbnail) if part is not None) or 1.0
    drawn = [heated(image, step.tiles / most, fitted(*image.size, PICTURE, TALLEST), grid)]
    read = f"Read: tiles {step.tiles.sum():.0%}, "
    if thumbnail is not None:
        room = PANEL - PICTURE - 12
        small = heated(image, thumbnail / most, fitted(*image.size, room, TALLEST))
        drawn.append(stacked([small, note("thumbnail", room)], 2))
        read += f"thumbnail {thumbnail.sum():.0%}, "
    candidates = [
        (spelled(token_id, tokenizer), chance, token_id == step.token_id)
        for token_id, chance in step.candidates
    ]
    parts = [
        paragraph(f"{number}  {spelled(step.token_id, tokenizer)}", PANEL, LARGE),
        beside(drawn, 12),
        note(f"{read}text {step.text:.0%}", PANEL),
        note(f"The brightest square: {most:.1%}", PANEL),
        bars(candidates, PANEL),
    ]
    return stacked(parts, 6)


def scale() -> Image.Image:
    """The legend: from none to most, on white."""
    bar = heated(Image.new("RGB", (1, 1), WHITE), np.linspace(0, 1, 240)[None], (240, 22))
    return beside([paragraph("no attention", 100), bar, paragraph("the most in the panel", 260)], 8)
