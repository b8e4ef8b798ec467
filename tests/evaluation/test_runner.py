"""Rows that are answered together answer as one by one, and a picture is encoded once."""

from __future__ import annotations

import base64
import csv
import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import encoded, picture, tiny_model, user

from flashvl import FlashVL
from flashvl.errors import DeviceError, ImageError
from flashvl.evaluation.answers import Answer
from flashvl.evaluation.runner import Runner, bundles, load_picture
from flashvl.evaluation.tables import Table, TableRow
from flashvl.generation.sampling import Sampling
from flashvl.input.image import load_image
from flashvl.input.tiling import tile_image
from flashvl.nano.world.scenes import scene, scoring_number

BATCHES = (1, 3, 8, 64)
SIZES = ((100, 100), (100, 200), (330, 120), (110, 300), (300, 200), (200, 310), (400, 380))


def write_table(file: Path, rows: list[dict[str, object]]) -> Table:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, columns, delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return Table(file)


def in_base64(image: Image.Image, form: str = "PNG", **options) -> str:
    return base64.b64encode(encoded(image, form, **options)).decode()


def question(row: TableRow) -> str:
    return row.question


def run(
    flash: FlashVL,
    table: Table,
    batch: int,
    reencode: bool = True,
    rows: list[TableRow] | None = None,
) -> dict[str, Answer]:
    """All answers by index; those of one runner, as a process has it."""
    runner = Runner(flash, table, question, reencode)
    answered = [
        answer
        for bundle in bundles(list(table.rows()) if rows is None else rows, batch)
        for answers in runner.answer(bundle, batch)
        for answer in answers
    ]
    by_index = {answer.index: answer for answer in answered}
    assert len(by_index) == len(answered)
    return by_index


def one_by_one(flash: FlashVL, table: Table, reencode: bool = True) -> dict[str, Answer]:
    """By `chat` alone."""
    answers = {}
    for row in table.rows():
        image = None
        if row.picture is not None:
            image = load_picture(table.picture(row), reencode and "image" in table.columns)
        said = flash.chat(image, user(row.question), max_new_tokens=512)
        answers[row.index] = Answer(row.index, said)
    return answers


@pytest.fixture
def short(monkeypatch) -> None:
    """Answers of models that never end theirs."""
    monkeypatch.setattr("flashvl.evaluation.runner.SAMPLING", Sampling(max_new_tokens=20))


@pytest.fixture(scope="module")
def nano() -> FlashVL:
    return FlashVL.from_pretrained("nano", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def scenes_table(tmp_path_factory) -> Table:
    """Scenes of many grids; the questions of a picture are strewn over the table.

    Some rows have no picture, which only a table with paths can have.
    """
    folder = tmp_path_factory.mktemp("scenes")
    rows: list[dict[str, object]] = []
    for number in range(14):
        drawn = scene(scoring_number(21, number))
        drawn.picture.resize(SIZES[number % len(SIZES)]).save(folder / f"{number}.png")
        for place, one in enumerate(drawn.questions[: 6 + number % 5]):
            shown = "" if (number + place) % 9 == 0 else f"{number}.png"
            rows.append({"index": f"{place}-{number}", "question": one.text, "image_path": shown})
    rows.sort(key=lambda row: str(row["index"]))
    return write_table(folder / "scenes.tsv", rows)


def test_each_row_is_answered_as_by_chat(nano, scenes_table):
    rows = list(scenes_table.rows())
    pictures = [load_image(scenes_table.picture(row)) for row in rows if row.picture]
    grids = {tile_image(one, nano.config.tiler)[1] for one in pictures}
    assert len(grids) >= 6
    assert len(rows) >= 100
    assert sum(row.picture is None for row in rows) >= 5
    wanted = one_by_one(nano, scenes_table)
    assert len({answer.prediction for answer in wanted.values()}) > 30
    for batch in BATCHES:
        assert run(nano, scenes_table, batch) == wanted, batch


def test_each_kind_of_model_answers_as_by_chat(any_flash, tmp_path):
    """Nonsense of up to the whole context, in which no answer ends early."""
    sizes = [(40, 20), (12, 12), (20, 60)]
    rows = [
        {"index": number, "question": text, "image": in_base64(picture(*sizes[number % 3]))}
        for number, text in enumerate(["A circle?", "是🔴?", "", "Sure?\nSure?"])
    ]
    table = write_table(tmp_path / "own.tsv", rows)
    wanted = one_by_one(any_flash, table)
    for batch in (1, 4):
        assert run(any_flash, table, batch) == wanted


@pytest.mark.parametrize("batch", BATCHES)
def test_a_picture_is_encoded_once(scenes_table, nano, batch):
    """Though its rows lie apart, though they are more than a batch."""
    seen: list[int] = []
    hook = nano.model.vision.register_forward_hook(lambda *_: seen.append(1))
    run(nano, scenes_table, batch)
    hook.remove()
    assert len(seen) == len({row.picture for row in scenes_table.rows() if row.picture})


def test_rows_decode_side_by_side(nano, scenes_table):
    rows = list(scenes_table.rows())[:24]
    together: list[int] = []
    hook = nano.model.decoder.register_forward_hook(
        lambda _, inputs, output: together.append(output.shape[0])
    )
    run(nano, scenes_table, 8, rows=rows)
    hook.remove()
    assert max(together) == 8


@given(st.lists(st.one_of(st.none(), st.sampled_from("abcdef")), max_size=40), st.integers(1, 9))
def test_bundles_keep_a_pictures_rows_together(pictures, batch):
    rows = [TableRow(str(number), "?", {}, one) for number, one in enumerate(pictures)]
    found = bundles(rows, batch)
    assert sorted(int(row.index) for bundle in found for row in bundle) == list(range(len(rows)))
    homes = [[row.picture for row in bundle] for bundle in found]
    for one in set(pictures) - {None}:
        assert sum(one in home for home in homes) == 1
    for home in homes:
        assert home
        assert len(home) <= batch or len(set(home)) == 1
        assert len([*itertools.groupby(home, key=lambda one: one)]) >= len(set(home))
    for one, following in itertools.pairwise(found):
        first = [row for row in following if row.picture == following[0].picture]
        size = 1 if following[0].picture is None else len(first)
        assert len(one) + size > batch  # else it would have been in the list before


def test_questions_of_like_length_share_a_batch():
    rows = [TableRow(str(n), "?" * length, {}, str(n)) for n, length in enumerate((9, 1, 8, 2))]
    rows += [TableRow("4", "?", {"A": "a long option"}, "x"), TableRow("5", "?", {}, "x")]
    found = [[row.index for row in bundle] for bundle in bundles(rows, 2)]
    assert found == [["1", "3"], ["2", "0"], ["4", "5"]]


def test_rows_that_are_done_are_left_out(nano, scenes_table):
    rows = list(scenes_table.rows())[:10]
    runner = Runner(nano, scenes_table, question)
    done = {rows[number].index for number in (0, 3, 4, 5, 9)}
    answered = [one.index for got in runner.answer(rows, 3, done) for one in got]
    assert answered == [row.index for row in rows if row.index not in done]
    assert list(runner.answer(rows, 3, {row.index for row in rows})) == []


def damaged_table(folder: Path) -> Table:
    good = in_base64(picture(40, 20))
    whole = encoded(picture(30, 30), "PNG")
    rows = [
        {"index": "good", "question": "A circle?", "image": good},
        {"index": "no base64", "question": "?", "image": "*" * 80},
        {"index": "no picture", "question": "?", "image": base64.b64encode(b"x" * 99).decode()},
        {"index": "cut off", "question": "?", "image": base64.b64encode(whole[:-60]).decode()},
        {"index": "nowhere", "question": "?", "image": "17"},
        {"index": "in a circle", "question": "?", "image": "in a circle"},
        {"index": "too long", "question": "many words " * 400, "image": good},
        {"index": "too thin", "question": "?", "image": in_base64(picture(2, 600))},
        {"index": "at cut off", "question": "?", "image": "cut off"},
        {"index": "good too", "question": "Sure?", "image": "good"},
        {"index": "last", "question": "Why?", "image": in_base64(picture(20, 60))},
    ]
    return write_table(folder / "damaged.tsv", rows)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("batch", [1, 2, 5, 20])
def test_a_damaged_row_is_an_error_that_names_it_and_harms_no_other(flash, tmp_path, batch):
    table = damaged_table(tmp_path)
    answers = run(flash, table, batch)
    rows = {row.index: row for row in table.rows()}
    assert answers.keys() == rows.keys()
    good = {"good", "good too", "last"}
    for index, answer in answers.items():
        if index in good:
            image = load_picture(table.picture(rows[index]), True)
            said = flash.chat(image, user(rows[index].question), max_new_tokens=20)
            assert answer == Answer(index, said)
        else:
            assert answer.prediction is None
            assert answer.error.startswith(f"{table.path}, row ")
            assert f"(index {index})" in answer.error
            assert answer.error.count(str(table.path)) == 1
            assert len(answer.error.splitlines()) == 1


@pytest.mark.usefixtures("short")
def test_a_row_whose_numbers_are_not_finite_is_an_error_and_no_other(tmp_path):
    """One word of the vocabulary has an embedding that is not a number."""
    flash = tiny_model()
    (broken,) = flash.tokenizer.encode("Z")
    rows = [
        {"index": number, "question": text, "image": in_base64(picture(40, 20))}
        for number, text in enumerate(["A", "B", "Z", "C", "D Z", "E"])
    ]
    table = write_table(tmp_path / "own.tsv", rows)
    wanted = run(flash, table, 3)
    with torch.no_grad():
        flash.model.decoder.embedding.weight[broken] = torch.nan
        flash.model.decoder.head.weight[broken] = 0
    answers = run(flash, table, 3)
    for index in ("2", "4"):
        assert "not finite" in answers[index].error
        assert f"(index {index})" in answers[index].error
    others = ("0", "1", "3", "5")
    assert all(answers[index].error is None for index in others)
    assert any(answers[index] == wanted[index] for index in others)


def test_memory_that_runs_out_ends_the_run(flash, tmp_path, monkeypatch):
    table = write_table(
        tmp_path / "own.tsv", [{"index": 0, "question": "?", "image": in_base64(picture())}]
    )
    monkeypatch.setattr(
        "flashvl.evaluation.runner.load_picture", lambda *_: (_ for _ in ()).throw(MemoryError())
    )
    with pytest.raises(DeviceError, match="memory"):
        run(flash, table, 1)


def test_a_picture_goes_through_jpeg_as_in_the_kit(tmp_path):
    image = picture(50, 31)
    file = tmp_path / "0.jpg"
    image.save(file)
    through = np.asarray(Image.open(file).convert("RGB"))
    contents = encoded(image, "PNG")
    assert np.array_equal(load_picture(contents, True), through)
    assert np.array_equal(load_picture(contents, False), np.asarray(image))
    assert not np.array_equal(through, np.asarray(image))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA", "L", "CMYK", "1"])
@pytest.mark.parametrize("reencode", [True, False])
def test_every_mode_becomes_rgb_as_in_the_kit(mode, reencode, tmp_path):
    form = "TIFF" if mode == "CMYK" else "PNG"
    contents = encoded(picture(40, 30).convert(mode), form)
    stored = Image.open(io.BytesIO(contents))
    if stored.mode in ("RGBA", "P", "LA"):
        stored = stored.convert("RGB")
    if reencode:
        stored.save(tmp_path / "0.jpg")
        stored = Image.open(tmp_path / "0.jpg")
    assert np.array_equal(load_picture(contents, reencode), np.asarray(stored.convert("RGB")))


def test_transparency_is_dropped_and_exif_turns_nothing():
    clear = picture(40, 20).convert("RGBA")
    clear.putalpha(0)
    assert np.array_equal(load_picture(encoded(clear, "PNG"), False), np.asarray(picture(40, 20)))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(picture(40, 20), "PNG", exif=exif)
    for reencode in (True, False):
        assert load_picture(turned, reencode).shape == (20, 40, 3)


@pytest.mark.parametrize("reencode", [True, False])
def test_what_cannot_be_a_picture_is_refused(reencode):
    for contents in (b"", b"GIF89a", encoded(picture(), "PNG")[:80]):
        with pytest.raises(ImageError):
            load_picture(contents, reencode)


def test_what_no_jpeg_can_hold_is_refused():
    wide = encoded(Image.new("I;16", (20, 20)), "PNG")
    assert load_picture(wide, False).shape == (20, 20, 3)
    with pytest.raises(ImageError, match="JPEG"):
        load_picture(wide, True)


def test_files_that_a_table_names_are_shown_as_they_are(flash, tmp_path, monkeypatch):
    image = picture(40, 20)
    image.save(tmp_path / "0.png")
    row = {"index": 0, "question": "?"}
    by_path = write_table(tmp_path / "path.tsv", [row | {"image_path": "0.png"}])
    in_cell = write_table(tmp_path / "cell.tsv", [row | {"image": in_base64(image)}])
    shown = []
    prepare = FlashVL.prepare
    monkeypatch.setattr(
        FlashVL, "prepare", lambda *args: (shown.append(args[1]), prepare(*args))[1]
    )
    for table in (by_path, in_cell):
        for reencode in (True, False):
            run(flash, table, 1, reencode)
    plain, jpeg = np.asarray(image), load_picture(encoded(image, "PNG"), True)
    for found, wanted in zip(shown, (plain, plain, jpeg, plain), strict=True):
        assert np.array_equal(found, wanted)
