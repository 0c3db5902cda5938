"""Every panel that no other test opens, one after the other in one JupyterLab: its picture, a control, and its width."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.browser.conftest import ROOT, Lab, Watched

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect
LOADING, RUNNING = 60_000, 120_000  # milliseconds
WIDTHS = (1280, 700)
IDLE = "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
RUN = """async (source) => {
  window.jupyterapp.shell.currentWidget.content.widgets[0].model.sharedModel.setSource(source);
  await window.jupyterapp.commands.execute('notebook:run-cell');
}"""
DRAWN = """(panel) => {
  const pictures = [...panel.querySelectorAll('.lens-look')];
  const cells = pictures.flatMap((one) => [...one.querySelectorAll('canvas')]).map((canvas) => canvas.toDataURL());
  return [...pictures.map((one) => one.innerHTML), ...cells].join('');
}"""
MARKS = """(panel) => [...panel.querySelectorAll('.lens-look :is(path, rect, circle, image, canvas)')].filter((mark) => {
  const { width, height } = mark.getBoundingClientRect();
  return width + height > 1;
}).length"""
# Two frames after the page has another width, its charts have theirs.
SETTLED = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
FITS = "(panel) => panel.scrollWidth <= panel.clientWidth && panel.getBoundingClientRect().right <= window.innerWidth"

SETUP = f"""import os, sys, tempfile
sys.path.insert(0, {str(ROOT)!r})
import lens
from lens.panels import *
from tests.models.families import build, word_tokenizer
tiny = lens.load(build("llama"), word_tokenizer())
text = " ".join(f"w{{(11 * i) % 120}}" for i in range(20))"""
MICROSCOPE = """from dataclasses import replace
from lens.probes.prefix_decoder import RECIPE, fit_prefix_decoder
from tests.probes.test_deletion_test import prose, prose_tokenizer
os.environ["LENS_CACHE"] = tempfile.mkdtemp()
model, prose_corpus = lens.load(build("llama"), prose_tokenizer()), lens.corpus([prose(seed) for seed in range(60)])
decoder = fit_prefix_decoder(model, prose_corpus, tokens=600, names=40, hidden=16, width=8, window=60, lags=(1, 2),
                             recipe=replace(RECIPE, steps=5, warm_up=1))
lens.panels.TokenMicroscope(model, prose(1000, 24), corpus=prose_corpus, tokens=1200, decoder=decoder)"""


def pressed(label: str, key: str) -> Callable[[Any], None]:
    """A key on the slider of this label."""

    def act(panel: Any) -> None:
        slider = panel.locator(".widget-hslider").filter(has=panel.page.get_by_text(label, exact=True))
        slider.locator(".noUi-handle").first.press(key)

    return act


def clicked(button: str) -> Callable[[Any], None]:
    return lambda panel: panel.get_by_role("button", name=button, exact=True).click()


def chosen(option: str) -> Callable[[Any], None]:
    """An entry of the menu that has it."""
    return lambda panel: panel.locator("select").filter(has_text=option).first.select_option(label=option)


def typed(placeholder: str, words: str) -> Callable[[Any], None]:
    def act(panel: Any) -> None:
        box = panel.get_by_placeholder(placeholder, exact=True)
        box.fill(words)
        box.press("Enter")

    return act


PANELS = {
    "PhaseWheel": ("lens.panels.PhaseWheel()", pressed("layer", "ArrowLeft")),
    "AbsorbedRotation": ("lens.panels.AbsorbedRotation()", clicked("Absorb the rotation")),
    "PhaseTraining": ("lens.panels.PhaseTraining(steps=800)", clicked("lengths of the phases")),
    "PhaseView": ("lens.panels.PhaseView('three-phase-n3')", pressed("layer", "ArrowLeft")),
    "DepthLab": ("lens.panels.DepthLab(tiny, text)", clicked("swap")),
    "FrozenMap": ("lens.panels.FrozenMap(tiny, 'w1 w5 w9 w13 w17')", typed("next token", "w20")),
    "Relations": ("lens.panels.Relations()", pressed("layer of the map", "ArrowLeft")),
    "HeadCircuits": ("lens.panels.HeadCircuits(tiny)", clicked("words")),
    "DepthCollapse": ("lens.panels.DepthCollapse(tiny, text)", clicked("with first token")),
    "OperatorZoo": ("lens.panels.OperatorZoo(tiny, 'w1 w2 w3 w4 w5 w6 w7 w8')", chosen("uniform")),
    "TokenMicroscope": (MICROSCOPE, chosen("what it tells of its prefix")),
}


class Bench:
    """A notebook of one cell, whose kernel goes on from panel to panel."""

    def __init__(self, watched: Watched):
        self.watched, self.page = watched, watched.page

    def open(self, source: str) -> Any:
        """The panel that this code ends with, once it shows its sentence."""
        self.page.evaluate(RUN, source)
        self.page.locator(".lens-says").first.wait_for(timeout=RUNNING)
        return self.page.locator(".lens-panel").first


@pytest.fixture(scope="module")
def bench(browser, lab: Lab) -> Iterator[Bench]:
    cell = {"cell_type": "code", "execution_count": None, "id": "panel", "metadata": {}, "outputs": [], "source": ""}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    (lab.folder / "panels.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    with browser.new_context(viewport={"width": WIDTHS[0], "height": 1000}) as context:
        found = Bench(Watched(context.new_page()))
        found.page.goto(lab.address("panels.ipynb"), timeout=LOADING)
        found.page.wait_for_function(IDLE, timeout=LOADING)
        found.page.get_by_role("tablist", name="main sidebar").get_by_role("tab", name="File Browser").click()
        found.page.evaluate(RUN, SETUP)
        yield found
        found.page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")


@pytest.mark.parametrize("name", PANELS)
def test_a_panel_draws_answers_a_control_and_fits(bench: Bench, name: str):
    source, act = PANELS[name]
    panel = bench.open(source)
    says = panel.locator(".lens-says").first
    assert panel.evaluate(MARKS) > 10
    assert "NaN" not in panel.evaluate(DRAWN)
    for width in WIDTHS:
        bench.page.set_viewport_size({"width": width, "height": 1000})
        bench.page.evaluate(SETTLED)
        assert panel.evaluate(FITS), f"{name} is cut off at {width} px"
    picture, sentence = panel.evaluate(DRAWN), says.inner_text()
    act(panel)
    expect(says).not_to_have_text(sentence, timeout=RUNNING)
    bench.page.wait_for_function(f"([panel, before]) => ({DRAWN})(panel) !== before", arg=[panel.element_handle(), picture])
    assert panel.locator(".lens-error").count() == 0
    bench.page.set_viewport_size({"width": WIDTHS[0], "height": 1000})
    assert (bench.watched.complaints, bench.watched.outside) == ([], [])
