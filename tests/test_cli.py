"""The command line as a user meets it: answers on standard output, errors as one line."""

from __future__ import annotations

import importlib
import io
import os
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from tiny import teach_answer, tiny_model

from flashvl import FlashVL
from flashvl.cli import main

COMMANDS = (
    "chat",
    "download",
    "verify",
    "parity",
    "trace",
    "tiles",
    "look",
    "explore",
    "bench",
    "train",
    "score",
    "evaluate",
    "settle",
    "scenes",
)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A folder whose model answers "red" to everything."""
    model = tiny_model()
    teach_answer(model, "red")
    folder = tmp_path_factory.mktemp("taught") / "model"
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "red.png")
    return str(tmp_path / "red.png")


def test_the_real_command_prints_the_answer_alone(taught, picture):
    command = [sys.executable, "-m", "flashvl", "chat", "--model", taught, "--image", picture]
    done = subprocess.run([*command, "What colour?"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "red\n", "")


def test_a_question_without_a_picture(taught, capsys):
    assert main(["chat", "--model", taught, "Who are you?"]) == 0
    assert capsys.readouterr().out == "red\n"


def test_sampling_repeats_with_a_seed(folder, capsys):
    command = ["chat", "--model", str(folder), "--sample", "--temperature", "2", "--top-k", "50"]
    answers = []
    for seed in ("1", "1", "2"):
        assert (
            main([*command, "--top-p", "0.9", "--seed", seed, "--max-new-tokens", "20", "a"]) == 0
        )
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != answers[2]


def test_without_a_question_it_converses(taught, picture, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("What colour?\nAnd now?\n"))
    assert main(["chat", "--model", taught, "--image", picture]) == 0
    captured = capsys.readouterr()
    assert captured.out == "red\nred\n"
    assert captured.err.count("> ") == 3


def test_a_round_remembers_the_rounds_before(taught, capsys, monkeypatch):
    started = []
    start = FlashVL.start

    def listen(self, *arguments):
        started.append(start(self, *arguments))
        return started[-1]

    monkeypatch.setattr(FlashVL, "start", listen)
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n\nthree\n"))
    main(["chat", "--model", taught])
    (conversation,) = started
    asked = [message["content"] for message in conversation.messages]
    assert asked == ["one", "red", "two", "red"]  # the empty line ends it


def test_a_conversation_goes_on_after_a_bad_round(taught, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("long " * 600 + "\nshort\n"))
    assert main(["chat", "--model", taught]) == 0
    captured = capsys.readouterr()
    assert captured.out == "red\n"
    assert "context" in captured.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["chat", "--image", "nowhere.png", "a"], "nowhere.png"),
        (["chat", "--image", __file__, "a"], "not an image"),
        (["chat", "--max-new-tokens", "0", "a"], "max_new_tokens"),
        (["chat", "--sample", "--temperature", "0", "a"], "temperature"),
        (["chat", "--sample", "--top-p", "1.5", "a"], "top_p"),
        (["chat", "--top-k", "-1", "a"], "top_k"),
        (["chat", "--device", "cuda:99", "a"], "cuda:99"),
        (["chat", "--device", "toaster", "a"], "toaster"),
        (["chat", "long " * 2000], "context"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(taught, arguments, said, capsys):
    assert main([arguments[0], "--model", taught, *arguments[1:]]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("flashvl: ")
    assert said in captured.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["chat", "--model", "no-such-model", "a"], "no-such-model"),
        (["verify", "no-such-model"], "no-such-model"),
        (["chat", "--dtype", "int3", "a"], "int3"),
        (["chat", "--max-new-tokens", "many", "a"], "many"),
        (["dance"], "dance"),
        ([], "COMMAND"),
        (["chat", "--unknown", "a"], "--unknown"),
        (["download"], "REPOSITORY"),
        (["download", "no/such/name"], "no/such/name"),
        (["train", "--out=--"], "--"),
        (["score", "--scenes=--"], "--scenes"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(arguments, said, capsys):
    try:
        code = main(arguments)
    except SystemExit as end:  # argparse ends the process itself
        code = end.code
    captured = capsys.readouterr()
    assert code == 2
    assert captured.err.count("\n") == 1
    assert said in captured.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"example: flashvl {command}" in " ".join(capsys.readouterr().out.split())


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = capsys.readouterr().out
    assert all(command in listed for command in COMMANDS)


def test_interruption_ends_without_a_traceback(taught, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("flashvl.tools.chat.read_line", interrupted)
    assert main(["chat", "--model", taught]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_nor_does_torch_that_stumbles_over_it(taught, capsys, monkeypatch):
    def interrupted(*_):
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("a stack is empty")

    monkeypatch.setattr("flashvl.tools.chat.read_line", interrupted)
    assert main(["chat", "--model", taught]) == 130
    assert "stack" not in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error(taught):
    command = f"{sys.executable} -m flashvl chat --model {taught} hello | head -c 0"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stderr == ""


def shell(command: str, **options) -> subprocess.CompletedProcess:
    """A line of the shell, with `flashvl` as it is run from here."""
    line = command.replace("flashvl", f"{shlex.quote(sys.executable)} -m flashvl", 1)
    return subprocess.run(["bash", "-c", line], capture_output=True, timeout=60, **options)


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        ("> /dev/full", 2, b"flashvl: No space left on device\n"),
        ("2> /dev/full", 0, b""),
        (">&-", 0, b""),
        ("2>&-", 0, b""),
        ("<&-", 0, b""),
        ("| true; exit ${PIPESTATUS[0]}", 0, b""),
    ],
)
def test_no_standard_stream_ends_an_answer_in_a_traceback(taught, ending, code, said):
    done = shell(f"flashvl chat --model {taught} hello {ending}")
    assert (done.returncode, done.stderr) == (code, said)


@pytest.mark.parametrize("command", ["flashvl --help", "flashvl chat --help"])
def test_nor_does_it_end_the_help(command):
    buffered = os.environ | {"PYTHONUNBUFFERED": ""}
    full = shell(f"{command} > /dev/full", env=buffered)
    assert (full.returncode, full.stderr) == (2, b"flashvl: No space left on device\n")
    gone = shell(f"{command} | true; exit ${{PIPESTATUS[0]}}", env=buffered)
    assert (gone.returncode, gone.stderr) == (0, b"")


def test_an_error_goes_nowhere_but_to_standard_error(taught):
    for ending in ("2>&-", "2> /dev/full"):
        done = shell(f"flashvl chat --model {taught} --image nowhere.png hello {ending}")
        assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"")


def test_questions_that_are_no_text_are_answered(taught):
    done = shell(f"flashvl chat --model {taught}", input=b"what \xff is\nthis?\n")
    assert (done.returncode, done.stdout) == (0, b"red\nred\n")
    done = shell(f"flashvl chat --model {taught} <&-")
    assert (done.returncode, done.stdout) == (0, b"")


@pytest.mark.parametrize("module", ["flashvl.tools.chat", "flashvl.tools.verify"])
def test_ctrl_c_while_a_command_is_imported_waits_for_its_end(module, monkeypatch, capsys):
    """Inside torch it would abort the process."""
    ended = []

    def slow_import(name, package):
        signal.raise_signal(signal.SIGINT)
        ended.append(name)
        return importlib.import_module(name, package)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("flashvl.cli.import_module", slow_import)
    arguments = ["verify", "nano"] if module.endswith("verify") else ["chat", "a"]
    assert main(arguments) == 130
    assert ended == [module.removeprefix("flashvl")]
    assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().out == ""


def test_ctrl_c_inside_a_finalizer_still_ends_the_command():
    """Python can only print what is raised there."""
    lines = """
import signal, sys, time
import flashvl.cli
from flashvl.__main__ import main
class Interrupted:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
def command():
    Interrupted()
    time.sleep(30)
    return 0
flashvl.cli.main = command
sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.slow
def test_ctrl_c_at_any_moment_prints_no_traceback(taught):
    command = [sys.executable, "-m", "flashvl", "chat", "--model", taught, "hello"]
    random = np.random.default_rng(0)
    for _ in range(30):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
            time.sleep(0.1 + random.uniform(0, 1.5))  # Python itself is up by then
            running.send_signal(signal.SIGINT)
            _, said = running.communicate(timeout=60)
        assert b"Traceback" not in said
        # Python ends itself by the signal where it came inside code that is made as it runs.
        assert running.returncode in (0, 130, -signal.SIGINT)
