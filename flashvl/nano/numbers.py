"""Numbers as nano sees them: digits in Pillow's built-in font."""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image, ImageDraw, ImageFont

DIGITS = "0123456789"
MOST_DIGITS = 4  # of a number in a picture
ADVANCE = 0.575  # a digit's width as a part of the font's size; all ten are equally wide


def draw_digits(count: int, random: np.random.Generator) -> str:
    """A number of `count` digits without leading zeros; each digit as likely where it may stand."""
    first = random.integers(1 if count > 1 else 0, 10)
    return "".join(str(digit) for digit in (first, *random.integers(0, 10, count - 1)))


def number_mask(
    digits: str, size: float, antialiased: bool = True
) -> tuple[Image.Image, tuple[tuple[float, float], ...]]:
    """A coverage mask ("L", 255 inside) of the digits in the built-in font at `size` pixels.

    It is cut at the ink. Returns the mask and for each digit where it begins and ends in it,
    in pixels from the left.
    """
    font = _font(max(4, round(size)))
    _, _, right, bottom = font.getbbox(digits)
    mask = Image.new("L", (int(right) + 2, int(bottom) + 2))
    draw = ImageDraw.Draw(mask)
    draw.fontmode = "L" if antialiased else "1"
    draw.text((0, 0), digits, fill=255, font=font)
    box = mask.getbbox()
    ends = [font.getlength(digits[: i + 1]) - box[0] for i in range(len(digits))]
    return mask.crop(box), tuple(zip([-float(box[0]), *ends[:-1]], ends))


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
