"""int4 weights: how near they come, torch's kernel against plain torch, what is kept on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import user
from torch import nn

from flashvl import FlashVL
from flashvl.cli import main
from flashvl.errors import CheckpointError
from flashvl.fast import cpu, quantized
from flashvl.fast.cpu import FEW_ROWS
from flashvl.fast.int4 import (
    GROUP,
    Int4,
    Int4Linear,
    PackedInt4Linear,
    fits_int4,
    has_int4_product,
    pack,
    to_int4,
    widened,
)
from flashvl.fast.int8 import Int8Linear, PackedInt8Linear
from flashvl.fast.quantized import FewRowsQuantized
from flashvl.nano.score import score
from flashvl.nano.world.scenes import scoring_number
from flashvl.tools.parity import difference

NANO = Path(__file__).parents[2] / "weights" / "nano"
QUESTION = "What is in the picture?"
SEEDS = st.integers(0, 2**32 - 1)
needs_kernel = pytest.mark.skipif(not has_int4_product(), reason="torch has no int4 kernel here")


def nearest(weight: torch.Tensor) -> torch.Tensor:
    """What rounding to 16 evenly spaced values of each group makes of a weight, in float32."""
    groups = weight.float().unflatten(1, (-1, GROUP))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = ((high - low) / 15).clamp(min=1e-30)
    return (((groups - low) / step).round() * step + low).flatten(1)


def squared_error(found: torch.Tensor, weight: torch.Tensor) -> float:
    return (found - weight.float()).square().mean().item()


# The weights.


@given(SEEDS, st.sampled_from([1, 3, 16]), st.sampled_from([1, 2, 5]), st.floats(-20, 20))
def test_four_bits_are_what_they_say(seed, width, groups, exponent):
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(width, groups * GROUP, generator=random) * 2.0**exponent
    four = to_int4(weight)
    assert (four.numbers.dtype, four.numbers.shape) == (torch.uint8, weight.shape)
    assert four.numbers.max() <= 15
    assert four.scales.dtype == four.zeros.dtype == torch.bfloat16
    assert four.scales.shape == four.zeros.shape == (width, groups)
    assert (four.scales > 0).all()
    # Each number is the nearest of the 16 that its group has.
    low = four.zeros.float() - 8 * four.scales.float()
    choices = low[..., None] + four.scales.float()[..., None] * torch.arange(16)
    apart = (weight.unflatten(1, (-1, GROUP))[..., None] - choices[:, :, None]).abs()
    found = (weight - widened(four)).abs().unflatten(1, (-1, GROUP))
    assert (found <= apart.amin(-1) + 1e-5 * 2.0**exponent).all()


@pytest.mark.parametrize("heavy", [False, True])
def test_fitting_leaves_less_error_than_rounding_to_the_nearest(heavy):
    """About a tenth less, and never more of the whole."""
    torch.manual_seed(0)
    weight = (
        torch.distributions.StudentT(4.0).sample((256, 512)) if heavy else torch.randn(256, 512)
    )
    share = squared_error(widened(to_int4(weight)), weight) / squared_error(nearest(weight), weight)
    assert 0.8 < share < 0.95


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_groups_of_one_value_or_of_sixteen_evenly_spaced_ones_are_exact(dtype):
    values = (torch.randint(16, (5, 3 * GROUP)) - 8).to(dtype) / 4
    values[:, ::GROUP], values[:, 1::GROUP] = -2, 1.75  # the smallest and the largest
    values[1] = 3
    values[2] = 0
    assert torch.equal(widened(to_int4(values)), values.float())


def test_what_is_not_finite_stays_so():
    weight = torch.randn(4, 2 * GROUP)
    weight[1, 3], weight[2, GROUP] = torch.nan, torch.inf
    finite = widened(to_int4(weight)).isfinite().unflatten(1, (-1, GROUP)).all(-1)
    assert finite.tolist() == [[True, True], [False, True], [True, False], [True, True]]


# The products.


def packed(four: Int4, dtype: torch.dtype, bias: nn.Parameter | None = None) -> PackedInt4Linear:
    numbers, scales_and_zeros = pack(four)
    return PackedInt4Linear(numbers, scales_and_zeros.to(dtype), bias)


@needs_kernel
@given(
    SEEDS,
    st.sampled_from([16, 48, 64, 80]),
    st.sampled_from([1, 3]),
    st.integers(1, 9),
    st.booleans(),
)
@torch.inference_mode()
def test_the_kernel_and_plain_torch_multiply_by_the_same_weight(seed, width, groups, rows, bias):
    torch.manual_seed(seed)
    plain = nn.Linear(groups * GROUP, width, bias=bias)
    four = to_int4(plain.weight)
    x = torch.randn(2, rows, groups * GROUP)
    exact = nn.Linear(groups * GROUP, width, bias=bias).double()
    exact.weight.copy_(widened(four))
    if bias:
        exact.bias.copy_(plain.bias)
    for layer in (packed(four, torch.float32, plain.bias), Int4Linear(four, plain.bias)):
        product = layer(x)
        assert (product.dtype, product.shape) == (torch.float32, (2, rows, width))
        assert difference("", product, exact(x.double())).relative <= 1e-5
    product = packed(four, torch.bfloat16, plain.bias)(x.bfloat16())
    assert product.dtype == torch.bfloat16
    exact = exact(x.bfloat16().double())
    assert difference("", product, exact).relative <= 2**-6


@needs_kernel
@torch.inference_mode()
def test_no_rows_give_no_rows():
    four = to_int4(torch.randn(16, GROUP))
    for layer in (packed(four, torch.float32), Int4Linear(four, None)):
        assert layer(torch.zeros(2, 0, GROUP)).shape == (2, 0, 16)


def test_what_does_not_fit_is_told():
    assert fits_int4(nn.Linear(GROUP, 16))
    assert not fits_int4(nn.Linear(GROUP + 32, 16))
    assert not fits_int4(nn.Linear(GROUP, 24))


# Models.


def nano(**options) -> FlashVL:
    return FlashVL.from_pretrained("nano", device="cpu", **options)


@pytest.fixture(params=[pytest.param(True, marks=needs_kernel), False], ids=["kernel", "plain"])
def kernel(request, monkeypatch) -> bool:
    monkeypatch.setattr(quantized, "has_int4_product", lambda: request.param)
    return request.param


def test_the_decoders_matrices_are_int4_and_the_head_is_int8(kernel):
    decoder = nano(quantize="int4").model.decoder
    kinds = {name: type(module) for name, module in decoder.named_modules()}
    plain = [name for name, one in nano().model.decoder.named_modules() if type(one) is nn.Linear]
    assert kinds.pop("head") in (Int8Linear, PackedInt8Linear)
    assert len(plain) == 4 * 7 + 1
    wanted = FewRowsQuantized if kernel else Int4Linear
    assert {kinds[name] for name in plain if name != "head"} == {wanted}
    assert (PackedInt4Linear in kinds.values()) == kernel


def test_nano_answers_nearly_as_it_did(kernel):
    scenes = [scoring_number(3, number) for number in range(20)]
    right = []
    for flash in (nano(), nano(quantize="int4")):
        counted = score(flash, scenes).values()
        right.append(sum(one for one, _ in counted) / sum(asked for _, asked in counted))
    assert abs(right[0] - right[1]) <= 0.02


def test_it_is_not_saved(tmp_path):
    with pytest.raises(CheckpointError, match="quantized"):
        nano(quantize="int4").save_pretrained(tmp_path / "new")


def test_the_command_answers(capsys):
    file = sorted((NANO / "pictures").glob("*.png"))[0]
    assert main(["chat", "--quantize", "int4", "--image", str(file), QUESTION]) == 0
    assert capsys.readouterr().out == nano(quantize="int4").chat(file, user(QUESTION)) + "\n"


# Models whose weights stay mapped.


@pytest.fixture
def mapped(monkeypatch, tmp_path) -> Path:
    """Loads nano as a large model is loaded -> the user's cache folder."""
    monkeypatch.setattr(cpu, "WORTHWHILE_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "flashvl"


@pytest.mark.parametrize("form", ["int8", "int4"])
@torch.inference_mode()
def test_many_rows_take_the_weights_as_they_are(mapped, form):
    plain, flash = nano(), nano(quantize=form)
    layer = flash.model.decoder.layers[0].mlp.gate
    assert isinstance(layer, FewRowsQuantized)
    for rows in (1, FEW_ROWS, FEW_ROWS + 1):
        x = torch.randn(1, rows, 128).to(plain.model.activation_dtype)
        exact, found = plain.model.decoder.layers[0].mlp.gate(x), layer(x)
        assert torch.equal(exact, found) == (rows > FEW_ROWS)
        assert difference("", found, exact).relative < 0.2
    ids = torch.arange(20)[None]
    assert torch.equal(flash.model(ids), plain.model(ids))


@needs_kernel
@torch.inference_mode()
def test_what_was_packed_is_kept_and_taken_again(mapped, monkeypatch):
    ids = torch.arange(3)[None]
    first = nano(quantize="int4").model(ids)
    (kept,) = mapped.iterdir()
    assert kept.name.startswith("int4-")
    monkeypatch.setattr(quantized, "to_int4", None)  # it is not called again
    assert torch.equal(nano(quantize="int4").model(ids), first)


@needs_kernel
@torch.inference_mode()
def test_changed_weights_are_packed_anew(mapped, tmp_path):
    ids = torch.arange(3)[None]
    folder = tmp_path / "own"
    nano(dtype="bfloat16").save_pretrained(folder)
    before = FlashVL.from_pretrained(folder, device="cpu", quantize="int4").model(ids)
    other = nano(dtype="bfloat16")
    other.model.decoder.layers[0].mlp.gate.weight *= -1
    other.save_pretrained(folder, overwrite=True)
    after = FlashVL.from_pretrained(folder, device="cpu", quantize="int4").model(ids)
    assert not torch.equal(before, after)
    assert len(list(mapped.iterdir())) == 2


@needs_kernel
@pytest.mark.parametrize("damage", ["cut", "other", "empty", "folder"])
@torch.inference_mode()
def test_what_is_damaged_is_made_again(mapped, damage):
    ids = torch.arange(3)[None]
    first = nano(quantize="int4").model(ids)
    (kept,) = mapped.iterdir()
    whole = kept.read_bytes()
    kept.unlink()
    if damage == "folder":
        kept.mkdir()
    else:
        other = whole.replace(b'"U8"', b'"I8"')
        kept.write_bytes({"cut": whole[:-100], "other": other, "empty": b""}[damage])
    assert torch.equal(nano(quantize="int4").model(ids), first)
    if damage != "folder":
        assert kept.read_bytes() == whole


@needs_kernel
def test_without_a_place_to_keep_it_the_model_is_loaded_all_the_same(mapped, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert nano(quantize="int4").chat(None, user("Hello!"))
