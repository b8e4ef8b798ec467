"""No hostile input gets through; and what would get through is found."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fuzz import harmful
from fuzz.promise import wrong_line
from fuzz.run import KINDS, environment, run, shared_out

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="limits and pipes of Unix")

COUNT = 2000  # inputs of all kinds together; 10,000 and more are for `run.py`


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_input_is_answered_or_refused(kind):
    inputs = [one for one in shared_out(COUNT, seed=0) if one[0] == kind]
    report = run(inputs)
    assert not report.findings, f"\n{report}"
    assert 0 < report.refused[kind] < report.count[kind] == len(inputs)


@pytest.mark.skipif(sys.platform != "linux", reason="memory of a process is limited on Linux alone")
def test_every_broken_promise_is_found_with_its_number():
    report = run([("harmful", number) for number in range(len(harmful.HARMS))], seconds=2)
    found = {one.number: one.problem.words for one in report.findings}
    for number, (_, words) in enumerate(harmful.HARMS):
        assert (words or "") in found.get(number, ""), number
        assert (number in found) == (words is not None), number
    assert "--only harmful:3" in str(report)


# Prints the inputs of some numbers: in words without addresses, and the files of each.
INPUTS = """
import random, re, sys
from importlib import import_module
from pathlib import Path
from fuzz.promise import files_of
from fuzz.worker import make_place
place = Path("place").absolute()
for kind in sys.argv[1:]:
    for number in range(25):
        make_place(place)
        what = import_module(f"fuzz.{kind}").case(random.Random(number), place).what
        print(re.sub("0x[0-9a-f]+", "", what), sorted(files_of(place).items()))
"""


def test_the_same_number_is_the_same_input(tmp_path):
    kinds = ["pictures", "messages", "checkpoints", "tokenizer_files"]
    started = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        command = [sys.executable, "-c", INPUTS, *kinds]
        started.append(
            subprocess.Popen(
                command, cwd=folder, env=environment(folder), stdout=subprocess.PIPE, text=True
            )
        )
    one, other = (process.communicate()[0] for process in started)
    assert one.count("\n") == 25 * len(kinds)
    assert one.replace(str(tmp_path / "0"), "") == other.replace(str(tmp_path / "1"), "")


def test_inputs_are_shared_out_among_the_kinds():
    inputs = shared_out(10_000, seed=3)
    assert len(inputs) == len(set(inputs)) == 10_000
    assert set(shared_out(100, seed=3)) < set(inputs)
    assert not set(shared_out(100, seed=4)) & set(inputs)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [("a line", False), ("", True), ("a\nb", True), ("\x1b[2J", True), ("x" * 400, True)],
)
def test_an_error_is_a_short_line(text, wrong):
    assert bool(wrong_line(text)) == wrong
