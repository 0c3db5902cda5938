"""The logit-lens notebook as a reader meets it: JupyterLab, Chromium, keyboard and mouse."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.browser.conftest import Lab, Watched

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect
LOADING = 60_000  # milliseconds
RUNNING = 300_000
KERNEL_IS_IDLE = "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
ALL_HAVE_RUN = """() => window.jupyterapp.shell.currentWidget.content.model.sharedModel.cells
    .every(cell => cell.cell_type !== 'code' || cell.execution_count)"""
CELLS = "() => window.jupyterapp.shell.currentWidget.content.model.cells.length"
PLACE = "(cell) => [cell.parentElement.firstChild.textContent, cell.cellIndex - 1].map(Number)"
OVERFLOW = "(panel) => panel.scrollWidth - panel.clientWidth"
WATCH_SELECTION = """(grid) => {
  window.walked = [];
  new MutationObserver((changes) => changes.filter(({ target }) => target.matches('td[aria-selected]')).forEach(({ target }) => {
    window.walked.push(target.cellIndex - 1);
  })).observe(grid, { subtree: true, attributeFilter: ['aria-selected'] });
}"""
WORST_CONTRAST = """(grid) => {
  const bytes = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const linear = (c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
  const light = (colour) => { const [r, g, b] = bytes(colour).map(linear); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const surface = grid.style.getPropertyValue('--lens-surface');
  const behind = (colour) => light(colour === 'rgba(0, 0, 0, 0)' ? surface : colour);
  const cells = [...grid.querySelectorAll('tbody td')].filter((cell) => cell.offsetParent).map((cell) => getComputedStyle(cell));
  return Math.min(...cells.map((style) => ratio(light(style.color), behind(style.backgroundColor))));
}"""


class Notebook:
    """The notebook in its tab, and the first panel in it."""

    def __init__(self, watched: Watched):
        self.watched, self.page = watched, watched.page
        self.panel = self.page.locator(".lens-panel").first
        self.grid = self.panel.locator(".lens-grid")
        self.text = self.panel.locator("input[type=text]")
        self.heads = self.grid.locator("tfoot th:not(:first-child)")
        self.chosen = self.grid.locator("td[aria-selected=true]")
        self.rows = self.grid.locator("tbody tr:not([hidden])")
        self.error = self.panel.locator(".lens-error")
        self.chart_title = self.grid.locator(".lens-grid-chart-head h3")
        self.bars = self.grid.get_by_role("option")

    def run_all(self) -> None:
        self.page.wait_for_function(KERNEL_IS_IDLE, timeout=LOADING)
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        self.page.wait_for_function(ALL_HAVE_RUN, timeout=RUNNING)
        self.chosen.wait_for(state="attached", timeout=LOADING)

    def type(self, text: str) -> None:
        self.text.fill(text)
        self.text.press("Enter")

    def place(self) -> list[int]:
        """Layer and position of the selected cell."""
        return self.chosen.evaluate(PLACE)

    def click(self, layer: int, position: int) -> None:
        self.rows.filter(has=self.page.get_by_role("rowheader", name=str(layer), exact=True)).locator("td").nth(position).click()

    def press(self, *keys: str) -> list[int]:
        for key in keys:
            self.page.keyboard.press(key)
        return self.place()

    def choose(self, group: str, option: str) -> None:
        self.grid.get_by_role("radiogroup", name=group).get_by_role("radio", name=option, exact=True).check()

    def theme(self, name: str) -> None:
        self.page.evaluate("(theme) => window.jupyterapp.commands.execute('apputils:change-theme', { theme })", name)

    def show(self) -> None:
        self.panel.evaluate("(panel) => panel.scrollIntoView({ block: 'start' })")


@pytest.fixture(scope="module")
def opened(browser, lab: Lab) -> Iterator[Notebook]:
    with browser.new_context(viewport={"width": 1500, "height": 1000}) as context:
        notebook = Notebook(Watched(context.new_page()))
        notebook.page.set_default_timeout(10_000)
        notebook.page.goto(lab.address("logit-lens.ipynb"), timeout=LOADING)
        notebook.page.get_by_role("tablist", name="main sidebar").get_by_role("tab", name="File Browser").click()
        notebook.run_all()
        yield notebook


@pytest.fixture
def notebook(opened: Notebook) -> Iterator[Notebook]:
    """The notebook with its first sentence again, complaints counted from here."""
    if opened.text.input_value() != SENTENCE:
        opened.type(SENTENCE)
    expect(opened.heads).to_have_text(WORDS)
    expect(opened.error).to_have_count(0)
    opened.show()
    yield opened
    assert opened.watched.complaints == []
    assert opened.watched.outside == []


SENTENCE = "The Eiffel Tower is located in the city of Paris, the capital of"
WORDS = [
    "The",
    "·E",
    "iffel",
    "·Tower",
    "·is",
    "·located",
    "·in",
    "·the",
    "·city",
    "·of",
    "·Paris",
    ",",
    "·the",
    "·capital",
    "·of",
]
OTHER = "Two plus two equals"
OTHER_WORDS = ["Two", "·plus", "·two", "·equals"]


def test_first_sight_is_a_picture_with_its_sentence(notebook, keep):
    expect(notebook.chosen).to_be_visible()
    assert notebook.place()[1] == 9
    expect(notebook.grid.locator(".lens-grid-sentence")).to_contain_text("the model answers “·Paris” with probability 0.70")
    expect(notebook.grid.locator(".lens-grid-sentence")).to_contain_text("from layer 28 of 30 on")
    keep(notebook.page, "logit-lens-light.png")
    assert notebook.panel.evaluate(OVERFLOW) <= 0
    assert notebook.grid.evaluate(WORST_CONTRAST) >= 4.5


def test_another_sentence_changes_the_grid(notebook):
    notebook.type(OTHER)
    expect(notebook.heads).to_have_text(OTHER_WORDS)
    expect(notebook.rows.first.locator("td")).to_have_count(4)
    expect(notebook.grid.locator(".lens-grid-sentence")).to_contain_text("After “·equals” the model answers")


def test_a_hostile_sentence_is_text(notebook):
    notebook.type("<b>x</b><img src=x onerror=alert(1)> $x$ \u202eabc")
    expect(notebook.heads.first).to_have_text("<")
    assert notebook.grid.locator("table b, table img").count() == 0
    expect(notebook.heads.filter(has_text="U+202E").or_(notebook.heads.filter(has_text="<0x")).first).to_be_attached()


def test_arrow_keys_walk_the_grid(notebook):
    notebook.choose("Every how many layers", "2")
    notebook.click(20, 9)
    assert notebook.place() == [20, 9]
    assert notebook.press("ArrowUp") == [22, 9]
    assert notebook.press("ArrowRight", "ArrowRight") == [22, 11]
    assert notebook.press("ArrowDown", "ArrowDown", "ArrowLeft") == [18, 10]
    assert notebook.press("Home") == [18, 0]
    assert notebook.press("ArrowLeft") == [18, 0]
    assert notebook.press("End") == [18, 14]
    assert notebook.press("Control+Home") == [30, 0]
    assert notebook.press("Control+End") == [0, 14]
    expect(notebook.chosen).to_be_focused()
    expect(notebook.grid.get_by_role("heading").first).to_have_text("Layer 0, after “·of”")


def test_a_held_arrow_key_never_falls_back(notebook):
    notebook.click(20, 0)
    notebook.grid.evaluate(WATCH_SELECTION)
    for _ in range(14):
        notebook.page.keyboard.down("ArrowRight")
        notebook.page.wait_for_timeout(35)  # a keyboard's own pace
    notebook.page.keyboard.up("ArrowRight")
    notebook.page.wait_for_timeout(500)  # an answer of the kernel that comes late must not move it either
    assert notebook.page.evaluate("window.walked") == list(range(1, 15))
    expect(notebook.chosen).to_be_focused()


def test_tab_enters_the_grid_once(notebook):
    notebook.click(20, 9)
    notebook.page.keyboard.press("Tab")
    assert notebook.page.evaluate("document.activeElement.closest('table') === null")
    notebook.page.keyboard.press("Shift+Tab")
    expect(notebook.chosen).to_be_focused()


def test_notebook_shortcuts_do_not_fire_inside_the_grid_and_do_after_escape(notebook):
    cells = notebook.page.evaluate(CELLS)
    notebook.click(20, 9)
    notebook.press("d", "d", "a", "b", "x", "m", "Enter")
    expect(notebook.chosen).to_be_focused()
    assert notebook.page.evaluate(CELLS) == cells
    while notebook.page.evaluate("document.activeElement.tagName") == "TD":
        notebook.page.keyboard.press("Escape")
    notebook.page.keyboard.press("b")
    notebook.page.wait_for_function(f"({CELLS})() === {cells + 1}")
    notebook.page.keyboard.press("d")
    notebook.page.keyboard.press("d")
    notebook.page.wait_for_function(f"({CELLS})() === {cells}")


def test_colour_repaints_and_keeps_the_selection(notebook):
    notebook.click(20, 9)
    notebook.choose("Colour", "probability")
    before = notebook.chosen.evaluate("(cell) => getComputedStyle(cell).backgroundColor")
    notebook.choose("Colour", "entropy")
    expect(notebook.chosen).not_to_have_css("background-color", before)
    expect(notebook.grid.locator(".lens-grid-legend")).to_contain_text("nats")
    assert notebook.place() == [20, 9]
    assert notebook.grid.evaluate(WORST_CONTRAST) >= 4.5
    notebook.choose("Colour", "rank of next")
    expect(notebook.grid.locator(".lens-grid-legend")).to_contain_text("49,152")


@pytest.mark.parametrize(("stride", "layers"), [("5", [30, 25, 20, 15, 10, 5, 0]), ("1", list(range(30, -1, -1)))])
def test_stride_hides_layers_but_never_the_first_and_last(notebook, stride, layers):
    notebook.choose("Every how many layers", stride)
    expect(notebook.rows.get_by_role("rowheader")).to_have_text([str(layer) for layer in layers])


def test_a_click_on_a_word_follows_it_through_the_layers(notebook):
    notebook.choose("Every how many layers", "2")
    notebook.click(20, 9)
    expect(notebook.chart_title).to_have_text("“·Paris” through the layers")
    word = notebook.bars.nth(1).locator("bdi").inner_text()
    notebook.bars.nth(1).click()
    expect(notebook.chart_title).to_have_text(f"“{word}” through the layers")
    expect(notebook.bars.nth(1)).to_have_attribute("aria-selected", "true")
    notebook.bars.nth(1).click()
    expect(notebook.chart_title).to_have_text("“·Paris” through the layers")


@pytest.mark.parametrize(
    ("text", "line"),
    [("", "The text is empty. Needed: at least one character."), ("a " * 700, "Needed: at most 512 in the grid.")],
)
def test_a_mistake_is_one_line_and_nothing_is_lost(notebook, text, line):
    notebook.type(text)
    expect(notebook.error).to_contain_text(line)
    assert notebook.error.inner_text().count("\n") == 0
    expect(notebook.heads).to_have_text(WORDS)
    expect(notebook.text).to_have_value(text)
    expect(notebook.page.locator(".jp-OutputArea-output[data-mime-type*=error]")).to_have_count(0)


def test_the_dark_theme_is_followed_without_a_switch(notebook, keep):
    notebook.theme("JupyterLab Dark")
    expect(notebook.grid).to_have_attribute("data-theme", "dark")
    notebook.show()
    assert notebook.grid.evaluate(WORST_CONTRAST) >= 4.5
    keep(notebook.page, "logit-lens-dark.png")
    notebook.theme("JupyterLab Light")
    expect(notebook.grid).to_have_attribute("data-theme", "light")


@pytest.fixture
def narrow(notebook) -> Iterator[Notebook]:
    wide = notebook.page.viewport_size
    notebook.page.set_viewport_size({"width": 420, "height": 900})
    yield notebook
    notebook.page.set_viewport_size(wide)


def test_a_narrow_window_puts_the_details_under_the_grid(narrow, keep):
    notebook = narrow
    notebook.show()
    keep(notebook.page, "logit-lens-narrow.png")
    table, details = (notebook.grid.locator(part).bounding_box() for part in (".lens-grid-scroller", ".lens-grid-details"))
    assert details["y"] >= table["y"] + table["height"]
    assert notebook.panel.evaluate(OVERFLOW) <= 0


def test_the_page_says_what_it_ran_on(notebook):
    expect(notebook.panel.locator(".lens-chip")).to_have_text(re.compile(r"^\d+\.\d\d s · (cpu|cuda) · float32$"))
