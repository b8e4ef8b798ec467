"""Rounds about one picture: the answers of `chat` with the whole list, without reading it again."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier, Thread

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import picture, teach_answer, tiny_model, user

from flashvl import FlashVL, FlashVLModel
from flashvl.errors import (
    ArgumentError,
    CheckpointError,
    DeviceError,
    ImageError,
    MessageError,
)
from flashvl.generation.conversation import Conversation, common_prefix
from flashvl.generation.generate import generate

NANO = Path(__file__).parents[2] / "weights" / "nano"
QUESTIONS = ["What is in the picture?", "\n这是什么颜色？", "", "And\n\nnow? <|im_end|>"]
MANY_WAYS = [
    {"max_new_tokens": 5},
    {"max_new_tokens": 12, "repetition_penalty": 1.5},
    {"max_new_tokens": 9, "do_sample": True, "temperature": 2.0, "top_k": 90, "seed": 3},
    {"max_new_tokens": 1},
]


@contextmanager
def given_ids():
    """The list of all answers' ids, of `chat` and of conversations, while it is open."""
    answers = []

    def listening(*arguments, **more):
        answers.append([])
        for rows in generate(*arguments, **more):
            answers[-1].append(rows[0].ids[-1])
            yield rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flashvl.chat.generate", listening)
        patch.setattr("flashvl.generation.conversation.generate", listening)
        yield answers


def check_round(flash: FlashVL, asked: Conversation, image, question: str, **options) -> list[int]:
    """Asks, and compares with `chat`: the text, the ids and the list of messages."""
    messages = [*asked.messages, *user(question)]
    with given_ids() as answers:
        answer = asked.ask(question, **options)
        assert answer == flash.chat(image, messages, **options)
    assert answers[0] == answers[1]
    assert asked.messages == [*messages, {"role": "assistant", "content": answer}]
    return answers[0]


@contextmanager
def lengths_read(flash: FlashVL):
    """How many tokens each pass through the decoder reads."""
    lengths = []
    hook = flash.model.decoder.register_forward_pre_hook(
        lambda _, inputs: lengths.append(inputs[0].shape[1])
    )
    yield lengths
    hook.remove()


@pytest.mark.parametrize("size", [(40, 20), None])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_every_round_is_that_of_chat_with_the_whole_list(any_flash, size, system):
    image = size and picture(*size)
    asked = any_flash.start(image, system)
    for question, options in zip(QUESTIONS, MANY_WAYS):
        check_round(any_flash, asked, image, question, **options)


@pytest.mark.parametrize(
    "assumptions",
    [
        {"stitching": "mean"},
        {"slice_markers": ("[PLACEHOLDER_0]", "[PLACEHOLDER_1]")},
        {"slice_markers": "picture", "image_place": "text", "system": False},
        {"stitching": "pool", "thumbnail": "first", "tile_order": "columns"},
    ],
)
def test_with_other_assumptions_too(assumptions):
    image, flash = picture(20, 50), tiny_model(seed=4, **assumptions)
    asked = flash.start(image)
    for question in QUESTIONS:
        check_round(flash, asked, image, question, max_new_tokens=4)


def test_an_answer_that_its_text_encodes_otherwise_is_read_again(flash):
    """`chat` sees the text alone, so the ids that were given do not count."""
    asked = flash.start(picture())
    differed = 0
    for question in QUESTIONS:
        ids = check_round(flash, asked, picture(), question, max_new_tokens=20)
        differed += ids != flash.tokenizer.encode(asked.messages[-1]["content"])
    assert differed


def test_nano_answers_the_same_in_rounds():
    nano = FlashVL.from_pretrained("nano", device="cpu", dtype="float32")
    image = sorted((NANO / "pictures").glob("*.png"))[0]
    for options in ({}, {"max_new_tokens": 3}, {"repetition_penalty": 1.3}):
        asked = nano.start(image)
        for question in ("What is in the picture?", "What colour is it?", "How many?"):
            check_round(nano, asked, image, question, **{"max_new_tokens": 24} | options)


def test_the_picture_is_read_once_and_only_new_tokens_are_read():
    flash = tiny_model()
    ids = teach_answer(flash, "It:是🔴!")  # with the stop token
    passes = []
    flash.model.vision.register_forward_hook(lambda *_: passes.append("tower"))
    flash.model.compressor.register_forward_hook(lambda *_: passes.append("compressor"))
    first = flash.prepare(picture(), user()).input_ids[0]
    with lengths_read(flash) as lengths:
        asked = flash.start(picture())
    read_before = int((first < 0).nonzero()[-1]) + 1  # up to the picture's last place
    assert lengths == [read_before]
    assert passes == ["tower", "compressor"]
    for question in QUESTIONS:
        prompt = flash.prepare(picture(), [*asked.messages, *user(question)]).input_ids.shape[1]
        with lengths_read(flash) as lengths:
            asked.ask(question)
        assert lengths == [prompt - read_before] + [1] * (len(ids) - 1)
        assert lengths[0] < 40 < prompt
        read_before = prompt + len(ids) - 1
    assert passes == ["tower", "compressor"]


def test_without_a_picture_nothing_is_read_before_the_first_question(flash):
    with lengths_read(flash) as lengths:
        flash.start(None)
    assert lengths == []


def test_of_an_answer_cut_short_only_the_last_token_is_read_again():
    flash = tiny_model()
    teach_answer(flash, "It:是🔴!")
    asked = flash.start(None)
    asked.ask("One?", max_new_tokens=2)
    prompt = flash.prepare(None, user("One?")).input_ids.shape[1]
    longer = flash.prepare(None, [*asked.messages, *user("Two?")]).input_ids.shape[1]
    with lengths_read(flash) as lengths:
        asked.ask("Two?", max_new_tokens=1)
    assert lengths == [longer - prompt - 1]


def test_the_same_question_after_a_broken_off_stream_reads_one_token(flash):
    asked = flash.start(picture())
    next(asked.stream("What?", max_new_tokens=9))
    assert asked.messages == []
    with lengths_read(flash) as lengths:
        asked.ask("What?", max_new_tokens=1)
    assert lengths == [1]
    check_round(flash, asked, picture(), "What?", max_new_tokens=9)


def test_pieces_join_to_the_answer_and_the_round_joins_at_their_end():
    flash = tiny_model()
    teach_answer(flash, "It:是🔴!")
    asked = flash.start(picture())
    pieces = []
    for piece in asked.stream("What?"):
        assert asked.messages == []
        pieces.append(piece)
    assert "🔴" in pieces
    assert not any("\ufffd" in piece for piece in pieces)
    assert asked.messages == [*user("What?"), {"role": "assistant", "content": "".join(pieces)}]


def test_of_two_streams_at_once_the_older_one_says_that_it_is_over():
    flash = tiny_model()
    teach_answer(flash, "It:是🔴!")
    asked = flash.start(picture())
    older, newer = asked.stream("One?"), asked.stream("Two?")
    next(older)
    first = next(newer)
    with pytest.raises(ArgumentError, match="another question"):
        next(older)
    assert first + "".join(newer) == "It:是🔴!"
    assert [message["content"] for message in asked.messages] == ["Two?", "It:是🔴!"]


def in_a_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_of_two_threads_that_ask_at_once_none_gets_a_wrong_answer(flash):
    """Whatever comes between them, an answer that is given is the right one."""
    wanted = flash.chat(picture(), user(), max_new_tokens=12)
    for _ in range(12):
        asked, barrier = flash.start(picture()), Barrier(2)

        def ask(asked=asked, barrier=barrier) -> str:
            barrier.wait(60)
            try:
                return asked.ask("What is this?", max_new_tokens=12)
            except ArgumentError as error:
                return f"refused: {error}"

        with ThreadPoolExecutor(2) as pool:
            answers = [one.result() for one in (pool.submit(ask), pool.submit(ask))]
        failed = [answer for answer in answers if answer.startswith("refused: ")]
        given = [answer for answer in answers if answer not in failed]
        assert all("another thread" in answer for answer in failed)
        contents = [message["content"] for message in asked.messages]
        assert contents[:2] == ["What is this?", wanted]
        assert sorted(contents[1::2]) == sorted(given)


def test_another_thread_is_refused_until_the_round_has_come_to_its_end(flash):
    wanted = flash.chat(picture(), user("One?"), max_new_tokens=9)
    asked = flash.start(picture())
    stream = asked.stream("One?", max_new_tokens=9)
    in_a_thread(lambda: asked.stream("Not yet begun?"))
    first = next(stream)
    for ask in (asked.ask, lambda question: next(asked.stream(question))):
        with pytest.raises(ArgumentError, match="another thread"):
            in_a_thread(lambda ask=ask: ask("Two?"))
    assert first + "".join(stream) == wanted
    assert len(asked.messages) == 2
    in_a_thread(lambda: check_round(flash, asked, picture(), "Two?", max_new_tokens=9))
    check_round(flash, asked, picture(), "Three?", max_new_tokens=9)


def test_a_stream_that_is_dropped_or_whose_thread_has_ended_keeps_nobody_out(flash):
    asked = flash.start(picture())
    stream = asked.stream("One?", max_new_tokens=9)
    next(stream)
    del stream
    in_a_thread(lambda: check_round(flash, asked, picture(), "Two?", max_new_tokens=5))
    kept = asked.stream("Three?", max_new_tokens=9)
    thread = Thread(target=next, args=(kept,))
    thread.start()
    thread.join()
    check_round(flash, asked, picture(), "Four?", max_new_tokens=5)
    with pytest.raises(ArgumentError, match="another question"):
        next(kept)
    check_round(flash, asked, picture(), "Five?", max_new_tokens=5)


def test_a_stream_may_be_handed_to_another_thread(flash):
    """Who goes on with it has the conversation."""
    asked, wanted = flash.start(None), flash.chat(None, user("One?"), max_new_tokens=9)
    stream = asked.stream("One?", max_new_tokens=9)
    pieces, barrier = [next(stream)], Barrier(2)

    def go_on() -> None:
        pieces.append(next(stream))
        barrier.wait(60)
        barrier.wait(60)
        pieces.extend(stream)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(go_on)
        barrier.wait(60)
        with pytest.raises(ArgumentError, match="another thread"):
            asked.ask("Two?")
        barrier.wait(60)
        done.result()
    assert "".join(pieces) == wanted


def test_a_model_without_weights_has_no_answer(flash):
    with torch.device("meta"):
        network = FlashVLModel(flash.config)
    bare = FlashVL(network, flash.tokenizer, flash.stop_ids)
    for image in (picture(), None):
        for ask in (
            lambda image: bare.chat(image, user()),
            lambda image: bare.chat_batch([(image, user())]),
            lambda image: bare.stream(image, user()),
            bare.start,
        ):
            with pytest.raises(DeviceError, match="meta"):
                ask(image)


def test_bfloat16_weights_answer_too():
    flash = tiny_model()
    flash.model.bfloat16()
    asked = flash.start(picture())
    first = asked.ask("What?", max_new_tokens=5)
    assert first == flash.chat(picture(), user("What?"), max_new_tokens=5)
    assert isinstance(asked.ask("And?", max_new_tokens=5), str)
    assert asked._cache.keys.dtype == torch.bfloat16


def test_two_conversations_know_nothing_of_each_other(flash):
    one, two = flash.start(picture()), flash.start(picture(20, 40))
    for question in QUESTIONS[:2]:
        check_round(flash, one, picture(), question, max_new_tokens=4)
        check_round(flash, two, picture(20, 40), question, max_new_tokens=4)


def test_a_bad_round_leaves_the_conversation_as_it_was(flash):
    asked = flash.start(picture())
    check_round(flash, asked, picture(), "One?", max_new_tokens=4)
    before = list(asked.messages)
    for question, options, error in (
        ("long " * 600, {}, MessageError),
        (5, {}, MessageError),
        ("\ud800", {}, MessageError),
        ("Two?", {"max_new_tokens": 0}, ArgumentError),
        ("Two?", {"temperature": 0}, ArgumentError),
    ):
        with pytest.raises(error):
            asked.ask(question, **options)
        assert asked.messages == before
    with pytest.raises(ArgumentError):  # at once, not only when the first piece is asked for
        asked.stream("Two?", top_p=2)
    check_round(flash, asked, picture(), "Two?", max_new_tokens=4)


def test_a_round_that_fails_in_the_middle_is_forgotten():
    flash = tiny_model()
    ids = teach_answer(flash, "It:是🔴!")
    asked = flash.start(picture())
    check_round(flash, asked, picture(), "One?")
    sound = flash.model.decoder.embedding.weight[ids[2]].clone()
    with torch.no_grad():
        flash.model.decoder.embedding.weight[ids[2]] = torch.nan
        with pytest.raises(CheckpointError, match="finite"):
            asked.ask("Two?")
        flash.model.decoder.embedding.weight[ids[2]] = sound
    assert len(asked.messages) == 2
    # The round before is in the cache with sound weights.
    check_round(flash, asked, picture(), "Two?")


def test_rounds_up_to_the_end_of_the_context():
    flash = tiny_model()
    flash.stop_ids = frozenset()
    asked = flash.start(None)
    context = flash.config.decoder.context
    rounds = 0
    while flash.prepare(None, [*asked.messages, *user("!" * 60)]).input_ids.shape[1] < context:
        check_round(flash, asked, None, "!" * 60, max_new_tokens=40)
        rounds += 1
    assert rounds > 2
    with pytest.raises(MessageError, match=f"context {context}"):
        asked.ask("!" * 60)
    assert len(asked.messages) == 2 * rounds
    # What room is left, and not a token more than it.
    base = flash.prepare(None, [*asked.messages, *user("")]).input_ids.shape[1]
    left = context - base - 1
    assert len(check_round(flash, asked, None, "!" * left, max_new_tokens=10**9)) == 1


def test_without_a_limit_the_answer_ends_with_the_context():
    flash = tiny_model()
    flash.stop_ids = frozenset()
    ids = check_round(flash, flash.start(picture()), picture(), "", max_new_tokens=10**9)
    prompt = flash.prepare(picture(), user("")).input_ids.shape[1]
    assert len(ids) == flash.config.decoder.context - prompt


def test_a_changed_list_of_messages_is_what_counts(any_flash):
    """The user may take a round back, or put another system turn in its place."""
    asked = any_flash.start(picture(), "Be brief.")
    for question in QUESTIONS[:3]:
        check_round(any_flash, asked, picture(), question, max_new_tokens=6)
    del asked.messages[-2:]
    check_round(any_flash, asked, picture(), "Another?", max_new_tokens=6)
    asked.messages[0] = {"role": "system", "content": "Be long."}
    check_round(any_flash, asked, picture(), "And?", max_new_tokens=6)
    del asked.messages[0]
    check_round(any_flash, asked, picture(), "And now?", max_new_tokens=6)


def test_the_picture_is_read_again_only_if_what_stands_before_it_changes():
    flash = tiny_model()
    asked = flash.start(picture())
    passes = []
    flash.model.vision.register_forward_hook(lambda *_: passes.append("tower"))
    asked.ask("One?", max_new_tokens=3)
    asked.messages.clear()
    asked.ask("Two?", max_new_tokens=3)
    assert passes == []
    asked.messages.insert(0, {"role": "system", "content": "Be brief."})
    for question in QUESTIONS[:2]:
        asked.ask(question, max_new_tokens=3)
    assert passes == ["tower"]


def test_what_is_wrong_is_said_at_the_start():
    flash = tiny_model()
    with pytest.raises(ImageError):
        flash.start("no/such/file.png")
    with pytest.raises(MessageError):
        flash.start(None, system=5)
    with pytest.raises(MessageError):
        flash.start(picture(), system="\ud800")


ROUND = st.fixed_dictionaries(
    {
        "question": st.text("ab \n是🔴<|im_end|>", max_size=12),
        "max_new_tokens": st.integers(1, 12),
        "repetition_penalty": st.sampled_from([1.0, 1.4, 1e30]),
        "do_sample": st.booleans(),
        "temperature": st.sampled_from([0.5, 3.0]),
        "seed": st.integers(0, 5),
    }
)


@settings(max_examples=25)
@given(
    st.lists(st.tuples(ROUND, st.none() | st.integers(0, 4)), min_size=1, max_size=4),
    st.sampled_from([(40, 20), (20, 20), None]),
    st.none() | st.text("ab\n", max_size=4),
    st.sets(st.integers(0, 300), max_size=40),
)
def test_any_conversation_is_that_of_chat(rounds, size, system, stop_ids):
    """With any stops; and streams that are broken off after some pieces, which leave nothing."""
    flash = tiny_model(seed=1)
    flash.stop_ids = frozenset(stop_ids)
    image = size and picture(*size)
    asked = flash.start(image, system)
    for options, broken_off_after in rounds:
        options = dict(options)
        question = options.pop("question")
        if broken_off_after is not None:
            before = asked.messages
            stream = asked.stream(question, **options)
            for _ in range(broken_off_after):
                if next(stream, None) is None:
                    break
            stream.close()
            if asked.messages == before:
                continue
            asked.messages = before  # it had come to its end
        check_round(flash, asked, image, question, **options)


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_the_common_prefix_is_the_longest(one, other):
    length = common_prefix(one, other)
    assert one[:length] == other[:length]
    assert length == min(len(one), len(other)) or one[length] != other[length]


def converse(arguments: list[str], lines: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "flashvl", "chat", "--device", "cpu", *arguments]
    return subprocess.run(command, input=lines.encode(), capture_output=True)


def test_the_real_command_answers_as_chat_with_the_whole_list(tmp_path):
    flash = tiny_model(seed=2)
    flash.save_pretrained(tmp_path / "model")
    Image.new("RGB", (30, 20), "red").save(tmp_path / "red.png")
    questions = ["What is this?", "long " * 600, "这是什么颜色？", "And now?"]
    wanted, messages = "", []
    for question in questions:
        if question.startswith("long"):
            continue
        messages += user(question)
        answer = flash.chat(tmp_path / "red.png", messages, max_new_tokens=9)
        messages.append({"role": "assistant", "content": answer})
        wanted += answer + "\n"
    arguments = ["--model", str(tmp_path / "model"), "--image", str(tmp_path / "red.png")]
    done = converse([*arguments, "--max-new-tokens", "9"], "\n".join(questions))
    assert done.returncode == 0
    assert done.stdout.decode() == wanted
    assert done.stderr.decode().count("> ") == 5
    assert "context" in done.stderr.decode()


def test_the_real_command_with_nano():
    nano = FlashVL.from_pretrained("nano", device="cpu")
    image = sorted((NANO / "pictures").glob("*.png"))[0]
    asked = nano.start(image)
    questions = ["What is in the picture?", "What colour is it?", "How many objects are there?"]
    wanted = [asked.ask(question) for question in questions]
    done = converse(["--image", str(image)], "\n".join(questions) + "\n\nnever asked\n")
    assert (done.returncode, done.stdout.decode()) == (0, "\n".join([*wanted, ""]))
