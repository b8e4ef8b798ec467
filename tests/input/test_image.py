"""Every kind of picture becomes an upright RGB one; everything else is one clear `ImageError`."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from tiny import encoded, picture

from flashvl.errors import ImageError
from flashvl.input.image import load_image, resize

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
        ("F", float("nan"), 0),
        ("F", float("inf"), 255),
    ],
)
def test_gray_of_every_depth(mode, value, gray):
    assert first_pixel(Image.new(mode, (4, 4), value)) == (gray,) * 3


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
    "a smaller bomb": (huge_png(11_000, 11_000), "pixels"),
    "a gray array": (np.zeros((4, 4), np.uint8), "shape (4, 4)"),
    "four channels": (np.zeros((4, 4, 4), np.uint8), "shape (4, 4, 4)"),
    "a float array": (np.zeros((4, 4, 3), np.float32), "float32"),
    "channels first": (np.zeros((3, 4, 4), np.uint8), "shape (3, 4, 4)"),
    "a number": (7, "int"),
    "a list": ([[0, 0, 0]], "list"),
    "no file": ("no/such/file.png", "no file no/such/file.png"),
    "no user": ("~nobody-of-this-name/image.png", "image.png"),
    "a broken name": ("a\0b.png", "cannot be read"),
    "a long name": ("a" * 5000, "cannot be read"),
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
