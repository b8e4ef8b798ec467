"""`flashvl tiles`: what it counts is what the model does, and what it marks lies there."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from checkpoints import KINDS, make_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import picture, tiny_model, tiny_published, user

from flashvl import FlashVLConfig
from flashvl.checkpoint.hub import published_models
from flashvl.cli import main
from flashvl.errors import ArgumentError
from flashvl.input.tiling import choose_grid, cut_tiles
from flashvl.model.compressor import Compressor
from flashvl.tools import tiles
from flashvl.tools.drawing import ORANGE, WHITE, save

grids = st.tuples(st.integers(1, 3), st.integers(1, 3))
MODES = ("trim", "mean", "none", "pool")


def config_of(kind: str = "iss", **assumptions) -> FlashVLConfig:
    return FlashVLConfig.from_dict(tiny_published(kind, **assumptions))


@given(grids, st.integers(1, 6), st.integers(0, 7))
def test_seen_by_is_that_of_a_plain_loop(grid, core, margin):
    """Margins wider than a core too: then tiles that are not neighbours see a place."""
    count = tiles.seen_by(grid, core, margin)
    assert count.shape == (grid[0] * core, grid[1] * core)
    for y, x in np.ndindex(count.shape):
        seen = [
            (row, column)
            for row, column in np.ndindex(grid)
            if row * core - margin <= y < (row + 1) * core + margin
            and column * core - margin <= x < (column + 1) * core + margin
        ]
        assert count[y, x] == len(seen)


@given(grids, st.sampled_from(MODES))
def test_a_token_is_the_mean_of_as_many_tiles_as_the_compressor_takes(grid, mode):
    """Each tile's features have a channel of their own; the tokens show whose are in them."""
    config, cells = config_of(stitching=mode, thumbnail="none"), grid[0] * grid[1]
    patches = config.vision.side - 2 * (config.tiler.margin // config.vision.patch_size) * (
        mode == "none"
    )
    features = torch.eye(cells, config.vision.width)[:, None].expand(-1, patches**2, -1)
    tokens = Compressor(config).reduce(features, [grid])  # (cells, tokens, D)
    wanted = tiles.tokens_averaged(grid, config)  # (rows * side, columns * side)
    side = wanted.shape[0] // grid[0]
    apart = cut_tiles(wanted, grid, side).reshape(cells, -1)  # (cells, tokens)
    assert (tokens != 0).sum(dim=-1).tolist() == apart.tolist()


@pytest.mark.parametrize("kind", ["iss", "dynamic", "static"])
@pytest.mark.parametrize("size", [(40, 20), (20, 20), (10, 90)])
def test_the_counts_are_those_of_the_prompt(kind, size):
    image = picture(*size)
    rows = [line.split() for line in tiles.counts(image, config_of(kind)).splitlines()[2:]]
    assert [row[0] for row in rows] == (list(MODES) if kind == "iss" else ["no"])
    for row in rows:
        flash = tiny_model(kind, **({"stitching": row[0]} if kind == "iss" else {}))
        ids, pixels, [grid] = flash.prepare(image, user())
        features = flash.model.vision(pixels)  # (S, N, D)
        numbers = [len(pixels), pixels.shape[-1], features.shape[:2].numel(), (ids < 0).sum()]
        assert row[-4:] == [str(int(number)) for number in numbers]
        assert row[-7:-4] == [str(grid[0]), "x", str(grid[1])]


def test_of_a_tile_the_core_is_plain_and_what_lies_around_it_is_marked():
    """Tile 2 of 1 x 2: its left margin shows tile 1, its other margins are padding."""
    inside = tiles.inside_picture((1, 2), 12, 2)
    second = cut_tiles(inside, (1, 2), 12)[1]
    assert second[2:-2, :-2].all()
    assert not second[:2].any()
    assert not second[-2:].any()
    assert not second[:, -2:].any()
    white = np.full((16, 16, 3), 255, dtype=np.uint8)
    alone = tiles.inside_picture((1, 1), 12, 2)
    drawn = np.asarray(tiles.draw_tile(white, second, alone, 160))
    assert (drawn[25:135, 25:135] == 255).all()
    margin, padding = drawn[30:130, 4:14].reshape(-1, 3), drawn[30:130, 146:156].reshape(-1, 3)
    orange = [round(255 * 0.4 + 0.6 * channel) for channel in ORANGE]
    assert np.abs(margin.astype(int) - orange).max() <= 1
    assert len(np.unique(padding, axis=0)) == 2  # stripes
    assert (padding == WHITE).all(axis=1).any()


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from(["iss", "dynamic", "static"]))
@settings(max_examples=12)
def test_any_picture_is_drawn(width, height, kind):
    config = config_of(kind)
    if kind == "dynamic":
        tiler = dataclasses.replace(config.tiler, max_tiles=40, thumbnail="none")
        config = dataclasses.replace(config, tiler=tiler)
    sheet = tiles.draw(picture(width, height), config, "a title")
    columns = 4 if kind == "iss" else 2
    assert sheet.width == columns * (tiles.COLUMN + tiles.GAP) - tiles.GAP + 2 * 24
    assert sheet.height <= tiles.SHEET
    assert sheet.mode == "RGB"


def test_tiles_are_drawn_in_their_places_and_numbered_as_they_are_read(monkeypatch):
    written, drawn = [], []
    real = tiles.paragraph, tiles.draw_tile
    monkeypatch.setattr(
        tiles, "paragraph", lambda text, *how: written.append(text) or real[0](text, *how)
    )
    monkeypatch.setattr(
        tiles, "draw_tile", lambda tile, *how: drawn.append(tile) or real[1](tile, *how)
    )
    image = picture(70, 46)
    for assumptions, numbers in (
        ({}, "123456"),
        ({"thumbnail": "first", "tile_order": "columns"}, "135246"),
    ):
        written.clear()
        tiles.draw_tiles(image, (2, 3), config_of(**assumptions))
        assert written[:7] == [*(f"tile {number}" for number in numbers), "thumbnail"]
    usual, other = np.array(drawn[:7]), np.array(drawn[7:])
    np.testing.assert_array_equal(usual, other)


def test_squares_of_a_seam_have_the_color_of_the_legend():
    config, grid = config_of(stitching="mean"), (2, 2)
    averaged = tiles.tokens_averaged(grid, config)  # (12, 12)
    white = Image.new("RGB", (10, 10), WHITE)
    drawn = tiles.draw_squares(white, averaged, grid, 240, 240)  # squares of 20 x 20
    found = {
        tuple(map(int, place)): drawn.getpixel((int(place[1]) * 20 + 9, int(place[0]) * 20 + 9))
        for place in np.ndindex(12, 12)
    }
    for place, color in found.items():
        seen = 2 ** sum(at in (5, 6) for at in place)
        wanted = WHITE
        if seen > 1:
            pure = tiles.token_color(seen)
            wanted = tuple(round(255 * 0.3 + 0.7 * channel) for channel in pure)
        assert np.abs(np.subtract(color, wanted)).max() <= 1


# The user's path.


def command(folder, tmp_path, capsys, *more) -> tuple[int, str, str]:
    picture(60, 40).save(tmp_path / "photo.png")
    image = ["--image", str(tmp_path / "photo.png")]
    code = main(["tiles", "--model", str(folder), *image, "--out", str(tmp_path / "o.png"), *more])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("kind", KINDS)
def test_each_published_kind(kind, tmp_path, capsys):
    reference = make_checkpoint(tmp_path / "model", kind=kind)
    code, output, error = command(tmp_path / "model", tmp_path, capsys)
    assert (code, error) == (0, "")
    total = len(reference.pixels(picture(60, 40))) * reference.spec.tokens_per_tile
    assert {line.split()[-1] for line in output.splitlines()[2:]} == {str(total)}
    with Image.open(tmp_path / "o.png") as drawn:
        assert drawn.format == "PNG"
        assert min(drawn.size) > 800


@pytest.mark.parametrize("repository", published_models())
def test_a_published_model_needs_no_download(repository, tmp_path, capsys, monkeypatch):
    def refuse(*_):
        raise AssertionError("something was fetched")

    monkeypatch.setattr(tiles, "find_model", refuse)
    monkeypatch.setattr(tiles, "fetch_headers", refuse)
    code, output, _ = command(repository, tmp_path, capsys)
    assert code == 0
    config = FlashVLConfig.from_dict(published_models()[repository]["config"])
    rows, columns = choose_grid(40, 60, config.tiler.core_size, config.tiler.max_tiles)
    assert f"{rows} x {columns}" in output


def test_a_picture_that_is_there_is_not_replaced(folder, tmp_path, capsys):
    (tmp_path / "o.png").write_text("mine")
    code, output, error = command(folder, tmp_path, capsys)
    assert (code, output, error.count("\n")) == (2, "", 1)
    assert "there already" in error
    assert (tmp_path / "o.png").read_text() == "mine"
    with pytest.raises(ArgumentError):
        save(picture(), tmp_path / "o.png")  # one that came while the command worked
    assert (tmp_path / "o.png").read_text() == "mine"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--out", "drawn.jpg"], "drawn.jpg"),
        (["--out", "no-such-folder/o.png"], "no-such-folder"),
        (["--out", "o" * 300 + ".png"], "File name too long"),
        (["--image", "nowhere.png"], "nowhere.png"),
        (["--image", __file__], "not an image"),
        (["--model", "no-such-model"], "no-such-model"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(more, said, folder, tmp_path, capsys):
    code, output, error = command(folder, tmp_path, capsys, *more)
    assert (code, output, error.count("\n")) == (2, "", 1)
    assert error.startswith("flashvl: ")
    assert said in error
    assert not (tmp_path / "o.png").exists()


def test_what_is_missing_is_named(capsys):
    with pytest.raises(SystemExit) as end:
        main(["tiles", "--image", "photo.png"])
    assert end.value.code == 2
    assert "--out" in capsys.readouterr().err
