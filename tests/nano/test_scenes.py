"""nano's world: seeded, clear to see, and labeled as it is drawn."""

from __future__ import annotations

import functools
import itertools
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from flashvl.input.tiling import choose_grid
from flashvl.nano.recipe import NANO, nano_config
from flashvl.nano.score import crosses_seam
from flashvl.nano.world import scenes
from flashvl.nano.world.backgrounds import MIN_CONTRAST, paint_background
from flashvl.nano.world.questions import LANGUAGES, QUESTION_KINDS, describe, list_objects
from flashvl.nano.world.scenes import (
    MAX_FONT,
    MAX_SIDE,
    MIN_FONT,
    MIN_SIDE,
    Scene,
    reading_order,
    scene,
    scoring_number,
    through_jpeg,
    training_number,
)
from flashvl.nano.world.things import (
    ADVANCE,
    COLORS,
    DIGITS,
    SHAPES,
    draw_color,
    draw_digits,
    number_mask,
    shape_mask,
)
from flashvl.nano.world.wordings import COLORS_ZH, SHAPES_ZH

numbers = st.integers(0, 2**60)
seeds = st.integers(0, 2**20 - 1)
indices = st.integers(0, 2**40 - 1)
digits = st.text(DIGITS, min_size=1, max_size=4)
Things = tuple  # of objects, and the number if there is one


@pytest.fixture(scope="module")
def many() -> list[Scene]:
    return [scene(scoring_number(3, index)) for index in range(400)]


def things_of(drawn: Scene) -> Things:
    return drawn.objects if drawn.written is None else (*drawn.objects, drawn.written)


def test_the_world_does_without_torch():
    world = ("backgrounds", "packed", "questions", "scenes", "things", "wordings")
    imports = "; ".join(f"import flashvl.nano.world.{one}" for one in world)
    program = f"{imports}; import sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


@given(numbers)
@settings(max_examples=20)
def test_the_same_number_gives_the_same_scene(number):
    first, second = scene(number), scene(number)
    assert first.picture.tobytes() == second.picture.tobytes()
    assert first.questions == second.questions
    assert [(one.box, one.rgb) for one in things_of(first)] == [
        (one.box, one.rgb) for one in things_of(second)
    ]
    assert first.picture.tobytes() != scene(number + 1).picture.tobytes()


@given(seeds, indices, seeds, indices)
def test_training_and_scoring_never_meet(seed, index, other_seed, other_index):
    assert training_number(seed, index) != scoring_number(other_seed, other_index)
    for number in (training_number, scoring_number):
        same = number(seed, index) == number(other_seed, other_index)
        assert same == ((seed, index) == (other_seed, other_index))


@given(numbers)
def test_things_lie_wholly_in_the_picture_apart_and_are_large(number):
    drawn = scene(number)
    assert isinstance(drawn.picture, Image.Image)
    assert drawn.picture.mode == "RGB"
    width, height = drawn.picture.size
    short, long = min(width, height), max(width, height)
    assert short >= 80
    assert long <= 640
    assert long - 0.5 <= 4 * (short + 0.5)  # sides are rounded
    things = things_of(drawn)
    assert 1 <= len(things) <= 4
    for thing in things:
        left, top, right, bottom = thing.box
        assert 0 < left < right < width
        assert 0 < top < bottom < height
        assert thing.mask.mode == "L"
        assert thing.mask.size == (right - left, bottom - top)
    for thing in drawn.objects:
        longest = max(thing.mask.size)
        assert MIN_SIDE * short - 0.5 <= longest <= MAX_SIDE[len(things)] * short + 0.5
    if drawn.written:
        assert drawn.written.color not in {thing.color for thing in drawn.objects}
        font = np.diff(drawn.written.spans).mean() / ADVANCE  # its size in pixels
        assert MIN_FONT * short - 1.5 <= font <= MAX_FONT * short + 1.5
    gap = max(3, 0.04 * short - 0.5)
    for one, other in itertools.combinations(things, 2):
        beside = max(one.box[0] - other.box[2], other.box[0] - one.box[2])
        above = max(one.box[1] - other.box[3], other.box[1] - one.box[3])
        assert max(beside, above) >= gap


@given(
    numbers,
    st.integers(80, 300),
    st.integers(0, 200),
    st.sampled_from([(1, 1), (1, 3), (2, 2), (4, 4)]),
    st.integers(0, 4),
    st.sampled_from([1.0, 2.0, 4.0]),
)
@settings(max_examples=40)
def test_a_scene_keeps_to_what_it_is_asked_for(number, side, more, things, length, elongated):
    drawn = scene(number, (side, side + more), things, length, elongated)
    short, long = min(drawn.picture.size), max(drawn.picture.size)
    assert side <= short <= long <= side + more
    assert long - 0.5 <= elongated * (short + 0.5)
    assert things[0] <= len(things_of(drawn)) <= things[1]
    if length == 0:
        assert drawn.written is None
    if drawn.written:
        assert len(drawn.written.digits) <= length


def test_things_contrast_with_every_pixel_of_their_background():
    checked = Counter()
    for seed in range(600):
        random = np.random.default_rng(seed)
        words = random.choice(list(COLORS), size=1 + seed % 4)
        colors = [draw_color(word, random) for word in words]
        picture = paint_background((60, 40), colors, random)
        assert picture.size == (60, 40)
        assert picture.mode == "RGB"
        pixels = np.asarray(picture, float)  # (height, width, C)
        if kind_of(picture) == "noisy":  # noise about one color
            pixels = np.median(pixels, (0, 1))
        for color in colors:
            distance = np.linalg.norm(pixels - color, axis=-1)
            # Between the places where a gradient is checked, and by rounding, it may be less.
            assert distance.min() > MIN_CONTRAST - 4.5
        checked[kind_of(picture)] += 1
    assert min(checked[kind] for kind in ("plain", "gradient", "noisy")) > 100


def kind_of(background: Image.Image) -> str:
    """From the pixels: along a gradient the steps are alike, but for rounding."""
    pixels = np.asarray(background, int)
    if (pixels == pixels[0, 0]).all():
        return "plain"
    bends = [np.abs(np.diff(pixels, 2, axis)).max() for axis in (0, 1)]
    return "gradient" if max(bends) <= 1 else "noisy"


def test_backgrounds_are_of_three_kinds_and_of_all_brightness():
    drawn = [paint_background((40, 30), [], np.random.default_rng(seed)) for seed in range(800)]
    share = Counter(map(kind_of, drawn))
    assert 0.44 < share["plain"] / 800 < 0.56
    assert 0.2 < share["gradient"] / 800 < 0.3
    assert 0.2 < share["noisy"] / 800 < 0.3
    brightness = np.array([np.asarray(one).mean() for one in drawn])
    for low in (0, 64, 128, 192):
        assert ((brightness >= low) & (brightness < low + 64)).mean() > 0.08


class Layers:
    """A scene, the background under it and the picture before it went through JPEG, if it did."""

    def __init__(self, number: int) -> None:
        self.before_jpeg = None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scenes, "paint_background", self._paint)
            patch.setattr(scenes, "through_jpeg", self._through_jpeg)
            self.scene = scene(number)

    def _paint(self, size, colors, random):
        painted = paint_background(size, colors, random)
        self.background, self.colors = np.asarray(painted, float), colors
        return painted

    def _through_jpeg(self, picture, random):
        self.before_jpeg = picture.copy()
        return through_jpeg(picture, random)


@given(numbers)
@settings(max_examples=40)
def test_masks_boxes_and_colors_agree_with_the_picture(number):
    layers = Layers(number)
    redrawn = layers.background.copy()  # (height, width, C)
    for thing in things_of(layers.scene):
        assert thing.rgb in layers.colors  # with which the background contrasts
        left, top, right, bottom = thing.box
        part = np.asarray(thing.mask)[..., None] / 255
        under = redrawn[top:bottom, left:right]
        redrawn[top:bottom, left:right] = part * np.array(thing.rgb) + (1 - part) * under
    drawn = layers.scene.picture if layers.before_jpeg is None else layers.before_jpeg
    assert np.abs(np.asarray(drawn, float) - redrawn).max() <= 1
    as_shown = np.abs(np.asarray(layers.scene.picture, float) - redrawn)
    noisy = kind_of(Image.fromarray(layers.background.astype(np.uint8))) == "noisy"
    assert as_shown.mean() < (20 if noisy else 10)  # JPEG leaves out most of noise


def test_a_quarter_of_the_pictures_went_through_jpeg():
    went = [Layers(scoring_number(5, index)).before_jpeg is not None for index in range(200)]
    assert 0.17 < np.mean(went) < 0.33
    before = scene(scoring_number(5, went.index(False))).picture
    after = through_jpeg(before, np.random.default_rng(0))
    assert (after.mode, after.size) == ("RGB", before.size)
    difference = np.abs(np.asarray(after, float) - np.asarray(before, float)).mean()
    assert 0 < difference < 8


def order_of(*middles: tuple[float, float]) -> list[int] | None:
    """The reading order of boxes about these middles in a picture of 1000 x 500."""
    boxes = [(round(x - 20), round(y - 10), round(x + 20), round(y + 10)) for x, y in middles]
    return reading_order(boxes, (1000, 500))


def test_reading_order_by_examples():
    assert order_of() == []
    assert order_of((500, 250)) == [0]
    assert order_of((700, 250), (300, 250)) == [1, 0]  # one row
    assert order_of((700, 250), (300, 300)) == [1, 0]  # still one: a tenth of the height apart
    assert order_of((700, 250), (300, 330)) is None  # neither one row nor two
    assert order_of((700, 200), (300, 330)) == [0, 1]  # two rows
    assert order_of((300, 400), (700, 100), (200, 100), (800, 410)) == [2, 1, 0, 3]
    assert order_of((500, 250), (540, 280)) is None  # too near above each other
    assert order_of((300, 100), (500, 150), (700, 200)) is None  # a slope


@given(st.lists(st.tuples(st.integers(30, 970), st.integers(20, 480)), max_size=4), st.randoms())
@settings(max_examples=300)
def test_reading_order_by_its_rule(middles, shuffled):
    """Worked out again from pairs: two are in one row, or a fifth of the height apart."""
    order = order_of(*middles)
    pairs = list(itertools.combinations(middles, 2))
    down = [abs(one[1] - other[1]) / 500 for one, other in pairs]
    across = [abs(one[0] - other[0]) / 1000 for one, other in pairs]
    for edge, apart in ((0.125, down), (0.2, down), (0.08, across)):
        assume(all(abs(distance - edge) > 1e-6 for distance in apart))

    def same_row(one, other):
        return abs(one[1] - other[1]) < 0.125 * 500

    clear = all(
        same_row(one, other) or abs(one[1] - other[1]) > 0.2 * 500 for one, other in pairs
    ) and all(
        same_row(one, third)
        for one, other, third in itertools.permutations(middles, 3)
        if same_row(one, other) and same_row(other, third)
    )
    clear = clear and all(
        abs(one[0] - other[0]) > 0.08 * 1000 for one, other in pairs if same_row(one, other)
    )
    if not clear:
        assert order is None
        return

    def before(one, other):
        return one[0] - other[0] if same_row(one, other) else one[1] - other[1]

    expected = sorted(middles, key=functools.cmp_to_key(before))
    assert [middles[place] for place in order] == expected
    mixed = shuffled.sample(middles, len(middles))
    assert [mixed[place] for place in order_of(*mixed)] == expected


@given(numbers)
def test_objects_are_in_reading_order_if_there_is_one(number):
    drawn = scene(number)
    order = reading_order([thing.box for thing in drawn.objects], drawn.picture.size)
    assert order == (list(range(len(drawn.objects))) if drawn.ordered else None)


@given(numbers)
def test_the_questions_are_of_this_scenes_contents(number):
    """That the answers follow from contents and question is `test_questions`."""
    drawn = scene(number)
    asked = {(one.kind, one.language): one for one in drawn.questions}
    assert len(asked) == len(drawn.questions)
    kinds = {kind for kind, _ in asked}
    assert kinds == {kind for kind, language in asked if language == "zh"}
    assert {"count", "presence", "absent", "outside", "self"} <= kinds
    assert ("number" in kinds) == (drawn.written is not None)
    assert ("description" in kinds) == drawn.ordered
    assert ("list" in kinds) == (drawn.ordered and len(drawn.objects) > 0)
    for (kind, language), question in asked.items():
        if kind == "number":
            assert question.answer == drawn.written.digits
        elif kind == "description":
            assert question.answer == describe(drawn.objects, drawn.written, language)
        elif kind == "list":
            assert question.answer == list_objects(drawn.objects, drawn.written, language)
    things = things_of(drawn)
    for kind, words in (("color", COLORS_ZH), ("shape", SHAPES_ZH)):
        there = {getattr(thing, kind) for thing in things if hasattr(thing, kind)}
        if (kind, "en") in asked:
            assert asked[kind, "en"].answer in there
        assert set(words) >= there
    count = asked["count", "en"]
    named = (*SHAPES, *COLORS)
    if not re.search("|".join(named), count.text.lower()):
        counted = things if "thing" in count.text.lower() else drawn.objects
        assert count.answer == str(len(counted))


def test_a_number_has_no_leading_zero_and_all_digits_alike():
    random = np.random.default_rng(0)
    for count in (1, 2, 3, 4):
        drawn = [draw_digits(count, random) for _ in range(800)]
        assert all(len(one) == count for one in drawn)
        assert all(one[0] != "0" for one in drawn) == (count > 1)
        for place in range(count):
            options = 9 if place == 0 and count > 1 else 10
            found = Counter(one[place] for one in drawn)
            assert len(found) == options
            assert min(found.values()) > 0.6 * 800 / options


@given(digits, st.floats(20, 300), st.booleans())
def test_spans_tile_the_number_and_each_digit_lies_in_its_own(text, size, antialiased):
    """Each digit is drawn alone with Pillow, where the ones before it end."""
    mask, spans = number_mask(text, size, antialiased)
    assert len(spans) == len(text)
    assert all(one[1] == other[0] for one, other in itertools.pairwise(spans))
    assert spans[0][0] <= 0
    assert spans[-1][1] >= mask.width - 1
    assert mask.getbbox() == (0, 0, *mask.size)  # cut at the ink
    assert set(np.unique(mask)) == {0, 255} or antialiased
    font = ImageFont.load_default(round(size))
    ink_of_all = inked("L" if antialiased else "1", font, text)
    shift = ink_of_all.getbbox()[0]  # where the ink begins
    together = np.zeros((mask.height, mask.width + shift + round(size)))
    top = ink_of_all.getbbox()[1]
    for place, (digit, (begin, end)) in enumerate(zip(text, spans)):
        assert end - begin == pytest.approx(ADVANCE * round(size), abs=2.5)
        alone = inked("L" if antialiased else "1", font, digit)
        start = font.getlength(text[:place])
        left, _, right, _ = alone.getbbox()
        assert begin - 1 <= start - shift + left
        assert start - shift + right <= end + 1
        part = np.asarray(alone, float)[top:]
        part = part[: mask.height, : round(size)]
        at = round(start)
        together[: part.shape[0], at : at + part.shape[1]] += part
    difference = np.abs(np.asarray(mask, float) - together[:, shift : shift + mask.width])
    assert difference.mean() < 2


def inked(mode: str, font: ImageFont.FreeTypeFont, text: str) -> Image.Image:
    canvas = Image.new("L", (round(4 * font.size), round(2 * font.size)))
    draw = ImageDraw.Draw(canvas)
    draw.fontmode = mode
    draw.text((0, 0), text, fill=255, font=font)
    return canvas


def share_of(found: list, options) -> dict:
    counts = Counter(found)
    assert set(counts) == set(options)
    return {option: counts[option] / len(found) for option in options}


def test_the_world_has_everything_in_fair_shares(many):
    objects = [thing for one in many for thing in one.objects]
    written = [one.written for one in many if one.written]
    shapes = share_of([thing.shape for thing in objects], SHAPES)
    assert min(shapes.values()) > 0.6 / len(SHAPES)
    for things in (objects, written):
        colors = share_of([thing.color for thing in things], COLORS)
        assert min(colors.values()) > 0.5 / len(COLORS)
    shown = share_of("".join(one.digits for one in written), DIGITS)
    assert min(shown.values()) > 0.05
    lengths = share_of([len(one.digits) for one in written], (1, 2, 3, 4))
    assert min(lengths.values()) > 0.18
    assert 0.44 < len(written) / len(many) < 0.56
    counts = share_of([len(one.objects) for one in many], range(5))
    assert min(counts.values()) > 0.08
    together = share_of([len(things_of(one)) for one in many], (1, 2, 3, 4))
    assert min(together.values()) > 0.18
    assert 0.9 < np.mean([one.ordered for one in many]) < 1
    # Of several objects now and then all are of one shape or of one color.
    several = [one.objects for one in many if len(one.objects) > 1]
    for name, low, high in (("shape", 0.2, 0.45), ("color", 0.15, 0.4)):
        alike = [len({getattr(thing, name) for thing in things}) == 1 for things in several]
        assert low < np.mean(alike) < high


def test_pictures_are_of_all_sizes_and_ways_up(many):
    sizes = np.array([one.picture.size for one in many])  # (scenes, 2)
    ratio = sizes.max(1) / sizes.min(1)
    assert 0.2 < (ratio == 1).mean() < 0.5
    assert 0.02 < (ratio > 2).mean() < 0.12
    assert ratio.max() > 3
    assert (sizes[:, 0] > sizes[:, 1]).mean() > 0.2
    assert (sizes[:, 0] < sizes[:, 1]).mean() > 0.15
    for low, high in ((80, 160), (160, 320), (320, 641)):
        assert ((sizes.max(1) >= low) & (sizes.max(1) < high)).mean() > 0.2


def test_things_lie_across_seams_and_within_tiles(many):
    tiler = nano_config(NANO).tiler
    for has in (lambda one: one.objects, lambda one: [one.written] if one.written else []):
        across = []
        for one in many:
            width, height = one.picture.size
            grid = choose_grid(height, width, tiler.core_size, tiler.max_tiles)
            across += [crosses_seam(thing.box, (width, height), grid) for thing in has(one)]
        assert 0.25 < np.mean(across) < 0.75


def test_questions_are_in_many_words(many):
    for kind, language in itertools.product(QUESTION_KINDS, LANGUAGES):
        texts = {
            question.text
            for one in many
            for question in one.questions
            if (question.kind, question.language) == (kind, language)
        }
        assert len(texts) > 20, (kind, language)


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


def test_a_mask_has_the_size_asked_for_and_smooth_edges_only_if_asked():
    for shape, size in itertools.product(SHAPES, (25, 60, 140)):
        for antialiased in (False, True):
            mask = shape_mask(shape, size, np.random.default_rng(1), antialiased)
            assert max(mask.size) == size
            between = np.setdiff1d(np.unique(mask), (0, 255))
            assert len(between) == 0 or antialiased
