"""Command lines: every command with options of no sense, hostile files, and streams that fail.

A command runs in a process forked from this one, which has imported torch; a few start Python anew.
"""

from __future__ import annotations

import argparse
import os
import resource
import select
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NoReturn

from tiny import encoded, picture

from flashvl import FlashVLError
from flashvl import __main__ as command_module
from flashvl.cli import build_parser
from flashvl.nano import score  # noqa: F401, imported for those that are forked
from flashvl.nano import train as train_module
from flashvl.tools import chat, download, explore, look, tiles, verify  # noqa: F401
from flashvl.tools.bench import bench
from flashvl.tools.trace import trace  # noqa: F401
from fuzz import checkpoints, pictures, training_states
from fuzz.damage import hostile_name, plant, text
from fuzz.promise import WATCH, Broken, Case, wrong_line
from fuzz.worker import ASK

SECONDS = 50.0  # for one command
WEIGHTS = {"chat": 30, "look": 12, "tiles": 14, "trace": 12, "verify": 10, "train": 10, "score": 4}
WEIGHTS |= {"explore": 6, "bench": 4, "download": 3, "parity": 1}
# Words for numbers, of which none asks for much work.
NUMBERS = ["0", "-1", "1", "2", "", "x", "1.5", "nan", "inf", "-inf", "1e3", "0x10", "１２", " 2"]
NUMBERS += ["2 ", "1_0", "9" * 5000, "\x1b[31m2", "2\n", "-0", "1e400", "--", "二", "\udcff"]
CHOICES = ["auto", "AUTO", "", "int3", "x" * 100_000, "a\nb", "\x1b[2J", "cuda:99", "meta", "mps"]
NAMES = ["odd", "planted", "broken", "old", "full.png", "model/config.json", "red.png/x", "model"]
NAMES += ["/dev/zero", "/dev/stdin"]
LINES = [b"\xff\xfe", b"\n", b"\0", b"What?\n", b"x" * 100_000 + b"\n"]  # typed


@dataclass
class Command:
    """What to run, and around it: streams by number, limits, and a Ctrl-C after some seconds."""

    arguments: list[str]
    streams: dict[int, str] = field(default_factory=lambda: {0: "null", 1: "pipe", 2: "pipe"})
    typed: bytes = b""  # on standard input
    environment: dict[str, str] = field(default_factory=dict)
    largest_file: int | None = None  # bytes: beyond them the disk is full
    interrupted_after: float | None = None
    anew: bool = False  # in a Python of its own

    @property
    def name(self) -> str:
        return self.arguments[0] if self.arguments else ""

    def __str__(self) -> str:
        shown = " ".join(ascii(one)[1:-1][:60] for one in self.arguments)
        unusual = [f"{name} {one}" for name, one in vars(self).items() if one != USUALLY[name]]
        return f"flashvl {shown}" + f" ({', '.join(unusual[1:])})" * (len(unusual) > 1)


USUALLY = vars(Command([]))


def case(random: Random, place: Path) -> Case:
    fill(random, place)
    name = random.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    command = Command([name, *arguments(name, random)])
    if name == "explore":
        command.arguments.insert(1, "--no-open")
    elif random.random() < 0.08:
        misspelled(command, random)
    if name == "parity":
        import_transformers()
    around(command, random)
    here = place / "here"
    outs = [here / name for name in ("out.png", "page.html", "explore.html", "bench.json")]
    writes = (*outs, here / "run", here / "runs", place / "cache", *named(command, here))

    def do() -> None:
        code, said = run(command)
        check(command, code, said)
        for file in outs:
            if file.is_file() and not is_whole(file):
                raise Broken("half of a file was written", file.name)
        if code == 2:
            raise FlashVLError("the command has refused it")

    may = {"connect", "start"} if name in ("parity", "bench") else {"connect"}
    resumes = "--resume" in command.arguments
    return Case(str(command), do, False, writes, resumes, leaves=True, may=frozenset(may))


def is_whole(file: Path) -> bool:
    """Whether a PNG, a page or a JSON document comes to its end."""
    return file.read_bytes().rstrip().endswith((b"IEND\xaeB`\x82", b"</html>", b"}"))


def named(command: Command, here: Path) -> list[Path]:
    """Files and folders of hostile names that a command may make, in the folder where it runs."""
    names = [one.partition("=")[2] or one for one in command.arguments]
    paths = [Path(os.path.normpath(here / name)) for name in names]
    first = [here / one.relative_to(here).parts[0] for one in paths if here in one.parents]
    return [one for one in first if not os.path.lexists(one)]


def check(command: Command, code: int | None, said: str | None) -> None:
    """Holds the exit code and standard error, None if nobody has read it, to what is promised."""
    if code is None:
        raise Broken("the command hung", stack())
    interrupted = command.interrupted_after is not None
    if interrupted and code == -signal.SIGINT:
        code = 130  # as every shell calls it; Python was about to end
    hides = said is None or ("Traceback" in said and "__main__.py" not in said)
    if interrupted and command.anew and hides:
        return  # Ctrl-C may have come before the first line of flashvl's own main
    if said is not None and "Traceback" in said:
        last = said.strip().splitlines()[-1]
        raise Broken(f"a traceback: {last.partition(':')[0]:.60}", said[-1500:])
    if code not in (0, 1, 2, 130) or (code == 1 and command.name != "parity"):
        raise Broken(f"it ended with the code {code}", (said or "")[-1500:])
    if code == 130 and not interrupted:
        raise Broken("it ended as by Ctrl-C", said or "")
    if code != 2 or said is None:
        return
    lines = said.splitlines()
    if command.name == "chat":  # a conversation says there what it is, and what each round lacks
        lines = [one.lstrip("> ") for one in lines if not one.startswith("Ask, one line")]
        lines = [one for one in lines if one][-1:]
    if len(lines) != 1:
        raise Broken(f"standard error has {len(lines)} lines", said[:1500])
    if wrong := wrong_line(lines[0]):
        raise Broken(f"its line {wrong}", ascii(lines[0][:1500]))


def stack() -> str:
    """Where a command hung, as it has written into the log of this process."""
    with open("../../log", errors="replace") as file:
        return file.read()[-3000:]


def fill(random: Random, place: Path) -> None:
    """A model, a run, pictures and things that are none of these, around the command's folder."""
    here = place / "here"
    checkpoints.write(here / "model", "iss")
    (here / "red.png").write_bytes(encoded(picture(), "PNG"))
    (here / "odd").write_bytes(pictures.written(random)[1])
    (here / "full.png").write_bytes(b"a file of the user's")
    plant(here / "planted", random)
    checkpoints.write(here / "broken", "iss")
    random.choice(checkpoints.DAMAGES)(random, here / "broken", "iss")
    (here / "old").mkdir()
    for name, contents in random.choice(training_states.runs()).items():
        (here / "old" / name).write_bytes(contents)
    if random.random() < 0.3:
        random.choice(training_states.DAMAGES)(random, here / "old")


# They take no input, or a minute; that no browser opens is always asked for.
UNTRIED = ("help", "compile", "no_open")


@cache
def actions(name: str) -> list[Any]:
    """What a command takes and what is tried of it."""
    parsers = next(one.choices for one in build_parser()._actions if one.choices)
    return [one for one in parsers[name]._actions if one.dest not in UNTRIED]


def arguments(name: str, random: Random) -> list[str]:
    """Arguments of a command, each left out, sensible or hostile."""
    made = []
    for action in actions(name):
        there = action.required or action.dest == "scenes"  # a thousand of them take long
        there = there or random.random() < (0.8 if action.dest in USUAL else 0.15)
        if not there or (action.required and random.random() < 0.02):
            continue
        if action.nargs == 0:
            made.append([action.option_strings[0]])
            continue
        sensible = random.random() < (0.75 if action.dest in USUAL else 0.4)
        one = random.choice(SENSIBLE[action.dest] if sensible else hostile(action, random))
        if not action.option_strings:
            made.append([one])
        elif random.random() < 0.2:
            made.append([f"{action.option_strings[0]}={one}"])
        else:
            made.append([action.option_strings[0], one])
    random.shuffle(made)
    return [one for each in made for one in each]


SENSIBLE: dict[str, list[str]] = {
    "model": ["model", "model", "model", str(Path("..", "here", "model")), "nano"],
    "image": ["red.png"],
    "question": ["What is it?"],
    "out": ["out.png", "run"],
    "html": ["page.html"],
    "json": ["bench.json"],
    "tower": ["old", "nano"],
    "config": ["model/config.json"],
    "max_new_tokens": ["2"],
    "steps": ["2"],
    "scenes": ["1"],
    "seed": ["5"],
    "depth": ["1", "2", "9"],
    "prompt": ["20"],
    "tiles": ["1"],
    "new": ["1"],
    "runs": ["1"],
    "layer": ["0"],
    "head": ["0"],
    "temperature": ["0.5"],
    "top_p": ["0.9"],
    "top_k": ["5"],
    "repetition_penalty": ["1.1"],
    "tolerance": ["1e-5", "0"],
    "device": ["cpu", "auto"],
    "dtype": ["auto", "float32", "bfloat16"],
    "quantize": ["int8"],
    "revision": ["main"],
    "repository": ["owner/name", "FlashVL/FlashVL-2B-Static"],
    "recipe": ["nano"],
    "stitching": ["trim", "mean"],
    "random": ["nano"],
    "adapter": ["adapter"],
    "assumptions": ["assumptions.json"],
    "batch": ["2"],
    "peer": ["transformers"],
}
USUAL = {"model", "image", "out", "question", "max_new_tokens", "scenes", "repository"}


def hostile(action: argparse.Action, random: Random) -> list[str]:
    if action.type in (int, float):
        return NUMBERS
    if action.choices is not None or action.dest == "device":
        return CHOICES
    if action.dest == "question":
        asked = text(random).encode("utf-8", "replace").decode()
        return [asked, "", "long " * 20_000, "\udcff\udcfe", "-x", "\x1b[2J"]
    return [*NAMES, hostile_name(random), f"{hostile_name(random)}.png"]


def misspelled(command: Command, random: Random) -> None:
    """No command, another one, or a line that is not of its form."""
    name, given = command.name, command.arguments
    junk = [["dance"], [], ["--help"], ["-h"], ["--version"], [""], ["x" * 100_000], ["\x1b[2J"]]
    junk += [["a\nb"], [name, "--help"], [name, "--nonsense"], [name, *["x"] * 500]]
    junk += [given * 2, given[::-1], given[1:], ["--", *given]]
    junk += [] if name == "score" else [given[:-1]]  # a thousand scenes take long
    command.arguments = random.choice(junk)


def around(command: Command, random: Random) -> None:
    """What a command finds when it starts: streams, environment, limits, and Ctrl-C."""
    if random.random() < 0.3:
        kinds = ["closed", "full", "gone", "ascii"]
        command.streams[random.choice([1, 1, 2])] = random.choice(kinds)
    if random.random() < 0.3:
        command.streams[0] = random.choice(["closed", "typed", "typed", "typed"])
        asked = text(random).encode("utf-8", "replace")
        command.typed = b"".join(random.choices([*LINES, asked], k=3))
    if random.random() < 0.1:
        names = ["HOME", "TMPDIR", "COLUMNS", "LANG"]
        values = ["", "/proc/nowhere", "0", "-1", "C", "x" * 1000]
        command.environment[random.choice(names)] = random.choice(values)
    if random.random() < 0.12:
        command.largest_file = random.choice([0, 10, 1000, 20_000, 60_000])
    command.anew = random.random() < 0.04 and command.name != "train"
    if random.random() < 0.08:
        command.interrupted_after = random.random() * (2.5 if command.anew else 0.2)
    if command.anew:
        command.arguments = [one.replace("\0", "") for one in command.arguments]


def run(command: Command) -> tuple[int | None, str | None]:
    """-> the exit code, below 0 for a signal, None if it hung; and what standard error says."""
    opened: dict[int, int] = {}
    pipes: list[int] = []
    for number, kind in command.streams.items():
        if kind != "closed":
            theirs, ours = stream(number, kind, command)
            opened[number] = theirs
            pipes += ours
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # not before it is the command
    child = WATCH.fork()
    if child == 0:
        become(command, opened)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    for one in opened.values():
        os.close(one)
    said, code = wait(command, child, pipes)
    reads_errors = command.streams[2] in ("pipe", "ascii")
    return code, said[pipes[-1]].decode("utf-8", "replace") if reads_errors else None


def stream(number: int, kind: str, command: Command) -> tuple[int, list[int]]:
    """A descriptor for the command, and those of ours that it writes to."""
    if kind == "null":
        return os.open(os.devnull, os.O_RDWR), []
    if kind == "full":
        return os.open("/dev/full", os.O_WRONLY), []
    reading, writing = os.pipe()
    if kind == "typed":
        with suppress(BlockingIOError):
            os.set_blocking(writing, False)
            os.write(writing, command.typed)
        os.close(writing)
        return reading, []
    if kind == "gone":
        os.close(reading)
        return writing, []
    return writing, [reading]


def wait(command: Command, child: int, pipes: list[int]) -> tuple[dict[int, bytes], int | None]:
    """Reads what the command writes until it ends, or its time is over."""
    begun, interrupt = time.monotonic(), command.interrupted_after
    said = dict.fromkeys(pipes, b"")
    code = None
    while code is None and (passed := time.monotonic() - begun) < SECONDS:
        for one in select.select(pipes, [], [], 0.005)[0]:
            said[one] += os.read(one, 2**16)
        if interrupt is not None and passed > interrupt:
            os.kill(child, signal.SIGINT)
            interrupt = None
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
    if code is None:
        os.kill(child, ASK)
        time.sleep(0.3)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    for one in pipes:
        while select.select([one], [], [], 0)[0] and (rest := os.read(one, 2**16)):
            said[one] += rest
        os.close(one)
    return said, code


def become(command: Command, opened: dict[int, int]) -> NoReturn:
    """Makes this forked process the command."""
    code = 1
    try:
        for number in (0, 1, 2):
            if number in opened:
                os.dup2(opened[number], number)
            else:
                os.close(number)
        os.environ |= command.environment
        if command.largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (command.largest_file,) * 2)
        if command.anew:
            WATCH.place = None
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
            given = [sys.executable, "-m", "flashvl", *command.arguments]
            os.execv(sys.executable, [one.encode("utf-8", "surrogatepass") for one in given])
        open_streams(command, opened)
        code = run_here(command.arguments)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(ended(code))


def open_streams(command: Command, opened: dict[int, int]) -> None:
    """As Python does when it starts."""
    encoding = "ascii" if "ascii" in command.streams.values() else "utf-8"
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        made: Any = None
        if number in opened:
            mode, errors = "w" if number else "r", "backslashreplace" if number == 2 else "strict"
            made = open(number, mode, encoding=encoding, errors=errors, closefd=False)  # noqa: SIM115
            made.reconfigure(line_buffering=number == 2)
        setattr(sys, name, made)


def run_here(arguments: list[str]) -> int:
    """`flashvl.__main__`, with what would take seconds put out of the way."""
    sys.argv = ["flashvl", *arguments]
    bench.bench = lambda *_: {}  # type: ignore[assignment]
    train_module.RECIPES["nano"] = training_states.tiny()
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    except KeyboardInterrupt:
        return 130  # before its beginning
    try:
        return command_module.main()
    except SystemExit as end:  # argparse ends the process itself
        return end.code if isinstance(end.code, int) else 1


def ended(code: int) -> int:
    """Python's last deed: what is still held is written, or the code is 120."""
    for one in (sys.stdout, sys.stderr):
        try:
            if one is not None and not one.closed:
                one.flush()
        except Exception:
            code = 120
    return code


@cache
def import_transformers() -> None:
    """Once for all that are forked; it takes seconds."""
    with suppress(ImportError):
        import transformers  # noqa: F401

        from flashvl.tools import parity  # noqa: F401
