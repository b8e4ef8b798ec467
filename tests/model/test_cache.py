"""The cache holds what was stored, shows the filled part alone and copies nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashvl.cache import KVCache
from flashvl.errors import ArgumentError


def new_cache(model, capacity: int = 10, batch: int = 1) -> KVCache:
    """Filled with NaN, so that whatever reads beyond the filled part is seen."""
    cache = KVCache(model.config.decoder, capacity, batch)
    cache.keys.fill_(torch.nan)
    cache.values.fill_(torch.nan)
    return cache


def test_appended_tokens_come_back_in_order_without_a_copy(model):
    cache = new_cache(model, batch=2)
    keys, values = torch.randn(2, 2, 7, 4), torch.randn(2, 2, 7, 4)  # (B, K, T, head width)
    for start, end in ((0, 3), (3, 4), (4, 7)):
        for layer in range(model.config.decoder.layers):
            scale = layer + 1
            all_keys, all_values = cache.append(
                layer, scale * keys[:, :, start:end], scale * values[:, :, start:end]
            )
            assert torch.equal(all_keys, scale * keys[:, :, :end])
            assert torch.equal(all_values, scale * values[:, :, :end])
            assert all_keys.untyped_storage().data_ptr() == cache.keys.data_ptr()
        cache.advance(end - start)
    assert cache.length == 7


def test_a_full_cache_refuses_more(model):
    cache = new_cache(model, capacity=3)
    tokens = torch.zeros(1, 2, 3, 4)
    cache.append(0, tokens, tokens)
    cache.advance(3)
    with pytest.raises(ArgumentError, match="holds 3 tokens, 4"):
        cache.append(0, tokens[:, :, :1], tokens[:, :, :1])


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 2))
def test_any_cut_of_the_tokens_gives_the_states_of_the_whole(model, cuts, batch):
    embeddings = torch.randn(batch, sum(cuts), model.config.decoder.width)
    cache = new_cache(model, sum(cuts) + 3, batch)
    with torch.inference_mode():
        whole = model.decoder(embeddings)
        parts = [model.decoder(part, cache) for part in embeddings.split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)


@given(st.integers(1, 6), st.integers(0, 6), st.integers(1, 4), st.integers(0, 9))
def test_after_rolling_back_and_growing_it_goes_on_from_there(model, first, kept, then, room):
    """Whatever was read beyond what is kept leaves nothing behind."""
    kept = min(kept, first)
    embeddings = torch.randn(1, first, model.config.decoder.width)
    other = torch.randn(1, then, model.config.decoder.width)
    cache = new_cache(model, first)
    with torch.inference_mode():
        model.decoder(embeddings, cache)
        cache.roll_back(kept)
        capacity = max(first, kept + then + room)
        cache.reserve(kept + then + room)
        assert (cache.length, cache.capacity) == (kept, capacity)
        states = model.decoder(other, cache)
        whole = model.decoder(torch.cat((embeddings[:, :kept], other), dim=1))
    torch.testing.assert_close(states, whole[:, kept:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [-1, 4])
def test_it_cannot_be_rolled_back_to_what_it_does_not_have(model, length):
    cache = new_cache(model)
    cache.advance(3)
    with pytest.raises(ArgumentError, match=f"has 3 tokens, {length}"):
        cache.roll_back(length)


def test_with_room_enough_nothing_is_copied(model):
    cache = new_cache(model, capacity=5)
    before = cache.keys
    cache.reserve(5)
    cache.reserve(2)
    assert cache.keys is before
    assert cache.capacity == 5


def test_rows_and_tokens_that_are_not_kept_are_gone(model):
    cache = new_cache(model, capacity=6, batch=3)
    keys, values = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)  # (B, K, T, head width)
    for layer in range(model.config.decoder.layers):
        cache.append(layer, keys, values)
    cache.advance(4)
    cache.keep([0, 2], start=1)
    assert (cache.length, cache.capacity, cache.keys.shape[1]) == (3, 5, 2)
    more = torch.randn(2, 2, 2, 4)
    for layer in range(model.config.decoder.layers):
        all_keys, all_values = cache.append(layer, more, -more)
        assert torch.equal(all_keys, torch.cat((keys[[0, 2], :, 1:], more), dim=2))
        assert torch.equal(all_values, torch.cat((values[[0, 2], :, 1:], -more), dim=2))


def test_two_caches_know_nothing_of_each_other(model):
    embeddings = torch.randn(2, 5, model.config.decoder.width)
    one, two = new_cache(model), new_cache(model)
    with torch.inference_mode():
        model.decoder(embeddings[:1, :4], one)
        model.decoder(embeddings[1:, :2], two)
        last = model.decoder(embeddings[:1, 4:], one)
        whole = model.decoder(embeddings[:1])
    torch.testing.assert_close(last, whole[:, 4:], rtol=1e-4, atol=1e-5)
    assert (one.length, two.length) == (5, 2)
