"""What the drawn tools share: text, layout, colors, and a file that replaces nothing.

ASCII is drawn in Pillow's built-in font, any other text in a font of this machine that has
Chinese. A character that neither has is shown as its escape, such as \\u989c, and never as an
empty box.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import ArgumentError
from .new_file import check_new, write_new

# Told apart with every kind of color vision. Source: Okabe and Ito, Color Universal Design.
BLACK, GRAY, LIGHT, WHITE = (0, 0, 0), (110, 110, 110), (225, 225, 225), (255, 255, 255)
BLUE, ORANGE, SKY, VERMILION = (0, 114, 178), (230, 159, 0), (86, 180, 233), (213, 94, 0)

SMALL, NORMAL, LARGE = 16, 19, 27  # text heights in pixels
# Of the picture this much is left, in gray on white, so that what is laid over it is seen.
FADED, HEAT, STRONGEST = 0.3, (59, 91, 219), 0.9
LEAST_CHANCE = 1e-5  # where the bars of chances begin
# Fonts with Chinese as systems have them; Pillow looks for these names where fonts are.
WIDE_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansSC-Regular.otf",
    "SourceHanSansSC-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "msyh.ttc",
    "simsun.ttc",
)
NO_LETTER = "\U0010ffff"  # that no font has


def printable(text: str, shows: Callable[[str], bool] | None = None) -> str:
    """A text in which line breaks and every letter that cannot be shown are escapes.

    `shows` says whether a letter can be; without it, what the fonts here have. A backslash stays
    one, so that what is printable already stays as it is.
    """
    shows = shows or has_glyph
    return "".join(
        letter
        if " " <= letter <= "~" or (letter > "~" and shows(letter))
        else letter.encode("unicode_escape", "surrogatepass").decode("ascii")
        for letter in text
    )


def has_glyph(letter: str) -> bool:
    """Whether a letter beyond ASCII is drawn as itself and not as the box of what is missing."""
    wide = _wide_font(NORMAL)
    if wide is None or not letter.isprintable():
        return False
    return bytes(wide.getmask(letter)) != bytes(wide.getmask(NO_LETTER))


@functools.cache
def _wide_font(size: int) -> ImageFont.FreeTypeFont | None:
    for name in WIDE_FONTS:
        with suppress(OSError):
            return ImageFont.truetype(name, size)
    return None


def font(size: int, text: str = "") -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """What a printable text is drawn in."""
    wide = None if text.isascii() else _wide_font(size)
    return wide or ImageFont.load_default(size)


def paragraph(
    text: str, width: int, size: int = SMALL, color: tuple[int, int, int] = BLACK
) -> Image.Image:
    """Printable text in lines of at most `width` pixels on white, broken at spaces if it can be."""
    text = printable(text)
    letters = font(size, text)
    lines = [""]
    for word in text.split(" "):
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
    """A picture in light gray, on which `values` (rows, columns) from 0 to 1 are blue squares.

    `grid` (rows, columns) of tiles has lines between them; `size` is (width, height) in pixels.
    """
    gray = np.asarray(image.convert("L").resize(size, Image.Resampling.BOX))[..., None]
    picture = 255 - (255 - gray) * FADED  # (height, width, 1)
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
    """Names with a chance of 0 to 1, as a bar and in numbers; those marked true are blue.

    The bars are on a logarithmic scale: from one line to the next it is ten times as much.
    """
    height, left, longest = 24, round(width * 0.4), round(width * 0.38)
    block = Image.new("RGB", (width, len(rows) * height), WHITE)
    pen = ImageDraw.Draw(block)
    decades = round(-math.log10(LEAST_CHANCE))
    for line, (name, chance, marked) in enumerate(rows):
        top, color, letters = line * height, BLUE if marked else GRAY, font(SMALL, name)
        while letters.getlength(name) > left - 10:
            name = f"{name[:-4]}..."
        pen.text((0, top), name, color, letters)
        length = bar_length(chance) * longest
        pen.rectangle((left, top + 4, left + round(length), top + 17), color)
        for decade in range(decades + 1):
            at = left + round(decade / decades * longest)
            pen.line((at, top + 1, at, top + 20), LIGHT)
        words = f"{chance:.1%}" if chance >= 0.0005 else f"{chance:.0e}"
        pen.text((left + longest + 12, top), words, BLACK, font(SMALL))
    return block


def bar_length(chance: float) -> float:
    """0 for `LEAST_CHANCE` and below, 1 for certain."""
    return max(0.0, 1 - math.log10(max(chance, LEAST_CHANCE)) / math.log10(LEAST_CHANCE))


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
