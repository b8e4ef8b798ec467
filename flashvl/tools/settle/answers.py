"""Answers that somebody has recorded from the published code, line by line in a file.

Each line is {"image", "messages", "answer"}: a file beside the lines' own, the conversation up to
its last user turn, and the greedy answer to it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import ArgumentError, FlashVLError
from ...input.image import load_image
from ...input.prompt import read_messages
from ...input.tokenizer import Tokenizer
from ...reading import MAX_TEXT_BYTES, Reader, one_line
from ...storage import read_bounded
from .measure import Sample


def read_answers(file: Path, tokenizer: Tokenizer) -> list[Sample]:
    """One sample for each line. Raises `ArgumentError` that names the line.

    Empty answers, which tell nothing, are left out.
    """
    try:
        lines = read_bounded(file, MAX_TEXT_BYTES).decode("utf-8").splitlines()
    except OSError as error:
        raise ArgumentError(f"{file} cannot be read: {one_line(error)}") from error
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{file} is no text in UTF-8: {one_line(error)}") from error
    samples = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                sample = read_line(line, f"line {number}", file.parent)
            except (FlashVLError, ValueError, RecursionError) as error:
                raise ArgumentError(f"line {number} of {file}: {one_line(error)}") from error
            if tokenizer.encode(sample.conversations[0][1]):
                samples.append(sample)
    if not samples:
        raise ArgumentError(f"{file} has no answers")
    return samples


def read_line(line: str, name: str, folder: Path) -> Sample:
    """Raises `FlashVLError` or `ValueError` for a line of another form."""
    values: Any = json.loads(line)
    reader = Reader(values, "the line")
    for key in ("image", "answer"):
        if not isinstance(reader.values.get(key), str):
            raise ArgumentError(f'"{key}" must be a text')
    messages = read_messages(reader.values.get("messages"))
    answer, picture = reader.text("answer", ""), folder / reader.text("image", "")
    load_image(picture)  # a damaged one is told of now, not after hours
    return Sample(name, picture, [(messages, answer)])
