"""What is asked about a row, to the character, and which file is of which set."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashvl.config import MODEL_KINDS
from flashvl.errors import TableError
from flashvl.evaluation.prompts import prompt_of
from flashvl.evaluation.sets import SETS, find_table, name_of
from flashvl.evaluation.tables import TableRow

LETTER = "\nAnswer with the option's letter from the given choices directly."
TWO = {"A": "red", "B": "blue", "C": None, "D": None}


def asked(set_name: str, question: str, **fields: str | None) -> str:
    return prompt_of(set_name, TableRow("7", question, fields, place="a.tsv, row 8 (index 7)"))


@pytest.mark.parametrize(
    ("set_name", "question", "fields", "prompt"),
    [
        (
            "MME",
            "Is it red? Please answer yes or no.",
            {"answer": "Yes"},
            "Is it red? Please answer yes or no. Answer the question using a single word or "
            "phrase.",
        ),
        (
            "HallusionBench",
            "Is it red?",
            {"answer": "No"},
            "Is it red? Please answer yes or no. Answer the question using a single word or "
            "phrase.",
        ),
        ("MathVista_MINI", "Hint: ...\nWhat is x?", {"choices": "['1', '2']"}, None),
        ("MMVet", "Why?", {}, "Why? Anylyze the reason for the answer."),
        ("OCRBench", "what is it?", {}, "what is it? Anylyze the reason for the answer."),
        (
            "MMMU_DEV_VAL",
            "Which of <image 1> is it?",
            {"hint": None, **TWO},
            "Which of <image 1> is it?\nA. red\nB. blue" + LETTER,
        ),
        (
            "MMMU_DEV_VAL",
            "How many are in <image 1>?",
            {"answer": "4"},
            "How many are in <image 1>?\nAnswer the question directly.",
        ),
        ("MMMU_DEV_VAL", "图中有几个？", {}, "图中有几个？\n请直接回答问题。"),
        (
            "MMBench_DEV_EN",
            "Which?",
            {"hint": "Look.", **TWO},
            "Look.\nWhich?\nA. red\nB. blue" + LETTER,
        ),
        (
            "MMBench_DEV_CN",
            "Which?",
            {"hint": None, "A": "红", "B": "blue"},
            "Which?\nA. 红\nB. blue\n请直接回答选项字母。",
        ),
        ("MMBench_TEST_EN", "Which?", TWO, "Which?\nA. red\nB. blue" + LETTER),
        (
            "MMBench_TEST_CN",
            "哪个？",
            {"hint": "看", **TWO},
            "看\n哪个？\nA. red\nB. blue\n请直接回答选项字母。",
        ),
        # An option that is missing between two others takes no letter of theirs.
        ("MMStar", "Which?", {"A": "1", "B": None, "C": "3"}, "Which?\nA. 1\nC. 3" + LETTER),
        ("AI2D_TEST", "Which?", {**TWO, "abcLabel": "1"}, "Which?\nA. red\nB. blue" + LETTER),
        ("SEEDBench_IMG", "Which?", TWO, "Which?\nA. red\nB. blue" + LETTER),
        (
            "SEEDBench_IMG",
            "Which?",
            {letter: f"option {letter}" for letter in "EDCBAHGFI"},
            "Which?\n" + "\n".join(f"{one}. option {one}" for one in "ABCDEFGHI") + LETTER,
        ),
        (
            "my_own",
            "Which?",
            {**TWO, "answer": "B"},
            "Which?\nA. red\nB. blue" + LETTER,
        ),
        (
            "my_own",
            "What is it?",
            {"answer": "a cat", "A": None},
            "What is it?\nAnswer the question using a single word or phrase.",
        ),
    ],
)
def test_a_row_is_asked_to_the_character(set_name, question, fields, prompt):
    assert asked(set_name, question, **fields) == (prompt or question)


@pytest.mark.parametrize(
    ("character", "chinese"),
    [("\u4e00", True), ("\u9fff", True), ("\u4dff", False), ("\ua000", False), ("？", False)],
)
def test_what_counts_as_chinese(character, chinese):
    assert asked("MMStar", character, A="1").endswith("请直接回答选项字母。") == chinese


def test_a_row_that_cannot_be_asked_is_named():
    with pytest.raises(TableError, match=r"^a\.tsv, row 8 \(index 7\) has no question$"):
        asked("MMStar", "", A="1")
    with pytest.raises(TableError, match=r"^a\.tsv, row 8 \(index 7\) has the options A, B, but"):
        asked("my_own", "Which?", **TWO, answer="C")
    # In a set of the card such a row is asked all the same: its figure counts them.
    assert asked("SEEDBench_IMG", "Which?", **TWO, answer="C").startswith("Which?")


def test_the_eleven_sets_of_the_card():
    assert len({one.title for one in SETS.values()}) == 11
    assert all(len(one.published) == len(MODEL_KINDS) for one in SETS.values())
    assert all(len(one.md5) == 32 for one in SETS.values())
    assert len({one.md5 for one in SETS.values()}) == len(SETS) == 13


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("MME.tsv", "MME"),
        ("MME_local.tsv", "MME"),
        ("a_model_8b_SEEDBench_IMG.xlsx", "SEEDBench_IMG"),
        ("x_MMBench_DEV_CN.tsv", "MMBench_DEV_CN"),
        ("NOMME.tsv", "NOMME"),
        ("my.questions.tsv", "my.questions"),
    ],
)
def test_a_file_name_tells_the_set(file, name):
    assert name_of(Path("folder") / file) == name


def test_a_set_is_found_in_the_folder_of_the_kit(tmp_path, monkeypatch):
    monkeypatch.setenv("LMUData", str(tmp_path))
    with pytest.raises(TableError, match=r"there is no MME\.tsv in .*; download it"):
        find_table("MME")
    (tmp_path / "MME_local.tsv").touch()
    assert find_table("MME") == tmp_path / "MME_local.tsv"
    (tmp_path / "MME.tsv").touch()
    assert find_table("MME") == tmp_path / "MME.tsv"
    monkeypatch.delenv("LMUData")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "LMUData").mkdir()
    (tmp_path / "LMUData" / "MMVet.tsv").touch()
    assert find_table("MMVet") == tmp_path / "LMUData" / "MMVet.tsv"
