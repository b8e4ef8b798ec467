"""What commands show on a terminal: tables, and a line of progress."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TextIO

BAR = 20  # letters of a progress bar
TEXT = 56  # letters beside it; a line of both fits into 80 columns


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as a table; the first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def show_progress(text: str, done: float) -> None:
    """A line on standard error with a bar that is full at 1; the next one replaces it.

    Where standard error is no terminal, such as a log file, nothing is shown.
    """
    if _is_terminal():
        bar = ("#" * round(BAR * min(done, 1.0))).ljust(BAR, ".")
        say(f"\r[{bar}] {text[:TEXT]:{TEXT}}", end="")


def end_progress() -> None:
    """Takes the line away."""
    if _is_terminal():
        say("\r" + " " * (BAR + TEXT + 3) + "\r", end="")


def say(text: str, end: str = "\n") -> None:
    """Prints to standard error, which answers never use; nothing if it is closed or full."""
    if sys.stderr is not None:  # else print would take standard output
        try:
            print(text, end=end, file=sys.stderr, flush=True)
        except (OSError, ValueError):
            discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """Lets what a stream still holds go nowhere: it would fail once more when Python ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()
