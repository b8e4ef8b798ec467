"""Generation: the prompt at once (prefill), then one token at a time (decode)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial

import torch
from torch import Tensor

from .cache import KVCache
from .decoder import Decoder
from .errors import ArgumentError, CheckpointError, MessageError
from .sampling import Sampling, next_token
from .tokenizer import Tokenizer

NOT_FINITE = -1  # in the place of a token's id


def prefill(decoder: Decoder, embeddings: Tensor, cache: KVCache) -> Tensor:
    """Reads the prompt (B, T, D) into the cache -> logits of the last position (B, V)."""
    hidden = decoder(embeddings, cache)  # (B, T, D)
    return decoder.head(hidden[:, -1])  # (B, V)


def decode_one_token(decoder: Decoder, token: Tensor, cache: KVCache) -> Tensor:
    """Reads one more token (B, 1) into the cache -> logits after it (B, V)."""
    hidden = decoder(decoder.embedding(token), cache)  # (B, 1, D)
    return decoder.head(hidden[:, -1])  # (B, V)


class Steps:
    """How `generate` carries out prefill and decode: as they are; `compiling.py` compiles them."""

    def prefill(self, decoder: Decoder, embeddings: Tensor, cache: KVCache) -> Tensor:
        return prefill(decoder, embeddings, cache)

    def begin(self, decoder: Decoder, cache: KVCache) -> Callable[[Tensor], Tensor]:
        """One answer's `decode_one_token`, of which the token alone is left to give."""
        return partial(decode_one_token, decoder, cache=cache)


@torch.inference_mode()
def generate(
    decoder: Decoder,
    embeddings: Tensor,
    text_ids: Tensor,
    max_new_tokens: int,
    sampling: Sampling,
    stop_ids: Collection[int],
    cache: KVCache | None = None,
    steps: Steps | None = None,
) -> Iterator[int]:
    """Yields the ids of the answer to one prompt, without the stop token.

    embeddings (1, T, D) follow what the `cache` holds, if one is given; an id that was given is
    read into it only when the next one is asked for. text_ids (1, T') are the token ids of the
    whole prompt, which the repetition penalty counts as seen. Ends at a stop id, after
    `max_new_tokens`, or at the end of the context.
    """
    config, device = decoder.config, embeddings.device
    if cache is None:
        cache = KVCache(config, 0, device=device, dtype=embeddings.dtype)
    tokens = cache.length + embeddings.shape[1]
    most = min(max_new_tokens, config.context - tokens)
    cache.reserve(tokens + most)
    generator = new_generator(sampling, device)
    steps = steps or Steps()
    logits = steps.prefill(decoder, embeddings, cache)
    decode = steps.begin(decoder, cache)
    seen = text_ids
    for step in range(most):
        token = choose_token(logits, seen, sampling, generator)  # (1, 1)
        token_id = check_token(token.item())
        if token_id in stop_ids:
            return
        yield token_id
        if step + 1 < most:
            seen = torch.cat((seen, token), dim=1)  # (1, T + 1)
            logits = decode(token)


def new_generator(sampling: Sampling, device: torch.device) -> torch.Generator | None:
    """The random numbers of one answer; None if it is greedy."""
    if not sampling.do_sample:
        return None
    generator = torch.Generator(device)
    generator.seed() if sampling.seed is None else generator.manual_seed(sampling.seed)
    return generator


def choose_token(
    logits: Tensor, seen: Tensor, sampling: Sampling, generator: torch.Generator | None
) -> Tensor:
    """`next_token`, (B, V) -> (B, 1); `NOT_FINITE` for rows whose logits are not all finite.

    Asks nothing of the device: whoever reads the ids hands them to `check_token`.
    """
    finite = logits.isfinite().all(dim=-1, keepdim=True)  # (B, 1)
    token = next_token(logits.where(finite, 0), seen, sampling, generator)  # (B, 1)
    return token.where(finite, NOT_FINITE)


def check_token(token_id: int) -> int:
    """The id of `choose_token` again; raises `CheckpointError` if it is `NOT_FINITE`."""
    if token_id == NOT_FINITE:
        raise CheckpointError(
            "the model gives numbers that are not finite; run `flashvl verify --values` on its "
            "folder, or use --dtype float32"
        )
    return token_id


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


def check_length(tokens: int, context: int) -> None:
    """Raises `MessageError` if a prompt of `tokens` leaves no room for an answer."""
    if tokens >= context:
        raise MessageError(
            f"the prompt has {tokens} tokens, the model's context {context}; use a shorter "
            "conversation or a picture of fewer tiles"
        )
