"""Which patches become which token, before and after the weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_model

from flashvl.compressor import pixel_shuffle
from flashvl.errors import ArgumentError


@given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_pixel_shuffle_is_that_of_a_plain_loop(tiles, rows, columns, factor):
    shape = (tiles, rows * factor, columns * factor, 2)
    x = torch.arange(torch.Size(shape).numel()).reshape(shape)
    shuffled = pixel_shuffle(x, factor)
    assert shuffled.shape == (tiles, rows, columns, factor * factor * 2)
    for tile in range(tiles):
        for row in range(rows):
            for column in range(columns):
                wanted = []
                for r in range(factor):  # channel blocks (0, 0), (0, 1), (1, 0), (1, 1)
                    for c in range(factor):
                        wanted += x[tile, row * factor + r, column * factor + c].tolist()
                assert shuffled[tile, row, column].tolist() == wanted


def numbered(model, tiles: int = 1) -> torch.Tensor:
    """Features (S, N, D) whose every channel holds the patch's number."""
    vision = model.config.vision
    numbers = torch.arange(tiles * vision.patches, dtype=torch.float32)
    return numbers.reshape(tiles, -1, 1).expand(-1, -1, vision.width)


def test_tokens_go_row_by_row_or_column_by_column():
    for order, second in (("rows", 2), ("columns", 16)):
        model = tiny_model("dynamic", token_order=order)
        tokens = model.compressor.reduce(numbered(model))  # (1, 16, 4 * 16)
        assert tokens.shape == (1, 16, 64)
        assert tokens[0, :2, ::16].tolist() == [
            [0, 1, 8, 9],
            [second, second + 1, second + 8, second + 9],
        ]


def test_the_core_of_each_tile_goes_on():
    model = tiny_model("iss")
    tokens = model.compressor.reduce(numbered(model, tiles=2))  # (2, 36, 16)
    core = [row * 8 + column for row in range(1, 7) for column in range(1, 7)]
    assert tokens[0, :, 0].tolist() == core
    assert tokens[1, :, 5].tolist() == [64 + number for number in core]


def test_without_stitching_every_patch_goes_on():
    model = tiny_model("iss", stitching="none")
    features = torch.randn(3, 36, 16)
    assert torch.equal(model.compressor.reduce(features), features)


def test_the_mean_mode_must_know_the_grid():
    model = tiny_model("iss", stitching="mean")
    features = torch.randn(3, 64, 16)
    with pytest.raises(ArgumentError, match="grid"):
        model.compressor(features)
    assert model.compressor(features, (1, 2)).shape == (3, 36, 16)


def test_the_mean_mode_differs_at_seams_alone():
    trim, mean = tiny_model("iss"), tiny_model("iss", stitching="mean")
    features = torch.randn(2, 64, 16)
    trimmed = trim.compressor.reduce(features).unflatten(1, (6, 6))
    averaged = mean.compressor.reduce(features, (1, 2)).unflatten(1, (6, 6))
    same = (trimmed == averaged).all(dim=-1)
    assert same[0, :, :5].all()
    assert same[1, :, 1:].all()
    assert not same[0, :, 5].any()
    assert not same[1, :, 0].any()


def test_the_mlp_by_hand(any_model):
    compressor = any_model.compressor
    features = torch.randn(2, any_model.config.vision.patches, any_model.config.vision.width)
    x = compressor.reduce(features)
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    for layer in (compressor.expand, compressor.hidden, compressor.output):
        x = x @ layer.weight.T + layer.bias
        if layer is not compressor.output:
            x = x * 0.5 * (1 + torch.erf(x / 2**0.5))
    torch.testing.assert_close(compressor(features), x)


def test_the_token_count_is_the_configs(any_model):
    vision = any_model.config.vision
    pixels = torch.randn(2, 3, vision.image_size, vision.image_size)
    tokens = any_model.encode(pixels)
    assert tokens.shape == (2, any_model.config.tokens_per_tile, any_model.config.decoder.width)
