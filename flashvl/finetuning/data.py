"""Samples to learn from: read in the two usual forms, and all checked before the first step.

LLaVA's {"image", "conversations": [{"from": "human" | "gpt", "value"}]} and chat tools'
{"messages": [{"role", "content"}], "images"}, as one JSON list or a line each. `<image>` at the
beginning or the end of the first question stands for the picture, which the model reads before it.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError, FlashVLError
from ..input.image import load_image
from ..input.processor import Processor
from ..input.prompt import MAX_CHARACTERS_PER_TOKEN, Message, read_messages
from ..input.tiling import grid_of
from ..reading import STRICT_JSON, one_line, read_path, shown
from ..storage import MEBIBYTE, read_bounded
from ..terminal import end_progress, show_progress
from ..training.processes import Processes

MAX_FILE_BYTES = 4096 * MEBIBYTE
IMAGE = "<image>"
BETWEEN = re.compile(r"[ \t\r\n]*([\],]?)[ \t\r\n]*")  # samples of a list
ROLES = {"human": "user", "gpt": "assistant"}  # LLaVA's words; others stay
NOT_READ = ("video", "videos", "audio", "audios", "tools")


@dataclass(frozen=True)
class Sample:
    """A conversation about a picture or none. `place` is its file and line, for errors."""

    place: str
    image: Path | None
    messages: Sequence[Message]


@dataclass(frozen=True)
class Checked:
    """A sample that can be learned from. `lengths` are the tokens of each of its rows."""

    sample: Sample
    lengths: tuple[int, ...]


def read_samples(file: Path, images: Path | None = None) -> list[Sample]:
    """All samples of a file. A picture's path begins at `images`, or at the file's own folder.

    Raises `DataError` that names the file and the line of the first sample that is none.
    """
    folder = Path(os.path.abspath(file.parent if images is None else images))
    samples = []
    for line, values in _entries(file):
        place = f"{file.name}, line {line}"
        try:
            samples.append(_sample(values, place, folder))
        except FlashVLError as error:
            raise DataError(f"{place}: {error}") from error
    if not samples:
        raise DataError(f"{file} has no samples")
    return samples


def _entries(file: Path) -> Iterator[tuple[int, Any]]:
    """Each sample of a JSON list, or of a file with one in each line, and the line it begins at."""
    line, place = 1, 0
    try:
        text = read_bounded(file, MAX_FILE_BYTES).decode("utf-8-sig")
        if text.lstrip()[:1] != "[":
            for line, one in enumerate(text.split("\n"), 1):
                if one.strip():
                    yield line, STRICT_JSON.decode(one)
            return
        end = text.index("[") + 1
        between = BETWEEN.match(text, end)
        while between and between[1] != "]":
            line, place = line + text.count("\n", place, between.end()), between.end()
            value, end = STRICT_JSON.raw_decode(text, place)
            yield line, value
            between = BETWEEN.match(text, end)
            if not between or not between[1]:
                raise ValueError("after this sample the list is cut short, or lacks a comma")
        if between and text[between.end() :].strip():
            raise ValueError("something stands after the end of the list")
    except OSError as error:
        raise DataError(f"{file} cannot be read: {one_line(error)}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{file.name}, line {line}: it is not text in UTF-8") from error
    except (ValueError, RecursionError) as error:
        reason = one_line(error)
        if isinstance(error, json.JSONDecodeError):
            line, reason = line + error.doc.count("\n", place, error.pos), error.msg
        raise DataError(f"{file.name}, line {line}: it is not valid JSON: {reason}") from error


def _sample(values: Any, place: str, folder: Path) -> Sample:
    """One entry of a file. Raises a `FlashVLError` that does not say where it stands."""
    if not isinstance(values, Mapping):
        raise DataError(f"a sample must be a JSON object, found {shown(values)}")
    forms = [key for key in ("conversations", "messages") if key in values]
    if len(forms) != 1:
        raise DataError('a sample must have either "conversations" or "messages"')
    for key in NOT_READ:
        if values.get(key):
            raise DataError(f'the model reads no "{key}"; take it out')
    turns = values[forms[0]]
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise DataError(f'"{forms[0]}" must be a list of turns, found {shown(turns)}')
    role, content = ("from", "value") if forms[0] == "conversations" else ("role", "content")
    messages: list[dict[str, Any]] = []
    paths = _paths(values)
    marks = 0
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn.get(role), str):
            raise DataError(f'turn {number} must have a "{role}" and a "{content}"')
        text, its_marks = turn.get(content), 0
        if isinstance(text, list):
            text, its_paths, its_marks = _read_parts(text, number)
            paths += its_paths
        its_role = ROLES.get(turn[role], turn[role])
        if its_role == "user" and isinstance(text, str):
            text, more = _without_mark(text, number)
            its_marks += more
        if its_marks and any(one["role"] == "user" for one in messages):
            raise DataError(f"turn {number}: the picture must stand in the first question")
        marks += its_marks
        messages.append({"role": its_role, "content": text})
    read_messages(messages, last="assistant")
    if max(len(paths), marks) > 1:
        raise DataError(f"it has {max(len(paths), marks)} pictures, and the model takes one")
    if marks > len(paths):
        raise DataError(f"it has {IMAGE} in a question, but names no picture")
    return Sample(place, _inside(paths[0], folder) if paths else None, messages)


def _paths(values: Mapping[str, Any]) -> list[Any]:
    paths: list[Any] = []
    for key in ("image", "images"):
        found = values.get(key)
        paths += found if isinstance(found, list) else [] if found is None else [found]
    return paths


def _read_parts(parts: list[Any], number: int) -> tuple[str, list[Any], int]:
    """A turn's content in parts -> its text, the paths in it, how many pictures stand in it."""
    texts, paths, marks = [], [], 0
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image":
            marks += 1
            paths += [part[key] for key in ("image", "path") if part.get(key) is not None]
        else:
            raise DataError(
                f'turn {number}: parts are {{"type": "text", "text"}} or {{"type": "image"}}, '
                f"found {shown(part)}"
            )
    return "".join(texts), paths, marks


def _without_mark(text: str, number: int) -> tuple[str, int]:
    """A question without the picture's mark and the line break beside it; how many it had."""
    count = text.count(IMAGE)
    if text.startswith(IMAGE):
        text = text.removeprefix(IMAGE).removeprefix("\n")
    elif text.endswith(IMAGE):
        text = text.removesuffix(IMAGE).removesuffix("\n")
    elif count:
        raise DataError(f"turn {number}: {IMAGE} must stand at the beginning or the end")
    return text, count


def _inside(path: object, folder: Path) -> Path:
    """A picture's path. Raises `DataError` if it leads out of the folder of pictures."""
    whole = Path(os.path.normpath(folder / read_path(path, "image", DataError)))
    if not whole.is_relative_to(folder):
        raise DataError(
            f"the picture {shown(path)} lies outside the folder of pictures, {folder}; name a "
            "folder that holds it"
        )
    return whole


def check_samples(
    samples: Sequence[Sample], processor: Processor, skip_long: bool, together: Processes
) -> list[Checked]:
    """Opens every picture and counts every token, each process a share of them.

    What is longer than the model's context is an error, or with `skip_long` left out. Raises
    `DataError` for the first sample that cannot be learned from.
    """
    tiles: dict[Path, int] = {}
    mine: list[tuple[int, ...] | DataError] = []
    for number, sample in enumerate(samples[together.rank :: together.count]):
        if together.rank == 0 and number % 50 == 0:
            done = number * together.count / len(samples)
            show_progress(f"checking {len(samples)} samples", done)
        try:
            mine.append(_lengths(sample, processor, skip_long, tiles))
        except FlashVLError as error:
            mine.append(DataError(f"{sample.place}: {error}"))
    end_progress()
    all_found = together.gathered(mine)
    found = [
        all_found[number % together.count][number // together.count]
        for number in range(len(samples))
    ]
    errors = [one for one in found if isinstance(one, DataError)]
    if errors:
        more = f"; {len(errors) - 1} more cannot be learned from" if len(errors) > 1 else ""
        raise DataError(f"{errors[0]}{more}")
    checked = [
        Checked(one, its) for one, its in zip(samples, found) if isinstance(its, tuple) and its
    ]
    if not checked:
        raise DataError("all samples are longer than the model's context")
    return checked


def _lengths(
    sample: Sample, processor: Processor, skip_long: bool, tiles: dict[Path, int]
) -> tuple[int, ...]:
    """Tokens of each of a sample's rows; none if it is too long and that is to be passed over."""
    tiler = processor.config.tiler
    if sample.image is not None and sample.image not in tiles:
        tiles[sample.image] = tiler.tiles(grid_of(load_image(sample.image), tiler))
    context = processor.config.decoder.context
    characters = sum(len(message["content"]) for message in sample.messages)
    lengths: tuple[int, ...] = ()
    is_long = len(sample.messages) > context or characters > MAX_CHARACTERS_PER_TOKEN * context
    if not is_long:
        count = 0 if sample.image is None else tiles[sample.image]
        rows = processor.encode_example(sample.messages, count)
        lengths = tuple(len(ids) for ids, _ in rows)
        is_long = max(lengths) > context
    if is_long and not skip_long:
        long = f"of {max(lengths)} tokens" if lengths else f"of {characters} characters"
        raise DataError(f"the sample, {long}, is longer than the model's context, {context} tokens")
    return () if is_long else lengths


def held_out(
    samples: Sequence[Checked], share: float, seed: int
) -> tuple[list[Checked], list[Checked]]:
    """Samples to learn from, and a share that is held out, all of a picture on one side.

    Raises `DataError` if one side is empty.
    """
    by_picture: dict[object, list[Checked]] = {}
    for number, one in enumerate(samples):
        by_picture.setdefault(one.sample.image or number, []).append(one)
    pictures = list(by_picture.values())
    random.Random(seed).shuffle(pictures)
    sides: tuple[list[Checked], list[Checked]] = ([], [])
    for its in pictures:
        sides[len(sides[1]) < share * len(samples)].extend(its)
    if not all(sides):
        raise DataError(f"of {len(samples)} samples a share of {share:g} cannot be held out")
    return sides
