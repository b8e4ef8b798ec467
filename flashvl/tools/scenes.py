"""`flashvl scenes`: nano's own pictures and questions as files, for `flashvl finetune`.

What nano is not asked while it learns something new it forgets; these ask it again.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .. import storage
from ..errors import ArgumentError
from ..nano.data import MAX_SEED
from ..nano.world.questions import Question, without_picture
from ..nano.world.scenes import Scene, scene, training_number
from ..reading import MAX_INTEGER, one_line, read_path, shown
from ..terminal import end_progress, show_progress

SAMPLES = "scenes.json"
WITHOUT = 10  # of so many scenes, one is also asked about where no picture is shown
ROUNDS = 4  # of these conversations


def samples_of(drawn: Scene, picture: str) -> list[dict[str, Any]]:
    """All of a scene's questions as one conversation in LLaVA's form, in an order of chance.

    Now and then a shorter one follows that is without the picture, whose file is `picture`.
    """
    order = np.random.default_rng((drawn.number, 3)).permutation(len(drawn.questions))
    asked = [drawn.questions[place] for place in order]
    first, *others = _turns(asked)
    marked = {**first, "value": f"<image>\n{first['value']}"}
    samples: list[dict[str, Any]] = [
        {"id": str(drawn.number), "image": picture, "conversations": [marked, *others]}
    ]
    if drawn.number // 2 % WITHOUT == 0:
        turns = _turns(without_picture(one) for one in asked[:ROUNDS])
        samples.append({"id": f"{drawn.number} unseen", "conversations": turns})
    return samples


def _turns(asked: Iterable[Question]) -> list[dict[str, str]]:
    return [
        {"from": role, "value": text}
        for one in asked
        for role, text in (("human", one.text), ("gpt", one.answer))
    ]


def write_scenes(folder: Path, scenes: int, seed: int) -> Path:
    """Draws scenes that nano may have been trained on, never scored on -> the file of samples.

    Raises `ArgumentError` if the folder is there already or cannot be written.
    """
    samples = []
    try:
        folder.mkdir(parents=True)
        for index in range(scenes):
            if index % 20 == 0:
                show_progress(f"{index} of {scenes} scenes", index / scenes)
            drawn = scene(training_number(seed, index))
            picture = io.BytesIO()
            drawn.picture.save(picture, "PNG")
            storage.write_new(folder / f"{index}.png", picture.getvalue())
            samples += samples_of(drawn, f"{index}.png")
        lines = ",\n".join(json.dumps(one, ensure_ascii=False) for one in samples)
        storage.write_new(folder / SAMPLES, f"[\n{lines}\n]\n".encode())
    except FileExistsError as error:
        raise ArgumentError(f"{folder} is there already; choose another folder") from error
    except OSError as error:
        raise ArgumentError(f"{folder} cannot be written: {one_line(error)}") from error
    finally:
        end_progress()
    return folder / SAMPLES


def run(options: argparse.Namespace) -> None:
    for name, value, least, most in (
        ("--scenes", options.scenes, 1, MAX_INTEGER),
        ("--seed", options.seed, 0, MAX_SEED),
    ):
        if not least <= value <= most:
            raise ArgumentError(f"{name} must be from {least} to {most}, found {shown(value)}")
    file = write_scenes(read_path(options.out, "out"), options.scenes, options.seed)
    print(f"{options.scenes} scenes; to learn from them beside your own: --data YOURS {file}")
