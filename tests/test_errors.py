"""An error is one short line that commands no terminal."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flashvl.errors import MAX_LENGTH, FlashVLError, printable, shortened


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_becomes_one_short_printable_line(text):
    said = str(FlashVLError(text))
    assert len(said) <= MAX_LENGTH
    assert said.isprintable()
    said.encode("utf-8")


def test_what_is_printable_stays():
    assert str(FlashVLError("there is no file 图.png")) == "there is no file 图.png"


def test_escapes_are_shown_and_lines_joined():
    assert printable("a\x1b[31m\nb\rc\u202ed") == "a\\x1b[31m b c\\u202ed"


def test_of_a_long_text_both_ends_stay():
    said = shortened("begin " + "x" * 70_000 + " end", 100)
    assert len(said) == 100
    assert said.startswith("begin xx")
    assert said.endswith("xx end")
    assert " ... " in said
    assert shortened("x" * 100, 100) == "x" * 100
