"""int8 weights: how much they lose, both ways of multiplying with them, and nano's answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from tiny import picture, tiny_network, user
from torch import nn

from flashvl import FlashVL, FlashVLModel
from flashvl.cli import main
from flashvl.errors import ArgumentError, CheckpointError
from flashvl.fast import quantized as quantized_module
from flashvl.fast.int8 import (
    CHANNELS,
    LEVELS,
    Int8Linear,
    PackedInt8Linear,
    has_fbgemm,
    to_int8,
)
from flashvl.fast.quantized import is_quantized, quantize_decoder
from flashvl.input.image import load_image
from flashvl.nano.score import as_json, score
from flashvl.nano.world.scenes import scene, scoring_number
from flashvl.tools.parity import difference
from flashvl.tools.trace.trace import trace

NANO = Path(__file__).parent.parent.parent / "weights" / "nano"
QUESTION = "What is in the picture?"
FLOAT32_EPS = 2**-23
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
SHAPES = st.tuples(st.integers(1, 50), st.integers(1, 50))  # width, D
needs_fbgemm = pytest.mark.skipif(not has_fbgemm(), reason="torch has no fbgemm here")
KINDS_OF_LINEAR = [Int8Linear, pytest.param(PackedInt8Linear, marks=needs_fbgemm)]


def dequantized(weight: torch.Tensor) -> torch.Tensor:
    """What int8 makes of a weight, in float64."""
    quantized, scale = to_int8(weight)
    return quantized.double() * scale[:, None].double()


# The weights.


def check_int8(weight: torch.Tensor) -> None:
    quantized, scale = to_int8(weight)
    assert (quantized.dtype, quantized.shape) == (torch.int8, weight.shape)
    assert (scale.dtype, scale.shape) == (torch.float32, weight.shape[:1])
    assert (scale > 0).all()
    assert quantized.min() >= -127  # -128 has no counterpart
    error = (dequantized(weight) - weight.double()).abs()
    assert (error <= scale[:, None].double() * (0.5 + 127 * FLOAT32_EPS)).all()


@given(SHAPES, DTYPES, st.floats(-30, 30), st.integers(0, 9))
def test_no_weight_is_off_by_more_than_half_a_step_of_its_channel(shape, dtype, power, seed):
    torch.manual_seed(seed)
    sizes = 10 ** (power + 3 * torch.randn(shape[0], 1))  # each channel of its own
    sizes = sizes.clamp(1e-30, 1e30)
    if dtype == torch.float16:
        sizes = sizes.clamp(1e-4, 1e3)
    weight = (torch.randn(shape) * sizes).to(dtype)
    check_int8(weight)
    quantized, scale = to_int8(weight)
    largest = weight.abs().amax(1).float()
    assert torch.allclose(scale, largest / 127, rtol=1e-6, atol=0) or (largest == 0).any()
    assert (quantized.abs().amax(1) == 127)[largest > 0].all()


@given(
    st.lists(
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3)
    ).filter(bool)
)
@example([[1e-45, -1e-45, 0.0], [2.7e-43, -1.4e-43, 0.0]])
def test_any_float32_weights_even_zeros_and_the_smallest(rows):
    check_int8(torch.tensor(rows))


def test_signs_are_symmetric_and_the_extremes_are_met():
    weight = torch.randn(30, 40)
    (plus, scale), (minus, same) = to_int8(weight), to_int8(-weight)
    assert torch.equal(plus, -minus)
    assert torch.equal(scale, same)
    quantized, scale = to_int8(torch.tensor([[-254.0, 254.0, 2.0, 0.9, 0.0], [0.0] * 5]))
    assert quantized.tolist() == [[-127, 127, 1, 0, 0], [0] * 5]
    assert scale[0] == 2


def test_blocks_of_channels_are_put_together_rightly():
    weight = torch.randn(2 * CHANNELS + 3, 5)
    quantized, scale = to_int8(weight)
    for channel in (0, CHANNELS - 1, CHANNELS, 2 * CHANNELS, 2 * CHANNELS + 2):
        alone, its_scale = to_int8(weight[channel : channel + 1])
        assert torch.equal(quantized[channel], alone[0])
        assert scale[channel] == its_scale[0]


# The products.


def exact_product(x: torch.Tensor, plain: nn.Linear) -> torch.Tensor:
    """Of the dequantized weight, in float64."""
    bias = None if plain.bias is None else plain.bias.double()
    return F.linear(x.double(), dequantized(plain.weight.detach()), bias)


def bound(x: torch.Tensor, plain: nn.Linear) -> torch.Tensor:
    """What 14 bits of an activation can be off: each by at most its row's largest / (252 * 63).

    And the rounding of sums and of the scales in float32.
    """
    weight = dequantized(plain.weight.detach()).abs()
    largest = x.double().abs().amax(-1, keepdim=True)
    of_steps = largest / (4 * LEVELS * LEVELS) * weight.sum(1)
    return of_steps * 1.001 + 1e-5 * largest * weight.sum(1) + 1e-30


@needs_fbgemm
@given(SHAPES, st.lists(st.integers(0, 4), max_size=3), st.booleans(), st.integers(0, 9))
@torch.inference_mode()
def test_packed_products_are_right_to_14_bits(shape, leading, bias, seed):
    """Rows of sizes from 1e-12 to 1e12 side by side, each as exact as if it were alone."""
    torch.manual_seed(seed)
    plain = nn.Linear(*reversed(shape), bias=bias)
    x = torch.randn(*leading, 3, shape[1])
    x = x * 10 ** (24 * torch.rand(*leading, 3, 1) - 12)
    product = PackedInt8Linear(plain)(x)
    assert (product.dtype, product.shape) == (torch.float32, (*leading, 3, shape[0]))
    error = (product - exact_product(x, plain)).abs()
    if bias:  # the sum with a small product is rounded to the bias's own precision
        error = error - 4 * FLOAT32_EPS * plain.bias.abs().max()
    assert (error <= bound(x, plain)).all()


@needs_fbgemm
@torch.inference_mode()
def test_a_row_is_the_same_beside_any_other():
    layer = PackedInt8Linear(nn.Linear(40, 30))
    rows = torch.randn(6, 40) * torch.tensor([[1e-9], [1.0], [1e9], [0.0], [3e-3], [7.0]])
    together = layer(rows)
    for row, product in zip(rows, together):
        assert torch.equal(layer(row[None])[0], product)


@pytest.mark.parametrize("kind", KINDS_OF_LINEAR)
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_rows_of_zeros_give_the_bias(kind, bias):
    plain = nn.Linear(12, 7, bias=bias)
    product = kind(plain)(torch.zeros(2, 12))
    assert torch.equal(product, (plain.bias if bias else torch.zeros(7)).expand(2, 7))


@pytest.mark.parametrize("kind", KINDS_OF_LINEAR)
@torch.inference_mode()
def test_no_rows_give_no_rows(kind):
    assert kind(nn.Linear(12, 7))(torch.zeros(2, 0, 12)).shape == (2, 0, 7)


@pytest.mark.parametrize("kind", KINDS_OF_LINEAR)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_activations_keep_their_dtype(kind, dtype):
    """In 16 bits the product is that of the same dequantized weights to 2 bits of 8, or of 11."""
    plain = nn.Linear(256, 33).to(dtype)
    x = torch.randn(2, 5, 256).to(dtype)
    product = kind(plain)(x)
    assert product.dtype == dtype
    tolerance = {torch.float32: 2e-4, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    assert difference("", product, exact_product(x, plain)).relative <= tolerance
    # A product in float32 of weights stored in 16 bits, as where a CPU widens.
    widened = kind(plain)(x.float())
    assert widened.dtype == torch.float32
    assert difference("", widened, exact_product(x, plain)).relative <= 2e-4


@torch.inference_mode()
def test_float16_has_room_for_large_activations():
    """Of the size that the inputs of a Qwen2 MLP's last map reach."""
    plain = nn.Linear(4096, 9).half()
    x = (200 * torch.randn(2, 4096)).half()
    product = Int8Linear(plain)(x)
    assert difference("", product, exact_product(x, plain)).relative <= 2**-10


@needs_fbgemm
@given(SHAPES, st.integers(1, 6))
@torch.inference_mode()
def test_both_kinds_agree(shape, rows):
    plain = nn.Linear(*reversed(shape), bias=False)
    x = torch.randn(rows, shape[1])
    packed, simple = PackedInt8Linear(plain)(x), Int8Linear(plain)(x)
    assert ((packed - simple).abs() <= 2 * bound(x, plain)).all()


@pytest.mark.parametrize("kind", KINDS_OF_LINEAR)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@torch.inference_mode()
def test_what_is_not_finite_is_not_made_finite(kind, value):
    """Else a broken file would give nonsense instead of an error."""
    plain = nn.Linear(12, 7)
    x = torch.randn(3, 12)
    x[1, 4] = value
    assert kind(plain)(x).isfinite().all(1).tolist() == [True, False, True]
    plain.weight[5, 2] = value
    assert kind(plain)(x)[0].isfinite().tolist() == [True] * 5 + [False, True]


# Models.


@pytest.fixture(params=[True, False], ids=["fbgemm", "plain torch"])
def packs(request, monkeypatch) -> bool:
    if request.param and not has_fbgemm():
        pytest.skip("torch has no fbgemm here")
    monkeypatch.setattr(quantized_module, "has_fbgemm", lambda: request.param)
    return request.param


@pytest.mark.parametrize("kind", ["iss", "dynamic", "static"])
def test_the_decoder_alone_is_quantized(packs, kind):
    model, plain = tiny_network(kind), tiny_network(kind)
    assert not is_quantized(model)
    quantize_decoder(model, "int8")
    assert is_quantized(model)
    wanted = PackedInt8Linear if packs else Int8Linear
    for name, module in plain.named_modules():
        ours = type(model.get_submodule(name))
        is_linear = type(module) is nn.Linear
        assert ours is (wanted if name.startswith("decoder.") and is_linear else type(module)), name
    ours, theirs = dict(model.named_parameters()), dict(plain.named_parameters())
    untouched = [name for name in theirs if not name.startswith("decoder.")]
    assert untouched
    assert all(torch.equal(ours[name], theirs[name]) for name in untouched)
    assert torch.equal(model.decoder.embedding.weight, plain.decoder.embedding.weight)


@pytest.mark.parametrize("tied", [False, True])
def test_a_tied_head_is_quantized_and_the_embedding_is_not(packs, tied, tmp_path):
    model = tiny_network()
    if tied:
        model.decoder.head.weight = model.decoder.embedding.weight
    before = model.decoder.embedding.weight.clone()
    quantize_decoder(model, "int8")
    assert torch.equal(model.decoder.embedding.weight, before)
    assert isinstance(model.decoder.head, PackedInt8Linear if packs else Int8Linear)
    hidden = torch.randn(1, 2, 16)
    wanted = F.linear(hidden, model.decoder.embedding.weight) if tied else None
    if tied:
        with torch.inference_mode():
            assert difference("", model.decoder.head(hidden), wanted).relative < 0.02


@pytest.fixture(scope="module")
def nano() -> FlashVL:
    return FlashVL.from_pretrained("nano", device="cpu", dtype="float32")


def quantized_nano(**options) -> FlashVL:
    return FlashVL.from_pretrained("nano", device="cpu", quantize="int8", **options)


def answers_of(flash: FlashVL) -> list[str]:
    answers = []
    for index in range(5):
        drawn = scene(scoring_number(5, index))
        pairs = [(drawn.picture, user(question.text)) for question in drawn.questions]
        answers += flash.chat_batch(pairs, max_new_tokens=40)
    return answers


@pytest.fixture(scope="module")
def float32_answers(nano) -> list[str]:
    return answers_of(nano)


# Of a run of 200 scenes: nano loses at most a few answers to int8.
EQUAL_ANSWERS = 0.9
LARGEST_LOGIT_DIFFERENCE = 0.05  # relative


def test_nano_answers_as_it_did(packs, float32_answers):
    """Greedy answers to every question of 5 scenes: at least 90 % are equal to float32's."""
    equal = [one == other for one, other in zip(answers_of(quantized_nano()), float32_answers)]
    assert len(equal) > 40
    assert sum(equal) / len(equal) >= EQUAL_ANSWERS, sum(equal) / len(equal)


def test_nanos_logits_are_close(packs, nano):
    flash = quantized_nano()
    for file in sorted((NANO / "pictures").glob("*.png")):
        prompt = nano.prepare(file, user(QUESTION))
        with torch.inference_mode():
            off = difference("logits", flash.model(*prompt), nano.model(*prompt))
        assert 0 < off.relative <= LARGEST_LOGIT_DIFFERENCE


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_every_way_of_asking_works(packs, dtype):
    flash = quantized_nano(dtype=dtype)
    file = sorted((NANO / "pictures").glob("*.png"))[0]
    answer = flash.chat(file, user(QUESTION))
    assert answer
    assert "".join(flash.stream(file, user(QUESTION))) == answer
    conversation = flash.start(file)
    assert conversation.ask(QUESTION) == answer
    assert conversation.ask("What colour is it?")
    assert trace(flash, load_image(file), QUESTION, 64)["answer"] == answer
    if dtype == "auto":
        assert flash.chat_batch([(file, user(QUESTION))] * 2) == [answer] * 2


def test_trace_counts_a_quantized_model_as_any_other(monkeypatch, nano):
    """The operations are those of the model; how the numbers are stored changes none of them."""
    monkeypatch.setattr(quantized_module, "has_fbgemm", lambda: False)
    both = (quantized_nano(), nano)
    of_int8, plain = (trace(flash, picture(200, 100), QUESTION, 4)["rows"] for flash in both)
    assert [row["operations"] for row in of_int8] == [row["operations"] for row in plain]


def test_where_fbgemm_is_absent_plain_torch_multiplies(monkeypatch):
    monkeypatch.setattr(quantized_module, "has_fbgemm", lambda: False)
    kinds = {type(module) for module in quantized_nano().model.decoder.modules()}
    assert Int8Linear in kinds
    assert PackedInt8Linear not in kinds


def test_a_model_with_int8_weights_is_not_saved(packs, tmp_path):
    with pytest.raises(CheckpointError, match="quantized weights is not saved"):
        quantized_nano().save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("value", ["int3", "INT8", "", 8, True, torch.int8, ["int8"]])
def test_other_quantizations_are_one_line(value):
    with pytest.raises(
        ArgumentError, match="quantize must be int8 or int4 or None, found"
    ) as refused:
        FlashVL.from_pretrained("nano", quantize=value)
    assert len(str(refused.value).splitlines()) == 1


# The command line.


@pytest.fixture
def quantized(monkeypatch) -> list[FlashVLModel]:
    """The models that are quantized while a test runs."""
    models = []

    def watched(model: FlashVLModel, *arguments) -> None:
        quantize_decoder(model, *arguments)
        models.append(model)

    monkeypatch.setattr(quantized_module, "quantize_decoder", watched)
    return models


def test_the_command_answers(quantized, capsys):
    file = sorted((NANO / "pictures").glob("*.png"))[0]
    options = ["--device", "cpu", "--quantize", "int8", "--image", str(file), QUESTION]
    assert main(["chat", *options]) == 0
    assert len(quantized) == 1
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out == quantized_nano().chat(file, user(QUESTION)) + "\n"


def test_the_command_scores(quantized, capsys):
    options = ["--device", "cpu", "--quantize", "int8", "--scenes", "3", "--seed", "1"]
    assert not main(["score", *options])
    assert len(quantized) == 1
    said = capsys.readouterr()
    assert said.err == ""
    result = score(quantized_nano(), [scoring_number(1, index) for index in range(3)])
    assert said.out.splitlines()[-1] == as_json(result, "nano", scenes=3, seed=1)


@pytest.mark.parametrize("name", ["chat", "score"])
def test_the_command_refuses_other_quantizations_in_one_line(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--quantize", "int3"])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "int3" in said
    assert "int8" in said
