"""Compiled parts beside eager ones: no graph breaks, no recompilation, the same numbers.

How often something is compiled is counted with the backend that runs what dynamo caught as it
is, for that is quick; two runs end to end are by inductor. Every part is compiled
`fullgraph=True`, so that a graph break is an error and fails the test.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tiny import picture, teach_answer, tiny_model, user

from flashvl import FlashVL
from flashvl.cli import main
from flashvl.config import DecoderConfig
from flashvl.device import device_failure_as_error
from flashvl.errors import ArgumentError, CheckpointError, DeviceError
from flashvl.fast import compiled as fast_compiled
from flashvl.fast import int8, quantized
from flashvl.fast.compiled import (
    CompiledDecode,
    StaticCache,
    compile_model,
    decode_static,
    power_of_two,
)
from flashvl.fast.cpu import fit_to_cpu
from flashvl.fast.int8 import Int8Linear
from flashvl.fast.quantized import quantize_decoder
from flashvl.generation.generate import begin_decode, generate, read_prompt
from flashvl.generation.sampling import Sampling
from flashvl.model.cache import KVCache
from flashvl.model.recording import INPUT, recorded
from flashvl.tools.parity import difference

NANO = Path(__file__).parent.parent.parent / "weights" / "nano"
QUESTION = "What is in the picture?"
TOLERANCE = 1e-5  # relative: sums of float32 in another order


@pytest.fixture(autouse=True)
def _own_compilations(monkeypatch, tmp_path):
    """Nothing compiled is left for other tests, and nothing written to the user's cache."""
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    yield
    torch._dynamo.reset()


@pytest.fixture
def backend(monkeypatch) -> None:
    """`compile_model` with the backend "eager" in inductor's place."""
    plain = torch.compile

    def with_eager(function, *, mode=None, **options):
        return plain(function, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", with_eager)


def compiled(flash: FlashVL) -> FlashVL:
    flash.compile()
    assert type(flash.begin_decode) is CompiledDecode
    return flash


def endless(kind: str = "iss") -> tuple[FlashVL, FlashVL]:
    """The same model plain and compiled; no token ends their answers."""
    plain, flash = tiny_model(kind), compiled(tiny_model(kind))
    plain.stop_ids = flash.stop_ids = frozenset()
    return plain, flash


def graphs() -> int:
    """How many graphs dynamo has caught since it was reset."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def no_recompilation():
    return torch.compiler.set_stance("fail_on_recompile")


PAIRS = [
    (picture(40, 20), user()),  # 3 tiles
    (picture(20, 20), user("Long? " * 9)),  # 1 tile
    (None, user("?")),
    (picture(20, 60), [*user("A circle?"), {"role": "assistant", "content": "是"}, *user("So?")]),
    (picture(60, 40), user("x")),
    (None, user("long " * 30)),
]


def warm_up(flash: FlashVL) -> None:
    """Answers after which tower and prefill are compiled for any number of tiles and tokens."""
    for number in (0, 1, 3):  # one tile alone is a shape of its own
        flash.chat(*PAIRS[number], max_new_tokens=3)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("kind", ["iss", "dynamic", "static"])
def test_after_warming_up_nothing_is_compiled_again(kind):
    """Other prompt lengths, tile counts, lengths of answers; the answers are eager's."""
    plain, flash = endless(kind)
    warm_up(flash)
    assert graphs() >= 3  # tower, prefill, decode
    before = graphs()
    with no_recompilation():
        for number, (image, messages) in enumerate(PAIRS):
            options = {"max_new_tokens": 2 + 3 * number}
            assert flash.chat(image, messages, **options) == plain.chat(image, messages, **options)
        for size in ((16, 90), (50, 50), (90, 30)):
            flash.chat(picture(*size), user("Which?"), max_new_tokens=2)
    assert graphs() == before


@pytest.mark.usefixtures("backend")
def test_nor_in_rounds_of_a_conversation():
    plain, flash = endless()
    warm = flash.start(picture())
    warm.ask("One?", max_new_tokens=4)
    warm.ask("Two?", max_new_tokens=4)  # prefill after something in the cache has a mask
    for sizes in ((20, 20), (40, 20), (60, 20)):
        flash.chat(picture(*sizes), user(), max_new_tokens=2)
    before = graphs()
    with no_recompilation():
        ours, theirs = flash.start(picture(20, 60)), plain.start(picture(20, 60))
        for number, question in enumerate(("What?", "And then\nwhat?", "🔴", "Or this: " * 4)):
            options = {"max_new_tokens": 3 + number}
            assert ours.ask(question, **options) == theirs.ask(question, **options)
        assert ours.messages == theirs.messages
    assert graphs() == before


# Batches: rows of the static cache are powers of two.


@pytest.fixture(scope="module")
def stop_ids() -> frozenset[int]:
    """An id at which the rows of a batch of `PAIRS` end one after the other."""
    flash, sampling = tiny_model(), Sampling(max_new_tokens=12)
    rows = [read_prompt(flash.model, flash.prepare(*pair), sampling) for pair in PAIRS]
    for _ in generate(flash.model, rows, sampling, stop_ids=()):
        pass
    lengths = {
        token_id: {row.ids.index(token_id) for row in rows if token_id in row.ids}
        for token_id in rows[0].ids
    }
    chosen = max(lengths, key=lambda token_id: len(lengths[token_id]))
    assert len(lengths[chosen]) >= 4
    return frozenset([chosen])


@pytest.mark.usefixtures("backend")
def test_batches_are_answered_as_eager_answers_them(stop_ids):
    """Of any number of rows, which leave one after the other; each shape is compiled once."""
    plain, flash = endless()
    warm_up(flash)
    before = graphs()
    for rows in (2, 4, 8):
        flash.chat_batch((PAIRS + PAIRS)[:rows], max_new_tokens=2)
    assert graphs() == before + 3
    plain.stop_ids = flash.stop_ids = stop_ids
    with no_recompilation():
        for rows in (1, 2, 3, 5, 6):
            for pairs in (PAIRS[:rows], PAIRS[::-1][:rows]):
                answers = flash.chat_batch(pairs, max_new_tokens=12)
                assert answers == plain.chat_batch(pairs, max_new_tokens=12)
        drawn = dict(do_sample=True, temperature=2.0, seed=3, max_new_tokens=12)
        answers = flash.chat_batch(PAIRS, **drawn)
        assert answers == plain.chat_batch(PAIRS, **drawn)
    assert graphs() == before + 3
    assert {rows for rows, *_ in flash.begin_decode._caches} == {1, 2, 4, 8}


@pytest.mark.usefixtures("backend")
def test_a_batch_whose_cache_is_longer_than_the_context():
    """A long prompt pads the row of a short one, whose answer is long."""
    plain, flash = endless()
    context = plain.config.decoder.context
    pairs = [(None, user("a b " * 100)), (None, user("?"))]
    tokens = [plain.prepare(*pair).input_ids.shape[1] for pair in pairs]
    assert context / 2 < tokens[0] < context
    for length in (1, context // 2, 10**6):
        answers = flash.chat_batch(pairs, max_new_tokens=length)
        assert answers == plain.chat_batch(pairs, max_new_tokens=length)
    capacities = {capacity for _, capacity, *_ in flash.begin_decode._caches}
    assert max(capacities) == power_of_two(tokens[0] + context - tokens[1]) > context


@pytest.mark.usefixtures("backend")
def test_answers_in_turns_do_not_mix():
    """Two streams at once share one static cache, which follows the one that is asked."""
    plain, flash = endless()
    for image, messages in PAIRS[:2]:
        flash.chat(image, messages, max_new_tokens=3)
    flash.start(PAIRS[0][0]).ask("One?", max_new_tokens=3)
    before = graphs()
    with no_recompilation():
        streams = [flash.stream(*pair, max_new_tokens=12) for pair in PAIRS[:3]]
        conversation, other = flash.start(PAIRS[0][0]), flash.start(None)
        streams += [
            conversation.stream("a b", max_new_tokens=9),
            other.stream("是", max_new_tokens=9),
        ]
        pieces = [[] for _ in streams]
        going_on = set(range(len(streams)))
        while going_on:
            for number in sorted(going_on):
                piece = next(streams[number], None)
                if piece is None:
                    going_on.remove(number)
                else:
                    pieces[number].append(piece)
    wanted = [plain.chat(*pair, max_new_tokens=12) for pair in PAIRS[:3]]
    wanted.append(plain.chat(PAIRS[0][0], user("a b"), max_new_tokens=9))
    wanted.append(plain.chat(None, user("是"), max_new_tokens=9))
    assert ["".join(one) for one in pieces] == wanted
    assert graphs() == before
    # The rounds that follow read what was decoded into the static cache.
    messages = [*user("是"), {"role": "assistant", "content": wanted[-1]}, *user("Go on")]
    assert other.ask("Go on", max_new_tokens=6) == plain.chat(None, messages, max_new_tokens=6)


@pytest.mark.usefixtures("backend")
def test_answers_in_several_threads_do_not_mix():
    plain, flash = endless()
    wanted = [plain.chat(*pair, max_new_tokens=30) for pair in PAIRS[:3]]
    assert [flash.chat(*pair, max_new_tokens=30) for pair in PAIRS[:3]] == wanted

    def answers(pair) -> list[str]:
        return [flash.chat(*pair, max_new_tokens=30) for _ in range(4)]

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(answers, PAIRS[:3])) == [[answer] * 4 for answer in wanted]


@pytest.mark.usefixtures("backend")
def test_each_capacity_is_compiled_once(monkeypatch):
    """Capacities are powers of two from a minimum on, and the context at most."""
    monkeypatch.setattr(fast_compiled, "MIN_CAPACITY", 64)
    plain, flash = endless()
    for tokens in (5, 5 + 64, 5 + 128, 10**9):
        flash.chat(None, user("?"), max_new_tokens=tokens)
    assert {capacity for _, capacity, *_ in flash.begin_decode._caches} == {64, 128, 256, 512}
    with no_recompilation():
        for tokens in (10**9, 7, 100, 40, 160, 1):
            options = {"max_new_tokens": tokens}
            assert flash.chat(None, user("!"), **options) == plain.chat(None, user("!"), **options)
    assert {capacity for _, capacity, *_ in flash.begin_decode._caches} == {64, 128, 256, 512}


@pytest.mark.usefixtures("backend")
def test_an_answer_that_was_not_finite_leaves_nothing_behind():
    """A masked place counts 0 times, but 0 times what is not a number is not a number."""
    flash = compiled(tiny_model())
    ids = teach_answer(flash, "It:是🔴!")
    wanted = flash.chat(None, user("?"))
    embedding = flash.model.decoder.embedding.weight
    sound = embedding[ids[2]].clone()
    with torch.no_grad():
        embedding[ids[2]] = torch.nan
        with pytest.raises(CheckpointError, match="finite"):
            flash.chat(None, user("a longer question"))
        embedding[ids[2]] = sound
    assert flash.chat(None, user("?")) == wanted


@pytest.mark.usefixtures("backend")
def test_int8_weights_in_plain_torch_are_compiled_too(monkeypatch):
    monkeypatch.setattr(quantized, "has_fbgemm", lambda: False)
    plain, flash = tiny_model(), tiny_model()
    for one in (plain, flash):
        quantize_decoder(one.model, "int8")
    compiled(flash)
    for image, messages in PAIRS[:2]:
        options = {"max_new_tokens": 5}
        assert flash.chat(image, messages, **options) == plain.chat(image, messages, **options)
    assert any(isinstance(module, Int8Linear) for module in flash.model.modules())


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("arithmetic", [False, True])
def test_a_model_fitted_to_the_cpu_is_compiled_too(arithmetic):
    """What `flashvl chat --compile` does with a large bfloat16 model where there is no GPU."""
    plain, flash = tiny_model(), tiny_model()
    for one in (plain, flash):
        fit_to_cpu(one.model.bfloat16(), arithmetic)
    compiled(flash)
    prompt, seen = plain.prepare(picture(), user()), []
    for one in (plain, flash):
        parts = ["compressor.output", f"decoder.head{INPUT}"]
        with torch.inference_mode(), recorded(one.model, parts) as outputs:
            one.model(*prompt)
        seen.append(outputs.values())
    (tokens, hidden), (wanted_tokens, wanted_hidden) = seen
    assert difference("image tokens", tokens, wanted_tokens).relative <= 2**-7
    assert difference("hidden states", hidden, wanted_hidden).relative <= 2**-5
    assert flash.chat(picture(), user(), max_new_tokens=4)


# The static cache.


def filled_cache(config: DecoderConfig, lengths: Sequence[int], capacity: int) -> KVCache:
    """Rows of these lengths side by side, with random keys and values; one row has no padding."""
    caches = []
    for length in lengths:
        cache = KVCache(config, length)
        cache.keys.normal_()
        cache.values.normal_()
        cache.length = length
        caches.append(cache)
    if len(caches) > 1:
        return KVCache.side_by_side(config, caches, capacity)
    caches[0].reserve(capacity)
    return caches[0]


@pytest.mark.parametrize("lengths", [(5,), (5, 2, 4), (1, 5)])
@torch.inference_mode()
def test_a_static_cache_takes_over_and_hands_on(flash, lengths):
    config, length, rows = flash.config.decoder, max(lengths), len(lengths)
    cache = filled_cache(config, lengths, 9)
    static = StaticCache(cache, rows=4, capacity=16)
    shape = (config.layers, 4, config.key_value_heads, 16, config.head_width)
    assert static.keys.shape == static.values.shape == shape
    static.keys.fill_(torch.nan)  # of an answer before
    static.padding.fill_(3)
    static.load(cache)
    assert static.padding.tolist() == [length - one for one in lengths] + [0] * (4 - rows)
    assert static.position.tolist() == [length]
    for ours, theirs in ((static.keys, cache.keys), (static.values, cache.values)):
        assert torch.equal(ours[:, :rows, :, :length], theirs[:, :, :, :length])
        assert not ours[:, :, :, length:].any()
        assert not ours[:, rows:].any()
    new = torch.randn(2, config.layers, 4, config.key_value_heads, 1, config.head_width)
    for layer in range(config.layers):
        keys, values = static.append(layer, new[0, layer], new[1, layer])
        assert keys.shape == values.shape == shape[1:]
        assert torch.equal(keys[:, :, length : length + 1], new[0, layer])
        assert torch.equal(values[:, :, length : length + 1], new[1, layer])
        assert not keys[:, :, length + 1 :].any()
    static.advance(1)
    before = cache.keys[:, :, :, :length].clone()
    static.store(cache)
    assert cache.length == length + 1
    assert torch.equal(cache.keys[:, :, :, :length], before)
    assert torch.equal(cache.keys[:, :, :, length : length + 1], new[0, :, :rows])
    assert torch.equal(cache.values[:, :, :, length : length + 1], new[1, :, :rows])


@pytest.mark.parametrize("lengths", [(5,), (5, 2, 4), (1, 5)])
@torch.inference_mode()
def test_it_says_what_the_growing_cache_says(flash, lengths):
    """Where the next token stands and what it sees, at the first step and at those after it."""
    rows = len(lengths)
    cache = filled_cache(flash.config.decoder, lengths, 12)
    static = StaticCache(cache, rows=4, capacity=16)
    static.load(cache)
    for _ in range(4):
        columns = cache.length + 1
        assert torch.equal(static.positions(1)[:rows], cache.positions(1).expand(rows, 1))
        sees, wanted = static.mask(1), cache.mask(1)
        assert sees.shape == (4, 1, 1, 16)
        wanted = torch.ones(1, 1, 1, columns, dtype=torch.bool) if wanted is None else wanted
        assert torch.equal(sees[:rows, ..., :columns], wanted.expand(rows, 1, 1, columns))
        assert not sees[..., columns:].any()
        static.advance(1)
        cache.advance(1)


@pytest.mark.parametrize("lengths", [(1,), (6,), (15,), (6, 1, 4)])
@torch.inference_mode()
def test_decoding_with_it_is_decoding_without(flash, lengths):
    """Whatever stands in the places that are not filled."""
    config, length, rows = flash.config.decoder, max(lengths), len(lengths)
    cache, other = filled_cache(config, lengths, 16), KVCache(config, 16, rows)
    other.keys.copy_(cache.keys)
    other.values.copy_(cache.values)
    other.length, other.padding = cache.length, cache.padding
    static = StaticCache(cache, rows=4, capacity=16)
    static.load(cache)
    static.keys[:, :, :, length:] = 1e4 * torch.randn(())
    static.values[:, :, :, length:] = 1e4
    step = begin_decode(flash.model, other)
    for number in range(min(4, 16 - length)):
        tokens = torch.arange(7, 7 + rows)[:, None] + number  # (B, 1)
        static.tokens[:rows] = tokens
        logits = decode_static(flash.model, static.tokens, static)
        assert logits.shape == (4, config.vocabulary)
        static.store(cache)
        assert difference("logits", logits[:rows], step(tokens)).relative <= TOLERANCE
    assert cache.length == other.length
    filled = slice(cache.length)
    torch.testing.assert_close(cache.keys[:, :, :, filled], other.keys[:, :, :, filled])
    torch.testing.assert_close(cache.values[:, :, :, filled], other.values[:, :, :, filled])


@pytest.mark.parametrize(
    ("tokens", "capacity"),
    [(1, 1024), (1024, 1024), (1025, 2048), (2048, 2048), (2049, 3000), (3000, 3000), (3001, 4096)],
)
@pytest.mark.parametrize(("rows", "padded"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8)])
def test_shapes_are_powers_of_two_within_the_context(flash, tokens, capacity, rows, padded):
    """Beyond it only for a batch of which a row's padding and answer need more."""
    config = dataclasses.replace(flash.config.decoder, context=3000, layers=1)
    decode = CompiledDecode()
    static = decode._cache_for(KVCache(config, tokens, rows), config.context)
    assert (static.keys.shape[1], static.keys.shape[3]) == (padded, capacity)
    assert decode._cache_for(KVCache(config, tokens, rows), config.context) is static


def test_powers_of_two():
    numbers = {1: 1, 2: 2, 3: 4, 4: 4, 5: 8, 1024: 1024, 1025: 2048}
    assert {number: power_of_two(number) for number in numbers} == numbers


# What cannot be compiled.


@pytest.mark.skipif(not int8.has_fbgemm(), reason="torch has no fbgemm here")
def test_packed_int8_weights_are_refused(capsys):
    flash = FlashVL.from_pretrained("nano", device="cpu", quantize="int8")
    with pytest.raises(ArgumentError, match="quantized weights on a CPU"):
        flash.compile()
    assert flash.begin_decode is begin_decode
    assert main(["chat", "--device", "cpu", "--quantize", "int8", "--compile", "Hello?"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert "quantized" in said.err


def test_without_a_compiler_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(fast_compiled.shutil, "which", lambda name: None)
    flash = tiny_model()
    with pytest.raises(ArgumentError, match=r"needs a C\+\+ compiler.*g\+\+"):
        compile_model(flash.model)
    with pytest.raises(ArgumentError):
        flash.compile()
    assert flash.begin_decode is begin_decode
    assert main(["chat", "--device", "cpu", "--compile", "Hello?"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)


def test_the_users_own_folder_for_what_is_compiled_is_kept(monkeypatch, tmp_path):
    flash = tiny_model()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    flash.compile()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "inductor")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    flash.compile()
    wanted = str(tmp_path / "cache" / "flashvl" / "compiled")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == wanted
    assert not any(one.is_file() for one in tmp_path.rglob("*"))  # compiled when it is used


def test_what_torch_cannot_compile_is_an_error_of_one_line():
    """Of any compiled part, for all are run where memory that runs out is caught too."""
    failure = torch._dynamo.exc.BackendCompilerFailed(print, ValueError("no such thing"), [])
    with (
        pytest.raises(DeviceError, match=r"torch\.compile failed.*no such thing") as caught,
        device_failure_as_error("answering"),
    ):
        raise failure
    assert "\n" not in str(caught.value)


# By inductor, end to end.

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="inductor needs a C++ compiler"
)


@pytest.mark.slow
@needs_compiler
def test_inductor_answers_batches_as_eager_does(stop_ids):
    """Three rows, which leave one after the other."""
    plain, flash = endless()
    plain.stop_ids = flash.stop_ids = stop_ids
    pairs = [PAIRS[0], PAIRS[2], PAIRS[5]]
    answers = flash.chat_batch(pairs, max_new_tokens=12)
    assert answers == plain.chat_batch(pairs, max_new_tokens=12)
    assert [rows for rows, *_ in flash.begin_decode._caches] == [4, 2, 1]


@pytest.mark.slow
@needs_compiler
def test_the_real_command_answers_as_eager_does(tmp_path):
    """nano, two rounds about one picture; what was compiled is kept where it is asked for."""
    image = sorted((NANO / "pictures").glob("*.png"))[0]
    nano = FlashVL.from_pretrained("nano", device="cpu", dtype="float32")
    asked = nano.start(image)
    questions = [QUESTION, "What colour is it?"]
    wanted = "".join(asked.ask(question) + "\n" for question in questions)
    command = [sys.executable, "-m", "flashvl", "chat", "--device", "cpu", "--dtype", "float32"]
    done = subprocess.run(
        [*command, "--compile", "--image", str(image)],
        input="\n".join(questions) + "\n",
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "kept")},
    )
    assert (done.returncode, done.stdout) == (0, wanted), done.stderr
    assert "Traceback" not in done.stderr
    assert any((tmp_path / "kept").iterdir())
