"""Tables of questions: what a row is, where its picture comes from, and what is refused."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pandas as pd
import pytest

from flashvl.errors import FlashVLError, ImageError, TableError
from flashvl.evaluation import tables
from flashvl.evaluation.tables import MISSING, Table, read_predictions

PICTURE, OTHER = bytes(range(60)), bytes(range(100, 170))


def base64_of(contents: bytes) -> str:
    text = base64.b64encode(contents).decode()
    assert len(text) > tables.MAX_INDEX
    return text


IMAGE = base64_of(PICTURE)


def write(folder: Path, columns: list[str], *rows: list[str], name: str = "own.tsv") -> Path:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter="\t", lineterminator="\n").writerows([columns, *rows])
    path = folder / name
    path.write_bytes(file.getvalue().encode())
    return path


def refusal(kind: type[FlashVLError], call) -> str:
    with pytest.raises(kind) as raised:
        call()
    text = str(raised.value)
    assert "\n" not in text
    return text


def test_rows_come_in_order_with_all_columns_but_the_picture(tmp_path):
    columns = ["index", "question", "image", "A", "B", "l2-category"]
    first = ["3", 'A tab\tand "quotes"\nand a line', IMAGE, "NA", "none", ""]
    path = write(tmp_path, columns, first, ["1", "Short?", IMAGE], name="x_MME.tsv")
    table = Table(path)
    one, two = table.rows()
    assert (table.name, table.count, table.columns) == ("MME", 2, columns)
    assert table.md5 == hashlib.md5(path.read_bytes()).hexdigest()
    assert one.question == one.fields["question"] == first[1]
    assert one.fields == {
        "index": "3", "question": first[1], "A": None, "B": "none", "l2-category": None
    }  # fmt: skip
    assert two.fields["A"] is two.fields["B"] is two.fields["l2-category"] is None
    assert (one.index, two.index) == ("3", "1")
    assert two.place == f"{path}, row 2 (index 1)"
    assert list(table.rows()) == [one, two]


def test_what_pandas_reads_as_missing_is_missing():
    strange = ["none", "NONE", "Nan", "NAN", "na", "Null", "-", " ", "N.A.", "#n/a", "inf", "0"]
    for quote in ("", '"'):
        for text in (*MISSING, *strange):
            cells = pd.read_csv(io.StringIO(f"a\tb\nx\t{quote}{text}{quote}\n"), sep="\t")
            assert (text in MISSING) == cells["b"].isna()[0], text


def test_equal_pictures_share_a_key_and_are_found_by_it(tmp_path):
    columns = ["index", "question", "image"]
    rows = [
        *(["a", "1?", IMAGE], ["b", "2?", "a"], ["c", "3?", base64_of(OTHER)]),
        *(["d", "4?", IMAGE], ["e", "5?", "f"], ["f", "6?", f"['{IMAGE}', '{base64_of(OTHER)}']"]),
        *(["g", "7?", f"['{base64_of(OTHER)}']"], ["h", "no picture?", "nan"]),
    ]
    table = Table(write(tmp_path, columns, *rows))
    by_index = {row.index: row for row in table.rows()}
    assert list(by_index) == list("abcdefg")
    assert table.count == 7
    keys = {index: row.picture for index, row in by_index.items()}
    assert keys["a"] == keys["b"] == keys["d"] != keys["c"]
    assert keys["e"] == keys["f"]
    contents = {index: table.picture(row) for index, row in by_index.items()}
    assert contents == dict(zip("abcdefg", [PICTURE] * 2 + [OTHER] + [PICTURE] * 3 + [OTHER]))


def test_a_path_names_a_file_beside_the_table_or_among_the_images_of_the_kit(tmp_path):
    (tmp_path / "images" / "MME").mkdir(parents=True)
    (tmp_path / "images" / "MME" / "1.png").write_bytes(PICTURE)
    (tmp_path / "2.png").write_bytes(OTHER)
    rows = [
        *(["0", "?", "1.png"], ["1", "?", str(tmp_path / "2.png")]),
        *(["2", "?", "['2.png', '1.png']"], ["3", "?", ""], ["4", "?", "images/../2.png"]),
    ]
    columns = ["index", "question", "image_path"]
    table = Table(write(tmp_path, columns, *rows, name="MME_local.tsv"))
    pictures = [table.picture(row) for row in table.rows() if row.picture is not None]
    assert pictures == [PICTURE, OTHER, OTHER, OTHER]
    assert next(row.index for row in table.rows() if row.picture is None) == "3"


def test_the_picture_in_the_table_goes_before_a_path(tmp_path):
    path = write(
        tmp_path, ["index", "question", "image", "image_path"], ["0", "?", IMAGE, "nowhere.png"]
    )
    table = Table(path)
    (row,) = table.rows()
    assert table.picture(row) == PICTURE
    assert row.fields["image_path"] == "nowhere.png"


def test_without_an_index_rows_are_counted_from_zero(tmp_path):
    table = Table(write(tmp_path, ["question", "answer"], ["1?", "a"], ["2?", "b"]))
    assert [row.index for row in table.rows()] == ["0", "1"]
    assert [row.fields["index"] for row in table.rows()] == ["0", "1"]
    assert all(row.picture is None for row in table.rows())


def test_byte_order_mark_windows_line_ends_and_blank_lines(tmp_path):
    path = tmp_path / "own.tsv"
    path.write_bytes(
        f'\ufeffindex\tquestion\timage\r\n\r\n0\t"a\r\nb"\t{IMAGE}\r\n\r\n1\tc\t0\r\n'.encode()
    )
    table = Table(path)
    one, two = table.rows()
    assert (one.question, two.question) == ("a\r\nb", "c")
    assert table.picture(two) == PICTURE
    # A row without a question is a row; the prompt refuses it.
    assert next(Table(write(tmp_path, ["question", "A"], ["", "x"])).rows()).question == ""


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "is empty"),
        (b"index\tquestion\n", "has no rows"),
        (b"index\tanswer\n0\tx\n", r"row 0 \(the names\) has no column question; it has index, a"),
        (b"question\tA\tA\n?\t1\t2\n", r"row 0 \(the names\) has the column 'A' twice"),
        (b"index\tquestion\n0\ta\n1\tb\n0\tc\n", r"row 3 has the index '0' a second time"),
        (b"index\tquestion\n0\ta\n\tb\n", "row 2 has no index"),
        (b"index\tquestion\n0\ta\n1\tb\tc\n", "row 2 has 3 cells, the names are 2"),
        (b'index\tquestion\n0\ta\n1\t"b\n2\tc\n', "row 2 is not tab-separated text with CSV"),
        (b"index\tquestion\n0\t\xe9t\xe9\n", "row 1 is not UTF-8; save the table in that encod"),
        ("index\tquestion\n0\ta\n".encode("utf-16"), "row 0 is not UTF-8"),
        ("index\tquestion\n0\t这是什么\n".encode("gb18030"), "row 1 is not UTF-8"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_in_a_line(tmp_path, contents, message):
    path = tmp_path / "own.tsv"
    path.write_bytes(contents)
    text = refusal(TableError, lambda: Table(path))
    assert text.startswith(str(path))
    assert re.search(message, text)


def test_no_file_and_a_folder_are_refused(tmp_path):
    assert "cannot be read" in refusal(TableError, lambda: Table(tmp_path / "none.tsv"))
    assert "cannot be read" in refusal(TableError, lambda: Table(tmp_path))


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_LINE_BYTES", tables.MEBIBYTE)
    path = write(tmp_path, ["index", "question"], ["0", "short"], ["1", "x" * (2 << 20)])
    assert "row 2 is longer than 1 MiB" in refusal(TableError, lambda: Table(path))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("9", "takes its picture from the index '9', which is no row of this table"),
        ("1", "takes its picture from the index '1', which has none itself"),  # itself
        ("2", "takes its picture from the index '2', which has none itself"),  # in a circle
        ("3", "takes its picture from the index '3', which has none itself"),  # two hops
        ("4", "takes its picture from the index '4', which has none itself"),  # a dropped row
        ("!" * 70, "has an image that is not base64"),
        ("A" * 69, "has an image that is not base64"),
        (f"[{'[' * 80}]", "has an image that is not base64"),
        ("é" * 70, "has an image that is not base64"),
    ],
)
def test_a_picture_that_is_none_is_its_row_s_error_alone(tmp_path, image, message):
    columns = ["index", "question", "image"]
    rows = [["0", "?", IMAGE], ["1", "?", image], ["2", "?", "1"], ["3", "?", "0"], ["4", "?", ""]]
    table = Table(write(tmp_path, columns, *rows))
    good, bad, _, hop = table.rows()
    assert table.picture(good) == table.picture(hop) == PICTURE
    text = refusal(ImageError, lambda: table.picture(bad))
    assert text.startswith(f"{table.path}, row 2 (index 1) ")
    assert message in text


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("../secret.png", "has an image_path that leaves"),
        ("images/../../secret.png", "has an image_path that leaves"),
        ("/etc/hostname", "has an image_path that leaves"),
        ("nowhere.png", "there is no file nowhere.png in"),
        ("images", "there is no file images in"),
        ("nul\0.png", "row 1 (index 0)"),
    ],
)
def test_a_path_that_leaves_the_folder_or_leads_nowhere(tmp_path, path, message):
    (tmp_path / "secret.png").write_bytes(PICTURE)
    folder = tmp_path / "folder"
    (folder / "images").mkdir(parents=True)
    file = write(folder, ["index", "question", "image_path"], ["0", "?", path.replace("\0", "")])
    table = Table(file)
    (row,) = table.rows()
    row = type(row)(row.index, row.question, row.fields, path, row.place)
    text = refusal(ImageError, lambda: table.picture(row))
    assert message in text
    assert text.startswith(f"{file}, row 1 (index 0)")


def test_a_row_without_a_picture_has_none_to_give(tmp_path):
    table = Table(write(tmp_path, ["index", "question"], ["0", "?"]))
    text = refusal(ImageError, lambda: table.picture(next(table.rows())))
    assert text.endswith("row 1 (index 0) has no picture")


def test_predictions_are_read_with_what_is_missing(tmp_path):
    columns = ["index", "question", "answer", "image", "prediction"]
    rows = [["5", "?", "A", IMAGE, "A."], ["6", "?", "None", IMAGE, "NA"], ["7", "?", "B"]]
    path = write(tmp_path, columns, *rows, name="m_MMStar.tsv")
    (row, said), (_, nothing), (_, cut) = read_predictions(path)
    assert row.fields == {"index": "5", "question": "?", "answer": "A"}
    assert (said, nothing, cut) == ("A.", None, None)
    assert row.place == f"{path}, row 1 (index 5)"


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [
        (["index", "answer"], [["0", "A"]], "has no column prediction"),
        (["prediction"], [["A"]], "has no column index"),
        (["index", "prediction"], [], "has no rows"),
        (["index", "prediction"], [["0", "A"], ["0", "B"]], "row 2 has the index '0' a second"),
        (["index", "prediction"], [["0", "A"], ["", "B"]], "row 2 has no index"),
    ],
)
def test_predictions_that_cannot_be_scored_are_refused(tmp_path, columns, rows, message):
    path = write(tmp_path, columns, *rows)
    assert message in refusal(TableError, lambda: read_predictions(path))


def write_large(path: Path, rows: int, kib: int) -> None:
    """Each picture has `kib` KiB and is of two rows, the second of which has the first's index."""
    with path.open("w", encoding="ascii") as file:
        file.write("index\tquestion\timage\n")
        for index in range(0, rows, 2):
            picture = base64.b64encode(index.to_bytes(4, "big") * (kib * 192)).decode()
            file.write(f"{index}\tIs it?\t{picture}\n{index + 1}\tIs it?\t{index}\n")


def test_a_large_table_is_never_held_whole(tmp_path):
    path = tmp_path / "own.tsv"
    write_large(path, rows=320, kib=100)
    assert path.stat().st_size > 15e6
    tracemalloc.start()
    table = Table(path)
    last = list(table.rows())[-1]
    contents = table.picture(last)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert contents[:4] == (318).to_bytes(4, "big")
    assert peak < 3e6


MEASURE = """
import resource, sys
from pathlib import Path
from flashvl.evaluation.tables import Table
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
table = Table(Path(sys.argv[1]))
for row in table.rows():
    if row.index in ("1999", "3999"):
        assert len(table.picture(row)) == 98304 * 2
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the unit of the peak differs")
def test_half_a_gigabyte_takes_a_few_mebibytes(tmp_path):
    path = tmp_path / "own.tsv"
    write_large(path, rows=4000, kib=256)
    assert path.stat().st_size > 5e8
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 16
