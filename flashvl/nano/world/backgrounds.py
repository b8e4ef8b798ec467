"""Backgrounds of nano's pictures: plain, gradient or noisy, in contrast with what lies on them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from .things import COLORS, RGB, draw_color, pick, to_rgb

MIN_CONTRAST = 75.0  # Euclidean distance in RGB between a thing and any of its background


def paint_background(
    size: tuple[int, int], colors: Sequence[RGB], random: np.random.Generator
) -> Image.Image:
    """An RGB picture of `size` (width, height): half plain, a quarter each gradient and noisy.

    Every color of `colors` is about MIN_CONTRAST or more away from all that it shows, noise
    aside; a gradient is held to it at nine places.
    """
    chance = random.random()
    if chance < 0.5:
        return Image.new("RGB", size, draw_background(colors, random))
    if chance < 0.75:
        return _gradient(size, colors, random)
    return _noise(size, draw_background(colors, random), random)


def draw_background(colors: Sequence[RGB], random: np.random.Generator) -> RGB:
    """One background color that contrasts with each of the colors of what lies on it."""
    while True:
        kind = random.random()
        if kind < 0.25:
            gray = pick((255, 255, 255, 0, 128, 192, 211, 240, 64), random)
            candidate = np.full(3, gray)
        elif kind < 0.4:
            candidate = np.full(3, random.uniform(0, 255)) + random.uniform(-6, 6, 3)
        elif kind < 0.65:
            candidate = 255 - random.uniform(0, 1, 3) * random.uniform(20, 120)  # pastel
        elif kind < 0.85:
            candidate = random.uniform(0, 255, 3)
        else:
            candidate = np.array(draw_color(pick(tuple(COLORS), random), random))
        rgb = to_rgb(candidate)
        if _contrasts(np.array(rgb), colors):
            return rgb


def _gradient(
    size: tuple[int, int], colors: Sequence[RGB], random: np.random.Generator
) -> Image.Image:
    """From one color to another along a straight line of any direction."""
    first = np.array(draw_background(colors, random), float)
    strength = random.uniform(20, 200)
    while True:  # weaker at each try, so that it ends
        second = np.clip(first + strength * random.uniform(-1, 1, 3), 0, 255)
        if all(_contrasts(first + (second - first) * t, colors) for t in np.linspace(0, 1, 9)):
            break
        strength *= 0.9
    angle = random.uniform(0, 2 * np.pi)
    x = np.linspace(-0.5, 0.5, size[0], dtype=np.float32)[None, :] * np.cos(angle)
    y = np.linspace(-0.5, 0.5, size[1], dtype=np.float32)[:, None] * np.sin(angle)
    along = x + y  # (height, width)
    along = (along - along.min()) / np.ptp(along)
    pixels = np.float32(first) + along[..., None] * np.float32(second - first)  # (height, width, 3)
    return Image.fromarray(np.round(pixels).astype(np.uint8))


def _noise(size: tuple[int, int], color: RGB, random: np.random.Generator) -> Image.Image:
    """Normal noise about one color, gray or colored, in grains of one pixel or a few."""
    width, height = size
    grain = pick((1, 1, 2, 3), random)
    rough = (-(-height // grain), -(-width // grain), pick((1, 3), random))
    noise = random.standard_normal(rough, np.float32) * random.uniform(4, 22)
    noise = noise.repeat(grain, 0).repeat(grain, 1)[:height, :width]  # (height, width, 1 or 3)
    return Image.fromarray(np.clip(np.array(color) + noise, 0, 255).astype(np.uint8))


def _contrasts(candidate: np.ndarray, colors: Sequence[RGB]) -> bool:
    return all(np.linalg.norm(candidate - color) >= MIN_CONTRAST for color in colors)
