"""Predictions as files that VLMEvalKit scores: all columns of the questions, and the answer.

A text longer than the 32,767 characters that Excel shows in a cell is written whole all the same,
for the kit reads it.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from string import ascii_uppercase
from typing import IO
from xml.sax.saxutils import escape

from .. import storage
from ..errors import ArgumentError, TableError
from ..reading import one_line
from .scores import Predictions

_HEAD = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_SHEETS = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_TYPES = "application/vnd.openxmlformats-officedocument.spreadsheetml"
# The parts of a workbook of one sheet, but the sheet.
_PARTS = {
    "[Content_Types].xml": f'<Types xmlns="{_PACKAGE}/content-types">'
    '<Default Extension="rels" '
    'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    f'<Override PartName="/xl/workbook.xml" ContentType="{_TYPES}.sheet.main+xml"/>'
    f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{_TYPES}.worksheet+xml"/>'
    "</Types>",
    "_rels/.rels": f'<Relationships xmlns="{_PACKAGE}/relationships">'
    f'<Relationship Id="rId1" Type="{_OFFICE}/officeDocument" Target="xl/workbook.xml"/>'
    "</Relationships>",
    "xl/workbook.xml": f'<workbook xmlns="{_SHEETS}" xmlns:r="{_OFFICE}">'
    '<sheets><sheet name="Sheet1" sheetId="1" r:id="rId1"/></sheets></workbook>',
    "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{_PACKAGE}/relationships">'
    f'<Relationship Id="rId1" Type="{_OFFICE}/worksheet" Target="worksheets/sheet1.xml"/>'
    "</Relationships>",
}
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
_WHOLE_NUMBER = re.compile(r"0|-?[1-9]\d{0,14}", re.ASCII)  # which a number cell holds exactly


def write_predictions(file: Path, rows: Predictions) -> None:
    """Writes a file that ends in .tsv or .xlsx, whole, in the place of the one before.

    A missing prediction is an empty cell. Raises `ArgumentError`, `TableError`.
    """
    if file.suffix not in (".tsv", ".xlsx"):
        raise ArgumentError(f"{file} must end in .tsv or .xlsx")
    if not rows:
        raise TableError(f"there are no predictions for {file}")
    columns = [name for name in rows[0][0].fields if name != "prediction"]
    table = [[*columns, "prediction"]]
    for row, prediction in rows:
        table.append([*(row.fields.get(name) or "" for name in columns), prediction or ""])
    contents = _tsv(table) if file.suffix == ".tsv" else _xlsx(table)
    try:
        storage.replace(file, contents, file.with_name(f".{file.name}.writing"))
    except OSError as error:
        raise ArgumentError(f"{file} cannot be written: {one_line(error)}") from error


def _tsv(table: Iterable[list[str]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n")
    # No reader of CSV takes a NUL.
    writer.writerows([cell.replace("\0", "") for cell in row] for row in table)
    return text.getvalue().encode("utf-8", "replace")


def _xlsx(table: list[list[str]]) -> bytes:
    contents = io.BytesIO()
    with zipfile.ZipFile(contents, "w") as book:
        for name, part in _PARTS.items():
            with _part(book, name) as opened:
                opened.write(f"{_HEAD}{part}".encode())
        with _part(book, "xl/worksheets/sheet1.xml") as opened:
            for piece in _sheet(table):
                opened.write(piece.encode("utf-8", "replace"))
    return contents.getvalue()


def _part(book: zipfile.ZipFile, name: str) -> IO[bytes]:
    """A file of a workbook, to be written; of no date, so that equal tables are equal files."""
    entry = zipfile.ZipInfo(name)
    entry.compress_type = zipfile.ZIP_DEFLATED
    return book.open(entry, "w", force_zip64=True)


def _sheet(table: list[list[str]]) -> Iterator[str]:
    """The kit compares indices as numbers if all are; all else is text."""
    index = table[0].index("index") if "index" in table[0] else None
    numbers = index is not None and all(_WHOLE_NUMBER.fullmatch(row[index]) for row in table[1:])
    yield f'{_HEAD}<worksheet xmlns="{_SHEETS}"><sheetData>'
    for number, row in enumerate(table, 1):
        cells = []
        for column, cell in enumerate(row):
            place = f"{_letters(column)}{number}"
            if numbers and column == index and number > 1:
                cells.append(f'<c r="{place}"><v>{cell}</v></c>')
            elif cell:
                # What XML cannot hold is left out, as its readers know no common escape for it.
                text = escape(_NOT_XML.sub("", cell), {"\r": "&#13;"})
                cells.append(
                    f'<c r="{place}" t="inlineStr"><is><t xml:space="preserve">{text}</t></is></c>'
                )
        yield f'<row r="{number}">{"".join(cells)}</row>'
    yield "</sheetData></worksheet>"


def _letters(column: int) -> str:
    """The name of a column: 0 is A, 25 Z, 26 AA."""
    name = ""
    column += 1
    while column:
        column, digit = divmod(column - 1, 26)
        name = ascii_uppercase[digit] + name
    return name
