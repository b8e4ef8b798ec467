"""The cache holds what was stored, shows the filled part alone and copies nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_network

from flashvl.errors import ArgumentError
from flashvl.model.cache import KVCache

DECODER = tiny_network().decoder
CONFIG = DECODER.config


def new_cache(capacity: int = 10, batch: int = 1) -> KVCache:
    """Filled with NaN, so that whatever reads beyond the filled part is seen."""
    cache = KVCache(CONFIG, capacity, batch)
    cache.keys.fill_(torch.nan)
    cache.values.fill_(torch.nan)
    return cache


def filled_cache(length: int, capacity: int | None = None, batch: int = 1) -> KVCache:
    """Of `length` random tokens, and NaN beyond them."""
    cache = new_cache(capacity or length, batch)
    cache.keys[:, :, :, :length] = torch.randn(cache.keys[:, :, :, :length].shape)
    cache.values[:, :, :, :length] = torch.randn(cache.values[:, :, :, :length].shape)
    cache.advance(length)
    return cache


@torch.inference_mode()
def states(embeddings: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
    return DECODER(embeddings, cache=cache)


def test_appended_tokens_come_back_in_order_without_a_copy():
    cache = new_cache(batch=2)
    keys, values = torch.randn(2, 2, 7, 4), torch.randn(2, 2, 7, 4)  # (B, K, T, head width)
    for start, end in ((0, 3), (3, 4), (4, 7)):
        for layer in range(CONFIG.layers):
            scale = layer + 1
            all_keys, all_values = cache.append(
                layer, scale * keys[:, :, start:end], scale * values[:, :, start:end]
            )
            assert torch.equal(all_keys, scale * keys[:, :, :end])
            assert torch.equal(all_values, scale * values[:, :, :end])
            assert all_keys.untyped_storage().data_ptr() == cache.keys.data_ptr()
        cache.advance(end - start)
    assert cache.length == 7


def test_a_full_cache_refuses_more():
    cache = new_cache(capacity=3)
    tokens = torch.zeros(1, 2, 3, 4)
    cache.append(0, tokens, tokens)
    cache.advance(3)
    with pytest.raises(ArgumentError, match="holds 3 tokens, 4"):
        cache.append(0, tokens[:, :, :1], tokens[:, :, :1])


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 2))
def test_any_cut_of_the_tokens_gives_the_states_of_the_whole(cuts, batch):
    embeddings = torch.randn(batch, sum(cuts), CONFIG.width)
    cache = new_cache(sum(cuts) + 3, batch)
    parts = [states(part, cache) for part in embeddings.split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), states(embeddings), rtol=1e-4, atol=1e-5)


@given(st.integers(1, 6), st.integers(0, 6), st.integers(1, 4), st.integers(0, 9))
def test_after_rolling_back_and_growing_it_goes_on_from_there(first, kept, then, room):
    """Whatever was read beyond what is kept leaves nothing behind."""
    kept = min(kept, first)
    embeddings = torch.randn(1, first, CONFIG.width)
    other = torch.randn(1, then, CONFIG.width)
    cache = new_cache(first)
    states(embeddings, cache)
    cache.roll_back(kept)
    capacity = max(first, kept + then + room)
    cache.reserve(kept + then + room)
    assert (cache.length, cache.capacity) == (kept, capacity)
    whole = states(torch.cat((embeddings[:, :kept], other), dim=1))
    torch.testing.assert_close(states(other, cache), whole[:, kept:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [-1, 4])
def test_it_cannot_be_rolled_back_to_what_it_does_not_have(length):
    cache = new_cache()
    cache.advance(3)
    with pytest.raises(ArgumentError, match=f"has 3 tokens, {length}"):
        cache.roll_back(length)


def test_with_room_enough_nothing_is_copied():
    cache = new_cache(capacity=5)
    before = cache.keys
    cache.reserve(5)
    cache.reserve(2)
    assert cache.keys is before
    assert cache.capacity == 5


def test_two_caches_know_nothing_of_each_other():
    embeddings = torch.randn(2, 5, CONFIG.width)
    one, two = new_cache(), new_cache()
    states(embeddings[:1, :4], one)
    states(embeddings[1:, :2], two)
    last, whole = states(embeddings[:1, 4:], one), states(embeddings[:1])
    torch.testing.assert_close(last, whole[:, 4:], rtol=1e-4, atol=1e-5)
    assert (one.length, two.length) == (5, 2)


@given(st.lists(st.integers(0, 7), min_size=1, max_size=4), st.integers(1, 4), st.data())
def test_rows_side_by_side_are_read_as_each_alone(lengths, more, data):
    """Rows of any lengths, then `more` tokens at once, then some rows alone and a token more."""
    prompts = [torch.randn(1, length, CONFIG.width) for length in lengths]
    following = torch.randn(len(lengths), more + 1, CONFIG.width)
    caches = [new_cache(length + 2) for length in lengths]
    for prompt, cache in zip(prompts, caches):
        if prompt.shape[1]:
            states(prompt, cache)
    both = KVCache.side_by_side(CONFIG, caches, max(lengths) + more + 1)
    assert (both.length, both.capacity) == (max(lengths), max(lengths) + more + 1)
    assert both.padding.tolist() == [max(lengths) - length for length in lengths]
    for row, padding in enumerate(both.padding.tolist()):  # whatever stands in it
        both.keys[:, row, :, :padding] = torch.randn(CONFIG.layers, 2, padding, 4)
        both.values[:, row, :, :padding] = torch.randn(CONFIG.layers, 2, padding, 4)
    read = states(following[:, :more], both)
    alone = [
        states(torch.cat((prompt, following[row : row + 1]), dim=1))[0]
        for row, prompt in enumerate(prompts)
    ]
    for row, length in enumerate(lengths):
        wanted = alone[row][length : length + more]
        torch.testing.assert_close(read[row], wanted, rtol=1e-4, atol=1e-5)
    kept = data.draw(st.lists(st.sampled_from(range(len(lengths))), min_size=1, unique=True))
    both.keep(kept)
    longest = max(lengths[row] for row in kept)
    assert (both.length, both.keys.shape[1]) == (longest + more, len(kept))
    assert both.padding.tolist() == [longest - lengths[row] for row in kept]
    last = states(following[kept, more:], both)
    for place, row in enumerate(kept):
        torch.testing.assert_close(last[place, 0], alone[row][-1], rtol=1e-4, atol=1e-5)


def test_side_by_side_each_row_is_a_copy_and_padding_is_zero():
    """What is masked is multiplied by 0, so what stands there must be a number."""
    caches = [filled_cache(2, capacity=5), filled_cache(4)]
    both = KVCache.side_by_side(CONFIG, caches, capacity=6)
    for ours, theirs in ((both.keys, "keys"), (both.values, "values")):
        assert ours.shape == (CONFIG.layers, 2, 2, 6, 4)
        short, long = (getattr(cache, theirs) for cache in caches)
        assert ours[:, 0, :, :2].eq(0).all()
        assert torch.equal(ours[:, 0, :, 2:4], short[:, 0, :, :2])
        assert torch.equal(ours[:, 1, :, :4], long[:, 0])
        short.zero_()
        long.zero_()
        assert ours[:, 0, :, 2:4].ne(0).all()
        assert ours[:, 1, :, :4].ne(0).all()


def test_rows_and_padding_that_are_not_kept_are_gone():
    cache = filled_cache(4, capacity=6, batch=3)
    cache.padding = torch.tensor([2, 0, 1])
    keys, values = cache.keys[..., :4, :].clone(), cache.values[..., :4, :].clone()
    cache.keep([0, 2])
    assert (cache.length, cache.capacity, cache.padding.tolist()) == (3, 5, [1, 0])
    more = torch.randn(2, 2, 2, 4)
    for layer in range(CONFIG.layers):
        all_keys, all_values = cache.append(layer, more, -more)
        assert torch.equal(all_keys, torch.cat((keys[layer][[0, 2], :, 1:], more), dim=2))
        assert torch.equal(all_values, torch.cat((values[layer][[0, 2], :, 1:], -more), dim=2))


def test_without_padding_rows_are_kept_as_they_are():
    cache = filled_cache(3, batch=3)
    keys = cache.keys.clone()
    cache.keep([2, 1])
    assert (cache.length, cache.padding) == (3, None)
    assert torch.equal(cache.keys, keys[:, [2, 1]])


@given(st.lists(st.integers(0, 5), min_size=1, max_size=3), st.integers(0, 4), st.integers(1, 4))
def test_a_token_attends_to_itself_and_to_its_own_row_before_it(padding, more, tokens):
    """And counts its place from the first token of its row."""
    seen = max(padding) + more
    cache = new_cache(seen + tokens, len(padding))
    cache.length, cache.padding = seen, torch.tensor(padding)
    positions, mask = cache.positions(tokens), cache.mask(tokens)
    assert positions.shape == (len(padding), tokens)
    assert mask.shape == (len(padding), 1, tokens, seen + tokens)
    for row, count in enumerate(padding):
        for token in range(tokens):
            column = seen + token
            assert mask[row, 0, token].nonzero()[:, 0].tolist() == [*range(count, column + 1)]
            assert positions[row, token] == column - count


@given(st.integers(0, 4), st.integers(1, 4))
def test_without_padding_a_mask_is_made_only_where_one_is_needed(seen, tokens):
    """Tokens that follow nothing are causal without one, and one token sees all before it."""
    cache = new_cache(seen + tokens)
    cache.length = seen
    assert cache.positions(tokens).tolist() == [[*range(seen, seen + tokens)]]
    mask = cache.mask(tokens)
    if seen == 0 or tokens == 1:
        assert mask is None
        return
    wanted = [
        [column <= seen + token for column in range(seen + tokens)] for token in range(tokens)
    ]
    assert mask.tolist() == [[wanted]]
