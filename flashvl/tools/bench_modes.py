"""Ways of running a model that a user may ask for, each against the model as it is, turn about."""

from __future__ import annotations

from typing import Any

import torch

from ..model import FlashVL
from .bench_stages import QUESTION, Stages
from .bench_timing import compare, end_progress, seconds_of, show_progress

LOSS_TOKENS = 128


def compare_int8(stages: Stages, quantised: FlashVL, runs: int) -> dict[str, Any]:
    """Decode with int8 weights: the times of a token, their ratio, and what the weights lose."""
    other = Stages(quantised, stages.sizes)
    sides = {"int8": other.decode, "flashvl": stages.decode}
    decode = compare("decode", sides, runs, stages.model.device, steps=stages.sizes.new)
    return {"decode": decode, "loss": int8_loss(stages, quantised)}


@torch.inference_mode()
def int8_loss(stages: Stages, quantised: FlashVL) -> dict[str, Any]:
    """Both models read a picture, a question and the plain model's own greedy answer.

    Compared are the logits of each token of the answer, as many as `LOSS_TOKENS` or the context
    allows: the largest difference, also as a share of the largest logit, and how often both
    find the same token likeliest.
    """
    models = (stages.model, quantised)
    messages = [{"role": "user", "content": QUESTION}]
    decoders, logits = [], []
    for model in models:
        _, embeddings = model.embed_prompt(stages.picture, messages)  # (1, T, D)
        tokens = embeddings.shape[1]
        answer = min(LOSS_TOKENS, model.config.decoder.context - tokens)
        cache = stages.new_cache(tokens + answer)
        logits.append(model.steps.prefill(model.decoder, embeddings, cache))  # (1, V)
        decoders.append(model.steps.begin(model.decoder, cache))
    largest = scale = 0.0
    equal = 0
    for step in range(answer):
        show_progress(f"int8: token {step + 1} of {answer} compared", step / answer)
        plain, int8 = (one.float() for one in logits)  # 2 x (1, V)
        largest = max(largest, (plain - int8).abs().max().item())
        scale = max(scale, plain.abs().max().item())
        token = plain.argmax(dim=-1, keepdim=True)  # (1, 1)
        equal += int(token.item() == int8.argmax().item())
        if step + 1 < answer:
            logits = [decode(token) for decode in decoders]
    end_progress()
    return {
        "tokens": answer,
        "largest_difference": largest,
        "largest_logit": scale,
        "relative": largest / scale,
        "equal_tokens": equal / answer,
    }


def compare_compiled(stages: Stages, compiled: FlashVL, runs: int) -> dict[str, Any]:
    """Tower, prefill and decode through `torch.compile`: what compiling takes, then both times."""
    device = stages.model.device
    other = Stages(compiled, stages.sizes)
    result: dict[str, Any] = {}
    for name in ("vision", "prefill", "decode"):
        show_progress(f"compile: {name}", 0)
        compiling = seconds_of(other.stage(name), device)
        sides = {"compiled": other.stage(name), "flashvl": stages.stage(name)}
        steps = stages.sizes.new if name == "decode" else 1
        result[name] = compare(name, sides, runs, device, steps)
        result[name]["seconds_to_compile"] = compiling
    return result
