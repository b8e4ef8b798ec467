"""nano's world: seeded, unambiguous, and labelled as it is drawn."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flashvl.nano.questions import KINDS, LANGUAGES, describe, list_objects
from flashvl.nano.scenes import OUTLINE, packed_tile, scene, scoring_number, training_number
from flashvl.nano.shapes import COLOURS, LEAST_CONTRAST, SHAPES, shape_mask
from flashvl.nano.wordings import COLOURS_ZH, SHAPES_ZH

numbers = st.integers(0, 2**60)
seeds = st.integers(0, 2**20 - 1)
indices = st.integers(0, 2**40 - 1)
TILE, PATCH = 112, 14


@given(numbers)
@settings(max_examples=20)
def test_the_same_number_gives_the_same_scene(number):
    first, second = scene(number), scene(number)
    assert first.picture.tobytes() == second.picture.tobytes()
    assert first.questions == second.questions
    assert first.picture.tobytes() != scene(number + 1).picture.tobytes()


@given(seeds, indices, seeds, indices)
def test_training_and_scoring_never_meet(seed, index, other_seed, other_index):
    assert training_number(seed, index) != scoring_number(other_seed, other_index)
    for number in (training_number, scoring_number):
        same = number(seed, index) == number(other_seed, other_index)
        assert same == ((seed, index) == (other_seed, other_index))


@given(numbers)
def test_objects_lie_wholly_in_the_picture_apart_and_are_large(number):
    drawn = scene(number)
    width, height = drawn.picture.size
    assert min(width, height) >= 80
    assert max(width, height) <= 640
    assert 1 <= len(drawn.objects) <= 2
    for thing in drawn.objects:
        left, top, right, bottom = thing.box
        assert left >= 0 and top >= 0 and right <= width and bottom <= height  # noqa: PT018
        assert thing.mask.size == (right - left, bottom - top)
        share = max(thing.mask.size) / min(width, height)
        assert 0.19 < share < 0.52
        assert np.linalg.norm(np.subtract(thing.rgb, drawn.background)) > LEAST_CONTRAST - 2
    for one, other in itertools.combinations(drawn.objects, 2):
        beside = one.box[2] < other.box[0] or other.box[2] < one.box[0]
        above = one.box[3] < other.box[1] or other.box[3] < one.box[1]
        assert beside or above


@given(numbers)
@settings(max_examples=30)
def test_masks_agree_with_the_picture(number):
    drawn = scene(number)
    redrawn = np.empty((*drawn.picture.size[::-1], 3))
    redrawn[:] = drawn.background
    for thing in drawn.objects:
        left, top, right, bottom = thing.box
        part = np.asarray(thing.mask)[..., None] / 255
        under = redrawn[top:bottom, left:right]
        redrawn[top:bottom, left:right] = part * np.array(thing.rgb) + (1 - part) * under
    difference = np.abs(np.asarray(drawn.picture, float) - redrawn)
    assert difference.mean() < 4  # what JPEG leaves; 0.5 without it
    assert np.median(difference) <= 3


@given(numbers)
@settings(max_examples=200)
def test_every_question_has_the_one_right_answer(number):
    """The answer is worked out again from the question's words alone."""
    drawn = scene(number)
    for question in drawn.questions:
        shapes = _mentioned(question.text, question.language, SHAPES_ZH)
        colours = _mentioned(question.text, question.language, COLOURS_ZH)
        meant = [
            thing
            for thing in drawn.objects
            if (not shapes or thing.shape in shapes) and (not colours or thing.colour in colours)
        ]
        chinese = question.language == "zh"
        if question.kind == "colour":
            assert not colours
            expected = {COLOURS_ZH[one.colour] if chinese else one.colour for one in meant}
        elif question.kind == "shape":
            assert not shapes
            expected = {SHAPES_ZH[one.shape][0] if chinese else one.shape for one in meant}
        elif question.kind == "count":
            expected = {f"{len(meant)}个" if chinese else f"{len(meant)}"}
        else:
            assert not shapes
            assert not colours
            words = describe if question.kind == "description" else list_objects
            expected = {words(drawn.objects, question.language)}
        if question.kind in ("colour", "shape"):
            assert len(meant) == 1
        assert expected == {question.answer}


def _mentioned(text: str, language: str, chinese: dict) -> set[str]:
    """The words of a table that occur in a question, in English; longer Chinese words first."""
    if language == "en":
        return {word for word in chinese if re.search(rf"\b{word}(s|es)?\b", text.lower())}
    words = {zh: en for en, names in chinese.items() for zh in _as_tuple(names)}
    found = set()
    for word in sorted(words, key=len, reverse=True):
        if word in text:
            found.add(words[word])
            text = text.replace(word, " ")
    return found


def _as_tuple(names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def test_objects_are_named_in_reading_order():
    for index in range(200):
        drawn = scene(scoring_number(7, index))
        if len(drawn.objects) == 2:
            first, second = drawn.objects
            centres = [
                (one.box[0] + one.box[2], one.box[1] + one.box[3]) for one in (first, second)
            ]
            across = (centres[1][0] - centres[0][0]) / 2 / drawn.picture.width
            assert across > 0.1 or (abs(across) < 0.1 and centres[0][1] < centres[1][1])
            answer = describe(drawn.objects, "en")
            assert answer.endswith(f"{second.colour} {second.shape}")
            assert f"{first.colour} {first.shape} and a" in answer
            listed = list_objects(drawn.objects, "en")
            assert listed == f"{first.shape} {first.colour}, {second.shape} {second.colour}"


def test_the_world_has_everything_in_fair_shares():
    drawn = [scene(scoring_number(3, index)) for index in range(600)]
    objects = [thing for one in drawn for thing in one.objects]
    for words, name in ((SHAPES, "shape"), (COLOURS, "colour")):
        found = [getattr(thing, name) for thing in objects]
        for word in words:
            assert found.count(word) > 0.6 * len(found) / len(words)
    for kind, language in itertools.product(KINDS, LANGUAGES):
        texts = {
            question.text
            for one in drawn
            for question in one.questions
            if (question.kind, question.language) == (kind, language)
        }
        assert len(texts) > 20
    answers = [question.answer for one in drawn for question in one.questions]
    assert 0.4 < answers.count("1") / (answers.count("1") + answers.count("2")) < 0.8


@given(numbers, st.integers(1, 6))
@settings(max_examples=40)
def test_patch_labels_agree_with_the_tile(number, most_objects):
    tile, shapes, colours, outlines = packed_tile(number, TILE, PATCH, most_objects)
    side = TILE // PATCH
    assert tile.shape == (TILE, TILE, 3)
    assert tile.dtype == np.uint8
    assert shapes.shape == colours.shape == (side, side)
    assert shapes.dtype == colours.dtype == np.int64
    assert outlines.shape == (side, side, OUTLINE**2)
    assert outlines.min() >= 0
    assert outlines.max() <= 1
    assert set(np.unique(shapes)) <= {-100, *range(len(SHAPES) + 1)}
    assert set(np.unique(colours)) <= {-100, *range(len(COLOURS) + 1)}
    for none in (0, -100):
        np.testing.assert_array_equal(shapes == none, colours == none)
    covered = outlines.mean(-1)  # (patches a side, patches a side)
    assert (covered[shapes > 0] > 0.1).all()
    assert (covered[shapes == 0] < 0.03).all()
    patches = tile.reshape(side, PATCH, side, PATCH, 3).mean((1, 3))  # (side, side, 3)
    for row, column in zip(*np.nonzero((covered > 0.99) & (colours > 0))):
        values = COLOURS[list(COLOURS)[colours[row, column] - 1]]
        assert min(np.linalg.norm(patches[row, column] - value) for value in values) < 90


@pytest.mark.parametrize("shape", SHAPES)
def test_a_mask_fills_its_box_as_its_shape_does(shape):
    random = np.random.default_rng(0)
    for _ in range(20):
        mask = shape_mask(shape, 60, random)
        filled = np.asarray(mask) / 255
        assert max(mask.size) == 60
        assert filled.max() == 1
        assert mask.getbbox() is not None
        box = mask.getbbox()
        assert (box[2] - box[0]) * (box[3] - box[1]) > 0.9 * mask.size[0] * mask.size[1]
        middle = filled[filled.shape[0] // 2, filled.shape[1] // 2]
        assert (middle == 0) == (shape == "ring")
        low, high = {
            "circle": (0.75, 0.82),
            "square": (0.45, 1.0),
            "triangle": (0.3, 0.62),
            "star": (0.2, 0.45),
            "cross": (0.15, 0.7),
            "ring": (0.15, 0.65),
        }[shape]
        assert low < filled.mean() <= high


def test_a_picture_is_rgb_of_eight_bits():
    assert isinstance(scene(0).picture, Image.Image)
    assert scene(0).picture.mode == "RGB"
