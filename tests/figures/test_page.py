"""A page is one file that needs neither a kernel nor a network, and token text cannot act in it."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser

import pytest

from lens.figures.logit_lens import grid_spec
from lens.figures.page import logit_lens_page, widget_source

# The name of a vocabulary, which a browser never fetches.
SVG_NAMESPACE = "http://www.w3.org/2000/svg"


class Reader(HTMLParser):
    """Elements, attributes and texts, as a browser would separate them."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        if self.tags:
            self.texts.setdefault(self.tags[-1], []).append(data)


def state_of(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="state">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


@pytest.mark.parametrize("which", ["dataset", "hostile"])
def test_no_address_leads_out_of_the_page(which, request):
    page = logit_lens_page(request.getfixturevalue(which))
    assert set(re.findall(r"(?i)\b(?:https?|wss?|ftp):[^\s\"'`)]*", page)) == {SVG_NAMESPACE}
    assert not re.search(r"(?i)@import|url\(|\bimport\s*\(|^\s*import\b|\bfetch\(|XMLHttpRequest", page, re.MULTILINE)
    assert not {name for name, _ in Reader(page).attributes} & {"src", "href", "srcset", "action"}


def test_a_hostile_token_makes_no_element(hostile, dataset):
    expected = Reader(logit_lens_page(dataset)).tags
    assert Reader(logit_lens_page(hostile)).tags == expected
    assert expected == ["html", "meta", "meta", "title", "style", "p", "div", "footer", "script", "script"]


def test_texts_arrive_as_they_are(hostile):
    page = Reader(logit_lens_page(hostile))
    assert "".join(page.texts["title"]).startswith(hostile.attrs["model"])
    assert "<b onmouseover=alert(1)>bold</b>" in "".join(page.texts["p"])


def test_the_state_is_the_grids_description(hostile):
    state = state_of(logit_lens_page(hostile, "entropy", 3, (1, 2)))
    spec = state.pop("spec")
    for value in spec.values():
        if isinstance(value, dict):
            value["data"] = base64.b64decode(value["data"], validate=True)
    assert spec == grid_spec(hostile)
    assert state == {"colour": "entropy", "stride": 3, "strides": [1, 2, 3, 5], "selected": [1, 2]}


def test_the_default_selection_is_the_last_cell(dataset):
    assert state_of(logit_lens_page(dataset))["selected"] == [3, 5]
    assert state_of(logit_lens_page(dataset, selected=(0, 0)))["selected"] == [0, 0]


def test_the_page_says_where_it_comes_from(dataset):
    page = Reader(logit_lens_page(dataset))
    footer = "".join(page.texts["footer"])
    for name, value in dataset.attrs.items():
        assert name == "prompt" or f"{name} {value}" in footer
    assert page.texts["p"][0] == dataset.attrs["prompt"]


@pytest.mark.parametrize("name", ["token_grid.js", "token_grid.css"])
def test_the_widgets_own_files_cannot_close_the_element_they_stand_in(name):
    assert not re.search(r"(?i)</(script|style)|<!--", widget_source(name))
