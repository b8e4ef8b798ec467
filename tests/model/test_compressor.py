"""Which patches become which token, before and after the weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import pool
from tiny import tiny_network

from flashvl.errors import ArgumentError
from flashvl.model.compressor import (
    average_margins,
    average_windows,
    pixel_shuffle,
    tiles_of,
    trim_margins,
)

grids = st.tuples(st.integers(1, 4), st.integers(1, 4))
margins = st.integers(0, 3)
core_sizes = st.integers(1, 6)


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
        model = tiny_network("dynamic", token_order=order)
        tokens = model.compressor.reduce(numbered(model))  # (1, 16, 4 * 16)
        assert tokens.shape == (1, 16, 64)
        assert tokens[0, :2, ::16].tolist() == [
            [0, 1, 8, 9],
            [second, second + 1, second + 8, second + 9],
        ]


def test_the_core_of_each_tile_goes_on():
    model = tiny_network("iss")
    tokens = model.compressor.reduce(numbered(model, tiles=2))  # (2, 36, 16)
    core = [row * 8 + column for row in range(1, 7) for column in range(1, 7)]
    assert tokens[0, :, 0].tolist() == core
    assert tokens[1, :, 5].tolist() == [64 + number for number in core]


def test_without_stitching_every_patch_goes_on():
    model = tiny_network("iss", stitching="none")
    features = torch.randn(3, 36, 16)
    assert torch.equal(model.compressor.reduce(features), features)


def test_the_mean_mode_must_know_the_grids():
    model = tiny_network("iss", stitching="mean")
    features = torch.randn(3, 64, 16)
    with pytest.raises(ArgumentError, match="pass the grids"):
        model.compressor(features)
    assert model.compressor(features, [(1, 2)]).shape == (3, 36, 16)
    assert model.compressor(features, [[1, 2]]).shape == (3, 36, 16)  # as JSON has it


def test_the_mean_mode_differs_at_seams_alone():
    trim, mean = tiny_network("iss"), tiny_network("iss", stitching="mean")
    features = torch.randn(3, 64, 16)
    trimmed = trim.compressor.reduce(features).unflatten(1, (6, 6))
    averaged = mean.compressor.reduce(features, [(1, 2)]).unflatten(1, (6, 6))
    same = (trimmed == averaged).all(dim=-1)
    assert same[0, :, :5].all()
    assert same[1, :, 1:].all()
    assert same[2].all()  # the thumbnail
    assert not same[0, :, 5].any()
    assert not same[1, :, 0].any()


@pytest.mark.parametrize("stitching", ["trim", "mean", "none", "pool"])
@pytest.mark.parametrize("thumbnail", ["first", "last", "none"])
@given(pictures=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=4))
def test_each_of_several_pictures_is_reduced_as_if_it_were_alone(stitching, thumbnail, pictures):
    model = tiny_network("iss", stitching=stitching, thumbnail=thumbnail)
    compressor, tiler = model.compressor, model.config.tiler
    side = 6 if stitching == "none" else 8
    alone = [torch.randn(tiler.tiles(grid), side * side, 16) for grid in pictures]
    reduced = compressor.reduce(torch.cat(alone), pictures)
    parts = reduced.split([len(features) for features in alone])
    for part, features, grid in zip(parts, alone, pictures, strict=True):
        assert torch.equal(part, compressor.reduce(features, [grid]))


@given(st.lists(grids, max_size=4), st.sampled_from(["none", "last"]), st.integers(-3, 3))
def test_grids_are_as_many_tiles_as_there_are_or_an_error(pictures, thumbnail, more):
    tiler = tiny_network("iss", thumbnail=thumbnail).config.tiler
    wanted = [r * c + (thumbnail == "last" and r * c > 1) for r, c in pictures]
    if more == 0:
        assert tiles_of(pictures, sum(wanted), tiler) == wanted
        return
    with pytest.raises(ArgumentError, match=f"have {sum(wanted)}"):
        tiles_of(pictures, sum(wanted) + more, tiler)


def test_the_mlp_by_hand(any_flash):
    compressor, vision = any_flash.model.compressor, any_flash.config.vision
    features = torch.randn(2, vision.patches, vision.width)
    x = compressor.reduce(features)
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    for layer in (compressor.expand, compressor.hidden, compressor.output):
        x = x @ layer.weight.T + layer.bias
        if layer is not compressor.output:
            x = x * 0.5 * (1 + torch.erf(x / 2**0.5))
    torch.testing.assert_close(compressor(features), x)


def test_the_token_count_is_the_configs(any_flash):
    model, config = any_flash.model, any_flash.config
    pixels = torch.randn(2, 3, config.vision.image_size, config.vision.image_size)
    features = model.vision(pixels)
    assert features.shape == (2, config.vision.patches, config.vision.width)
    tokens = model.compressor(features)
    assert tokens.shape == (2, config.tokens_per_tile, config.decoder.width)


@given(grids, core_sizes, margins, st.booleans(), st.integers(0, 1000))
def test_the_mean_of_margins_is_that_of_a_plain_loop(grid, core, margin, thumbnail, seed):
    (rows, columns), side = grid, core + 2 * margin
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows * columns + thumbnail, side, side, 2, generator=generator)
    result = average_margins(features, grid, margin)
    assert result.shape == (len(features), core, core, 2)
    for index in range(rows * columns):
        for y in range(core):
            for x in range(core):
                # The place on the padded canvas, and every tile that saw it.
                top = index // columns * core + margin + y
                left = index % columns * core + margin + x
                seen = [
                    features[other, top - r * core, left - c * core]
                    for other, (r, c) in enumerate(np.ndindex(rows, columns))
                    if 0 <= top - r * core < side and 0 <= left - c * core < side
                ]
                torch.testing.assert_close(result[index, y, x], torch.stack(seen).mean(0))
    if thumbnail:
        assert torch.equal(result[-1], trim_margins(features[-1:], margin)[0])


@given(grids, core_sizes, margins, st.data())
def test_the_mean_does_not_depend_on_the_order_of_the_tiles(grid, core, margin, data):
    order = data.draw(st.permutations(range(grid[0] * grid[1] + 1)))  # the thumbnail too
    features = torch.randn(len(order), core + 2 * margin, core + 2 * margin, 2)
    wanted = average_margins(features, grid, margin)
    found = average_margins(features[list(order)], grid, margin, order)
    torch.testing.assert_close(found, wanted[list(order)])


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3))
def test_windows_are_averaged_as_in_a_plain_loop(side, core, tiles):
    core = min(side, core)
    features = torch.randn(tiles, side, side, 3)
    found = average_windows(features, core)
    assert found.shape == (tiles, core, core, 3)
    wanted = pool(features.flatten(1, 2), side, core)
    torch.testing.assert_close(found.flatten(1, 2), wanted)


def test_of_the_published_sizes_every_window_is_two_patches_wide():
    places = torch.arange(32.0)[None, None, :, None].expand(1, 32, 32, 1)  # the column of a patch
    columns = average_windows(places, 24)[0, 0, :, 0]
    assert columns[:3].tolist() == [0.5, 1.5, 2.5]  # 0 and 1, 1 and 2, 2 and 3
    assert columns[3:6].tolist() == [4.5, 5.5, 6.5]


@given(grids, core_sizes, margins)
def test_the_mean_of_equal_features_changes_nothing(grid, core, margin):
    side = core + 2 * margin
    features = torch.full((grid[0] * grid[1], side, side, 2), 1.5)
    assert average_margins(features, grid, margin).eq(1.5).all()


def test_trimming_keeps_the_core_alone():
    features = torch.arange(2 * 36).reshape(2, 6, 6, 1)
    assert trim_margins(features, 2)[..., 0].tolist() == [
        [[14, 15], [20, 21]],
        [[50, 51], [56, 57]],
    ]
    assert torch.equal(trim_margins(features, 0), features)
