"""The explorer of rotary positions as a reader meets it: in JupyterLab, with the keys of its sliders."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.browser.conftest import Lab, Watched

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect
LOADING = 60_000  # milliseconds
RUNNING = 120_000
IDLE = "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
CELL = "from lens.panels.rope_explorer import RopeExplorer\npanel = RopeExplorer(model='Llama-3.1 8B', lane=35)\npanel"
REMEMBER = "() => { window.before = [...document.querySelectorAll('.lens-chart-svg *')]; }"
SAME = """() => {
  const now = [...document.querySelectorAll('.lens-chart-svg *')];
  return now.length === window.before.length && now.every((e, n) => e === window.before[n]);
}"""
OVERFLOW = "(panel) => panel.scrollWidth - panel.clientWidth"


class Explorer:
    def __init__(self, watched: Watched):
        self.watched, self.page = watched, watched.page
        self.panel = self.page.locator(".lens-panel").first
        self.says = self.panel.locator(".lens-says")
        self.error = self.panel.locator(".lens-error")
        self.titles = self.panel.locator(".lens-chart h3")
        self.kind = self.panel.locator("select").nth(1)

    def slider(self, name: str):
        label = self.page.get_by_text(name, exact=True)
        return self.panel.locator(".widget-hslider").filter(has=label)

    def readout(self, name: str):
        return self.slider(name).locator(".widget-readout")

    def press(self, name: str, key: str, times: int = 1) -> None:
        handle = self.slider(name).locator(".noUi-handle")
        handle.focus()
        for _ in range(times):
            self.page.keyboard.press(key)

    def ticks(self) -> list[str]:
        return self.panel.locator(".lens-chart-up text").all_text_contents()


@pytest.fixture(scope="module")
def opened(browser, lab: Lab) -> Iterator[Explorer]:
    cell = {"cell_type": "code", "execution_count": None, "id": "explorer", "metadata": {}, "outputs": [], "source": CELL}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    (lab.folder / "explorer.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    with browser.new_context(viewport={"width": 1500, "height": 1000}) as context:
        explorer = Explorer(Watched(context.new_page()))
        page = explorer.page
        page.set_default_timeout(20_000)
        page.goto(lab.address("explorer.ipynb"), timeout=LOADING)
        page.wait_for_function(IDLE, timeout=LOADING)
        page.get_by_role("tablist", name="main sidebar").get_by_role("tab", name="File Browser").click()
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        explorer.says.wait_for(timeout=RUNNING)
        page.wait_for_function(IDLE, timeout=LOADING)
        yield explorer


@pytest.fixture
def explorer(opened: Explorer) -> Iterator[Explorer]:
    opened.panel.locator("select").first.select_option("Llama-3.1 8B")
    expect(opened.says).to_contain_text("as in Llama-3.1 8B")
    opened.panel.evaluate("(panel) => panel.scrollIntoView({ block: 'start' })")
    yield opened
    expect(opened.error).to_have_count(0)
    assert (opened.watched.complaints, opened.watched.outside) == ([], [])


def test_a_preset_keeps_its_own_base_on_the_page(explorer, keep):
    expect(explorer.readout("base")).to_have_text("500,000")
    expect(explorer.says).to_contain_text("first falls below zero at offset 85,133")
    expect(explorer.titles).to_have_text(["position 100", "slowest turn: 20.5 million tokens", "first below zero: 85,133"])
    keep(explorer.page, "rope-explorer-light.png")
    assert explorer.panel.evaluate(OVERFLOW) <= 0


def test_a_slider_moves_the_picture_that_is_there(explorer):
    explorer.page.evaluate(REMEMBER)
    ticks = explorer.ticks()
    explorer.press("base", "ArrowRight", times=3)
    expect(explorer.readout("base")).to_have_text("549,541")
    expect(explorer.says).to_contain_text("at base 549,541:")
    expect(explorer.panel.locator("select").first).to_have_value("own settings")
    assert explorer.ticks() == ticks
    assert explorer.page.evaluate(SAME)


def test_the_newest_of_many_moves_is_what_is_shown(explorer):
    explorer.press("position", "ArrowRight", times=25)
    shown = explorer.readout("position").inner_text()
    expect(explorer.titles.first).to_have_text(f"position {shown}")
    explorer.page.wait_for_timeout(500)  # an answer that comes late must not turn it back
    expect(explorer.titles.first).to_have_text(f"position {shown}")
    expect(explorer.readout("position")).to_have_text(shown)


def test_another_kind_shows_its_own_sliders(explorer):
    explorer.kind.select_option("linear")
    expect(explorer.says).to_contain_text("Linear interpolation at base 500,000")
    expect(explorer.slider("L₀")).to_be_hidden()
    explorer.kind.select_option("default")
    expect(explorer.slider("factor")).to_be_hidden()
    expect(explorer.panel.locator(".lens-chart-curves").first.locator("path")).to_have_count(1)


def test_the_dark_theme_and_a_narrow_window(explorer, keep):
    wide = explorer.page.viewport_size
    explorer.page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
    expect(explorer.panel.locator(".lens-chart")).to_have_attribute("data-theme", "dark")
    keep(explorer.page, "rope-explorer-dark.png")
    explorer.page.set_viewport_size({"width": 460, "height": 1000})
    explorer.page.wait_for_function(f"() => ({OVERFLOW})(document.querySelector('.lens-panel')) <= 0")
    keep(explorer.page, "rope-explorer-narrow.png")
    explorer.page.set_viewport_size(wide)
    explorer.page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Light' })")
