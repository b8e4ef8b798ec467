"""The children in which tests run what may hang tell what became of them."""

from __future__ import annotations

import os
import time

import pytest
from limits import GIBIBYTE, limited


@pytest.mark.parametrize(
    ("task", "kind", "words"),
    [
        ("result = 2 * number", "returned", ""),
        ("raise KeyError(number)", "raised", "3"),
        ("raise SystemExit(number)", "raised", "3"),
        ("while True: pass", "hung", ""),
        ("import os; os._exit(number)", "died", "exit status 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "died", "exit status -9"),
        ("bytearray(4 * 2**30)", "raised", ""),
    ],
)
def test_what_became_of_a_child(task, kind, words):
    outcome = limited(task, seconds=3, memory=GIBIBYTE, number=3)
    assert (outcome.kind, outcome.text) == (kind, words)
    assert outcome.result == (6 if kind == "returned" else None)
    assert outcome.seconds < 10


def test_the_class_of_an_error_and_what_was_printed():
    outcome = limited("print('before', flush=True); int('x')")
    assert outcome.raised[:2] == ("ValueError", "Exception")
    assert outcome.printed == "before\n"


def test_a_function_and_its_peak_of_memory():
    assert limited(os.path.join, a="x", p="y").raised[0] == "TypeError"
    assert limited(os.path.basename, p="x/y").result == "y"
    assert 2**28 < limited("held = bytes(range(256)) * 2**20").peak < 2**29


def test_what_a_child_has_started_ends_with_it(tmp_path):
    late = tmp_path / "late"
    limited(f"import os; os.system('(sleep 1; touch {late}) &')")
    time.sleep(1.5)
    assert not late.exists()
