"""Small picture files that would keep a decoder busy for minutes, or take gigabytes of memory.

They are told by their outline, before Pillow sees them. What costs time or memory by the byte or
by the pixel needs no check here: `image.py` bounds both.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from ..errors import ImageError

MAX_JPEG_SCANS = 100  # of all pixels; cameras write 1 or some 10, and libtiff has this bound too
MAX_JPEG_SEGMENTS = 500  # metadata of 64 KiB each, and tables
MAX_JPEG_FILLING = 1000  # bytes between two segments of the header
MAX_PNG_CHUNKS = 100_000  # each takes Pillow some microseconds and some hundred bytes
MAX_TIFF_NUMBERS = 1_000_000  # of one tag, such as the places of all tiles
MAX_TIFF_TILE_PIXELS = 2**26  # of one tile, whose whole memory is taken at once

# All markers but those that restart a scan, which may stand in it a million times.
_JPEG_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN = 0xD8, 0xD9, 0xDA
# Reserved, or of arithmetic coding: readers do not agree on where the next segment begins.
_ODD_MARKERS = {*range(0x01, 0xC0), 0xC8, 0xCC, *range(0xF0, 0xFE)}
_LAST_MARKERS = {_END_OF_IMAGE} | _ODD_MARKERS - {0x01, 0xCC}  # where libjpeg stops, after a scan

_TIFF_STARTS = {b"II*\0": "<", b"II+\0": "<", b"MM\0*": ">"}
# Pillow reads these otherwise than libtiff, to which it hands them on.
_ODD_TIFF_STARTS = (b"MM\0+", b"MM*\0", b"II\0*")
# Kinds of a tag's values: those that are whole numbers, in struct's letters, and those of a byte.
_TIFF_NUMBERS = {1: "B", 3: "H", 4: "I", 6: "B", 8: "H", 9: "I", 13: "I", 16: "Q", 17: "Q"}
_TIFF_BYTE_KINDS = (1, 2, 6, 7)
_TILE_WIDTH, _TILE_HEIGHT = 322, 323


def refuse_bombs(contents: bytes, name: str) -> None:
    """Raises `ImageError` for a JPEG, PNG or TIFF file beyond the bounds of this module."""
    if contents.startswith(b"\xff\xd8"):
        _check_jpeg(contents, name)
    elif contents.startswith(b"\x89PNG"):
        _check_png(contents, name)
    elif contents[:4] in _TIFF_STARTS:
        try:
            _check_tiff(contents, name)
        except (struct.error, OverflowError) as error:
            raise ImageError(
                f"{name} is a damaged or truncated image: its tags lie outside the file"
            ) from error
    elif contents[:4] in _ODD_TIFF_STARTS:
        raise ImageError(f"{name} is a rare kind of TIFF image; save it anew")


def _check_jpeg(contents: bytes, name: str) -> None:
    segments = scans = 0
    place = 2
    while True:
        match = _JPEG_MARKER.search(contents, place)
        filling = (match.start() if match else len(contents)) - place
        if not scans and filling > MAX_JPEG_FILLING:
            raise ImageError(f"{name} is a damaged image: over {MAX_JPEG_FILLING} bytes of filling")
        if not match:
            return
        marker = match[1][0]
        if scans and marker in _LAST_MARKERS:
            return
        if marker in _ODD_MARKERS:
            raise ImageError(f"{name} is a damaged or rare JPEG image: it has marker {marker:02x}")
        segments += 1
        scans += marker == _START_OF_SCAN
        for found, bound, parts in (
            (scans, MAX_JPEG_SCANS, "scans"),
            (segments, MAX_JPEG_SEGMENTS, "segments"),
        ):
            if found > bound:
                raise ImageError(
                    f"{name} has over {bound} {parts}, far more than a JPEG image needs"
                )
        place = match.end()
        if marker not in (_START_OF_IMAGE, _END_OF_IMAGE):
            place += max(2, int.from_bytes(contents[place : place + 2], "big"))


def _check_png(contents: bytes, name: str) -> None:
    place = 8
    for _ in range(MAX_PNG_CHUNKS):
        length, kind = contents[place : place + 4], contents[place + 4 : place + 8]
        if len(kind) < 4 or kind == b"IEND":
            return
        place += 12 + int.from_bytes(length, "big")
    raise ImageError(f"{name} has over {MAX_PNG_CHUNKS:,} chunks, far more than a PNG image needs")


def _check_tiff(contents: bytes, name: str) -> None:
    sides = {_TILE_WIDTH: 1, _TILE_HEIGHT: 1}
    for tag, kind, count, value in _first_directory(contents):
        if count > MAX_TIFF_NUMBERS and kind not in _TIFF_BYTE_KINDS:
            raise ImageError(
                f"{name} has over {MAX_TIFF_NUMBERS:,} numbers in its tag {tag}, far more than a "
                "TIFF image needs"
            )
        if tag in sides:
            sides[tag] = max(sides[tag], value)
    if sides[_TILE_WIDTH] * sides[_TILE_HEIGHT] > MAX_TIFF_TILE_PIXELS:
        raise ImageError(
            f"{name} is a TIFF image in tiles of over {MAX_TIFF_TILE_PIXELS:,} pixels; save it anew"
        )


def _first_directory(contents: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(tag, kind, count, first value) of a TIFF file's first picture; other kinds' values are 0."""
    order = _TIFF_STARTS[contents[:4]]
    big = contents[2] == 43  # BigTIFF, with places of eight bytes
    entries, entry, place = ("Q", "HHQ", "Q") if big else ("H", "HHI", "I")
    (start,) = struct.unpack_from(order + place, contents, 8 if big else 4)
    (number,) = struct.unpack_from(order + entries, contents, start)
    start += struct.calcsize(order + entries)
    room = struct.calcsize(order + place)  # of a value in its entry; longer ones stand elsewhere
    for _ in range(number):
        tag, kind, count = struct.unpack_from(order + entry, contents, start)
        start += struct.calcsize(order + entry)
        letter = _TIFF_NUMBERS.get(kind)
        value = 0
        if tag in (_TILE_WIDTH, _TILE_HEIGHT) and letter:
            (there,) = struct.unpack_from(order + place, contents, start)
            inside = struct.calcsize(letter) * count <= room
            (value,) = struct.unpack_from(order + letter, contents, start if inside else there)
        yield tag, kind, count, value
        start += room
