"""A batch answers each row as if it were alone, and forgets it once it has its answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import PUBLISHED, picture, teach_answer, tiny_model, user

from flashvl import FlashVL, FlashVLError
from flashvl.errors import ArgumentError, CheckpointError, ImageError, MessageError
from flashvl.generation.generate import generate, read_prompt
from flashvl.generation.sampling import Sampling

NANO = Path(__file__).parents[2] / "weights" / "nano"
ROUNDS = [*user("A circle?"), {"role": "assistant", "content": "Yes!"}, *user("是🔴?\nSure?")]
SYSTEM = [{"role": "system", "content": "Be brief."}, *user("")]
PAIRS = [
    (picture(40, 20), user()),
    (None, user("Who are you?")),
    (picture(12, 12), ROUNDS),
    (picture(20, 60), SYSTEM),
    (None, ROUNDS),
]


def one_by_one(flash, pairs, **options) -> list[str]:
    return [flash.chat(image, messages, **options) for image, messages in pairs]


def passes(flash, pairs, **options) -> list[tuple[int, int]]:
    """Rows and tokens in the cache after each pass through the decoder, while a batch answers."""
    seen = []
    hook = flash.model.decoder.register_forward_hook(
        lambda _, inputs, output: seen.append((output.shape[0], inputs[3].length))
    )
    flash.chat_batch(pairs, **options)
    hook.remove()
    return seen


@pytest.mark.parametrize("kind", PUBLISHED)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("stops", [True, False])
def test_each_row_is_its_answer_alone(kind, seed, stops):
    flash = tiny_model(kind, seed)
    if not stops:
        flash.stop_ids = frozenset()
    answers = flash.chat_batch(PAIRS, max_new_tokens=25)
    assert answers == one_by_one(flash, PAIRS, max_new_tokens=25)
    assert len(set(answers)) > 1


@pytest.mark.parametrize(
    "assumptions",
    [
        {"stitching": "mean"},
        {"stitching": "none"},
        {"slice_markers": ("[PLACEHOLDER_0]", "[PLACEHOLDER_1]")},
        {"slice_markers": "picture", "image_place": "text", "system": False},
        {"stitching": "pool", "thumbnail": "first", "tile_order": "columns"},
    ],
)
def test_with_other_assumptions_too(assumptions):
    flash = tiny_model(**assumptions)
    answers = flash.chat_batch(PAIRS, max_new_tokens=12)
    assert answers == one_by_one(flash, PAIRS, max_new_tokens=12)


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
def test_a_seed_draws_in_each_row_what_chat_draws_with_it(flash, penalty):
    options = {"do_sample": True, "temperature": 2.0, "top_p": 0.95, "top_k": 200}
    options |= {"repetition_penalty": penalty, "max_new_tokens": 15}
    answers = flash.chat_batch(PAIRS, seed=3, **options)
    assert answers == one_by_one(flash, PAIRS, seed=3, **options)
    assert answers != flash.chat_batch(PAIRS, seed=4, **options)
    same = flash.chat_batch([PAIRS[0]] * 3, seed=3, **options)
    assert same == [answers[0]] * 3


def test_the_repetition_penalty_counts_each_rows_own_tokens(flash):
    answers = flash.chat_batch(PAIRS, repetition_penalty=1e30, max_new_tokens=25)
    assert answers == one_by_one(flash, PAIRS, repetition_penalty=1e30, max_new_tokens=25)


def test_a_row_that_has_its_answer_costs_nothing_more():
    flash = tiny_model()
    read = stop_at_different_steps(flash, PAIRS)
    assert len(set(read)) > 2
    seen = passes(flash, PAIRS, max_new_tokens=20)
    alone = [1] * len(PAIRS)  # each prompt is read by itself
    together = [sum(count >= step for count in read) for step in range(1, max(read) + 1)]
    assert [rows for rows, _ in seen] == alone + together
    answers = flash.chat_batch(PAIRS, max_new_tokens=20)
    assert answers == one_by_one(flash, PAIRS, max_new_tokens=20)


def stop_at_different_steps(flash, pairs) -> list[int]:
    """Gives the model stop ids, one out of each row's answer of 20 tokens.

    Returns how many tokens of each answer are read: those before a stop, or all but the last.
    """
    whole, sampling = [], Sampling(max_new_tokens=20)
    for pair in pairs:
        row = read_prompt(flash.model, flash.prepare(*pair), sampling)
        for _ in generate(flash.model, [row], sampling, ()):
            pass
        whole.append(row.ids)
    flash.stop_ids = frozenset(ids[4 * place] for place, ids in enumerate(whole))
    stops = [[place for place, one in enumerate(ids) if one in flash.stop_ids] for ids in whole]
    return [min(places, default=19) for places in stops]


def test_padding_leaves_with_the_row_that_made_it_necessary():
    flash = tiny_model()
    flash.stop_ids = frozenset()
    short, long = (None, user("!")), (None, user("!" * 440))
    tokens = [flash.prepare(*pair).input_ids.shape[1] for pair in (short, long)]
    room = flash.config.decoder.context - tokens[1]
    assert 5 < room < 60
    seen = passes(flash, [short, long], max_new_tokens=room + 5)
    prompts = [(1, tokens[0]), (1, tokens[1])]
    both = [(2, tokens[1] + step) for step in range(1, room)]
    alone = [(1, tokens[0] + room + step) for step in range(5)]
    assert seen == prompts + both + alone


def test_the_context_ends_each_row_on_its_own():
    flash = tiny_model()
    flash.stop_ids = frozenset()
    pairs = [(None, user("!" * 400)), (None, user("!" * 380)), (picture(), user())]
    answers = flash.chat_batch(pairs, max_new_tokens=10**9)
    assert answers == one_by_one(flash, pairs, max_new_tokens=10**9)


def test_rows_that_all_end_at_once_and_rows_that_say_nothing():
    flash = tiny_model()
    teach_answer(flash, "Yes!")
    assert flash.chat_batch(PAIRS) == ["Yes!"] * len(PAIRS)
    flash.stop_ids = frozenset(range(320))
    assert flash.chat_batch(PAIRS) == [""] * len(PAIRS)


def test_bfloat16_weights_answer_too():
    flash = tiny_model()
    flash.model.bfloat16()
    answers = flash.chat_batch([PAIRS[0]] * 2, max_new_tokens=5)
    assert answers[0] == answers[1]
    assert flash.chat_batch([PAIRS[0]], max_new_tokens=5) == answers[:1]


def test_an_empty_batch_and_a_batch_of_one(flash):
    assert flash.chat_batch([]) == []
    for pair in PAIRS:
        assert flash.chat_batch([pair], max_new_tokens=5) == one_by_one(
            flash, [pair], max_new_tokens=5
        )


def test_the_batch_may_be_any_iterable_and_is_left_as_it_was(flash):
    pairs = [list(pair) for pair in PAIRS[:2]]
    answers = flash.chat_batch(iter(pairs), max_new_tokens=3)
    assert answers == one_by_one(flash, PAIRS[:2], max_new_tokens=3)
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
def test_an_error_names_its_row(flash, row, error, said):
    with pytest.raises(error, match=rf"^row 2 of the batch: .*{said}"):
        flash.chat_batch([PAIRS[1], row, PAIRS[1]])


def test_a_row_that_is_not_finite_is_named():
    flash = tiny_model()
    with torch.no_grad():
        token_id = flash.tokenizer.encode("🔴")[-1]
        flash.model.decoder.embedding.weight[token_id] = torch.nan
    with pytest.raises(CheckpointError, match=r"^row 2 of the batch: .*finite"):
        flash.chat_batch([(None, user("a")), (None, user("🔴")), (None, user("b"))])


@pytest.mark.parametrize("pairs", [None, 5, object()])
def test_what_is_no_list_is_refused(flash, pairs):
    with pytest.raises(ArgumentError, match="list of pairs"):
        flash.chat_batch(pairs)


@pytest.mark.parametrize("options", [{"max_new_tokens": 0}, {"top_p": 2}, {"seed": -1}])
def test_options_are_checked_even_for_an_empty_batch(flash, options):
    with pytest.raises(FlashVLError, match=next(iter(options))):
        flash.chat_batch([], **options)


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
    flash = tiny_model(seed=1)
    flash.stop_ids = frozenset(stop_ids)
    pairs = [(size and picture(*size), user(text)) for size, text in rows]
    answers = flash.chat_batch(pairs, max_new_tokens=max_new_tokens)
    assert answers == one_by_one(flash, pairs, max_new_tokens=max_new_tokens)
