"""Rows side by side compute what rows of their own compute, on any number of processes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import encoded, picture, tiny_model, tokenizer_of_line_breaks, user

from flashvl import FlashVL
from flashvl.errors import DataError
from flashvl.finetuning.batches import Batches, Text, blank_text, lay, pack, read_texts
from flashvl.finetuning.data import Checked, Sample, check_samples
from flashvl.input.prompt import IGNORED
from flashvl.training.processes import ALONE, Processes


@pytest.fixture(scope="module")
def flash() -> FlashVL:
    return tiny_model()


@pytest.fixture(scope="module")
def checked(flash, tmp_path_factory) -> list[Checked]:
    """Twelve samples of many lengths; every third is without a picture."""
    folder = tmp_path_factory.mktemp("pictures")
    samples = []
    for number in range(12):
        file = folder / f"{number}.png"
        file.write_bytes(encoded(picture(20 + 9 * number, 30), "PNG"))
        rounds = [*user("What? " * number), {"role": "assistant", "content": "a b" * (number % 4)}]
        image = None if number % 3 == 2 else file
        samples.append(Sample(f"x, line {number}", image, rounds * (1 + number % 2)))
    return check_samples(samples, flash.processor, False, ALONE)


def summed_loss(flash: FlashVL, texts: list[Text]) -> torch.Tensor:
    batch = lay(texts)
    logits = flash.model(
        batch.input_ids,
        batch.pixels,
        batch.grids,
        positions=batch.positions,
        mask=batch.mask,
        logits_at=batch.before_answer,
    )
    answers = batch.labels[batch.is_answer]
    return torch.nn.functional.cross_entropy(logits, answers, reduction="sum")


def gradients(flash: FlashVL, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    flash.model.zero_grad()
    loss.backward()
    return {
        name: one.grad.clone()
        for name, one in flash.model.named_parameters()
        if one.grad is not None
    }


@given(st.lists(st.integers(1, 60), min_size=1, max_size=20))
def test_all_texts_are_packed_into_rows_no_longer_than_the_longest(lengths):
    rows = pack(lengths)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    assert all(sum(lengths[number] for number in row) <= max(lengths) for row in rows)
    assert len(rows) <= min(len(lengths), 2 * math.ceil(sum(lengths) / max(lengths)))


def test_side_by_side_the_loss_and_its_gradients_are_those_of_rows_of_their_own(flash, checked):
    texts = [text for one in checked for text in read_texts(one, flash.processor)]
    batch = lay(texts)
    assert batch.mask is not None
    assert len(batch.input_ids) < len(texts)
    together = summed_loss(flash, texts)
    of_all = gradients(flash, together)
    alone = sum(summed_loss(flash, [text]) for text in texts)
    torch.testing.assert_close(together, alone)
    for name, one in gradients(flash, alone).items():
        torch.testing.assert_close(of_all[name], one, atol=1e-4, rtol=1e-4)


def test_changing_one_text_changes_nothing_for_its_neighbor(flash, checked):
    short = sorted(checked, key=lambda one: one.lengths)[:2]
    one, other = (read_texts(each, flash.processor)[0] for each in short)
    longest = read_texts(max(checked, key=lambda one: one.lengths), flash.processor)[0]
    silent = Text(longest.ids, [IGNORED] * len(longest.ids), longest.pixels, longest.grids)
    changed = Text([1 + token if token >= 0 else token for token in other.ids], other.labels)
    changed = Text(changed.ids, [IGNORED] * len(changed.ids), other.pixels, other.grids)
    unchanged = Text(other.ids, changed.labels, other.pixels, other.grids)
    batches = [[one, silent, unchanged], [one, silent, changed]]
    assert all(lay(texts).mask is not None for texts in batches)
    (before, its), (after, others) = (
        (loss := summed_loss(flash, texts), gradients(flash, loss)) for texts in batches
    )
    assert torch.equal(before, after)
    for name, gradient in its.items():
        assert torch.equal(gradient, others[name]), name


def test_nothing_is_padded_by_accident(flash, checked):
    texts = [text for one in checked for text in read_texts(one, flash.processor)]
    lengths = [len(text.ids) for text in texts]
    batch = lay(texts)
    before = 1 - sum(lengths) / (len(lengths) * max(lengths))
    after = 1 - batch.tokens / batch.labels.numel()
    assert after < before / 3
    assert batch.tokens == sum(lengths)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2, 8])
def test_a_step_is_the_same_on_any_number_of_processes(flash, checked, batch, count):
    data = [
        Batches(checked, flash.processor, 8, batch, Processes(rank, count), True, 5, 3 * 12)
        for rank in range(count)
    ]
    taken = []
    for number in range(5):  # three epochs; the last step has four samples left
        steps = [its[number] for its in data]
        assert len({len(step.parts) for step in steps}) == 1
        assert all(part.grids for step in steps for part in step.parts)  # a tile in each
        taken.append(sum(step.answers for step in steps))
        wanted = [checked[place] for place in data[0].numbers(number)]
        texts = [text for one in wanted for text in read_texts(one, flash.processor)]
        assert taken[-1] == sum(label != IGNORED for text in texts for label in text.labels)
    places = [place for number in range(5) for place in data[0].numbers(number)]
    assert sorted(places) == sorted([*range(12)] * 3)
    assert [sorted(places[start : start + 12]) for start in (0, 12, 24)] == [[*range(12)]] * 3
    assert places[:12] != places[12:24]


def test_a_tile_that_nobody_asks_about_changes_no_gradient(flash, checked):
    texts = read_texts(checked[2], flash.processor)
    plain = gradients(flash, summed_loss(flash, texts))
    blank = gradients(flash, summed_loss(flash, [*texts, blank_text(flash.processor)]))
    assert blank.keys() > plain.keys()
    for name, one in blank.items():
        wanted = plain.get(name, torch.zeros_like(one))
        torch.testing.assert_close(one, wanted, atol=1e-6, rtol=1e-5)


def test_a_sample_of_two_rows_is_learned_whole(tmp_path):
    flash = FlashVL(tiny_model().model, tokenizer_of_line_breaks(), [])
    messages = [*user("a"), {"role": "assistant", "content": "\nb"}]
    messages += [*user("c"), {"role": "assistant", "content": "d"}]
    (tmp_path / "a.png").write_bytes(encoded(picture(), "PNG"))
    (one,) = check_samples(
        [Sample("x", tmp_path / "a.png", messages)], flash.processor, False, ALONE
    )
    texts = read_texts(one, flash.processor)
    assert tuple(len(text.ids) for text in texts) == one.lengths
    ids, labels, pixels, grids = flash.training_example(tmp_path / "a.png", messages)
    logits = flash.model(ids, pixels, grids)
    wanted = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
    )
    torch.testing.assert_close(summed_loss(flash, texts), wanted)


def test_a_picture_that_is_gone_is_named_with_its_line(flash, checked, tmp_path):
    one = checked[0]
    gone = Checked(Sample("x, line 7", tmp_path / "none.png", one.sample.messages), one.lengths)
    with pytest.raises(DataError, match=r"^x, line 7: there is no file"):
        read_texts(gone, flash.processor)
