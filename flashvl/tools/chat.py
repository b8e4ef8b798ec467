"""`flashvl chat`: an answer as it comes, or a conversation line by line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from ..chat import FlashVL
from ..errors import FlashVLError
from ..generation.sampling import SamplingOptions
from ..terminal import say


def run(options: argparse.Namespace) -> None:
    """Prints answers alone to standard output. Raises a `FlashVLError`."""
    flash = FlashVL.from_pretrained(
        options.model,
        options.device,
        options.dtype,
        options.revision,
        options.assumptions,
        quantize=options.quantize,
        adapter=options.adapter,
    )
    if options.compile:
        flash.compile()
    sampling: SamplingOptions = {
        "do_sample": options.sample,
        "max_new_tokens": options.max_new_tokens,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "repetition_penalty": options.repetition_penalty,
        "seed": options.seed,
    }
    if options.question is not None:
        messages = [{"role": "user", "content": options.question}]
        print_pieces(flash.stream(options.image, messages, **sampling))
        return
    conversation = flash.start(options.image)
    say("Ask, one line at a time; an empty line or Ctrl-D ends.")
    while question := read_line():
        try:
            print_pieces(conversation.stream(question, **sampling))
        except FlashVLError as error:
            say(f"flashvl: {error}")


def print_pieces(pieces: Iterable[str]) -> None:
    """An answer as it comes, on a line of its own."""
    for piece in pieces:
        print(piece, end="", flush=True)
    print(flush=True)


def read_line() -> str:
    """The next question, after a sign for it; empty at the end of the input."""
    say("> ", end="")
    return "" if sys.stdin is None else sys.stdin.readline().strip()
