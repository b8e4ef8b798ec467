"""A batch answers each row as if it were alone, and forgets it once it has its answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import PUBLISHED, picture, teach_answer, tiny_model, user

from flashvl import FlashVL, FlashVLError
from flashvl.batch import pad_left, positions_and_mask
from flashvl.cache import KVCache
from flashvl.errors import ArgumentError, CheckpointError, ImageError, MessageError
from flashvl.generate import generate
from flashvl.sampling import Sampling

NANO = Path(__file__).parent.parent / "weights" / "nano"
ROUNDS = [*user("A circle?"), {"role": "assistant", "content": "Yes!"}, *user("是🔴?\nSure?")]
SYSTEM = [{"role": "system", "content": "Be brief."}, *user("")]
PAIRS = [
    (picture(40, 20), user()),
    (None, user("Who are you?")),
    (picture(12, 12), ROUNDS),
    (picture(20, 60), SYSTEM),
    (None, ROUNDS),
]


def one_by_one(model, pairs, **options) -> list[str]:
    return [model.chat(image, messages, **options) for image, messages in pairs]


def passes(model, pairs, **options) -> list[tuple[int, int]]:
    """Rows and tokens in the cache after each pass through the decoder, while a batch answers."""
    seen = []
    hook = model.decoder.register_forward_hook(
        lambda module, arguments, _: seen.append((arguments[0].shape[0], arguments[1].length))
    )
    model.chat_batch(pairs, **options)
    hook.remove()
    return seen


@pytest.mark.parametrize("kind", PUBLISHED)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("stops", [True, False])
def test_each_row_is_its_answer_alone(kind, seed, stops):
    model = tiny_model(kind, seed)
    if not stops:
        model.stop_ids = frozenset()
    answers = model.chat_batch(PAIRS, max_new_tokens=25)
    assert answers == one_by_one(model, PAIRS, max_new_tokens=25)
    assert len(set(answers)) > 1


@pytest.mark.parametrize(
    "assumptions",
    [
        {"stitching": "mean"},
        {"stitching": "none"},
        {"slice_markers": ("[PLACEHOLDER_0]", "[PLACEHOLDER_1]")},
    ],
)
def test_with_other_assumptions_too(assumptions):
    model = tiny_model(**assumptions)
    answers = model.chat_batch(PAIRS, max_new_tokens=12)
    assert answers == one_by_one(model, PAIRS, max_new_tokens=12)


def test_nano_answers_the_same_in_a_batch():
    nano = FlashVL.from_pretrained("nano", device="cpu", dtype="float32")
    files = sorted((NANO / "pictures").glob("*.png"))[:3]
    questions = ["What is in the picture?", "How many?", "What colour is the object? " * 3]
    pairs = [(file, user(question)) for file, question in zip(files, questions)]
    pairs += [(None, user("Who are you?")), (files[0], user("Describe it."))]
    answers = nano.chat_batch(pairs, max_new_tokens=24)
    assert answers == one_by_one(nano, pairs, max_new_tokens=24)
    assert len(set(answers)) > 1


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_a_seed_draws_in_each_row_what_chat_draws_with_it(model, penalty):
    options = {"do_sample": True, "temperature": 2.0, "top_p": 0.95, "top_k": 200}
    options |= {"repetition_penalty": penalty, "max_new_tokens": 15}
    answers = model.chat_batch(PAIRS, seed=3, **options)
    assert answers == one_by_one(model, PAIRS, seed=3, **options)
    assert answers != model.chat_batch(PAIRS, seed=4, **options)
    same = model.chat_batch([PAIRS[0]] * 3, seed=3, **options)
    assert same == [answers[0]] * 3


def test_the_repetition_penalty_counts_each_rows_own_tokens(model):
    answers = model.chat_batch(PAIRS, repetition_penalty=1e30, max_new_tokens=25)
    assert answers == one_by_one(model, PAIRS, repetition_penalty=1e30, max_new_tokens=25)


def test_a_row_that_has_its_answer_costs_nothing_more():
    model = tiny_model()
    read = stop_at_different_steps(model, PAIRS)
    assert len(set(read)) > 2
    seen = passes(model, PAIRS, max_new_tokens=20)
    wanted = [sum(count >= step for count in read) for step in range(max(read) + 1)]
    assert [rows for rows, _ in seen] == wanted  # the first pass reads the prompts
    answers = model.chat_batch(PAIRS, max_new_tokens=20)
    assert answers == one_by_one(model, PAIRS, max_new_tokens=20)


def stop_at_different_steps(model, pairs) -> list[int]:
    """Gives the model stop ids, one out of each row's answer of 20 tokens.

    Returns how many tokens of each answer are read: those before a stop, or all but the last.
    """
    whole = []
    for image, messages in pairs:
        ids, pixels = model.prepare(image, messages)
        with torch.inference_mode():
            grid = image and model.grid(image)
            embeddings = model.embed(ids, model.encode(pixels, grid))
        whole.append(list(generate(model.decoder, embeddings, ids, 20, Sampling(), ())))
    model.stop_ids = frozenset(ids[4 * place] for place, ids in enumerate(whole))
    stops = [[place for place, one in enumerate(ids) if one in model.stop_ids] for ids in whole]
    return [min(places, default=19) for places in stops]


def test_padding_leaves_with_the_row_that_made_it_necessary():
    model = tiny_model()
    model.stop_ids = frozenset()
    short, long = (None, user("!")), (None, user("!" * 440))
    tokens = [model.prepare(*pair)[0].shape[1] for pair in (short, long)]
    context = model.config.decoder.context
    room = context - tokens[1]
    assert 5 < room < 60
    seen = passes(model, [short, long], max_new_tokens=room + 5)
    both = [(2, tokens[1] + step) for step in range(room)]
    alone = [(1, tokens[0] + room + step) for step in range(5)]
    assert seen == both + alone


def test_the_context_ends_each_row_on_its_own():
    model = tiny_model()
    model.stop_ids = frozenset()
    pairs = [(None, user("!" * 400)), (None, user("!" * 380)), (picture(), user())]
    answers = model.chat_batch(pairs, max_new_tokens=10**9)
    assert answers == one_by_one(model, pairs, max_new_tokens=10**9)


def test_rows_that_all_end_at_once_and_rows_that_say_nothing():
    model = tiny_model()
    teach_answer(model, "Yes!")
    assert model.chat_batch(PAIRS) == ["Yes!"] * len(PAIRS)
    model.stop_ids = frozenset(range(320))
    assert model.chat_batch(PAIRS) == [""] * len(PAIRS)


def test_bfloat16_weights_answer_too():
    model = tiny_model().bfloat16()
    answers = model.chat_batch([PAIRS[0]] * 2, max_new_tokens=5)
    assert answers[0] == answers[1]
    assert model.chat_batch([PAIRS[0]], max_new_tokens=5) == answers[:1]


def test_an_empty_batch_and_a_batch_of_one(model):
    assert model.chat_batch([]) == []
    for pair in PAIRS:
        assert model.chat_batch([pair], max_new_tokens=5) == one_by_one(
            model, [pair], max_new_tokens=5
        )


def test_the_batch_may_be_any_iterable_and_is_left_as_it_was(model):
    pairs = [list(pair) for pair in PAIRS[:2]]
    answers = model.chat_batch(iter(pairs), max_new_tokens=3)
    assert answers == one_by_one(model, PAIRS[:2], max_new_tokens=3)
    assert pairs == [list(pair) for pair in PAIRS[:2]]


@pytest.mark.parametrize(
    ("row", "error", "said"),
    [
        (("no/such/file.png", user()), ImageError, "no/such/file.png"),
        ((None, []), MessageError, "no messages"),
        ((None, user("!" * 600)), MessageError, "context 512"),
        ((None,), ArgumentError, "pair"),
        ("ab", ArgumentError, "pair"),
        (None, ArgumentError, "pair"),
    ],
)
def test_an_error_names_its_row(model, row, error, said):
    with pytest.raises(error, match=rf"^row 2 of the batch: .*{said}"):
        model.chat_batch([PAIRS[1], row, PAIRS[1]])


def test_a_row_that_is_not_finite_is_named():
    model = tiny_model()
    with torch.no_grad():
        model.decoder.embedding.weight[model.tokenizer.encode("🔴")[-1]] = torch.nan
    with pytest.raises(CheckpointError, match=r"^row 2 of the batch: .*finite"):
        model.chat_batch([(None, user("a")), (None, user("🔴")), (None, user("b"))])


@pytest.mark.parametrize("pairs", [None, 5, object()])
def test_what_is_no_list_is_refused(model, pairs):
    with pytest.raises(ArgumentError, match="list of pairs"):
        model.chat_batch(pairs)


@pytest.mark.parametrize("options", [{"max_new_tokens": 0}, {"top_p": 2}, {"seed": -1}])
def test_options_are_checked_even_for_an_empty_batch(model, options):
    with pytest.raises(FlashVLError, match=next(iter(options))):
        model.chat_batch([], **options)


ROW = st.tuples(
    st.sampled_from([None, (40, 20), (20, 20), (16, 70)]),
    st.text("ab \n是🔴", max_size=30),
)


@settings(max_examples=25)
@given(
    st.lists(ROW, min_size=1, max_size=5),
    st.sets(st.integers(0, 319), max_size=60),
    st.integers(1, 12),
)
def test_any_batch_is_its_rows_alone(rows, stop_ids, max_new_tokens):
    model = tiny_model(seed=1)
    model.stop_ids = frozenset(stop_ids)
    pairs = [(size and picture(*size), user(text)) for size, text in rows]
    answers = model.chat_batch(pairs, max_new_tokens=max_new_tokens)
    assert answers == one_by_one(model, pairs, max_new_tokens=max_new_tokens)


@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(1, 4))
def test_states_of_padded_rows_are_those_of_the_rows_alone(model, lengths, more):
    """Prefill and then `more` tokens at once; what stands in the padding does not matter."""
    decoder, width = model.decoder, model.config.decoder.width
    prompts = [torch.randn(1, length, width) for length in lengths]
    following = torch.randn(len(lengths), more, width)
    x, padding = pad_left(prompts)  # (B, T, D), (B)
    assert padding.tolist() == [max(lengths) - length for length in lengths]
    noise = torch.arange(x.shape[1])[:, None] < padding[:, None, None]  # (B, T, 1)
    x = x + noise * torch.randn_like(x)
    cache = KVCache(decoder.config, x.shape[1] + more, batch=len(lengths))
    with torch.inference_mode():
        first = decoder(x, cache, *positions_and_mask(padding, 0, x.shape[1]))
        second = decoder(following, cache, *positions_and_mask(padding, x.shape[1], more))
        for row, prompt in enumerate(prompts):
            alone = decoder(torch.cat((prompt, following[row : row + 1]), dim=1))[0]
            own = torch.cat((first[row, padding[row] :], second[row]))
            torch.testing.assert_close(own, alone, rtol=1e-4, atol=1e-5)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=3), st.integers(0, 4), st.integers(1, 4))
def test_a_token_attends_to_itself_and_to_its_own_row_before_it(padding, seen, tokens):
    positions, mask = positions_and_mask(torch.tensor(padding), seen, tokens)
    assert mask.shape == (len(padding), 1, tokens, seen + tokens)
    for row, count in enumerate(padding):
        for token in range(tokens):
            column = seen + token
            wanted = {*range(count, column + 1), column}
            assert set(mask[row, 0, token].nonzero()[:, 0].tolist()) == wanted
            assert positions[row, token] == max(0, column - count)
