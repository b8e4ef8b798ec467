"""`flashvl score`: how often a model's greedy answers about unseen scenes are right.

A greedy answer is right exactly if, after the question and every beginning of the right answer,
the next id of the right answer is the likeliest. So one pass over question and answer together
tells what generating would give; `tests/nano` holds this against `chat`.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from ..chat import FlashVL
from ..config import Grid
from ..device import device_failure_as_error
from ..errors import ArgumentError
from ..input.processor import normalize
from ..input.tiling import tile_image
from ..reading import MAX_INTEGER, shown
from ..terminal import end_progress, show_progress, table
from .data import MAX_SEED, SceneBatch, encode_side_by_side, pad
from .world.questions import LANGUAGES, QUESTION_KINDS, Question
from .world.scenes import scene, scoring_number
from .world.things import Box

# The table's rows -> kind, and whether across a seam where that matters.
ROWS: dict[str, tuple[str, bool | None]] = {
    **{kind: (kind, None) for kind in QUESTION_KINDS},
    "all": ("all", None),
    "number across a seam": ("number", True),
    "number within a tile": ("number", False),
}
# (kind, language, whether it is of a number that lies across a seam) -> right, asked
Score = dict[tuple[str, str, bool], tuple[int, int]]


def score(flash: FlashVL, numbers: Iterable[int]) -> Score:
    """Asks the questions of the scenes of these numbers, each in a conversation of its own."""
    right: Counter[tuple[str, str, bool]] = Counter()
    asked: Counter[tuple[str, str, bool]] = Counter()
    for number in numbers:
        drawn = scene(number)
        tiles, grid = tile_image(drawn.picture, flash.config.tiler)
        written, size = drawn.written, drawn.picture.size
        across = written is not None and crosses_seam(written.box, size, grid)
        answers = right_answers(flash, tiles, grid, drawn.questions)
        for question, is_right in zip(drawn.questions, answers):
            key = (question.kind, question.language, question.kind == "number" and across)
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
def right_answers(
    flash: FlashVL, tiles: np.ndarray, grid: Grid, questions: Sequence[Question]
) -> list[bool]:
    """For each question about one picture, whether the greedy answer is the right one.

    tiles (S, height, width, C) uint8 and the grid, as `tile_image` gives them.
    """
    if not questions:
        return []
    tiler = flash.config.tiler
    pixels = normalize(tiles, tiler.mean, tiler.std)  # (S, C, height, width)
    each_alone = [[question] for question in questions]
    row = encode_side_by_side(each_alone, flash.tokenizer, flash.config, len(tiles))
    batch = SceneBatch(pixels, [grid], *pad([row])).to(flash.model.device)
    logits = flash.model(
        batch.input_ids,
        batch.pixels,
        batch.grids,
        positions=batch.positions,
        mask=batch.mask,
        logits_at=batch.before_answer,
    )  # (answer tokens, V)
    wrong = logits.argmax(-1) != batch.labels[batch.is_answer]  # (answer tokens)
    wrong_owners = set(batch.owners[batch.is_answer][wrong].tolist())
    return [number not in wrong_owners for number in range(1, len(questions) + 1)]


def as_table(result: Score) -> str:
    """A row for each kind of question, a column for each language, and all together."""
    columns = (*LANGUAGES, "all")
    rows = [["questions", *columns]]
    for row, (kind, across) in ROWS.items():
        shares = (_share(result, kind, column, across) for column in columns)
        rows.append([row, *("-" if share is None else f"{share:.1%}" for share in shares)])
    return table(rows)


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


def run(options: argparse.Namespace) -> None:
    if not 1 <= options.scenes <= MAX_INTEGER:
        raise ArgumentError(
            f"--scenes must be from 1 to {MAX_INTEGER}, found {shown(options.scenes)}"
        )
    if not 0 <= options.seed <= MAX_SEED:
        raise ArgumentError(f"--seed must be from 0 to {MAX_SEED}, found {shown(options.seed)}")
    flash = FlashVL.from_pretrained(
        options.model,
        options.device,
        assumptions=options.assumptions,
        quantize=options.quantize,
        adapter=options.adapter,
    )
    with device_failure_as_error("scoring"):
        result = score(flash, _numbers_with_progress(options.seed, options.scenes))
    print(as_table(result))
    print(as_json(result, options.model, options.scenes, options.seed))


def _numbers_with_progress(seed: int, scenes: int) -> Iterator[int]:
    for index in range(scenes):
        if index % 20 == 0:
            show_progress(f"{index} of {scenes} scenes", index / scenes)
        yield scoring_number(seed, index)
    end_progress()
