"""nano's shapes and colours, in as many variants as people would call by the same name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
# Usual values of each colour word; a drawn colour is a mixture of two of them with a small tint.
COLOURS = {
    "red": ((255, 0, 0), (220, 20, 60), (178, 34, 34), (214, 39, 40), (230, 60, 50)),
    "green": ((0, 128, 0), (0, 255, 0), (34, 139, 34), (46, 204, 113), (0, 100, 0), (50, 205, 50)),
    "blue": ((0, 0, 255), (30, 100, 220), (65, 105, 225), (0, 0, 170), (30, 144, 255)),
    "yellow": ((255, 255, 0), (255, 215, 0), (241, 200, 15), (240, 220, 60), (255, 235, 59)),
    "orange": ((255, 165, 0), (255, 140, 0), (255, 127, 14), (243, 156, 18), (230, 126, 34)),
    "purple": ((128, 0, 128), (160, 32, 240), (102, 51, 153), (148, 0, 211), (142, 68, 173)),
    "black": ((0, 0, 0), (20, 20, 20), (40, 40, 40)),
    "white": ((255, 255, 255), (245, 245, 245), (235, 235, 235)),
}


def shape_mask(
    shape: str, size: float, random: np.random.Generator, antialiased: bool = True
) -> Image.Image:
    """A coverage mask ("L", 255 inside) whose longer side is `size` pixels, in a random variant
    of the shape: proportions, thickness and a rotation that people would still call by its name.
    """
    outline = _outline(shape, random)  # (points, 2), any scale
    outline = outline - outline.min(0)
    outline = outline / outline.max()
    fine = 1 if not antialiased else 4 if size < 100 else 2
    w, h = (max(4, round(float(extent) * size)) for extent in outline.max(0))
    mask = Image.new("L", (w * fine, h * fine))
    draw = ImageDraw.Draw(mask)
    if shape in ("circle", "ring"):
        draw.ellipse((0, 0, w * fine - 1, h * fine - 1), fill=255)
        if shape == "ring":
            edge = max(1.2, random.uniform(0.07, 0.27) * w) * fine
            draw.ellipse((edge, edge, w * fine - 1 - edge, h * fine - 1 - edge), fill=0)
    else:
        draw.polygon([tuple(point) for point in outline * (size * fine - 1)], fill=255)
    return mask.reduce(fine) if fine > 1 else mask


def _outline(shape: str, random: np.random.Generator) -> np.ndarray:
    """Corner points (points, 2) of one variant of the shape; x to the right, y downwards."""
    if shape in ("circle", "ring"):
        return np.array([[0.0, 0.0], [1.0, 1.0]])
    if shape == "square":
        points = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
        slight, free = 0.3, 0.08
    elif shape == "triangle":
        apex = 0.5 if random.random() < 0.75 else random.uniform(0, 1)
        points = np.array([[0, 1], [1, 1], [apex, 1 - random.uniform(0.75, 1.2)]])
        slight, free = 0.15, 0.25
    elif shape == "star":
        inner = random.uniform(0.32, 0.52)
        angles = np.arange(10) * np.pi / 5 - np.pi / 2
        radii = np.where(np.arange(10) % 2, inner, 1.0)
        points = np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)
        slight, free = 0.25, 0.15
    else:
        t = random.uniform(0.18, 0.42) / 2
        a, b, c, d = 0.0, 0.5 - t, 0.5 + t, 1.0
        points = [(b, a), (c, a), (c, b), (d, b), (d, c), (c, c)]
        points = np.array([*points, (c, d), (b, d), (b, c), (a, c), (a, b), (b, b)])
        slight, free = 0.2, 0.05
        if random.random() < 0.15:  # an X
            points = _rotate(points, 45.0)
    chance = random.random()
    if chance < slight:
        return _rotate(points, random.uniform(-20, 20))
    if chance < slight + free:
        return _rotate(points, random.uniform(-180, 180))
    return points


def _rotate(points: np.ndarray, degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return points @ np.array([[c, s], [-s, c]])


def draw_colour(colour: str, random) -> tuple[int, int, int]:
    values = COLOURS[colour]
    if random.random() < 0.3:
        return pick(values, random)  # exactly the usual value
    first, second = (np.array(pick(values, random), float) for _ in range(2))
    weight = random.random()
    return _to_rgb(first * weight + second * (1 - weight) + random.uniform(-10, 10, 3))


def _to_rgb(values: np.ndarray) -> tuple[int, int, int]:
    return tuple(int(value) for value in np.clip(np.round(values), 0, 255))


def pick(options: Sequence[Any], random: np.random.Generator) -> Any:
    """One of the options, each as likely."""
    return options[int(random.integers(len(options)))]
