"""The wired model: shapes, places, rounds of a conversation, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import encoded, picture, teach_answer, tiny_model, tiny_published, user

from flashvl import FlashVL, FlashVLConfig, FlashVLError
from flashvl.device import choose_device, choose_dtype
from flashvl.errors import (
    ArgumentError,
    CheckpointError,
    DeviceError,
    ImageError,
    MessageError,
    device_failure_as_error,
)


def another(model: FlashVL, seed: int = 0) -> FlashVL:
    """Other weights of the same kind."""
    torch.manual_seed(seed)
    return FlashVL(model.config)


def test_prepare_gives_ids_and_pixels(any_model):
    ids, pixels = any_model.prepare(picture(), user())
    tiles = 1 if any_model.config.model_type == "FlashVLStaticConfig" else 3  # 1 x 2, thumbnail
    size = any_model.config.vision.image_size
    assert (ids.shape[0], ids.dtype) == (1, torch.int64)
    assert (pixels.shape, pixels.dtype) == ((tiles, 3, size, size), torch.float32)
    assert (ids == -200).sum() == tiles
    assert (ids == -201).sum() == tiles * (any_model.config.tokens_per_tile - 1)


def test_text_alone_has_no_pixels_and_no_places(any_model):
    ids, pixels = any_model.prepare(None, user())
    assert pixels is None
    assert ids.min() >= 0
    assert any_model(ids).shape == (1, ids.shape[1], 320)
    assert isinstance(any_model.chat(None, user(), max_new_tokens=3), str)


def test_every_source_of_a_picture_gives_the_same_answer(any_model, tmp_path):
    image = picture()
    image.save(tmp_path / "image.png")
    sources = [image, tmp_path / "image.png", encoded(image, "PNG"), np.asarray(image)]
    logits = [any_model(*any_model.prepare(source, user())) for source in sources]
    assert all(torch.equal(one, logits[0]) for one in logits)


def test_logits_of_a_picture_have_the_shape_and_depend_on_it(any_model):
    ids, pixels = any_model.prepare(picture(), user())
    with torch.inference_mode():
        logits = any_model(ids, pixels)
        assert logits.shape == (1, ids.shape[1], 320)
        assert logits.isfinite().all()
        other = any_model(ids, pixels + 1)
    first = (ids[0] == -200).nonzero()[0].item()
    assert torch.equal(logits[:, :first], other[:, :first])  # the causal mask
    assert not torch.equal(logits[:, -1], other[:, -1])


def test_rows_of_a_batch_are_independent(any_model):
    one, two = (any_model.prepare(picture(*size), user()) for size in ((40, 20), (20, 40)))
    assert one[0].shape == two[0].shape
    with torch.inference_mode():
        both = any_model(torch.cat((one[0], two[0])), torch.cat((one[1], two[1])))
        alone = torch.cat((any_model(*one), any_model(*two)))
    torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", ["no pixels", "a tile less", "a tile more", "a place less"])
def test_a_wrong_number_of_places_is_refused(any_model, change):
    ids, pixels = any_model.prepare(picture(), user())
    if change == "a place less":
        ids = ids.masked_fill(ids == -200, 5)
    tiles = {"no pixels": None, "a tile less": pixels[1:], "a place less": pixels}
    with pytest.raises(ArgumentError, match="places for image tokens"):
        any_model(ids, tiles.get(change, torch.cat((pixels, pixels[:1]))))


@pytest.mark.parametrize("stitching", ["trim", "mean", "none"])
def test_every_stitching_mode_answers(stitching):
    model = tiny_model(stitching=stitching)
    assert isinstance(model.chat(picture(), user(), max_new_tokens=3), str)
    ids, pixels = model.prepare(picture(), user())
    assert pixels.shape[-1] == (12 if stitching == "none" else 16)
    logits = model(ids, pixels, grid=model.grid(picture()))
    assert logits.shape == (1, ids.shape[1], 320)
    if stitching == "mean":
        with pytest.raises(ArgumentError, match="grid"):
            model(ids, pixels)


def test_a_feature_layer_can_be_chosen():
    last, first = tiny_model(), tiny_model(feature_layer=0)
    _, pixels = last.prepare(picture(), user())
    assert first.vision(pixels).shape == last.vision(pixels).shape
    assert not torch.equal(first.vision(pixels), last.vision(pixels))


def test_rounds_of_a_conversation_and_a_system_turn():
    model = tiny_model()
    teach_answer(model, "Yes!")
    messages = [{"role": "system", "content": "Be brief."}, *user("A circle?")]
    for _ in range(3):
        answer = model.chat(picture(), messages)
        assert answer == "Yes!"
        messages += [{"role": "assistant", "content": answer}, *user("Sure?")]
    ids, _ = model.prepare(picture(), messages)
    assert (ids == model.tokenizer.control_id("<|im_start|>")).sum() == len(messages) + 1
    decoded = model.tokenizer.decode(ids[ids >= 0].tolist())
    assert "Be brief." in decoded
    assert "helpful" not in decoded


def test_asking_changes_neither_messages_nor_weights(model):
    messages = user()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.chat(picture(), messages, max_new_tokens=3)
    assert messages == user()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_is_wrong_is_said_as_one_error(model):
    with pytest.raises(ImageError):
        model.chat("no/such/file.png", user())
    with pytest.raises(MessageError):
        model.chat(picture(), [])
    with pytest.raises(ArgumentError):
        model.chat(picture(), user(), top_p=2)
    with pytest.raises(ArgumentError):  # at once, not only when the first piece is asked for
        model.stream(picture(), user(), temperature=0)
    for error in (ImageError, MessageError, ArgumentError, CheckpointError, DeviceError):
        assert issubclass(error, FlashVLError)


def test_a_model_without_a_tokenizer_says_so():
    model = FlashVL(FlashVLConfig.from_dict(tiny_published()))
    with pytest.raises(CheckpointError, match="no tokenizer"):
        model.chat(None, user())


def test_a_model_of_the_meta_device_has_shapes_alone(any_model):
    with torch.device("meta"):
        model = FlashVL(any_model.config)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    ids, pixels = any_model.prepare(picture(), user())
    assert model(ids.to("meta"), pixels.to("meta")).shape == (1, ids.shape[1], 320)


def test_random_weights_are_finite_and_a_seed_repeats_them(any_model):
    one, two, three = (another(any_model, seed) for seed in (1, 1, 2))
    pairs = zip(one.parameters(), two.parameters(), three.parameters())
    equal = [(torch.equal(a, b), torch.equal(a, c)) for a, b, c in pairs]
    assert all(same for same, _ in equal)
    assert not all(other for _, other in equal)
    assert all(parameter.isfinite().all() for parameter in one.parameters())


def test_bfloat16_weights_answer_too():
    model = tiny_model().bfloat16()
    ids, pixels = model.prepare(picture(), user())
    assert pixels.dtype == torch.float32
    assert model(ids, pixels).dtype == torch.bfloat16
    assert model.compressor(model.vision(pixels)).dtype == torch.bfloat16
    assert isinstance(model.chat(picture(), user(), max_new_tokens=3), str)


def test_a_gradient_reaches_every_part(any_model):
    model = another(any_model)
    model.tokenizer = any_model.tokenizer
    ids, pixels = model.prepare(picture(), user())
    model(ids, pixels).logsumexp(-1).sum().backward()
    without = {
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None and not name.startswith("vision.pooling_head.")
    }
    assert without == set()


@pytest.mark.parametrize("name", ["nonsense", "cuda:99", "meta", "", "cpu:x"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(DeviceError):
        choose_device(name)


def test_devices_and_dtypes():
    assert choose_device("cpu") == choose_device(torch.device("cpu")) == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda")
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert (choose_dtype("auto", cpu), choose_dtype("auto", cuda)) == (torch.float32, None)
    assert choose_dtype("bfloat16", cpu) == choose_dtype(torch.bfloat16, cuda) == torch.bfloat16
    for wrong in ("int8", torch.int64, None, 16, "float64"):
        with pytest.raises(ArgumentError, match="dtype must be"):
            choose_dtype(wrong, cpu)


def test_memory_that_runs_out_is_a_device_error():
    with (
        pytest.raises(DeviceError, match="ran out while testing"),
        device_failure_as_error("testing"),
    ):
        torch.empty(2**58, dtype=torch.uint8)
    with pytest.raises(DeviceError), device_failure_as_error("testing"):
        np.ones(2**58, np.uint8)
    with pytest.raises(RuntimeError, match="mat"), device_failure_as_error("testing"):
        torch.ones(2, 3) @ torch.ones(2, 3)


def test_a_config_and_a_model_of_it_agree_on_the_tokens(any_model):
    config = any_model.config
    _, pixels = any_model.prepare(picture(), user())
    features = any_model.vision(pixels)
    assert features.shape == (len(pixels), config.vision.patches, config.vision.width)
    tokens = any_model.compressor(features)
    assert tokens.shape == (len(pixels), config.tokens_per_tile, config.decoder.width)
