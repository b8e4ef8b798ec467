"""The image path beside PIL and transformers' image processors, on real photographs."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from checkpoints import CLIP, KINDS, SIGLIP, make_checkpoint
from hypothesis import assume, given
from hypothesis import strategies as st
from photographs import PHOTOGRAPHS, photograph
from reference import closest_grid, shuffle_pixels, stitch
from transformers import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from flashvl import FlashVL
from flashvl.input.image import resize
from flashvl.input.processor import normalize
from flashvl.input.tiling import choose_grid
from flashvl.model.compressor import average_margins, pixel_shuffle, trim_margins

GRAY_LEVEL = 1.0 + 1e-3  # of 255, and rounding


def gray_levels(pixels: torch.Tensor, preset: dict) -> torch.Tensor:
    """Normalized pixels (tiles, 3, height, width) back to 0..255."""
    mean, std = (
        torch.tensor(preset[name]).view(1, 3, 1, 1) for name in ("image_mean", "image_std")
    )
    return (pixels * std + mean) * 255


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_clip_preprocessing(name):
    """448 x 448, bicubic."""
    image = photograph(name)
    processor = CLIPImageProcessorPil(size={"height": 448, "width": 448}, do_center_crop=False)
    expected = processor(image, return_tensors="pt")["pixel_values"]
    tiles = resize(image, 448, 448, CLIP["resample"])[None].copy()
    pixels = normalize(tiles, CLIP["image_mean"], CLIP["image_std"])
    assert pixels.shape == expected.shape
    off = (gray_levels(pixels, CLIP) - gray_levels(expected, CLIP)).abs().max()
    assert off <= GRAY_LEVEL


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_siglip_preprocessing(name):
    """512 x 512, bilinear."""
    image = photograph(name)
    size = {"height": 512, "width": 512}
    expected = SiglipImageProcessorPil(size=size, resample=2)(image, return_tensors="pt")
    expected = expected["pixel_values"]
    tiles = resize(image, 512, 512, SIGLIP["resample"])[None].copy()
    pixels = normalize(tiles, SIGLIP["image_mean"], SIGLIP["image_std"])
    assert pixels.shape == expected.shape
    off = (gray_levels(pixels, SIGLIP) - gray_levels(expected, SIGLIP)).abs().max()
    assert off <= GRAY_LEVEL


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """A model of each kind with large tiles, of which only the image path is used."""
    folder = tmp_path_factory.mktemp("checkpoint")
    reference = make_checkpoint(folder, kind=request.param, side=32, patch=14)
    return FlashVL.from_pretrained(folder, device="cpu", dtype="float32"), reference


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_tiles_of_photographs(pair, name):
    """Grid, canvas, margins, order and thumbnail, within one gray level of the processor's."""
    flash, reference = pair
    image = photograph(name)
    _, pixels, grids = flash.prepare(image, [{"role": "user", "content": "?"}])
    expected = reference.pixels(image)
    assert grids == [reference.grid(image)]
    assert pixels.shape == expected.shape
    preset = SIGLIP if reference.spec.kind == "static" else CLIP
    off = (gray_levels(pixels, preset) - gray_levels(expected, preset)).abs().max()
    assert off <= GRAY_LEVEL


@pytest.mark.parametrize("stitching", ["trim", "none"])
@pytest.mark.parametrize("thumbnail", [True, False])
@pytest.mark.parametrize("size", [(300, 100), (100, 310), (77, 80)])
def test_tiles_by_the_assumed_fields(stitching, thumbnail, size, tmp_path):
    assumptions = {"stitching": stitching, "thumbnail": thumbnail, "max_tiles": 9}
    reference = make_checkpoint(tmp_path, assumptions=assumptions)
    flash = FlashVL.from_pretrained(tmp_path, device="cpu", dtype="float32")
    image = photograph("astronaut.png").resize(size)
    _, pixels, grids = flash.prepare(image, [{"role": "user", "content": "?"}])
    expected = reference.pixels(image)
    assert grids == [reference.grid(image)]
    assert pixels.shape == expected.shape
    assert (gray_levels(pixels, CLIP) - gray_levels(expected, CLIP)).abs().max() <= GRAY_LEVEL


def test_an_image_in_every_form_gives_the_same_tiles(pair, tmp_path):
    flash, _ = pair
    image = photograph("coffee.png")
    image.save(tmp_path / "coffee.png")
    contents = (tmp_path / "coffee.png").read_bytes()
    forms = (image, np.asarray(image), contents, tmp_path / "coffee.png")
    tiles = [flash.prepare(form, [{"role": "user", "content": "?"}]).pixels for form in forms]
    assert all(torch.equal(tiles[0], other) for other in tiles[1:])


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 12), st.sampled_from([24, 336]))
def test_grid(width, height, max_tiles, cell):
    shapes = {Fraction(c, r) for r in range(1, max_tiles + 1) for c in range(1, max_tiles // r + 1)}
    distances = sorted(abs(shape - Fraction(width, height)) for shape in shapes)
    # Halfway between two shapes the rounding of floats decides, as in other tiling models.
    assume(len(distances) == 1 or distances[0] < distances[1])
    assert choose_grid(height, width, cell, max_tiles) == closest_grid(
        width, height, cell, max_tiles
    )


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 2), st.integers(1, 4), st.booleans())
def test_stitching(rows, columns, margin, core, thumbnail):
    """`trim` and `mean` beside loops over places, with any grid, with and without a thumbnail."""
    tiles, side = rows * columns + thumbnail, core + 2 * margin
    generator = torch.Generator().manual_seed(rows + 10 * columns)
    features = torch.randn(tiles, side * side, 5, generator=generator)
    square = features.unflatten(1, (side, side))
    trimmed = trim_margins(square, margin).flatten(1, 2)
    expected = stitch(features, (rows, columns), side, margin, "trim")
    assert torch.equal(trimmed, expected)
    mean = average_margins(square, (rows, columns), margin).flatten(1, 2)
    expected = stitch(features, (rows, columns), side, margin, "mean")
    assert torch.allclose(mean, expected, rtol=0, atol=1e-6)


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4))
def test_pixel_shuffle(tiles, half, width):
    side = 2 * half
    features = torch.arange(tiles * side * side * width).view(tiles, side * side, width)
    ours = pixel_shuffle(features.unflatten(1, (side, side)), 2).flatten(1, 2)
    assert torch.equal(ours, shuffle_pixels(features, side))
