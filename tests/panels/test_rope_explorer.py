"""The explorer panel: settings in, sentence and picture out; presets of released models; files."""

from __future__ import annotations

import csv
from itertools import pairwise

import pytest
import xarray as xr

from lens.base.errors import InputError
from lens.models.frequencies import KINDS
from lens.panels.rope_explorer import RopeExplorer, settings_of
from lens.probes.rope_practice import rope_practice


@pytest.fixture
def explorer():
    panel = RopeExplorer(width=64)
    yield panel
    panel.wait()
    panel.close()


def test_first_sight_is_a_sentence_with_its_numbers(explorer):
    found = explorer.summary()
    assert found["error"] is None
    assert found["lanes"] == {"fast": 6, "middle": 17, "slow": 9}
    assert (found["first_negative"], found["slowest_wavelength"]) == (725, 47_120)
    assert "first falls below zero at offset 725." in found["says"]


def test_a_released_model_is_one_setting(explorer):
    explorer.set(model="Qwen2.5-72B, YaRN 4")
    found = explorer.summary()
    assert (found["kind"], found["base"], found["width"], found["context"]) == ("yarn", 1e6, 128, 131_072)
    assert (found["first_negative"], found["first_negative_default"]) == (66_234, 27_115)
    assert explorer._top["model"].value == "Qwen2.5-72B, YaRN 4"
    explorer.set(base=2e6)
    assert explorer.summary()["models"] == []
    assert explorer._top["model"].value == "own settings"


def test_every_released_model_shows_what_practice_says_of_it(explorer):
    practice = rope_practice()
    for model in practice.model.values.tolist():
        explorer.set(model=model)
        found, row = explorer.summary(), practice.sel(model=model)
        assert found["error"] is None
        assert found["models"][0] == explorer._top["model"].value == model
        assert found["lanes"]["slow"] == int(row.slow_lanes)
        below = float(row.first_negative)
        assert (found["first_negative"] or "nowhere") == (int(below) if below == below else "nowhere")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_chosen_from_its_list(explorer, kind):
    explorer._top["kind"].value = kind
    found = explorer.summary()
    assert (found["kind"], found["error"]) == (kind, None)
    shown = [name for name in ("factor", "original_max_position_embeddings", "partial_rotary_factor")
             if explorer._top[name].layout.display != "none"]  # fmt: skip
    wanted = {
        "default": 0,
        "linear": 1,
        "ntk": 1,
        "dynamic": 2,
        "yarn": 2,
        "llama3": 2,
        "longrope": 2,
        "proportional": 1,
        "explicit": 0,
    }
    assert len(shown) == wanted[kind]
    assert bool(found["stand_ins"]) == (kind in ("longrope", "explicit"))


def test_a_slider_is_a_setting(explorer):
    explorer._top["base"].value = 1e5
    explorer._top["context"].value = 9742  # 2 to the power of 13.25
    found = explorer.summary()
    assert (found["base"], found["context"]) == (1e5, 9742)


def test_the_base_moves_by_fiftieths_of_a_decade_and_shows_what_it_stands_at(explorer):
    values = [value for _, value in explorer._top["base"].options]
    assert (len(values), values[0], values[-1]) == (401, 100, 1e10)
    assert all(b / a == pytest.approx(10**0.02) for a, b in pairwise(values))
    explorer.set(model="Llama-3-8B-Gradient-1048k")
    slider = explorer._top["base"]
    assert (slider.value, slider.label, len(slider.options)) == (2_804_339_835, "2,804,339,835", 402)


def test_clicks_choose_a_lane_and_a_position(explorer):
    explorer.chart.selected = {"lane": 7, "offset": 2001}
    found = explorer.summary()
    assert (found["lane"], found["position"]) == (7, 2001)
    assert explorer._controls["position"].value == 2001
    assert explorer.chart.spec["plots"][0]["title"] == "position 2,001"


def test_a_click_on_a_lane_leaves_the_position_where_it_is(explorer):
    explorer.set(position=100)  # within the run of offsets that begins at 90
    assert explorer.chart.selected == {"offset": 90}
    explorer.chart.selected = {"lane": 3, "offset": 90}
    assert explorer.summary()["position"] == 100
    explorer.set(position=5000)
    assert explorer.chart.selected == {"lane": 3}


def test_a_narrower_head_keeps_a_lane_that_it_has(explorer):
    explorer.set(lane=31)
    explorer.set(width=16)
    assert explorer.summary()["lane"] == 7


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kind": "swirl"}, "'swirl'"),
        ({"kind": "linear", "parameters": {"beta_fast": 1}}, "was given beta_fast"),
        ({"base": 0.5}, "base is 0.5"),
        ({"lane": 32}, "lane is 32"),
        ({"context": 0}, "context is 0"),
    ],
)
def test_a_mistake_is_one_line_and_the_picture_stays(explorer, changes, says):
    before = explorer.chart.spec
    explorer.set(**changes)
    assert says in explorer.summary()["error"]
    assert explorer.chart.spec == before


def test_an_unknown_model_is_refused_at_once(explorer):
    with pytest.raises(InputError, match="'gpt-2'"):
        explorer.set(model="gpt-2")
    with pytest.raises(InputError, match="'gpt-2'"):
        settings_of("gpt-2")


def test_the_table_is_written_with_all_its_digits(explorer, tmp_path):
    explorer.set(kind="ntk", factor=4.0)
    rows = list(csv.DictReader(explorer.export(tmp_path / "rope.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["table"] for row in rows[::32]] == ["default", "ntk"]
    assert [float(row["theta"]) for row in rows] == explorer.table.theta.to_numpy().ravel().tolist()
    with xr.open_dataset(explorer.export(tmp_path / "rope.nc")) as stored:
        xr.testing.assert_identical(stored.load(), explorer.table)
    with pytest.raises(InputError, match=r"\.csv, \.nc"):
        explorer.export(tmp_path / "rope.txt")
