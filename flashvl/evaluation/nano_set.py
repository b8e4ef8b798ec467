"""`--data nano`: a table of questions in the kit's form, drawn from nano's world; no download.

Each picture has four questions: one has four options, one is answered by yes or no, two are open.
It stands in the row of the first; the others have that row's index in its place.
"""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterator
from itertools import count, islice

import numpy as np

from ..nano.world.questions import Question
from ..nano.world.scenes import Scene, scene, scoring_number
from ..nano.world.things import COLORS, SHAPES, pick

NAME = "nano"
SEED = 15  # scenes that neither training nor the score of nano's README draws
SCENES = 500
COLUMNS = ("index", "category", "question", "A", "B", "C", "D", "answer", "image")
WORDS = {"color": tuple(COLORS), "shape": SHAPES}  # the options of these kinds of question
OPEN = ("count", "number", "description", "list", "absent")


def nano_table(scenes: int = SCENES) -> bytes:
    """A TSV file's contents, the same on every machine with the same Pillow and numpy."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, COLUMNS, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    index = 0
    for drawn, rows in islice(_scenes_with_rows(), scenes):
        image: str | int = _encode(drawn)
        for row in rows:
            writer.writerow({"index": index, "image": image} | row)
            image = image if isinstance(image, int) else index
            index += 1
    return file.getvalue().encode()


def _scenes_with_rows() -> Iterator[tuple[Scene, list[dict[str, str]]]]:
    """Scenes about which all four questions can be asked, and the questions as rows."""
    for index in count():
        drawn = scene(scoring_number(SEED, index))
        random = np.random.default_rng((drawn.number, 2))
        english = {one.kind: one for one in drawn.questions if one.language == "en"}
        kinds = [kind for kind in WORDS if kind in english]
        open_ones = [one for one in drawn.questions if one.kind in OPEN]
        if kinds:
            first, presence = english[pick(kinds, random)], english["presence"]
            two = random.choice(len(open_ones), 2, replace=False)
            rows = [_row(first) | _options(first, random)]
            rows.append(_row(presence) | {"answer": presence.answer.removesuffix(".")})
            yield drawn, rows + [_row(open_ones[place]) for place in two]


def _row(question: Question) -> dict[str, str]:
    return {"category": question.kind, "question": question.text, "answer": question.answer}


def _options(question: Question, random: np.random.Generator) -> dict[str, str]:
    """Four options, one of them the right answer, and as the new answer its letter."""
    others = [word for word in WORDS[question.kind] if word != question.answer]
    words = [question.answer, *random.choice(others, 3, replace=False)]
    options = {letter: words[place] for letter, place in zip("ABCD", random.permutation(4))}
    letters = {word: letter for letter, word in options.items()}
    return options | {"answer": letters[question.answer]}


def _encode(drawn: Scene) -> str:
    """The picture as PNG in base64."""
    file = io.BytesIO()
    drawn.picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")
