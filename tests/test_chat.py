"""The owner of a network: what it answers, its options, and what it says at once if it cannot."""

from __future__ import annotations

import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import picture, teach_answer, tiny_model, tokenizer_of_line_breaks, user
from torch import nn

from flashvl import FlashVL, FlashVLError, FlashVLModel
from flashvl.errors import (
    ArgumentError,
    CheckpointError,
    ConfigError,
    DeviceError,
    DownloadError,
    ImageError,
    MessageError,
)
from flashvl.generation.conversation import Conversation


def test_it_owns_a_network_and_is_none(any_flash):
    assert not isinstance(any_flash, nn.Module)
    assert isinstance(any_flash.model, FlashVLModel)
    assert any_flash.config is any_flash.model.config is any_flash.processor.config
    assert any_flash.tokenizer is any_flash.processor.tokenizer
    assert any_flash.stop_ids == {
        any_flash.tokenizer.control_id(token) for token in ("<|im_end|>", "<|endoftext|>")
    }
    assert any_flash.folder is None


def test_text_alone_is_answered(any_flash):
    assert isinstance(any_flash.chat(None, user(), max_new_tokens=3), str)


@pytest.mark.parametrize("stitching", ["trim", "mean", "none", "pool"])
def test_every_stitching_mode_answers(stitching):
    flash = tiny_model(stitching=stitching)
    answer = flash.chat(picture(), user(), max_new_tokens=3)
    assert isinstance(answer, str)
    assert flash.start(picture()).ask("What is this?", max_new_tokens=3) == answer
    assert flash.chat_batch([(picture(), user())] * 2, max_new_tokens=3) == [answer] * 2


def test_rounds_of_a_conversation_and_a_system_turn():
    flash = tiny_model()
    teach_answer(flash, "Yes!")
    messages = [{"role": "system", "content": "Be brief."}, *user("A circle?")]
    for _ in range(3):
        answer = flash.chat(picture(), messages)
        assert answer == "Yes!"
        messages += [{"role": "assistant", "content": answer}, *user("Sure?")]


def test_asking_changes_neither_messages_nor_weights(flash):
    messages = user()
    before = {name: value.clone() for name, value in flash.model.state_dict().items()}
    flash.chat(picture(), messages, max_new_tokens=3)
    assert messages == user()
    after = flash.model.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_bfloat16_weights_answer_too():
    flash = tiny_model()
    flash.model.bfloat16()
    assert isinstance(flash.chat(picture(), user(), max_new_tokens=3), str)


# The four ways to ask for an answer, as one call each.
WAYS = {
    "chat": lambda flash, **options: flash.chat(None, user(), **options),
    "stream": lambda flash, **options: flash.stream(None, user(), **options),
    "chat_batch": lambda flash, **options: flash.chat_batch([(None, user())], **options),
    "ask": lambda flash, **options: flash.start(None).ask("What is this?", **options),
    "a conversation's stream": lambda flash, **options: flash.start(None).stream("?", **options),
}
WRONG = [
    {"max_new_tokens": 0},
    {"max_new_tokens": True},
    {"temperature": 0},
    {"top_p": 2},
    {"top_k": -1},
    {"repetition_penalty": float("nan")},
    {"seed": -1},
    {"do_sample": True, "temperature": "hot"},
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("options", WRONG, ids=str)
def test_wrong_options_are_refused_at_the_call(flash, way, options):
    """By name, and a stream's not only when its first piece is asked for."""
    with pytest.raises(ArgumentError, match=f"^{list(options)[-1]} must be"):
        WAYS[way](flash, **options)


@pytest.mark.parametrize("way", WAYS)
def test_an_option_that_there_is_not_is_refused_at_the_call(flash, way):
    with pytest.raises(TypeError, match="max_tokens"):
        WAYS[way](flash, max_tokens=5)


def test_options_are_written_down_once():
    for method in (FlashVL.chat, FlashVL.stream, FlashVL.chat_batch, Conversation.ask):
        *_, options = inspect.signature(method).parameters.values()
        assert options.kind is inspect.Parameter.VAR_KEYWORD
        assert options.annotation == "Unpack[SamplingOptions]"


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "do_sample": st.booleans(),
            "max_new_tokens": st.integers(1, 8),
            "temperature": st.sampled_from([0.5, 3.0]),
            "top_p": st.sampled_from([0.5, 1.0]),
            "top_k": st.sampled_from([0, 9]),
            "repetition_penalty": st.sampled_from([1.0, 1.5]),
        },
    )
)
def test_with_the_same_options_all_ways_answer_the_same(flash, options):
    options |= {"seed": 2, "max_new_tokens": options.get("max_new_tokens", 5)}
    image = picture(12, 12)
    answer = flash.chat(image, user(), **options)
    assert "".join(flash.stream(image, user(), **options)) == answer
    assert flash.chat_batch([(image, user())], **options) == [answer]
    assert flash.start(image).ask("What is this?", **options) == answer


def test_256_tokens_are_the_default():
    flash = tiny_model()
    flash.stop_ids = frozenset()
    steps = []
    flash.model.decoder.register_forward_hook(lambda *_: steps.append(1))
    flash.chat(None, user())
    assert len(steps) == 256  # the prompt, and each token but the last


WRONG_PROMPTS = [
    ("no/such/file.png", user(), ImageError),
    (b"not an image", user(), ImageError),
    (None, [], MessageError),
    (None, "What?", MessageError),
    (None, [{"role": "user", "content": 5}], MessageError),
    (None, user("!" * 600), MessageError),  # longer than the context
]


@pytest.mark.parametrize(("image", "messages", "error"), WRONG_PROMPTS)
def test_wrong_pictures_and_messages_are_refused_at_the_call(flash, image, messages, error):
    """And a stream's not only when its first piece is asked for."""
    for way in (flash.chat, flash.stream):
        with pytest.raises(error) as refusal:
            way(image, messages)
        assert len(str(refusal.value).splitlines()) == 1


def test_wrong_questions_are_refused_at_the_call(flash):
    asked = flash.start(None)
    for question in (5, "\ud800", "!" * 600):
        with pytest.raises(MessageError):
            asked.stream(question)


def test_every_error_is_a_flashvl_error_of_one_line():
    for error in (
        ImageError,
        MessageError,
        ArgumentError,
        ConfigError,
        CheckpointError,
        DownloadError,
        DeviceError,
    ):
        assert issubclass(error, FlashVLError)
        assert str(error("a\nname\r\nof lines")) == "a name of lines"


def test_a_training_example_is_the_prompt_and_the_answer(any_flash):
    messages = [*user("What?"), {"role": "assistant", "content": "A circle."}]
    ids, labels, pixels, grids = any_flash.training_example(picture(), messages)
    prompt = any_flash.prepare(picture(), messages[:1])
    start = prompt.input_ids.shape[1]
    assert torch.equal(ids[:, :start], prompt.input_ids)
    assert torch.equal(pixels, prompt.pixels)
    assert grids == prompt.grids
    assert (labels[:, :start] == -100).all()
    assert torch.equal(labels[:, start:], ids[:, start:])
    assert any_flash.tokenizer.decode(ids[0, start:].tolist()) == "A circle."
    logits = any_flash.model(ids, pixels, grids)
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:])
    assert torch.isfinite(loss)


def test_rows_of_an_example_are_read_side_by_side():
    flash = FlashVL(tiny_model().model, tokenizer_of_line_breaks(), [])
    messages = [*user("a"), {"role": "assistant", "content": "\nb"}]
    messages += [*user("c"), {"role": "assistant", "content": "d"}]
    ids, labels, pixels, grids = flash.training_example(picture(), messages)
    assert len(ids) == len(labels) == len(grids) == 2
    logits = flash.model(ids, pixels, grids)  # (B, T, V)
    for row, upto in enumerate((1, 3)):
        prompt = flash.prepare(picture(), messages[:upto])
        length = prompt.input_ids.shape[1]
        assert (labels[row] != -100).nonzero()[0].item() == length
        torch.testing.assert_close(logits[row, :length], flash.model(*prompt)[0])
