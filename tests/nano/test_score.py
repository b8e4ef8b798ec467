"""The score, and what the shipped model reaches on scenes that it never saw."""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections import Counter
from statistics import mean

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flashvl import FlashVL
from flashvl.cli import main
from flashvl.input.image import load_image
from flashvl.input.tiling import stitch_tiles, tile_image
from flashvl.nano import score as score_module
from flashvl.nano.recipe import NANO, nano_config
from flashvl.nano.score import (
    ROWS,
    Score,
    as_json,
    as_table,
    crosses_seam,
    right_answers,
    score,
)
from flashvl.nano.world.questions import LANGUAGES, QUESTION_KINDS
from flashvl.nano.world.scenes import scene, scoring_number

NUMBER_ROWS = ("number across a seam", "number within a tile")
COLUMNS = (*LANGUAGES, "all")


@pytest.fixture(scope="module")
def nano() -> FlashVL:
    return FlashVL.from_pretrained("nano")


def stated_shares(nano: FlashVL) -> dict[tuple[str, str], float]:
    """The README's table of 2,000 scenes of seed 1: (row of the score, column) -> share."""
    readme = (nano.folder / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| ([a-z ]+) \|" + r" ([\d.]+) % \|" * 3 + "$", readme, re.MULTILINE)
    stated = {
        (row, column): float(share) / 100
        for row, *shares in lines
        for column, share in zip(COLUMNS, shares, strict=True)
    }
    assert set(stated) == set(itertools.product((*QUESTION_KINDS, "all", *NUMBER_ROWS), COLUMNS))
    return stated


def found_shares(result: Score) -> dict[tuple[str, str], float]:
    """The same of a score, as the command says them."""
    said = json.loads(as_json(result, "nano", 1, 1))
    rows = itertools.product((*QUESTION_KINDS, "all", *NUMBER_ROWS), COLUMNS)
    return {(row, column): said[f"{row.replace(' ', '_')}_{column}"] for row, column in rows}


def asked_in(result: Score, row: str, column: str) -> int:
    kind, across = ROWS[row]
    return sum(
        asked
        for (its_kind, language, its_across), (_, asked) in result.items()
        if kind in (its_kind, "all")
        and column in (language, "all")
        and across in (its_across, None)
    )


def test_the_shipped_model_is_as_right_as_its_readme_says(nano):
    """On the first of the README's own scenes; a sample of n strays from the whole.

    Three standard errors are allowed. The two languages of a scene are mostly right or wrong
    together, so that n is the number of questions in one of them.
    """
    result = score(nano, [scoring_number(1, index) for index in range(60)])
    stated, found = stated_shares(nano), found_shares(result)
    for row in (*QUESTION_KINDS, "all", *NUMBER_ROWS):
        share = stated[row, "all"]
        allowed = 3 * (share * (1 - share) / asked_in(result, row, "en")) ** 0.5
        assert found[row, "all"] == pytest.approx(share, abs=allowed), row


@pytest.mark.slow
def test_all_figures_of_the_readme_come_out_again(nano):
    """Of all 2,000 scenes. Figures are rounded to 0.1 %, and on another CPU the rounding of sums
    may tip a few answers."""
    result = score(nano, [scoring_number(1, index) for index in range(2000)])
    assert asked_in(result, "all", "all") == 35_572
    found = found_shares(result)
    for (row, column), share in stated_shares(nano).items():
        allowed = 0.0005 + 3 / asked_in(result, row, column)
        assert found[row, column] == pytest.approx(share, abs=allowed), (row, column)


def test_the_table_of_stitching_modes_is_that_of_the_scores(nano):
    lines = (nano.folder / "stitching.jsonl").read_text(encoding="utf-8").splitlines()
    scores = [json.loads(line) for line in lines]
    assert len({(one["scenes"], one["seed"], one["questions"]) for one in scores}) == 1
    readme = (nano.folder / "README.md").read_text(encoding="utf-8")
    for mode in ("trim", "mean", "none"):
        runs = [one for one in scores if re.fullmatch(rf"runs/{mode}-\d", one["model"])]
        assert len({one["model"] for one in runs}) == len(runs) == len(scores) / 3
        across, within = (
            [100 * one[f"number_{where}_all"] for one in runs]
            for where in ("across_a_seam", "within_a_tile")
        )
        less = [second - first for first, second in zip(across, within)]
        columns = (across, within, less, [100 * one["all_all"] for one in runs])
        wanted = " | ".join(
            f"{mean(one):.1f} ({', '.join(f'{value:.1f}' for value in one)})" for one in columns
        )
        assert f"\n| `{mode}` | {wanted} |\n" in readme


@pytest.mark.slow
def test_about_one_thing_the_shipped_model_is_nearly_always_right(nano, monkeypatch):
    monkeypatch.setattr(score_module, "scene", functools.partial(scene, things=(1, 1)))
    right, asked = Counter(), Counter()
    numbers = [scoring_number(2025, index) for index in range(50)]
    for (kind, language, _), counts in score(nano, numbers).items():
        right[kind, language] += counts[0]
        asked[kind, language] += counts[1]
    assert set(asked) == set(itertools.product(QUESTION_KINDS, LANGUAGES))
    assert min(asked.values()) >= 20
    share = {one: right[one] / asked[one] for one in asked}
    assert min(share.values()) >= 0.9, share


def test_the_score_says_what_chat_says():
    """With noise in the weights, so that some answers are wrong."""
    flash = FlashVL.from_pretrained("nano")
    torch.manual_seed(0)
    for parameter in flash.model.decoder.layers.parameters():
        parameter.data += 0.6 * parameter.std() * torch.randn_like(parameter)
    verdicts = []
    for index in range(2):
        drawn = scene(scoring_number(11, index))
        tiles, grid = tile_image(drawn.picture, flash.config.tiler)
        for question, is_right in zip(
            drawn.questions, right_answers(flash, tiles, grid, drawn.questions)
        ):
            messages = [{"role": "user", "content": question.text}]
            answer = flash.chat(drawn.picture, messages, max_new_tokens=60)
            assert (answer == question.answer) == is_right, (question, answer)
            verdicts.append(is_right)
    assert 0 < sum(verdicts) < len(verdicts)


def test_where_nothing_is_asked_nothing_is_right(nano):
    tiles, grid = tile_image(scene(0).picture, nano.config.tiler)
    assert right_answers(nano, tiles, grid, ()) == []


def test_a_box_crosses_a_seam_if_one_lies_within_it():
    assert not crosses_seam((0, 0, 100, 100), (100, 100), (1, 1))
    assert crosses_seam((49, 0, 51, 10), (100, 100), (1, 2))
    assert not crosses_seam((0, 0, 50, 100), (100, 100), (1, 2))  # up to the seam
    assert not crosses_seam((50, 0, 100, 100), (100, 100), (1, 2))  # from the seam on
    assert not crosses_seam((49, 0, 51, 10), (100, 100), (2, 1))
    assert crosses_seam((0, 49, 10, 51), (100, 100), (2, 1))
    assert crosses_seam((60, 10, 70, 20), (200, 100), (1, 3))  # 66.7
    assert crosses_seam((130, 10, 140, 20), (200, 100), (1, 3))  # 133.3
    assert not crosses_seam((70, 10, 130, 20), (200, 100), (1, 3))


@given(
    st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (3, 2), (1, 4), (6, 1)]),
    st.lists(st.integers(0, 84 * 6), min_size=4, max_size=4),
)
def test_a_box_crosses_a_seam_if_its_pixels_lie_in_two_tiles_cores(grid, places):
    """Held against the tiler: the picture has the cores' own size, so that it is not resized."""
    tiler = nano_config(NANO).tiler
    height, width = grid[0] * tiler.core_size, grid[1] * tiler.core_size
    (left, right), (top, bottom) = (
        sorted((one % side, other % side))
        for (one, other), side in zip((places[:2], places[2:]), (width, height))
    )
    box = (left, top, right + 1, bottom + 1)
    picture = Image.new("RGB", (width, height))
    picture.paste((255, 255, 255), box)
    tiles, its_grid = tile_image(picture, tiler)
    assert its_grid == grid
    margin = (tiles.shape[1] - tiler.core_size) // 2
    cores = [stitch_tiles(one[None], (1, 1), margin) for one in tiles[: grid[0] * grid[1]]]
    shown = [bool(core.any()) for core in cores]
    assert np.array_equal(stitch_tiles(tiles[: len(cores)], grid, margin), np.asarray(picture))
    assert crosses_seam(box, picture.size, grid) == (sum(shown) > 1)


def test_only_numbers_are_counted_by_seams(nano):
    numbers = [scoring_number(8, index) for index in range(12)]
    asked = Counter()
    for number in numbers:
        drawn = scene(number)
        _, grid = tile_image(drawn.picture, nano.config.tiler)
        for one in drawn.questions:
            across = one.kind == "number" and crosses_seam(
                drawn.written.box, drawn.picture.size, grid
            )
            asked[one.kind, one.language, across] += 1
    assert {across for kind, _, across in asked if kind == "number"} == {False, True}
    result = score(nano, numbers)
    assert {key: counts[1] for key, counts in result.items()} == asked
    assert all(0 <= right <= asked for right, asked in result.values())


def test_the_pictures_of_the_readme_are_described_rightly(nano):
    pictures = sorted((nano.folder / "pictures").iterdir())
    assert len(pictures) >= 2
    for file in pictures:  # its name says what it shows: red-circle-and-blue-star-and-number-42.png
        things = file.stem.split("-and-")
        named = [f"{article_of(one)} {one.replace('-', ' ')}" for one in things]
        *first, last = named
        expected = f"{', '.join(first)} and {last}" if first else last
        shapes = sum(not one.startswith("number") for one in things)
        numbers = [one.removeprefix("number-") for one in things if one.startswith("number")]
        for question, answer in (
            ("What is in the picture?", expected),
            ("How many shapes are there?", str(shapes)),
            ("图中有几个图形？", f"{shapes}个"),
            ("Read the number.", numbers[0] if numbers else "There is no number."),
        ):
            messages = [{"role": "user", "content": question}]
            assert nano.chat(load_image(file), messages) == answer


def article_of(thing: str) -> str:
    return "the" if thing.startswith("number") else "an" if thing[0] in "aeiou" else "a"


def test_ten_rounds_about_one_picture_are_answered(nano):
    """Each scene's questions of all kinds, in both languages, five scenes, ten rounds each."""
    right = []
    for index in range(5):
        drawn = scene(scoring_number(77, index), things=(1, 2))
        asked = np.random.default_rng(index).permutation(len(drawn.questions))[:10]
        assert len(asked) == 10
        conversation = nano.start(drawn.picture)
        for place in asked:
            question = drawn.questions[place]
            right.append(conversation.ask(question.text) == question.answer)
    assert len(right) == 50
    assert sum(right) >= 40
    last = [answer for place, answer in enumerate(right) if place % 10 > 6]
    assert sum(last) >= 0.7 * len(last)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Who are you?", "I am nano, a small Flash-VL. I know shapes, colours and numbers."),
        ("你是谁？", "我是nano，一个小的Flash-VL。我认识形状、颜色和数字。"),
        ("What is in the picture?", "There is no picture."),
        ("图中有什么？", "没有图片。"),
        ("How is the weather?", "I only know shapes, colours and numbers."),
    ],
)
def test_without_a_picture_it_says_who_it_is_or_that_there_is_none(nano, question, answer):
    assert nano.chat(None, [{"role": "user", "content": question}]) == answer


def test_what_is_not_there_or_not_known_gets_an_honest_answer(nano):
    right, asked = Counter(), Counter()
    for index in range(8):
        drawn = scene(scoring_number(78, index), things=(1, 2))
        expected = {
            "Who painted this?": "I only know shapes, colours and numbers.",
            "图中有几只猫？": "我只认识形状、颜色和数字。",
        }
        if all(thing.shape != "star" for thing in drawn.objects):
            expected |= {
                "What colour is the star?": "There is no star.",
                "Is there a star?": "No.",
                "五角星是什么颜色？": "没有五角星。",
            }
        if drawn.written is None:
            expected |= {"Read the number.": "There is no number.", "数字是多少？": "没有数字。"}
        for question, answer in expected.items():
            messages = [{"role": "user", "content": question}]
            asked[answer] += 1
            right[answer] += nano.chat(drawn.picture, messages) == answer
    assert asked["There is no star."] >= 5
    assert asked["There is no number."] >= 2
    assert right["There is no star."] >= asked["There is no star."] - 1
    assert right.total() >= 0.9 * asked.total()


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
    for row in (*QUESTION_KINDS, "all", *NUMBER_ROWS):
        assert sum(re.match(rf"{row} +[\d-]", line) is not None for line in lines) == 1, row
        for language in (*LANGUAGES, "all"):
            share = summary[f"{row.replace(' ', '_')}_{language}"]
            assert share is None or 0 <= share <= 1
    assert summary["questions"] == sum(
        len(scene(scoring_number(5, index)).questions) for index in range(3)
    )


@pytest.mark.parametrize(
    "arguments", [["--scenes", "0"], ["--seed", "-1"], ["--model", "nowhere/x/y"]]
)
def test_bad_arguments_are_one_line_and_exit_code_2(arguments, capsys):
    assert main(["score", *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_shares_are_right_divided_by_asked():
    result = {
        ("color", "en", False): (3, 4),
        ("color", "zh", False): (1, 4),
        ("number", "en", False): (4, 5),
        ("number", "en", True): (1, 4),
        ("number", "zh", True): (1, 1),
    }
    summary = json.loads(as_json(result, "nano", 4, 1))
    assert summary["color_en"] == 0.75
    assert summary["color_all"] == 0.5
    assert summary["number_en"] == 0.5556
    assert summary["number_all"] == 0.6
    assert summary["number_across_a_seam_en"] == 0.25
    assert summary["number_across_a_seam_all"] == 0.4
    assert summary["number_within_a_tile_all"] == 0.8
    assert summary["number_within_a_tile_zh"] is None  # never asked; NaN would be no JSON
    assert summary["all_all"] == 0.5556
    assert summary["questions"] == 18
    width = max(map(len, (*QUESTION_KINDS, *NUMBER_ROWS)))
    lines = as_table(result).splitlines()
    rows = {line[:width].strip(): line[width:].split() for line in lines}
    assert rows.pop("questions") == [*LANGUAGES, "all"]
    assert rows.pop("-" * width)
    assert rows["color"] == ["75.0%", "25.0%", "50.0%"]
    assert rows["number across a seam"] == ["25.0%", "100.0%", "40.0%"]
    assert rows["number within a tile"] == ["80.0%", "-", "80.0%"]
    assert rows["count"] == ["-", "-", "-"]
    assert list(rows) == [*QUESTION_KINDS, "all", *NUMBER_ROWS]
