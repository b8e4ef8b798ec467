"""`flashvl score`: how often a model's greedy answers about unseen scenes are right.

A greedy answer is right exactly if, after the question and every beginning of the right answer,
the next id of the right answer is the likeliest. So one pass over question and answer together
tells what generating would give; `tests/nano` holds this against `chat`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable

import torch

from ..errors import ArgumentError
from ..image import normalise
from ..model import FlashVL
from ..quantising import WIDTHS
from ..tiling import Grid, tile_image
from .data import SceneBatch, encode_side_by_side, pad
from .packed import IGNORED
from .questions import KINDS, LANGUAGES, Question
from .scenes import scene, scoring_number
from .things import Box

# The table's rows -> kind, and whether across a seam where that matters.
ROWS = {kind: (kind, None) for kind in (*KINDS, "all")} | {
    "number across a seam": ("number", True),
    "number within a tile": ("number", False),
}
WIDTH = max(map(len, ROWS))  # of the names of the rows
# (kind, language, whether it is of a number that lies across a seam) -> right, asked
Score = dict[tuple[str, str, bool], tuple[int, int]]


def score(model: FlashVL, numbers: Iterable[int]) -> Score:
    """Asks the questions of the scenes of these numbers, each in a conversation of its own."""
    right, asked = Counter(), Counter()
    for number in numbers:
        drawn = scene(number)
        tiles, grid = tile_image(drawn.picture, model.config.tiler)
        across = drawn.written and crosses_seam(drawn.written.box, drawn.picture.size, grid)
        answers = right_answers(model, tiles, grid, drawn.questions)
        for question, is_right in zip(drawn.questions, answers):
            key = (question.kind, question.language, question.kind == "number" and bool(across))
            asked[key] += 1
            right[key] += is_right
    return {key: (right[key], asked[key]) for key in asked}


def crosses_seam(box: Box, size: tuple[int, int], grid: Grid) -> bool:
    """Whether a box in a picture of `size` (width, height) lies in more than one tile's core."""
    return any(
        first < extent * place / cells < last
        for extent, cells, first, last in (
            (size[0], grid[1], box[0], box[2]),
            (size[1], grid[0], box[1], box[3]),
        )
        for place in range(1, cells)
    )


@torch.inference_mode()
def right_answers(model: FlashVL, tiles, grid, questions: tuple[Question, ...]) -> list[bool]:
    """For each question about one picture, whether the greedy answer is the right one.

    tiles (S, height, width, C) uint8, as `tile_image` gives them.
    """
    if not questions:
        return []
    tiler = model.config.tiler
    pixels = normalise(tiles, tiler.mean, tiler.std)  # (S, C, height, width)
    each_alone = [[question] for question in questions]
    row = encode_side_by_side(each_alone, model.tokenizer, model.config, len(tiles))
    batch = SceneBatch(pixels, [grid], [len(tiles)], *pad([row])).to(model.device)
    embeddings = model.embed(batch.input_ids, model.encode(batch.pixels, grid))  # (1, T, D)
    hidden = model.decoder(embeddings, positions=batch.positions, mask=batch.mask)  # (1, T, D)
    asked = batch.labels != IGNORED  # (1, T)
    logits = model.decoder.head(hidden[:, :-1][asked[:, 1:]])  # (answer tokens, V)
    wrong = logits.argmax(-1) != batch.labels[asked]  # (answer tokens)
    wrong_owners = set(batch.owners[asked][wrong].tolist())
    return [number not in wrong_owners for number in range(1, len(questions) + 1)]


def as_table(result: Score) -> str:
    """A row for each kind of question, a column for each language, and all together."""
    columns = (*LANGUAGES, "all")
    lines = [" " * WIDTH + "".join(f"{column:>9}" for column in columns)]
    for row, (kind, across) in ROWS.items():
        shares = (_share(result, kind, column, across) for column in columns)
        cells = ("-" if share is None else f"{share:.1%}" for share in shares)
        lines.append(f"{row:{WIDTH}}" + "".join(f"{cell:>9}" for cell in cells))
    return "\n".join(lines)


def as_json(result: Score, model: str, scenes: int, seed: int) -> str:
    shares = {
        f"{row.replace(' ', '_')}_{language}": _share(result, kind, language, across)
        for row, (kind, across) in ROWS.items()
        for language in (*LANGUAGES, "all")
    }
    asked = sum(asked for _, asked in result.values())
    return json.dumps({"model": model, "scenes": scenes, "seed": seed, "questions": asked} | shares)


def _share(result: Score, kind: str, language: str, across: bool | None = None) -> float | None:
    """Right answers of those asked, or None if none was asked."""
    chosen = [
        counts
        for (its_kind, its_language, its_across), counts in result.items()
        if kind in (its_kind, "all")
        and language in (its_language, "all")
        and across in (its_across, None)
    ]
    asked = sum(asked for _, asked in chosen)
    return round(sum(right for right, _ in chosen) / asked, 4) if asked else None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="nano", help='"nano" or a folder (default: nano)')
    parser.add_argument("--scenes", type=int, default=1000, metavar="N", help="default: 1000")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes (default: 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--quantize", choices=WIDTHS, help="the decoder's weights as int8")


def run(options: argparse.Namespace) -> None:
    if options.scenes < 1:
        raise ArgumentError(f"--scenes must be at least 1, found {options.scenes}")
    if not 0 <= options.seed < 2**20:
        raise ArgumentError(f"--seed must be from 0 to {2**20 - 1}, found {options.seed}")
    model = FlashVL.from_pretrained(options.model, options.device, quantize=options.quantize)
    numbers = [scoring_number(options.seed, index) for index in range(options.scenes)]
    result = score(model, _with_progress(numbers))
    print(as_table(result))
    print(as_json(result, options.model, options.scenes, options.seed))


def _with_progress(numbers: list[int]) -> Iterable[int]:
    for done, number in enumerate(numbers):
        if done % 20 == 0:
            print(f"\r{done} of {len(numbers)} scenes", end="", file=sys.stderr, flush=True)
        yield number
    print("\r" + " " * 40 + "\r", end="", file=sys.stderr)
