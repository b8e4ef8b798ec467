"""Answers token by token beside transformers' own generation, the cache, and sampling."""

from __future__ import annotations

import pytest
import torch
from checkpoints import KINDS, make_checkpoint, set_stop_ids
from hypothesis import given
from hypothesis import strategies as st
from photographs import photograph
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from flashvl import FlashVL
from flashvl.generation.generate import LAST, begin_decode, generate, read_prompt
from flashvl.generation.sampling import Sampling, keep_top_k, keep_top_p, next_token, penalize
from flashvl.model.cache import KVCache
from flashvl.tools.parity import difference

CONVERSATION = [
    {"role": "user", "content": "What is in this picture?"},
    {"role": "assistant", "content": "A red circle. 红色的圆形 🙂"},
    {"role": "user", "content": "How many?"},
]
FORMS = {
    "one file": {},
    "shards, tied head": {"shards": 2, "tied": True, "tokenizer_form": "parts"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["chelsea.png", "astronaut.png", None])
def test_64_greedy_tokens(kind, form, name, tmp_path):
    """Through `generate` by ids, and through `chat` by text, with and without a picture."""
    reference = make_checkpoint(tmp_path, kind=kind, seed=18, **FORMS[form])
    set_stop_ids(tmp_path, [reference.decoder.config.vocab_size])  # never comes
    flash = FlashVL.from_pretrained(tmp_path, device="cpu", dtype="float32")
    image = name and photograph(name)
    embeddings = reference.prompt(image, CONVERSATION)
    expected = reference.generate(embeddings, 64, stop=False)
    assert len(expected) == 64
    assert len(set(expected)) > 4  # no endless repetition that hides a mistake

    sampling = Sampling(max_new_tokens=64)
    row = read_prompt(flash.model, flash.prepare(image, CONVERSATION), sampling)
    steps = generate(flash.model, [row], sampling, stop_ids=())
    assert [row.ids[-1] for _ in steps] == row.ids == expected
    text = reference.tokenizer.decode(expected, skip_special_tokens=True)
    assert flash.chat(image, CONVERSATION, max_new_tokens=64) == text
    assert "".join(flash.stream(image, CONVERSATION, max_new_tokens=64)) == text


def test_generation_ends_at_a_stop_id(tmp_path):
    """generation_config.json says where; the stop token itself is not in the answer."""
    reference = make_checkpoint(tmp_path, seed=11)
    image = photograph("text.png")
    answer = reference.generate(reference.prompt(image, CONVERSATION), 64, stop=False)
    at = next(n for n in range(8, 64) if answer[n] not in answer[:n])
    reference.stop_ids = [answer[at], 0]
    set_stop_ids(tmp_path, reference.stop_ids)
    flash = FlashVL.from_pretrained(tmp_path, device="cpu", dtype="float32")
    expected = reference.tokenizer.decode(answer[:at], skip_special_tokens=True)
    assert reference.answer(image, CONVERSATION, 64) == expected
    assert flash.chat(image, CONVERSATION, max_new_tokens=64) == expected


@pytest.mark.parametrize("stitching", ["mean", "none"])
def test_answers_of_the_other_stitching_modes(stitching, tmp_path):
    reference = make_checkpoint(tmp_path, seed=12, assumptions={"stitching": stitching})
    flash = FlashVL.from_pretrained(tmp_path, device="cpu", dtype="float32")
    image = photograph("chelsea.png")
    expected = reference.answer(image, CONVERSATION, 32)
    assert flash.chat(image, CONVERSATION, max_new_tokens=32) == expected


@pytest.fixture(scope="module", params=[False, True], ids=["own head", "tied head"])
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    reference = make_checkpoint(folder, seed=13, tied=request.param)
    return FlashVL.from_pretrained(folder, device="cpu", dtype="float32"), reference


@pytest.mark.parametrize("parts", [(40,), (39, 1), (1,) * 40, (20, 7, 1, 12), (1, 39), (30, 10)])
@torch.inference_mode()
def test_the_cache_gives_what_the_full_pass_gives(pair, parts):
    """The same tokens in parts of any size: prefill, single steps, several at once after it."""
    flash, reference = pair
    torch.manual_seed(0)
    ids = torch.randint(0, 300, (1, 40))
    expected = reference.logits(reference.embed(ids))
    cache = KVCache(flash.config.decoder, capacity=45)
    logits = torch.cat([flash.model(part, cache=cache) for part in ids.split(parts, dim=1)], dim=1)
    assert cache.length == 40
    assert difference("logits", logits, expected).relative <= 1e-5
    assert difference("logits", logits, flash.model(ids)).relative <= 1e-5


@torch.inference_mode()
def test_prefill_and_steps_give_the_full_pass(pair):
    """The steps of generation, a batch of two, beside one pass over all tokens."""
    flash, reference = pair
    torch.manual_seed(1)
    ids = torch.randint(0, 300, (2, 30))
    table = reference.decoder.get_input_embeddings()
    expected = reference.logits(table(ids))
    cache = KVCache(flash.config.decoder, capacity=30, batch=2)
    logits = [flash.model(ids[:, :20], cache=cache, logits_at=LAST)[:, -1]]
    step = begin_decode(flash.model, cache)
    logits += [step(ids[:, n : n + 1]) for n in range(20, 30)]
    assert difference("logits", torch.stack(logits, 1), expected[:, 19:]).relative <= 1e-5


shapes = st.tuples(st.integers(1, 3), st.integers(2, 50))


def random_logits(seed: int, shape: tuple[int, int], ties: bool) -> torch.Tensor:
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 5
    return logits.round() if ties else logits


@given(st.integers(0, 10**6), shapes, st.booleans(), st.integers(1, 60))
def test_top_k(seed, shape, ties, k):
    logits = random_logits(seed, shape, ties)
    assert torch.equal(keep_top_k(logits, k), TopKLogitsWarper(k)(None, logits))


@given(st.integers(0, 10**6), shapes, st.booleans(), st.floats(0.01, 0.999))
def test_top_p(seed, shape, ties, p):
    logits = random_logits(seed, shape, ties)
    assert torch.equal(keep_top_p(logits, p), TopPLogitsWarper(p)(None, logits))


@pytest.mark.parametrize("p", [0.25, 0.5, 0.75])
def test_top_p_that_is_reached_exactly(p):
    """Four equal tokens: their sums are exactly 1/4, 1/2 and 3/4."""
    logits = torch.zeros(1, 4)
    kept = keep_top_p(logits, p)
    assert torch.equal(kept, TopPLogitsWarper(p)(None, logits))
    assert kept.isfinite().sum() == 4 * p


@given(st.integers(0, 10**6), shapes, st.floats(0.1, 5.0), st.integers(1, 20))
def test_repetition_penalty(seed, shape, penalty, length):
    logits = random_logits(seed, shape, ties=False)
    generator = torch.Generator().manual_seed(seed)
    seen = torch.randint(0, shape[1], (shape[0], length), generator=generator)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(seen, logits.clone())
    assert torch.equal(penalize(logits, seen, penalty), expected)


@given(st.integers(0, 10**6), st.floats(0.1, 3.0), st.integers(0, 40), st.floats(0.1, 1.0))
def test_next_token_draws_from_the_distribution_of_transformers(seed, temperature, k, p):
    """All of it in transformers' order; the same random numbers give the same token."""
    logits = random_logits(seed, (1, 40), ties=False)
    seen = torch.tensor([[3, 7, 7]])
    how = Sampling(True, temperature=temperature, top_p=p, top_k=k, repetition_penalty=1.3)
    ours = next_token(logits, seen, how, torch.Generator().manual_seed(seed))
    theirs = RepetitionPenaltyLogitsProcessor(1.3)(seen, logits.clone())
    theirs = TemperatureLogitsWarper(temperature)(None, theirs)
    theirs = TopKLogitsWarper(k)(None, theirs) if k else theirs
    theirs = TopPLogitsWarper(p)(None, theirs) if p < 1 else theirs
    drawn = torch.multinomial(theirs.softmax(-1), 1, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(ours, drawn)


@pytest.mark.parametrize(
    "how",
    [
        {"temperature": 0.7},
        {"temperature": 1.5, "top_k": 12},
        {"top_p": 0.8},
        {"temperature": 0.9, "top_k": 50, "top_p": 0.9},
    ],
)
def test_sampled_answers(pair, how):
    """`chat(do_sample=True, seed=...)` draws the tokens that transformers draws from that seed."""
    flash, reference = pair
    image = photograph("coffee.png")
    for seed in (0, 1):
        torch.manual_seed(seed)
        theirs = {"top_k": 0, "do_sample": True} | how
        expected = reference.answer(image, CONVERSATION, 32, **theirs)
        ours = flash.chat(image, CONVERSATION, do_sample=True, max_new_tokens=32, seed=seed, **how)
        assert ours == expected


@pytest.mark.parametrize("penalty", [1.1, 1.5, 0.8])
def test_greedy_with_a_repetition_penalty(pair, penalty):
    """Of a prompt of text alone transformers counts the prompt's tokens as seen, and so do we."""
    flash, reference = pair
    input_ids = reference.input_ids(CONVERSATION)
    with torch.no_grad():
        ids = reference.decoder.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=48,
            do_sample=False,
            repetition_penalty=penalty,
            eos_token_id=reference.stop_ids,
            pad_token_id=0,
        )[0, input_ids.shape[1] :]
    expected = reference.tokenizer.decode(ids, skip_special_tokens=True)
    answer = flash.chat(None, CONVERSATION, max_new_tokens=48, repetition_penalty=penalty)
    assert answer == expected
