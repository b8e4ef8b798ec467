"""Every layer and the logits beside transformers in float32, in each mode that the model runs in.

One random checkpoint of each kind, in bfloat16, so that each mode starts from the same numbers.
"Within t relative" means: the largest |ours - reference| of a layer's output is at most t of the
largest |reference| in it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from checkpoints import KINDS, make_checkpoint
from photographs import photograph
from reference import Reference
from test_layer_parity import QUESTION, assert_all_within, layer_differences

from flashvl import FlashVL, FlashVLModel
from flashvl.fast import cpu
from flashvl.fast import int8 as fast_int8
from flashvl.fast.compiled import StaticCache, decode_static
from flashvl.generation.generate import BeginDecode, DecodeStep, begin_decode, read_prompt
from flashvl.generation.sampling import Sampling
from flashvl.model.cache import KVCache
from flashvl.tools.parity import Difference, difference

FLOAT32 = 1e-5  # sums in another order
BFLOAT16 = 0.1  # 8 bits of precision, 4e-3, which a dozen layers multiply
INT8 = 0.1  # a step is 1/127 of a channel's largest weight, of which layers multiply half


def float32(folder, _) -> FlashVL:
    return FlashVL.from_pretrained(folder, device="cpu", dtype="float32")


def bfloat16(folder, _) -> FlashVL:
    return FlashVL.from_pretrained(folder, device="cpu", dtype="bfloat16")


def fitted(folder, monkeypatch, arithmetic: bool) -> FlashVL:
    monkeypatch.setattr(cpu, "WORTHWHILE_BYTES", 0)
    monkeypatch.setattr(cpu, "has_bfloat16_arithmetic", lambda: arithmetic)
    return FlashVL.from_pretrained(folder, device="cpu")


def widening(folder, monkeypatch) -> FlashVL:
    return fitted(folder, monkeypatch, arithmetic=False)


def one_row(folder, monkeypatch) -> FlashVL:
    return fitted(folder, monkeypatch, arithmetic=True)


def int8(folder, _) -> FlashVL:
    return FlashVL.from_pretrained(folder, device="cpu", dtype="float32", quantize="int8")


def int8_in_plain_torch(folder, monkeypatch) -> FlashVL:
    monkeypatch.setattr(fast_int8, "has_fbgemm", lambda: False)
    return int8(folder, monkeypatch)


def int8_and_widening(folder, monkeypatch) -> FlashVL:
    monkeypatch.setattr(cpu, "WORTHWHILE_BYTES", 0)
    monkeypatch.setattr(cpu, "has_bfloat16_arithmetic", lambda: False)
    return FlashVL.from_pretrained(folder, device="cpu", quantize="int8")


# Mode -> tolerance of tower and compressor, of the decoder's layers, of decoding.
MODES: dict[Callable, tuple[float, float, float]] = {
    float32: (FLOAT32, FLOAT32, FLOAT32),
    bfloat16: (BFLOAT16, BFLOAT16, BFLOAT16),
    widening: (FLOAT32, FLOAT32, BFLOAT16),  # one row is multiplied straight from bfloat16
    one_row: (BFLOAT16, BFLOAT16, BFLOAT16),
    int8: (FLOAT32, INT8, INT8),
    int8_in_plain_torch: (FLOAT32, INT8, INT8),
    int8_and_widening: (FLOAT32, INT8, INT8),
}
by_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.__name__)


@by_mode
@pytest.mark.parametrize("kind", KINDS)
def test_every_layer(kind, mode, tmp_path, monkeypatch):
    reference = make_checkpoint(tmp_path, kind=kind, seed=11, dtype=torch.bfloat16)
    flash = mode(tmp_path, monkeypatch)
    differences = layer_differences(flash, reference, [photograph("chelsea.png")])
    of_decoder = [one for one in differences if one.layer.startswith("decoder.")]
    others = [one for one in differences if one not in of_decoder]
    assert len(of_decoder) == reference.spec.layers + 3
    assert len(others) >= reference.spec.tower_layers + 6
    assert_all_within(others, MODES[mode][0])
    assert_all_within(of_decoder, MODES[mode][1])


def decoding_differences(
    flash: FlashVL, reference: Reference, begin: BeginDecode
) -> list[Difference]:
    """The logits after the prompt, and after each of some more tokens read one by one."""
    following = [40, 3, 99, 7, 250, 12]
    image = photograph("text.png")
    with torch.inference_mode():
        row = read_prompt(flash.model, flash.prepare(image, QUESTION), Sampling())
        tokens = row.cache.length
        row.cache.reserve(tokens + len(following))
        step = begin(flash.model, row.cache)
        logits = [row.logits, *(step(torch.tensor([[token_id]])) for token_id in following)]
    prompt = reference.prompt(image, QUESTION)
    table = reference.decoder.get_input_embeddings().weight
    with torch.no_grad():
        whole = reference.logits(torch.cat((prompt, table[following][None]), dim=1))[0]
    return [
        difference(f"token {place}", ours[0].float(), whole[tokens - 1 + place])
        for place, ours in enumerate(logits)
    ]


def begin_static(model: FlashVLModel, cache: KVCache) -> DecodeStep:
    """What `fast/compiled.py` compiles, as it is; a row of its cache stays empty."""
    held = StaticCache(cache, rows=2, capacity=cache.capacity + 20)
    held.load(cache)

    def step(tokens: torch.Tensor) -> torch.Tensor:
        held.tokens[:1] = tokens
        logits = decode_static(model, held.tokens, held)[:1]
        held.store(cache)
        return logits

    return step


@by_mode
@pytest.mark.parametrize("begin", [begin_decode, begin_static])
def test_token_by_token(mode, begin, tmp_path, monkeypatch):
    reference = make_checkpoint(tmp_path, seed=12, dtype=torch.bfloat16)
    flash = mode(tmp_path, monkeypatch)
    assert_all_within(decoding_differences(flash, reference, begin), MODES[mode][2])


def test_compiled(tmp_path, monkeypatch):
    """Tower, prefill and decode as `compile` leaves them, each in one graph; float32's tolerance.

    What dynamo caught runs as it is: inductor's own kernels stand in `fast/test_compiled.py`.
    """
    plain = torch.compile
    monkeypatch.setattr(
        torch,
        "compile",
        lambda function, *, mode=None, **options: plain(function, backend="eager", **options),
    )
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    reference = make_checkpoint(tmp_path, seed=13)
    flash = FlashVL.from_pretrained(tmp_path, device="cpu", dtype="float32")
    torch._dynamo.reset()
    flash.compile()
    try:
        assert_all_within(layer_differences(flash, reference, [photograph("text.png")]), FLOAT32)
        begin = flash.begin_decode
        assert_all_within(decoding_differences(flash, reference, begin), FLOAT32)
    finally:
        torch._dynamo.reset()
