"""What `flashvl scenes` writes: pictures and conversations that fine-tuning reads as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from flashvl.cli import main
from flashvl.finetuning.data import read_samples
from flashvl.nano.world.scenes import scene, training_number
from flashvl.nano.world.wordings import NO_PICTURE
from flashvl.tools.scenes import SAMPLES


def written(folder: Path, *more: str) -> list[tuple[Path | None, list[tuple[str, str]]]]:
    """The pictures and the questions with their answers."""
    assert main(["scenes", "--out", str(folder), *more]) == 0
    samples = read_samples(folder / SAMPLES)
    return [
        (
            one.image,
            [
                (asked["content"], answer["content"])
                for asked, answer in zip(one.messages[::2], one.messages[1::2])
            ],
        )
        for one in samples
    ]


def test_every_question_of_every_scene_is_asked_once(tmp_path, capsys):
    samples = written(tmp_path / "new", "--scenes", "12", "--seed", "3")
    assert str(tmp_path / "new" / SAMPLES) in capsys.readouterr().out
    shown = [(image, rounds) for image, rounds in samples if image is not None]
    assert [image.name for image, _ in shown] == [f"{index}.png" for index in range(12)]
    in_order = 0
    for index, (image, rounds) in enumerate(shown):
        drawn = scene(training_number(3, index))
        with Image.open(image) as picture:
            assert (picture.mode, picture.tobytes()) == ("RGB", drawn.picture.tobytes())
        asked = [(one.text, one.answer) for one in drawn.questions]
        assert sorted(rounds) == sorted(asked)
        in_order += rounds == asked
    assert not in_order


def test_some_are_asked_without_the_picture(tmp_path):
    samples = written(tmp_path / "new", "--scenes", "25")
    answers = [answer for image, rounds in samples if image is None for _, answer in rounds]
    assert len(samples) == 25 + 3
    assert sum(answer in NO_PICTURE.values() for answer in answers) > len(answers) / 2


def test_the_same_seed_draws_the_same_and_another_does_not(tmp_path):
    drawn = []
    for number, seed in enumerate("004"):
        written(tmp_path / str(number), "--scenes", "2", "--seed", seed)
        drawn.append({one.name: one.read_bytes() for one in (tmp_path / str(number)).iterdir()})
    assert drawn[0] == drawn[1]
    assert drawn[0].keys() == drawn[2].keys()
    assert all(drawn[2][name] != contents for name, contents in drawn[0].items())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "{taken}"], "is there already; choose another folder"),
        (["--out", "{taken}/file/new"], "cannot be written"),
        (["--out", ""], "no file can be called ''"),
        (["--out", "{taken}/new", "--scenes", "0"], "--scenes must be from 1"),
        (["--out", "{taken}/new", "--seed", "-1"], "--seed must be from 0"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_made(arguments, words, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["scenes", *(one.format(taken=tmp_path) for one in arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
