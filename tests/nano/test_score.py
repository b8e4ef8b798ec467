"""The score, and what the shipped model reaches on scenes that it never saw."""

from __future__ import annotations

import json
import re

import pytest
import torch

from flashvl import FlashVL
from flashvl.cli import main
from flashvl.image import load_image
from flashvl.nano.questions import KINDS, LANGUAGES
from flashvl.nano.scenes import scene, scoring_number
from flashvl.nano.score import as_json, as_table, right_answers, score
from flashvl.tiling import tile_image


@pytest.fixture(scope="module")
def nano() -> FlashVL:
    return FlashVL.from_pretrained("nano")


def test_the_shipped_model_is_as_right_as_its_readme_says(nano):
    """One object: nearly always. Two: often enough that all together stay near the figure there."""
    numbers = [scoring_number(2024, index) for index in range(100)]
    alone = [number for number in numbers if len(scene(number).objects) == 1]
    result = score(nano, alone)
    assert set(result) == {(kind, language) for kind in KINDS for language in LANGUAGES}
    assert all(right / asked >= 0.9 for right, asked in result.values()), result
    right, asked = (sum(counts) for counts in zip(*score(nano, numbers).values()))
    readme = (nano.folder / "README.md").read_text(encoding="utf-8")
    stated = float(re.search(r"^\| all \|.*\| ([\d.]+) % \|$", readme, re.MULTILINE).group(1))
    assert abs(right / asked - stated / 100) < 0.05


def test_the_score_says_what_chat_says():
    """With noise in the weights, so that some answers are wrong."""
    model = FlashVL.from_pretrained("nano")
    torch.manual_seed(0)
    for parameter in model.decoder.layers.parameters():
        parameter.data += 0.25 * parameter.std() * torch.randn_like(parameter)
    verdicts = []
    for index in range(6):
        drawn = scene(scoring_number(11, index))
        tiles, grid = tile_image(drawn.picture, model.config.tiler)
        for question, is_right in zip(
            drawn.questions, right_answers(model, tiles, grid, drawn.questions)
        ):
            messages = [{"role": "user", "content": question.text}]
            answer = model.chat(drawn.picture, messages, max_new_tokens=40)
            assert (answer == question.answer) == is_right, (question, answer)
            verdicts.append(is_right)
    assert 0 < sum(verdicts) < len(verdicts)


def test_the_pictures_of_the_readme_are_described_rightly(nano):
    pictures = sorted((nano.folder / "pictures").iterdir())
    assert len(pictures) >= 2
    for file in pictures:  # its name says what it shows: red-circle-and-blue-star.png
        things = file.stem.split("-and-")
        expected = " and ".join(
            f"{'an' if one.startswith('orange') else 'a'} {one.replace('-', ' ')}" for one in things
        )
        for question, answer in (
            ("What is in the picture?", expected),
            ("How many objects are there?", str(len(things))),
        ):
            messages = [{"role": "user", "content": question}]
            assert nano.chat(load_image(file), messages) == answer


def test_the_shipped_files_are_complete_and_small(nano):
    files = {file.name: file.stat().st_size for file in nano.folder.iterdir() if file.is_file()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "preprocessor_config.json",
        "generation_config.json",
        "README.md",
        "log.jsonl",
    } <= files.keys()
    assert sum(files.values()) <= 8_000_000
    assert files["log.jsonl"] <= 300_000


def test_the_command_prints_a_table_and_a_line_of_json_last(capsys):
    assert main(["score", "--model", "nano", "--scenes", "3", "--seed", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    summary = json.loads(lines[-1])
    assert (summary["model"], summary["scenes"], summary["seed"]) == ("nano", 3, 5)
    assert all(any(line.startswith(kind) for line in lines) for kind in KINDS)


@pytest.mark.parametrize(
    "arguments", [["--scenes", "0"], ["--seed", "-1"], ["--model", "nowhere/x/y"]]
)
def test_bad_arguments_are_one_line_and_exit_code_2(arguments, capsys):
    assert main(["score", *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_shares_are_right_divided_by_asked():
    result = {("colour", "en"): (3, 4), ("colour", "zh"): (1, 4), ("count", "en"): (2, 2)}
    summary = json.loads(as_json(result, "nano", 4, 1))
    assert summary["colour_en"] == 0.75
    assert summary["colour_all"] == 0.5
    assert summary["all_all"] == 0.6
    assert summary["questions"] == 10
    table = as_table(result)
    assert "75.0%" in table
    assert "60.0%" in table
    assert summary["count_zh"] is None  # never asked; NaN would be no JSON
