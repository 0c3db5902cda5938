"""The attention atlas as a reader meets it: pointer, keys and voices in a page, and a kernel behind it in JupyterLab."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import xarray as xr

from lens.figures.head_grid import SCRIPTS, STYLES, block_spec, detail_spec, overview_spec
from lens.figures.head_grid_page import head_grid_page
from lens.figures.page import widget_source
from tests.base.hostile import HOSTILE
from tests.browser.conftest import ROOT, Lab, Watched
from tests.browser.test_charts import RATIO
from tests.figures.test_page import state_of

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect
LOADING = 60_000  # milliseconds
RUNNING = 120_000
TOKENS = ["The", " cat", " sat", " on", " the", " mat"]
BLOCKS, HEADS = 3, 4
PAGE = """<!doctype html><meta charset="utf-8"><style>
:root {{ color-scheme: {theme}; }} body {{ margin: 16px; font-family: sans-serif; background: {surface}; }}
{css}</style><button>before</button><div id="atlas"></div><button>after</button><script type="module">{script}
window.model = plainModel({state});
window.unmount = render({{ model: window.model, el: document.getElementById("atlas") }});
window.heard = [];
document.addEventListener("keydown", ({{ key }}) => window.heard.push(key));
</script>"""
SURFACES = {"light": "#ffffff", "dark": "#111317"}
WORST_TEXT = f"""(surface) => {{ {RATIO}
  const own = (e) => getComputedStyle(e).backgroundColor;
  const behind = (e) => (own(e) === 'rgba(0, 0, 0, 0)' ? surface : own(e));
  const texts = [...document.querySelectorAll('.lens-heads p, .lens-heads h4, .lens-heads label span, .lens-heads-tokens i')];
  const tokens = [...document.querySelectorAll('.lens-heads-tokens [role=option]')];
  const shown = texts.filter((e) => e.offsetParent && e.innerText.trim());
  return Math.min(...shown.map((e) => ratio(getComputedStyle(e).color, behind(e))),
    ...tokens.map((e) => ratio(getComputedStyle(e).color, behind(e))));
}}"""
PIXEL = """([row, column]) => {
  const canvas = document.querySelector('.lens-heads-cells');
  return [...canvas.getContext('2d').getImageData(column, row, 1, 1).data];
}"""


def pattern(head: int, positions: int = len(TOKENS)) -> np.ndarray:
    """Head 0 looks at the token before, head 1 at itself, head 2 at all alike, head 3 at the first token."""
    weights = [np.eye(positions, k=-1), np.eye(positions), np.tri(positions), np.eye(1, positions).repeat(positions, 0)][head]
    weights[0, 0] = 1
    return np.where(np.tri(positions) > 0, weights / weights.sum(-1, keepdims=True), np.nan)


def detail(head: int, positions: int = len(TOKENS)) -> xr.Dataset:
    attention = pattern(head, positions)
    singular = np.linalg.svd(np.nan_to_num(attention), compute_uv=False)
    curves = {"singular_value": singular, "uniform_singular_value": singular, "identity_singular_value": np.ones(positions)}
    logits = np.where(np.isnan(attention), np.nan, np.subtract.outer(np.arange(positions), 2.0 * np.arange(positions)))
    return xr.Dataset(
        {
            "attention": (("query", "key"), attention),
            "logit": (("query", "key"), logits),
            **{name: ("rank", values) for name, values in curves.items()},
            "largest_norm": np.sqrt(positions),
        },
        {"rank": np.arange(1, positions + 1)},
    )


def block(number: int, positions: int = len(TOKENS)) -> dict[str, Any]:
    return block_spec(number, [pattern(head, positions) for head in range(HEADS)], HEADS, positions)


def atlas(tokens: Any = TOKENS, head: int = 0, number: int = 1, **traits: Any) -> dict[str, Any]:
    """State of the widget, arrays in base64."""
    rows = np.arange(BLOCKS * HEADS, dtype=float).reshape(BLOCKS, HEADS)
    words = {"effective_rank": "effective rank, of σ", "first_token": "mean attention to the first token"}
    given = {"effective_rank": rows, "first_token": rows[::-1] / 12}
    measures = xr.Dataset(
        {name: (("block", "head"), given[name], {"long_name": words[name], "units": "1"}) for name in words},
        {"block": np.arange(BLOCKS), "head": np.arange(HEADS)},
    )
    spec = overview_spec(measures, tokens, ranges=dict.fromkeys(words), note=traits.pop("note", ""))
    count = len(tokens)
    sent = detail_spec(detail(head, count), number, head, whole=count <= 256)
    state = {
        "spec": spec, "block": block(number, count), "detail": sent,
        "selected": {"heads": [head, number], "token": 2}, "measure": "effective_rank", "values": "attention", "direction": "to",
    }  # fmt: skip
    return in_text({**state, **traits})


def in_text(state: dict[str, Any]) -> dict[str, Any]:
    return state_of(head_grid_page(state, title="", says="", source=""))


class Shown:
    def __init__(self, page: Any):
        self.page = page
        self.heads = page.locator(".lens-heads [role=grid]").first
        self.cell = page.locator(".lens-heads-walk [role=gridcell]")
        self.tokens = page.locator(".lens-heads-tokens [role=option]")
        self.sentence = page.locator(".lens-heads-sentence")
        self.title = page.locator(".lens-heads h3").nth(1)
        self.readout = page.locator(".lens-heads .lens-chart-readout").nth(1)
        self.root = page.locator(".lens-heads")

    def get(self, name: str) -> Any:
        return self.page.evaluate("(name) => window.model.get(name)", name)

    def set(self, name: str, value: Any) -> None:
        self.page.evaluate("([name, value]) => window.model.set(name, value)", [name, value])

    def head(self, block: int, head: int) -> Any:
        return self.heads.locator(f"[aria-label^='head {head}, block {block}:']")

    def press(self, *keys: str) -> str:
        for key in keys:
            self.page.keyboard.press(key)
        return self.page.evaluate("document.activeElement.ariaLabel ?? document.activeElement.textContent")

    def numbers(self) -> list[str]:
        """What is written under the tokens."""
        return self.page.locator(".lens-heads-tokens i").all_text_contents()


@pytest.fixture
def show(watched: Watched) -> Iterator[Callable[..., Shown]]:
    def open_page(theme: str = "light", **given: Any) -> Shown:
        state = json.dumps(atlas(**given)).replace("<", "\\u003c")
        parts = {"css": widget_source(*STYLES), "script": widget_source(*SCRIPTS), "state": state}
        watched.page.set_content(PAGE.format(theme=theme, surface=SURFACES[theme], **parts))
        expect(watched.page.locator(".lens-heads")).to_be_visible()
        return Shown(watched.page)

    yield open_page
    assert (watched.complaints, watched.outside) == ([], [])


# -- what is drawn --------------------------------------------------------------------------------


def test_the_pattern_is_drawn_as_it_is(show):
    shown = show()
    light, full, blank = (shown.page.evaluate(PIXEL, place) for place in ([3, 1], [3, 2], [2, 3]))
    assert light == [255, 255, 255, 255]
    assert full == [15, 76, 138, 255]
    assert blank[3] == 0
    expect(shown.title).to_have_text("block 1, head 0")
    expect(shown.sentence).to_have_text("“·sat” (token 2) attends to “·cat” 100\u00a0%; 2 others under 1\u00a0% together.")


def test_the_shade_grows_with_the_square_root_of_a_weight(show):
    shown = show(head=2)
    quarter, full = shown.page.evaluate(PIXEL, [3, 1]), shown.page.evaluate(PIXEL, [0, 0])
    assert full[:3] == [15, 76, 138]
    assert 110 < quarter[0] < 150  # halfway to the deepest blue, as 1/4 has the root 1/2
    shown.set("values", "logit")
    assert shown.page.evaluate(PIXEL, [4, 1])[0] > shown.page.evaluate(PIXEL, [4, 1])[2]  # above zero: orange
    assert shown.page.evaluate(PIXEL, [4, 4])[0] < shown.page.evaluate(PIXEL, [4, 4])[2]  # below: blue


def test_tokens_bear_the_share_that_they_get(show):
    shown = show(head=2)
    assert shown.numbers() == ["33", "33", "33", "", "", ""]
    expect(shown.sentence).to_contain_text("attends to “The” 33\u00a0%, “·cat” 33\u00a0%, itself 33\u00a0%.")
    shown.page.get_by_role("radio", name="is attended by").check(force=True)
    assert shown.get("direction") == "by"
    assert shown.numbers() == ["", "", "33", "25", "20", "17"]
    expect(shown.sentence).to_contain_text("33\u00a0% from “·sat”, 25\u00a0% from “·on”")


def test_another_measure_recolours_the_heads_without_a_kernel(show):
    shown = show()
    expect(shown.head(2, 3)).to_have_attribute("aria-label", "head 3, block 2: effective rank 11")
    shown.page.get_by_label("Colour heads by").select_option("mean attention to the first token")
    assert shown.get("measure") == "first_token"
    expect(shown.head(2, 3)).to_have_attribute("aria-label", "head 3, block 2: mean attention to the first token 0.250")


def test_what_was_left_out_is_said(show):
    shown = show(note="the last 7 tokens of the text were not read")
    expect(shown.page.get_by_text("the last 7 tokens of the text were not read")).to_be_visible()


# -- choosing a head ------------------------------------------------------------------------------


def test_arrow_keys_walk_through_the_heads_and_their_pictures(show):
    shown = show()
    shown.head(1, 0).focus()
    assert shown.press("ArrowRight").startswith("head 1, block 1")
    assert shown.get("selected")["heads"] == [1, 1]
    expect(shown.title).to_have_text("block 1, head 1")
    expect(shown.sentence).to_contain_text("attends to itself 100\u00a0%")
    assert shown.press("End").startswith("head 3, block 1")
    expect(shown.sentence).to_contain_text("attends to “The” 100\u00a0%")


def test_a_click_on_a_small_picture_chooses_its_head(show):
    shown = show()
    shown.page.locator(".lens-heads-tiles > div").nth(2).click()
    assert shown.get("selected")["heads"] == [2, 1]
    expect(shown.page.locator(".lens-heads-tiles .lens-heads-here")).to_have_attribute("title", "head 2")


def test_a_head_of_another_block_waits_for_its_numbers(show):
    shown = show()
    shown.head(1, 0).focus()
    shown.press("ArrowUp")
    expect(shown.root).to_have_class("lens-look lens-heads lens-heads-waiting")
    expect(shown.title).to_have_text("block 1, head 0")
    state = atlas(head=0, number=2)
    shown.set("block", state["block"])
    shown.set("detail", state["detail"])
    expect(shown.root).to_have_class("lens-look lens-heads")
    expect(shown.title).to_have_text("block 2, head 0")
    expect(shown.head(2, 0)).to_be_focused()


def test_a_page_without_a_kernel_holds_all_heads_of_its_block_and_says_so(show):
    shown = show(details=[detail_spec(detail(head), 1, head, whole=True) for head in range(HEADS)])
    largest = shown.page.get_by_role("listbox").first.locator("[role=option]").first
    absent = shown.page.locator(".lens-heads-note[role=status]")
    shown.head(1, 0).focus()
    shown.press("End")
    expect(shown.title).to_have_text("block 1, head 3")
    expect(largest).to_have_attribute("aria-label", "rank 1: this head 2.45, uniform 2.45, identity 1")
    shown.press("ArrowUp")
    expect(absent).to_have_text("This page holds the heads of block 1 only.")
    expect(shown.title).to_have_text("block 1, head 3")
    shown.press("ArrowDown")
    expect(absent).to_have_text("")


def test_work_in_progress_dims_the_picture(show):
    shown = show()
    shown.set("busy", {"label": "running", "seconds": 1})
    body = shown.page.locator(".lens-heads-body")
    expect(body).to_have_attribute("aria-busy", "true")
    expect(body).to_have_css("opacity", "0.55")
    shown.set("busy", {})
    expect(body).to_have_css("opacity", "1")


# -- reading the text -----------------------------------------------------------------------------


def test_a_token_under_the_pointer_shows_what_it_attends_to_until_one_is_pinned(show):
    shown = show()
    shown.tokens.nth(4).hover()
    expect(shown.sentence).to_contain_text("“·the” (token 4) attends to “·on” 100")
    shown.page.mouse.move(5, 5)
    expect(shown.sentence).to_contain_text("“·sat” (token 2)")
    shown.tokens.nth(5).click()
    assert (shown.get("selected")["token"], shown.get("pinned")) == (5, True)
    shown.tokens.nth(1).hover()
    expect(shown.sentence).to_contain_text("“·mat” (token 5)")
    shown.tokens.nth(5).click()
    assert shown.get("pinned") is False


def test_keys_walk_the_tokens_pin_and_let_go(show):
    shown = show()
    shown.tokens.nth(2).focus()
    said = shown.press("ArrowRight")
    assert said == "token 3, “·on” (token 3) attends to “·sat” 100\u00a0%; 3 others under 1\u00a0% together."
    assert shown.press("Home").startswith("token 0, “The” (token 0) is the first token")
    shown.press("End", "Enter")
    assert (shown.get("selected")["token"], shown.get("pinned")) == (5, True)
    shown.press("Escape")
    assert shown.get("pinned") is False
    expect(shown.tokens.nth(5)).to_be_focused()
    shown.press("d", "d", "Escape")
    assert shown.page.evaluate("document.activeElement.tagName") == "BODY"
    shown.page.keyboard.press("x")
    assert shown.page.evaluate("window.heard") == ["x"]


# -- the map --------------------------------------------------------------------------------------


def test_keys_walk_the_map_and_the_text_follows(show):
    shown = show()
    shown.cell.focus()
    assert shown.press("ArrowDown", "ArrowDown", "ArrowDown", "ArrowRight") == "query 3 “·on”, key 1 “·cat”: under 1\u00a0%"
    assert shown.press("ArrowRight") == "query 3 “·on”, key 2 “·sat”: 100\u00a0%"
    expect(shown.sentence).to_contain_text("“·on” (token 3)")
    expect(shown.readout).to_contain_text("100\u00a0%")
    assert shown.press("End") == "query 3 “·on”, key 3 “·on”: under 1\u00a0%"
    assert shown.press("ArrowUp") == "query 2 “·sat”, key 2 “·sat”: under 1\u00a0%"  # nothing is beyond the diagonal
    shown.press("Enter")
    assert (shown.get("selected")["token"], shown.get("pinned")) == (2, True)
    expect(shown.page.locator(".lens-heads-walk")).to_have_attribute("aria-rowcount", "6")


def test_pointing_at_a_cell_reads_it(show):
    shown = show(head=2)
    frame = shown.page.locator(".lens-heads-cells").bounding_box()
    side = frame["width"] / len(TOKENS)
    shown.page.mouse.move(frame["x"] + 1.5 * side, frame["y"] + 4.5 * side)
    expect(shown.readout).to_contain_text("query 4 “·the” → key 1 “·cat”")
    expect(shown.readout).to_contain_text("20\u00a0%")
    expect(shown.sentence).to_contain_text("“·the” (token 4)")
    shown.page.mouse.move(frame["x"] + 4.5 * side, frame["y"] + 1.5 * side)  # blank
    expect(shown.sentence).to_contain_text("“·sat” (token 2)")


def test_a_long_text_is_read_through_tiles_and_strongest_keys(show):
    shown = show(tokens=[f" t{n}" for n in range(600)], head=2)
    frame = shown.page.locator(".lens-heads-cells").bounding_box()
    shown.page.mouse.move(frame["x"] + 1, frame["y"] + frame["height"] - 2)
    expect(shown.readout).to_contain_text("query 597–599 → key 0–2")
    expect(shown.readout).to_contain_text("at most under 1\u00a0%")
    shown.tokens.nth(99).click()
    expect(shown.sentence).to_contain_text("its 8 strongest keys hold 8\u00a0%, the others are not shown")
    frame = shown.page.locator(".lens-heads-cells").bounding_box()  # the page has scrolled
    shown.page.mouse.click(frame["x"] + 1, frame["y"] + frame["height"] - 1)
    assert shown.get("selected")["token"] == 597
    assert shown.tokens.nth(597).evaluate(IN_SIGHT)


# -- everybody ------------------------------------------------------------------------------------


def test_tab_stops_once_in_each_part(show):
    shown = show()
    shown.page.get_by_role("button", name="before").focus()
    parts = []
    for _ in range(8):
        shown.press("Tab")
        parts.append(
            shown.page.evaluate("document.activeElement.role ?? document.activeElement.type ?? document.activeElement.tagName")
        )
    assert parts == ["select-one", "radio", "radio", "gridcell", "gridcell", "option", "option", "submit"]
    expect(shown.page.get_by_role("button", name="after")).to_be_focused()


IN_SIGHT = """(token) => {
  const [own, list] = [token, token.parentElement].map((e) => e.getBoundingClientRect());
  return own.top >= list.top && own.bottom <= list.bottom;
}"""
MOVES = """() => {
  const tokens = [...document.querySelectorAll('.lens-heads-tokens [role=option]')];
  const canvas = document.querySelector('.lens-heads-cells');
  const places = () => [canvas, ...tokens].map((e) => e.getBoundingClientRect()).map(({ x, y }) => [x, y]).join();
  const before = places();
  const enter = (e) => e.dispatchEvent(new PointerEvent('pointerover', { bubbles: true, pointerType: 'mouse' }));
  return tokens.filter((token) => { enter(token); return places() !== before; }).length;
}"""


@pytest.mark.parametrize("width", [1280, 500])
def test_nothing_moves_under_the_pointer(show, width):
    shown = show(tokens=[*HOSTILE, *TOKENS], head=2)
    shown.page.set_viewport_size({"width": width, "height": 900})
    shown.page.wait_for_function(f"document.querySelector('.lens-heads').clientWidth <= {width}")
    assert shown.page.evaluate(MOVES) == 0


def test_hostile_tokens_are_shown_and_not_obeyed(show):
    shown = show(tokens=["<img src=x onerror=alert(1)>", *HOSTILE, "\u05d0\u05d1", "\u202eabc"])
    dialogs = []
    shown.page.on("dialog", lambda dialog: dialogs.append(dialog.message))
    shown.page.evaluate(MOVES)  # points at each token
    assert dialogs == []
    assert shown.page.locator(".lens-heads img, .lens-heads b, .lens-heads script").count() == 0
    assert shown.page.title() != "pwned"
    expect(shown.tokens.first).to_contain_text("<img src=x onerror=alert(1)>")
    assert not any("\u202e" in text for text in shown.tokens.all_text_contents())


@pytest.mark.parametrize("theme", list(SURFACES))
@pytest.mark.parametrize("direction", ["to", "by"])
def test_every_text_is_read_on_what_is_behind_it(show, theme, direction):
    shown = show(theme, head=2, direction=direction)
    expect(shown.root).to_have_attribute("data-theme", theme)
    surface = shown.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert shown.page.evaluate(WORST_TEXT, surface) >= 4.5


@pytest.mark.parametrize("width", [1280, 700, 380])
def test_nothing_leaves_the_page(show, width):
    shown = show(tokens=[*TOKENS, *[f" token{n}" for n in range(40)]])
    shown.page.set_viewport_size({"width": width, "height": 900})
    shown.page.wait_for_function(f"document.querySelector('.lens-heads').clientWidth <= {width}")
    assert shown.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0


def test_an_atlas_goes_without_a_trace(show):
    shown = show()
    shown.page.evaluate("window.unmount()")
    expect(shown.root).to_have_count(0)
    shown.set("spec", {})
    shown.page.set_viewport_size({"width": 600, "height": 600})


def test_an_empty_atlas_says_so(show):
    shown = show(spec={})
    expect(shown.page.get_by_text("Nothing computed yet.")).to_be_visible()


# -- with a kernel --------------------------------------------------------------------------------

CELL = f"""import sys

sys.path.insert(0, {str(ROOT)!r})
import lens
from lens.panels.attention_atlas import AttentionAtlas
from tests.models.families import build, word_tokenizer

panel = AttentionAtlas(lens.load(build("llama"), word_tokenizer()), "w1 w2 w3 w4 w5 w6 w7 w8", block=1, head=0)
panel"""
IDLE = "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"


def test_in_jupyterlab_a_head_of_another_block_comes_from_the_kernel(browser, lab: Lab, keep):
    cell = {"cell_type": "code", "execution_count": None, "id": "atlas", "metadata": {}, "outputs": [], "source": CELL}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    (lab.folder / "atlas.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    with browser.new_context(viewport={"width": 1500, "height": 1000}) as context:
        watched = Watched(context.new_page())
        page = watched.page
        page.set_default_timeout(20_000)
        page.goto(lab.address("atlas.ipynb"), timeout=LOADING)
        page.wait_for_function(IDLE, timeout=LOADING)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        shown, says = Shown(page), page.locator(".lens-says")
        says.wait_for(timeout=RUNNING)
        expect(shown.title).to_have_text("block 1, head 0")
        shown.head(1, 0).focus()
        shown.press("ArrowUp", "ArrowRight")
        expect(shown.title).to_have_text("block 2, head 1")
        expect(says).to_contain_text("Block 2, head 1")
        shown.press("d", "d", "a")  # would delete the cell, or add one
        assert page.evaluate("() => window.jupyterapp.shell.currentWidget.content.model.cells.length") == 1
        page.get_by_role("button", name="without first token").click()
        expect(page.get_by_text("the first token is left out, its share given back")).to_be_visible()
        box = page.locator(".lens-panel input[type=text]")
        box.fill("w1")
        box.press("Enter")
        expect(page.locator(".lens-error")).to_contain_text("4 or more")
        expect(shown.title).to_have_text("block 2, head 1")
        keep(page, "attention-atlas.png")
        page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    assert (watched.complaints, watched.outside) == ([], [])
