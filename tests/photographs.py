"""Real photographs for tests, from the files of scikit-image (CC0 and public domain)."""

from __future__ import annotations

from pathlib import Path

import skimage
from PIL import Image

PHOTOGRAPHS = ("chelsea.png", "coffee.png", "astronaut.png", "rocket.jpg", "text.png")


def photograph(name: str) -> Image.Image:
    """One of `PHOTOGRAPHS` in RGB."""
    with Image.open(Path(skimage.__file__).parent / "data" / name) as image:
        return image.convert("RGB")
