"""Whoever wants the plain code alone deletes flashvl/fast; all still runs and says the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
# Everything that runs without bench, in the folder in which it is started; prints one JSON object.
PROGRAM = """
import contextlib, hashlib, importlib.util, io, json, pathlib
import flashvl
from flashvl.cli import main

flash = flashvl.FlashVL.from_pretrained("nano", device="cpu")
pictures = sorted(map(str, flash.folder.joinpath("pictures").iterdir()))
question = "What is in the picture?"
messages = [{"role": "user", "content": question}]
conversation = flash.start(pictures[0])
flash.save_pretrained("saved")
device = ["--device", "cpu"]
commands = {
    "chat": ["--image", pictures[0], *device, question],
    "score": ["--scenes", "2", *device],
    "trace": ["--image", pictures[0], *device, "--depth", "2", "--json"],
    "look": ["--image", pictures[0], *device, "--out", "look.png", question],
    "tiles": ["--image", pictures[0], "--out", "tiles.png"],
    "verify": ["saved", "--values"],
}
said = {}
for name, options in commands.items():
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert main([name, *options]) == 0, name
    said[name] = output.getvalue()
print(json.dumps({
    "package": str(pathlib.Path(flashvl.__file__).parent),
    "has fast": importlib.util.find_spec("flashvl.fast") is not None,
    "chat": [flash.chat(picture, messages) for picture in pictures],
    "batch": flash.chat_batch([(picture, messages) for picture in pictures]),
    "conversation": [conversation.ask(question), conversation.ask("What colour is the star?")],
    "said": said,
    "files": {
        str(file): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(pathlib.Path().rglob("*")) if file.is_file()
    },
}))
"""


def run(root: Path, inside: Path) -> dict:
    """`PROGRAM` with the flashvl of `root`."""
    inside.mkdir()
    # Without site no other flashvl is found, which an editable install would put in.
    others = [path for path in sys.path if path and not Path(path).is_relative_to(ROOT)]
    done = subprocess.run(
        [sys.executable, "-S", "-c", PROGRAM],
        cwd=inside,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(root), *others]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> tuple[dict, dict]:
    """With the folder, and in a copy without it."""
    folder = tmp_path_factory.mktemp("copy")
    left_out = shutil.ignore_patterns("fast", "__pycache__")
    shutil.copytree(ROOT / "flashvl", folder / "flashvl", ignore=left_out)
    shutil.copytree(ROOT / "weights", folder / "weights")
    whole, plain = run(ROOT, folder / "whole"), run(folder, folder / "plain")
    assert (whole["package"], whole["has fast"]) == (str(ROOT / "flashvl"), True)
    assert (plain["package"], plain["has fast"]) == (str(folder / "flashvl"), False)
    return whole, plain


@pytest.mark.parametrize("way", ["chat", "batch", "conversation", "files"])
def test_answers_and_what_is_written_are_the_same(outcomes, way):
    whole, plain = outcomes
    assert whole[way]
    assert plain[way] == whole[way]


@pytest.mark.parametrize("command", ["chat", "score", "look", "tiles", "verify"])
def test_commands_say_the_same(outcomes, command):
    whole, plain = (outcome["said"][command] for outcome in outcomes)
    assert plain.replace("/plain/", "/whole/") == whole


def test_trace_counts_the_same(outcomes):
    """Its times alone differ."""
    whole, plain = (json.loads(outcome["said"]["trace"]) for outcome in outcomes)
    assert plain["answer"] == whole["answer"]
    for one, other in zip(plain["rows"], whole["rows"], strict=True):
        for key in ("name", "operations", "parameters", "bytes"):
            assert one[key] == other[key]
