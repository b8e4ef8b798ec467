"""Pictures: files of every format, whole and damaged, under any name; arrays and objects."""

from __future__ import annotations

import io
import math
import os
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from random import Random
from struct import pack
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import EpsImagePlugin, Image
from tiny import picture, tiny_model, user

from flashvl import FlashVL
from fuzz.damage import damaged, hostile_name, pickled, plant, planted_code, text, value
from fuzz.promise import Broken, Case

MODES = ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "RGBX"]
MODES += ["RGBa", "La", "I;16", "I;16L", "I;16B"]
SIDES = [1, 2, 3, 7, 8, 16, 17, 40, 64, 199, 200, 201, 500]
ENDINGS = ["png", "jpg", "eps", "ps", "pdf", "wmf", "emf", "gif", "tif", "webp", "txt", "py", ""]
Image.init()
FORMATS = sorted(Image.SAVE)
POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 20\n%%EndComments\n(x) show\nshowpage\n"
)
# How files begin of formats that Pillow reads and does not write, or only with other programs.
BEGINNINGS = {
    "EPS": POSTSCRIPT,
    "DOS EPS": pack("<IIII14x", 0xC6D3D0C5, 30, len(POSTSCRIPT), 0) + POSTSCRIPT,
    "PDF": b"%PDF-1.4\n1 0 obj<</Type/Catalog/OpenAction<</S/Launch/F(x)>>>>endobj\n%%EOF\n",
    "WMF": pack("<IHHHHHH6xHH90x", 0x9AC6CDD7, 0, 0, 0, 40, 20, 72, 1, 9),
    "EMF": pack("<II8i4s90x", 1, 108, 0, 0, 40, 20, 0, 0, 900, 400, b" EMF"),
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/hostname"/></svg>',
    "CUR": pack("<HHHBBBBHHIIIiiHH999x", 0, 2, 1, 16, 16, 0, 0, 0, 0, 999, 22, 40, 16, 32, 1, 24),
    "DCX": pack("<IIIBBBBHHHH140x", 0x3ADE68B1, 12, 0, 10, 5, 1, 8, 0, 0, 39, 19),
    "FITS": b"SIMPLE  =                    T".ljust(80) + b"BITPIX  = 8".ljust(2800),
    "FLI": pack("<IHHHHH130x", 128, 0xAF12, 1, 40, 20, 8),
    "FTEX": pack("<4sIIIII60x", b"FTEX", 1, 40, 20, 1, 1),
    "GBR": pack(">IIIII4sI900x", 28, 2, 40, 20, 1, b"GIMP", 10),
    "GRIB": b"GRIB\0\0\0\1".ljust(60),
    "HDF5": b"\x89HDF\r\n\x1a\n".ljust(60),
    "BUFR": b"BUFR".ljust(60),
    "IPTC": b"\x1c\x03\x3c\0\2\1\1\x1c\x03\x14\0\2\0\x28\x1c\x03\x1e\0\2\0\x14".ljust(120),
    "MCIDAS": pack(">64i", 0, 4, *range(62)),
    "MPEG": b"\0\0\1\xb3\x02\x80\x14".ljust(60),
    "PCD": pack("2048x4s2000x", b"PCD_"),
    "PIXAR": pack("<I412xHH4xHH3000x", 0xE880, 20, 40, 14, 2),
    "PSD": pack(">4sH6xHIIHH2500x", b"8BPS", 1, 3, 20, 40, 8, 3),
    "SUN": pack(">8I2400x", 0x59A66A95, 40, 20, 24, 2400, 1, 0, 0),
    "XPM": b'/* XPM */\nstatic char *x[] = {\n"4 1 1 1",\n"a c #ff0000",\n"aaaa",\n};\n',
    "XV": b"P7 332\n#IMGINFO:40x20 RGB\n#END_OF_COMMENTS\n40 20 255\n".ljust(900),
    "IMT": b"*IMT\nwidth 40\nheight 20\n\x0c".ljust(800),
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic".ljust(90),
    "zip": b"PK\x03\x04".ljust(60),
    "gzip": zlib.compress(bytes(100)),
}
ARRAY_DTYPES = ["uint8"] * 9 + [
    "int8",
    "int64",
    "float32",
    "float16",
    "bool",
    "complex64",
    "object",
    "U1",
]
ARRAY_SHAPES = [(9, 12, 3)] * 9 + [
    (9, 12),
    (3, 9, 12),
    (9, 12, 4),
    (9, 12, 1),
    (0, 9, 3),
    (9, 0, 3),
]
ARRAY_SHAPES += [(1, 300, 3), (), (0,), (1,) * 32, (2, 9, 12, 3)]
HUGE: list[tuple[str, str, dict[str, Any]]] = [
    ("PNG", "1", {}),
    ("PNG", "L", {"compress_level": 1}),
    ("PNG", "I;16", {"compress_level": 1}),
    ("TIFF", "F", {"compression": "tiff_deflate"}),
    ("TIFF", "I;16", {"compression": "tiff_lzw"}),
    ("TIFF", "CMYK", {"compression": "tiff_deflate"}),
    ("TIFF", "RGBA", {"compression": "tiff_deflate"}),
    ("GIF", "P", {}),
    ("BMP", "1", {}),
    ("JPEG", "CMYK", {"quality": 1}),
    ("JPEG", "L", {"progressive": True, "quality": 1}),
    ("WEBP", "RGB", {"lossless": True, "quality": 0, "method": 0}),
    ("AVIF", "RGB", {"speed": 10, "quality": 0}),
]
# Of a TIFF file: tag -> values that some file has, and values that none has.
TIFF_TAGS: dict[int, tuple[list[int], list[int]]] = {
    256: ([40, 9000], [0, 2**31]),  # width
    257: ([20, 9000], [0, 2**31]),  # height
    258: ([1, 8, 16, 32], [0, 3, 64, 65_535]),  # bits of a sample
    259: ([1, 2, 3, 4, 5, 6, 7, 8, 32_773, 34_712, 34_925, 50_000, 50_001], [0, 9999]),  # packed
    262: ([0, 1, 2, 3, 5, 6, 8], [9, 32_803]),  # colors
    273: ([8], [0, 2**31]),  # where a strip begins
    277: ([1, 3, 4], [0, 2, 65_535]),  # samples of a pixel
    278: ([20, 1], [0, 2**31]),  # rows of a strip
    279: ([800, 9000], [0, 2**31]),  # bytes of a strip
    284: ([1, 2], [9]),  # samples beside each other or one after the other
    317: ([1, 2, 3], [9]),  # differences
    322: ([16, 4096], [0, 2**31]),  # width of a tile
    323: ([16, 4096], [0, 2**31]),  # height of a tile
    324: ([8], [0, 2**31]),  # where a tile begins
    325: ([800], [0, 2**31]),  # bytes of a tile
    338: ([0, 1, 2], [9]),  # what further samples are
    339: ([1, 2, 3], [0, 6]),  # whole numbers or not
    34_675: ([8], [0]),  # color profile
    700: ([8], [0]),  # words about the picture
}


@cache
def flash(kind: str) -> FlashVL:
    return tiny_model(kind)


def case(random: Random, place: Path) -> Case:
    kinds = [picture_file, picture_object, array, other_object, bomb]
    what, image = random.choices(kinds, [70, 12, 8, 9, 1])[0](random, place)
    model = flash(random.choice(["iss", "iss", "dynamic", "static"]))
    answers = random.random() < 0.1

    def do() -> None:
        if answers:
            model.chat(image, user(), max_new_tokens=1)
            return
        input_ids, pixels, _ = model.prepare(image, user())
        tiles = int((input_ids < 0).sum()) // model.config.tokens_per_tile
        if pixels is not None and (len(pixels) != tiles or not pixels.isfinite().all()):
            raise Broken("the pixels are not those of the places in the prompt")

    return Case(what, do)


def picture_file(random: Random, place: Path) -> tuple[str, Any]:
    """The contents of a file, as they are or in a file of some name."""
    if random.random() < 0.05:
        path = place / "here" / f"picture.{random.choice(ENDINGS)}"
        what = plant(path, random)
        how, image = delivered(path, random)
        return f"{what} as a picture by {how}", image
    form, contents = written(random)
    what = form
    how = random.randrange(10)
    if how == 0:
        what, contents = f"{form} after {form}", contents + contents
    elif how == 1:
        other, before = written(random)
        what, contents = f"{form} after {other}", before + contents
    elif how < 8:
        what, contents = f"damaged {form}", damaged(contents, random)
    if random.random() < 0.5:
        form = random.choice([*BYTES, *["bytes"] * 5])
        return f"{what} as {form}", BYTES[form](contents)
    name = random.choice(["picture", hostile_name(random).replace("/", "")])
    path = place / "here" / f"{name}.{random.choice(ENDINGS)}"
    with suppress(OSError, ValueError):  # a name that no file can have is an input as well
        path.write_bytes(contents)
    how, image = delivered(path, random)
    return f"{what} in {path.name[:40]!a} by {how}", image


def written(random: Random) -> tuple[str, bytes]:
    """A whole file -> its format, its contents."""
    EpsImagePlugin.gs_binary = None  # Pillow looks for the program once; let it look each time
    if random.random() < 0.15:
        form = random.choice(sorted(BEGINNINGS))
        return form, BEGINNINGS[form] + random.randbytes(random.choice([0, 0, 100]))
    if random.random() < 0.15:
        forge = random.choice([forged_png, forged_tiff, forged_tiff, forged_jpeg])
        return forge.__name__.replace("_", " "), forge(random)
    form = random.choice(FORMATS)
    for mode in (random.choice(MODES), "RGB", "L", "1"):
        file = io.BytesIO()
        try:
            small_picture(random, mode).save(file, form, **save_options(random))
        except Exception:
            continue
        return f"{form} of mode {mode}", file.getvalue()
    return written(random)  # a format that other programs would have to write


def small_picture(random: Random, mode: str) -> Image.Image:
    size = (random.choice(SIDES), random.choice(SIDES))
    if random.random() < 0.2:
        return Image.new(mode, size)
    try:
        return picture(*size).convert(mode)
    except ValueError:  # no way from RGB
        return Image.new(mode, size)


def save_options(random: Random) -> dict[str, Any]:
    """What else a file can hold; each format takes of it what it knows."""
    options: dict[str, Any] = dict.fromkeys(["creationDate", "modDate"], time.gmtime(0))  # of a PDF
    if random.random() < 0.3:
        exif = Image.Exif()
        exif[0x0112] = random.choice([*range(10), 65535])  # orientation
        exif[random.choice([0x010E, 0x8769, 0x8825, 0x927C, 0x0111])] = random.choice([1, "x" * 99])
        contents = exif.tobytes()
        options["exif"] = random.choice([contents, damaged(contents, random), random.randbytes(40)])
    if random.random() < 0.2:
        options["transparency"] = random.choice([0, 1, 255, b"\0\x80\xff", (0, 0, 0)])
    if random.random() < 0.1:
        options["icc_profile"] = random.randbytes(200)
    if random.random() < 0.1:
        options |= {"save_all": True, "append_images": [small_picture(random, "RGB")] * 3}
    if random.random() < 0.2:
        names = ["tiff_lzw", "tiff_deflate", "group4", "packbits", "jpeg"]
        options["compression"] = random.choice(names)
    if random.random() < 0.1:
        comment = text(random).encode("utf-8", "replace")
        options |= {"dpi": (0, 10**6), "comment": comment, "progressive": True}
    return options


def forged_png(random: Random) -> bytes:
    """A small PNG that says it is of another size, or holds a chunk that unpacks to much more."""

    def chunk(name: bytes, contents: bytes) -> bytes:
        body = name + contents
        return pack(">I", len(contents)) + body + pack(">I", zlib.crc32(body))

    sides = [0, 1, 40, 9000, 65_535, 2**31 - 1, 2**32 - 1]
    bits, color = random.choice([1, 8, 16, 3]), random.choice([0, 2, 3, 4, 6, 7])
    sizes = random.choice(sides), random.choice(sides)
    header = pack(">IIBBBBB", *sizes, bits, color, 0, 0, random.randrange(2))
    packed = zlib.compress(bytes(random.choice([10, 10, 100_000, 50_000_000])), 1)
    extra = random.choice(
        [
            b"",
            chunk(b"zTXt", b"a\0\0" + packed),
            chunk(b"iCCP", b"a\0\0" + packed),
            chunk(b"iTXt", b"a\0\1\0\0\0" + packed),
            chunk(b"eXIf", random.randbytes(50)),
            chunk(b"PLTE", bytes(random.choice([0, 3, 768, 900]))) + chunk(b"tRNS", bytes(300)),
            chunk(b"acTL", pack(">II", 10**6, 0)) + chunk(b"fcTL", random.randbytes(26)),
            chunk(b"tEXt", b"a\0b") * random.choice([10, 10_000, 200_000]),
        ]
    )
    data = chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + data


def forged_tiff(random: Random) -> bytes:
    """A TIFF file of one directory, whose tags mostly fit together."""
    entries = []
    for tag, (sensible, odd) in TIFF_TAGS.items():
        if random.random() < (0.9 if tag < 280 else 0.25):
            value = random.choice(odd if random.random() < 0.08 else sensible)
            count = random.choice([1] * 20 + [0, 2, 3, 2**20, 2**31, 2**32 - 1])
            kind = random.choice([4] * 20 + [3, *range(19)])
            entries.append(pack("<HHII", tag, kind, count, value))
    if random.random() < 0.1:
        random.shuffle(entries)
    start = 1000
    following = random.choice([0, 0, 0, 8, start, 2**32 - 1])
    directory = pack("<H", len(entries)) + b"".join(entries) + pack("<I", following)
    pixels = random.choice(
        [bytes(992), random.randbytes(992), zlib.compress(bytes(10**6)).ljust(992)]
    )
    return b"II*\0" + pack("<I", start) + pixels[:992] + directory


def forged_jpeg(random: Random) -> bytes:
    """A JPEG file with many more scans or segments than there are pixels to fill."""
    file = io.BytesIO()
    side = random.choice([16, 500, 4000])
    Image.new("L", (side, side)).save(file, "JPEG", progressive=True)
    whole = file.getvalue()
    last = whole.rindex(b"\xff\xda")
    first = whole.index(b"\xff\xc2")
    scan, segment = whole[last:-2], b"\xff\xfe\0\6abcd"
    many = random.choice([50, 99, 101, 2000])
    return random.choice(
        [
            whole[:-2] + scan * many + b"\xff\xd9",
            whole[:first] + segment * many + whole[first:],
            whole[:first] + b"\xff" * many + whole[first:],
            whole[:2] + whole[first : first + 19] * many + whole[2:],
        ]
    )


# The forms that Python has for bytes.
BYTES: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "every other byte": lambda contents: memoryview(contents)[::2],
    "reversed bytes": lambda contents: memoryview(contents)[::-1],
    "memoryview of numbers": lambda contents: memoryview(contents[: len(contents) & ~3]).cast("i"),
    "array of bytes": lambda contents: np.frombuffer(contents, np.uint8),
    "BytesIO": io.BytesIO,
}


class OddPath(os.PathLike):
    """A path whose words nobody has checked."""

    def __init__(self, says: Any) -> None:
        self.says = says

    def __fspath__(self) -> Any:
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


def delivered(path: Path, random: Random) -> tuple[str, Any]:
    """A path, or what else stands for a file."""
    name = str(path).encode("utf-8", "surrogatepass")
    how = random.randrange(9)
    if how == 0:
        says = random.choice([str(path), name, ValueError("no"), 5, None, "a\0b"])
        return f"an object whose path is {says!a:.40}", OddPath(says)
    if how == 1:
        return "a path of bytes", name
    if how == 2 and os.path.isfile(path) and os.path.getsize(path) < 2**20:
        try:
            image = Image.open(path)  # not decoded yet
        except Exception:
            return "a path", path
        if random.random() < 0.2:
            image.close()
        return "an open picture", image
    return "a path", random.choice([path, str(path), os.path.relpath(path)])


def picture_object(random: Random, place: Path) -> tuple[str, Any]:
    """A picture of Pillow's with strange contents."""
    mode = random.choice(MODES)
    image = small_picture(random, mode)
    how = random.randrange(9)
    if how == 0:
        image.close()
    elif how == 1 and mode in ("P", "L"):
        image.putpalette(random.randbytes(random.choice([0, 3, 30, 768])))
    elif how == 2:
        image.getexif()[0x0112] = random.choice([6, "x", (1, 2), b"\6", 10**9])
    elif how == 3:
        image = image.transpose(Image.Transpose.ROTATE_90).crop((-5, -5, 20, 20))
    elif how == 4:
        numbers = random.choice([math.nan, math.inf, -1e30, 0.5])
        image = Image.fromarray(np.full((9, 9), numbers, np.float32))
    elif how == 5:
        sizes = [(0, 0), (0, 5), (1, 4000), (9000, 1000), (40_000, 1)]
        image = Image.new(mode, random.choice(sizes))
    odd = [None, b"Exif\0\0MM\0*", b"\0\x80", 0, 300, (1, 2, 3), text(random)]
    for key in random.choices(["exif", "transparency", "icc_profile", "dpi", "loop", "x"], k=3):
        image.info[key] = random.choice(odd)
    return f"a picture of mode {image.mode}, {image.width} x {image.height}", image


def array(random: Random, place: Path) -> tuple[str, Any]:
    made = np.zeros(random.choice(ARRAY_SHAPES), random.choice(ARRAY_DTYPES))
    forms = {
        "array": lambda: made,
        "reversed array": lambda: np.flip(made),
        "array in Fortran's order": lambda: np.asfortranarray(made),
        "read-only array": lambda: np.broadcast_to(made, made.shape),
        "array of much more than memory": lambda: np.broadcast_to(np.uint8(0), (10**5, 10**5, 3)),
        "masked array": lambda: np.ma.masked_array(made, mask=True),
        "array of records": lambda: np.zeros((9, 12, 3), [("a", "u1")]),
        "tensor": lambda: torch.zeros(9, 12, 3, dtype=torch.uint8),
        "list of an array": lambda: np.zeros((9, 12, 3)).tolist(),
        "array's scalar": lambda: np.uint8(5),
    }
    name = random.choice([*forms, *["array"] * 8])
    return f"{name} {made.dtype} {made.shape}", forms[name]()


def other_object(random: Random, place: Path) -> tuple[str, Any]:
    """What is no picture at all, or the name of no file."""
    how = random.randrange(4)
    if how == 0:
        name = hostile_name(random)
        return f"the path {name[:40]!a}", random.choice([str, OddPath, lambda one: one])(name)
    if how == 1:
        return "JSON junk", value(random)
    if how == 2:
        odd_bytes = [pickled(), planted_code(), b"", b"\0" * 1000, random.randbytes(500)]
        return "bytes of no picture", random.choice(odd_bytes)
    odd = [object(), Image, Image.Image, SimpleNamespace(size=(1, 1), mode="RGB"), print, ..., {1}]
    odd += [open(os.devnull, "rb"), (picture(),), [picture()], {"image": picture()}, range(9)]  # noqa: SIM115
    chosen = random.choice(odd)
    return f"an object of {type(chosen).__name__}", chosen


def bomb(random: Random, place: Path) -> tuple[str, Any]:
    """A small file of a huge picture, just below Pillow's bound of pixels or above."""
    form, mode, options = random.choice(HUGE)
    side = random.choice([8100, 8100, 8100, 9400])
    file = io.BytesIO()
    Image.new(mode, (side, side)).save(file, form, **options)
    return f"{form} of mode {mode}, {side} x {side}", file.getvalue()
