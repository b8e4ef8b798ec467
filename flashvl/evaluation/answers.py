"""Answers on disk: never lost, never asked for twice, never mixed with those of another run.

`MODEL_SET.jsonl` grows by a line for each row as answers come, beside it `MODEL_SET.json` says
whose they are. Of several processes each has a file, and the first gathers them at the end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import storage
from ..errors import ArgumentError
from ..reading import one_line, read_json, shown


@dataclass(frozen=True)
class Answer:
    """What the model said to a row, or the error that kept it from an answer."""

    index: str
    prediction: str | None
    error: str | None = None


class Answers:
    """The answers of one model to one table, in the files of a folder whose names begin so.

    `process` counts the processes that answer the table together from 0.
    """

    def __init__(self, folder: Path, name: str, process: int = 0) -> None:
        self.name = name
        self.file = folder / f"{name}.jsonl"
        self.settings_file = folder / f"{name}.json"
        self._own = self.file if process == 0 else self.file.with_name(f"{name}.jsonl.{process}")
        self.by_index: dict[str, Answer] = {}

    def claim(self, settings: dict[str, str | None]) -> None:
        """Makes the files those of a run with these settings, or finds that they are.

        Raises `ArgumentError` if there are files of that name that another run has written.
        """
        if self.settings_file.exists():
            found = read_json(self.settings_file, ArgumentError)
            different = [key for key in found | settings if found.get(key) != settings.get(key)]
            if different:
                values = ", ".join(f"{key} {shown(found.get(key))}" for key in different)
                raise ArgumentError(
                    f"{self.settings_file} is of a run with other settings ({values}); "
                    "give another --out"
                )
            return
        for suffix in (".jsonl", ".tsv", ".xlsx"):
            if (taken := self.settings_file.with_suffix(suffix)).exists():
                raise ArgumentError(
                    f"{taken} is there already and no {self.settings_file.name} says whose it is; "
                    "give another --out"
                )
        storage.write_new(self.settings_file, json.dumps(settings, indent=2).encode() + b"\n")

    def read(self) -> None:
        """Takes up what there is of all processes; a line that was cut off is left out."""
        for file in (self.file, *self._parts()):
            if file.exists():
                for line in file.read_bytes().splitlines():
                    answer = _parse(line)
                    # The other processes' files hold what the first one's may hold as an error.
                    if answer is not None and (
                        answer.error is None or answer.index not in self.by_index
                    ):
                        self.by_index[answer.index] = answer

    def add(self, answers: Sequence[Answer]) -> None:
        """Appends them in one piece. Raises `ArgumentError` if that fails."""
        lines = b"".join(map(_line, answers))
        try:
            with self._own.open("ab+") as opened:
                if opened.tell():
                    opened.seek(-1, 2)
                    if opened.read(1) != b"\n":  # a run was cut off within a line
                        lines = b"\n" + lines
                opened.write(lines)
        except OSError as error:
            raise ArgumentError(f"{self._own} cannot be written: {one_line(error)}") from error
        self.by_index |= {answer.index: answer for answer in answers}

    def gather(self, order: Sequence[str]) -> None:
        """Brings all answers into one file, in the order of these indices."""
        self.read()
        answers = [self.by_index[index] for index in order if index in self.by_index]
        passing = self.file.with_name(f".{self.file.name}.writing")
        storage.replace(self.file, b"".join(map(_line, answers)), passing)
        for part in self._parts():
            part.unlink()

    def _parts(self) -> list[Path]:
        pattern = re.compile(re.escape(self.file.name) + r"\.\d+")
        return sorted(file for file in self.file.parent.iterdir() if pattern.fullmatch(file.name))


def _line(answer: Answer) -> bytes:
    said = {"prediction": answer.prediction} if answer.error is None else {"error": answer.error}
    # In ASCII: some readers take a line break of Unicode for the end of the line.
    return json.dumps({"index": answer.index} | said).encode("ascii") + b"\n"


def _parse(line: bytes) -> Answer | None:
    try:
        found = json.loads(line)
        index, prediction, error = found["index"], found.get("prediction"), found.get("error")
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    texts = [index, error if prediction is None else prediction]
    return Answer(index, prediction, error) if all(isinstance(one, str) for one in texts) else None
