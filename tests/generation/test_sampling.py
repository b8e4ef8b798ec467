"""How the next token is chosen: refused values, plain-loop definitions, seeds."""

from __future__ import annotations

import dataclasses
import math
from typing import get_type_hints

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashvl.errors import ArgumentError
from flashvl.generation.sampling import (
    Sampling,
    SamplingOptions,
    keep_top_k,
    keep_top_p,
    next_token,
    penalize,
)

NAN, INFINITY = float("nan"), float("inf")
NOTHING_SEEN = torch.empty(1, 0, dtype=torch.long)
LOGITS = torch.linspace(-2, 2, 50)[None]  # (1, 50)

REFUSED = [
    *(("temperature", value) for value in (0, -1, NAN, INFINITY, "hot", None, True, 10**400)),
    *(("temperature", value) for value in (1e-40, 1e-320, 1e300)),
    *(("top_p", value) for value in (0, -0.1, 1.1, NAN, INFINITY, "0.9", None, True, 10**400)),
    *(("top_k", value) for value in (-1, 1.5, 5.0, NAN, "5", None, True)),
    *(("repetition_penalty", value) for value in (0, -1, NAN, INFINITY, "1", None, 1e-320, 1e300)),
    *(("seed", value) for value in (-1, 1.5, "1", True, 2**63)),
    *(("max_new_tokens", value) for value in (0, -1, 1.0, "5", None, True)),
]


@pytest.mark.parametrize(("name", "value"), REFUSED, ids=lambda value: str(value)[:20])
def test_values_that_make_no_sense_are_refused_by_name(name, value):
    with pytest.raises(ArgumentError, match=f"^{name} must be"):
        Sampling(**{name: value})


def test_the_options_of_a_call_are_the_fields_of_a_sampling():
    """In one order, of the same types, and each of them may be left out."""
    options = get_type_hints(SamplingOptions)
    assert list(options) == [field.name for field in dataclasses.fields(Sampling)]
    assert options == get_type_hints(Sampling)
    assert SamplingOptions.__required_keys__ == frozenset()
    defaults = dataclasses.asdict(Sampling())
    assert Sampling(**defaults) == Sampling()


def draw(sampling: Sampling, count: int = 40, logits=LOGITS) -> list[int]:
    generator = torch.Generator().manual_seed(sampling.seed or 0)
    return [next_token(logits, NOTHING_SEEN, sampling, generator).item() for _ in range(count)]


def test_a_seed_repeats_and_another_differs():
    first = draw(Sampling(do_sample=True, seed=1))
    assert draw(Sampling(do_sample=True, seed=1)) == first
    assert draw(Sampling(do_sample=True, seed=2)) != first
    assert len(set(first)) > 5


def test_without_sampling_the_largest_is_taken_whatever_the_other_values():
    assert draw(Sampling(temperature=0.1, top_k=3, top_p=0.5, seed=3), 5) == [49] * 5


@pytest.mark.parametrize("temperature", [1e-30, 1e-10, 1e-3])
def test_a_tiny_temperature_is_greedy_and_does_not_overflow(temperature):
    sampling = Sampling(do_sample=True, temperature=temperature)
    assert draw(sampling, logits=LOGITS * 1e6) == [49] * 40


@pytest.mark.parametrize("temperature", [1e30, 10**29])
def test_a_huge_temperature_makes_all_tokens_equal(temperature):
    assert len(set(draw(Sampling(do_sample=True, temperature=temperature), 300))) > 45


@pytest.mark.parametrize("penalty", [1e-30, 1e30, 10**29])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_extreme_penalty_does_not_overflow(penalty, dtype):
    seen = torch.arange(50)[None]
    sampling = Sampling(do_sample=True, repetition_penalty=penalty)
    token = next_token(LOGITS.to(dtype), seen, sampling, torch.Generator())
    assert 0 <= token.item() < 50


def test_more_than_the_vocabulary_keeps_all():
    assert torch.equal(keep_top_k(LOGITS, 10**30), LOGITS)


@pytest.mark.parametrize(("option", "allowed"), [({"top_k": 3}, 3), ({"top_p": 0.2}, 3)])
def test_what_is_dropped_is_never_drawn(option, allowed):
    assert set(draw(Sampling(do_sample=True, **option), 300)) == set(range(50 - allowed, 50))


def test_the_temperature_comes_before_top_p():
    # At temperature 1 the best token has 0.73 of the probability, at 4 it has 0.56.
    logits = torch.tensor([[1.0, 0.0]])
    kept = {
        temperature: set(
            draw(Sampling(True, temperature=temperature, top_p=0.6), 100, logits=logits)
        )
        for temperature in (1.0, 4.0)
    }
    assert kept == {1.0: {0}, 4.0: {0, 1}}


rows = st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=12, unique=True)


@given(rows, st.integers(1, 14))
def test_top_k_is_that_of_a_plain_loop(row, k):
    kept = keep_top_k(torch.tensor([row]), k)[0].tolist()
    best = sorted(row)[-k:]
    assert kept == [value if value in best else -math.inf for value in row]


@given(rows, st.floats(0.01, 0.99))
def test_top_p_keeps_the_fewest_that_reach_it(row, p):
    kept = keep_top_p(torch.tensor([row]), p)[0]
    probabilities = torch.tensor([row], dtype=torch.float64).softmax(-1)[0]
    chosen = kept > -math.inf
    assert kept[chosen].tolist() == torch.tensor(row)[chosen].tolist()
    assert probabilities[chosen].sum() >= p - 1e-5
    if chosen.sum() > 1:  # without the unlikeliest of them it would be too little
        assert probabilities[chosen].sum() - probabilities[chosen].min() <= p + 1e-5
    assert (~chosen).sum() == 0 or probabilities[chosen].min() >= probabilities[~chosen].max()


def test_what_reaches_top_p_exactly_is_enough():
    kept = keep_top_p(torch.zeros(1, 4), 0.5)
    assert (kept > -math.inf).sum() == 2


@given(rows, st.lists(st.integers(0, 11), max_size=20), st.floats(0.5, 2))
def test_the_penalty_is_that_of_a_plain_loop(row, seen, penalty):
    seen = [token for token in seen if token < len(row)]
    result = penalize(torch.tensor([row]), torch.tensor([seen], dtype=torch.long), penalty)
    wanted = [
        (value * penalty if value < 0 else value / penalty) if token in seen else value
        for token, value in enumerate(row)
    ]
    torch.testing.assert_close(result, torch.tensor([wanted]))
