"""Generation: prompts at once (prefill), then one token at a time (decode), for one row or many.

Each prompt is read alone, so that a row computes what it would compute alone and the memory for
pictures does not grow with the batch. Then all rows decode side by side; one that has its answer
leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import CheckpointError, MessageError
from ..input.processor import Prompt, text_ids
from ..input.tokenizer import Tokenizer
from ..model.cache import KVCache
from ..model.network import FlashVLModel, image_places
from .sampling import Sampling, next_token

LAST = slice(-1, None)  # of a row's tokens
NOT_FINITE = -1  # in the place of a token's id
CHARACTER_TOKENS = 4  # at most, for UTF-8 has as many bytes

# Reads tokens (B, 1) into a cache -> logits after them (B, V). `begin_decode` binds the cache.
DecodeStep = Callable[[Tensor], Tensor]
BeginDecode = Callable[[FlashVLModel, KVCache], DecodeStep]


@dataclass
class Row:
    """A prompt that has been read, and its answer as it grows to at most `limit` tokens.

    logits (1, V) follow the last token in the `cache`. `seen` (1, T) are the ids that the
    repetition penalty counts: the prompt's text and the answer. `number` counts the rows of a
    batch from 1; None: there is one row.
    """

    logits: Tensor
    cache: KVCache
    seen: Tensor
    limit: int
    generator: torch.Generator | None
    number: int | None = None
    ids: list[int] = field(default_factory=list)


@torch.inference_mode()
def read_picture(model: FlashVLModel, prompt: Prompt) -> KVCache:
    """A cache that holds the beginning of a prompt up to its last image token.

    All prompts about a picture share it. Without a picture nothing is shared: the cache is empty.
    """
    cache = new_cache(model)
    if prompt.pixels is not None:
        shared = int(image_places(prompt.input_ids)[0].nonzero()[-1]) + 1
        cache.reserve(shared)
        ids = prompt.input_ids[:, :shared]
        model(ids, prompt.pixels, prompt.grids, cache=cache, logits_at=slice(0))
    return cache


@torch.inference_mode()
def read_prompt(
    model: FlashVLModel,
    prompt: Prompt,
    sampling: Sampling,
    cache: KVCache | None = None,
    number: int | None = None,
) -> Row:
    """Prefill: reads what the `cache` does not hold yet of a prompt, which gets a row.

    The picture is in the cache wholly or not at all. Raises `MessageError` if the prompt leaves no
    room for an answer.
    """
    tokens, context = prompt.input_ids.shape[1], model.config.decoder.context
    check_length(tokens, context)
    limit = min(sampling.max_new_tokens, context - tokens)
    cache = cache or new_cache(model)
    # A row of a batch answers in the joint cache. Room for a token at least: a full cache would be
    # another shape to compile.
    cache.reserve(tokens + (limit if number is None else 1))
    new_ids = prompt.input_ids[:, cache.length :]  # (1, T - length)
    logits = model(new_ids, prompt.pixels, prompt.grids, cache=cache, logits_at=LAST)  # (1, 1, V)
    generator = new_generator(sampling, model.device)
    return Row(logits[:, -1], cache, text_ids(prompt.input_ids), limit, generator, number)


@torch.inference_mode()
def generate(
    model: FlashVLModel,
    rows: Sequence[Row],
    sampling: Sampling,
    stop_ids: Collection[int],
    begin: BeginDecode | None = None,
) -> Iterator[list[Row]]:
    """The one loop: yields, step by step, the rows whose answers have grown by a token.

    A row ends at a stop id, which is not part of its answer, after its limit, or at the end of the
    context. A token that was given is read into the cache only when the next one is asked for.
    Raises `CheckpointError` for logits that are not finite.
    """
    rows, begin = list(rows), begin or begin_decode
    cache = joint_cache(model, rows)
    logits = torch.cat([row.logits for row in rows])  # (B, V)
    step = begin(model, cache)
    while True:
        tokens = choose_tokens(logits, rows, sampling)  # (B, 1)
        grown, going_on = [], []
        for place, (row, token_id) in enumerate(zip(rows, tokens[:, 0].tolist())):
            check_finite(token_id, row.number)
            if token_id in stop_ids:
                continue
            row.ids.append(token_id)
            row.seen = torch.cat((row.seen, tokens[place : place + 1]), dim=1)  # (1, T + 1)
            grown.append(row)
            if len(row.ids) < row.limit:
                going_on.append(place)
        if grown:
            yield grown
        if not going_on:
            return
        if len(going_on) < len(rows):
            rows, tokens = [rows[place] for place in going_on], tokens[going_on]
            cache.keep(going_on)
            step = begin(model, cache)
        logits = step(tokens)  # (B, V)


def begin_decode(model: FlashVLModel, cache: KVCache) -> DecodeStep:
    """Decode as it is; `fast/compiled.py` has another way."""

    def step(tokens: Tensor) -> Tensor:
        return model(tokens, cache=cache, logits_at=LAST)[:, -1]  # (B, V)

    return step


def new_cache(model: FlashVLModel) -> KVCache:
    """An empty cache for one row of a model."""
    return KVCache(model.config.decoder, 0, device=model.device, dtype=model.activation_dtype)


def joint_cache(model: FlashVLModel, rows: Sequence[Row]) -> KVCache:
    """The cache of one row, or one of all rows, with room for their answers."""
    capacity = max(row.cache.length for row in rows) + max(row.limit for row in rows)
    if len(rows) == 1:
        rows[0].cache.reserve(capacity)
        return rows[0].cache
    cache = KVCache.side_by_side(model.config.decoder, [row.cache for row in rows], capacity)
    for row in rows:
        row.cache = cache  # the copies would only take memory
    return cache


def choose_tokens(logits: Tensor, rows: Sequence[Row], sampling: Sampling) -> Tensor:
    """Row by row, so that each draws as it would alone. (B, V) -> ids (B, 1).

    `NOT_FINITE` for rows whose logits are not all finite: asked of the device with the ids.
    """
    finite = logits.isfinite().all(dim=-1, keepdim=True)  # (B, 1)
    logits = logits.where(finite, 0)  # (B, V)
    tokens = [
        next_token(one[None], row.seen, sampling, row.generator) for one, row in zip(logits, rows)
    ]  # each (1, 1)
    return torch.cat(tokens).where(finite, NOT_FINITE)  # (B, 1)


def check_finite(token_id: int, number: int | None) -> None:
    """Raises `CheckpointError` if an id of `choose_tokens` is `NOT_FINITE`."""
    if token_id == NOT_FINITE:
        row = "" if number is None else f"row {number} of the batch: "
        raise CheckpointError(
            f"{row}the model gives numbers that are not finite; load it in float32, and if that "
            "does not help, its weights may be damaged, which flashvl verify can tell"
        )


def new_generator(sampling: Sampling, device: torch.device) -> torch.Generator | None:
    """The random numbers of one answer; None if it is greedy."""
    if not sampling.do_sample:
        return None
    generator = torch.Generator(device)
    generator.seed() if sampling.seed is None else generator.manual_seed(sampling.seed)
    return generator


def whole_characters(ids: Iterator[int], tokenizer: Tokenizer) -> Iterator[str]:
    """Text pieces of the ids; tokens that end inside a character wait for the rest of it."""
    waiting: list[int] = []
    for token_id in ids:
        waiting.append(token_id)
        text = tokenizer.decode(waiting)
        if text and not text.endswith("\ufffd"):
            yield text
            waiting = []
        elif len(waiting) > CHARACTER_TOKENS:  # a broken one: what came before it need not wait
            for rest in range(1, CHARACTER_TOKENS):
                before = tokenizer.decode(waiting[:-rest])
                if before and before + tokenizer.decode(waiting[-rest:]) == text:
                    yield before
                    waiting = waiting[-rest:]
                    break
    if waiting and (text := tokenizer.decode(waiting)):
        yield text


def check_length(tokens: int, context: int) -> None:
    """Raises `MessageError` if a prompt of `tokens` leaves no room for an answer."""
    if tokens >= context:
        raise MessageError(
            f"the prompt has {tokens} tokens, the model's context {context}; use a shorter "
            "conversation or a picture of fewer tiles"
        )
