"""When an answer ends, what it says, and what it streams."""

from __future__ import annotations

import dataclasses
import unicodedata
from itertools import pairwise
from operator import length_hint

import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import picture, teach_answer, tiny_model, tokenizer_definition, user

from flashvl import FlashVL
from flashvl.errors import CheckpointError, MessageError
from flashvl.generation.generate import (
    CHARACTER_TOKENS,
    begin_decode,
    generate,
    joint_cache,
    read_prompt,
    whole_characters,
)
from flashvl.generation.sampling import Sampling
from flashvl.input.processor import Prompt
from flashvl.input.tokenizer import Tokenizer

ANSWER = "It:是🔴!"


TOKENIZER = Tokenizer(tokenizer_definition())
PROMPT = Prompt(torch.tensor([[3, 4, 250, 70, 9]]), None, [])


@pytest.fixture(scope="module")
def taught() -> FlashVL:
    flash = tiny_model()
    teach_answer(flash, ANSWER)
    return flash


def generated(flash: FlashVL, stop_ids=(), context: int = 512, **options) -> list[int]:
    """Ids that follow a prompt of five tokens."""
    model, sampling = flash.model, Sampling(**options)
    config = model.config
    decoder = dataclasses.replace(config.decoder, context=context)
    model.config = dataclasses.replace(config, decoder=decoder)
    try:
        row = read_prompt(model, PROMPT, sampling)
        ids = []
        for rows in generate(model, [row], sampling, stop_ids):
            assert rows == [row]
            ids.append(row.ids[-1])
        assert ids == row.ids
        return ids
    finally:
        model.config = config


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
        flash = tiny_model()
        ids = teach_answer(flash, "yes")
        head, other = flash.model.decoder.head, flash.tokenizer.control_id(token)
        with torch.no_grad():
            head.weight[[ids[-1], other]] = head.weight[[other, ids[-1]]]
        assert flash.chat(None, user()) == "yes"


def test_the_answer_ends_after_max_new_tokens(taught):
    ids = taught.tokenizer.encode(ANSWER)
    for count in (1, 2, len(ids), len(ids) + 1, 10**9):
        wanted = taught.tokenizer.decode(ids[:count])
        assert taught.chat(None, user(), max_new_tokens=count) == wanted


def test_every_stop_id_ends_and_none_is_given(flash):
    whole = generated(flash, max_new_tokens=20)
    assert len(whole) == 20
    for token_id in set(whole):
        cut = generated(flash, stop_ids={token_id}, max_new_tokens=20)
        assert cut == whole[: whole.index(token_id)]


def test_the_answer_ends_with_the_context(flash):
    assert len(generated(flash, context=12, max_new_tokens=50)) == 12 - 5
    assert len(generated(flash, context=12, max_new_tokens=7)) == 7
    assert len(generated(flash, context=6, max_new_tokens=50)) == 1
    with pytest.raises(MessageError, match=r"5 tokens.* 5"):
        generated(flash, context=5)


def test_a_prompt_longer_than_the_context_says_both_lengths(flash):
    context = flash.config.decoder.context
    base = flash.prepare(None, user("")).input_ids.shape[1]
    text = "!" * (context - base)
    tokens = flash.prepare(None, user(text)).input_ids.shape[1]
    assert tokens == context
    with pytest.raises(MessageError, match=f"{tokens} tokens.* {context}"):
        flash.chat(None, user(text))
    assert isinstance(flash.chat(None, user(text[:-1])), str)  # room for one token


def test_sampling_repeats_with_its_seed(flash):
    first = flash.chat(picture(), user(), do_sample=True, max_new_tokens=30, seed=1)
    assert flash.chat(picture(), user(), do_sample=True, max_new_tokens=30, seed=1) == first
    assert flash.chat(picture(), user(), do_sample=True, max_new_tokens=30, seed=2) != first
    streamed = flash.stream(picture(), user(), do_sample=True, max_new_tokens=30, seed=1)
    assert "".join(streamed) == first


def test_sampling_leaves_the_random_numbers_of_others_alone(flash):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    flash.chat(None, user(), do_sample=True, max_new_tokens=5, seed=1)
    assert torch.equal(torch.rand(3), wanted)


def test_the_repetition_penalty_counts_prompt_and_answer(flash):
    free = generated(flash, max_new_tokens=20)
    assert len(set(free)) < 20
    penalized = generated(flash, max_new_tokens=20, repetition_penalty=1e30)
    assert len(set(penalized)) == 20
    assert not set(PROMPT.input_ids[0].tolist()) & set(penalized)


def test_greedy_is_the_likeliest_token_of_a_full_pass(flash):
    ids, pixels, grids = flash.prepare(picture(), user())
    answer = []
    with torch.inference_mode():
        for _ in range(6):
            logits = flash.model(torch.tensor([[*ids[0].tolist(), *answer]]), pixels, grids)
            answer.append(logits[0, -1].argmax().item())
    stop_free = tiny_model()  # the same weights
    stop_free.stop_ids = frozenset()
    text = stop_free.chat(picture(), user(), max_new_tokens=6)
    assert text == flash.tokenizer.decode(answer)


def test_prefill_and_decode_give_the_last_position_alone(flash):
    model, seen = flash.model, []
    hook = model.decoder.head.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].shape[:2])
    )
    rows = [read_prompt(model, PROMPT, Sampling(max_new_tokens=9), number=n) for n in (1, 2)]
    assert [row.logits.shape for row in rows] == [(1, 320)] * 2
    assert torch.equal(rows[0].seen, PROMPT.input_ids)
    cache = joint_cache(model, rows)
    assert (cache.length, cache.capacity) == (5, 14)
    with torch.inference_mode():
        assert begin_decode(model, cache)(torch.tensor([[1], [2]])).shape == (2, 320)
    hook.remove()
    assert cache.length == 6
    assert seen == [(1, 1), (1, 1), (2, 1)]


def test_a_row_alone_keeps_its_cache_and_rows_together_share_a_new_one(flash):
    row, *rows = (read_prompt(flash.model, PROMPT, Sampling(max_new_tokens=3)) for _ in range(3))
    own = row.cache
    assert joint_cache(flash.model, [row]) is row.cache is own
    assert own.capacity == 8
    shared = joint_cache(flash.model, rows)
    assert [one.cache for one in rows] == [shared, shared]
    assert (shared.capacity, shared.keys.shape[1]) == (8, 2)


def test_places_do_not_count_as_seen(flash):
    """And the whole text does, that in a cache from before too."""
    prompt = flash.prepare(picture(), user())
    row = read_prompt(flash.model, prompt, Sampling())
    text = prompt.input_ids[prompt.input_ids >= 0][None]
    assert torch.equal(row.seen, text)
    rest = Prompt(prompt.input_ids, None, [])
    row.cache.roll_back(prompt.input_ids.shape[1] - 4)
    again = read_prompt(flash.model, rest, Sampling(), row.cache)
    assert torch.equal(again.seen, text)
    assert again.cache.length == prompt.input_ids.shape[1]
    torch.testing.assert_close(again.logits, row.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("do_sample", [False, True])
def test_weights_that_are_not_finite_are_an_error(value, do_sample):
    flash = tiny_model()
    with torch.no_grad():
        flash.model.decoder.layers[1].mlp.gate.weight[0, 0] = value
    with pytest.raises(CheckpointError, match=r"finite.*verify"):
        flash.chat(picture(), user(), do_sample=do_sample)


@pytest.mark.parametrize("do_sample", [False, True])
def test_not_finite_is_an_error_too_if_it_shows_in_a_later_token(do_sample):
    flash = tiny_model()
    ids = teach_answer(flash, ANSWER)
    with torch.no_grad():
        flash.model.decoder.embedding.weight[ids[2]] = torch.nan
    answer = flash.stream(None, user("?"), do_sample=do_sample, temperature=0.01)
    assert next(answer) == ANSWER[0]
    with pytest.raises(CheckpointError, match="finite"):
        list(answer)


def pieces(ids) -> list[str]:
    return list(whole_characters(iter(ids), TOKENIZER))


@pytest.mark.parametrize("text", ["红乂", "I 看到 a 圆形.", "🙂👍", "👩‍👩‍👧‍👦", "🏳️‍🌈 flag"])
def test_streamed_pieces_are_whole_characters(text):
    ids = TOKENIZER.encode(text)
    assert len(ids) > len(text)  # so some characters are of several tokens
    streamed = pieces(ids)
    assert "".join(streamed) == text
    assert not any("\ufffd" in piece for piece in streamed)
    assert len(streamed) > 1


def test_a_piece_comes_as_soon_as_its_character_is_whole():
    ids = TOKENIZER.encode("a") + TOKENIZER.encode("丂") + TOKENIZER.encode("b")
    assert len(ids) == 5  # three bytes of the rare character
    unread = iter(ids)
    came = [(length_hint(unread), piece) for piece in whole_characters(unread, TOKENIZER)]
    assert came == [(4, "a"), (1, "丂"), (0, "b")]


def test_an_answer_cut_inside_a_character_ends_in_one_replacement_sign():
    ids = TOKENIZER.encode("a丂")
    assert pieces(ids[:-1]) == ["a", "\ufffd"]


def test_control_tokens_that_are_hidden_give_no_piece():
    hidden = [TOKENIZER.control_id("<|im_start|>")]
    assert pieces([*hidden, *TOKENIZER.encode("a"), *hidden]) == ["a"]


@given(st.lists(st.integers(0, TOKENIZER.vocabulary + 5), max_size=30))
def test_joined_pieces_are_the_decoded_answer(ids):
    streamed = pieces(ids)
    assert "".join(streamed) == TOKENIZER.decode(ids)
    assert all(streamed)


@given(st.lists(st.integers(0, 255), max_size=60), st.integers(0, 60))
def test_of_broken_characters_only_a_few_tokens_wait(broken, place):
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    ids = [TOKENIZER._tokenizer.token_to_id(alphabet[number]) for number in broken]
    ids[place:place] = TOKENIZER.encode("a🙂")
    unread = iter(ids)
    reads, streamed = [0], []
    for piece in whole_characters(unread, TOKENIZER):
        reads.append(len(ids) - length_hint(unread))
        streamed.append(piece)
    assert "".join(streamed) == TOKENIZER.decode(ids)
    assert max(after - before for before, after in pairwise(reads)) <= CHARACTER_TOKENS + 1


@given(st.text(alphabet="aé红🙂\u200d👩🏽\ufffd", max_size=8))
def test_joined_pieces_are_the_text(text):
    assert "".join(pieces(TOKENIZER.encode(text))) == unicodedata.normalize("NFC", text)
