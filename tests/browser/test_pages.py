"""Exported pages and plotly figures in a real browser, full of tokens that would like to act."""

from __future__ import annotations

import numpy as np
import pytest

import lens
from lens.base.text import storable, visible
from lens.figures.export import export_logit_lens
from lens.figures.logit_lens import figure
from lens.figures.page import logit_lens_page
from tests.base.hostile import HOSTILE
from tests.models.families import build, word_tokenizer

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect


@pytest.fixture(scope="module")
def hostile():
    """A grid whose prompt and predictions are hostile texts."""
    texts = np.array([storable(text) for text in HOSTILE], dtype=object)
    read = lens.logit_lens(lens.load(build("llama"), word_tokenizer()).run([i % 100 + 4 for i in range(len(texts))]))
    places = np.indices(read.token.shape).sum(axis=0) % len(texts)
    read["token"] = read.token.copy(data=texts[places])
    read["input_token"] = read.input_token.copy(data=texts)
    read.attrs["prompt"] = "".join(texts)
    return read


def test_an_exported_page_works_without_kernel_and_network(watched, hostile, tmp_path):
    page = watched.page
    page.goto(export_logit_lens(hostile, tmp_path / "a.html", selected=(2, 3)).as_uri())
    expect(page.locator("tfoot th:not(:first-child)")).to_have_text([visible(token) for token in hostile.input_token.to_numpy()])
    chosen = page.locator("td[aria-selected=true]")
    expect(chosen).to_be_visible()
    chosen.click()
    page.keyboard.press("ArrowUp")
    page.get_by_role("radiogroup", name="Colour").get_by_role("radio", name="entropy").check()
    page.get_by_role("option").nth(1).click()
    assert page.locator("table b, table img, h3 b, .lens-grid-sentence b").count() == 0
    assert page.title() != "pwned"
    assert (watched.complaints, watched.outside) == ([], [])


def test_two_grids_with_a_copy_of_the_code_each_keep_their_own_choices(watched, tmp_path):
    """A notebook gives every widget its own copy of the module; their radio buttons must not share a name."""
    read = lens.logit_lens(lens.load(build("llama"), word_tokenizer()).run([5, 6, 7]))
    page_text = logit_lens_page(read)
    head, script = page_text.split('<script type="module">')
    second = script.replace('getElementById("grid")', 'getElementById("second")')
    both = head.replace('<div id="grid">', '<div id="second"></div><div id="grid">') + "".join(
        f'<script type="module">{part}' for part in (script.replace("</html>", ""), second)
    )
    (tmp_path / "two.html").write_text(both, encoding="utf-8")
    page = watched.page
    page.goto((tmp_path / "two.html").as_uri())
    groups = page.get_by_role("radiogroup", name="Colour")
    expect(groups).to_have_count(2)
    groups.nth(0).get_by_role("radio", name="entropy").check()
    expect(groups.nth(1).get_by_role("radio", name="probability")).to_be_checked()
    expect(groups.nth(0).get_by_role("radio", name="entropy")).to_be_checked()
    assert watched.complaints == []


def test_a_plotly_figure_shows_hostile_tokens_as_text(watched, hostile, tmp_path):
    (tmp_path / "a.html").write_text(figure(hostile).to_html(include_plotlyjs=True), encoding="utf-8")
    page = watched.page
    page.goto((tmp_path / "a.html").as_uri())
    ticks = page.locator(".xtick text")
    shown = [visible(token, 9) for token in hostile.input_token.to_numpy() if token]  # plotly draws no empty label
    expect(ticks).to_have_count(len(shown))
    assert [_single_spaced(text) for text in ticks.all_text_contents()] == [_single_spaced(text) for text in shown]
    assert page.locator(".js-plotly-plot b, .js-plotly-plot [onmouseover], .js-plotly-plot .MathJax").count() == 0
    assert page.title() != "pwned"
    assert (watched.complaints, watched.outside) == ([], [])


def _single_spaced(text: str) -> str:
    """Plotly writes spaces as no-break ones."""
    return " ".join(text.replace("\xa0", " ").split())
