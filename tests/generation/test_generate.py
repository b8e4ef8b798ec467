"""When an answer ends, what it says, and what it streams."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny import picture, teach_answer, tiny_model, user

from flashvl.cache import KVCache
from flashvl.errors import ArgumentError, CheckpointError, MessageError
from flashvl.generate import decode_one_token, generate, prefill
from flashvl.sampling import Sampling

ANSWER = "It:是🔴!"


@pytest.fixture(scope="module")
def taught():
    model = tiny_model()
    teach_answer(model, ANSWER)
    return model


def generated(model, max_new_tokens, stop_ids=(), context=512, tokens=5, **sampling) -> list[int]:
    """Ids that follow a prompt of random embeddings."""
    decoder = model.decoder
    torch.manual_seed(0)
    embeddings = torch.randn(1, tokens, model.config.decoder.width)
    text_ids = torch.tensor([[3, 4]])
    config = decoder.config
    decoder.config = dataclasses.replace(config, context=context)
    try:
        options = Sampling(**sampling)
        return list(generate(decoder, embeddings, text_ids, max_new_tokens, options, stop_ids))
    finally:
        decoder.config = config


def test_the_taught_answer_is_given_and_ends_at_the_stop_token(taught):
    assert taught.chat(picture(), user()) == ANSWER
    assert taught.chat(None, user("something else")) == ANSWER
    assert taught.chat(None, user(), do_sample=True, temperature=0.01, seed=3) == ANSWER


def test_the_stream_comes_in_whole_characters_and_joins_to_the_answer(taught):
    pieces = list(taught.stream(picture(), user()))
    assert "".join(pieces) == ANSWER
    assert len(pieces) > 5
    assert "🔴" in pieces
    assert not any("\ufffd" in piece for piece in pieces)


def test_either_stop_token_ends_the_answer():
    for token in ("<|im_end|>", "<|endoftext|>"):
        model = tiny_model()
        ids = teach_answer(model, "yes")
        other = model.tokenizer.control_id(token)
        with torch.no_grad():
            model.decoder.head.weight[[ids[-1], other]] = model.decoder.head.weight[
                [other, ids[-1]]
            ]
        assert model.chat(None, user()) == "yes"


def test_the_answer_ends_after_max_new_tokens(taught):
    ids = taught.tokenizer.encode(ANSWER)
    for count in (1, 2, len(ids), len(ids) + 1, 10**9):
        wanted = taught.tokenizer.decode(ids[:count])
        assert taught.chat(None, user(), max_new_tokens=count) == wanted


def test_every_stop_id_ends_and_none_is_given(model):
    whole = generated(model, 20)
    assert len(whole) == 20
    for token_id in set(whole):
        cut = generated(model, 20, stop_ids={token_id})
        assert cut == whole[: whole.index(token_id)]


def test_the_answer_ends_with_the_context(model):
    assert len(generated(model, 50, context=12)) == 12 - 5
    assert len(generated(model, 7, context=12)) == 7
    assert len(generated(model, 50, context=6)) == 1


def test_a_prompt_longer_than_the_context_says_both_lengths(model):
    context = model.config.decoder.context
    base = model.prepare(None, user(""))[0].shape[1]
    text = "!" * (context - base)
    tokens = model.prepare(None, user(text))[0].shape[1]
    assert tokens == context
    with pytest.raises(MessageError, match=f"{tokens} tokens.* {context}"):
        model.chat(None, user(text))
    assert isinstance(model.chat(None, user(text[:-1])), str)  # room for one token


@pytest.mark.parametrize("count", [0, -1, 1.0, "5", None, True])
def test_max_new_tokens_must_be_a_whole_number(model, count):
    with pytest.raises(ArgumentError, match="max_new_tokens"):
        model.chat(None, user(), max_new_tokens=count)


def test_sampling_repeats_with_its_seed(model):
    first = model.chat(picture(), user(), do_sample=True, max_new_tokens=30, seed=1)
    assert model.chat(picture(), user(), do_sample=True, max_new_tokens=30, seed=1) == first
    assert model.chat(picture(), user(), do_sample=True, max_new_tokens=30, seed=2) != first
    streamed = model.stream(picture(), user(), do_sample=True, max_new_tokens=30, seed=1)
    assert "".join(streamed) == first


def test_sampling_leaves_the_random_numbers_of_others_alone(model):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    model.chat(None, user(), do_sample=True, max_new_tokens=5, seed=1)
    assert torch.equal(torch.rand(3), wanted)


def test_the_repetition_penalty_counts_prompt_and_answer(model):
    free = generated(model, 20)
    assert len(set(free)) < 20
    penalised = generated(model, 20, repetition_penalty=1e30)
    assert len(set(penalised)) == 20
    assert not {3, 4} & set(penalised)


def test_greedy_is_the_likeliest_token_of_a_full_pass(model):
    ids, pixels = model.prepare(picture(), user())
    answer = []
    with torch.inference_mode():
        for _ in range(6):
            following = model(torch.tensor([[*ids[0].tolist(), *answer]]), pixels)[0, -1].argmax()
            answer.append(following.item())
    stop_free = tiny_model()  # the same weights
    stop_free.stop_ids = frozenset()
    text = stop_free.chat(picture(), user(), max_new_tokens=6)
    assert text == model.tokenizer.decode(answer)


def test_prefill_and_decode_give_the_last_position_alone(model):
    cache = KVCache(model.config.decoder, 10, batch=2)
    with torch.inference_mode():
        logits = prefill(model.decoder, torch.randn(2, 5, 16), cache)
        assert logits.shape == (2, 320)
        assert decode_one_token(model.decoder, torch.tensor([[1], [2]]), cache).shape == (2, 320)
    assert cache.length == 6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("do_sample", [False, True])
def test_weights_that_are_not_finite_are_an_error(value, do_sample):
    model = tiny_model()
    with torch.no_grad():
        model.decoder.layers[1].mlp.gate.weight[0, 0] = value
    with pytest.raises(CheckpointError, match=r"finite.*verify"):
        model.chat(picture(), user(), do_sample=do_sample)


@pytest.mark.parametrize("do_sample", [False, True])
def test_not_finite_is_an_error_too_if_it_shows_in_a_later_token(do_sample):
    model = tiny_model()
    ids = teach_answer(model, ANSWER)
    with torch.no_grad():
        model.decoder.embedding.weight[ids[2]] = torch.nan
    answer = model.stream(None, user("?"), do_sample=do_sample, temperature=0.01)
    assert next(answer) == ANSWER[0]
    with pytest.raises(CheckpointError, match="finite"):
        list(answer)
