"""The command line. `python -m flashvl` is the same as `flashvl`.

The parser knows the arguments of every command; the command's own module, and with it torch, is
imported when it runs.
"""

from __future__ import annotations

import argparse
import io
import signal
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

from .assumptions import choices_of
from .config import DTYPES, QUANTIZATIONS
from .errors import FlashVLError, printable, shortened
from .terminal import discard, say

if TYPE_CHECKING:
    from _typeshed import SupportsWrite


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def error(self, message: str) -> NoReturn:
        reason = shortened(printable(message), 200)
        say(f"{self.prog}: {reason}; see {self.prog} --help")
        self.exit(2)

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        print(self.format_help(), end="", file=file)  # argparse's own ignores a full disk
        if sys.stdout is not None:
            sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command -> its exit code: 0, 1 (a check failed), 2 (bad input), 130 (Ctrl-C)."""
    try:
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                # A terminal without Chinese, or a byte that is no text, must not end the answer.
                stream.reconfigure(errors="replace")
        options = parse(arguments)
        code = _import_whole(options.module).run(options) or 0
        if sys.stdout is not None:
            sys.stdout.flush()  # what cannot be written is said here, not by Python at its end
        return code
    except FlashVLError as error:
        say(f"flashvl: {error}")
        return 2
    except KeyboardInterrupt:
        say("")
        return 130
    except RuntimeError as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        say("")  # torch stumbled over the Ctrl-C
        return 130
    except BrokenPipeError:  # the reader has gone
        discard(sys.stdout)
        return 0
    except (OSError, MemoryError) as error:
        discard(sys.stdout)
        reason = getattr(error, "strerror", None) or str(error) or "memory ran out"
        place = getattr(error, "filename", None)
        say(f"flashvl: {FlashVLError(f'{reason}: {place}' if place else reason)}")
        return 2


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of one command. Ends the process with code 2 if they are wrong."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    for name, value in vars(options).items():
        if value == []:  # what argparse makes of --option=-- before Python 3.12
            parser.error(f"argument --{name.replace('_', '-')}: expected a value")
    return options


def _import_whole(module: str) -> ModuleType:
    """Imports a command's module. Ctrl-C waits for its end: inside torch it aborts the process."""
    if threading.current_thread() is not threading.main_thread():
        return import_module(module, __package__)
    interrupted = []
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.append(True))
    try:
        return import_module(module, __package__)
    finally:
        signal.signal(signal.SIGINT, before)
        if interrupted:
            raise KeyboardInterrupt


def build_parser() -> argparse.ArgumentParser:
    """Every command with its arguments; `module` is where its `run(options)` stands."""
    parser = Parser(prog="flashvl", description="Flash-VL 2B: ask a model about a picture.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, module: str, summary: str, example: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example: flashvl {name} {example}",
        )
        added.set_defaults(module=module)
        return added

    chat = command(
        "chat",
        ".tools.chat",
        "answer a question, or hold a conversation if none is given",
        '--image photo.jpg "What is in the picture?"',
    )
    chat.add_argument("question", nargs="?", metavar="QUESTION", help="without it: a conversation")
    chat.add_argument("--image", metavar="FILE", help="the picture; none: text alone")
    _add_model(chat)
    _add_adapter(chat)
    _add_device(chat)
    _add_dtype(chat)
    _add_quantize(chat, "the decoder's weights in 8 or 4 bits")
    chat.add_argument("--compile", action="store_true", help="by torch.compile; for CUDA")
    _add_max_new_tokens(chat, 256)
    chat.add_argument("--sample", action="store_true", help="draw tokens instead of the likeliest")
    chat.add_argument("--temperature", type=float, default=1.0, help="for --sample (default: 1)")
    chat.add_argument("--top-p", type=float, default=1.0, help="for --sample (default: 1)")
    chat.add_argument("--top-k", type=int, default=0, help="for --sample (default: 0, all)")
    chat.add_argument("--repetition-penalty", type=float, default=1.0)
    chat.add_argument("--seed", type=int, help="makes --sample repeatable")

    download = command(
        "download",
        ".tools.download",
        "fetch a model into the hub's cache; resumes",
        "FlashVL/FlashVL-2B-Dynamic-ISS",
    )
    download.add_argument("repository", metavar="REPOSITORY")
    download.add_argument("--revision", help="default: the pinned one of a published model")

    verify = command("verify", ".tools.verify", "tell what a checkpoint holds and settles", "nano")
    verify.add_argument("model", metavar="FOLDER|REPOSITORY", help="or nano")
    _add_revision(verify)
    _add_assumptions(verify)
    verify.add_argument(
        "--values", action="store_true", help="read every weight and name those not finite"
    )

    parity = command(
        "parity", ".tools.parity", "compare with transformers, layer by layer", "--model nano"
    )
    _add_model(parity)
    parity.add_argument("--image", metavar="FILE", help="the picture (default: one that is drawn)")
    parity.add_argument(
        "--tolerance",
        type=float,
        default=1e-5,
        help="largest relative difference that counts as equal (default: %(default)g)",
    )
    parity.add_argument("--json", action="store_true", help="print JSON instead of a table")

    assemble = command(
        "assemble",
        ".tools.assemble",
        "put a tower and a decoder together, with a new compressor between them",
        "--tower aimv2 --decoder qwen --kind iss --out mine",
    )
    assemble.add_argument(
        "--tower", required=True, metavar="FOLDER|REPOSITORY", help="an AIMv2 or a SigLIP"
    )
    assemble.add_argument(
        "--decoder", required=True, metavar="FOLDER|REPOSITORY", help="a Qwen2 or Qwen2.5"
    )
    assemble.add_argument("--kind", required=True, choices=["iss", "dynamic", "static"])
    assemble.add_argument("--out", required=True, metavar="FOLDER", help="a new folder")
    assemble.add_argument("--compressor-width", type=int, metavar="N", help="of its hidden layers")
    _add_dtype(assemble, "default: bfloat16, as published")
    _add_seed(assemble, "of the compressor's values")

    merge = command(
        "merge",
        ".tools.merge",
        "add an adapter into the weights of its model",
        "--model nano --adapter runs/mine --out merged",
    )
    _add_model(merge)
    merge.add_argument("--adapter", required=True, metavar="FOLDER", help="a LoRA in PEFT's form")
    merge.add_argument("--out", required=True, metavar="FOLDER", help="a new folder")
    _add_dtype(merge, "auto, as the model is stored")

    _add_trace(
        command(
            "trace",
            ".tools.trace.trace",
            "tell what a run does, stage by stage or layer by layer",
            "--image photo.jpg --depth 2",
        )
    )

    tiles = command(
        "tiles",
        ".tools.tiles",
        "draw how a picture is cut into tiles and stitched",
        "--image photo.jpg --out tiles.png",
    )
    tiles.add_argument("--image", required=True, metavar="FILE")
    _add_picture_out(tiles)
    tiles.add_argument(
        "--model",
        default="nano",
        help="nano, a folder or a repository; its weights are not needed (default: nano)",
    )
    _add_assumptions(tiles)

    look = command(
        "look",
        ".tools.look",
        "draw where the decoder looks for each token of its answer",
        '--image photo.jpg "What is in the picture?" --out look.png',
    )
    look.add_argument("question", metavar="QUESTION")
    look.add_argument("--image", required=True, metavar="FILE")
    _add_picture_out(look)
    _add_model(look)
    _add_adapter(look)
    _add_device(look)
    _add_dtype(look)
    _add_max_new_tokens(look, 24)
    look.add_argument(
        "--layer", type=int, metavar="N", help="one layer, from 0 (default: the mean of all)"
    )
    look.add_argument(
        "--head",
        type=int,
        metavar="N",
        help="one head of it, from 0 (default: the mean of all, and those that look hardest)",
    )

    explore = command(
        "explore",
        ".tools.explore",
        "write a page in which a small model lives: draw, ask, look inside, erase, ask again",
        '--question "What colour is the star?" --out page.html',
    )
    explore.add_argument("--model", default="nano", metavar="nano|FOLDER", help="default: nano")
    _add_assumptions(explore)
    explore.add_argument("--image", metavar="FILE", help="the picture at its start")
    explore.add_argument("--question", metavar="TEXT", help="the question at its start")
    explore.add_argument(
        "--out",
        type=Path,
        metavar="PAGE.html",
        default=Path("explore.html"),
        help="a new file (default: explore.html)",
    )
    explore.add_argument("--no-open", action="store_true", help="write it, and open no browser")

    _add_bench(
        command(
            "bench",
            ".tools.bench.bench",
            "measure how fast a model runs, beside what the machine can do",
            "--random 2b --peer transformers",
        )
    )

    _add_settle(
        command(
            "settle",
            ".tools.settle.settle",
            "ask a model under which of the unpublished assumptions it was trained",
            "--model FOLDER --out assumptions.json",
        )
    )

    train = command(
        "train", ".nano.train", "train nano from scratch", "--recipe nano --out runs/nano"
    )
    train.add_argument("--recipe", choices=["nano"], default="nano")
    train.add_argument("--out", type=Path, metavar="FOLDER", help="default: runs/RECIPE")
    train.add_argument("--steps", type=int, metavar="N", help="all stages together; scales them")
    _add_device(train)
    _add_seed(train, "same seed, same data")
    modes = choices_of("stitching")
    train.add_argument("--stitching", choices=modes, help="default: the recipe's, trim")
    train.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="JSON with fields of config.json that the model has instead of the recipe's",
    )
    train.add_argument(
        "--tower",
        type=Path,
        metavar="FOLDER",
        help="nano or a run's folder, whose tower is taken; --steps are then those after it",
    )
    train.add_argument("--resume", action="store_true", help="go on with the run in --out")

    _add_finetune(
        command(
            "finetune",
            ".finetuning.finetune",
            "teach a model with pictures and conversations of your own",
            "--model nano --data samples.json --images pictures --out runs/mine --lora 8",
        )
    )

    scenes = command(
        "scenes",
        ".tools.scenes",
        "write pictures and questions of nano's world as samples to learn from",
        "--scenes 130 --out scenes",
    )
    scenes.add_argument("--out", required=True, metavar="FOLDER", help="a new one")
    _add_count(scenes, "--scenes", 130, "pictures, each with all its questions")
    _add_seed(scenes, "of the scenes")

    score = command(
        "score", ".nano.score", "count how often a model is right", "--model nano --scenes 1000"
    )
    score.add_argument("--model", default="nano", help='"nano" or a folder (default: nano)')
    _add_assumptions(score)
    _add_adapter(score)
    score.add_argument("--scenes", type=int, default=1000, metavar="N", help="default: 1000")
    _add_seed(score, "of the scenes")
    _add_device(score)
    _add_quantize(score, "the decoder's weights in 8 or 4 bits")

    _add_evaluate(
        command(
            "evaluate",
            ".evaluation.evaluate",
            "answer and score the benchmarks of the model card, or a table of your own",
            "--model nano --data nano --out runs/evaluation",
        )
    )
    return parser


def _add_trace(trace: argparse.ArgumentParser) -> None:
    from .tools.trace.report import MEANINGS

    trace.description = f"{trace.description} {' '.join(MEANINGS)}"
    trace.add_argument(
        "question", nargs="?", metavar="QUESTION", help="default: What is in the picture?"
    )
    _add_model(trace)
    trace.add_argument("--image", metavar="FILE", help="with --dry it may be left out: one tile")
    trace.add_argument(
        "--depth",
        type=int,
        default=1,
        metavar="N",
        help="1: stages (default); "
        "2: layers, patch embedding, ...; 3: attention, mlp, ...; and so on",
    )
    _add_max_new_tokens(trace, 32)
    _add_device(trace)
    _add_dtype(trace)
    trace.add_argument(
        "--dry",
        action="store_true",
        help="shapes alone: no weights, no tokenizer, no times, no network; in bfloat16 unless "
        "--dtype says otherwise",
    )
    trace.add_argument(
        "--prompt", type=int, metavar="N", help="with --dry: tokens of text (default: 32)"
    )
    trace.add_argument("--json", action="store_true", help="one JSON document, not a table")
    trace.add_argument("--html", type=Path, metavar="FILE", help="write a page as well")


def _add_bench(bench: argparse.ArgumentParser) -> None:
    which = bench.add_mutually_exclusive_group()
    # A default would hide from argparse that both were given.
    which.add_argument("--model", help="nano, a folder or a repository (default: nano)")
    which.add_argument(
        "--random",
        choices=["2b", "300m", "nano"],
        help="random weights of these sizes; written once to the user's cache folder",
    )
    _add_count(bench, "--tiles", 1, "of the picture")
    _add_count(bench, "--prompt", 600, "tokens in all, the picture's included")
    _add_count(bench, "--new", 32, "tokens to decode")
    _add_count(bench, "--runs", 3, "timed")
    _add_device(bench)
    _add_dtype(bench)
    bench.add_argument("--peer", choices=["transformers"], help="the same weights there as well")
    _add_quantize(bench, "this against the weights as they are")
    bench.add_argument(
        "--batch", type=int, metavar="N", help="N answers side by side against one by one"
    )
    bench.add_argument(
        "--compile", action="store_true", help="torch.compile against the model as it is"
    )
    bench.add_argument(
        "--train",
        action="store_true",
        help="a step of training, by turns with transformers and peft, instead of answering",
    )
    bench.add_argument("--json", type=Path, metavar="FILE", help="write the last line as well")


def _add_settle(settle: argparse.ArgumentParser) -> None:
    settle.description = (
        f"{settle.description} Under the right ones it finds right answers likely, under wrong "
        "ones it does not. weights/ASSUMPTIONS.md explains them all."
    )
    _add_model(settle)
    settle.add_argument(
        "--scenes",
        type=int,
        default=96,
        metavar="N",
        help="drawn pictures to ask about (default: 96); fewer are faster and tell less",
    )
    settle.add_argument(
        "--answers",
        type=Path,
        metavar="FILE.jsonl",
        help="recorded answers of the published code instead, which can prove the assumptions: "
        'lines of {"image", "messages", "answer"}',
    )
    settle.add_argument(
        "--only", nargs="+", default=(), metavar="FIELD", help="these fields alone (default: all)"
    )
    _add_device(settle)
    _add_dtype(settle)
    settle.add_argument("--json", type=Path, metavar="FILE", help="write the figures as well")
    settle.add_argument(
        "--out", type=Path, metavar="FILE", help="write the best values, for --assumptions"
    )


def _add_finetune(finetune: argparse.ArgumentParser) -> None:
    finetune.description = (
        f"{finetune.description} With several devices: torchrun --nproc-per-node N -m flashvl "
        "finetune ..."
    )
    _add_model(finetune)
    finetune.add_argument("--out", required=True, metavar="FOLDER", help="of the run")
    finetune.add_argument(
        "--data",
        nargs="+",
        metavar="FILE",
        help="LLaVA's JSON or messages, as a list or a line each; <image> in the first question "
        "stands for the picture, which is read before that question's text",
    )
    finetune.add_argument(
        "--images", metavar="FOLDER", help="where pictures' paths begin (default: beside each FILE)"
    )
    finetune.add_argument("--lora", type=int, metavar="RANK", help="an adapter learns")
    finetune.add_argument("--lora-alpha", type=float, metavar="X", help="default: twice the rank")
    finetune.add_argument(
        "--lora-pattern",
        metavar="REGEX",
        help="of the whole published names of the maps that get one (default: the decoder's)",
    )
    finetune.add_argument("--merge", action="store_true", help="write the model, not the adapter")
    finetune.add_argument(
        "--train", metavar="PARTS", help="these learn: some of vision,compressor,decoder"
    )
    finetune.add_argument("--rate", type=float, metavar="X", help="default: by the model's width")
    for part in ("vision", "compressor", "decoder"):
        finetune.add_argument(f"--rate-{part}", type=float, metavar="X", help="its own")
    finetune.add_argument(
        "--epochs", type=int, metavar="N", help="default: 3, and 200 steps at least"
    )
    finetune.add_argument("--steps", type=int, metavar="N", help="instead of epochs")
    finetune.add_argument("--batch", type=int, metavar="N", help="samples in a pass (default: 8)")
    finetune.add_argument("--accumulate", type=int, metavar="N", help="passes a step (default: 1)")
    finetune.add_argument("--eval", metavar="FILE|SHARE", help="held out, and looked at meanwhile")
    finetune.add_argument("--eval-every", type=int, metavar="N", help="steps")
    finetune.add_argument(
        "--skip-long", action="store_true", help="leave out samples longer than the context"
    )
    finetune.add_argument("--optimizer", choices=["adamw", "muon"], help="default: adamw")
    finetune.add_argument(
        "--dtype",
        choices=["auto", "float32", "mixed", "bfloat16"],
        help="mixed: float32 weights, products in bfloat16; default: auto",
    )
    finetune.add_argument(
        "--checkpointing", action="store_true", help="less memory: layers are computed twice"
    )
    finetune.add_argument("--seed", type=int, help="default: 0")
    finetune.add_argument("--recipe", metavar="FILE", help="stages, in TOML or JSON")
    finetune.add_argument("--resume", action="store_true", help="go on with the run in --out")
    _add_device(finetune)


def _add_evaluate(evaluate: argparse.ArgumentParser) -> None:
    which = evaluate.add_mutually_exclusive_group()
    which.add_argument(
        "--data",
        nargs="+",
        metavar="SET|FILE.tsv",
        help="sets by name from VLMEvalKit's folder, tables of that form, or nano, which is drawn "
        "(default: all sets that are in that folder)",
    )
    which.add_argument(
        "--score",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="score predictions that are there: MODEL_SET.tsv or MODEL_SET.xlsx",
    )
    _add_model(evaluate)
    _add_adapter(evaluate)
    evaluate.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        default=Path("runs/evaluation"),
        help="answers are kept here, and a run goes on where it was (default: runs/evaluation)",
    )
    evaluate.add_argument("--limit", type=int, metavar="N", help="the first N rows of each set")
    _add_count(evaluate, "--batch", 16, "rows that are answered together")
    evaluate.add_argument(
        "--rules",
        choices=["2025", "head"],
        default="2025",
        help="of scoring: as for the model card, or the kit's present ones (default: 2025)",
    )
    evaluate.add_argument(
        "--reencode",
        choices=["jpeg", "none"],
        default="jpeg",
        help="pictures go through JPEG, as for the model card, or not (default: jpeg)",
    )
    _add_device(evaluate)
    _add_dtype(evaluate)
    _add_quantize(evaluate, "the decoder's weights in 8 or 4 bits")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write the figures as well")


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model", default="nano", help="nano, a folder or a repository of the hub (default: nano)"
    )
    _add_revision(command)
    _add_assumptions(command)


def _add_revision(command: argparse.ArgumentParser) -> None:
    command.add_argument("--revision", help="commit, branch or tag of a repository")


def _add_assumptions(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--assumptions",
        type=Path,
        metavar="FILE",
        help="a JSON file of fields and values, such as settle --out writes; they replace what the "
        "model's config.json says",
    )


def _add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")


def _add_dtype(command: argparse.ArgumentParser, help: str | None = None) -> None:
    command.add_argument("--dtype", default="auto", choices=["auto", *DTYPES], help=help)


def _add_adapter(command: argparse.ArgumentParser) -> None:
    command.add_argument("--adapter", metavar="FOLDER", help="of a LoRA that was trained on it")


def _add_quantize(command: argparse.ArgumentParser, help: str) -> None:
    command.add_argument("--quantize", choices=QUANTIZATIONS, help=help)


def _add_max_new_tokens(command: argparse.ArgumentParser, default: int) -> None:
    command.add_argument(
        "--max-new-tokens", type=int, default=default, metavar="N", help=f"default: {default}"
    )


def _add_seed(command: argparse.ArgumentParser, help: str) -> None:
    command.add_argument("--seed", type=int, default=0, help=f"{help} (default: 0)")


def _add_count(command: argparse.ArgumentParser, name: str, default: int, help: str) -> None:
    command.add_argument(
        name, type=int, default=default, metavar="N", help=f"{help} (default: {default})"
    )


def _add_picture_out(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--out", required=True, type=Path, metavar="PICTURE.png", help="a new file"
    )
