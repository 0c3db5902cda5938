"""Token text is shown, never interpreted."""

from __future__ import annotations

import html
import io
import unicodedata

import pandas
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lens.base.text import csv_safe, html_safe, plotly_safe, storable, visible
from tests.base import hostile
from tests.base.hostile import HOSTILE

ANY_TEXT = st.text(st.characters(), max_size=40)  # every code point, lone surrogates too
HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


@pytest.mark.parametrize(
    ("piece", "shown"),
    [
        ("Paris", "Paris"),
        (" Paris", "·Paris"),
        (hostile.BOTH_ENDS, "··two words·"),
        (hostile.SPACES, "···"),
        (" ", "·"),
        ("", ""),
        ("\n", "↵"),
        ("\t\r", "⇥␍"),
        (" \n", "·↵"),
        (hostile.NUL, "a␀b"),
        ("\x7f", "␡"),
        ("\x1b[31m", "<U+001B>[31m"),
        ("\u00a0", "⍽"),
        ("\ufeff", "<BOM>"),
        (hostile.OVERRIDE, "abc<U+202E>gnp.exe"),
        (hostile.SURROGATE, "half <U+D83D>"),
        (hostile.LINES, "a␍↵⇥b<U+2028>c"),
        (hostile.MARKUP, hostile.MARKUP),
        (hostile.WIDE, hostile.WIDE),
        ("\U000e0041", "<U+E0041>"),
        ("\u2003x\u3000", "<U+2003>x<U+3000>"),
        ("a b", "a b"),
    ],
)
def test_visible_spells_what_the_eye_would_miss(piece, shown):
    assert visible(piece) == shown


@pytest.mark.parametrize(("width", "shown"), [(None, "·located"), (8, "·located"), (7, "·locat…"), (2, "·…"), (1, "…")])
def test_visible_cuts_with_an_ellipsis(width, shown):
    assert visible(" located", width) == shown


def test_visible_keeps_all_of_a_long_token_unless_asked():
    assert visible(hostile.LONG) == hostile.LONG
    assert len(visible(hostile.LONG, 9)) == 9


@given(ANY_TEXT, st.none() | st.integers(1, 20))
@example(hostile.OVERRIDE, None)
@example(hostile.SURROGATE, 3)
def test_visible_never_holds_a_hidden_character(piece, width):
    shown = visible(piece, width)
    assert not {unicodedata.category(character) for character in shown} & HIDDEN
    assert shown.encode("utf-8").decode("utf-8") == shown
    assert width is None or len(shown) <= width


@given(ANY_TEXT.filter(bool))
@example("\u2003")
@example("\u3000")
def test_visible_never_hides_a_token_altogether(piece):
    assert visible(piece).strip()


@given(ANY_TEXT)
@example(hostile.SCRIPT_END)
@example(hostile.QUOTES)
def test_html_safe_leaves_nothing_that_html_acts_upon(text):
    escaped = html_safe(text)
    assert not set("<>\"'") & set(escaped)
    assert html.unescape(escaped) == text


@given(ANY_TEXT)
@example(hostile.DOLLARS)
@example(hostile.ENTITY)
def test_plotly_safe_leaves_neither_tag_nor_mathematics(text):
    escaped = plotly_safe(text)
    assert not set("<>$") & set(escaped)
    assert html.unescape(escaped) == text


@pytest.mark.parametrize("formula", hostile.FORMULAS)
def test_csv_safe_guards_formulas(formula):
    assert csv_safe(formula) == "'" + formula
    assert not csv_safe(visible(formula)).startswith(("=", "+", "-", "@"))


@pytest.mark.parametrize("text", ["", "Paris", "a=1", " =1", "'=1", "1+1", "é"])
def test_csv_safe_leaves_the_rest_alone(text):
    assert csv_safe(text) == text


@pytest.mark.parametrize("piece", HOSTILE)
def test_a_guarded_field_survives_a_csv_file(piece):
    field = csv_safe(visible(piece))
    written = pandas.DataFrame({"token": [field]}).to_csv(index=False)
    assert pandas.read_csv(io.StringIO(written), keep_default_na=False, skip_blank_lines=False).token[0] == field


@given(ANY_TEXT)
@example(hostile.NUL)
@example(hostile.SURROGATE)
def test_storable_text_fits_a_c_string_in_utf8_and_is_stable(text):
    stored = storable(text)
    assert "\x00" not in stored
    assert stored.encode("utf-8").decode("utf-8") == stored
    assert storable(stored) == stored
    assert len(stored) == len(text)
