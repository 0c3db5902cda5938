"""The panel of the wedge: models, sliders and theories lead to what the probes say."""

from __future__ import annotations

import csv

import pytest
import xarray as xr

import lens
from lens.base.errors import InputError
from lens.figures.rope_bounds import bounds_chart
from lens.panels.rope_bounds import RopeBounds
from lens.probes.rope_bounds import THEORIES, rope_bounds
from lens.probes.rope_practice import rope_practice
from tests.models.families import build

DRAWN = [name for name in THEORIES if name != "similar_beats_random_safe"]
CONTEXTS = [2**k for k in range(8, 21)]


@pytest.fixture
def panel() -> RopeBounds:
    return RopeBounds()


def test_the_first_picture_is_a_model_that_works_against_three_hypotheses(panel):
    practice = rope_practice()
    xr.testing.assert_identical(panel.practice, practice)
    xr.testing.assert_identical(panel.bounds, rope_bounds(4096, 32, 128, 1e4))
    expected = bounds_chart(rope_bounds(CONTEXTS, 32, 128), practice, DRAWN, panel.bounds, "Llama-2 7B")
    assert panel.chart.spec == expected
    assert panel.chart.selected == {"model": "Llama-2 7B"}
    summary = panel.summary()
    assert [name for name, met in summary["met"].items() if not met] == ["DC stability", "depth", "similar beats random"]
    assert summary["says"].startswith("Llama-2 7B (4,096 tokens, 32 layers, base 10,000; offered for that context): 3 of 6")
    assert "DC stability asks for at least 12,898" in summary["says"]


def test_the_summary_is_plain_rounded_data(panel):
    summary = panel.summary()
    assert summary["required"] == {
        "aliasing": 652, "DC stability": 12_900, "depth": 72_400, "precision wall": 8_390_000, "similar beats random": 28_700,
        "slow-lane share": 5650,
    }  # fmt: skip
    assert (summary["slow_lanes"], summary["lanes"], summary["constant_lanes"], summary["first_negative"]) == (18, 64, 0, 1707)
    assert summary["error"] is None


def test_a_model_with_scaling_is_judged_by_its_own_lanes(panel):
    panel.set(model="Llama-3.1 8B")
    summary = panel.summary()
    assert (summary["context"], summary["layers"], summary["base"]) == (131_072, 32, 4e6)
    assert (summary["slow_lanes"], summary["first_negative"]) == (25, 85_133)
    panel.set(model=None)
    assert panel.summary()["slow_lanes"] != 25
    assert panel.summary()["base"] == 4e6


def test_a_slider_leaves_the_model(panel):
    model, context, base, layers, width, epsilon, lane, dtype = panel.children[0].children[:8]
    base.value = 1e6
    assert panel.summary()["model"] is None
    assert (panel.summary()["base"], panel.summary()["context"]) == (1e6, 4096)
    assert model.value == "a setting of my own"
    assert panel.chart.selected == {}
    assert panel.chart.spec["plots"][0]["here"]["y"] == 1e6
    moved = {
        "context": (context, 65_536), "layers": (layers, 80), "width": (width, 64), "epsilon": (epsilon, 0.9),
        "lane": (lane, "exact"), "dtype": (dtype, "float16"),
    }  # fmt: skip
    for name, (control, value) in moved.items():
        control.value = value
        assert panel.summary()[name] == value
    chosen = {"epsilon": 0.9, "dtype": "float16", "lane": "exact"}
    xr.testing.assert_identical(panel.bounds, rope_bounds(65_536, 80, 64, 1e6, **chosen))
    xr.testing.assert_identical(panel.practice, rope_practice(**chosen))


def test_a_click_and_the_list_choose_a_model(panel):
    model, context, base, layers, width = panel.children[0].children[:5]
    panel.chart.selected = {"model": "DeepSeek-V2"}
    assert panel.summary()["model"] == "DeepSeek-V2"
    assert (model.value, context.value, base.value, layers.value, width.value) == ("DeepSeek-V2", 163_840, 4e5, 60, 64)
    model.value = "Qwen2.5-7B-1M"
    assert panel.summary()["context"] == 1_010_000
    assert panel.chart.selected == {"model": "Qwen2.5-7B-1M"}
    model.value = "a setting of my own"
    assert (panel.summary()["model"], panel.summary()["context"]) == (None, 1_010_000)


def test_the_strictness_keeps_the_model_and_the_exact_lane_moves_it(panel):
    panel.set(model="DeepSeek-V2")
    panel.set(epsilon=0.8)
    assert panel.summary()["model"] == "DeepSeek-V2"
    panel.set(lane="exact")
    exact = rope_practice(0.8, lane="exact").sel(model="DeepSeek-V2")
    assert panel.summary()["model"] == "DeepSeek-V2"
    assert panel.summary()["base"] == float(exact.effective_base)
    assert panel.summary()["base"] != 4e5


def test_theories_go_on_and_off_without_another_computation(panel):
    bounds, toggles = panel.bounds, panel.children[1].children[0]
    toggles.children[0].value = False
    assert "aliasing" not in panel.summary()["met"]
    assert panel.bounds is bounds
    panel.set(theories=("depth",))
    assert [curve["name"] for curve in panel.chart.spec["plots"][0]["curves"]] == ["depth"]
    assert [button.value for button in toggles.children] == [False, False, True, False, False, False]
    assert panel._table.value.count("<details>") == 1
    panel.set(theories=())
    assert "no hypothesis is shown" in panel.summary()["says"]


def test_every_model_of_the_table_can_be_chosen(panel):
    practice = rope_practice()
    for model in practice.model.to_numpy().tolist():
        panel.set(model=model)
        summary = panel.summary()
        assert summary["error"] is None
        met = practice.met.sel(model=model, theory=DRAWN).to_numpy().tolist()
        assert list(summary["met"].values()) == met


def test_the_models_can_be_taken_away(panel, tmp_path):
    with xr.open_dataset(panel.export(tmp_path / "models.nc"), engine="h5netcdf") as read:
        xr.testing.assert_identical(read.load(), panel.practice)
    with panel.export(tmp_path / "models.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 22 * 7
    depth = next(row for row in rows if (row["model"], row["theory"]) == ("Llama-2 7B", "depth"))
    assert (round(float(depth["required"]), 1), depth["met"]) == (72_361.2, "False")
    with pytest.raises(InputError, match="ends in '.txt'"):
        panel.export(tmp_path / "models.txt")


def test_a_model_of_the_readers_own_is_a_dot(smollm2):
    panel = RopeBounds(smollm2)
    summary = panel.summary()
    assert (summary["model"], summary["base"], summary["context"], summary["width"]) == (smollm2.name, 1e5, 8192, 64)
    assert summary["met"] == RopeBounds("SmolLM2-135M").summary()["met"]
    assert panel.chart.spec["plots"][0]["dots"][-1]["label"] == smollm2.name
    panel.set(model="Llama-3 8B")
    panel.set(model=smollm2.name)
    assert panel.summary()["says"] == summary["says"]


def test_a_model_of_another_width_is_one_line(tokenizer):
    panel = RopeBounds(lens.load(build("llama"), tokenizer))
    assert "The rotary width is 8" in panel.summary()["error"]
    panel.set(model="Llama-2 7B")
    assert panel.summary()["error"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "Llama-9"}, "The model is 'Llama-9'"),
        ({"width": 100}, "The rotary width is 100"),
        ({"context": 0}, "The context is 0"),
        ({"epsilon": 1.0}, "The epsilon is 1.0"),
        ({"base": 0.5}, "The rotary base is 0.5"),
        ({"theories": ("gravity",)}, "No theory is named 'gravity'"),
    ],
)
def test_refusals_are_one_line_and_the_picture_stays(panel, changes, message):
    before = panel.chart.spec
    panel.set(**changes)
    assert message in panel.summary()["error"]
    assert panel.chart.spec == before


def test_a_context_between_the_marks_joins_the_slider(panel):
    panel.set(context=300, width=16, base=1e6)
    assert panel.summary()["error"] is None
    assert panel.children[0].children[1].value == 300


def test_the_slider_holds_a_model_s_own_base(panel):
    """A slider of numbers would round 500,000 to a step of its own, and send that back as another setting."""
    panel.set(model="Llama-3 8B")
    slider = panel.children[0].children[2]
    assert slider.value == 500_000
    assert ("500,000", 500_000) in slider.options
    assert panel.summary()["model"] == "Llama-3 8B"
