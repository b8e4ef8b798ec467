"""The command line. `python -m flashvl` is the same as `flashvl`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from .conversation import Conversation
from .device import DTYPES
from .errors import FlashVLError
from .hub import download
from .model import FlashVL
from .nano import score, train
from .quantising import WIDTHS
from .tools import bench, look, parity, tiles, trace, verify

MODEL_HELP = '"nano" (embedded), a folder, or a repository of the hub'


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command -> its exit code: 0, 1 (a check failed), 2 (bad input), 130 (Ctrl-C)."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal without Chinese must not end the answer
    options = build_parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except FlashVLError as error:
        print(f"flashvl: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has gone; nothing that Python flushes at its end can arrive either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="flashvl", description="Flash-VL 2B: ask a model about a picture.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    chat = _command(
        commands,
        "chat",
        "answer a question, or hold a conversation if none is given",
        'flashvl chat --image photo.jpg "What is in the picture?"',
    )
    chat.add_argument("question", nargs="?", metavar="QUESTION", help="without it: a conversation")
    chat.add_argument("--model", default="nano", help=f"{MODEL_HELP} (default: nano)")
    chat.add_argument("--revision", help="commit, branch or tag of a repository")
    chat.add_argument("--image", metavar="FILE", help="the picture; none: text alone")
    chat.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    chat.add_argument("--dtype", default="auto", choices=["auto", *DTYPES])
    chat.add_argument("--quantize", choices=WIDTHS, help="the decoder's weights as int8")
    chat.add_argument("--compile", action="store_true", help="by torch.compile; for CUDA")
    chat.add_argument("--max-new-tokens", type=int, default=256, metavar="N")
    chat.add_argument("--sample", action="store_true", help="draw tokens instead of the likeliest")
    chat.add_argument("--temperature", type=float, default=1.0, help="for --sample (default: 1)")
    chat.add_argument("--top-p", type=float, default=1.0, help="for --sample (default: 1)")
    chat.add_argument("--top-k", type=int, default=0, help="for --sample (default: 0, all)")
    chat.add_argument("--repetition-penalty", type=float, default=1.0)
    chat.add_argument("--seed", type=int, help="makes --sample repeatable")
    chat.set_defaults(run=run_chat)

    fetch = _command(
        commands,
        "download",
        "fetch a model into the hub's cache; resumes",
        "flashvl download FlashVL/FlashVL-2B-Dynamic-ISS",
    )
    fetch.add_argument("repository", metavar="REPOSITORY")
    fetch.add_argument("--revision", help="default: the pinned one of a published model")
    fetch.set_defaults(run=run_download)

    for module, name, summary, example in (
        (verify, "verify", "what a checkpoint holds and settles", "flashvl verify nano"),
        (
            parity,
            "parity",
            "compare with transformers, layer by layer",
            "flashvl parity --model nano",
        ),
        (
            trace,
            "trace",
            "what a run does, stage by stage or layer by layer",
            "flashvl trace --image photo.jpg --depth 2",
        ),
        (
            tiles,
            "tiles",
            "draw how a picture is cut into tiles and stitched",
            "flashvl tiles --image photo.jpg --out tiles.png",
        ),
        (
            look,
            "look",
            "draw where the decoder looks for each token of its answer",
            'flashvl look --image photo.jpg "What is in the picture?" --out look.png',
        ),
        (
            bench,
            "bench",
            "how fast a model runs, beside what the machine can do",
            "flashvl bench --random 2b --peer transformers",
        ),
        (train, "train", "train nano from scratch", "flashvl train --recipe nano --out runs/nano"),
        (score, "score", "how often a model is right", "flashvl score --model nano --scenes 1000"),
    ):
        command = _command(commands, name, summary, example)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def run_chat(options: argparse.Namespace) -> None:
    model = FlashVL.from_pretrained(
        options.model,
        options.device,
        options.dtype,
        options.revision,
        quantize=options.quantize,
    )
    if options.compile:
        model.compile()
    conversation = model.start(options.image)
    if options.question is not None:
        _answer(conversation, options.question, options)
        return
    print("Ask, one line at a time; an empty line or Ctrl-D ends.", file=sys.stderr)
    while question := _read_line():
        try:
            _answer(conversation, question, options)
        except FlashVLError as error:
            print(f"flashvl: {error}", file=sys.stderr)


def _answer(conversation: Conversation, question: str, options: argparse.Namespace) -> None:
    """Prints the answer as it comes."""
    for piece in conversation.stream(
        question,
        do_sample=options.sample,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
    ):
        print(piece, end="", flush=True)
    print(flush=True)


def _read_line() -> str:
    """The next question; the sign for it goes to standard error, which answers never use."""
    print("> ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip()


def run_download(options: argparse.Namespace) -> None:
    print(download(options.repository, options.revision))


def _command(commands, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example: {example}",
    )
