"""The fast path of a CPU: its products beside float32's, and whole models fitted to either CPU.

"Within t relative" means: the largest |difference| is at most t of the largest value wanted.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from checkpoints import KINDS, make_checkpoint
from folders import SINGLE, load
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny import picture, user
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from flashvl import FlashVL
from flashvl.checkpoint.files import read_headers
from flashvl.fast import cpu
from flashvl.fast.cpu import (
    FEW_ROWS,
    OneRowLinear,
    WideningEmbedding,
    WideningLinear,
    fit_to_cpu,
    narrow_product,
    stays_in_bfloat16,
)
from flashvl.generation.generate import begin_decode, read_prompt
from flashvl.generation.sampling import Sampling
from flashvl.tools.look import look
from flashvl.tools.parity import difference
from flashvl.tools.trace.trace import trace

# Sums of float32 in another order.
FLOAT32_TOLERANCE = 1e-6
# The same through all layers of a tiny model.
MANY_ROWS_TOLERANCE = 1e-5
# bfloat16 has 8 bits of precision, 4e-3 relative, which the layers multiply.
BFLOAT16_TOLERANCE = 0.1

SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 70))  # D, width
LEADING = st.lists(st.integers(0, 5), max_size=3).map(tuple)
DTYPES = (torch.bfloat16, torch.float32)  # of the activations, without bfloat16's widening and with


def linear(width_in: int, width_out: int, bias: bool) -> nn.Linear:
    """A bfloat16 one with random weights."""
    return nn.Linear(width_in, width_out, bias=bias).bfloat16()


def within(ours: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> bool:
    assert ours.shape == wanted.shape
    return not wanted.numel() or difference("", ours, wanted).relative <= tolerance


def widened_product(x: torch.Tensor, like: nn.Linear) -> torch.Tensor:
    bias = None if like.bias is None else like.bias.double()
    return F.linear(x.double(), like.weight.double(), bias)


@given(SHAPES, LEADING, st.booleans())
@torch.inference_mode()
def test_products_of_many_rows_are_those_of_float32(shape, leading, bias):
    plain = linear(*shape, bias)
    x = torch.randn(*leading, FEW_ROWS + 1, shape[0])
    product = WideningLinear(plain)(x)
    assert product.dtype == torch.float32
    assert within(product, widened_product(x, plain), FLOAT32_TOLERANCE)


def rounded_once(product: torch.Tensor, x: torch.Tensor, like: nn.Linear) -> bool:
    """Whether each number is the exact one after a rounding to bfloat16, but for float32's sums."""
    exact = F.linear(x.double(), like.weight.double())
    of_sums = F.linear(x.double().abs(), like.weight.double().abs())
    assert product.shape == exact.shape
    off = (product.double() - exact).abs()
    return bool((off <= 2**-8 * exact.abs() + FLOAT32_TOLERANCE * of_sums).all())


@given(SHAPES, LEADING)
@torch.inference_mode()
def test_narrow_products_are_right_but_for_one_rounding(shape, leading):
    """As `F.linear`'s are, so that the two are at most a rounding apart."""
    plain = linear(*shape, bias=False)
    for x in (torch.randn(*leading, shape[0]).bfloat16(), torch.randn(1, 1, shape[0]).bfloat16()):
        product = narrow_product(x, plain.weight)
        assert product.dtype == torch.bfloat16
        assert rounded_once(product, x, plain)
        assert rounded_once(plain(x), x, plain)


@given(SHAPES, st.integers(0, FEW_ROWS), st.booleans())
@torch.inference_mode()
def test_products_of_few_rows_are_those_of_bfloat16(shape, rows, bias):
    plain = linear(*shape, bias)
    x = torch.randn(1, rows, shape[0])
    product = WideningLinear(plain)(x)
    assert product.dtype == torch.float32
    wanted = narrow_product(x.bfloat16(), plain.weight).float()
    if bias:
        wanted = wanted + plain.bias.float()
    assert torch.equal(product, wanted)


@given(SHAPES, LEADING, st.booleans())
@torch.inference_mode()
def test_products_straight_from_bfloat16_are_torchs_own(shape, leading, bias):
    plain = linear(*shape, bias)
    x = torch.randn(*leading, shape[0]).bfloat16()
    product = OneRowLinear(plain)(x)
    assert product.dtype == torch.bfloat16
    assert within(product, plain(x), 2**-7)  # sums in another order may round to a neighbor
    assert within(product, widened_product(x, plain), 2**-7)
    if x.shape[:-1].numel() > 1:
        assert torch.equal(product, plain(x))


class Watch(TorchDispatchMode):
    """Notes, at every operation of torch, whether oneDNN is enabled."""

    def __init__(self) -> None:
        super().__init__()
        self.enabled: list[bool] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.enabled.append(torch.backends.mkldnn.enabled)
        return function(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # of `flags`
@pytest.mark.parametrize("kind", [OneRowLinear, WideningLinear])
@pytest.mark.parametrize("enabled", [True, False])
@torch.inference_mode()
def test_no_flag_of_the_process_is_touched(kind, enabled):
    """Another thread may be computing: neither during a product, nor after one that fails."""
    layer = kind(linear(8, 8, True))
    dtype = torch.bfloat16 if kind is OneRowLinear else torch.float32
    with torch.backends.mkldnn.flags(enabled=enabled), Watch() as watch:
        for rows in (1, 2, FEW_ROWS + 3):
            layer(torch.randn(1, rows, 8, dtype=dtype))
        with pytest.raises(RuntimeError):
            layer(torch.randn(1, 5, dtype=dtype))
        assert torch.backends.mkldnn.enabled is enabled
    assert len(watch.enabled) > 10
    assert set(watch.enabled) == {enabled}


def test_two_threads_may_multiply_at_once():
    """One row and many, fitted in both ways; each product is the one that is computed alone."""
    layers = [OneRowLinear(linear(300, 500, True)), WideningLinear(linear(300, 500, True))]
    inputs = [torch.randn(rows, 300, dtype=torch.float32) for rows in (1, 3, 40)]

    @torch.inference_mode()
    def products() -> list[torch.Tensor]:
        return [layer(x.to(dtype)) for layer, dtype in zip(layers, DTYPES) for x in inputs]

    alone = products()
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda _: products(), range(100)))
    assert all(torch.equal(*pair) for some in together for pair in zip(some, alone))


def test_an_embedding_is_widened_row_by_row():
    embedding = nn.Embedding(20, 6).bfloat16()
    ids = torch.randint(0, 20, (2, 3))
    looked_up = WideningEmbedding(embedding)(ids)
    assert looked_up.dtype == torch.float32
    assert torch.equal(looked_up, embedding.weight.float()[ids])


# Whole models.


@pytest.fixture
def always_worthwhile(monkeypatch):
    monkeypatch.setattr(cpu, "WORTHWHILE_BYTES", 0)


def fitted(folder, monkeypatch, arithmetic: bool, **options) -> FlashVL:
    """`from_pretrained`'s "auto" on a CPU with or without arithmetic in bfloat16."""
    monkeypatch.setattr(cpu, "has_bfloat16_arithmetic", lambda: arithmetic)
    return load(folder, **options)


def mappings(name: str) -> list[range]:
    """Where files of this name are mapped into memory; Linux alone tells."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not tell which files are mapped")
    lines = [line.split() for line in maps.read_text().splitlines() if line.endswith(f"/{name}")]
    ends = [line[0].split("-") for line in lines]
    return [range(int(start, 16), int(end, 16)) for start, end in ends]


def step_logits(flash: FlashVL, image, steps: int) -> list[torch.Tensor]:
    """Logits of prefill and then of each decoded token, the same ids for every model."""
    with torch.inference_mode():
        row = read_prompt(flash.model, flash.prepare(image, user()), Sampling())
        row.cache.reserve(row.cache.length + steps)
        step = begin_decode(flash.model, row.cache)
        return [row.logits, *(step(torch.tensor([[50 + token]])) for token in range(steps))]


FORMS = {"head of its own": {}, "tied head, shards": {"tied": True, "shards": 2}}


@pytest.mark.usefixtures("always_worthwhile")
@pytest.mark.parametrize("arithmetic", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_a_fitted_model_gives_the_logits_of_float32(tmp_path, monkeypatch, kind, form, arithmetic):
    """Without arithmetic a prompt's are those of float32 but for the last row, which is the head's.

    The rest is at bfloat16's precision, and not exact: else nothing was saved.
    """
    make_checkpoint(tmp_path, kind=kind, dtype=torch.bfloat16, **FORMS[form])
    flash = fitted(tmp_path, monkeypatch, arithmetic)
    exact = load(tmp_path, dtype="float32")
    assert flash.model.dtype == torch.bfloat16
    assert flash.model.activation_dtype == (torch.bfloat16 if arithmetic else torch.float32)
    prompt = flash.prepare(picture(), user())
    with torch.inference_mode():
        logits, wanted = flash.model(*prompt), exact.model(*prompt)
    assert logits.dtype == flash.model.activation_dtype
    tolerance = BFLOAT16_TOLERANCE if arithmetic else MANY_ROWS_TOLERANCE
    assert within(logits, wanted, tolerance)
    pairs = list(zip(step_logits(flash, picture(), 6), step_logits(exact, picture(), 6)))
    off = [difference("logits", *pair).relative for pair in pairs]
    assert all(0 < one <= BFLOAT16_TOLERANCE for one in off), off


@pytest.mark.usefixtures("always_worthwhile")
@pytest.mark.parametrize("arithmetic", [False, True])
def test_answers_in_several_threads_are_those_of_each_alone(tmp_path, monkeypatch, arithmetic):
    """While one decodes, which multiplies one row, another reads its prompt."""
    make_checkpoint(tmp_path, dtype=torch.bfloat16)
    flash = fitted(tmp_path, monkeypatch, arithmetic)
    flash.stop_ids = frozenset()
    messages, images = user(), [picture(40, 20), picture(36, 36), None]
    drawn = {"do_sample": True, "seed": 1, "max_new_tokens": 12}

    def chat() -> list[str]:
        return [flash.chat(image, messages, max_new_tokens=12) for image in images]

    def batch() -> list[str]:
        return flash.chat_batch([(image, messages) for image in images], **drawn)

    def rounds() -> list[str]:
        asked = flash.start(images[0])
        return [asked.ask(question, max_new_tokens=9) for question in ("One?", "Two?")]

    ways = [chat, batch, rounds, chat]
    alone = [way() for way in ways]
    assert len({answer for answers in alone for answer in answers}) > 6
    with ThreadPoolExecutor(len(ways)) as pool:
        for _ in range(3):
            assert list(pool.map(lambda way: way(), ways)) == alone


@pytest.mark.usefixtures("always_worthwhile")
@pytest.mark.parametrize("arithmetic", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_weights_stay_where_they_are(tmp_path, monkeypatch, kind, tied, arithmetic):
    """Mapped from the file: fitting copies none but the small ones that it widens."""
    make_checkpoint(tmp_path, kind=kind, dtype=torch.bfloat16, tied=tied)
    places = {}

    def watched(model):
        places.update({name: tensor.data_ptr() for name, tensor in model.named_parameters()})
        assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16}
        fit_to_cpu(model)

    monkeypatch.setattr(cpu, "fit_to_cpu", watched)
    model = fitted(tmp_path, monkeypatch, arithmetic).model
    parameters = dict(model.named_parameters())
    assert parameters.keys() == places.keys()  # a tied head is no second parameter
    moved = {name for name, tensor in parameters.items() if tensor.data_ptr() != places[name]}
    assert moved == {name for name, one in parameters.items() if one.dtype != torch.bfloat16}
    small = {"vision.patch_embedding.weight", "vision.patch_embedding.bias"}
    small |= {"compressor.norm.weight", "compressor.norm.bias"}
    if kind == "static":  # its tower has LayerNorms
        small |= {name for name in parameters if "norm" in name and name.startswith("vision.")}
    assert moved == (set() if arithmetic else small)
    same = model.decoder.head.weight is model.decoder.embedding.weight
    assert same is tied
    mapped = mappings(SINGLE)
    for name in parameters.keys() - moved:
        assert any(parameters[name].data_ptr() in one for one in mapped), name


@pytest.mark.usefixtures("always_worthwhile")
@pytest.mark.parametrize("arithmetic", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_a_fitted_model_is_saved_as_it_was(tmp_path, monkeypatch, kind, tied, arithmetic):
    make_checkpoint(tmp_path / "first", kind=kind, dtype=torch.bfloat16, tied=tied)
    fitted(tmp_path / "first", monkeypatch, arithmetic).save_pretrained(tmp_path / "again")
    first, again = (load_file(tmp_path / name / SINGLE) for name in ("first", "again"))
    assert first.keys() == again.keys()
    for name, tensor in first.items():
        assert again[name].dtype == torch.bfloat16, name
        assert torch.equal(again[name], tensor), name


@pytest.mark.usefixtures("always_worthwhile")
@pytest.mark.parametrize("arithmetic", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_way_of_asking_works_on_a_fitted_model(tmp_path, monkeypatch, kind, arithmetic):
    make_checkpoint(tmp_path, kind=kind, dtype=torch.bfloat16)
    flash = fitted(tmp_path, monkeypatch, arithmetic)
    flash.stop_ids = frozenset()
    answer = flash.chat(picture(), user(), max_new_tokens=6)
    assert "".join(flash.stream(picture(), user(), max_new_tokens=6)) == answer
    conversation = flash.start(picture())
    assert conversation.ask("What is this?", max_new_tokens=6) == answer
    assert conversation._cache.keys.dtype == flash.model.activation_dtype
    assert isinstance(conversation.ask("And now?", max_new_tokens=6), str)
    batch = flash.chat_batch([(picture(), user())] * 2, max_new_tokens=6)
    assert batch[0] == batch[1]
    # The last of fewer rows than a tile has text too.
    assert isinstance(flash.chat(None, user(""), max_new_tokens=3), str)
    assert len(look(flash, picture(), "What is this?", 4)) == 4
    assert trace(flash, picture(), "What is this?", 6)["answer"] == answer


@pytest.mark.usefixtures("always_worthwhile")
@pytest.mark.parametrize("arithmetic", [False, True])
def test_trace_counts_a_fitted_model_as_any_other(tmp_path, monkeypatch, arithmetic):
    """The operations of the same stages, and of the embedding the rows of the ids alone."""
    make_checkpoint(tmp_path, dtype=torch.bfloat16)
    of_fitted, plain = (
        {row["name"]: row for row in trace(flash, picture(), "What?", 3)["rows"]}
        for flash in (
            fitted(tmp_path, monkeypatch, arithmetic),
            load(tmp_path, dtype="bfloat16"),
        )
    )
    assert of_fitted.keys() == plain.keys()
    for name, row in plain.items():
        assert of_fitted[name]["operations"] == row["operations"], name
        assert of_fitted[name]["parameters"] == row["parameters"], name
        assert of_fitted[name]["bytes"] <= 2 * row["bytes"], name


# Which models are fitted.


def kept(folder, **options) -> torch.dtype:
    return load(folder, **options).model.dtype


def test_auto_keeps_large_bfloat16_alone(tmp_path, monkeypatch):
    for name, dtype in (("bf16", torch.bfloat16), ("f32", torch.float32), ("f16", torch.float16)):
        make_checkpoint(tmp_path / name, dtype=dtype)
    assert kept(tmp_path / "bf16") == torch.float32  # small
    headers = read_headers(tmp_path / "bf16")
    size = sum(tensor.nbytes for tensor in load_file(tmp_path / "bf16" / SINGLE).values())
    monkeypatch.setattr(cpu, "WORTHWHILE_BYTES", size)
    assert not stays_in_bfloat16(headers)
    monkeypatch.setattr(cpu, "WORTHWHILE_BYTES", size - 1)
    assert stays_in_bfloat16(headers)
    assert kept(tmp_path / "bf16") == torch.bfloat16
    assert kept(tmp_path / "f32") == torch.float32
    assert kept(tmp_path / "f16") == torch.float32


@pytest.mark.usefixtures("always_worthwhile")
def test_one_tensor_of_another_dtype_is_enough_to_compute_in_float32(tmp_path):
    make_checkpoint(tmp_path, dtype=torch.bfloat16)
    headers = read_headers(tmp_path)
    name = "llm.model.norm.weight"
    changed = type(headers[name])(headers[name].file, "F32", headers[name].shape)
    assert stays_in_bfloat16(headers)
    assert not stays_in_bfloat16(headers | {name: changed})


@pytest.mark.usefixtures("always_worthwhile")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_dtype_that_is_asked_for_is_left_alone(tmp_path, dtype):
    make_checkpoint(tmp_path, dtype=torch.bfloat16)
    model = load(tmp_path, dtype=dtype).model
    wanted = getattr(torch, dtype)
    assert {tensor.dtype for tensor in model.parameters()} == {wanted}
    assert model.activation_dtype == wanted
    of_fast_path = OneRowLinear | WideningLinear | WideningEmbedding
    assert not any(isinstance(module, of_fast_path) for module in model.modules())


@pytest.mark.usefixtures("always_worthwhile")
def test_nano_fitted_to_a_cpu_without_bfloat16_reads_pictures_as_well(monkeypatch):
    """Its greedy answers about its own pictures; bfloat16 may tip a balance, here it does not."""
    monkeypatch.setattr(cpu, "has_bfloat16_arithmetic", lambda: False)
    nano = load("nano", dtype="float32")
    fast = load("nano")
    assert (nano.model.dtype, fast.model.dtype) == (torch.float32, torch.bfloat16)
    pictures = sorted((nano.folder / "pictures").glob("*.png"))
    for image in pictures[:2]:
        question = user("What is in the picture?")
        assert fast.chat(image, question) == nano.chat(image, question)
