"""`flashvl look`: where the decoder looks in the picture for each token of its answer.

Attention is no explanation: it says which tokens were read, not what was made of them.
Characters that are not ASCII are shown as escapes, such as \\u989c (see `drawing.py`); a token that
holds only part of a character is shown by its id.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..chat import FlashVL
from ..config import Grid
from ..device import device_failure_as_error
from ..errors import ArgumentError
from ..generation.generate import generate, read_prompt
from ..generation.sampling import Sampling
from ..input.image import ImageLike, load_image
from ..input.processor import Prompt
from ..input.tiling import choose_grid, stitch_tiles
from ..input.tokenizer import Tokenizer
from ..model.decoder import rope_rotation, rotate
from ..model.network import FlashVLModel, image_places
from ..model.recording import recorded
from ..terminal import table
from .drawing import (
    GRAY,
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

CANDIDATES = 5
PANEL, PICTURE, TALLEST, GAP = 420, 280, 280, 36  # pixels
PANELS_IN_A_ROW = 3


@dataclass(frozen=True)
class AnswerToken:
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


def run(options: argparse.Namespace) -> None:
    """Draws the picture and prints the table. Raises `ImageError`, `ArgumentError`, ..."""
    check_out(options.out)
    image = load_image(options.image)
    flash = FlashVL.from_pretrained(
        options.model, options.device, options.dtype, options.revision, adapter=options.adapter
    )
    answer = look(flash, image, options.question, options.max_new_tokens, options.layer)
    layers = "the mean of all layers" if options.layer is None else f"layer {options.layer}"
    words = f"Attention of {options.model}: {layers}, mean of all heads."
    save(draw(image, flash, options.question, answer, words), options.out)
    print(shares(answer, flash.tokenizer))


def look(
    flash: FlashVL, image: ImageLike, question: str, max_new_tokens: int, layer: int | None = None
) -> list[AnswerToken]:
    """The greedy answer to a question, token by token; the stop token that ends it is the last.

    Attention is the mean over heads, and over layers unless `layer` names one. Raises
    `ArgumentError`, `ImageError`, `MessageError`.
    """
    model, config = flash.model, flash.config
    layers = config.decoder.layers
    if layer is not None and not 0 <= layer < layers:
        raise ArgumentError(f"the decoder has the layers 0 to {layers - 1}, there is no {layer}")
    sampling = Sampling(max_new_tokens=max_new_tokens)
    with device_failure_as_error("answering"), torch.inference_mode():
        prompt = flash.prepare(image, [{"role": "user", "content": question}])
        row = read_prompt(model, prompt, sampling)
        for _ in generate(model, [row], sampling, flash.stop_ids):
            pass  # the row holds the answer
        # The whole answer at once gives each of its tokens the same attention as one by one.
        answer = torch.tensor([row.ids], dtype=torch.long, device=model.device)
        input_ids = torch.cat((prompt.input_ids, answer), dim=1)  # (1, T)
        first = prompt.input_ids.shape[1] - 1
        logits, attention = read_and_watch(
            model, prompt._replace(input_ids=input_ids), first, layer
        )
        chances = logits[0].float().softmax(dim=-1)  # (answer + 1, V)
    on_tokens = attention[:, image_places(input_ids)[0]]  # (answer + 1, S * tokens)
    # What follows the answer is a token of its own if it is the end, and not if N cut it off.
    ended = int(chances[-1].argmax())
    stops = ended in flash.stop_ids and len(row.ids) < max_new_tokens
    chosen = [*row.ids, ended] if stops else row.ids
    tokens = []
    for token_id, chance, seen in zip(chosen, chances.cpu(), on_tokens.cpu()):
        values = seen.unflatten(0, (-1, config.tokens_per_tile)).numpy()  # (S, tokens)
        tiles, thumbnail = lay_on_picture(values, prompt.grids[0], config.compressor.token_order)
        best = chance.topk(min(CANDIDATES, len(chance)))
        candidates = list(zip(best.indices.tolist(), best.values.tolist()))
        text = 1 - seen.sum().item()
        tokens.append(
            AnswerToken(token_id, chance[token_id].item(), candidates, tiles, thumbnail, text)
        )
    return tokens


def read_and_watch(
    model: FlashVLModel, prompt: Prompt, first: int, layer: int | None = None
) -> tuple[Tensor, Tensor]:
    """One pass over T tokens -> logits (1, T - first, V), attention (T - first, T).

    Both are those of the tokens from `first` on. The attention, float32, is the mean over the
    heads of one layer, or of all.
    """
    watched = range(model.config.decoder.layers) if layer is None else [layer]
    names = [f"decoder.layers.{n}.attention" for n in watched]
    with recorded(model, [f"{name}.{part}" for name in names for part in ("query", "key")]) as seen:
        logits = model(*prompt, logits_at=slice(first, None))  # (1, T - first, V)
    tokens = prompt.input_ids.shape[1]
    positions = torch.arange(tokens, device=model.device)[None]  # (1, T)
    rotation = rope_rotation(model.config.decoder, positions, model.activation_dtype)
    total = torch.zeros(tokens - first, tokens, device=model.device)
    for name in names:
        query, key = seen[f"{name}.query"], seen[f"{name}.key"]
        total += attention_weights(query, key, rotation, first).mean(dim=(0, 1))  # (T - first, T)
    return logits, total / len(names)


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


def shares(answer: list[AnswerToken], tokenizer: Tokenizer) -> str:
    """A table: each token, its probability, and the shares of its attention."""
    rows = [("token", "probability", "tiles", "thumbnail", "text")]
    for token in answer:
        thumbnail = "" if token.thumbnail is None else f"{token.thumbnail.sum():.1%}"
        where = (f"{token.tiles.sum():.1%}", thumbnail, f"{token.text:.1%}")
        rows.append((spelled(token.token_id, tokenizer), f"{token.probability:.1%}", *where))
    return table(rows)


def draw(
    image: Image.Image, flash: FlashVL, question: str, answer: list[AnswerToken], words: str
) -> Image.Image:
    """The whole sheet: the question, the legend, and a panel for each token of the answer."""
    tokenizer, stops, tiler = flash.tokenizer, flash.stop_ids, flash.config.tiler
    text = tokenizer.decode([token.token_id for token in answer if token.token_id not in stops])
    cut = "" if answer[-1].token_id in stops else f" (cut off after {len(answer)} tokens)"
    grid = choose_grid(image.height, image.width, tiler.core_size, tiler.max_tiles)
    width = (PANELS_IN_A_ROW - 1) * (PANEL + GAP) - GAP
    how = (
        "Each panel shows what the decoder read to choose the token named above it. One square is "
        "one token of the picture. Within a panel all squares share one scale, those of the "
        "thumbnail too."
    )
    head = [
        paragraph(f"Question: {question}", width, LARGE),
        paragraph(f"Answer{cut}: {text}", width, LARGE),
        paragraph(words, width, NORMAL),
        paragraph(how, width),
        scale(),
    ]
    size = fitted(*image.size, PICTURE, TALLEST)
    plain = image.resize(size, Image.Resampling.BOX)
    plain = ruled(plain, (1, 1), GRAY, 1)
    panels = [
        draw_panel(image, grid, token, number, tokenizer) for number, token in enumerate(answer, 1)
    ]
    rows = [
        beside(panels[start : start + PANELS_IN_A_ROW], GAP)
        for start in range(0, len(panels), PANELS_IN_A_ROW)
    ]
    top = beside([stacked(head, 10), stacked([plain, note("the picture", PANEL)], 6)], GAP)
    return framed(stacked([top, *rows], GAP), 24)


def draw_panel(
    image: Image.Image, grid: Grid, token: AnswerToken, number: int, tokenizer: Tokenizer
) -> Image.Image:
    """One token: its name, the heat over the picture and the thumbnail, and the candidates."""
    thumbnail = token.thumbnail
    brightest = max(part.max() for part in (token.tiles, thumbnail) if part is not None) or 1.0
    size = fitted(*image.size, PICTURE, TALLEST)
    drawn = [heated(image, token.tiles / brightest, size, grid)]
    read = f"Read: tiles {token.tiles.sum():.0%}, "
    if thumbnail is not None:
        room = PANEL - PICTURE - 12
        small = heated(image, thumbnail / brightest, fitted(*image.size, room, TALLEST))
        drawn.append(stacked([small, note("thumbnail", room)], 2))
        read += f"thumbnail {thumbnail.sum():.0%}, "
    candidates = [
        (spelled(token_id, tokenizer), chance, token_id == token.token_id)
        for token_id, chance in token.candidates
    ]
    parts = [
        paragraph(f"{number}  {spelled(token.token_id, tokenizer)}", PANEL, LARGE),
        beside(drawn, 12),
        note(f"{read}text {token.text:.0%}", PANEL),
        note(f"The brightest square: {brightest:.1%}", PANEL),
        bars(candidates, PANEL),
    ]
    return stacked(parts, 6)


def scale() -> Image.Image:
    """The legend: from no attention to the maximum, on white."""
    bar = heated(Image.new("RGB", (1, 1), WHITE), np.linspace(0, 1, 240)[None], (240, 22))
    return beside([paragraph("no attention", 100), bar, paragraph("the most in the panel", 260)], 8)
