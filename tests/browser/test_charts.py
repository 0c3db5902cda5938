"""Charts in a real browser: what is drawn, what a click and a key do, what stays while values change."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from lens.figures.chart import (
    SCRIPTS,
    STYLES,
    axis,
    bars,
    chart,
    clock,
    heat_map,
    histogram,
    lines,
    phase_colours,
    rule,
    scatter,
    series,
)
from lens.figures.page import widget_source
from tests.base.hostile import HOSTILE
from tests.browser.conftest import Watched

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect

PAGE = """<!doctype html><meta charset="utf-8"><style>
:root {{ color-scheme: {theme}; }} body {{ margin: 16px; font-family: sans-serif; background: {surface}; }}
{css}</style><button>before</button><div id="chart"></div><button>after</button><script type="module">{script}
window.model = plainModel({state});
window.unmount = render({{ model: window.model, el: document.getElementById("chart") }});
window.heard = [];
document.addEventListener("keydown", ({{ key }}) => window.heard.push(key));
</script>"""
SURFACES = {"light": "#ffffff", "dark": "#111317"}
SELECTED = "() => window.model.get('selected')"
RATIO = """
  const bytes = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const linear = (c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
  const light = (colour) => { const [r, g, b] = bytes(colour).map(linear); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
"""
WORST_TEXT = f"""(surface) => {{ {RATIO}
  const root = document.querySelector('.lens-chart');
  const texts = [...root.querySelectorAll('h3, p, span')].filter((e) => e.offsetParent && e.innerText.trim());
  const words = [...root.querySelectorAll('.lens-chart-svg text')]
    .filter((e) => e.textContent && !e.closest('.lens-chart-values'));
  return Math.min(...texts.map((e) => ratio(getComputedStyle(e).color, surface)),
    ...words.map((e) => ratio(getComputedStyle(e).fill, surface)));
}}"""
WORST_CELL = f"""() => {{ {RATIO}
  const cells = [...document.querySelectorAll('.lens-chart-cells rect')];
  const behind = (text) => {{
    const at = text.getBoundingClientRect();
    return cells.find((cell) => {{
      const box = cell.getBoundingClientRect();
      return box.left < at.left + at.width / 2 && at.left + at.width / 2 < box.right
        && box.top < at.top + at.height / 2 && at.top + at.height / 2 < box.bottom;
    }});
  }};
  const texts = [...document.querySelectorAll('.lens-chart-values text')].filter((text) => text.textContent);
  const fill = (e) => getComputedStyle(e).fill;
  return [texts.length, Math.min(...texts.map((text) => ratio(fill(text), fill(behind(text)))))];
}}"""
WORST_CURVE = f"""(surface) => {{ {RATIO}
  const curves = [...document.querySelectorAll('.lens-chart-curves path')];
  return Math.min(...curves.map((e) => ratio(getComputedStyle(e).stroke, surface)));
}}"""
# Texts of a drawing that leave their figure, and pairs of labels that touch.
TROUBLE = """() => {
  const found = [];
  for (const figure of document.querySelectorAll('figure')) {
    const frame = figure.getBoundingClientRect();
    for (const text of figure.querySelectorAll('text, h3, p, span')) {
      const box = text.getBoundingClientRect();
      if (box.width && (box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1)) {
        found.push(`outside: ${text.textContent}`);
      }
    }
    for (const kind of ['up', 'across', 'numbers', 'values', 'names', 'labels']) {
      const other = ['names', 'labels'].includes(kind) ? '.lens-chart-names text' : '.lens-chart-front .lens-chart-here-text';
      const boxes = [...figure.querySelectorAll(`.lens-chart-${kind} text, ${other}`)]
        .filter((text) => text.textContent && getComputedStyle(text).visibility === 'visible')
        .filter((text) => kind !== 'numbers' && kind !== 'values' || !text.matches('.lens-chart-here-text'))
        .map((text) => [text, text.getBoundingClientRect()]);
      boxes.forEach(([a, p], n) => boxes.slice(n + 1).forEach(([b, q]) => {
        const apart = p.right <= q.left + 0.5 || q.right <= p.left + 0.5 || p.bottom <= q.top + 2 || q.bottom <= p.top + 2;
        if (!apart) found.push(`touch: ${a.textContent} ${b.textContent}`);
      }));
    }
  }
  return found;
}"""

LAYERS = np.arange(31)
TRIANGLE = np.where(np.tril(np.ones((6, 6), bool)), np.add.outer(np.arange(6), np.arange(6)) / 10, np.nan)


def curves(name: str = "layer", factor: float = 1.0, **options) -> dict[str, Any]:
    kl = 8 * factor * np.exp(-LAYERS / 10)
    kl[5:7] = np.nan
    given = [series("plain lens", kl, low=0.9 * kl, high=1.1 * kl), series("shortcut", kl / 2), series("tuned", kl / 3)]
    options = {"y_axis": axis("KL to the last layer", "nats", range=(0, 10)), "rules": [rule(0.7, "noise floor")]} | options
    return lines(name, LAYERS, given, x_axis="layer", **options)


def pairs(values: np.ndarray = TRIANGLE, **options) -> dict[str, Any]:
    layers = 2 * np.arange(len(values))
    given = {"x_axis": "from layer", "y_axis": "to layer", "value_axis": axis("R²", range=(0, 1))} | options
    return heat_map("pairs", layers, layers, values, **given)


def ladder(values: Any = (-0.29, 0.47, 0.78, 0.96)) -> dict[str, Any]:
    names = ["identity", "mean shift and scale", "rotation", "a general linear map with a bias"]
    return bars("ladder", names, {"R²": list(values)}, label_axis="map", value_axis=axis("R²", range=(-0.5, 1)))


MODELS = [("Llama-2 7B", 4096, 1e4), ("Llama-2 70B", 4096, 1e4), ("Llama-3 8B", 8192, 5e5), ("SmolLM2-135M", 8192, 1e5),
          ("Qwen2.5-7B", 32_768, 1e6), ("Qwen2.5-7B-1M", 1_010_000, 1e7), ("Gradient-1048k", 1_048_576, 2.8e9)]  # fmt: skip


def cloud(**options) -> dict[str, Any]:
    dots = [{"x": x, "y": y, "label": label, "group": "released models"} for label, x, y in MODELS]
    length = np.geomspace(256, 2**20, 41)
    curves = {"DC stability": (length, 3.149 * length), "depth": (length, 17.7 * length)}
    given = {"x_axis": axis("context", "tokens", scale="log", range=(256, 2**20.5)), "named": ["Gradient-1048k", "Qwen2.5-7B-1M"],
             "y_axis": axis("base", scale="log", range=(100, 1e10)), "here": {"x": 20_000, "y": 3e3, "label": "here"},
             "rules": [rule(2.1e8, "precision wall"), rule(2048, "training", on="x")]}  # fmt: skip
    return scatter("model", dots, curves, **given | options)


def hands(position: int = 37, count: int = 64) -> dict[str, Any]:
    angles = position * 1e4 ** (-np.arange(count) / count)
    bands = ["fast lanes", "middle lanes", "slow lanes"]
    given = [
        {
            "angle": angle,
            "label": f"lane {n}",
            "value": n,
            "group": bands[3 * n // count],
            "length": 1 - 0.6 * n / count,
            "note": f"turn {n}",
        }
        for n, angle in enumerate(angles)
    ]
    return clock("lane", given, title=f"position {position}", here={"angle": 0.3, "length": 0.5, "label": "mean", "note": "0.50"})


def everything() -> dict[str, Any]:
    angles = histogram("angles", np.linspace(0, 180, 37), {"block": np.arange(36)}, x_axis=axis("rotation angle", "°"))
    blocks = bars("blocks", np.arange(30), {"attention": np.arange(30), "mlp": 30 - np.arange(30)}, label_axis="block",
                  value_axis="share")  # fmt: skip
    tokens = axis("token", labels=["The", "·Eiffel", "·Tower", "·is", "·in", "·Paris", ",", "·the", "·capital", "·of"])
    heads = heat_map("heads", range(10), range(4), np.linspace(-2, 1, 40).reshape(4, 10), x_axis=tokens, y_axis="head",
                     value_axis=axis("cosine", range=(-1, 1)), signed=True, title="Heads")  # fmt: skip
    logs = curves("logs", y_axis=axis("KL", "nats", scale="log"))
    whole = np.where(np.tril(np.ones((31, 31), bool)), 0.5, np.nan)
    large = heat_map("large", LAYERS, LAYERS, whole, x_axis="from layer", y_axis="to layer", value_axis=axis("R²", range=(0, 1)))
    grouped = bars("parts", ["attention", "mlp"], {"held out": [0.2, 0.5], "in sample": [0.3, 0.6]}, label_axis="part",
                   value_axis="R²")  # fmt: skip
    ruled = curves("ruled", rules=[rule(value, f"level {value}") for value in (2, 4, 6)] + [rule(9, "here", on="x")], marks=False)
    return chart([curves(), pairs(), ladder(), angles, blocks, heads, logs, large, grouped, cloud(), hands(), ruled])


class Shown:
    """A page with one chart and the model behind it."""

    def __init__(self, watched: Watched, folder, spec: dict[str, Any], theme: str = "light", **state: Any):
        self.watched, self.page = watched, watched.page
        state = json.dumps({"spec": spec, **state}).replace("<", "\\u003c")
        text = PAGE.format(
            theme=theme, surface=SURFACES[theme], css=widget_source(*STYLES), script=widget_source(*SCRIPTS), state=state
        )
        (folder / "chart.html").write_text(text, encoding="utf-8")
        self.page.goto((folder / "chart.html").as_uri())
        self.figures = self.page.locator("figure")
        self.readout = self.page.locator(".lens-chart-readout")
        expect(self.figures.last.locator("[tabindex='0']")).to_have_count(1)

    def spot(self, label: str):
        return self.page.locator(f"rect[aria-label^='{label}']")

    def set(self, name: str, value: Any) -> None:
        self.page.evaluate("([name, value]) => window.model.set(name, value)", [name, value])

    def selected(self) -> dict[str, Any]:
        return self.page.evaluate(SELECTED)

    def press(self, *keys: str) -> str:
        for key in keys:
            self.page.keyboard.press(key)
        return self.page.evaluate("document.activeElement.getAttribute('aria-label')")


@pytest.fixture
def show(watched, tmp_path):
    def make(*plots: dict[str, Any], **state: Any) -> Shown:
        return Shown(watched, tmp_path, chart(plots), **state)

    yield make
    assert (watched.complaints, watched.outside) == ([], [])


# -- what is drawn --------------------------------------------------------------------------------


@pytest.mark.parametrize("theme", SURFACES)
@pytest.mark.parametrize("width", [1280, 420])
def test_texts_are_whole_apart_and_readable(show, keep, theme, width):
    chosen = {"layer": 12, "pairs": [2, 6], "heads": [3, 1], "large": [10, 20], "model": "Llama-3 8B", "lane": 12}
    shown = show(*everything()["plots"], theme=theme, selected=chosen)
    shown.page.set_viewport_size({"width": width, "height": 900})
    expect(shown.page.locator(".lens-chart")).to_have_attribute("data-theme", theme)
    shown.page.wait_for_function(f"document.querySelector('figure svg').getBoundingClientRect().right <= {width}")
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= width
    assert shown.page.evaluate(TROUBLE) == []
    surface = f"rgb{tuple(int(SURFACES[theme][place : place + 2], 16) for place in (1, 3, 5))}"
    assert shown.page.evaluate(WORST_TEXT, surface) >= 4.5
    assert shown.page.evaluate(WORST_CURVE, surface) >= 3
    keep(shown.page, f"charts-{theme}-{width}.png")


@pytest.mark.parametrize("theme", SURFACES)
def test_numbers_can_be_read_in_every_cell(show, theme):
    values = np.linspace(-1.2, 1.2, 49).reshape(7, 7)
    shown = show(pairs(values, signed=True, value_axis=axis("cosine", range=(-1.2, 1.2))), theme=theme)
    count, worst = shown.page.evaluate(WORST_CELL)
    assert count == 49
    assert worst >= 4.5


def test_a_curve_stands_where_its_values_are_and_breaks_at_a_gap(show):
    shown = show(lines("a", [0, 1, 2, 4], {"b": [0, 10, None, 5]}, x_axis="x", y_axis=axis("y", range=(0, 10))))
    path = shown.page.locator(".lens-chart-curves path").get_attribute("d")
    runs = [[tuple(map(float, point.split())) for point in run.split("L")] for run in path.split("M")[1:]]
    (first, second), (last,) = runs
    ticks = shown.page.locator(".lens-chart-across text").evaluate_all(
        "(texts) => texts.map((t) => [t.textContent, +t.getAttribute('x')])"
    )
    places = dict(ticks)
    assert [first[0], second[0], last[0]] == pytest.approx([places["0"], places["1"], places["4"]], abs=0.1)
    assert last[1] == pytest.approx((first[1] + second[1]) / 2, abs=0.1)
    assert first[1] > second[1]


def test_a_map_has_low_rows_below_and_blanks_without_a_colour(show):
    shown = show(pairs())
    boxes = [shown.spot(label).bounding_box() for label in ("from layer 0, to layer 0", "from layer 0, to layer 10")]
    assert boxes[0]["y"] > boxes[1]["y"]
    expect(shown.spot("from layer 10, to layer 0:")).to_have_attribute("fill", "none")
    expect(shown.spot("from layer 10, to layer 0:")).to_have_attribute("aria-label", "from layer 10, to layer 0: no value")
    expect(shown.spot("from layer 4, to layer 8:")).to_have_attribute("aria-label", "from layer 4, to layer 8: R² 0.600")


def test_zero_is_the_surface_and_the_end_is_deep(show):
    shown = show(pairs(np.array([[0.0, 1.0], [-0.5, 2.0]])))
    fills = [cell.get_attribute("fill") for cell in shown.page.locator(".lens-chart-cells rect").all()]
    assert fills == ["rgb(255,255,255)", "rgb(15,76,138)"] * 2
    expect(shown.page.locator(".lens-chart-note")).to_have_text("⌄ below 0, ⌃ above 1")


def test_bars_run_from_zero_in_both_directions(show):
    shown = show(ladder())
    rects = shown.page.locator(".lens-chart-bars rect").evaluate_all(
        "(all) => all.map((r) => [+r.getAttribute('x'), +r.getAttribute('width')])"
    )
    zero = rects[1][0]
    assert [rects[0][0] + rects[0][1], rects[2][0], rects[3][0]] == pytest.approx([zero] * 3)
    assert rects[0][1] / rects[3][1] == pytest.approx(0.29 / 0.96, rel=1e-3)


def test_kinds_that_never_meet_take_turns_in_one_row_of_bars(show):
    def widths(other: list[float]) -> list[float]:
        both = {"fast lanes": [1, 2, np.nan], "slow lanes": other}
        shown = show(bars("bars", [1, 2, 3], both, label_axis="lane", value_axis="logit"))
        found = shown.page.locator(".lens-chart-bars rect").evaluate_all("(all) => all.map((r) => +r.getAttribute('width'))")
        return [width for width in found if width]

    alone, beside = widths([np.nan, np.nan, 3]), widths([np.nan, 1, 3])
    assert len(alone) == 3
    assert len(beside) == 4
    assert min(alone) > 1.9 * max(beside)


def test_hostile_labels_are_text(show):
    labels = [text or "-" for text in HOSTILE]
    places = list(range(len(labels)))
    shown = show(
        bars("a", labels, {labels[0]: places}, label_axis=labels[1], value_axis=axis(labels[2], labels[3]), title=labels[4]),
        lines(
            "b",
            places,
            dict.fromkeys(labels[:6], places),
            x_axis=axis("x", labels=labels),
            y_axis="y",
            rules=[rule(1, labels[0])],
        ),
        heat_map("c", places, [0], [places], x_axis=axis("x", labels=labels), y_axis=labels[5], value_axis=labels[6]),
    )
    assert shown.page.locator(".lens-chart :is(b, img, script, a, iframe)").count() == 0
    assert shown.page.title() != "pwned"
    names = shown.page.evaluate(
        "[...document.querySelectorAll('rect[aria-label]')].map((e) => e.getAttribute('aria-label')).join('')"
    )
    assert not any(ord(character) in range(0x202A, 0x202F) for character in names)


UNIT, LOG = axis("y", range=(0, 1)), axis("z", scale="log")
ODD = {
    "one x": lambda: lines("a", [3], {"b": [2]}, x_axis="x", y_axis="y"),
    "nothing known": lambda: lines("a", [0, 1], {"b": [np.nan, np.nan]}, x_axis="x", y_axis="y"),
    "beyond its range": lambda: lines("a", [0, 1], {"b": [-5, 50]}, x_axis="x", y_axis=UNIT, rules=[rule(9, "c")]),
    "both axes logarithmic": lambda: lines("a", [1, 10, 1000], {"b": [1, 0, 1e-9]}, x_axis=LOG, y_axis=LOG),
    "many points": lambda: lines("a", range(2000), {"b": np.sin(np.arange(2000) / 99)}, x_axis="x", y_axis="y"),
    "tiny numbers": lambda: lines("a", [0, 1e-7], {"b": [1e-9, 3e-9]}, x_axis="x", y_axis="y"),
    "one bar": lambda: bars("a", ["b"], {"c": [np.nan]}, label_axis="x", value_axis="y"),
    "one column": lambda: bars("a", [7], {"c": [-3]}, label_axis="x", value_axis="y"),
    "one bin": lambda: histogram("a", [0.5, 0.75], {"c": [12345678]}, x_axis="x"),
    "one cell": lambda: heat_map("a", [1], [2], [[3]], x_axis="x", y_axis="y", value_axis="v"),
    "blank cells": lambda: heat_map("a", [1, 2], [2], [[np.nan, np.nan]], x_axis="x", y_axis="y", value_axis="v"),
    "many cells": lambda: heat_map("a", range(200), range(50), np.ones((50, 200)), x_axis="x", y_axis="y", value_axis="v"),
}  # fmt: skip


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
def test_odd_shapes_are_drawn_without_complaint(show, make):
    shown = show(make())
    shown.page.locator("[tabindex='0']").focus()
    shown.press("End", "Enter", "Home")
    assert shown.page.evaluate("document.querySelector('.lens-chart').innerHTML.match(/NaN|undefined|Infinity/)") is None
    assert shown.page.evaluate(TROUBLE) == []


# -- reading --------------------------------------------------------------------------------------


def test_hovering_reads_and_leaving_goes_back_to_the_selected(show):
    shown = show(curves(), selected={"layer": 0})
    expect(shown.readout).to_contain_text("layer 0")
    expect(shown.readout).to_contain_text("plain lens8.00 [7.20, 8.80]")
    shown.spot("layer 10:").hover()
    expect(shown.readout).to_contain_text("layer 10")
    expect(shown.readout).to_contain_text("shortcut1.47")
    expect(shown.readout).to_contain_text("noise floor0.70")
    shown.spot("layer 5:").hover()
    expect(shown.readout).to_contain_text("plain lens—")
    shown.page.mouse.move(0, 0)
    expect(shown.readout).to_contain_text("layer 0")


FRAMES = """() => [...document.querySelectorAll('svg.lens-chart-svg, .lens-chart-entry')].map((e) => {
  const { x, y, width, height } = e.getBoundingClientRect();
  return [x, y, width, height].map(Math.round);
})"""


def test_reading_moves_nothing(show):
    shown = show(curves(), pairs(), ladder())
    before = shown.page.evaluate(FRAMES)
    for label in ("layer 3:", "layer 30:", "from layer 2, to layer 10", "rotation"):
        shown.spot(label).hover()
        assert shown.page.evaluate(FRAMES) == before


def test_a_voice_hears_names_values_and_changes(show):
    shown = show(curves(), pairs(), ladder())
    page = shown.page
    expect(page.get_by_role("listbox").first).to_have_accessible_name("KL to the last layer (nats) by layer; noise floor 0.70")
    expect(page.get_by_role("grid")).to_have_accessible_name("R² by from layer and to layer")
    expect(page.get_by_role("row")).to_have_count(6)
    expect(page.get_by_role("option", name="rotation: 0.780")).to_have_count(1)
    name = "layer 0: plain lens 8.00 [7.20, 8.80]\u00a0nats, shortcut 4.00\u00a0nats, tuned 2.67\u00a0nats"
    expect(page.get_by_role("option", name=name)).to_have_count(1)
    expect(shown.readout.first).to_have_attribute("aria-live", "polite")
    shown.spot("layer 0:").focus()
    expect(shown.readout.first).to_have_attribute("aria-live", "off")  # the focused spot's own name says it


# -- choosing -------------------------------------------------------------------------------------


def test_a_click_selects_an_x_and_a_cell(show):
    shown = show(curves(), pairs(), selected={"other": 1})
    shown.spot("layer 12:").click()
    assert shown.selected() == {"other": 1, "layer": 12}
    shown.spot("from layer 4, to layer 8").click()
    assert shown.selected() == {"other": 1, "layer": 12, "pairs": [4, 8]}
    expect(shown.page.locator("[aria-selected=true]")).to_have_count(2)
    texts = shown.page.locator(".lens-chart-here-text").all_text_contents()
    assert texts == ["12", "4", "8"]


def test_plots_of_one_name_are_selected_together(show):
    shown = show(curves(), curves(factor=0.5))
    shown.spot("layer 20:").last.click()
    expect(shown.page.locator("[aria-selected=true]")).to_have_count(2)
    expect(shown.readout.first).to_contain_text("layer 20")


def test_what_python_selects_is_shown_and_is_where_tab_enters(show):
    shown = show(pairs())
    shown.set("selected", {"pairs": [2, 6]})
    expect(shown.page.locator("[aria-selected=true]")).to_have_attribute("aria-label", "from layer 2, to layer 6: R² 0.400")
    shown.page.get_by_role("button", name="before").focus()
    assert shown.press("Tab").startswith("from layer 2, to layer 6")
    shown.set("selected", {})
    expect(shown.page.locator("[aria-selected=true]")).to_have_count(0)


def test_bars_and_blanks_are_not_selected(show):
    shown = show(ladder(), pairs())
    shown.spot("rotation").click()
    box = shown.spot("from layer 10, to layer 0:").bounding_box()
    shown.page.mouse.click(box["x"] + 3, box["y"] + 3)
    assert shown.page.evaluate(SELECTED) is None


def test_arrow_keys_walk_a_curve_and_enter_selects(show):
    shown = show(curves())
    shown.spot("layer 12:").focus()
    assert shown.press("ArrowRight", "ArrowRight", "ArrowLeft").startswith("layer 13:")
    expect(shown.readout).to_contain_text("layer 13")
    assert shown.press("PageUp").startswith("layer 8:")
    assert shown.press("Home", "ArrowLeft").startswith("layer 0:")
    assert shown.press("End", "ArrowRight").startswith("layer 30:")
    assert shown.selected() is None
    shown.press("Enter")
    assert shown.selected() == {"layer": 30}
    shown.press("ArrowLeft", " ")
    assert shown.selected() == {"layer": 29}


def test_arrow_keys_walk_a_map_and_step_over_blanks(show):
    hole = TRIANGLE.copy()
    hole[4, 1] = np.nan
    shown = show(pairs(hole))
    shown.spot("from layer 0, to layer 8:").focus()
    assert shown.press("ArrowRight").startswith("from layer 4, to layer 8:")
    assert shown.press("ArrowRight", "ArrowRight", "ArrowRight").startswith("from layer 8, to layer 8:")
    assert shown.press("ArrowUp", "ArrowUp").startswith("from layer 8, to layer 10:")
    assert shown.press("Home").startswith("from layer 0, to layer 10:")
    assert shown.press("ArrowDown", "End").startswith("from layer 8, to layer 8:")
    assert shown.press("Control+Home").startswith("from layer 0, to layer 0:")
    assert shown.press("Control+End").startswith("from layer 10, to layer 10:")
    shown.press("Enter")
    assert shown.selected() == {"pairs": [10, 10]}


def test_rows_that_run_down_are_drawn_and_walked_downwards(show):
    shown = show(pairs(down=True))
    top, below = (shown.spot(f"from layer 0, to layer {layer}:").bounding_box()["y"] for layer in (0, 4))
    assert top < below
    shown.spot("from layer 0, to layer 0:").focus()
    assert shown.press("ArrowDown", "ArrowDown").startswith("from layer 0, to layer 4:")
    assert shown.press("ArrowUp", "End").startswith("from layer 2, to layer 2:")
    rows = shown.page.locator("[role=row]")
    assert [rows.nth(n).locator("[role=gridcell]").first.get_attribute("aria-label").split(":")[0] for n in (0, 2)] == [
        "from layer 0, to layer 0",
        "from layer 0, to layer 4",
    ]


def test_rows_of_bars_are_walked_downwards(show):
    shown = show(ladder())
    shown.spot("identity").focus()
    assert shown.press("ArrowDown", "ArrowDown").startswith("rotation")
    expect(shown.readout).to_contain_text("R²0.780")


def test_tab_stops_once_in_each_plot(show):
    shown = show(curves(), pairs(), ladder())
    shown.spot("layer 12:").click()
    shown.page.get_by_role("button", name="before").focus()
    assert shown.press("Tab").startswith("layer 12:")
    assert shown.press("ArrowRight", "Tab").startswith("from layer 0, to layer 0")
    assert shown.press("Tab").startswith("identity")
    shown.press("Tab")
    expect(shown.page.get_by_role("button", name="after")).to_be_focused()
    assert shown.press("Shift+Tab").startswith("identity")


def test_keys_stay_inside_and_escape_lets_go(show):
    shown = show(curves())
    shown.spot("layer 12:").focus()
    shown.press("d", "d", "ArrowRight", "Enter", "Escape")
    assert shown.page.evaluate("document.activeElement.tagName") == "BODY"
    shown.page.keyboard.press("x")
    assert shown.page.evaluate("window.heard") == ["x"]


def test_the_keys_are_read_out_under_a_resting_pointer(show):
    shown = show(curves())
    shown.spot("layer 3:").click()
    shown.press("ArrowRight")
    expect(shown.readout).to_contain_text("layer 4")


# -- dots and hands -------------------------------------------------------------------------------


def thing(shown: Shown, label: str):
    return shown.page.locator(f"circle[aria-label^='{label}']")


def names(shown: Shown) -> list[str]:
    return [text for text in shown.page.locator(".lens-chart-labels text").all_text_contents() if text]


def test_dots_are_named_under_the_pointer_and_say_what_the_curves_ask_for(show):
    shown = show(cloud(here=None))
    assert names(shown) == ["Gradient-1048k", "Qwen2.5-7B-1M"]
    thing(shown, "SmolLM2").hover(force=True)
    assert "SmolLM2-135M" in names(shown)
    expect(shown.readout).to_contain_text("context8,192\u00a0tokens")
    expect(shown.readout).to_contain_text("DC stability25,800")
    shown.page.mouse.move(5, 5)
    assert names(shown) == ["Gradient-1048k", "Qwen2.5-7B-1M"]


def test_dots_in_one_place_are_clicked_in_turn(show):
    shown = show(cloud())
    box = thing(shown, "Llama-2 7B").bounding_box()
    chosen = []
    for _ in range(3):
        shown.page.mouse.click(box["x"] + box["width"] / 2 + 2, box["y"] + box["height"] / 2)
        chosen.append(shown.selected()["model"])
    assert sorted(set(chosen)) == ["Llama-2 70B", "Llama-2 7B"]
    assert chosen[0] == chosen[2]
    assert f"{chosen[2]} +1" in names(shown)
    expect(shown.readout).to_contain_text(f"{chosen[2]}, in the same place {chosen[1]}")


PLACES = "() => [...document.querySelectorAll('.lens-chart-svg')].map((svg) => svg.getBoundingClientRect().top)"


@pytest.mark.parametrize("width", [1280, 420])
def test_pictures_of_dots_and_hands_stay_under_the_pointer(show, width):
    shown = show(cloud(here=None), hands())
    shown.page.set_viewport_size({"width": width, "height": 1200})
    shown.page.wait_for_function(f"document.querySelector('figure svg').getBoundingClientRect().right <= {width}")
    before = shown.page.evaluate(PLACES)
    for label in [f"{label}:" for label, *_ in MODELS] + [f"lane {n}:" for n in range(0, 64, 7)]:
        thing(shown, label).hover(force=True)
        assert shown.page.evaluate(PLACES) == before


def test_arrow_keys_walk_the_dots_along_both_axes(show):
    shown = show(cloud())
    thing(shown, "SmolLM2-135M").focus()
    assert shown.press("ArrowUp").startswith("Llama-3 8B: context 8,192")
    assert shown.press("ArrowRight").startswith("SmolLM2-135M")
    assert shown.press("End").startswith("Gradient-1048k")
    assert shown.press("ArrowRight").startswith("Gradient-1048k")
    shown.press("Enter")
    assert shown.selected() == {"model": "Gradient-1048k"}


def test_where_nothing_is_pointed_at_the_place_of_the_controls_is_read(show):
    shown = show(cloud())
    expect(shown.readout).to_contain_text("here")
    expect(shown.readout).to_contain_text("base3,000")
    shown.set("spec", chart([cloud(here={"x": 8192, "y": 1e6, "label": "here"})]))
    expect(shown.readout).to_contain_text("base1,000,000")


def test_hands_point_where_their_angles_say(show):
    quarter = [{"angle": n * np.pi / 2, "label": f"lane {n}", "length": 0.5} for n in range(4)]
    shown = show(clock("lane", quarter))
    east, north, west, south = ([float(thing(shown, f"lane {n}").get_attribute(key)) for key in ("cx", "cy")] for n in range(4))
    assert east[1] == pytest.approx(west[1], abs=0.2)
    assert north[0] == pytest.approx(south[0], abs=0.2)
    assert north[1] < east[1] < south[1]
    assert west[0] < north[0] < east[0]


def test_spokes_of_one_place_share_their_letters(show):
    angles = [0.0, 2.0, 0.0]
    spokes = [{"angle": angle, "label": f"phase {n}", "kind": "spoke", "mark": n, "group": f"phase {n}",
               "colour": phase_colours(3)[n]} for n, angle in enumerate(angles)]  # fmt: skip
    shown = show(clock("phase", spokes, key={"spoke": "imposed"}))
    expect(shown.page.locator(".lens-chart-names text")).to_have_text(["0·2", "1"])
    expect(shown.readout).to_contain_text("imposed")
    expect(shown.readout).not_to_contain_text("phase 1")


def test_a_hand_and_a_curve_of_one_name_are_selected_together(show):
    wavelengths = lines("lane", range(64), {"default": range(64)}, x_axis="lane", y_axis="tokens")
    shown = show(hands(), wavelengths)
    thing(shown, "lane 12:").click(force=True)
    assert shown.selected() == {"lane": 12}
    expect(shown.page.locator("[aria-selected=true]")).to_have_count(2)
    expect(shown.readout.last).to_contain_text("lane 12")
    thing(shown, "lane 12:").focus()
    assert shown.press("ArrowRight", "PageUp").startswith("lane 8:")


def test_a_position_that_moves_turns_the_hands_that_are_there(show):
    shown = show(hands())
    thing(shown, "lane 9:").focus()
    shown.page.evaluate(REMEMBER)
    shown.set("spec", chart([hands(position=38)]))
    assert shown.page.evaluate(SAME)
    expect(thing(shown, "lane 9:")).to_be_focused()
    expect(shown.page.get_by_role("heading", name="position 38")).to_be_visible()


def test_vertical_rules_stand_at_their_x_and_bear_their_names(show):
    shown = show(curves(rules=[rule(12, "trained", on="x"), rule(40, "beyond", on="x")]))
    drawn = [path.get_attribute("d") for path in shown.page.locator(".lens-chart-levels path").all()]
    assert drawn[1] == ""
    spot = shown.spot("layer 12:")
    middle = float(spot.get_attribute("x")) + float(spot.get_attribute("width")) / 2
    assert float(drawn[0][1:].split(",")[0]) == pytest.approx(middle, abs=1)
    assert shown.page.locator(".lens-chart-names text").all_text_contents() == ["trained 12", ""]
    expect(shown.page.get_by_role("listbox")).to_have_accessible_name(
        "KL to the last layer (nats) by layer; trained 12; beyond 40"
    )


# -- new values -----------------------------------------------------------------------------------

REMEMBER = "() => { window.before = [...document.querySelectorAll('.lens-chart *')]; }"
SAME = """() => {
  const now = [...document.querySelectorAll('.lens-chart *')];
  return now.length === window.before.length && now.every((e, n) => e === window.before[n]);
}"""


def test_new_values_go_into_the_elements_that_are_there(show):
    shown = show(curves(), pairs(), ladder(), selected={"pairs": [2, 6], "layer": 4})
    shown.spot("from layer 4, to layer 8").focus()
    shown.page.evaluate(REMEMBER)
    before = shown.page.locator(".lens-chart-curves path").first.get_attribute("d")
    shown.set("spec", chart([curves(factor=0.5), pairs(TRIANGLE / 2), ladder([-0.1, 0.2, 0.3, 0.4])]))
    assert shown.page.evaluate(SAME)
    assert shown.page.locator(".lens-chart-curves path").first.get_attribute("d") != before
    expect(shown.spot("from layer 4, to layer 8")).to_be_focused()
    expect(shown.spot("from layer 4, to layer 8")).to_have_attribute("aria-label", "from layer 4, to layer 8: R² 0.300")
    expect(shown.readout.nth(1)).to_contain_text("R² 0.300")
    expect(shown.page.locator("[aria-selected=true]")).to_have_count(2)
    expect(shown.page.locator(".lens-chart-numbers text").last).to_have_text("0.400")


def test_a_chart_of_another_shape_replaces_the_old_one(show):
    shown = show(curves(), pairs(), selected={"pairs": [10, 10]})
    shown.set("spec", chart([pairs(TRIANGLE[:3, :3])]))
    expect(shown.figures).to_have_count(1)
    expect(shown.page.locator(".lens-chart-cells rect")).to_have_count(9)
    expect(shown.page.locator("[tabindex='0']")).to_have_count(1)
    expect(shown.page.locator("[aria-selected=true]")).to_have_attribute("aria-label", "from layer 4, to layer 4: R² 0.400")
    shown.set("spec", {})
    expect(shown.page.get_by_text("Nothing computed yet.")).to_be_visible()


def test_a_selected_cell_that_loses_its_value_can_be_left(show):
    shown = show(pairs(), selected={"pairs": [2, 6]})
    emptied = TRIANGLE.copy()
    emptied[3, 1] = np.nan
    shown.spot("from layer 2, to layer 6").focus()
    shown.set("spec", chart([pairs(emptied)]))
    expect(shown.readout).to_contain_text("no value")
    assert shown.press("ArrowRight").startswith("from layer 0, to layer 6")


def test_what_is_computed_anew_is_dimmed(show):
    shown = show(curves())
    row = shown.page.locator(".lens-chart-row")
    shown.set("busy", {"label": "running", "seconds": 1})
    expect(row).to_have_attribute("aria-busy", "true")
    expect(row).to_have_css("opacity", "0.55")
    shown.set("busy", {})
    expect(row).to_have_css("opacity", "1")


def test_a_chart_goes_without_a_trace(show):
    shown = show(curves())
    shown.page.evaluate("window.unmount()")
    expect(shown.page.locator(".lens-chart")).to_have_count(0)
    shown.set("spec", chart([pairs()]))
    shown.page.set_viewport_size({"width": 600, "height": 600})


def test_a_change_of_theme_is_followed(show):
    shown = show(pairs(np.array([[0.0, 1.0], [0.0, 1.0]])))
    shown.page.evaluate("document.body.style.background = 'rgb(17,19,23)'; document.body.className = 'dark'")
    expect(shown.page.locator(".lens-chart")).to_have_attribute("data-theme", "dark")
    fills = [cell.get_attribute("fill") for cell in shown.page.locator(".lens-chart-cells rect").all()]
    assert fills == ["rgb(17,19,23)", "rgb(119,187,255)"] * 2
