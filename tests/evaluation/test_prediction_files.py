"""Files of predictions: what is written is read back, by this package, pandas and openpyxl."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import openpyxl
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashvl.errors import ArgumentError, TableError
from flashvl.evaluation.files import write_predictions
from flashvl.evaluation.scores import score
from flashvl.evaluation.tables import MISSING, TableRow, read_predictions

HARD = [
    *("plain", " space around ", 'a "quote"', "a\ttab", "two\nlines", "old\r\nlines\r", "=1+1"),
    *("<b>&amp;</b>", "图中有几个？", "😀", "_x000D_", "_x_", "0012", "1e5", "True", "x" * 40000),
]


def rows_of(cells: list[str], first: int | str = 0) -> list[tuple[TableRow, str | None]]:
    rows = []
    for number, cell in enumerate(cells):
        index = str(first + number) if isinstance(first, int) else f"{first}_{number}"
        fields = {"index": index, "question": cell, "A": None, "answer": "A"}
        rows.append((TableRow(index, cell, fields), cell))
    return rows


def plain(rows: list[tuple[TableRow, str | None]]) -> list[tuple[dict, str | None]]:
    return [(dict(row.fields), prediction) for row, prediction in rows]


@pytest.mark.parametrize("ending", ["tsv", "xlsx"])
@pytest.mark.parametrize("first", [5, "VD_video"])
def test_what_is_written_is_read_back(tmp_path, ending, first):
    rows = rows_of(HARD, first)
    rows.append(
        (TableRow("last", "?", {"index": "999", "question": "?", "A": "b", "answer": "A"}), None)
    )
    file = tmp_path / f"m_MMStar.{ending}"
    write_predictions(file, rows)
    assert plain(read_predictions(file)) == plain(rows)


@pytest.mark.parametrize("ending", ["tsv", "xlsx"])
def test_pandas_reads_it_as_the_kit_does(tmp_path, ending):
    file = tmp_path / f"m_MMStar.{ending}"
    write_predictions(file, [*rows_of(HARD, 5), *rows_of(["?"], 100)])
    read = pd.read_excel(file) if ending == "xlsx" else pd.read_csv(file, sep="\t")
    assert list(read.columns) == ["index", "question", "A", "answer", "prediction"]
    assert read["index"].dtype == "int64"
    assert [*read["index"]] == [*range(5, 5 + len(HARD)), 100]
    assert [*read["prediction"][:-1]] == HARD
    assert read["A"].isna().all()


def test_openpyxl_finds_numbers_and_texts_in_the_first_sheet(tmp_path):
    file = tmp_path / "m_MME.xlsx"
    write_predictions(file, rows_of(["Yes", "12"], 7))
    sheet = openpyxl.load_workbook(file).worksheets[0]
    assert [[cell.value for cell in row] for row in sheet] == [
        ["index", "question", "A", "answer", "prediction"],
        [7, "Yes", None, "A", "Yes"],
        [8, "12", None, "A", "12"],
    ]
    with zipfile.ZipFile(file) as book:
        assert book.testzip() is None


@pytest.mark.parametrize("index", ["007", "1.0", "-0", "1234567890123456789", "٣"])
def test_an_index_that_a_number_would_change_stays_text(tmp_path, index):
    file = tmp_path / "m_own.xlsx"
    write_predictions(file, [(TableRow(index, "?", {"index": index, "question": "?"}), "a")])
    assert openpyxl.load_workbook(file).active["A2"].value == index
    assert read_predictions(file)[0][0].index == index


@pytest.mark.parametrize("engine", ["openpyxl"])
def test_workbooks_of_others_are_read(tmp_path, engine):
    file = tmp_path / "m_MMStar.xlsx"
    table = pd.DataFrame(
        {
            "index": [0, 1, 2],
            "A": ["x", None, "NA"],
            "number": [1.0, 2.5, 3.0],
            "flag": [True, False, True],
            "prediction": ["A.", "two\nlines", None],
        }
    )
    table.to_excel(file, index=False, engine=engine)
    rows = read_predictions(file)
    assert [row.index for row, _ in rows] == ["0", "1", "2"]
    assert [prediction for _, prediction in rows] == ["A.", "two\nlines", None]
    assert [row.fields["A"] for row, _ in rows] == ["x", None, None]
    assert [row.fields["number"] for row, _ in rows] == ["1", "2.5", "3"]
    assert [row.fields["flag"] for row, _ in rows] == ["True", "False", "True"]


NOT_HELD = {
    "tsv": re.compile("\0"),
    "xlsx": re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]"),
}


@given(st.lists(st.text(max_size=40), min_size=1, max_size=5))
def test_any_text_survives(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("files")
    rows = rows_of(texts)
    for ending in ("tsv", "xlsx"):
        file = folder / f"m_own.{ending}"
        write_predictions(file, rows)
        found = [prediction for _, prediction in read_predictions(file)]
        held = [NOT_HELD[ending].sub("", text) for text in texts]
        assert found == [None if text in MISSING else text for text in held]


def test_both_files_have_one_score(tmp_path):
    rows = [
        (TableRow(str(n), "?", {"index": str(n), "A": "x", "B": "y", "answer": "A"}), said)
        for n, said in enumerate(["A", "B.", None, "x"])
    ]
    for ending in ("tsv", "xlsx"):
        file = tmp_path / f"m_MMStar.{ending}"
        write_predictions(file, rows)
        assert score("MMStar", read_predictions(file)) == score("MMStar", rows)
    assert score("MMStar", rows)["score"] == 50.0


def test_an_old_prediction_is_replaced(tmp_path):
    fields = {"index": "0", "prediction": "old", "question": "?"}
    write_predictions(tmp_path / "m_own.tsv", [(TableRow("0", "?", fields), "new")])
    text = (tmp_path / "m_own.tsv").read_text()
    assert text == '"index"\t"question"\t"prediction"\n"0"\t"?"\t"new"\n'


def test_a_file_of_another_kind_or_without_rows_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match=r"a\.csv must end in \.tsv or \.xlsx"):
        write_predictions(tmp_path / "a.csv", rows_of(["a"]))
    with pytest.raises(TableError, match="there are no predictions for"):
        write_predictions(tmp_path / "a.tsv", [])
    with pytest.raises(ArgumentError, match="cannot be written"):
        write_predictions(tmp_path / "none" / "a.tsv", rows_of(["a"]))
    assert list(tmp_path.iterdir()) == []


def damaged(file: Path, name: str, contents: bytes) -> None:
    """Replaces one part of a workbook."""
    with zipfile.ZipFile(file) as book:
        parts = {part: book.read(part) for part in book.namelist()}
    with zipfile.ZipFile(file, "w") as book:
        for part, kept in (parts | {name: contents}).items():
            book.writestr(part, kept)


SHEET = "xl/worksheets/sheet1.xml"
MAIN = b'<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>'


@pytest.mark.parametrize(
    ("part", "contents"),
    [
        (SHEET, b"<worksheet"),
        (SHEET, b""),
        (SHEET, MAIN + b'<row><c r="A1" t="s"><v>7</v></c></row></sheetData></worksheet>'),
        (SHEET, MAIN + b'<row><c r="A1" t="s"><v>x</v></c></row></sheetData></worksheet>'),
        (SHEET, MAIN + b'<row><c r="ZZZZZZ1"><v>7</v></c></row></sheetData></worksheet>'),
        (SHEET, MAIN + b'<row><c r="B1"/><c r="A1"/></row></sheetData></worksheet>'),
        (SHEET, MAIN + b"</sheetData></worksheet>"),
        ("xl/workbook.xml", b"<workbook/>"),
        ("xl/_rels/workbook.xml.rels", b"<Relationships/>"),
    ],
)
def test_a_damaged_workbook_is_refused_in_a_line(tmp_path, part, contents):
    file = tmp_path / "m_MME.xlsx"
    write_predictions(file, rows_of(["Yes"]))
    damaged(file, part, contents)
    with pytest.raises(TableError) as raised:
        read_predictions(file)
    assert str(raised.value).startswith(str(file))


def test_what_is_no_workbook_is_refused(tmp_path):
    file = tmp_path / "m_MME.xlsx"
    file.write_bytes(b"index\tprediction\n")
    with pytest.raises(TableError, match="cannot be read as xlsx"):
        read_predictions(file)
    write_predictions(file, rows_of(["Yes"] * 100))
    contents = bytearray(file.read_bytes())
    place = contents.rindex(b"PK\x01\x02") - 60
    contents[place : place + 20] = bytes(20)
    file.write_bytes(contents)
    with pytest.raises(TableError, match=r"damaged|cannot be read"):
        read_predictions(file)
