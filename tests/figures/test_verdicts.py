"""The table that ends a notebook: what it shows, what it stores, and what it refuses."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lens
from lens.base.errors import InputError
from lens.figures.verdicts import KIND, WORDS, here
from lens.models.model import Model

ROW = {"claim": "Some heads copy", "source": "A. Author, arXiv 2406.19384, section 3", "verdict": "fails"}
MEASURED = {"measured": "share of heads", "value": 0.5834, "low": 0.5123, "high": 0.6601, "threshold": 0.83}


def stored(*rows: dict[str, Any], **settings: Any) -> list[dict[str, Any]]:
    data, _ = lens.verdict_table(rows, settings.pop("model", "a model"), **settings)._repr_mimebundle_()
    return json.loads(json.dumps(data[KIND]))["rows"]


def page(*rows: dict[str, Any]) -> str:
    return lens.verdict_table(rows, "a model")._repr_mimebundle_()[0]["text/html"]


def test_it_prints_what_was_found_beside_what_was_said():
    table = lens.verdict_table([{**ROW, **MEASURED, "published": 0.9}], "a model")
    assert repr(table) == (
        "claim            source                        measured        published  here               needed  verdict\n"
        "\n"
        "Some heads copy  A. Author, arXiv 2406.19384,  share of heads  0.9        0.58 [0.51, 0.66]  ≥ 0.83  fails\n"
        "                 section 3"
    )


def test_columns_that_no_row_fills_are_left_out():
    assert repr(lens.verdict_table([ROW], "a model")).split("\n")[0].split() == ["claim", "source", "verdict"]


def test_numbers_are_stored_as_they_are_shown():
    (row,) = stored({**ROW, **MEASURED})
    assert (row["value"], row["low"], row["high"], row["threshold"]) == (0.58, 0.51, 0.66, 0.83)


@pytest.mark.parametrize(
    ("low", "high", "digits", "shown"),
    [(0.0011, 0.0424, 3, 0.022), (0.0011, 0.0424, 2, 0.02), (20.4, 3121.2, 2, 1571.0), (1.23, 9.87, 2, 5.5), (2.0, 2.0, 2, 2.0)],
)
def test_no_more_digits_than_the_interval_bears(low: float, high: float, digits: int, shown: float):
    (row,) = stored({**ROW, "value": (low + high) / 2, "low": low, "high": high}, digits=digits)
    assert row["value"] == pytest.approx(shown, abs=10.0**-digits / 2)
    assert row["value"] == round(row["value"], digits)


def test_an_end_is_never_shown_on_the_wrong_side_of_the_threshold():
    (row,) = stored({**ROW, "value": 0.6, "low": 0.0, "high": 1.2534, "threshold": 1.26})
    assert (row["low"], row["high"]) == (0.0, 1.25)


@pytest.mark.parametrize(
    ("numbers", "shown"),
    [
        ({"value": 0.358, "low": 0.304, "high": 0.411}, "0.36 [0.30, 0.41]"),
        ({"value": 1571.2, "low": 20.4, "high": 3121.9}, "1571 [20, 3122]"),
        ({"value": 2}, "2"),
        ({"low": -0.5, "high": 0.25}, "[-0.50, 0.25]"),
        ({"found": "12 of 12"}, "12 of 12"),
        ({}, ""),
    ],
)
def test_a_value_and_its_interval_have_the_same_digits(numbers: dict[str, Any], shown: str):
    assert here(stored({**ROW, **numbers})[0]) == shown


def test_numpy_numbers_and_negative_zeros_become_plain():
    (row,) = stored({**ROW, "value": np.float32(-0.001), "low": np.float64(-0.3), "high": 0.3, "threshold": np.int64(0)})
    assert str(row["value"]) == "0.0"
    assert row["threshold"] == 0


def test_a_row_may_differ_from_the_rest_in_what_it_was_measured_on():
    first, second = stored(ROW, {**ROW, "model": "another", "device": "cuda"}, text="two texts", tokens=7)
    assert (first["model"], first["text"], first["tokens"]) == ("a model", "two texts", 7)
    assert "device" not in first
    assert (second["model"], second["device"]) == ("another", "cuda")


def test_rows_do_not_depend_on_the_device_and_the_device_is_kept(tiny: Model):
    data, metadata = lens.verdict_table([ROW], tiny)._repr_mimebundle_()
    assert data[KIND]["rows"][0] == {**ROW, "model": tiny.name}
    assert metadata == {"lens": {"device": "cpu"}}


def test_arxiv_numbers_are_links_and_texts_are_not_interpreted():
    shown = page({**ROW, "claim": "<script>alert(1)</script>", "found": "<b>", "note": "<i>"})
    assert '<a href="https://arxiv.org/abs/2406.19384">arXiv 2406.19384</a>' in shown
    assert "&lt;script&gt;" in shown
    assert "&lt;b&gt;" in shown
    assert not re.search(r"<(script|i)>", shown)


def test_without_style_sheets_cells_still_stand_left_and_numbers_whole():
    """A notebook that is only opened loses them, and pictures too."""
    cells = re.findall(r"<t[hd] [^>]*>", page({**ROW, **MEASURED}))
    assert len(cells) == 8
    assert all('style="text-align: left; vertical-align: top"' in cell for cell in cells)
    assert sum("nowrap" in cell for cell in cells) == 3


@settings(deadline=None)
@given(
    ends=st.tuples(*[st.floats(-1e4, 1e4)] * 2).map(sorted),
    threshold=st.floats(-1e4, 1e4),
)
def test_the_picture_tells_the_verdict(ends: list[float], threshold: float):
    """The threshold stands left of the bar where a claim holds, right of it where it fails, within it where it is open."""
    low, high = ends
    word = lens.verdict((low, high), at_least=threshold)
    row = {**ROW, "value": (low + high) / 2, "low": low, "high": high, "threshold": threshold, "verdict": word}
    svg = re.search(r"<svg.*</svg>", page(row))
    assert svg is not None
    line, bar, dot = ET.fromstring(svg[0])
    at, start, end = (float(part.attrib[name]) for part, name in ((line, "x1"), (bar, "x1"), (bar, "x2")))
    assert 0 <= min(at, start) <= max(at, end) <= 97
    assert start - 0.1 <= float(dot.attrib["cx"]) <= end + 0.1
    (row,) = stored(row)
    if abs(row["low"] - threshold) > 1e-6 < abs(row["high"] - threshold):  # else an end lies on the threshold
        assert {"holds": at <= start, "fails": at >= end - 1, "open": start <= at <= end}[word]
        assert lens.verdict((row["low"], row["high"]), at_least=row["threshold"]) == word


@pytest.mark.parametrize("word", WORDS)
def test_every_verdict_has_a_mark_of_its_own_beside_its_word(word: str):
    assert re.search(rf"[●◐○◌◍–] {word}</td>", page({**ROW, "verdict": word}))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**ROW, "source": ""}, "has no source"),
        ({"claim": "a", "source": "ours"}, "has no verdict"),
        ({**ROW, "verdict": "maybe"}, "'maybe'.*holds, holds in part"),
    ],
)
def test_rows_that_are_none(row: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        lens.verdict_table([row], "a model")
