"""Several pictures and conversations answered at once, each as if it were alone.

The rows stand side by side, short ones with padding on the left, which is attended by nothing. A
row that has its answer leaves the batch, and with it the padding that only it made necessary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import KVCache
from .decoder import Decoder
from .errors import ArgumentError, FlashVLError, device_failure_as_error
from .generate import check_token, choose_token, new_generator, whole_characters
from .sampling import Sampling


@dataclass
class Row:
    """One prompt, embeddings (1, T, D), and its answer so far, of at most `limit` tokens.

    `seen` (1, text tokens) are the ids that the repetition penalty counts.
    """

    number: int
    embeddings: Tensor
    seen: Tensor
    limit: int
    generator: torch.Generator | None
    answer: list[int] = field(default_factory=list)


def answer_batch(
    model: nn.Module, pairs: Iterable[Any], max_new_tokens: int, sampling: Sampling
) -> list[str]:
    """The answers to pairs of an image and messages. `model` is a `FlashVL`; see `chat_batch`."""
    if not isinstance(pairs, Iterable):
        raise ArgumentError(
            f"the batch must be a list of pairs (image, messages), found {type(pairs).__name__}"
        )
    with device_failure_as_error("answering a batch"), torch.inference_mode():
        rows = []
        for number, pair in enumerate(pairs, 1):
            with naming_row(number):
                rows.append(read_row(model, number, pair, max_new_tokens, sampling))
        if rows:
            generate_rows(model.decoder, rows, sampling, model.stop_ids)
    return ["".join(whole_characters(iter(row.answer), model.tokenizer)) for row in rows]


def read_row(
    model: nn.Module, number: int, pair: Any, max_new_tokens: int, sampling: Sampling
) -> Row:
    """Encodes one picture and embeds its prompt.

    Picture by picture: the stitching mode `mean` needs each one's own grid, and the memory for
    the tower does not grow with the batch.
    """
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ArgumentError("each row must be a pair (image, messages)")
    image, messages = pair
    input_ids, embeddings = model.embed_prompt(image, messages)  # (1, T), (1, T, D)
    text_ids = input_ids[input_ids >= 0][None]  # (1, text tokens)
    limit = min(max_new_tokens, model.config.decoder.context - input_ids.shape[1])
    return Row(number, embeddings, text_ids, limit, new_generator(sampling, input_ids.device))


def generate_rows(
    decoder: Decoder, rows: Sequence[Row], sampling: Sampling, stop_ids: Collection[int]
) -> None:
    """Fills in the answers of the rows, without their stop tokens."""
    x, padding = pad_left([row.embeddings for row in rows])  # (B, T, D), (B)
    capacity = x.shape[1] + max(row.limit for row in rows)
    cache = KVCache(decoder.config, capacity, len(rows), x.device, x.dtype)
    while rows:
        logits = read_tokens(decoder, x, padding, cache)  # (B, V)
        tokens = choose_tokens(logits, rows, sampling)  # (B, 1)
        going_on = []
        for place, (row, token_id) in enumerate(zip(rows, tokens[:, 0].tolist())):
            with naming_row(row.number):
                check_token(token_id)
            if token_id in stop_ids:
                continue
            row.answer.append(token_id)
            token = tokens[place : place + 1]  # (1, 1)
            row.seen = torch.cat((row.seen, token), dim=1)  # (1, text tokens + 1)
            if len(row.answer) < row.limit:
                going_on.append(place)
        if 0 < len(going_on) < len(rows):
            tokens, padding = tokens[going_on], padding[going_on]  # (B, 1), (B)
            unneeded = int(padding.min())
            cache.keep(going_on, unneeded)
            padding = padding - unneeded
        rows = [rows[place] for place in going_on]
        x = decoder.embedding(tokens)  # (B, 1, D)


def choose_tokens(logits: Tensor, rows: Sequence[Row], sampling: Sampling) -> Tensor:
    """Row by row, so that each draws as it would alone. (B, V) -> (B, 1)."""
    tokens = []
    for place, row in enumerate(rows):
        own = logits[place : place + 1]  # (1, V)
        tokens.append(choose_token(own, row.seen, sampling, row.generator))
    return torch.cat(tokens)  # (B, 1)


def read_tokens(decoder: Decoder, x: Tensor, padding: Tensor, cache: KVCache) -> Tensor:
    """Reads embeddings (B, T, D) into the cache -> logits of the last position (B, V)."""
    positions, mask = positions_and_mask(padding, cache.length, x.shape[1])
    hidden = decoder(x, cache, positions, mask)  # (B, T, D)
    return decoder.head(hidden[:, -1])  # (B, V)


def pad_left(prompts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Prompts (1, T, D) of any T -> one batch (B, T, D) and how much padding each row has (B)."""
    longest = max(prompt.shape[1] for prompt in prompts)
    counts = [longest - prompt.shape[1] for prompt in prompts]
    padded = [F.pad(prompt, (0, 0, count, 0)) for prompt, count in zip(prompts, counts)]
    return torch.cat(padded), torch.tensor(counts, device=prompts[0].device)


def positions_and_mask(padding: Tensor, seen: int, tokens: int) -> tuple[Tensor, Tensor]:
    """For T new tokens after `seen` ones: positions (B, T) and mask (B, 1, T, seen + T).

    Each row counts from its first own token. True where a token may attend; padding attends to
    itself, for attention to nothing is not a number.
    """
    columns = torch.arange(seen + tokens, device=padding.device)  # (seen + T)
    new = columns[seen:, None]  # (T, 1)
    positions = (columns[seen:] - padding[:, None]).clamp(min=0)  # (B, T)
    own = columns >= padding[:, None, None]  # (B, 1, seen + T)
    mask = (own & (columns <= new)) | (columns == new)  # (B, T, seen + T)
    return positions, mask[:, None]  # (B, T), (B, 1, T, seen + T)


@contextmanager
def naming_row(number: int) -> Iterator[None]:
    """Puts the number of the row, counted from 1, before the text of an error."""
    try:
        yield
    except FlashVLError as error:
        raise type(error)(f"row {number} of the batch: {error}") from error
