"""A chart's page is one file: no address leads out of it, and labels are data in it."""

from __future__ import annotations

import json
import re

from lens.figures.chart import bars, chart
from lens.figures.chart_page import chart_page
from tests.figures.test_page import SVG_NAMESPACE, Reader, state_of

HOSTILE = "</script><img src=x onerror=alert(1)><!--"


def spec(label: str) -> dict:
    return chart([bars("a", [label, "b"], {label: [1, 2]}, label_axis=label, value_axis="R²")])


def test_no_address_leads_out_of_the_page():
    page = chart_page(spec("identity"), "Ladder", "The ladder ends at 2.", "SmolLM2")
    assert set(re.findall(r"(?i)\b(?:https?|wss?|ftp):[^\s\"'`)]*", page)) == {SVG_NAMESPACE}
    assert not re.search(r"(?i)@import|url\(|\bimport\s*\(|^\s*import\b|\bfetch\(|XMLHttpRequest", page, re.MULTILINE)


def test_a_hostile_label_makes_no_element_and_arrives_whole():
    page = chart_page(spec(HOSTILE), HOSTILE, HOSTILE, HOSTILE, {"a": 1})
    assert Reader(page).tags == Reader(chart_page(spec("x"), "x", "x", "x")).tags
    assert state_of(page) == {"spec": json.loads(json.dumps(spec(HOSTILE))), "selected": {"a": 1}}
    assert Reader(page).texts["footer"][0] == HOSTILE
