"""nano's own table: in the kit's form, the same each time, with right answers."""

from __future__ import annotations

import csv
import io
from itertools import islice

import numpy as np
from PIL import Image

from flashvl.evaluation.nano_set import COLUMNS, SEED, WORDS, nano_table
from flashvl.evaluation.tables import MISSING, Table
from flashvl.nano.world.scenes import scene, scoring_number

SCENES = 40


def drawn_rows() -> list[dict[str, str]]:
    csv.field_size_limit(10**7)
    text = nano_table(SCENES).decode("utf-8")
    return list(csv.DictReader(io.StringIO(text), delimiter="\t", strict=True))


def test_the_table_is_the_same_each_time_and_begins_the_same_for_more_scenes():
    assert nano_table(5) == nano_table(5)
    assert nano_table(6).startswith(nano_table(5))


def test_each_picture_has_four_questions_and_stands_in_the_first():
    rows = drawn_rows()
    assert len(rows) == 4 * SCENES
    assert [row["index"] for row in rows] == [str(number) for number in range(len(rows))]
    for start in range(0, len(rows), 4):
        assert len(rows[start]["image"]) > 64
        assert {row["image"] for row in rows[start + 1 : start + 4]} == {str(start)}


def test_a_question_in_four_has_options_and_one_is_answered_by_yes_or_no():
    rows = drawn_rows()
    for number, row in enumerate(rows):
        options = [row[letter] for letter in "ABCD"]
        if number % 4 == 0:
            words = WORDS[row["category"]]
            assert set(options) <= set(words)
            assert len(set(options)) == 4
            # The text of the right option alone is in the answer of who says a word for a letter.
            assert not any(one in other for one in options for other in options if one != other)
            assert row["answer"] in ("A", "B", "C", "D")
        else:
            assert options == [""] * 4
            assert number % 4 > 1 or row["answer"] in ("Yes", "No")
        assert row["answer"] not in MISSING
    letters = [row["answer"] for row in rows[::4]]
    assert min(map(letters.count, "ABCD")) >= SCENES / 10
    answers = [row["answer"] for row in rows[1::4]]
    assert SCENES / 4 < answers.count("Yes") < SCENES * 3 / 4
    assert {row["category"] for row in rows[2::4]} | {row["category"] for row in rows[3::4]} == {
        "count",
        "number",
        "description",
        "list",
        "absent",
    }


def test_the_answers_are_those_of_the_world(tmp_path):
    (tmp_path / "nano.tsv").write_bytes(nano_table(SCENES))
    table = Table(tmp_path / "nano.tsv")
    rows = list(table.rows())
    assert table.count == len(rows)
    assert table.columns == list(COLUMNS)
    index = 0
    for start in range(0, len(rows), 4):
        picture = np.asarray(Image.open(io.BytesIO(table.picture(rows[start]))))
        while not np.array_equal(picture, np.asarray(scene(scoring_number(SEED, index)).picture)):
            index += 1  # of a scene some of whose questions cannot be asked
        questions = scene(scoring_number(SEED, index)).questions
        for row in islice(rows, start, start + 4):
            answer = row.fields["answer"]
            said = row.fields[answer] if row.fields["A"] else answer
            asked = [one for one in questions if one.text == row.question]
            assert said in [one.answer.removesuffix(".") for one in asked] + [
                one.answer for one in asked
            ]
            assert row.picture == rows[start].picture
    assert index < 2 * SCENES


def test_its_scenes_are_no_others():
    """Scoring takes even numbers, and those of the README's score are of seed 1."""
    assert scoring_number(SEED, 0) > scoring_number(1, 2**39)
    assert scoring_number(SEED, 0) % 2 == 0
