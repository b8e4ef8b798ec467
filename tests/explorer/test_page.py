"""The page in a real browser, used as a visitor uses it."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator

import numpy as np
import pytest
from browser import needs_browser, opened_browser
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page
from tiny import encoded, picture, tiny_model, user

from flashvl import FlashVL
from flashvl.cli import main
from flashvl.config import Grid, TilerConfig
from flashvl.nano.world.scenes import scene, scoring_number
from flashvl.tools.explore import page as page_of

pytestmark = needs_browser
PATIENCE = 30_000  # milliseconds, for a machine that is busy


class Visitor:
    """A page, and what it should never have: errors, warnings and requests."""

    def __init__(self, context: BrowserContext, address: str) -> None:
        self.page: Page = context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.said: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)
        self.wait()

    def wait(self) -> str:
        """Until the model has answered what was asked last -> its answer."""
        self.page.wait_for_selector("#desk[aria-busy='false']")
        return self.page.inner_text("#answer-text")

    def ask(self, question: str) -> str:
        self.page.fill("#question", question)
        self.page.keyboard.press("Enter")
        return self.wait()

    def picture(self) -> Image.Image:
        """The picture as it is on the page."""
        address = self.page.evaluate("document.getElementById('picture').toDataURL()")
        return Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).convert("RGB")

    def columns(self) -> int:
        return self.page.locator("#without-tiles .row").first.locator(".cell").count()

    def close(self) -> None:
        assert self.said == []
        asked = [one for one in self.requests if not one.startswith(("file:", "blob:", "data:"))]
        assert asked == []
        assert len([one for one in self.requests if "file:" in one]) == 1
        self.page.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def nano() -> FlashVL:
    return FlashVL.from_pretrained("nano", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("page") / "explore.html"
    assert main(["explore", "--no-open", "--out", str(out)]) == 0
    return out.as_uri()


@pytest.fixture(scope="module")
def shared(browser, address) -> Iterator[Visitor]:
    """One page for the tests that leave it as they found it."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-US")
    visitor = Visitor(context, address)
    yield visitor
    visitor.close()
    context.close()


@pytest.fixture
def visitor(shared) -> Visitor:
    """With the circle and the star, and the question about the star's color."""
    shared.page.get_by_role("button", name="Circle and star").click()
    shared.page.locator("#suggestions button").first.click()
    assert shared.wait() == "blue"
    return shared


def cells_with(page: Page, root: str, name: str) -> list[int]:
    """Which of the cells, or of the strip's image tokens, are of a class."""
    return page.locator(f"{root} .cell, {root} .patch").evaluate_all(
        """(cells, name) => cells.flatMap((one, index) =>
            one.classList.contains(name) ? [index] : [])""",
        name,
    )


def pointed_cells(page: Page, root: str) -> list[int]:
    return cells_with(page, root, "pointed")


def drawn_tiles(page: Page, tiler: TilerConfig, grid: Grid) -> list[Image.Image]:
    """The grid's tiles as they are drawn together, and the thumbnail's core."""
    address = page.evaluate("document.getElementById('tiles-canvas').toDataURL()")
    canvas = Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).convert("RGB")
    (rows, columns), core, margin = grid, tiler.core_size, tiler.seen_margin
    between = 0.12 * core  # see tiles_station.js
    step = core + between + 2 * margin
    wide, high = (step * count - between for count in (columns, rows))
    scale = canvas.height / high
    corners = [
        ((wide - columns * core) / 2, (high - rows * core) / 2, columns * core, rows * core),
        (wide + 3 * between + margin, (high - core) / 2, core, core),
    ]
    return [
        canvas.crop([round(scale * one) for one in (x, y, x + width, y + height)])
        for x, y, width, height in corners
    ]


# To ask.


def test_it_answers_as_chat_does(visitor, nano):
    shown = visitor.picture()
    for question in ("What is in the picture?", "How many things are there?", "红色的是什么形状？"):
        assert visitor.ask(question) == nano.chat(shown, user(question))


def test_a_shape_is_dragged_away_and_the_model_sees_it(visitor, nano):
    page = visitor.page
    visitor.ask("What is in the picture?")
    before = visitor.picture()
    box = page.locator("#picture").bounding_box()
    start = (box["x"] + 0.72 * box["width"], box["y"] + 0.45 * box["height"])
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(start[0] - 20, start[1] + 30, steps=4)
    page.mouse.up()
    answer = visitor.wait()
    after = visitor.picture()
    assert after.tobytes() != before.tobytes()
    assert answer == nano.chat(after, user("What is in the picture?"))


@pytest.mark.slow
def test_a_file_of_ones_own(visitor, nano, tmp_path):
    drawn = scene(scoring_number(5, 3))
    file = tmp_path / "scene.png"
    drawn.picture.save(file)
    visitor.page.set_input_files("#file", str(file))
    visitor.page.wait_for_selector("#picture[aria-label*='from a file']")
    visitor.wait()
    assert visitor.picture().tobytes() == drawn.picture.tobytes()
    question = drawn.questions[0].text
    assert visitor.ask(question) == nano.chat(drawn.picture, user(question))
    (tmp_path / "no.png").write_text("no picture")
    visitor.page.set_input_files("#file", str(tmp_path / "no.png"))
    visitor.page.wait_for_selector("#error:not([hidden])")
    assert "no picture" in visitor.page.inner_text("#error")


@pytest.mark.slow
def test_things_are_added_changed_and_removed_by_the_keyboard_alone(visitor, nano):
    page = visitor.page
    page.get_by_role("button", name="Add: triangle").focus()
    page.keyboard.press("Enter")
    triangle = page.locator("#objects button", has_text="triangle")
    triangle.focus()
    before = visitor.picture()
    for key in ("ArrowRight", "ArrowDown", "+"):
        page.keyboard.press(key)
    assert visitor.picture().tobytes() != before.tobytes()
    page.get_by_role("button", name="yellow").focus()
    page.keyboard.press("Enter")
    assert page.locator("#objects button").all_inner_texts()[-1] == "yellow triangle"
    visitor.wait()
    question = "What is in the picture?"
    assert visitor.ask(question) == nano.chat(visitor.picture(), user(question))
    page.locator("#objects button", has_text="triangle").focus()
    page.keyboard.press("Delete")
    assert page.locator("#objects button").count() == 2
    assert page.evaluate("document.activeElement.closest('#objects') !== null")


# To look inside.


def test_every_station_shows_what_the_model_did(visitor, nano):
    page = visitor.page
    assert "2 × 3 tiles and a thumbnail · 36 tokens each · 252" in page.inner_text("#tiles-count")
    words = page.locator("#tokens-tiles .cell").all_inner_texts()
    assert len(words) == 216
    assert {"star", "circle", "red", "blue"} <= set(words)
    strip = page.locator("#strip-list .patch")
    assert strip.count() == 252
    parts = nano.prepare(visitor.picture(), user("What colour is the star?"))
    total = parts.input_ids.shape[1] + 2  # the answer, and the token that ends it
    assert page.locator("#strip-list .patch, #strip-list .token").count() == total
    layers = nano.config.decoder.layers
    assert page.locator("#decoder-lens tr").count() == layers
    assert page.locator("#decoder-lens tr").last.locator("td").first.inner_text()[:4] == "blue"
    assert page.locator("#decoder-candidates li").first.inner_text().startswith("blue")


def test_strip_and_picture_point_at_each_other(visitor):
    page = visitor.page
    page.locator("#strip-list .patch").nth(100).hover()
    assert page.locator("#tokens-tiles .cell.pointed").count() == 1
    # Token 100: the third tile's 29th, in row 4 (from 0) and column 12 + 4.
    place = page.locator("#tokens-tiles .cell").evaluate_all(
        "cells => cells.findIndex((one) => one.classList.contains('pointed'))"
    )
    assert divmod(place, 18) == (4, 16)
    box = page.locator("#picture").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 16.5 / 18, box["y"] + box["height"] * 4.5 / 12)
    pointed = page.locator("#strip-list .patch").evaluate_all(
        "cells => cells.findIndex((one) => one.classList.contains('pointed'))"
    )
    assert pointed == 100


@pytest.mark.slow
def test_heads_layers_and_candidates_can_be_chosen(visitor):
    page = visitor.page
    heads = page.locator("#decoder-heads .head")
    assert heads.count() == 16
    heads.nth(0).click()
    assert "Layer 0, head 0" in page.inner_text("#decoder-reads")
    shares = page.locator("#decoder-reads b").all_inner_texts()
    heads.nth(0).press("ArrowDown")
    page.keyboard.press("Enter")
    assert "Layer 1, head 0" in page.inner_text("#decoder-reads")
    assert page.locator("#decoder-reads b").all_inner_texts() != shares
    page.locator("#decoder-steps button").last.click()
    assert page.locator("#decoder-candidates li").first.inner_text().startswith("<|im_end|>")
    page.locator("#top-k").fill("3")
    assert page.locator("#decoder-candidates li.off").count() == 5
    page.locator("#top-k").fill("0")
    assert page.locator("#decoder-candidates li.off").count() == 0
    first = page.locator("#decoder-candidates .value").nth(1).inner_text()
    page.locator("#temperature").fill("3")
    assert page.locator("#decoder-candidates .value").nth(1).inner_text() != first
    page.locator("#temperature").fill("1")
    page.locator("#draw").click()
    page.wait_for_selector("#drawn:not(:empty)")
    assert page.inner_text("#drawn") == "Drawn: blue"


@pytest.mark.slow
def test_patches_of_the_tower(visitor):
    page = visitor.page
    assert page.locator("#tower-heads [role=img]").count() == 16
    drawn = "document.querySelector('#tower-heads canvas').toDataURL()"
    page.locator("#tower-patches .cell").nth(9).click()
    assert page.inner_text("#tower-patch") == "Patch in row 2, column 2"
    before = page.evaluate(drawn)
    page.keyboard.press("Tab")
    page.locator("#tower-patches .cell").nth(0).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press(" ")
    assert page.inner_text("#tower-patch") == "Patch in row 1, column 2"
    assert page.evaluate(drawn) != before


@pytest.mark.slow
def test_every_stitching_mode_is_asked_and_shown(visitor, nano):
    page = visitor.page
    page.locator("#tiles-compare").click()
    page.wait_for_selector("#tiles-table tr:nth-child(5)")
    rows = page.locator("#tiles-table tr").all()[1:]
    shown = visitor.picture()
    for row in rows:
        mode, sees, tokens, answer = row.locator("th, td").all_inner_texts()
        other = FlashVL.from_pretrained("nano", device="cpu", assumptions={"stitching": mode})
        assert sees == f"{other.config.tiler.seen_size} × {other.config.tiler.seen_size}"
        assert tokens == "252"
        assert answer == other.chat(shown, user("What colour is the star?"))
    assert page.inner_text("#answer-text") == "blue"
    page.get_by_role("radio", name="none").click()
    visitor.wait()
    page.get_by_text("Numbers").first.click()
    assert "A tile is 84 × 84 pixels" in page.inner_text("#tiles-numbers")
    page.get_by_role("radio", name="trim").click()
    visitor.wait()


# To take away.


def test_the_star_is_erased_and_given_back(visitor):
    page = visitor.page
    page.locator("#without-objects button", has_text="blue star").click()
    assert page.locator("#without-tiles .cell.off").count() > 15
    page.locator("#without-ask").click()
    assert visitor.wait() == "There is no star."
    assert page.inner_text("#before") == "blue"
    assert page.inner_text("#after") == "There is no star."
    assert "Switched off" in page.inner_text("#without-notice")
    page.locator("#without-restore").click()
    assert visitor.wait() == "blue"
    assert page.locator(".cell.off").count() == 0


@pytest.mark.slow
def test_cells_are_painted_over_and_pressed_by_the_keyboard(visitor):
    page = visitor.page
    cells = page.locator("#without-tiles .cell")
    cells.nth(0).scroll_into_view_if_needed()
    first, last = cells.nth(0).bounding_box(), cells.nth(4).bounding_box()
    page.mouse.move(first["x"] + 5, first["y"] + 5)
    page.mouse.down()
    page.mouse.move(last["x"] + 5, last["y"] + 5, steps=20)
    page.mouse.up()
    assert page.locator("#without-tiles .cell.off").count() == 5
    cells.nth(0).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    assert page.locator("#without-tiles .cell.off").count() == 6
    assert "off" in cells.nth(18).get_attribute("aria-label")
    head = page.get_by_role("button", name="layer 2, head 1", exact=True)
    head.click()
    assert head.get_attribute("aria-pressed") == "true"
    page.locator("#without-ask").click()
    visitor.wait()
    assert "6 of the image tokens, 1 of the heads" in page.inner_text("#without-notice")
    off = page.locator("#decoder-heads .head.off")
    assert off.count() == 1
    assert "off" in off.inner_text()
    page.locator("#without-restore").click()
    visitor.wait()


# The tour.


def test_the_tour_goes_from_stop_to_stop(visitor):
    page = visitor.page
    page.locator("#objects button").first.click()
    assert page.locator("#object").is_visible()
    page.get_by_role("button", name="Guided tour").click()
    titles = []
    for stop in range(1, 7):
        page.wait_for_selector(f"body[data-stop='{stop}']")
        assert page.locator("#object").is_hidden()
        assert page.evaluate("location.hash") == f"#tour-{stop}"
        titles.append(page.inner_text("#tour-title"))
        if stop == 5:
            assert "% of its attention on the star" in page.inner_text("#tour-text")
        if stop < 6:
            page.keyboard.press("ArrowRight")
    assert len(set(titles)) == 6
    assert "“There is no star.”" in page.inner_text("#tour-text")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("body[data-stop='5']")
    page.keyboard.press("Escape")
    assert page.locator("#tour").is_hidden()
    assert page.evaluate("location.hash") == ""


@pytest.mark.slow
def test_a_stop_has_an_address(browser, address):
    context = browser.new_context(reduced_motion="reduce", locale="zh-CN")
    visitor = Visitor(context, f"{address}#tour-6")
    visitor.page.wait_for_selector("body[data-stop='6']")
    assert "现在是" in visitor.page.inner_text("#tour-text")
    assert visitor.page.locator("#without").evaluate("one => one.getBoundingClientRect().top") < 400
    visitor.close()
    context.close()


# For everybody.


def test_both_languages(visitor):
    page = visitor.page
    page.get_by_role("button", name="中文").click()
    assert visitor.wait() == "蓝色"
    assert page.get_attribute("html", "lang") == "zh-Hans"
    for text in page.locator("main h2").all_inner_texts():
        assert not any(letter.isascii() and letter.isalpha() for letter in text), text
    assert "五角星" in page.locator("#tokens-tiles").inner_text()
    page.get_by_role("button", name="English").click()
    assert visitor.wait() == "blue"
    assert page.get_attribute("html", "lang") == "en"


@pytest.mark.parametrize(
    ("width", "theme"),
    [
        (360, "dark"),
        pytest.param(768, "light", marks=pytest.mark.slow),
        pytest.param(1920, "light", marks=pytest.mark.slow),
    ],
)
def test_it_fits_into_windows_of_every_width(browser, address, width, theme):
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=theme)
    visitor = Visitor(context, address)
    page = visitor.page
    assert page.get_attribute("html", "data-theme") == theme
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.evaluate(
        """width => [...document.querySelectorAll('button, input, h2, p, canvas')]
            .filter((one) => one.offsetParent !== null && !one.closest('.scroll, .skip'))
            .filter((one) => one.getBoundingClientRect().right > width + 1)
            .map((one) => one.id || one.textContent)""",
        width,
    )
    assert outside == []
    if folder := os.environ.get("FLASHVL_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{width}-{theme}.png", full_page=True)
    visitor.close()
    context.close()


@pytest.mark.slow
@pytest.mark.parametrize("size", [(120, 480), (640, 90), (200, 200)])
def test_pictures_of_every_shape_fit_and_point_at_their_tokens(visitor, tmp_path, size):
    page = visitor.page
    picture(*size).save(tmp_path / "thin.png")
    page.set_input_files("#file", str(tmp_path / "thin.png"))
    visitor.wait()
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    for name in ("#picture", "#tokens-tiles", "#without-tiles", "#tiles-canvas"):
        assert page.locator(name).bounding_box()["height"] < 0.9 * 900, name
    box = page.locator("#picture").bounding_box()
    assert box == page.locator("#overlay").bounding_box()
    assert box["width"] / box["height"] == pytest.approx(size[0] / size[1], rel=0.03)
    # In the last cell, and not where the corner is round.
    page.mouse.move(box["x"] + box["width"] - 5, box["y"] + box["height"] - 5)
    cells = page.locator("#tokens-tiles .cell")
    assert "pointed" in cells.last.get_attribute("class")


def test_everything_that_can_be_used_or_seen_has_a_name(visitor):
    nameless = visitor.page.evaluate(
        """() => [...document.querySelectorAll(
            'button, input:not([type=file]), [role=img], [role=grid], [role=radiogroup], .cell')]
            .filter((one) => one.offsetParent !== null)
            .filter((one) => !(one.getAttribute('aria-label') || one.textContent.trim()
                || one.labels?.length))
            .map((one) => one.outerHTML.slice(0, 120))"""
    )
    assert nameless == []
    stops = visitor.page.evaluate(
        "() => [...document.querySelectorAll('[role=gridcell][tabindex=\"0\"]')].length"
    )
    assert stops == 5  # one for each grid


def test_texts_never_become_elements_and_nothing_is_fetched(visitor):
    page = visitor.page
    question = "<img src=https://example.org/x onerror=alert(1)> <b>star</b>?"
    visitor.ask(question)
    assert page.locator("#strip-list img, #strip-list b").count() == 0
    assert page.input_value("#question") == question
    blocked = page.evaluate(
        """() => fetch('https://example.org/').then(() => 'fetched', () => 'refused')"""
    )
    assert blocked == "refused"
    assert page.evaluate("Object.keys(localStorage).length + document.cookie.length") == 0
    # The browser itself says that the policy refused it, and nothing else was said.
    refusals = [one for one in visitor.said if "Content Security Policy" in one]
    assert refusals
    assert all("example.org" in one for one in refusals)
    visitor.said[:] = [one for one in visitor.said if "example.org" not in one]
    visitor.requests[:] = [one for one in visitor.requests if "example.org" not in one]


@pytest.mark.slow
def test_a_change_while_it_works_wins(visitor):
    page = visitor.page
    page.get_by_role("button", name="Four things").click()
    page.get_by_role("button", name="A number").click()
    assert visitor.ask("Read the number.") == "204"


# Other models, pictures and questions.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "assumed"),
    [
        ("static", {}),
        ("dynamic", {"token_order": "columns"}),
        ("iss", {"thumbnail": "first", "tile_order": "columns", "slice_markers": "tile"}),
        ("iss", {"stitching": "pool", "system": False, "thumbnail": "none"}),
    ],
)
def test_models_of_other_kinds_and_sizes(browser, tmp_path, kind, assumed):
    flash, image = tiny_model(kind, seed=2, **assumed), picture(30, 50)
    file = tmp_path / "tiny.html"
    file.write_bytes(page_of(flash, "tiny", image, "Why <not>?"))
    context = browser.new_context()
    visitor = Visitor(context, file.as_uri())
    assert visitor.page.input_value("#question") == "Why <not>?"
    wanted = flash.chat(image, user("Why <not>?"), max_new_tokens=64)
    shown = visitor.page.inner_text("#answer-text")
    assert shown.split() == wanted.split()
    assert visitor.page.locator("#decoder-heads .head").count() == 8
    kinds = visitor.page.locator("#strip-list .group").evaluate_all(
        "groups => groups.map((one) => one.dataset.kind)"
    )
    order = [one for one in dict.fromkeys(kinds) if one in ("system", "thumbnail", "tiles")]
    wanted = [] if assumed.get("system") is False else ["system"]
    if assumed.get("thumbnail") == "first":
        wanted.append("thumbnail")
    wanted.append("tiles")
    if kind == "dynamic":
        wanted.append("thumbnail")
    assert order == wanted
    visitor.close()
    context.close()


@pytest.mark.slow
def test_a_thumbnail_that_comes_first_and_tiles_column_by_column(browser, tmp_path):
    assumptions = {"thumbnail": "first", "tile_order": "columns"}
    flash = FlashVL.from_pretrained("nano", "cpu", "float32", assumptions=assumptions)
    flash.save_pretrained(tmp_path / "other")
    out = tmp_path / "other.html"
    assert (
        main(["explore", "--no-open", "--model", str(tmp_path / "other"), "--out", str(out)]) == 0
    )
    context = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-US")
    visitor = Visitor(context, out.as_uri())
    page, shown = visitor.page, visitor.picture()
    question = page.input_value("#question")
    assert page.inner_text("#answer-text") == flash.chat(shown, user(question))
    # Of 2 x 3 tiles the third that is read is the upper one in the middle, after 36 tokens of the
    # thumbnail and twice 36 of tiles: its token in row 1 (from 0) and column 6 + 4.
    patches = page.locator("#strip-list .patch")
    patches.nth(36 + 2 * 36 + 6 + 4).hover()
    assert pointed_cells(page, "#tokens-tiles") == [1 * 18 + 6 + 4]
    assert pointed_cells(page, "#tokens-thumbnail") == []
    patches.nth(8).hover()
    assert pointed_cells(page, "#tokens-tiles") == []
    assert pointed_cells(page, "#tokens-thumbnail") == [8]
    box = page.locator("#picture").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 2.5 / 18, box["y"] + box["height"] * 7.5 / 12)
    assert pointed_cells(page, "#strip-list") == [36 + 36 + 6 + 2]
    kinds = page.locator("#strip-list .group").evaluate_all(
        "all => all.map(one => one.dataset.kind)"
    )
    assert kinds == ["system", "question", "thumbnail", "tiles", "question", "answer"]
    # Erased is what lies there: tiles are numbered row by row, and the fourth is lower left.
    assert page.locator("#without-parts button").all_inner_texts()[3:7] == [
        "tile 4",
        "tile 5",
        "tile 6",
        "thumbnail",
    ]
    page.locator("#without-parts button").nth(3).click()
    off = cells_with(page, "#without-tiles", "off")
    assert off == [row * 18 + column for row in range(6, 12) for column in range(6)]
    page.locator("#without-parts button").nth(3).click()
    # The tiles, put together, are the picture; the tower begins with a tile, not the thumbnail.
    names = page.locator("#tower-tiles button").all_inner_texts()
    assert names == ["1", "2", "3", "4", "5", "6", "Thumbnail"]
    assert page.locator("#tower-tiles [aria-checked=true]").inner_text() != "Thumbnail"
    page.evaluate("location.hash = 'tour-2'")  # the patch on the star, in the upper right tile
    page.wait_for_selector("body[data-stop='2']")
    assert page.locator("#tower-tiles [aria-checked=true]").inner_text() == "3"
    page.keyboard.press("Escape")
    page.locator("#tiles-apart").fill("0")
    for drawn in drawn_tiles(page, flash.config.tiler, (2, 3)):
        wanted = np.asarray(shown.resize(drawn.size)).astype(float)
        assert np.abs(np.asarray(drawn) - wanted).mean() < 12
    visitor.close()
    context.close()


@pytest.mark.slow
def test_the_picture_and_the_question_of_the_command(browser, tmp_path, nano):
    drawn = scene(scoring_number(5, 8))
    (tmp_path / "scene.jpg").write_bytes(encoded(drawn.picture, "JPEG", quality=95))
    question = drawn.questions[-1].text
    out = tmp_path / "page.html"
    command = ["explore", "--no-open", "--out", str(out), "--question", question]
    assert main([*command, "--image", str(tmp_path / "scene.jpg")]) == 0
    context = browser.new_context()
    visitor = Visitor(context, out.as_uri())
    wanted = nano.chat(tmp_path / "scene.jpg", user(question))
    assert visitor.page.inner_text("#answer-text") == wanted
    visitor.close()
    context.close()


@pytest.mark.slow
def test_the_time_from_the_click_to_the_answer_is_told(visitor):
    visitor.page.get_by_role("button", name="Four things").click()
    visitor.wait()
    told = visitor.page.inner_text("#time")
    print(f"seven tiles: {told}")
    assert float(told.split()[0]) > 0
