"""From rows to answers: a picture is read once for all questions about it, rows decode together.

Greedy, at most 512 new tokens, as the kit asks. Which rows share a batch depends on the table and
on `batch` alone, so that the number of processes and interruptions change no answer by rounding.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ..chat import FlashVL
from ..device import device_failure_as_error
from ..errors import CheckpointError, DeviceError, FlashVLError, ImageError
from ..generation import generate as generation
from ..generation.sampling import Sampling
from ..input.image import ImageLike, decode_image
from ..input.processor import Prompt
from ..model.cache import KVCache
from ..reading import one_line
from .answers import Answer
from .prompts import options_of
from .tables import Table, TableRow

SAMPLING = Sampling(max_new_tokens=512)


def bundles(rows: Sequence[TableRow], batch: int) -> list[list[TableRow]]:
    """Rows by their pictures, in lists that different processes may answer.

    A list has at most `batch` rows, or all rows of one picture if they are more. Long questions
    come last and together, for in a batch every row is padded to the longest.
    """
    groups: dict[tuple[str | None, int | None], list[TableRow]] = {}
    for number, row in enumerate(rows):
        key = (row.picture, number if row.picture is None else None)
        groups.setdefault(key, []).append(row)
    packed: list[list[TableRow]] = []
    for group in sorted(groups.values(), key=lambda group: max(map(_length, group))):
        if not packed or len(packed[-1]) + len(group) > batch:
            packed.append([])
        packed[-1] += group
    return packed


def _length(row: TableRow) -> int:
    """Of what is asked, in characters, roughly."""
    return len(row.question) + sum(map(len, options_of(row).values()))


class Runner:
    """Answers rows of a table with a model; `text_of` is what is asked about a row.

    `reencode` sends the pictures in a table's cells through JPEG, as the kit did in 2025; files
    that a table names are shown as they are.
    """

    def __init__(
        self,
        flash: FlashVL,
        table: Table,
        text_of: Callable[[TableRow], str],
        reencode: bool = True,
    ) -> None:
        self._flash, self._table, self._text_of = flash, table, text_of
        self._reencode = reencode and "image" in table.columns
        self._shown: _Shown | None = None

    @property
    def device(self) -> torch.device:
        return self._flash.model.device

    def answer(
        self, rows: Sequence[TableRow], batch: int, done: Container[str] = ()
    ) -> Iterator[list[Answer]]:
        """The answers of at most `batch` rows at a time, in the order of the rows.

        Those with an index in `done` are left out. What is wrong with a row is its answer's error.
        Raises `DeviceError`.
        """
        for start in range(0, len(rows), batch):
            left = [row for row in rows[start : start + batch] if row.index not in done]
            if left:
                with device_failure_as_error("answering a batch of rows"):
                    answers = self._answer_together(left)
                yield answers

    def _answer_together(self, rows: Sequence[TableRow]) -> list[Answer]:
        read: dict[str, generation.Row] = {}
        errors: dict[str, FlashVLError] = {}
        for number, row in enumerate(rows, 1):
            try:
                read[row.index] = self._read(row, number)
            except DeviceError:
                raise
            except FlashVLError as error:
                errors[row.index] = error
        try:
            self._decode(list(read.values()))
        except CheckpointError as error:  # numbers that are not finite, in one of the rows
            if len(rows) > 1:
                return [answer for row in rows for answer in self._answer_together([row])]
            errors[rows[0].index] = error
        return [
            Answer(row.index, None, _named(row, errors[row.index]))
            if row.index in errors
            else Answer(row.index, self._text(read[row.index].ids))
            for row in rows
        ]

    def _read(self, row: TableRow, number: int) -> generation.Row:
        """Reads a row's question on top of its picture, which may have been read already.

        Raises as `chat`, and `TableError`.
        """
        flash, messages = self._flash, [{"role": "user", "content": self._text_of(row)}]
        shown = self._shown
        if shown is None or shown.picture != row.picture:
            self._shown = None  # its memory is free before the next picture takes some
            with torch.inference_mode():
                prompt = flash.prepare(self._load(row), messages)
            self._shown = shown = _Shown(row.picture, prompt)
        tiles = 0 if shown.prompt.pixels is None else len(shown.prompt.pixels)
        input_ids = flash.processor.encode(messages, tiles)  # (1, T)
        tokens = input_ids.shape[1]
        generation.check_length(tokens, flash.config.decoder.context)
        if shown.cache is None:
            shown.cache = generation.read_picture(flash.model, shown.prompt)
        prompt = Prompt(input_ids, None, []).to(flash.model.device)
        cache = shown.cache.copied(tokens)
        return generation.read_prompt(flash.model, prompt, SAMPLING, cache, number)

    def _decode(self, rows: list[generation.Row]) -> None:
        if rows:
            flash = self._flash
            for _ in generation.generate(
                flash.model, rows, SAMPLING, flash.stop_ids, flash.begin_decode
            ):
                pass  # the rows hold their answers

    def _text(self, ids: Sequence[int]) -> str:
        return "".join(generation.whole_characters(iter(ids), self._flash.tokenizer))

    def _load(self, row: TableRow) -> ImageLike | None:
        if row.picture is None:
            return None
        return load_picture(self._table.picture(row), self._reencode)


def _named(row: TableRow, error: FlashVLError) -> str:
    """What is wrong with a row, as one line that names it."""
    text = str(error)
    return text if text.startswith(row.place) else str(FlashVLError(f"{row.place}: {text}"))


@dataclass
class _Shown:
    """The picture that was read last, with the prompt of its first question."""

    picture: str | None
    prompt: Prompt
    cache: KVCache | None = None


def load_picture(contents: bytes, reencode: bool) -> np.ndarray:
    """A picture's file as the kit shows it, (height, width, 3) uint8. Raises `ImageError`.

    Unlike `chat`, the kit drops transparency and does not turn pictures as their EXIF says.
    """
    picture = decode_image(contents, "its picture")
    if picture.mode in ("RGBA", "P", "LA"):
        picture = picture.convert("RGB")
    if reencode:
        file = io.BytesIO()
        try:
            picture.save(file, "JPEG")
        except (OSError, ValueError) as error:
            raise ImageError(f"its picture cannot become a JPEG: {one_line(error)}") from error
        picture = Image.open(file)
    return np.asarray(picture.convert("RGB"))
