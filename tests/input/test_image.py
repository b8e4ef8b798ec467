"""Every kind of picture becomes an upright RGB one; everything else is one clear `ImageError`."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from limits import GIBIBYTE, limited
from PIL import EpsImagePlugin, Image, ImageOps
from tiny import encoded, picture

from flashvl.errors import ImageError
from flashvl.input.image import FORMATS, MAX_BYTES, MAX_PIXELS, load_image, resize

RED, WHITE = (255, 0, 0), (255, 255, 255)


def first_pixel(image) -> tuple[int, int, int]:
    return load_image(image).getpixel((0, 0))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    turns = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
    turns |= {6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}
    upright = picture()
    stored = upright
    if orientation in turns:  # what a camera held that way stores
        stored = upright.transpose(Image.Transpose[turns[orientation]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    seen = load_image(encoded(stored, "PNG", exif=exif))
    np.testing.assert_array_equal(np.asarray(seen), np.asarray(upright))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa"])
def test_transparency_is_laid_on_white(mode):
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    clear.paste((0, 0, 0, 255), (2, 0, 4, 4))
    through = {"PA": "P", "RGBa": "RGBA"}.get(mode)
    image = clear.convert(through).convert(mode) if through == "RGBA" else clear.convert(mode)
    seen = load_image(image)
    assert seen.mode == "RGB"
    assert seen.getpixel((0, 0)) == WHITE
    assert seen.getpixel((3, 0)) == (0, 0, 0)


def test_half_transparent_red_becomes_pink():
    assert first_pixel(Image.new("RGBA", (4, 4), (255, 0, 0, 128))) == (255, 127, 127)


def test_a_palette_with_and_without_transparency():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    assert first_pixel(encoded(image, "PNG")) == RED
    assert first_pixel(encoded(image, "PNG", transparency=1)) == WHITE
    assert first_pixel(encoded(image, "PNG", transparency=0)) == RED


def test_one_color_of_an_rgb_png_may_be_transparent():
    assert first_pixel(encoded(Image.new("RGB", (4, 4), RED), "PNG", transparency=RED)) == WHITE


@pytest.mark.parametrize(
    ("mode", "value", "gray"),
    [
        ("1", 1, 255),
        ("L", 90, 90),
        ("I;16", 90 * 257, 90),
        ("I;16", 255, 0),
        ("I;16B", 90 * 257, 90),
        ("I", 90 * 257, 90),
        ("I", 200 * 257, 200),
        ("I", 90, 90),
        ("I", -5, 0),
        ("F", 90.0, 90),
        ("F", 2.0, 2),
        ("F", 1.0, 255),
        ("F", 0.5, 128),
        ("F", 90.0 * 257, 90),
        ("F", float("nan"), 0),
        ("F", float("inf"), 255),
    ],
)
def test_gray_of_every_depth(mode, value, gray):
    assert first_pixel(Image.new(mode, (4, 4), value)) == (gray,) * 3


def test_the_largest_number_of_a_float_picture_tells_its_range():
    """An infinite one tells nothing; it is white."""
    values = np.array([[0.25, float("inf"), -1.0, float("nan")]], np.float32)
    for largest, gray in ((1.0, 64), (255.0, 0), (65535.0, 0)):
        seen = load_image(Image.fromarray(np.vstack([values, np.full_like(values, largest)])))
        assert np.asarray(seen)[:, :, 0].tolist() == [[gray, 255, 0, 0], [255] * 4]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])  # older Pillows give 32 bits
def test_sixteen_bit_gray_with_a_transparent_value_is_laid_on_white(dtype):
    image = Image.fromarray(np.array([[2570, 40_000], [5140, 0]], dtype))
    image.info["transparency"] = 2570
    assert np.asarray(load_image(image))[:, :, 0].tolist() == [[255, 156], [20, 0]]


def test_a_transparent_value_in_a_sixteen_bit_file_is_laid_on_white():
    image = Image.new("I;16", (4, 4), 2570)
    assert first_pixel(encoded(image, "PNG", transparency=2570)) == WHITE
    assert first_pixel(encoded(image, "PNG", transparency=2571)) == (10,) * 3


@pytest.mark.parametrize("mode", ["RGBA", "PA", "I;16", "I", "F"])
def test_a_picture_of_many_bands_is_converted_as_one(mode):
    """Whatever the row that a band ends with, every pixel is as it is alone."""
    height, width = 1700, 1300
    random = np.random.default_rng(0)
    if mode in ("RGBA", "PA"):
        image = Image.fromarray(random.integers(0, 256, (height, width, 4), np.uint8))
        image = image if mode == "RGBA" else image.quantize(16).convert("PA")
    else:
        dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        image = Image.fromarray(random.integers(0, 65536, (height, width)).astype(dtype))
        image.putpixel((0, 0), 65535)
    assert image.mode == mode
    seen = np.asarray(load_image(image))
    assert seen.shape == (height, width, 3)
    for top in (0, 300, 805, 806, 807, height - 3):
        rows = np.asarray(image)[top : top + 3]
        if mode in ("RGBA", "PA"):
            red, alpha = (
                np.asarray(image.convert("RGBA"))[top : top + 3, :, band] for band in (0, 3)
            )
            wanted = 255 - (255.0 - red) * alpha / 255
        else:
            wanted = rows / (256 if mode == "I;16" else 257)
        assert np.abs(seen[top : top + 3, :, 0] - wanted).max() <= 1


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "LAB", "RGBX"])
def test_other_color_spaces(mode):
    image = Image.new("RGB", (4, 4), (200, 40, 90))
    if mode == "LAB":
        seen = load_image(Image.new("LAB", (4, 4), (128, 128, 128)))
        assert seen.mode == "RGB"
    else:
        seen = load_image(image.convert(mode))
        assert np.abs(np.asarray(seen).astype(int) - np.asarray(image)).max() <= 5


def test_a_cmyk_jpeg_and_a_sixteen_bit_png_file():
    cmyk = first_pixel(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert np.abs(np.subtract(cmyk, RED)).max() <= 3
    assert first_pixel(encoded(Image.new("I;16", (8, 8), 40_000), "PNG")) == (156,) * 3


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation(form):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "white")]
    options = {"lossless": True} if form == "WEBP" else {}
    animated = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(animated)).n_frames == 3
    assert first_pixel(animated) == RED


class OfBytes:
    """A path of a kind of its own, in bytes; or whatever else it says that its path is."""

    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        if isinstance(self.path, Exception):
            raise self.path
        return os.fsencode(self.path) if isinstance(self.path, Path) else self.path


def test_every_source_gives_the_same_picture(tmp_path):
    image = picture()
    image.save(tmp_path / "image.png")
    wanted = np.asarray(image)
    contents = (tmp_path / "image.png").read_bytes()
    sources = [
        image,
        Image.open(tmp_path / "image.png"),
        tmp_path / "image.png",
        str(tmp_path / "image.png"),
        contents,
        bytearray(contents),
        memoryview(contents),
        memoryview(b"".join(bytes([byte, 0]) for byte in contents))[::2],
        memoryview(contents * 2).cast("B", (2, len(contents)))[:1],
        OfBytes(tmp_path / "image.png"),
        wanted,
        np.asfortranarray(wanted),
    ]
    for source in sources:
        np.testing.assert_array_equal(np.asarray(load_image(source)), wanted)


def test_what_was_given_is_not_changed():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    array = np.zeros((4, 4, 3), np.uint8)
    load_image(image)
    load_image(array)
    assert (image.mode, image.getpixel((0, 0)), array.max()) == ("RGBA", (255, 0, 0, 0), 0)


def huge_png(width: int, height: int) -> bytes:
    """A file of a few bytes whose header declares far more pixels than it has."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def released() -> memoryview:
    view = memoryview(encoded(picture(), "PNG"))
    view.release()
    return view


NO_IMAGES = {
    "no bytes": (b"", "not an image"),
    "text": (b"I am a text.\n" * 50, "not an image"),
    "truncated PNG": (encoded(picture(), "PNG")[:-200], "damaged or truncated"),
    "truncated JPEG": (encoded(picture(), "JPEG")[:-200], "damaged or truncated"),
    "header alone": (encoded(picture(), "PNG")[:33], "not an image"),
    "no pixels": (Image.new("RGB", (0, 5)), "no pixels"),
    "no rows": (np.zeros((0, 5, 3), np.uint8), "no pixels"),
    "no size in the file": (huge_png(0, 0), ""),
    "a line": (Image.new("RGB", (30_000, 1)), "too thin"),
    "a line in a file": (encoded(Image.new("RGB", (1, 30_000)), "PNG"), "too thin"),
    "a bomb": (huge_png(50_000, 50_000), "pixels"),
    "a smaller bomb": (huge_png(8193, 8192), "pixels"),
    "a gray array": (np.zeros((4, 4), np.uint8), "shape (4, 4)"),
    "four channels": (np.zeros((4, 4, 4), np.uint8), "shape (4, 4, 4)"),
    "a float array": (np.zeros((4, 4, 3), np.float32), "float32"),
    "channels first": (np.zeros((3, 4, 4), np.uint8), "shape (3, 4, 4)"),
    "a number": (7, "int"),
    "a list": ([[0, 0, 0]], "list"),
    "no file": ("no/such/file.png", "no file no/such/file.png"),
    "no user": ("~nobody-of-this-name/image.png", "image.png"),
    "a broken name": ("a\0b.png", "cannot be read"),
    "a long name": ("a" * 5000, "cannot be read: File name too long"),
    "a long path": ("a/" * 1000 + "b.png", "there is no file a/a/"),
    "a broken name of bytes": (OfBytes(b"a\0b.png"), "cannot be read"),
    "a broken home": ("~\0/b.png", "cannot be read"),
    "half a character": ("a\ud800.png", "cannot be read"),
    "a path that fails": (OfBytes(RuntimeError("no path today")), "no path today"),
    "a path that is none": (OfBytes(7), "path cannot be read"),
    "a released view": (released(), "cannot be read"),
    "too many pixels": (np.zeros((8193, 8192, 3), np.uint8), "67,108,864"),
    "too many bytes": (bytes(MAX_BYTES + 1), "64 MiB"),
    "too many in a view": (memoryview(bytes(2 * MAX_BYTES + 2))[::2], "64 MiB"),
    "a name of two lines": ("a\nb.png", "no file"),
}


@pytest.mark.parametrize("name", NO_IMAGES)
def test_what_is_no_image_is_refused_in_one_line(name):
    image, words = NO_IMAGES[name]
    with pytest.raises(ImageError) as refusal:
        load_image(image)
    message = str(refusal.value)
    assert words in message
    assert len(message.splitlines()) == 1


def test_a_folder_and_a_text_file_are_refused_by_name(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ImageError, match=path.name):
            load_image(path)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    program = """
from flashvl.errors import ImageError
from flashvl.input.image import load_image
result = []
for path in paths:
    try:
        load_image(path)
    except ImageError as error:
        result.append(str(error))
"""
    paths = [str(tmp_path / "pipe.png"), str(tmp_path), "/dev/zero", "/dev/stdin", "/proc/self/mem"]
    outcome = limited(program, seconds=20, memory=2 * GIBIBYTE, paths=paths)
    assert outcome.kind == "returned", outcome
    assert len(outcome.result) == len(paths)
    assert all("not a file" in line for line in outcome.result[:4])


def test_a_file_is_read_up_to_a_bound(tmp_path):
    """Its length may be a lie, so what counts is what can be read."""
    file = tmp_path / "large.png"
    file.write_bytes(encoded(picture(), "PNG"))
    os.truncate(file, MAX_BYTES)
    assert load_image(file).size == picture().size
    opened = Image.open(file)
    os.truncate(file, MAX_BYTES + 1)
    for image in (file, opened):
        with pytest.raises(ImageError, match="64 MiB"):
            load_image(image)


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A program of that name on the path; if it is started, the file that this gives is there."""
    started = tmp_path / "started"
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {started}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return started


def test_no_program_is_started_for_a_picture(ghostscript, tmp_path):
    eps = encoded(picture(), "EPS")
    for name in ("image.eps", "image.png", "image"):
        (tmp_path / name).write_bytes(eps)
        with pytest.raises(ImageError, match="PNG, JPEG"):
            load_image(tmp_path / name)
    with pytest.raises(ImageError, match="PNG, JPEG"):
        load_image(eps)
    opened = Image.open(io.BytesIO(eps))
    with pytest.raises(ImageError, match=r"of kind EPS.*PNG, JPEG"):
        load_image(opened)
    opened.format = "PNG"
    with pytest.raises(ImageError, match="of kind EPS"):
        load_image(opened)
    assert not ghostscript.exists()
    with pytest.raises(OSError, match=r"."):  # it gives no picture
        opened.load()
    assert ghostscript.exists(), "the test would not see a program"


@pytest.mark.parametrize("form", ["PDF", "PPM", "JPEG2000", "TGA", "PCX", "SGI", "ICNS", "DDS"])
def test_other_formats_are_refused_with_the_list_of_those_that_are_read(form):
    with pytest.raises(ImageError, match=r"kind that is read: PNG, JPEG, .* AVIF"):
        load_image(encoded(picture(), form))


@pytest.mark.parametrize("form", FORMATS)
def test_each_format_is_read(form):
    if form not in Image.SAVE:
        pytest.skip("Pillow is built without it")
    frames = {"save_all": True, "append_images": [picture()]} if form == "MPO" else {}
    seen = load_image(encoded(picture(), form, **frames))
    lazily = load_image(Image.open(io.BytesIO(encoded(picture(), form, **frames))))
    assert seen.size == lazily.size
    if form != "ICO":  # which has sizes of its own
        assert seen.size == picture().size
        assert np.abs(np.asarray(seen).astype(int) - np.asarray(picture())).mean() < 8


def png_chunks(number: int) -> bytes:
    contents = encoded(picture(), "PNG")
    chunk = struct.pack(">I4sI", 0, b"noNe", zlib.crc32(b"noNe"))
    return contents[:33] + chunk * number + contents[33:]


def jpeg(scans: int = 0, header: bytes = b"") -> bytes:
    """A progressive JPEG whose last scan comes more often, with a header before its own."""
    contents = encoded(picture(), "JPEG", progressive=True)
    last = contents.rfind(b"\xff\xda")
    return contents[:2] + header + contents[2:last] + contents[last:-2] * (1 + scans) + b"\xff\xd9"


def tiff(entries: list[tuple[int, int, int, int]], start: bytes = b"II*\0") -> bytes:
    """A TIFF of one gray pixel, with tags (tag, kind, count, value) beside those that it needs."""
    entries = [(256, 4, 1, 1), (257, 4, 1, 1), (258, 3, 1, 8), (259, 3, 1, 1), *entries]
    entries = sorted([*entries, (262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1)])
    if start == b"II+\0":
        listed = [struct.pack("<HHQQ", *entry) for entry in entries]
        return start + struct.pack("<HHQQ", 8, 0, 16, len(entries)) + b"".join(listed)
    order = "<" if start.startswith(b"II") else ">"
    listed = []
    for tag, kind, count, value in entries:
        inside = struct.pack(order + ("HH" if kind == 3 else "I"), value, *[0] * (kind == 3))
        listed.append(struct.pack(order + "HHI", tag, kind, count) + inside)
    return start + struct.pack(order + "IH", 8, len(entries)) + b"".join(listed) + bytes(8)


BOMBS = {
    "100 scans too many": (jpeg(scans=100), "over 100 scans"),
    "500 segments": (jpeg(header=b"\xff\xe9\0\3x" * 500), "over 500 segments"),
    "EXIF in pieces": (jpeg(header=b"\xff\xe1\0\x0aExif\0\0xx" * 500), "over 500 segments"),
    "filling": (jpeg(header=b"\xff" * 1001), "filling"),
    "filling without end": (b"\xff\xd8" + b"\xff" * 2000, "filling"),
    "segments within another": (jpeg(header=b"\xff\xf0\xff\xff"), "marker f0"),
    "100,000 chunks": (png_chunks(100_000), "over 100,000 chunks"),
    "a million strips": (tiff([(273, 4, 1_000_001, 8)]), "numbers in its tag 273"),
    "a million tiles": (tiff([(324, 16, 1_000_001, 8)], b"II+\0"), "numbers in its tag 324"),
    "a large tile": (tiff([(322, 4, 1, 8208), (323, 4, 1, 8208)]), "tiles of over 67,108,864"),
    "a large tile, twice": (
        tiff([(322, 3, 1, 16), (322, 3, 1, 65520), (323, 3, 1, 65520)]),
        "tiles",
    ),
    "a large tile of BigTIFF": (tiff([(322, 16, 1, 2**40), (323, 3, 1, 16)], b"II+\0"), "tiles"),
    "a large tile backwards": (tiff([(322, 4, 1, 2**30), (323, 3, 1, 16)], b"MM\0*"), "tiles"),
    "tags outside": (tiff([])[:4] + b"\xff\xff\xff\x7f" + tiff([])[8:], "outside the file"),
    "tags far outside": (b"II+\0\x08\0\0\0" + b"\xff" * 8 + bytes(100), "outside the file"),
    "BigTIFF backwards": (tiff([], b"MM\0+"), "rare kind of TIFF"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_that_is_much_work_is_refused_before_it_is_decoded(name):
    contents, words = BOMBS[name]
    with pytest.raises(ImageError, match=words):
        load_image(contents)


@pytest.mark.parametrize("name", ["100 scans too many", "100,000 chunks"])
def test_a_bomb_that_was_opened_elsewhere_is_refused(name):
    contents, words = BOMBS[name]
    with pytest.raises(ImageError, match=words):
        load_image(Image.open(io.BytesIO(contents)))


def test_up_to_the_bounds_files_are_read():
    segments = b"\xff\xe9\0\3x" * 400
    for contents in (jpeg(scans=90), jpeg(header=segments + b"\xff" * 999), png_chunks(99_000)):
        assert load_image(contents).size == picture().size
    trailer = encoded(picture(), "JPEG") + b"\xff\xda\0\2" * 1000  # as of a film behind it
    assert load_image(trailer).size == picture().size
    for start in (b"II*\0", b"MM\0*", b"II+\0"):
        assert load_image(tiff([], start)).size == (1, 1)


def test_a_large_picture_within_an_icon_is_refused():
    """Its size is not in the icon's header."""
    image = encoded(Image.new("1", (8193, 8192)), "PNG")
    header = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(image), 22)
    with pytest.raises(ImageError, match="67,108,864"):
        load_image(header + image)


def largest(form: str, mode: str, **options) -> bytes:
    """As many pixels as may be, to be turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    side = round(MAX_PIXELS**0.5)
    return encoded(Image.new(mode, (side, side)), form, exif=exif, **options)


LARGEST = {
    "TIFF of floats": ("TIFF", "F", {"compression": "tiff_adobe_deflate"}),
    "transparent PNG": ("PNG", "RGBA", {}),
    "progressive CMYK JPEG": ("JPEG", "CMYK", {"progressive": True}),
    "transparent AVIF": ("AVIF", "RGBA", {"speed": 10}),
    "transparent WEBP": ("WEBP", "RGBA", {"lossless": True, "method": 0}),
}


@pytest.mark.parametrize(
    "name",
    ["TIFF of floats", *(pytest.param(name, marks=pytest.mark.slow) for name in [*LARGEST][1:])],
)
def test_memory_is_bounded(name):
    form, mode, options = LARGEST[name]
    program = "from flashvl.input.image import load_image; result = load_image(contents).size"
    outcome = limited(program, seconds=60, contents=largest(form, mode, **options))
    assert outcome.kind == "returned", outcome
    assert outcome.result[0] * outcome.result[1] == MAX_PIXELS
    assert outcome.peak < 1.5 * GIBIBYTE


def test_threads_leave_the_filters_of_warnings_as_they_were():
    damaged = encoded(picture(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff garbage")
    filters = list(warnings.filters)
    with ThreadPoolExecutor(8) as threads:
        seen = list(threads.map(load_image, [damaged] * 200))
    assert all(image.size == picture().size for image in seen)
    assert list(warnings.filters) == filters


def test_a_pil_image_of_a_damaged_file_is_refused():
    opened = Image.open(io.BytesIO(encoded(picture(200, 200), "JPEG")[:-500]))
    with pytest.raises(ImageError, match="damaged"):
        load_image(opened)


def test_the_aspect_ratio_may_be_up_to_the_limit():
    assert load_image(Image.new("RGB", (200, 1))).size == (200, 1)
    with pytest.raises(ImageError, match="200 to 1"):
        load_image(Image.new("RGB", (201, 1)))


@given(st.binary(max_size=300))
def test_random_bytes_are_an_image_or_an_image_error(contents):
    rgb_or_image_error(contents)


EXIF = Image.Exif()
EXIF[0x0112] = 6
EXIF[0x010E] = "a description"
FORMS = {
    "PNG": encoded(picture(), "PNG", exif=EXIF),
    "palette PNG": encoded(picture().convert("P"), "PNG", transparency=0),
    "16-bit PNG": encoded(Image.new("I;16", (20, 20), 40_000), "PNG"),
    "JPEG": encoded(picture(), "JPEG", exif=EXIF),
    "CMYK JPEG": encoded(picture().convert("CMYK"), "JPEG"),
    "GIF": encoded(picture(), "GIF", save_all=True, append_images=[picture().rotate(90)]),
    "TIFF": encoded(picture(), "TIFF", compression="tiff_lzw", exif=EXIF),
    "WEBP": encoded(picture(), "WEBP", exif=EXIF),
    "BMP": encoded(picture(), "BMP"),
    "ICO": encoded(picture(), "ICO"),
}


@pytest.mark.parametrize("form", FORMS)
@given(data=st.data())
def test_mutated_files_are_an_image_or_an_image_error(form, data):
    contents = bytearray(FORMS[form])
    # Headers matter most: half of the changes fall on the first 100 bytes.
    last = len(contents) - 1
    near, anywhere = st.integers(0, min(99, last)), st.integers(0, last)
    for _ in range(data.draw(st.integers(1, 6))):
        contents[data.draw(near | anywhere)] = data.draw(st.integers(0, 255))
    kept = data.draw(st.integers(len(contents) // 2, len(contents)))
    rgb_or_image_error(bytes(contents[:kept]))


def rgb_or_image_error(contents: bytes) -> None:
    try:
        image = load_image(contents)
    except ImageError:
        return
    assert image.mode == "RGB"
    assert min(image.size) > 0


def test_resize_is_pillows():
    image = picture()
    resized = resize(image, 10, 30, Image.Resampling.BICUBIC)
    assert resized.shape == (10, 30, 3)
    np.testing.assert_array_equal(resized, np.asarray(image.resize((30, 10), 3)))


def test_a_damaged_exif_block_is_no_reason_to_fail():
    """Orientation is then unknown, and the picture is taken as it is."""
    contents = encoded(picture(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff garbage")
    assert load_image(contents).size == ImageOps.exif_transpose(picture()).size
