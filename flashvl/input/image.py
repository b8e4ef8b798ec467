"""Pictures of any kind become upright RGB pictures."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..errors import ImageError
from ..reading import one_line

ImageLike = Image.Image | str | os.PathLike | bytes | np.ndarray

# Thinner pictures carry a handful of pixels across; stretched to tiles they mean nothing.
MAX_ASPECT_RATIO = 200


def load_image(image: ImageLike) -> Image.Image:
    """A PIL image, path, file contents or (H, W, 3) uint8 array -> an upright RGB picture.

    EXIF orientation is applied, transparency is laid on white, 16-bit gray is scaled to 8 bits,
    of an animation the first frame is taken. Raises `ImageError`.
    """
    if isinstance(image, np.ndarray):
        image = _from_array(image)
    elif isinstance(image, bytes | bytearray | memoryview):
        image = decode_image(image, "the bytes given as image")
    elif isinstance(image, str | os.PathLike):
        image = _read(image)
    elif not isinstance(image, Image.Image):
        raise ImageError(
            f"an image is a PIL image, a path, bytes or an array, not {type(image).__name__}"
        )
    _check_size(*image.size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata
            return _to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # damaged metadata, or a lazily opened picture: as in `decode_image`
        raise ImageError(f"the image is damaged or not supported: {one_line(error)}") from error


def resize(image: Image.Image, height: int, width: int, resample: int) -> np.ndarray:
    """An RGB picture -> (height, width, C) uint8. `resample` is Pillow's number of the filter."""
    return np.asarray(image.resize((width, height), resample))


def _read(path: str | os.PathLike) -> Image.Image:
    try:
        contents = Path(os.path.expanduser(path)).read_bytes()
    except FileNotFoundError as error:
        raise ImageError(f"there is no file {path}; check the path of the image") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"the image {path} cannot be read: {one_line(error)}") from error
    return decode_image(contents, str(path))


def decode_image(contents: bytes | bytearray | memoryview, name: str) -> Image.Image:
    """A file's first frame as it is stored, decoded, so that damage shows here.

    `name` is what the error, an `ImageError`, calls the file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(contents))
            _check_size(*image.size)
            image.load()
            return image
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{name} has too many pixels to be opened safely (over {Image.MAX_IMAGE_PIXELS:,}); "
            "make it smaller first"
        ) from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image that Pillow can read") from error
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise ImageError(f"{name} is a damaged or truncated image: {one_line(error)}") from error


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ImageError(
            "an image array must have shape (height, width, 3) and dtype uint8; found shape "
            f"{array.shape} and dtype {array.dtype}"
        )
    _check_size(array.shape[1], array.shape[0])
    return Image.fromarray(np.ascontiguousarray(array))


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"the image has no pixels ({width} x {height})")
    if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
        raise ImageError(
            f"the image has {width} x {height} pixels, more than the {Image.MAX_IMAGE_PIXELS:,} "
            "that are opened safely; make it smaller first"
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageError(
            f"the image is {width} x {height} pixels, too thin to show anything; "
            f"crop it to at most {MAX_ASPECT_RATIO} to 1"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        return _wide_gray_to_rgb(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _wide_gray_to_rgb(image: Image.Image) -> Image.Image:
    """32-bit gray holds 16-bit samples if any is above 255, else 8-bit ones."""
    gray = np.nan_to_num(np.asarray(image, dtype=np.float64))
    if gray.max() > 255:
        gray = gray / 257
    return Image.fromarray(gray.clip(0, 255).round().astype(np.uint8)).convert("RGB")
