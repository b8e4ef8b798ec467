"""`flashvl chat`: an answer as it comes, or a conversation line by line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from ..chat import FlashVL
from ..errors import FlashVLError
from ..generation.sampling import SamplingOptions


def run(options: argparse.Namespace) -> None:
    """Prints answers alone to standard output. Raises a `FlashVLError`."""
    flash = FlashVL.from_pretrained(
        options.model,
        options.device,
        options.dtype,
        options.revision,
        quantize=options.quantize,
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
    print("Ask, one line at a time; an empty line or Ctrl-D ends.", file=sys.stderr)
    while question := read_line():
        try:
            print_pieces(conversation.stream(question, **sampling))
        except FlashVLError as error:
            print(f"flashvl: {error}", file=sys.stderr)


def print_pieces(pieces: Iterable[str]) -> None:
    """An answer as it comes, on a line of its own."""
    for piece in pieces:
        print(piece, end="", flush=True)
    print(flush=True)


def read_line() -> str:
    """The next question; the sign for it goes to standard error, which answers never use."""
    print("> ", end="", file=sys.stderr, flush=True)
    return "" if sys.stdin is None else sys.stdin.readline().strip()
