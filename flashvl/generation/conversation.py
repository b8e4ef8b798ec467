"""Several rounds about one picture: it is read once, and what was read is not read again."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import takewhile
from threading import RLock, Thread, current_thread
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..device import check_weights, device_failure_as_error
from ..errors import ArgumentError
from ..input.image import ImageLike
from ..input.processor import Processor, Prompt
from ..input.prompt import Message
from ..model.network import FlashVLModel
from .generate import (
    BeginDecode,
    check_length,
    generate,
    read_picture,
    read_prompt,
    whole_characters,
)
from .sampling import Sampling, SamplingOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Conversation:
    """Rounds of question and answer; `FlashVL.start` begins one.

    `messages` are the rounds so far. Each answer is that of `FlashVL.chat` with this list and
    the new question, token for token as far as rounding does not tip a balance (in float32 it
    practically never does). Raises `ImageError`, `MessageError`, `DeviceError`.

    It may pass from thread to thread, but while one is in the middle of a round, others are
    refused; each thread may have a conversation of its own about the same model.
    """

    def __init__(
        self,
        model: FlashVLModel,
        processor: Processor,
        stop_ids: Collection[int],
        image: ImageLike | None,
        system: str | None = None,
        begin: BeginDecode | None = None,
    ) -> None:
        self.messages: list[Message] = []
        if system is not None:
            self.messages = [{"role": "system", "content": system}]
        self._model, self._processor = model, processor
        self._stop_ids, self._begin = stop_ids, begin
        # The round that is under way, and the thread that it runs in.
        self._round: object = None
        self._thread: Thread | None = None
        self._lock = RLock()  # one that a stream may take which Python ends in the middle of it
        check_weights(model.device)
        with device_failure_as_error("reading the picture"), torch.inference_mode():
            prompt = processor(image, self._with(""))
            self._picture = prompt.to(model.device)
            self._tiles = 0 if prompt.pixels is None else len(prompt.pixels)
            if self._tiles:
                check_length(prompt.input_ids.shape[1], model.config.decoder.context)
            self._cache = read_picture(model, self._picture)
            # The last prompt and the answer to it; the cache holds the first of them.
            self._ids: list[int] = prompt.input_ids[0, : self._cache.length].tolist()

    def ask(self, question: str, **options: Unpack[SamplingOptions]) -> str:
        """The answer to one more question. Options: see `Sampling`.

        Raises `MessageError`, `ArgumentError`, `DeviceError`; the conversation then stays as it
        was, without this question. So too while another thread is in the middle of a round, which
        is an `ArgumentError`.
        """
        return "".join(self.stream(question, **options))

    def stream(self, question: str, **options: Unpack[SamplingOptions]) -> Iterator[str]:
        """`ask` in pieces as they come, each of whole characters; joined they are its answer.

        The round joins the conversation once the pieces have come to their end. If they are not
        asked for to the end, the conversation stays as it was; once another question has been
        asked, asking for more of them raises `ArgumentError`.
        """
        sampling = Sampling(**options)
        self._encode(self._with(question))  # what is wrong is said now, not at the first piece
        return self._answer(question, sampling)

    def _with(self, question: str) -> list[Message]:
        return [*self.messages, {"role": "user", "content": question}]

    def _encode(self, messages: Sequence[Message]) -> Tensor:
        """The ids of the whole prompt (1, T)."""
        input_ids = self._processor.encode(messages, self._tiles)  # (1, T)
        check_length(input_ids.shape[1], self._model.config.decoder.context)
        return input_ids

    def _answer(self, question: str, sampling: Sampling) -> Iterator[str]:
        """A round: the pieces of its answer, and at their end its messages."""
        this_round = object()
        self._begin_round(this_round)
        try:
            messages, pieces = self._with(question), []
            with device_failure_as_error("answering"):
                ids = self._answer_ids(self._encode(messages), sampling)
                for piece in whole_characters(ids, self._processor.tokenizer):
                    pieces.append(piece)
                    yield piece
                    self._go_on(this_round)
            self.messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]
        finally:
            with self._lock:
                if self._round is this_round:
                    self._round = self._thread = None

    def _begin_round(self, this_round: object) -> None:
        """From here on it is this round's turn. Raises `ArgumentError` while another thread has it.

        A thread may leave a round of its own unfinished.
        """
        with self._lock:
            if self._thread not in (None, current_thread()) and self._thread.is_alive():
                raise ArgumentError(
                    "another thread is in the middle of a round of this conversation; let it come "
                    "to its end, or start a conversation for each thread"
                )
            self._round, self._thread = this_round, current_thread()

    def _go_on(self, this_round: object) -> None:
        """Raises `ArgumentError` if a round that was left unfinished is not the last."""
        with self._lock:
            if self._round is not this_round:
                raise ArgumentError(
                    "another question has been asked since; this answer cannot go on"
                )
            self._thread = current_thread()

    def _answer_ids(self, input_ids: Tensor, sampling: Sampling) -> Iterator[int]:
        """Ids of the answer; reads only those of the prompt's ids that the cache does not hold."""
        ids: list[int] = input_ids[0].tolist()
        # An answer's text may be cut into other tokens than those that were given.
        kept = common_prefix(self._ids[: self._cache.length], ids[:-1])  # the last gives the logits
        self._cache.roll_back(kept)
        self._ids = ids
        prompt = Prompt(input_ids, None, [])
        if min(ids[kept:]) < 0:  # what stands before the picture has changed
            prompt = self._picture._replace(input_ids=input_ids)
        prompt = prompt.to(self._model.device)
        row = read_prompt(self._model, prompt, sampling, self._cache)
        for _ in generate(self._model, [row], sampling, self._stop_ids, self._begin):
            ids.append(row.ids[-1])
            yield row.ids[-1]


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids at the beginning of both are the same."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other)))
