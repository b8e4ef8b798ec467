"""Pictures of any kind become upright RGB pictures, within bounds of bytes, pixels and memory."""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageFile

from ..errors import ImageError, printable, shortened
from ..reading import is_integer, one_line
from ..storage import MEBIBYTE, read_bounded
from .bombs import refuse_bombs

ImageLike = Image.Image | str | os.PathLike | bytes | bytearray | memoryview | np.ndarray

# Pillow decodes these in this process, in 24 bytes of memory a pixel and some 20 seconds at most.
# For others it starts a program (EPS), asks a handler of someone else's (HDF5), takes minutes in
# Python (PPM), or as much memory as a header says (JPEG 2000).
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "ICO", "AVIF")

MAX_BYTES = 64 * MEBIBYTE  # of a picture's file; the network sees 2.4 million pixels at most
MAX_PIXELS = 2**26  # of a picture, 67 million
# Thinner pictures carry a handful of pixels across; stretched to tiles they mean nothing.
MAX_ASPECT_RATIO = 200

_BAND_PIXELS = 2**20  # converted at once
_MAX_NAME_LENGTH = 80  # characters of a path in an error
_ORIENTATION = 0x0112  # the tag of EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_warnings_lock = threading.Lock()


def load_image(image: ImageLike) -> Image.Image:
    """A PIL image, path, file contents or (H, W, 3) uint8 array -> an upright RGB picture.

    EXIF orientation is applied, transparency is laid on white, of an animation the first frame is
    taken. Gray is scaled to 8 bits: 16 bits as 0 to 65535; wider integers and floating-point
    numbers by the largest value that is there, as 0 to 65535 if it is above 255, as 0 to 255
    otherwise, and floating-point numbers of at most 1 as 0 to 1.

    A file is one of `FORMATS`, of at most `MAX_BYTES`; a picture has at most `MAX_PIXELS` and a
    ratio of sides of at most `MAX_ASPECT_RATIO`. Within these bounds and those of `bombs.py`
    reading it takes at most 1.5 GiB of memory. Raises `ImageError`.
    """
    if isinstance(image, Image.Image):
        image = _load(_checked(image), "the image")
    elif isinstance(image, np.ndarray):
        image = _from_array(image)
    elif isinstance(image, bytes | bytearray | memoryview):
        image = decode_image(_contents(image), "the image given as bytes")
    elif isinstance(image, str | os.PathLike):
        image = _read(image)
    else:
        raise ImageError(
            f"an image is a PIL image, a path, bytes or an array, not {type(image).__name__}"
        )
    try:
        with _without_warnings():
            orientation = image.getexif().get(_ORIENTATION, 1)
            rgb = _to_rgb(image)
            return rgb.transpose(_TURNS[orientation]) if orientation in _TURNS else rgb
    except Exception as error:  # damaged metadata, or colors that cannot be converted
        raise ImageError(f"the image is damaged or not supported: {one_line(error)}") from error


def resize(image: Image.Image, height: int, width: int, resample: int) -> np.ndarray:
    """An RGB picture -> (height, width, C) uint8. `resample` is Pillow's number of the filter."""
    return np.asarray(image.resize((width, height), resample))


def _read(path: str | os.PathLike) -> Image.Image:
    try:
        file = os.fsdecode(path)
    except Exception as error:  # of a class of the caller's
        raise ImageError(f"the image's path cannot be read: {one_line(error)}") from error
    name = printable(shortened(file, _MAX_NAME_LENGTH))
    try:
        contents = read_bounded(os.path.expanduser(file), MAX_BYTES)
    except FileNotFoundError as error:
        raise ImageError(f"there is no file {name}; check the path of the image") from error
    except OSError as error:
        reason = error.strerror or one_line(error)  # without the name once more
        raise ImageError(f"the image {name} cannot be read: {reason}") from error
    except ValueError as error:
        raise ImageError(f"the image {name} cannot be read: {one_line(error)}") from error
    return decode_image(contents, name)


def _contents(given: bytes | bytearray | memoryview) -> bytes:
    name = "the image given as bytes"
    try:
        _check_length(memoryview(given).nbytes, name)
        return bytes(given)
    except ValueError as error:  # a view that was released
        raise ImageError(f"{name} cannot be read: {one_line(error)}") from error


def _check_length(length: int, name: str) -> None:
    if length > MAX_BYTES:
        raise ImageError(
            f"{name} has over {MAX_BYTES // MEBIBYTE} MiB, more than is read; save it smaller"
        )


def decode_image(contents: bytes, name: str) -> Image.Image:
    """A file's first frame as it is stored, decoded, so that damage shows here.

    `name` is what the error, an `ImageError`, calls the file.
    """
    refuse_bombs(contents, name)
    Image.init()
    formats = [one for one in FORMATS if one in Image.OPEN]  # Pillow may be built without AVIF
    try:
        with _without_warnings():
            image = Image.open(io.BytesIO(contents), formats=formats)
    except Image.UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not an image of a kind that is read: {', '.join(FORMATS)}"
        ) from error
    except Exception as error:  # as below
        raise _damaged(name, error) from error
    return _load(image, name)


def _load(image: Image.Image, name: str) -> Image.Image:
    """Decodes all of the first frame, so that damage shows here."""
    _check_size(*image.size)
    try:
        with _without_warnings():
            image.load()
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise _damaged(name, error) from error
    _check_size(*image.size)  # of a picture within an icon it is known only now
    return image


def _damaged(name: str, error: Exception) -> ImageError:
    if isinstance(error, Image.DecompressionBombError):
        return ImageError(f"{name} has too many pixels: {one_line(error)}")
    return ImageError(f"{name} is a damaged or truncated image: {one_line(error)}")


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ImageError(
            "an image array must have shape (height, width, 3) and dtype uint8; found shape "
            f"{array.shape} and dtype {array.dtype}"
        )
    _check_size(array.shape[1], array.shape[0])
    return Image.fromarray(np.ascontiguousarray(array))


def _checked(image: Image.Image) -> Image.Image:
    """A PIL image, whose pixels may still be in a file, held to what is asked of files."""
    if not isinstance(image, ImageFile.ImageFile):
        return image
    if type(image).format not in FORMATS:
        raise ImageError(
            f"the image was opened from a file of kind {type(image).format}, which is not read "
            f"(but {', '.join(FORMATS)}); pass image.convert('RGB') if you trust the file"
        )
    if image.tile and image.fp:
        try:
            place = image.fp.tell()
            image.fp.seek(0)
            contents = image.fp.read(MAX_BYTES + 1)
            image.fp.seek(place)
        except Exception as error:  # of any object that is like a file
            raise _damaged("the image", error) from error
        _check_length(len(contents), "the image's file")
        refuse_bombs(contents, "the image")
    return image


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"the image has no pixels ({width} x {height})")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"the image has {width} x {height} pixels, more than the {MAX_PIXELS:,} that are read; "
            "make it smaller first"
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageError(
            f"the image is {width} x {height} pixels, too thin to show anything; "
            f"crop it to at most {MAX_ASPECT_RATIO} to 1"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    """A new picture. What takes more memory than RGB does is made of a band of rows at a time."""
    convert: Callable[[Image.Image], Image.Image]
    if image.mode.startswith("I;16"):
        convert = _sixteen_bits_to_gray
    elif image.mode in ("I", "F"):
        scale = _scale_of(image)
        convert = lambda band: _wide_to_gray(band, scale)  # noqa: E731
    elif image.has_transparency_data:
        convert = _on_white
    else:
        return image.convert("RGB")
    rgb = Image.new("RGB", image.size)
    for top, band in _bands(image):
        rgb.paste(convert(band), (0, top))
    return rgb


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Its rows from top to bottom, a million pixels at a time, each with the first row's number."""
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA"))


def _sixteen_bits_to_gray(image: Image.Image) -> Image.Image:
    samples = np.asarray(image)
    return _gray((samples >> 8).astype(np.uint8), samples, image)


def _wide_to_gray(image: Image.Image, scale: float) -> Image.Image:
    samples = np.asarray(image, dtype=np.float64)
    scaled = (np.nan_to_num(samples).clip(0, 65535) * scale).clip(0, 255)
    return _gray(scaled.round().astype(np.uint8), samples, image)


def _gray(gray: np.ndarray, samples: np.ndarray, image: Image.Image) -> Image.Image:
    """With white where the samples have the value that a PNG file says is transparent."""
    transparent = image.info.get("transparency")
    if is_integer(transparent):
        gray[samples == transparent] = 255
    return Image.fromarray(gray)


def _scale_of(image: Image.Image) -> float:
    """By what 32-bit gray is multiplied to be 0 to 255: its largest value tells what it holds."""
    bands = (np.asarray(band) for _, band in _bands(image))
    largest = max(np.max(band, where=np.isfinite(band), initial=0) for band in bands)
    if largest > 255:
        return 1 / 257
    return 255.0 if image.mode == "F" and largest <= 1 else 1.0


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Pillow warns of damaged metadata. The filters of warnings are shared by all threads."""
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
