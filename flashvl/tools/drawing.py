"""What the drawn tools share: text, layout, colors, and a file that replaces nothing.

Drawn with Pillow and its built-in font alone, which has ASCII and nothing more; any other
character is shown as its escape, such as \\u989c, and never as an empty box.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import ArgumentError
from .new_file import check_new, write_new

# Told apart with every kind of color vision. Source: Okabe and Ito, Color Universal Design.
BLACK, GRAY, WHITE = (0, 0, 0), (110, 110, 110), (255, 255, 255)
BLUE, ORANGE, SKY, VERMILION = (0, 114, 178), (230, 159, 0), (86, 180, 233), (213, 94, 0)

SMALL, NORMAL, LARGE = 16, 19, 27  # text heights in pixels
# The picture is dimmed to this, and yellow grows out of it: lightness alone would tell the heat.
DIMMED, HEAT, STRONGEST = 0.3, (255, 225, 60), 0.85


def printable(text: str) -> str:
    """Any text in ASCII, in which line breaks and all that the font lacks are escapes.

    A backslash stays one, so that what is printable already stays as it is.
    """
    return "".join(
        letter
        if " " <= letter <= "~"
        else letter.encode("unicode_escape", "surrogatepass").decode("ascii")
        for letter in text
    )


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def paragraph(
    text: str, width: int, size: int = SMALL, color: tuple[int, int, int] = BLACK
) -> Image.Image:
    """Printable text in lines of at most `width` pixels on white, broken at spaces if it can be."""
    letters = font(size)
    lines = [""]
    for word in printable(text).split(" "):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if letters.getlength(joined) <= width:
            lines[-1] = joined
            continue
        lines.append("")
        for letter in word:  # a word wider than a line is cut
            if letters.getlength(lines[-1] + letter) > width and lines[-1]:
                lines.append("")
            lines[-1] += letter
    lines = [line for line in lines if line]
    step = round(size * 1.35)
    block = Image.new("RGB", (width, max(1, len(lines)) * step), WHITE)
    draw = ImageDraw.Draw(block)
    for number, line in enumerate(lines):
        draw.text((0, number * step), line, color, letters)
    return block


def beside(pictures: Sequence[Image.Image], gap: int = 0) -> Image.Image:
    """Pictures in one row on white, their upper edges in line."""
    width = sum(picture.width for picture in pictures) + gap * (len(pictures) - 1)
    row = Image.new("RGB", (width, max(picture.height for picture in pictures)), WHITE)
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + gap
    return row


def stacked(pictures: Sequence[Image.Image], gap: int = 0) -> Image.Image:
    """Pictures in one column on white, their left edges in line."""
    height = sum(picture.height for picture in pictures) + gap * (len(pictures) - 1)
    column = Image.new("RGB", (max(picture.width for picture in pictures), height), WHITE)
    top = 0
    for picture in pictures:
        column.paste(picture, (0, top))
        top += picture.height + gap
    return column


def framed(picture: Image.Image, border: int) -> Image.Image:
    """A picture with a white border, wide enough on all sides."""
    sheet = Image.new("RGB", (picture.width + 2 * border, picture.height + 2 * border), WHITE)
    sheet.paste(picture, (border, border))
    return sheet


def fitted(width: int, height: int, max_width: int, max_height: int) -> tuple[int, int]:
    """The largest (width, height) of the same shape inside a box; at least one pixel each."""
    scale = min(max_width / width, max_height / height)
    return max(1, int(width * scale)), max(1, int(height * scale))


def tinted(
    picture: Image.Image, places: np.ndarray, color: tuple[int, int, int], strength: float
) -> Image.Image:
    """A picture with `color` laid over the true `places` (height, width), 0..1 strong.

    There the picture is light gray, so that its own colors are not taken for the mark.
    """
    gray = picture.convert("L").point(lambda value: 90 + value * 165 // 255).convert("RGB")
    picture = Image.composite(gray, picture, Image.fromarray(places.astype(np.uint8) * 255))
    mask = Image.fromarray((places * round(255 * strength)).astype(np.uint8))
    return Image.composite(Image.new("RGB", picture.size, color), picture, mask)


def heated(
    image: Image.Image, values: np.ndarray, size: tuple[int, int], grid: tuple[int, int] = (1, 1)
) -> Image.Image:
    """A picture dimmed, on which `values` (rows, columns) from 0 to 1 glow as squares.

    `grid` (rows, columns) of tiles has lines between them; `size` is (width, height) in pixels.
    """
    picture = np.asarray(image.resize(size, Image.Resampling.BOX)) * DIMMED  # (height, width, C)
    heat = Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.NEAREST)
    strength = np.asarray(heat)[..., None] * STRONGEST  # (height, width, 1)
    mixed = picture * (1 - strength) + np.array(HEAT) * strength
    shown = Image.fromarray(mixed.round().astype(np.uint8))
    return ruled(shown, grid, GRAY, 1)


def ruled(
    picture: Image.Image, grid: tuple[int, int], color: tuple[int, int, int], thick: int
) -> Image.Image:
    """A picture with lines around its grid's (rows, columns) of equal cells."""
    shown, (rows, columns) = picture.copy(), grid
    pen = ImageDraw.Draw(shown)
    for row in range(rows + 1):
        at = min(row * shown.height // rows, shown.height - thick)
        pen.rectangle((0, at, shown.width, at + thick - 1), color)
    for column in range(columns + 1):
        at = min(column * shown.width // columns, shown.width - thick)
        pen.rectangle((at, 0, at + thick - 1, shown.height), color)
    return shown


def bars(rows: Sequence[tuple[str, float, bool]], width: int) -> Image.Image:
    """Names with a share of 0 to 1 as a bar and in percent; those marked true are blue."""
    height, left, letters = 24, width // 2, font(SMALL)
    block = Image.new("RGB", (width, len(rows) * height), WHITE)
    pen = ImageDraw.Draw(block)
    for line, (name, share, marked) in enumerate(rows):
        top, color = line * height, BLUE if marked else GRAY
        while letters.getlength(name) > left - 10:
            name = f"{name[:-4]}..."
        pen.text((0, top), name, color, letters)
        pen.rectangle((left, top + 3, left + round(share * width * 0.3), top + 17), color)
        pen.text((left + width * 0.32, top), f"{share:.1%}", BLACK, letters)
    return block


def padded(picture: Image.Image, places: np.ndarray) -> Image.Image:
    """Marks pixels that are not in the picture, the true `places` (height, width), by stripes."""
    stripes = np.indices(places.shape).sum(axis=0) % 8 < 3  # (height, width)
    return tinted(tinted(picture, places, WHITE, 0.6), places & stripes, VERMILION, 0.8)


def outline(
    pen: ImageDraw.ImageDraw,
    left: float,
    top: float,
    width: float,
    color: tuple[int, int, int],
    thick: int = 2,
    height: float | None = None,
) -> None:
    """A rectangle's inner edge, a square without `height`; one of no pixels is left out."""
    right, bottom = left + width, top + (width if height is None else height)
    corners = (round(left), round(top), round(right) - 1, round(bottom) - 1)
    if corners[2] > corners[0] and corners[3] > corners[1]:
        pen.rectangle(corners, outline=WHITE, width=thick + 1)  # seen on dark pictures too
        pen.rectangle(corners, outline=color, width=thick)


def resized(places: np.ndarray, width: int, height: int) -> np.ndarray:
    """Bools (..., ...) -> (height, width), each the nearest of them."""
    shown = Image.fromarray(places.astype(np.uint8)).resize(
        (width, height), Image.Resampling.NEAREST
    )
    return np.asarray(shown).astype(bool)


def swatch(color: tuple[int, int, int]) -> Image.Image:
    """A small framed square for a legend."""
    square = Image.new("RGB", (22, 22), color)
    outline(ImageDraw.Draw(square), 0, 0, 22, GRAY, 1)
    return square


def legend(entries: Sequence[tuple[Image.Image, str]], width: int) -> Image.Image:
    """Marks and their meaning in words, one below the other."""
    lines = [
        beside([mark, paragraph(words, width - mark.width - 10)], 10) for mark, words in entries
    ]
    return stacked(lines, 4)


def note(text: str, width: int) -> Image.Image:
    """Small and gray, below a drawing."""
    return paragraph(text, width, SMALL, GRAY)


def check_out(file: Path) -> None:
    """Raises `ArgumentError` unless a new PNG can be made as `file`; before any long work."""
    if file.suffix.lower() != ".png":
        raise ArgumentError(f"--out {file}: the picture is a PNG; give a name that ends in .png")
    check_new(file, "--out")


def save(picture: Image.Image, file: Path) -> None:
    """Writes a PNG that was not there before. Raises `ArgumentError` rather than replace a file."""
    contents = io.BytesIO()
    picture.save(contents, "PNG", optimize=True)
    write_new(file, "--out", contents.getvalue())
