"""Tables of questions and of predictions, in VLMEvalKit's form, read row by row.

Questions are a TSV with CSV quoting, in UTF-8; `image` holds a picture in base64, or the index of
the row that has it, or a literal list of pictures of which the first is shown. A table of gigabytes
is streamed: of each row only its index and where it begins stay in memory.
"""

from __future__ import annotations

import ast
import base64
import binascii
import csv
import hashlib
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO
from xml.etree import ElementTree

from ..errors import ImageError, TableError
from ..reading import one_line, shown
from ..storage import MEBIBYTE, open_regular, read_bounded
from .sets import name_of

# Cells that pandas, and so the kit, takes for missing; quoted or not.
MISSING = frozenset(
    (
        *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND"),
        *("1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
    )
)
MAX_INDEX = 64  # characters of an image cell that is the index of another row
MAX_LINE_BYTES = 512 * MEBIBYTE
MAX_PICTURE_BYTES = 512 * MEBIBYTE
MAX_SHEET_BYTES = 1024 * MEBIBYTE  # of a part of an xlsx file, unpacked
MAX_COLUMNS = 16384  # of an xlsx file


@dataclass(frozen=True)
class TableRow:
    """A question. `fields` are all columns but `image`; None is a missing cell.

    Rows with equal `picture` show the same picture; None: the row shows none. `place` names file
    and row in errors.
    """

    index: str
    question: str
    fields: Mapping[str, str | None]
    picture: str | None = None
    place: str = ""


class Table:
    """A TSV of questions, read through once when it is opened. Raises `TableError`.

    `count` is the number of rows that can be asked, `md5` the checksum of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = name_of(path)
        self.count = 0
        digest = hashlib.md5(usedforsecurity=False)
        rows = _tsv(path, digest.update)
        self.columns = _header(path, rows, "question")
        self._image = _position(self.columns, "image")
        self._index = _position(self.columns, "index")
        self._pictures: dict[str, str | None] = {}  # index -> key of the picture in that very row
        self._begins: dict[str, int] = {}  # key of a picture -> where a row with it begins
        for number, begin, cells in rows:
            index, image = self._index_of(number, cells), self._image_of(cells)
            if index in self._pictures:
                raise TableError(f"{path}, row {number} has the index {shown(index)} a second time")
            key = None
            if image is not None and len(image) > MAX_INDEX:
                key = hashlib.blake2b(image.encode(), digest_size=16).hexdigest()
                self._begins.setdefault(key, begin)
            self._pictures[index] = key
            self.count += self._image is None or image is not None
        self.md5 = digest.hexdigest()
        if not self._pictures:
            raise TableError(f"{path} has no rows")

    def rows(self) -> Iterator[TableRow]:
        """The rows in their order; those whose `image` is missing are left out, as the kit does."""
        lines = _tsv(self.path)
        next(lines)
        for number, _, cells in lines:
            image = self._image_of(cells)
            if self._image is not None and image is None:
                continue
            index = self._index_of(number, cells)
            fields = {"index": index} | _fields(self.columns, cells)
            picture = _first(fields.get("image_path"))
            if image is not None:
                # A row that points at no picture keeps what it points at; `picture` says so.
                points_at = index if len(image) > MAX_INDEX else image
                picture = self._pictures.get(points_at) or points_at
            question = fields.get("question") or ""
            place = f"{self.path}, row {number} (index {index})"
            yield TableRow(index, question, fields, picture, place)

    def picture(self, row: TableRow) -> bytes:
        """The contents of the picture file of a row. Raises `ImageError`, naming file and row."""
        if row.picture is None:
            raise ImageError(f"{row.place} has no picture")
        if self._image is None:
            return self._read_path(row, row.picture)
        begin = self._begins.get(row.picture)
        if begin is None:
            there = row.picture in self._pictures
            why = "which has none itself" if there else "which is no row of this table"
            raise ImageError(
                f"{row.place} takes its picture from the index {shown(row.picture)}, {why}"
            )
        _, _, cells = next(_tsv(self.path, begin=begin))
        try:
            text = _first(self._image_of(cells)) or ""
            return base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise ImageError(
                f"{row.place} has an image that is not base64: {one_line(error)}"
            ) from error

    def _index_of(self, number: int, cells: Sequence[str]) -> str:
        """The cell, or without such a column the number of the row, from 0."""
        if self._index is None:
            return str(number - 1)
        index = cells[self._index] if self._index < len(cells) else ""
        if index in MISSING:
            raise TableError(f"{self.path}, row {number} has no index")
        return index

    def _image_of(self, cells: Sequence[str]) -> str | None:
        if self._image is None or self._image >= len(cells):
            return None
        return None if cells[self._image] in MISSING else cells[self._image]

    def _read_path(self, row: TableRow, path: str) -> bytes:
        """A file beside the table, or where the kit unpacks pictures: images/NAME."""
        folder = Path(os.path.abspath(self.path.parent))
        for base in (folder, folder / "images" / self.name):
            file = Path(os.path.normpath(base / path))
            if not file.is_relative_to(folder):
                raise ImageError(f"{row.place} has an image_path that leaves {folder}: {path}")
            try:
                if file.is_file():
                    return read_bounded(file, MAX_PICTURE_BYTES)
            except (OSError, ValueError) as error:
                raise ImageError(
                    f"{row.place}: {path} cannot be read: {one_line(error)}"
                ) from error
        raise ImageError(f"{row.place}: there is no file {path} in {folder} or its images")


def read_predictions(path: Path) -> list[tuple[TableRow, str | None]]:
    """A table of predictions, TSV or xlsx: its rows and what was answered. Raises `TableError`."""
    rows = _xlsx(path) if path.suffix == ".xlsx" else _tsv(path)
    columns = _header(path, rows, "index", "prediction")
    predictions: list[tuple[TableRow, str | None]] = []
    seen = set()
    for number, _, cells in rows:
        fields = _fields(columns, cells)
        prediction = fields.pop("prediction")
        index = fields["index"]
        if index is None:
            raise TableError(f"{path}, row {number} has no index")
        if index in seen:
            raise TableError(f"{path}, row {number} has the index {shown(index)} a second time")
        seen.add(index)
        place = f"{path}, row {number} (index {index})"
        row = TableRow(index, fields.get("question") or "", fields, place=place)
        predictions.append((row, prediction))
    if not predictions:
        raise TableError(f"{path} has no rows")
    return predictions


def _header(path: Path, rows: Iterator[tuple[int, int, list[str]]], *needed: str) -> list[str]:
    first = next(rows, None)
    if first is None:
        raise TableError(f"{path} is empty")
    columns = first[2]
    for name in needed:
        if name not in columns:
            found = ", ".join(columns)
            raise TableError(f"{path}, row 0 (the names) has no column {name}; it has {found}")
    if twice := [name for name in columns if columns.count(name) > 1]:
        raise TableError(f"{path}, row 0 (the names) has the column {shown(twice[0])} twice")
    return columns


def _position(columns: Sequence[str], name: str) -> int | None:
    return columns.index(name) if name in columns else None


def _fields(columns: Sequence[str], cells: Sequence[str]) -> dict[str, str | None]:
    """All columns but `image`; cells that the row is short of are missing."""
    padded = [*cells, *[""] * (len(columns) - len(cells))]
    return {
        name: None if cell in MISSING else cell
        for name, cell in zip(columns, padded)
        if name != "image"
    }


def _first(cell: str | None) -> str | None:
    """The first of a literal list, such as ['a.png', 'b.png']; else the cell itself."""
    if cell is None or not (cell.startswith("[") and cell.endswith("]")):
        return cell
    try:
        values = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return cell
    return str(values[0]) if values else None


@dataclass
class _Lines:
    """The lines of a file, decoded; `begin` is where the next one begins, `row` is for errors."""

    path: Path
    file: BinaryIO
    digest: Callable[[bytes], object] | None
    begin: int
    row: int = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.file.readline(MAX_LINE_BYTES + 1)
        if not line:
            raise StopIteration
        if len(line) > MAX_LINE_BYTES:
            large = MAX_LINE_BYTES // MEBIBYTE
            raise TableError(f"{self.path}, row {self.row} is longer than {large} MiB")
        if self.digest is not None:
            self.digest(line)
        text_begins = 3 if self.begin == 0 and line.startswith(b"\xef\xbb\xbf") else 0
        self.begin += len(line)
        try:
            return line[text_begins:].decode("utf-8")
        except UnicodeDecodeError as error:
            raise TableError(
                f"{self.path}, row {self.row} is not UTF-8; save the table in that encoding"
            ) from error


def _tsv(
    path: Path, digest: Callable[[bytes], object] | None = None, begin: int = 0
) -> Iterator[tuple[int, int, list[str]]]:
    """(number, where it begins, cells) of each row; the names are row 0.

    From a `begin` onward the numbers count from there.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    try:
        with open_regular(path) as file:
            file.seek(begin)
            lines = _Lines(path, file, digest, begin)
            reader = csv.reader(lines, delimiter="\t", strict=True)
            width = None
            while True:
                row_begins = lines.begin
                cells = next(reader, None)
                if cells is None:
                    return
                if not cells:
                    continue  # a blank line
                width = width or len(cells)
                if len(cells) > width:
                    raise TableError(
                        f"{path}, row {lines.row} has {len(cells)} cells, the names are {width}"
                    )
                yield lines.row, row_begins, cells
                lines.row += 1
    except OSError as error:
        raise TableError(f"{path} cannot be read: {one_line(error)}") from error
    except csv.Error as error:
        raise TableError(
            f"{path}, row {lines.row} is not tab-separated text with CSV quoting: {one_line(error)}"
        ) from error


_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_LINK = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"


def _xlsx(path: Path) -> Iterator[tuple[int, int, list[str]]]:
    """The first sheet of a workbook as `_tsv` gives a table; where a row begins is not told."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as book:
            parts = {part.filename: part for part in book.infolist()}
            if any(part.file_size > MAX_SHEET_BYTES for part in parts.values()):
                raise TableError(f"{path} holds more than {MAX_SHEET_BYTES // MEBIBYTE} MiB")
            shared: list[str] = []
            if "xl/sharedStrings.xml" in parts:
                with book.open("xl/sharedStrings.xml") as opened:
                    shared = [_text(one) for one in _elements(opened, "si")]
            with book.open(_first_sheet(book)) as opened:
                number = 0
                for row in _elements(opened, "row"):
                    cells: list[str] = []
                    for cell in row.iter(f"{_MAIN}c"):
                        column = _column(cell.get("r", ""), len(cells))
                        cells += [""] * (column - len(cells))
                        cells.append(_value(cell, shared))
                    if any(cells):
                        yield number, 0, cells
                        number += 1
    except (OSError, KeyError, IndexError, ValueError, zipfile.BadZipFile) as error:
        raise TableError(f"{path} cannot be read as xlsx: {one_line(error)}") from error
    except (ElementTree.ParseError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise TableError(f"{path} is a damaged xlsx file: {one_line(error)}") from error


def _first_sheet(book: zipfile.ZipFile) -> str:
    """The name of the part that holds the first sheet."""
    sheet = ElementTree.fromstring(book.read("xl/workbook.xml")).find(f".//{_MAIN}sheet")
    links = ElementTree.fromstring(book.read("xl/_rels/workbook.xml.rels"))
    targets = {link.get("Id"): link.get("Target", "") for link in links}
    target = targets[None if sheet is None else sheet.get(_LINK)]
    return target.removeprefix("/") if target.startswith("/") else f"xl/{target}"


def _elements(file: IO[bytes], name: str) -> Iterator[ElementTree.Element]:
    """The elements of a name, one after the other; each is emptied when the next is asked for."""
    for _, element in ElementTree.iterparse(file):
        if element.tag == _MAIN + name:
            yield element
            element.clear()


def _column(reference: str, following: int) -> int:
    """The number of a column, from 0, in a reference such as AB12; else the `following` one."""
    letters = reference.rstrip("0123456789")
    if not letters:
        return following
    column = 0
    for letter in letters:
        column = column * 26 + ord(letter) - ord("A") + 1
    if not following < column <= MAX_COLUMNS:
        raise ValueError(f"there cannot be a cell {shown(reference)} here")
    return column - 1


def _value(cell: ElementTree.Element, shared: Sequence[str]) -> str:
    kind, value = cell.get("t", "n"), cell.findtext(f"{_MAIN}v") or ""
    if kind == "s":
        return shared[int(value)]
    if kind == "inlineStr":
        return _text(cell)
    if kind == "b":
        return "True" if value == "1" else "False"
    if kind == "n" and value.endswith(".0"):
        return value[:-2]
    return value


def _text(element: ElementTree.Element) -> str:
    """The text of all runs, without the readings that East Asian text may carry."""
    runs = element.iter(f"{_MAIN}t")
    readings = set(element.iterfind(f".//{_MAIN}rPh/{_MAIN}t"))
    return "".join(run.text or "" for run in runs if run not in readings)
