"""What a model is held against: transformers with the same weights, quantized ones, compiling.

Both sides run by turns in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...chat import FlashVL
from ...generation.generate import generate, joint_cache, read_prompt
from ...generation.sampling import Sampling
from ...model.recording import recorded
from ...terminal import end_progress, show_progress
from ..transformers_modules import Published, build_decoder, build_tower, import_transformers
from .ceilings import MEASURED
from .measure import compare, multiplies_bfloat16, seconds_of
from .stages import Stages

LOSS_TOKENS = 512  # over which quantized weights are held against the plain ones


def compare_with_transformers(stages: Stages, folder: Path, runs: int) -> dict[str, Any]:
    """Stage -> dtype of transformers' side -> both sides' times and their ratio.

    transformers runs as its users run it: eager, with its default attention (sdpa) and cache
    (`DynamicCache`), prefill with the logits of the last position alone, decode as its `generate`
    does greedily; in float32, and in bfloat16 as stored, which its `dtype="auto"` gives. One module
    at a time is in memory beside ours. It has no counterpart to the preprocessing and the
    compressor.

    None stands in place of the tower in bfloat16 where the processor does not multiply it: one
    tile would take over 20 minutes.
    """
    result: dict[str, Any] = {"vision": {}, "prefill": {}, "decode": {}}
    for dtype in MEASURED:
        hopeless = dtype == "bfloat16" and not multiplies_bfloat16(stages.flash.model.device)
        result["vision"][dtype] = None if hopeless else compare_towers(stages, folder, dtype, runs)
    for dtype in MEASURED:
        prefill, decode = compare_decoders(stages, folder, dtype, runs)
        result["prefill"][dtype], result["decode"][dtype] = prefill, decode
    return result


def compare_towers(stages: Stages, folder: Path, dtype: str, runs: int) -> dict[str, Any]:
    model, side = stages.flash.model, stages.pixels.shape[-1]
    published = Published(folder, getattr(torch, dtype))
    tower = build_tower(published, model.config.vision, side).to(model.device)
    theirs = partial(run_tower, tower, stages.pixels.to(published.dtype))
    sides: dict[str, Callable[[], object]] = {
        "flashvl": stages.vision,
        f"transformers {dtype}": theirs,
    }
    return compare("vision", sides, runs, model.device)


def compare_decoders(
    stages: Stages, folder: Path, dtype: str, runs: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """-> prefill's comparison, and decode's of one token."""
    device, name, new = stages.flash.model.device, f"transformers {dtype}", stages.sizes.new
    decoder = build_decoder(Published(folder, getattr(torch, dtype))).to(device)
    peer = PeerDecoder(decoder, stages.text.input_ids, new)
    prefill = {"flashvl": stages.prefill, name: peer.prefill}
    decode = {"flashvl": stages.decode, name: peer.decode}
    return (
        compare("prefill", prefill, runs, device),
        compare("decode", decode, runs, device, steps=new),
    )


@torch.inference_mode()
def run_tower(tower: nn.Module, pixels: Tensor) -> Tensor:
    """transformers' tower. (S, C, height, width) -> features (S, N, vision width)."""
    return tower(pixels).last_hidden_state


class PeerDecoder:
    """transformers' decoder with a prompt of text; each method runs a stage once.

    ids (1, T); `new` tokens to decode after them.
    """

    def __init__(self, decoder: nn.Module, ids: Tensor, new: int) -> None:
        self.decoder, self.ids, self.new = decoder, ids, new
        self.first = torch.zeros(1, 1, dtype=torch.long, device=ids.device)  # (1, 1)
        self.cache: Any = None

    @torch.inference_mode()
    def prefill(self) -> None:
        self.cache = import_transformers().DynamicCache(config=self.decoder.config)
        self._read(self.ids)

    @torch.inference_mode()
    def decode(self) -> None:
        """All new tokens, each looked at; then the cache holds the prompt alone again."""
        token = self.first
        for _ in range(self.new):
            token = self._read(token).argmax(dim=-1, keepdim=True)  # (1, 1)
            token.item()
        self.cache.crop(-self.new)

    def _read(self, ids: Tensor) -> Tensor:
        """ids (1, T) -> the last position's logits (1, V)."""
        output = self.decoder(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1]  # (1, V)


def compare_quantized(stages: Stages, quantized: FlashVL, form: str, runs: int) -> dict[str, Any]:
    """Prefill and decode with quantized weights: both times, and what the weights lose."""
    device, other = stages.flash.model.device, Stages(quantized, stages.sizes)
    result: dict[str, Any] = {"form": form}
    for name in ("prefill", "decode"):
        sides = {form: other.by_name[name], "flashvl": stages.by_name[name]}
        result[name] = compare(name, sides, runs, device, stages.sizes.steps(name))
    return result | {"loss": quantization_loss(stages, quantized)}


@torch.inference_mode()
def quantization_loss(stages: Stages, quantized: FlashVL) -> dict[str, Any]:
    """Both models read a picture, a question and the plain model's own greedy answer.

    Compared are the logits of each token of the answer, as many as `LOSS_TOKENS` or the context
    allows: the differences, the largest also as a share of the largest logit; the Kullback-Leibler
    divergence of what the quantized model expects from what the plain one does, in nats a token;
    how often both find the same token likeliest; and of each layer's output the error's share of
    its size.
    """
    prompt, sampling = stages.preprocess(), Sampling(max_new_tokens=LOSS_TOKENS)
    both = (stages.flash.model, quantized.model)
    rows = [read_prompt(model, prompt, sampling) for model in both]
    steps = [
        flash.begin_decode(flash.model, joint_cache(flash.model, [row]))
        for flash, row in zip((stages.flash, quantized), rows)
    ]
    layers = [f"layers.{number}" for number in range(len(both[0].decoder.layers))]
    tokens = rows[0].limit
    logits = [row.logits for row in rows]  # 2 x (1, V)
    differences, divergences, errors = [], [], []
    largest_logit, equal = 0.0, 0
    with recorded(both[0].decoder, layers) as as_is, recorded(both[1].decoder, layers) as rounded:
        for number in range(1, tokens + 1):
            show_progress(f"loss: token {number} of {tokens}", (number - 1) / tokens)
            plain, other = (one.double() for one in logits)  # 2 x (1, V)
            differences.append((plain - other).abs())  # (1, V)
            expected = plain.log_softmax(-1)  # (1, V)
            divergences.append((expected.exp() * (expected - other.log_softmax(-1))).sum().item())
            largest_logit = max(largest_logit, plain.abs().max().item())
            token = plain.argmax(dim=-1, keepdim=True)  # (1, 1)
            equal += int(token.item() == other.argmax().item())
            if number < tokens:
                logits = [step(token) for step in steps]
                errors.append([relative_error(rounded[name], as_is[name]) for name in layers])
    end_progress()
    largest = max(one.max().item() for one in differences)
    return {
        "tokens": tokens,
        "largest_difference": largest,
        "mean_difference": sum(one.mean().item() for one in differences) / tokens,
        "largest_logit": largest_logit,
        "relative": largest / largest_logit,
        "divergence": sum(divergences) / tokens,
        "equal_tokens": equal / tokens,
        "layers": [sum(layer) / len(layer) for layer in zip(*errors)],
    }


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).float().norm() / wanted.float().norm()).item()


def compare_batch(stages: Stages, rows: int, runs: int) -> dict[str, Any]:
    """Pictures with a question each, from picture to answer: side by side, and one by one.

    Each answer has as many tokens as decode's, unless it ends before.
    """
    flash, sampling = stages.flash, Sampling(max_new_tokens=stages.sizes.new)
    tokens: list[int] = []

    def answer(numbers: Sequence[int | None]) -> int:
        """-> how many tokens all answers have."""
        read = [
            read_prompt(flash.model, stages.preprocess(), sampling, number=one) for one in numbers
        ]
        for _ in generate(flash.model, read, sampling, flash.stop_ids, flash.begin_decode):
            pass
        return sum(len(row.ids) for row in read)

    def together() -> None:
        tokens.append(answer(range(1, rows + 1)))

    def one_by_one() -> None:
        for _ in range(rows):
            answer([None])

    sides = {"together": together, "one by one": one_by_one}
    found = compare(f"{rows} answers", sides, runs, flash.model.device)
    return found | {"rows": rows, "tokens": tokens[-1]}


def compare_compiled(stages: Stages, compiled: FlashVL, runs: int) -> dict[str, Any]:
    """Tower, prefill and decode through `torch.compile`: what compiling takes, then both times.

    `compiled` is the same model after `FlashVL.compile`.
    """
    device, other = stages.flash.model.device, Stages(compiled, stages.sizes)
    result: dict[str, Any] = {}
    for name in ("vision", "prefill", "decode"):
        show_progress(f"compile: {name}", 0)
        compiling = seconds_of(other.by_name[name], device)
        sides = {"compiled": other.by_name[name], "flashvl": stages.by_name[name]}
        result[name] = compare(name, sides, runs, device, stages.sizes.steps(name))
        result[name]["seconds_to_compile"] = compiling
    return result
