"""A picture and messages become the network's input; the picture is read and cut once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import encoded, picture, tiny_model, user

from flashvl.errors import MessageError
from flashvl.input import processor, tiling
from flashvl.input.processor import Prompt, normalize, text_ids


def test_normalize_by_hand():
    tiles = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    pixels = normalize(tiles, (0.1, 0.2, 0.3), (0.5, 0.25, 0.125))
    assert pixels.shape == (2, 3, 4, 5)
    wanted = (tiles[1, 2, 3, 1] / 255 - 0.2) / 0.25
    assert pixels[1, 1, 2, 3].item() == pytest.approx(wanted, rel=1e-6)


def test_prepare_gives_ids_pixels_and_grids(any_flash):
    prompt = any_flash.prepare(picture(), user())
    ids, pixels, grids = prompt
    static = any_flash.config.model_type == "FlashVLStaticConfig"
    tiles = 1 if static else 3  # 1 x 2, thumbnail
    size = any_flash.config.vision.image_size
    assert isinstance(prompt, Prompt)
    assert (ids.shape[0], ids.dtype) == (1, torch.int64)
    assert (pixels.shape, pixels.dtype) == ((tiles, 3, size, size), torch.float32)
    assert grids == ([(1, 1)] if static else [(1, 2)])
    assert (ids == -200).sum() == tiles
    assert (ids == -201).sum() == tiles * (any_flash.config.tokens_per_tile - 1)
    assert torch.equal(text_ids(ids), ids[ids >= 0][None])


def test_without_stitching_the_tiles_are_the_cores():
    assert tiny_model(stitching="none").prepare(picture(), user()).pixels.shape[-2:] == (12, 12)
    assert tiny_model(stitching="mean").prepare(picture(), user()).pixels.shape[-2:] == (16, 16)


def test_text_alone_has_no_pixels_and_no_places(any_flash):
    ids, pixels, grids = any_flash.prepare(None, user())
    assert (pixels, grids) == (None, [])
    assert ids.min() >= 0
    assert torch.equal(text_ids(ids), ids)


def test_the_processor_stands_alone_and_prepare_moves_to_the_models_device(any_flash):
    ours = any_flash.processor(picture(), user())
    ids, pixels, grids = any_flash.prepare(picture(), user())
    assert torch.equal(ours.input_ids, ids)
    assert torch.equal(ours.pixels, pixels)
    assert ours.grids == grids
    there = ours.to(torch.device("meta"))
    assert (there.input_ids.device.type, there.pixels.device.type) == ("meta", "meta")
    assert there.grids == grids
    assert any_flash.processor(None, user()).to(torch.device("meta")).pixels is None


def test_every_source_of_a_picture_gives_the_same_prompt(any_flash, tmp_path):
    image = picture()
    image.save(tmp_path / "image.png")
    sources = [tmp_path / "image.png", encoded(image, "PNG"), np.asarray(image)]
    wanted = any_flash.prepare(image, user())
    for source in sources:
        ids, pixels, grids = any_flash.prepare(source, user())
        assert torch.equal(ids, wanted.input_ids)
        assert torch.equal(pixels, wanted.pixels)
        assert grids == wanted.grids


def test_rounds_and_a_system_turn_are_in_the_ids():
    flash = tiny_model()
    messages = [{"role": "system", "content": "Be brief."}, *user("A circle?")]
    messages += [{"role": "assistant", "content": "Yes!"}, *user("Sure?")]
    ids = flash.prepare(picture(), messages).input_ids
    assert (ids == flash.tokenizer.control_id("<|im_start|>")).sum() == len(messages) + 1
    decoded = flash.tokenizer.decode(text_ids(ids)[0].tolist())
    assert "Be brief." in decoded
    assert "helpful" not in decoded


def test_a_text_of_thirty_megabytes_is_refused_before_it_is_cut_into_tokens(flash, monkeypatch):
    monkeypatch.setattr(flash.tokenizer, "encode", lambda text: pytest.fail("it was cut"))
    for messages in (user("words " * 5_000_000), user("") * 513):
        with pytest.raises(MessageError, match="512 tokens"):
            flash.processor(None, messages)
        with pytest.raises(MessageError, match="512 tokens"):
            flash.chat(picture(), messages)
    with pytest.raises(MessageError, match="512 tokens"):
        flash.start(None, system="words " * 5_000_000)


def test_a_picture_is_read_and_its_grid_chosen_once(flash, monkeypatch):
    calls = []
    for module, name in ((processor, "load_image"), (tiling, "grid_of")):
        real = getattr(module, name)

        def counting(*arguments, name=name, real=real):
            calls.append(name)
            return real(*arguments)

        monkeypatch.setattr(module, name, counting)
    once = ["load_image", "grid_of"]
    flash.chat(picture(), user(), max_new_tokens=3)
    assert calls == once
    flash.chat_batch([(picture(), user()), (None, user())] * 2, max_new_tokens=3)
    assert calls == once * 3
    conversation = flash.start(picture())
    for question in ("One?", "Two?"):
        conversation.ask(question, max_new_tokens=3)
    assert calls == once * 4
