"""nano's questions: every answer is worked out again from the question's words alone."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flashvl.nano.world import wordings
from flashvl.nano.world.questions import (
    LANGUAGES,
    QUESTION_KINDS,
    ask,
    describe,
    list_objects,
    name_object,
)
from flashvl.nano.world.things import Number, Object
from flashvl.nano.world.wordings import COLORS_ZH, NOUNS, OUTSIDE_COLORS, SHAPES_ZH

MASK = Image.new("L", (1, 1))  # no question depends on a mask, a box or an RGB color


def an_object(shape: str, color: str) -> Object:
    return Object(shape, color, (0, 0, 1, 1), (0, 0, 0), MASK)


def a_number(digits: str, color: str) -> Number:
    return Number(digits, color, (0, 0, 1, 1), (0, 0, 0), MASK, ())


RED_CIRCLE = an_object("circle", "red")
BLUE_STAR = an_object("star", "blue")
ORANGE_RING = an_object("ring", "orange")
GREEN_RING = an_object("ring", "green")
BLACK_42 = a_number("42", "black")
PLACE = re.compile(
    "where|left|right|above|below|next to|middle|big|large|size"
    "|哪里|位置|左|右|上面|下面|旁边|中间|多大|大还是小|最大"
)
seeds = st.integers(0, 2**32 - 1)
languages = st.sampled_from(LANGUAGES)


@st.composite
def shown(draw):
    """What a scene may show: objects and a number, or None."""
    colors = st.sampled_from(tuple(COLORS_ZH))
    things = st.builds(an_object, st.sampled_from(tuple(SHAPES_ZH)), colors)
    objects = draw(st.lists(things, max_size=4))
    left = sorted(set(COLORS_ZH) - {thing.color for thing in objects})
    digits = st.text("0123456789", min_size=1, max_size=4)
    numbers = st.builds(a_number, digits, st.sampled_from(left))
    return objects, draw(st.none() | numbers if objects else numbers)


def draw_shown(random):
    """The same at random."""
    count = int(random.integers(5))
    objects = [
        an_object(str(random.choice(tuple(SHAPES_ZH))), str(random.choice(tuple(COLORS_ZH))))
        for _ in range(count)
    ]
    if objects and random.random() < 0.5:
        return objects, None
    left = sorted(set(COLORS_ZH) - {thing.color for thing in objects})
    return objects, a_number(str(random.integers(10000)), str(random.choice(left)))


def draws(kind, language, objects, number, times=300, ordered=True):
    """The questions of many seeds, and None where none was asked."""
    return {
        ask(kind, language, objects, number, ordered, np.random.default_rng(seed))
        for seed in range(times)
    }


def answers(kind, language, objects, number=None):
    return {question.answer for question in draws(kind, language, objects, number)}


@given(shown(), languages, seeds)
@settings(max_examples=300)
def test_every_question_has_the_one_right_answer(scene, language, seed):
    objects, number = scene
    random = np.random.default_rng(seed)
    for kind in QUESTION_KINDS:
        question = ask(kind, language, objects, number, True, random)
        shapes = [thing.shape for thing in objects]
        colors = [thing.color for thing in objects]
        if question is None:
            assert (
                (kind == "color" and not number and all(shapes.count(one) > 1 for one in shapes))
                or (kind == "shape" and all(colors.count(one) > 1 for one in colors))
                or (kind == "number" and not number)
                or (kind == "list" and not objects)
            )
        else:
            assert (question.kind, question.language) == (kind, language)
            assert work_out(question, objects, number) == question.answer


def work_out(question, objects, number) -> str:
    """The right answer, from the question's words and kind alone."""
    kind, text, chinese = question.kind, question.text.lower(), question.language == "zh"
    shapes = mentioned(text, question.language, SHAPES_ZH)
    colors = mentioned(text, question.language, COLORS_ZH)
    of_number = bool(re.search(r"\b(number|written)|数字", text))
    if kind not in ("outside", "self"):
        assert max(len(shapes), len(colors)) + of_number <= 1
        assert not (shapes and colors) or kind in ("presence", "count")
        assert not names_outside(text, question.language)
    meant = [
        thing
        for thing in objects
        if (not shapes or thing.shape in shapes) and (not colors or thing.color in colors)
    ]
    if kind in ("color", "shape") and not of_number:
        assert not (colors if kind == "color" else shapes)
        assert len(meant) == 1
        if not shapes and not colors:  # "it"
            assert len(objects) == 1
            assert number is None
        word = getattr(meant[0], kind)
        return as_answered(word) if chinese else word
    if kind == "color":
        return as_answered(number.color) if chinese else number.color
    if kind == "count":
        things = re.search("thing|东西", text) is not None
        if number and things and not colors:
            return f"{len(meant) + 1}个" if chinese else f"{len(meant) + 1}"
        if number:
            assert number.color not in colors
        return f"{len(meant)}个" if chinese else f"{len(meant)}"
    if kind == "number":
        assert of_number
        return number.digits
    if kind == "presence":
        if number:
            assert number.color not in colors
        assert shapes or colors or of_number
        there = number is not None if of_number else len(meant) > 0
        return ("有。" if there else "没有。") if chinese else ("Yes." if there else "No.")
    if kind == "absent" and of_number:
        assert number is None
        return "没有数字。" if chinese else "There is no number."
    if kind == "absent":
        assert not meant
        (word,) = shapes | colors
        thing = "" if shapes else "的东西" if chinese else " thing"
        return f"没有{as_answered(word)}{thing}。" if chinese else f"There is no {word}{thing}."
    if kind in ("description", "list"):
        assert not shapes
        assert not colors
        return (describe if kind == "description" else list_objects)(
            objects, number, question.language
        )
    if kind == "outside":
        placed = PLACE.search(text) is not None
        assert (
            names_outside(text, question.language) or placed or not (shapes or colors or of_number)
        )
        if chinese:
            return "我只认识形状、颜色和数字。"
        return "I only know shapes, colours and numbers."
    assert kind == "self"
    if re.search("thank|谢", text):
        return "不客气。" if chinese else "You are welcome."
    assert re.search("you|help|hello|hi|你|您|自", text)
    if chinese:
        return "我是nano，一个小的Flash-VL。我认识形状、颜色和数字。"
    return "I am nano, a small Flash-VL. I know shapes, colours and numbers."


def names_outside(text: str, language: str) -> bool:
    """Whether a noun or a color from outside nano's world occurs."""
    if language == "zh":
        return any(word in text for word in (*NOUNS["zh"], *OUTSIDE_COLORS["zh"]))
    words = {*NOUNS["en"], *NOUNS["en"].values(), *OUTSIDE_COLORS["en"]}
    return bool(words & set(re.findall(r"\w+", text)))


def as_answered(word: str) -> str:
    return SHAPES_ZH[word][0] if word in SHAPES_ZH else COLORS_ZH[word]


def mentioned(text: str, language: str, chinese: dict) -> set[str]:
    """The words of a table that occur in a question, in English; longer Chinese words first."""
    if language == "en":
        return {word for word in chinese if re.search(rf"\b{word}(s|es)?\b", text)}
    names = {
        name: word
        for word, zh in chinese.items()
        for name in ((zh,) if isinstance(zh, str) else zh)
    }
    found = set()
    for name in sorted(names, key=len, reverse=True):
        if name in text:
            found.add(names[name])
            text = text.replace(name, " ")
    return found


def test_an_object_is_asked_for_by_shape_and_color_together():
    for kind, chinese in (("presence", "有没有红色的?圆形"), ("count", "个红色的?圆形")):
        texts = [one.text.lower() for one in draws(kind, "en", [RED_CIRCLE], None)]
        assert any("red circle" in text for text in texts)
        texts = [one.text for one in draws(kind, "zh", [RED_CIRCLE], None)]
        assert any(re.search(chinese, text) for text in texts)
    wrong = {one.text.lower() for one in draws("presence", "en", [RED_CIRCLE, BLUE_STAR], None)}
    assert any("red star" in text or "blue circle" in text for text in wrong)


def test_no_text_has_two_answers_for_the_same_scene():
    random = np.random.default_rng(0)
    needs_no_scene, needs_scene = {}, set()
    for _ in range(60):
        objects, number = draw_shown(random)
        right: dict[str, str] = {}
        for kind in QUESTION_KINDS * 60:
            language = LANGUAGES[int(random.integers(2))]
            question = ask(kind, language, objects, number, True, random)
            if question is None:
                continue
            text = as_compared(question.text)
            assert right.setdefault(text, question.answer) == question.answer, text
            if kind in ("outside", "self"):
                assert needs_no_scene.setdefault(text, question.answer) == question.answer
            else:
                needs_scene.add(text)
    assert not needs_scene & set(needs_no_scene)
    assert len(needs_scene) > 1000
    assert len(needs_no_scene) > 1000


def as_compared(text: str) -> str:
    return text.lower().rstrip(".?!。？！").replace("color", "colour")


def test_the_answers_have_these_forms():
    both = [RED_CIRCLE, BLUE_STAR]
    assert answers("color", "en", both) == {"red", "blue"}
    assert answers("color", "zh", both) == {"红色", "蓝色"}
    assert answers("shape", "en", both) == {"circle", "star"}
    assert answers("shape", "zh", both) == {"圆形", "五角星"}
    assert answers("count", "en", both) == {"0", "1", "2"}
    assert answers("count", "zh", both) == {"0个", "1个", "2个"}
    assert answers("count", "en", [], BLACK_42) == {"0", "1"}  # objects, things
    assert answers("number", "en", both, a_number("042", "black")) == {"042"}
    assert answers("number", "zh", [], BLACK_42) == {"42"}
    assert answers("presence", "en", both) == {"Yes.", "No."}
    assert answers("presence", "zh", both) == {"有。", "没有。"}
    assert answers("description", "en", both) == {"a red circle and a blue star"}
    assert answers("list", "zh", both) == {"圆形红色，五角星蓝色"}
    absent = answers("absent", "en", both)
    assert {"There is no ring.", "There is no green thing.", "There is no number."} < absent
    assert {"没有圆环。", "没有绿色的东西。", "没有数字。"} < answers("absent", "zh", both)
    assert answers("outside", "en", both) == {"I only know shapes, colours and numbers."}
    assert answers("outside", "zh", both) == {"我只认识形状、颜色和数字。"}
    nano = "I am nano, a small Flash-VL. I know shapes, colours and numbers."
    assert answers("self", "en", both) == {nano, "You are welcome."}
    nano = "我是nano，一个小的Flash-VL。我认识形状、颜色和数字。"
    assert answers("self", "zh", both) == {nano, "不客气。"}


def test_the_number_has_a_color_too():
    assert answers("color", "en", [], BLACK_42) == {"black"}
    assert answers("color", "zh", [], BLACK_42) == {"黑色"}
    assert answers("color", "en", [GREEN_RING, ORANGE_RING], BLACK_42) == {"black"}
    assert answers("color", "en", [RED_CIRCLE], BLACK_42) == {"red", "black"}
    assert "There is no black thing." not in answers("absent", "en", [RED_CIRCLE], BLACK_42)


def test_what_has_no_right_answer_is_not_asked():
    rings = [GREEN_RING, ORANGE_RING]
    assert draws("color", "en", rings, None) == {None}
    assert draws("shape", "zh", [GREEN_RING, an_object("star", "green")], None) == {None}
    assert draws("shape", "en", [], BLACK_42) == {None}
    assert draws("number", "en", rings, None) == {None}
    assert draws("list", "en", [], BLACK_42) == {None}
    for kind in ("description", "list"):
        assert draws(kind, "en", rings, BLACK_42, ordered=False) == {None}
    with pytest.raises(ValueError, match="dance"):
        ask("dance", "en", rings, None, True, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("objects", "number", "english", "chinese"),
    [
        ([RED_CIRCLE], None, "a red circle", "一个红色圆形"),
        ([ORANGE_RING], None, "an orange ring", "一个橙色圆环"),
        ([], BLACK_42, "the number 42", "数字42"),
        ([RED_CIRCLE], BLACK_42, "a red circle and the number 42", "一个红色圆形和数字42"),
        (
            [RED_CIRCLE, BLUE_STAR],
            None,
            "a red circle and a blue star",
            "一个红色圆形和一个蓝色五角星",
        ),
        (
            [RED_CIRCLE, BLUE_STAR, GREEN_RING],
            None,
            "a red circle, a blue star and a green ring",
            "一个红色圆形、一个蓝色五角星和一个绿色圆环",
        ),
        (
            [RED_CIRCLE, BLUE_STAR],
            a_number("042", "black"),
            "a red circle, a blue star and the number 042",
            "一个红色圆形、一个蓝色五角星和数字042",
        ),
    ],
)
def test_describe(objects, number, english, chinese):
    assert describe(objects, number, "en") == english
    assert describe(objects, number, "zh") == chinese


def test_list_objects():
    both = [RED_CIRCLE, BLUE_STAR]
    assert list_objects(both, None, "en") == "circle red, star blue"
    assert list_objects(both, None, "zh") == "圆形红色，五角星蓝色"
    assert list_objects(both, BLACK_42, "en") == "circle red, star blue, number 42"
    assert list_objects(both, BLACK_42, "zh") == "圆形红色，五角星蓝色，数字42"
    assert name_object(ORANGE_RING, "en") == "an orange ring"


@pytest.mark.parametrize("language", LANGUAGES)
def test_shares_are_fair(language):
    """Over 500 scenes: yes against no, zeros, the number's color, the absent number."""
    random = np.random.default_rng(1)
    asked = {kind: [] for kind in QUESTION_KINDS}
    for _ in range(500):
        objects, number = draw_shown(random)
        for kind in QUESTION_KINDS:
            question = ask(kind, language, objects, number, True, random)
            if question:
                about_number = re.search("number|数字", question.text.lower()) is not None
                asked[kind].append((question.answer, about_number, len(objects), number))
    yes = [answer in ("Yes.", "有。") for answer, *_ in asked["presence"]]
    assert 0.4 < np.mean(yes) < 0.6
    for about_number in (False, True):
        yes = [
            answer in ("Yes.", "有。") for answer, of, *_ in asked["presence"] if of is about_number
        ]
        assert 0.25 < np.mean(yes) < 0.75
    zeros = [answer.startswith("0") for answer, _, count, _ in asked["count"] if count]
    assert 0.05 < np.mean(zeros) < 0.2
    of_number = [of for _, of, count, number in asked["color"] if count == 1 and number]
    assert 0.02 < np.mean(of_number) < 0.3
    for_number = [of for _, of, _, number in asked["absent"] if number is None]
    assert 0.22 < np.mean(for_number) < 0.45


def test_articles_are_right():
    random = np.random.default_rng(2)
    found = set()
    for _ in range(1000):
        objects, number = draw_shown(random)
        for kind in ("presence", "description", "outside"):
            question = ask(kind, "en", objects, number, True, random)
            if question:
                found |= set(re.findall(r"\b(an?) (\w+)", f"{question.text} {question.answer}"))
    assert {("an", "orange"), ("a", "star"), ("a", "number")} <= found
    assert any(article == "an" and word in NOUNS["en"] for article, word in found)
    for article, word in found:
        assert article == ("an" if word[0] in "aeiou" else "a")


def test_every_wording_ends_with_a_mark():
    """So that leaving out the last character never leaves out a letter."""
    vocabulary = ("PICTURE", "THING", "ITEM", "THING_OR_NUMBER", "NUMBER_NAMES")
    vocabulary += ("NOUNS", "OUTSIDE_COLORS")
    checked = 0
    for name, table in vars(wordings).items():
        if name.isupper() and name not in vocabulary and set(table) == set(LANGUAGES):
            for language, marks in (("en", ".?!"), ("zh", "。？！")):
                texts = table[language]
                for text in (texts,) if isinstance(texts, str) else texts:
                    assert text[-1] in marks, text
                    checked += 1
    assert checked > 300


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_lies_outside_is_varied_and_named_apart(language):
    assert len(set(wordings.OUTSIDE[language])) >= 60
    assert len(NOUNS[language]) >= 60
    known = {"en": (SHAPES_ZH, COLORS_ZH)}.get(
        language, ([name for zh in SHAPES_ZH.values() for name in zh], COLORS_ZH.values())
    )
    known = {word for words in known for word in words}
    assert not known & {*NOUNS[language], *OUTSIDE_COLORS[language]}
    for text in wordings.OUTSIDE[language]:
        assert not mentioned(text.lower(), language, SHAPES_ZH)
        assert not mentioned(text.lower(), language, COLORS_ZH)
        assert not re.search("number|数字", text.lower())
    places = [
        PLACE.search(question.text.lower()) is not None
        for question in draws("outside", language, [RED_CIRCLE], None, 500)
    ]
    assert 0.12 < np.mean(places) < 0.45
