"""`flashvl look`: where the decoder looks in the picture for each token of its answer.

Attention is no explanation: it says which tokens were read, not what was made of them. A mean over
layers and heads hides most of it, for each looks for something else; the heads that look hardest at
the picture are drawn beside it. A token that holds only part of a character is shown by its id.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..chat import FlashVL
from ..config import FlashVLConfig, Grid
from ..device import device_failure_as_error
from ..errors import ArgumentError
from ..generation.generate import generate, read_prompt
from ..generation.sampling import Sampling
from ..input.image import ImageLike, load_image
from ..input.processor import Prompt
from ..input.tiling import grid_of, stitch_tiles
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
HEADS = 4  # drawn beside the mean
PANEL, PICTURE, TALLEST, GAP = 420, 280, 280, 36  # pixels
HEAD_PICTURE, HEAD_GAP = 142, 12  # pixels
PANELS_IN_A_ROW = 3


@dataclass(frozen=True)
class Attention:
    """Attention laid on the picture, float32: of one head, or a mean of some.

    `tiles` (rows * token side, columns * token side) and `thumbnail` (token side, token side) or
    None; with `text`, the rest, they add up to 1.
    """

    tiles: np.ndarray
    thumbnail: np.ndarray | None
    text: float

    @property
    def brightest(self) -> float:
        parts = (part for part in (self.tiles, self.thumbnail) if part is not None)
        return max(part.max() for part in parts) or 1.0


@dataclass(frozen=True)
class AnswerToken:
    """One token of the answer, and what the decoder read to choose it.

    `candidates` are the likeliest ids and their probabilities, the likeliest first. `mean` is over
    the layers and heads that were asked for, `strongest` are those of them that look hardest at
    the picture, (layer, head) and theirs, the hardest first.
    """

    token_id: int
    probability: float
    candidates: list[tuple[int, float]]
    mean: Attention
    strongest: list[tuple[int, int, Attention]]


def run(options: argparse.Namespace) -> None:
    """Draws the picture and prints the table. Raises `ImageError`, `ArgumentError`, ..."""
    check_out(options.out)
    image = load_image(options.image)
    flash = FlashVL.from_pretrained(
        options.model,
        options.device,
        options.dtype,
        options.revision,
        options.assumptions,
        adapter=options.adapter,
    )
    answer = look(
        flash, image, options.question, options.max_new_tokens, options.layer, options.head
    )
    layers = "the mean of all layers" if options.layer is None else f"layer {options.layer}"
    heads = "mean of all heads" if options.head is None else f"head {options.head}"
    words = f"Attention of {options.model}: {layers}, {heads}."
    save(draw(image, flash, options.question, answer, words), options.out)
    print(shares(answer, flash.tokenizer))


def look(
    flash: FlashVL,
    image: ImageLike,
    question: str,
    max_new_tokens: int,
    layer: int | None = None,
    head: int | None = None,
) -> list[AnswerToken]:
    """The greedy answer to a question, token by token; the stop token that ends it is the last.

    Attention is that of all layers and heads, unless `layer` or `head` names one. Raises
    `ArgumentError`, `ImageError`, `MessageError`.
    """
    model, config = flash.model, flash.config
    layers = one_or_all("layers", layer, config.decoder.layers)
    heads = one_or_all("heads", head, config.decoder.heads)
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
        logits, attention = read_and_watch(model, prompt._replace(input_ids=input_ids), first)
        chances = logits[0].float().softmax(dim=-1)  # (answer + 1, V)
    on_tokens = attention[..., image_places(input_ids)[0]].cpu()  # (layers, H, answer + 1, ...)
    on_tokens = on_tokens[layers][:, heads]  # (layers, heads, answer + 1, S * tokens)
    # What follows the answer is a token of its own if it is the end, and not if N cut it off.
    ended = int(chances[-1].argmax())
    stops = ended in flash.stop_ids and len(row.ids) < max_new_tokens
    chosen = [*row.ids, ended] if stops else row.ids
    tokens = []
    for token_id, chance, seen in zip(chosen, chances.cpu(), on_tokens.unbind(2)):

        def laid(values: Tensor) -> Attention:
            tiles = values.unflatten(0, (-1, config.tokens_per_tile)).numpy()  # (S, tokens)
            places = lay_on_picture(tiles, prompt.grids[0], config)
            return Attention(*places, 1 - values.sum().item())

        best = chance.topk(min(CANDIDATES, len(chance)))
        candidates = list(zip(best.indices.tolist(), best.values.tolist()))
        strongest = [
            (layers[row], heads[column], laid(seen[row, column]))
            for row, column in hardest(seen, HEADS)
        ]
        mean = laid(seen.mean(dim=(0, 1)))
        tokens.append(AnswerToken(token_id, chance[token_id].item(), candidates, mean, strongest))
    return tokens


def one_or_all(name: str, number: int | None, count: int) -> list[int]:
    """The numbers of the layers or heads to look at. Raises `ArgumentError` if there is no such."""
    if number is None:
        return list(range(count))
    if not 0 <= number < count:
        raise ArgumentError(f"the decoder has the {name} 0 to {count - 1}, there is no {number}")
    return [number]


def hardest(on_tokens: Tensor, count: int) -> list[tuple[int, int]]:
    """(layers, heads, S * tokens) -> the places (layer, head) that look hardest at the picture.

    By the share that is on the picture times the largest share of one of its tokens: a head that
    looks everywhere at once, or mostly at the text, comes last.
    """
    scores = on_tokens.sum(dim=-1) * on_tokens.amax(dim=-1)  # (layers, heads)
    best = scores.flatten().topk(min(count, scores.numel())).indices.tolist()
    return [divmod(place, scores.shape[1]) for place in best]


def read_and_watch(model: FlashVLModel, prompt: Prompt, first: int) -> tuple[Tensor, Tensor]:
    """One pass over T tokens -> logits (1, T - first, V), attention (layers, H, T - first, T).

    Both are those of the tokens from `first` on; the attention is float32.
    """
    names = [f"decoder.layers.{n}.attention" for n in range(model.config.decoder.layers)]
    with recorded(model, [f"{name}.{part}" for name in names for part in ("query", "key")]) as seen:
        logits = model(*prompt, logits_at=slice(first, None))  # (1, T - first, V)
    tokens = prompt.input_ids.shape[1]
    positions = torch.arange(tokens, device=model.device)[None]  # (1, T)
    rotation = rope_rotation(model.config.decoder, positions, model.activation_dtype)
    weights = [
        attention_weights(seen[f"{name}.query"], seen[f"{name}.key"], rotation, first)[0]
        for name in names
    ]  # layers x (H, T - first, T)
    return logits, torch.stack(weights)


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
    values: np.ndarray, grid: Grid, config: FlashVLConfig
) -> tuple[np.ndarray, np.ndarray | None]:
    """A number for each image token (S, tokens) -> the grid's numbers in place, the thumbnail's.

    (rows * side, columns * side), and (side, side) or None, side * side = tokens. A tile's tokens
    are those of its core, so that they lie side by side without overlap; in the stitching mode
    `pool` they reach over the margin too, and are drawn on the core.
    """
    side = math.isqrt(values.shape[1])
    squares = values.reshape(-1, side, side)  # (S, side, side)
    if config.compressor.token_order == "columns":
        squares = squares.transpose(0, 2, 1)  # (S, side, side)
    squares = squares[np.argsort(config.tiler.order(grid))]  # row by row, the thumbnail last
    cells = grid[0] * grid[1]
    tiles = stitch_tiles(squares[:cells, ..., None], grid, 0)[..., 0]  # (rows * side, ...)
    return tiles, squares[cells] if len(squares) > cells else None


def spelled(token_id: int, tokenizer: Tokenizer, shows: Callable[[str], bool] | None = None) -> str:
    """A token as text: quoted, a control token by its name, else by its id.

    `shows` says which letters can be shown, see `drawing.printable`.
    """
    names = {number: name for name, number in tokenizer.control.items()}
    if token_id in names:
        return printable(names[token_id], shows)
    text = tokenizer.decode([token_id])
    if not text or "\ufffd" in text:
        return f"part of a character (id {token_id})" if text else f"id {token_id}"
    return f'"{printable(text, shows)}"'


def shares(answer: list[AnswerToken], tokenizer: Tokenizer) -> str:
    """A table: each token, its probability, and the shares of its attention."""
    rows = [("token", "probability", "tiles", "thumbnail", "text")]
    for token in answer:
        mean = token.mean
        thumbnail = "" if mean.thumbnail is None else f"{mean.thumbnail.sum():.1%}"
        where = (f"{mean.tiles.sum():.1%}", thumbnail, f"{mean.text:.1%}")
        name = spelled(token.token_id, tokenizer, str.isprintable)
        rows.append((name, f"{token.probability:.1%}", *where))
    return table(rows)


def draw(
    image: Image.Image, flash: FlashVL, question: str, answer: list[AnswerToken], words: str
) -> Image.Image:
    """The whole sheet: the question, the legend, and a panel for each token of the answer."""
    tokenizer, stops, tiler = flash.tokenizer, flash.stop_ids, flash.config.tiler
    text = tokenizer.decode([token.token_id for token in answer if token.token_id not in stops])
    cut = "" if answer[-1].token_id in stops else f" (cut off after {len(answer)} tokens)"
    grid = grid_of(image, tiler)
    width = (PANELS_IN_A_ROW - 1) * (PANEL + GAP) - GAP
    several = (
        ": the mean, and below it the heads that look hardest at the picture, with the share that "
        "is on it"
    )
    how = (
        "Each panel shows what the decoder read to choose the token named above it"
        f"{several if len(answer[0].strongest) > 1 else ''}. One square is one token. Each "
        "drawing has a scale of its own. The bars are logarithmic."
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
    """One token: its name, the heat of the mean and of single heads, and the candidates."""
    mean = token.mean
    read = f"Read: tiles {mean.tiles.sum():.0%}, "
    if mean.thumbnail is not None:
        read += f"thumbnail {mean.thumbnail.sum():.0%}, "
    heads = [draw_head(image, grid, *one) for one in token.strongest]
    rows = [beside(heads[start : start + 2], HEAD_GAP) for start in range(0, len(heads), 2)]
    candidates = [
        (spelled(token_id, tokenizer), chance, token_id == token.token_id)
        for token_id, chance in token.candidates
    ]
    parts = [
        paragraph(f"{number}  {spelled(token.token_id, tokenizer)}", PANEL, LARGE),
        draw_heat(image, grid, mean, PICTURE, PANEL - PICTURE - 12, "thumbnail"),
        note(f"{read}text {mean.text:.0%}. The bluest square: {mean.brightest:.1%}", PANEL),
        *(rows if len(heads) > 1 else []),
        bars(candidates, PANEL),
    ]
    return stacked(parts, 8)


def draw_head(
    image: Image.Image, grid: Grid, layer: int, head: int, attention: Attention
) -> Image.Image:
    """One head, small: its name, its heat, and how much of it is on the picture."""
    room = (PANEL - HEAD_GAP) // 2
    words = f"layer {layer}, head {head}: {1 - attention.text:.0%}"
    heat = draw_heat(image, grid, attention, HEAD_PICTURE, room - HEAD_PICTURE - 6, "")
    return stacked([heat, note(words, room)], 2)


def draw_heat(
    image: Image.Image, grid: Grid, attention: Attention, width: int, beside_it: int, name: str
) -> Image.Image:
    """The heat over the picture, `width` pixels wide, and over the thumbnail with its name."""
    most, tallest = attention.brightest, TALLEST * width // PICTURE
    drawn = [heated(image, attention.tiles / most, fitted(*image.size, width, tallest), grid)]
    if attention.thumbnail is not None:
        size = fitted(*image.size, beside_it, tallest)
        small = heated(image, attention.thumbnail / most, size)
        drawn.append(stacked([small, note(name, beside_it)], 2) if name else small)
    return beside(drawn, 12 if name else 6)


def scale() -> Image.Image:
    """The legend: from no attention to the maximum, on white."""
    bar = heated(Image.new("RGB", (1, 1), WHITE), np.linspace(0, 1, 240)[None], (240, 22))
    return beside([paragraph("no attention", 100), bar, paragraph("the most in a drawing", 260)], 8)
