"""Several rounds about one picture: it is encoded once, and what was read is not read again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import nn

from .cache import KVCache
from .errors import ArgumentError, device_failure_as_error
from .generate import check_length, check_max_new_tokens, generate, whole_characters
from .image import ImageLike, load_image
from .prompt import Message, encode_messages
from .sampling import Sampling


class Conversation:
    """Rounds of question and answer; `FlashVL.start` begins one. `model` is a `FlashVL`.

    `messages` are the rounds so far. Each answer is that of `FlashVL.chat` with this list and
    the new question, token for token as far as rounding does not tip a balance (in float32 it
    practically never does). Raises `ImageError`, `MessageError`, `DeviceError`.
    """

    def __init__(self, model: nn.Module, image: ImageLike | None, system: str | None) -> None:
        self.messages: list[Message] = []
        if system is not None:
            self.messages = [{"role": "system", "content": system}]
        self._model = model
        with device_failure_as_error("encoding the picture"), torch.inference_mode():
            image = None if image is None else load_image(image)
            grid = None if image is None else model.grid(image)
            _, pixels = model.prepare(image, [*self.messages, {"role": "user", "content": ""}])
            self._image_tokens = model.encode(pixels, grid)  # (S, T, D) or None
        config, dtype = model.config.decoder, model.activation_dtype
        self._cache = KVCache(config, 0, device=model.device, dtype=dtype)
        # The last prompt and the answer to it; the cache holds the first of them.
        self._ids: list[int] = []

    def ask(self, question: str, *, max_new_tokens: int = 256, **sampling: Any) -> str:
        """The answer to one more question; keyword arguments are those of `FlashVL.chat`.

        Raises `MessageError`, `ArgumentError`, `DeviceError`; the conversation then stays as it
        was, without this question.
        """
        return "".join(self.stream(question, max_new_tokens=max_new_tokens, **sampling))

    def stream(self, question: str, *, max_new_tokens: int = 256, **sampling: Any) -> Iterator[str]:
        """`ask` in pieces as they come, each of whole characters; joined they are its answer.

        The round joins the conversation once the pieces have come to their end. If they are not
        asked for to the end, the conversation stays as it was; once another question has been
        asked, asking for more of them raises `ArgumentError`.
        """
        check_max_new_tokens(max_new_tokens)
        return self._round(question, max_new_tokens, Sampling(**sampling))

    def _round(self, question: str, max_new_tokens: int, sampling: Sampling) -> Iterator[str]:
        messages = [*self.messages, {"role": "user", "content": question}]
        pieces = []
        with device_failure_as_error("answering"):
            answer = self._answer(messages, max_new_tokens, sampling)
            for piece in whole_characters(answer, self._model.tokenizer):
                pieces.append(piece)
                yield piece
        self.messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]

    def _answer(
        self, messages: Sequence[Message], max_new_tokens: int, sampling: Sampling
    ) -> Iterator[int]:
        """Ids of the answer; reads only those of the prompt's ids that the cache does not hold."""
        model, cache = self._model, self._cache
        ids = encode_messages(
            messages,
            model.tokenizer,
            model.config.prompt,
            tiles=0 if self._image_tokens is None else len(self._image_tokens),
            tokens_per_tile=model.config.tokens_per_tile,
        )
        check_length(len(ids), model.config.decoder.context)
        # An answer's text may be cut into other tokens than those that were given.
        kept = common_prefix(self._ids[: cache.length], ids[:-1])  # the last one gives the logits
        cache.roll_back(kept)
        self._ids = ids
        input_ids = torch.tensor([ids], device=model.device)  # (1, T)
        new_ids = input_ids[:, kept:]  # (1, T - kept)
        with torch.inference_mode():
            # The picture is in the cache wholly or not at all.
            has_places = bool((new_ids < 0).any())
            embeddings = model.embed(new_ids, self._image_tokens if has_places else None)
        text_ids = input_ids[input_ids >= 0][None]  # (1, text tokens)
        answer = generate(
            model.decoder,
            embeddings,
            text_ids,
            max_new_tokens,
            sampling,
            model.stop_ids,
            cache,
            model.steps,
        )
        for token_id in answer:
            ids.append(token_id)
            yield token_id
            if self._ids is not ids:
                raise ArgumentError(
                    "another question has been asked since; this answer cannot go on"
                )


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids at the beginning of both are the same."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other)))
