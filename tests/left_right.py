"""A concept that nano does not know, as a person would write it down: pictures and LLaVA's JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from PIL import Image

from flashvl.nano.world.scenes import Scene, scene, scoring_number, training_number


def pairs(numbers: Iterator[int]) -> Iterator[Scene]:
    """Scenes of two different objects, one of them clearly left of the other."""
    for number in numbers:
        drawn = scene(number, things=(2, 2), max_aspect_ratio=2.0)
        if len(drawn.objects) == 2:
            one, other = drawn.objects
            apart = abs(middle(one.box) - middle(other.box)) > 0.15 * drawn.picture.width
            if apart and (one.shape, one.color) != (other.shape, other.color):
                yield drawn


def middle(box: tuple[int, int, int, int]) -> float:
    return (box[0] + box[2]) / 2


def questions(drawn: Scene) -> list[tuple[str, str]]:
    """What is on either side."""
    by_place = sorted(drawn.objects, key=lambda one: middle(one.box))
    return [
        (f"What is on the {side}?", f"a {one.color} {one.shape}")
        for side, one in zip(("left", "right"), by_place)
    ]


def unseen(scenes: int) -> Iterator[tuple[Image.Image, str, str]]:
    """Pictures, questions and right answers of other scenes."""
    drawn = pairs(scoring_number(7, index) for index in count())
    for _ in range(scenes):
        one = next(drawn)
        yield from ((one.picture, *asked) for asked in questions(one))


def write_samples(folder: Path, scenes: int) -> Path:
    """PNG files, and beside them a file of samples."""
    samples = []
    folder.mkdir()
    drawn = pairs(training_number(7, index) for index in count())
    for number in range(scenes):
        one = next(drawn)
        name = f"{number}.png"
        one.picture.save(folder / name)
        samples += [sample(name, *asked) for asked in questions(one)]
    file = folder / "samples.json"
    file.write_text(json.dumps(samples, indent=1), encoding="utf-8")
    return file


def sample(name: str, question: str, answer: str) -> dict[str, object]:
    turns = [
        {"from": "human", "value": f"<image>\n{question}"},
        {"from": "gpt", "value": answer},
    ]
    return {"id": name, "image": name, "conversations": turns}
