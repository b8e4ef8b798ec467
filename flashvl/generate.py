"""Generation: the prompt at once (prefill), then one token at a time (decode)."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from .cache import KVCache
from .decoder import Decoder
from .errors import ArgumentError, CheckpointError
from .sampling import Sampling, next_token
from .tokenizer import Tokenizer


def prefill(decoder: Decoder, embeddings: Tensor, cache: KVCache) -> Tensor:
    """Reads the prompt (B, T, D) into the cache -> logits of the last position (B, V)."""
    hidden = decoder(embeddings, cache)  # (B, T, D)
    return decoder.head(hidden[:, -1])  # (B, V)


def decode_one_token(decoder: Decoder, token: Tensor, cache: KVCache) -> Tensor:
    """Reads one more token (B, 1) into the cache -> logits after it (B, V)."""
    hidden = decoder(decoder.embedding(token), cache)  # (B, 1, D)
    return decoder.head(hidden[:, -1])  # (B, V)


@torch.inference_mode()
def generate(
    decoder: Decoder,
    embeddings: Tensor,
    text_ids: Tensor,
    max_new_tokens: int,
    sampling: Sampling,
    stop_ids: Collection[int],
) -> Iterator[int]:
    """Yields the ids of the answer to one prompt, without the stop token.

    embeddings (1, T, D); text_ids (1, T') are the prompt's own token ids, which the repetition
    penalty counts as seen. Ends at a stop id, after `max_new_tokens`, or at the end of the
    context.
    """
    config, device = decoder.config, embeddings.device
    tokens = embeddings.shape[1]
    capacity = min(tokens + max_new_tokens, config.context)
    cache = KVCache(config, capacity, device=device, dtype=embeddings.dtype)
    generator = None
    if sampling.do_sample:
        generator = torch.Generator(device)
        generator.seed() if sampling.seed is None else generator.manual_seed(sampling.seed)
    logits = prefill(decoder, embeddings, cache)
    seen = text_ids
    for step in range(capacity - tokens):
        if not logits.isfinite().all():
            raise CheckpointError(
                "the model gives numbers that are not finite; run `flashvl verify --values` on its "
                "folder, or use --dtype float32"
            )
        token = next_token(logits, seen, sampling, generator)  # (1, 1)
        token_id = token.item()
        if token_id in stop_ids:
            return
        yield token_id
        if step + 1 < capacity - tokens:
            seen = torch.cat((seen, token), dim=1)  # (1, T + 1)
            logits = decode_one_token(decoder, token, cache)


def whole_characters(ids: Iterator[int], tokenizer: Tokenizer) -> Iterator[str]:
    """Text pieces of the ids; tokens that end inside a character wait for the rest of it."""
    waiting: list[int] = []
    for token_id in ids:
        waiting.append(token_id)
        text = tokenizer.decode(waiting)
        if text and not text.endswith("\ufffd"):
            yield text
            waiting = []
    if waiting and (text := tokenizer.decode(waiting)):
        yield text


def check_max_new_tokens(value: object) -> None:
    """Raises `ArgumentError` unless `value` is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(f"max_new_tokens must be a whole number from 1, found {value!r}")
