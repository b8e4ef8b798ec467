"""Every rule of scoring at least once, on rows written for it; the figures are counted by hand."""

from __future__ import annotations

import pytest

from flashvl.errors import ArgumentError, TableError
from flashvl.evaluation.scores import RULES, card, letter_of, score, yes_or_no
from flashvl.evaluation.sets import SETS
from flashvl.evaluation.tables import TableRow

OPTIONS = {"A": "a red cat", "B": "Blue Dog", "C": "bird"}


def row(index: int | str = 0, **fields: str | None) -> TableRow:
    fields = {name.replace("__", "-"): cell for name, cell in fields.items()}
    return TableRow(str(index), fields.get("question") or "?", fields, place=f"a.tsv, row {index}")


@pytest.mark.parametrize(
    ("answer", "letter", "in_head"),
    [
        *[("B", "B", "B"), ("B.", "B", "B"), ("(C)", "C", "C"), ("**A**", "A", "A")],
        *[("{A}[;:!,#", "A", "A"), ("A: yes", "A", "A"), ("b", None, None), ("AB", None, None)],
        *[("B\nis it", "B", "B"), ("B B B", "B", "B"), ("B-", None, None), ("B?", None, None)],
        # Two letters, even of options that are said in words.
        *[("A or B", None, None), ("A or B: the bird", "C", "C"), ("D", None, None)],
        # Only the options that are there count: of D and B one is.
        ("D or B", "B", "B"),
        # A word of English is a letter like others.
        ("A dog", "A", "A"),
        # Refusals, in whatever surrounds them; the API's failure looks at the text at least.
        ("Sorry, I can't help with images of people yet. B", "Z", "Z"),
        ("I can't process this file.", "Z", "Z"),
        ("I'm sorry, but without the image provided I see no bird", "Z", "Z"),
        ("Cannot determine the answer", "Z", "Z"),
        ("cannot determine the answer", None, None),
        ("Failed to obtain answer via API. B", None, None),
        ("Failed to obtain answer via API. bird", "C", "C"),
        *[("Z", "Z", "Z"), ("(Z) bird", "Z", "Z"), ("Z or A", "A", "A")],
        # The option's text: lower case, exactly one.
        *[("It's a BLUE DOG!", "B", "B"), ("blue dog and bird", None, None)],
        *[("blackbirds", "C", "C"), ("", None, None), ("nan", None, None)],
        # Of head: the letter first stands among the last four words.
        *[("B for it is", "B", "B"), ("B for it is so", "B", None)],
        *[("B for it is so B", "B", None), ("I say it must be B", "B", "B")],
        # Of head: an answer in bold, also where several letters stand.
        *[("A dog, so the answer is **B**", None, "B"), ("A dog, so the answer is B", None, None)],
        *[("A B ANSWER  is **c** C", None, "C"), ("A B, answer is **D**", None, None)],
        # Of head: no text of an option in an answer more than twice as long as all of them.
        *[("bird" + "." * 38, "C", "C"), ("bird" + "." * 39, "C", None)],
    ],
)
def test_the_letter_of_an_answer(answer, letter, in_head):
    assert sum(map(len, OPTIONS.values())) == 21
    assert letter_of(answer, OPTIONS) == letter
    assert letter_of(answer, OPTIONS, "head") == in_head


def test_without_options_there_is_no_letter():
    assert letter_of("A", {}) is None
    assert letter_of("A", {}, "head") is None


def test_bold_answers_end_at_d():
    options = dict.fromkeys("ABCDE", "xxxxx")
    assert letter_of("A B: answer is **D**", options, "head") == "D"
    assert letter_of("A B: answer is **E**", options, "head") is None


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        *[("Yes", "Yes"), ("no.", "No"), ("YES!", "Yes"), ("Yes, no", None), ("yesterday", None)],
        *[("No, it is not.", "No"), ("none", None), ("", None), ("nan", None), ("'yes'", None)],
        # A mark that touches no space becomes one; where it touches one anywhere, it vanishes.
        *[("yes,it is", "Yes"), ("yes,it, is", None), ("(yes)", "Yes"), ("is (yes)", "Yes")],
        *[("a/yes", "Yes"), ("a /yes", "Yes"), ("a/yes b/ c", None), ("yes-no", None)],
        *[("yes\\it", "Yes"), ("yes:it", None), ("well;yes", "Yes"), ("so @yes b", "Yes")],
        # With a comma between digits all marks vanish.
        *[("yes-1", "Yes"), ("yes-1,000", None), ("1,000 yes", "Yes"), ("1,a yes-", "Yes")],
        # A full stop vanishes unless a digit follows.
        *[("yes.", "Yes"), ("y.es", "Yes"), ("yes.5", None), ("5.yes", None), (".no", "No")],
        # The kit takes 32 of them.
        *[("." * 31 + " yes.", "Yes"), ("." * 32 + " yes.", None)],
    ],
)
def test_yes_or_no(answer, said):
    assert yes_or_no(answer) == said


def test_letters_by_category():
    rows = [
        (row(0, category="b", A="one", B="two", answer="B"), "B"),
        (row(1, category="b", A="one", B="two", answer="B"), None),
        (row(2, category="a", A="one", B="two", answer="A"), "It is one."),
        # The right option is missing: it can never be said.
        (row(3, category="a", A="one", B=None, answer="B"), "B"),
        (row(4, category=None, A="one", B="two", answer=None), "B"),
    ]
    for name in ("MMStar", "AI2D_TEST", "SEEDBench_IMG"):
        assert score(name, rows) == {"score": 40.0, "Overall": 0.4, "a": 0.5, "b": 0.5}
    assert list(score("MMStar", rows)) == ["score", "Overall", "a", "b"]


def test_the_two_sets_of_rules():
    rows = [(row(0, A="one", B="two", answer="A"), "A because it is so indeed")]
    assert [score("MMStar", rows, rules)["score"] for rules in RULES] == [100.0, 0.0]
    with pytest.raises(ArgumentError, match="rules must be 2025 or head, found '2024'"):
        score("MMStar", rows, "2024")


def test_a_missing_prediction_is_the_text_nan():
    rows = [(row(0, A="nan", B="two", answer="A"), None)]
    assert score("MMStar", rows)["score"] == 100.0


def test_mmmu_offers_the_answers_of_open_questions():
    rows = [
        (row(0, split="validation", A="x", B="y", answer="B", category="Art"), "B"),
        (row(1, split="validation", answer="12 m", category="Art"), "It is 12 M."),
        (row(2, split="validation", answer="12 m", category="Bio"), "A"),
        (row(3, split="validation", answer="12 m", category="Bio"), "B"),
        # Its answer is a letter, and stays that.
        (row(4, split="validation", answer="C", category="Bio"), "A"),
        (row(5, split="dev", A="x", B="y", answer="A", category="Bio"), "A"),
    ]
    assert score("MMMU_DEV_VAL", rows) == {
        "score": 60.0,
        "validation": {"Overall": 0.6, "Art": 1.0, "Bio": pytest.approx(1 / 3)},
        "dev": {"Overall": 1.0, "Bio": 1.0},
    }
    assert score("MMMU_DEV_VAL", rows[5:])["score"] == 100.0
    # Elsewhere a row without options has no right answer.
    assert score("MMStar", rows[1:3])["score"] == 0.0


def test_rotations_count_together():
    fields = {"A": "one", "B": "two", "split": "dev"}
    categories = {"l2__category": "logic_reasoning", "category": "physics"}
    rows = [
        (row(7, answer="A", **fields, **categories), "A"),
        (row(1_000_007, answer="B", **fields, **categories), "two"),
        (row(2_000_007, answer="A", **fields, **categories), "A"),
        (row(8, answer="A", **fields, l2__category="other", category="art"), "A"),
        (row(1_000_008, answer="B", **fields, l2__category="other", category="art"), "A"),
        (row(9, answer="B", **fields, l2__category="other", category="art"), "B"),
        # Without its first rotation a question is not counted, as in the kit.
        (row(1_000_010, answer="B", **fields, **categories), "A"),
    ]
    expected = {
        "score": pytest.approx(200 / 3),
        "dev": {
            "Overall": pytest.approx(2 / 3),
            "LR": 1.0,
            "other": 0.5,
            "art": 0.5,
            "physics": 1.0,
        },
    }
    for name in ("MMBench_DEV_EN", "MMBench_DEV_CN"):
        assert score(name, rows) == expected
        assert score(name, rows[::-1]) == expected
    with pytest.raises(TableError, match=r"^a\.tsv, row x7: the index is no whole number$"):
        score("MMBench_DEV_EN", [(row("x7", answer="A", **fields), "A")])
    assert score("MMBench_DEV_EN", rows[6:]) == {}


def test_what_has_no_answers_or_needs_a_judge_has_no_figure():
    assert score("MMBench_TEST_EN", [(row(0, A="x", B="y"), "A")]) == {}
    assert score("MMVet", [(row(0, answer="a"), "a")]) == {}
    assert score("MME", []) == {}


def test_mme_counts_questions_and_pairs():
    def pair(category, picture, answers, first):
        return [
            (row(first + number, category=category, image_path=picture, answer=right), said)
            for number, (right, said) in enumerate(zip(["Yes", "No"], answers))
        ]

    rows = [
        *pair("color", "1.png", ["Yes", "No"], 0),
        *pair("color", "2.png", ["yes.", "Yes"], 2),
        *pair("OCR", "2.png", ["Yes, no", "no"], 4),
        *pair("code_reasoning", "3.png", ["Yes!", "NO"], 6),
        *pair("unheard of", "4.png", ["Yes", None], 8),
    ]
    assert score("MME", rows) == {
        "score": 375.0,
        "perception": 175.0,
        "reasoning": 200.0,
        "color": 125.0,
        "OCR": 50.0,
        "code_reasoning": 200.0,
        "unheard of": 50.0,
    }
    with pytest.raises(TableError, match=r"^a\.tsv, row 0 has no image_path$"):
        score("MME", [(row(0, category="color", answer="Yes"), "Yes")])


def test_hallusionbench_counts_rows_figures_and_questions():
    def one(index, right, said, category="VD", inner="VD_video"):
        return (row(index, answer=right, category=category, l2__category=inner), said)

    rows = [
        one("VD_video_1_0_0_0", "Yes", "Yes"),
        one("VD_video_1_0_0_1", "No", "no."),
        one("VD_video_2_0_1_0", "No", "No"),
        one("VD_video_2_0_1_1", "No", "Yes"),
        one("VD_video_1_1_0_0", "Yes", "Perhaps"),
        one("VS_chart_1_0_0_0", "No", "No", "VS", "VS_chart"),
    ]
    video = {
        "aAcc": pytest.approx(60),
        "fAcc": pytest.approx(100 / 3),
        "qAcc": pytest.approx(100 / 3),
    }
    chart = {"aAcc": 100.0, "fAcc": 100.0, "qAcc": 100.0}
    total = {"aAcc": pytest.approx(400 / 6), "fAcc": 50.0, "qAcc": 50.0}
    found = score("HallusionBench", rows)
    assert found == {
        "score": pytest.approx((400 / 6 + 100) / 3),
        **total,
        "VD": video,
        "VS": chart,
        "VD_video": video,
        "VS_chart": chart,
    }
    with pytest.raises(TableError, match=r"^a\.tsv, row 3: the index must be such as VD_ill"):
        score("HallusionBench", [(row(3, answer="Yes"), "Yes")])


def test_ocrbench_counts_what_is_contained():
    formula = "Handwritten Mathematical Expression Recognition"

    def one(category, answer, said):
        return (row(0, category=category, answer=answer), said)

    rows = [
        one("Regular Text Recognition", "['CENTRE']", "It says centre."),
        one("Artistic Text Recognition", "['CENTRE']", "center"),
        one("Handwriting Recognition", "['a b', ' C\\nD ']", "it is c\nd"),
        one("Digit String Recognition", "['12']", "1 2"),
        one("Scene Text-centric VQA", "[\"it's\", 'no']", "NOTHING"),
        one("Doc-oriented VQA", "['x']", None),
        one("Key Information Extraction", "['NaN']", None),
        one(formula, "['x ^ 2 + Y']", "\\( x^2 +\nY \\)"),
        one(formula, "['x ^ 2 + Y']", "x^2+y"),
    ]
    assert score("OCRBench", rows) == {
        "score": 5,
        "Text Recognition": 2,
        "Scene Text-centric VQA": 1,
        "Doc-oriented VQA": 0,
        "Key Information Extraction": 1,
        formula: 1,
        "Final Score": 5,
        "Final Score Norm": 0.5,
    }


def test_mathvista_by_a_rule_of_ours():
    choice = {"question_type": "multi_choice", "choices": "['3/11', '8/11', '7']"}
    rows = [
        (row(0, **choice, answer="8/11", answer_option="B", task="a", skills="['x']"), "B"),
        (row(1, **choice, answer="8/11", answer_option="B", task="a", skills="['x', 'y']"), "8/11"),
        (row(2, **choice, answer="7", answer_option="C", task="a", skills="['y']"), "A or B"),
        (row(3, answer_type="integer", answer="14", task="b", skills="y"), " 14 "),
        (row(4, answer_type="integer", answer="14", task="b", skills="y"), "14.0"),
        (row(5, answer_type="float", answer="1.50", task="b", skills=None), "1.5"),
        (row(6, answer_type="float", answer="1.5", task="b", skills=None), "It is 1.5"),
        (row(7, answer_type="text", answer="cat", task="b", skills=None), "cat"),
        (row(8, answer_type="list", answer="[1, 2]", task="b", skills=None), "[1, 2]"),
        (row(9, answer_type="integer", answer="1", task="b", skills=None), None),
    ]
    assert score("MathVista_MINI", rows) == {
        "score": 40.0,
        "Overall": 40.0,
        "a": pytest.approx(200 / 3),
        "b": pytest.approx(200 / 7),
        "x": 100.0,
        "y": 50.0,
    }


def test_one_s_own_questions_by_their_form():
    rows = [
        (row(0, A="red", B="blue", answer="B", category="x"), "blue"),
        (row(1, A="red", B="blue", answer="B", category="x"), "A"),
        (row(2, answer="yes", category="x"), "Yes, it is."),
        (row(3, answer="No", category="y"), "yes"),
        (row(4, answer="Two Cats", category="y"), " two cats\n"),
        (row(5, answer="Two Cats", category="y"), "I see two\ncats."),
        (row(6, answer=None, category="y"), "something"),
        (row(7, answer="cat", category="y"), None),
    ]
    assert score("my_own", rows) == {
        "score": 50.0,
        "choice": 0.5,
        "yes or no": 0.5,
        "open": 0.5,
        "exact": 0.25,
        "Overall": 0.5,
        "x": pytest.approx(2 / 3),
        "y": 0.4,
    }


CARD = {
    # the model card's averages, to the third digit that its table gives
    "FlashVLDynamicISSConfig": 64.843,
    "FlashVLDynamicConfig": 64.031,
    "FlashVLStaticConfig": 62.368,
}


@pytest.mark.parametrize("model_type", CARD)
def test_the_published_figures_give_the_published_average(model_type):
    column = list(CARD).index(model_type)
    by_title = {one.title: one.published[column] / one.scale for one in SETS.values()}
    assert sum(by_title.values()) / len(by_title) == pytest.approx(CARD[model_type], abs=5e-4)


def test_the_table_of_the_card_over_what_was_run():
    scores = {
        "MME": {"score": 1841.0247},
        "OCRBench": {"score": 838},
        "MMVet": {},
        "MathVista_MINI": {"score": 50.0},
        "MMBench_DEV_EN": {"score": 79.0},
        "my_own": {"score": 12.0},
    }
    assert card(scores, "FlashVLDynamicISSConfig") == [
        ["set", "published", "here", "difference"],
        ["MMBench_DEV_EN", "79.1", "79.00", "-0.10"],
        ["MathVista_MINI (by our rule)", "61.5", "50.00", "-11.50"],
        ["MMVet", "50.7", "needs a judge or answers", ""],
        ["OCRBench", "843", "838.00", "-5.00"],
        ["MME", "1850", "1841.02", "-8.98"],
        ["average of 3", "76.49", "76.18", "-0.31"],
    ]
    assert card({"my_own": {"score": 1.0}}, "FlashVLStaticConfig") == [
        ["set", "published", "here", "difference"]
    ]
