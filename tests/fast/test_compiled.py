"""Compiled parts beside eager ones: no graph breaks, no recompilation, the same numbers.

How often something is compiled is counted with the backend that runs what dynamo caught as it
is, for that is quick; one run end to end is by inductor. Every part is compiled `fullgraph=True`,
so that a graph break is an error and fails the test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import picture, teach_answer, tiny_model, user

from flashvl import FlashVL, compiling, quantising
from flashvl.cache import KVCache
from flashvl.cli import main
from flashvl.compiling import CompiledSteps, StaticCache, compile_model, decode_static
from flashvl.config_parts import DecoderConfig
from flashvl.cpu import fit_to_cpu
from flashvl.errors import ArgumentError, CheckpointError, DeviceError, device_failure_as_error
from flashvl.generate import Steps, decode_one_token, prefill
from flashvl.quantising import Int8Linear
from flashvl.tools.parity import difference

NANO = Path(__file__).parent.parent / "weights" / "nano"
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


def compiled(model: FlashVL) -> FlashVL:
    model.compile()
    assert type(model.steps) is CompiledSteps
    return model


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


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("kind", ["iss", "dynamic", "static"])
def test_after_warming_up_nothing_is_compiled_again(kind):
    """Other prompt lengths, tile counts, lengths of answers; the answers are eager's."""
    plain, model = tiny_model(kind), compiled(tiny_model(kind))
    plain.stop_ids = model.stop_ids = frozenset()
    for number in (0, 1, 3):  # one tile alone is a shape of its own
        model.chat(*PAIRS[number], max_new_tokens=3)
    assert graphs() >= 3  # tower, prefill, decode
    before = graphs()
    with no_recompilation():
        for number, (image, messages) in enumerate(PAIRS):
            options = {"max_new_tokens": 2 + 3 * number}
            assert model.chat(image, messages, **options) == plain.chat(image, messages, **options)
        for size in ((16, 90), (50, 50), (90, 30)):
            model.chat(picture(*size), user("Which?"), max_new_tokens=2)
    assert graphs() == before


@pytest.mark.usefixtures("backend")
def test_nor_in_rounds_of_a_conversation():
    plain, model = tiny_model(), compiled(tiny_model())
    plain.stop_ids = model.stop_ids = frozenset()
    warm = model.start(picture())
    warm.ask("One?", max_new_tokens=4)
    warm.ask("Two?", max_new_tokens=4)  # prefill after something in the cache has a mask
    for sizes in ((20, 20), (40, 20), (60, 20)):
        model.chat(picture(*sizes), user(), max_new_tokens=2)
    before = graphs()
    with no_recompilation():
        ours, theirs = model.start(picture(20, 60)), plain.start(picture(20, 60))
        for number, question in enumerate(("What?", "And then\nwhat?", "🔴", "Or this: " * 4)):
            options = {"max_new_tokens": 3 + number}
            assert ours.ask(question, **options) == theirs.ask(question, **options)
        assert ours.messages == theirs.messages
    assert graphs() == before


@pytest.mark.usefixtures("backend")
def test_answers_in_turns_do_not_mix():
    """Two streams at once share one static cache, which follows the one that is asked."""
    plain, model = tiny_model(), compiled(tiny_model())
    plain.stop_ids = model.stop_ids = frozenset()
    for image, messages in PAIRS[:2]:
        model.chat(image, messages, max_new_tokens=3)
    before = graphs()
    with no_recompilation():
        streams = [model.stream(*pair, max_new_tokens=12) for pair in PAIRS[:3]]
        conversation, other = model.start(PAIRS[0][0]), model.start(None)
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
def test_each_capacity_is_compiled_once(monkeypatch):
    """Capacities are powers of two from the least on, and the context at most."""
    monkeypatch.setattr(compiling, "LEAST_CAPACITY", 64)
    plain, model = tiny_model(), compiled(tiny_model())
    plain.stop_ids = model.stop_ids = frozenset()
    for tokens in (5, 5 + 64, 5 + 128, 10**9):
        model.chat(None, user("?"), max_new_tokens=tokens)
    assert {capacity for capacity, *_ in model.steps._caches} == {64, 128, 256, 512}
    with no_recompilation():
        for tokens in (10**9, 7, 100, 40, 160, 1):
            options = {"max_new_tokens": tokens}
            assert model.chat(None, user("!"), **options) == plain.chat(None, user("!"), **options)
    assert {capacity for capacity, *_ in model.steps._caches} == {64, 128, 256, 512}


@pytest.mark.usefixtures("backend")
def test_an_answer_that_was_not_finite_leaves_nothing_behind():
    """A masked place counts 0 times, but 0 times what is not a number is not a number."""
    model = compiled(tiny_model())
    ids = teach_answer(model, "It:是🔴!")
    wanted = model.chat(None, user("?"))
    sound = model.decoder.embedding.weight[ids[2]].clone()
    with torch.no_grad():
        model.decoder.embedding.weight[ids[2]] = torch.nan
        with pytest.raises(CheckpointError, match="finite"):
            model.chat(None, user("a longer question"))
        model.decoder.embedding.weight[ids[2]] = sound
    assert model.chat(None, user("?")) == wanted


@pytest.mark.usefixtures("backend")
def test_int8_weights_in_plain_torch_are_compiled_too(monkeypatch):
    monkeypatch.setattr(quantising, "has_fbgemm", lambda: False)
    plain, model = tiny_model(), tiny_model()
    for one in (plain, model):
        quantising.quantise(one)
    compiled(model)
    for image, messages in PAIRS[:2]:
        options = {"max_new_tokens": 5}
        assert model.chat(image, messages, **options) == plain.chat(image, messages, **options)
    assert any(isinstance(module, Int8Linear) for module in model.modules())


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("arithmetic", [False, True])
def test_a_model_fitted_to_the_cpu_is_compiled_too(arithmetic):
    """What `flashvl chat --compile` does with a large bfloat16 model where there is no GPU."""
    plain, model = tiny_model().bfloat16(), tiny_model().bfloat16()
    for one in (plain, model):
        fit_to_cpu(one, arithmetic)
    compiled(model)
    with torch.inference_mode():
        _, ours = model.embed_prompt(picture(), user())
        _, theirs = plain.embed_prompt(picture(), user())
        assert difference("embeddings", ours, theirs).relative <= 2**-7
    assert model.chat(picture(), user(), max_new_tokens=4)


# The static cache.


def filled_cache(config: DecoderConfig, tokens: int, capacity: int) -> KVCache:
    cache = KVCache(config, capacity)
    cache.keys.normal_()
    cache.values.normal_()
    cache.length = tokens
    return cache


@torch.inference_mode()
def test_a_static_cache_takes_over_and_hands_on(model):
    config = model.config.decoder
    cache = filled_cache(config, 5, 9)
    static = StaticCache(cache, 16)
    shape = (config.layers, 1, config.key_value_heads, 16, config.head_width)
    assert static.keys.shape == static.values.shape == shape
    static.load(cache)
    assert torch.equal(static.keys[:, :, :, :5], cache.keys[:, :, :, :5])
    assert torch.equal(static.values[:, :, :, :5], cache.values[:, :, :, :5])
    assert not static.keys[:, :, :, 5:].any()
    assert not static.values[:, :, :, 5:].any()
    static.position.fill_(5)
    new = torch.randn(2, config.layers, 1, config.key_value_heads, 1, config.head_width)
    for layer in range(config.layers):
        keys, values = static.append(layer, new[0, layer], new[1, layer])
        assert keys.shape == values.shape == shape[1:]
        assert torch.equal(keys[:, :, 5:6], new[0, layer])
        assert torch.equal(values[:, :, 5:6], new[1, layer])
        assert not keys[:, :, 6:].any()
    static.advance(1)
    before = cache.keys[:, :, :, :5].clone()
    static.store(cache)
    assert cache.length == 6
    assert torch.equal(cache.keys[:, :, :, :5], before)
    assert torch.equal(cache.keys[:, :, :, 5:6], new[0])
    assert torch.equal(cache.values[:, :, :, 5:6], new[1])


@pytest.mark.parametrize("tokens", [1, 6, 15])
@torch.inference_mode()
def test_decoding_with_it_is_decoding_without(model, tokens):
    """Whatever stands in the places that are not filled."""
    decoder = model.decoder
    cache, other = (KVCache(decoder.config, 16) for _ in range(2))
    prompt = torch.randn(1, tokens, decoder.config.width)
    for one in (cache, other):
        prefill(decoder, prompt, one)
    static = StaticCache(cache, 16)
    static.load(cache)
    static.keys[:, :, :, tokens:] = 1e4 * torch.randn(())
    static.values[:, :, :, tokens:] = 1e4
    for step in range(min(4, 16 - tokens)):
        token = torch.tensor([[7 + step]])
        static.position.fill_(cache.length)
        logits = decode_static(decoder, token, static)
        static.store(cache)
        wanted = decode_one_token(decoder, token, other)
        assert difference("logits", logits, wanted).relative <= TOLERANCE
    assert cache.length == other.length
    torch.testing.assert_close(
        cache.keys[:, :, :, : cache.length], other.keys[:, :, :, : cache.length]
    )


@pytest.mark.parametrize(
    ("tokens", "capacity"),
    [(1, 1024), (1024, 1024), (1025, 2048), (2048, 2048), (2049, 3000), (3000, 3000)],
)
def test_capacities_are_powers_of_two_within_the_context(tokens, capacity):
    config = DecoderConfig(
        **{**vars(tiny_model().config.decoder), "context": 3000},
    )
    steps = CompiledSteps()
    static = steps._cache_for(config, KVCache(config, tokens))
    assert static.keys.shape[3] == capacity
    assert steps._cache_for(config, KVCache(config, tokens)) is static


# What cannot be compiled.


@pytest.mark.skipif(not quantising.has_fbgemm(), reason="torch has no fbgemm here")
def test_packed_int8_weights_are_refused(capsys):
    model = FlashVL.from_pretrained("nano", device="cpu", quantize="int8")
    with pytest.raises(ArgumentError, match="int8 weights on a CPU"):
        model.compile()
    assert type(model.steps) is Steps
    assert main(["chat", "--device", "cpu", "--quantize", "int8", "--compile", "Hello?"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert "int8" in said.err


def test_without_a_compiler_it_says_what_to_install(model, monkeypatch, capsys):
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    with pytest.raises(ArgumentError, match=r"needs a C\+\+ compiler.*g\+\+"):
        compile_model(model)
    assert type(model.steps) is Steps
    assert main(["chat", "--device", "cpu", "--compile", "Hello?"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)


def test_the_users_own_folder_for_what_is_compiled_is_kept(monkeypatch, tmp_path):
    model = tiny_model()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model.compile()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "inductor")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    model.compile()
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


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
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
