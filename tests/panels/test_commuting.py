"""The playground of commuting rotations: settings, sentence, and the one line of a refusal."""

from __future__ import annotations

import pytest
import xarray as xr

from lens.figures.commuting import commuting_chart
from lens.panels.commuting import SIZES, CommutingRotations
from lens.probes.commuting import FAMILIES, commuting


@pytest.fixture
def panel() -> CommutingRotations:
    return CommutingRotations(seed=3)


def test_first_sight_is_a_family_that_does_not_commute(panel):
    expected = commuting("independent", block_size=4, axes=2, seed=3)
    xr.testing.assert_identical(panel.dataset, expected)
    assert panel.chart.spec == commuting_chart(expected, 8, "defect")
    assert panel.chart.selected == {"defect": [12, 12], "offset": 8}
    summary = panel.summary()
    assert summary["drift"] == round(float(expected.drift[8]), 3) > 0.05
    assert summary["commutator"] == round(float(expected.commutator[:, 0, 1].mean()), 3)
    assert f"{summary['drift']:.2f} of their standard deviation" in summary["says"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("block_size", SIZES)
@pytest.mark.parametrize("axes", [1, 2])
def test_every_setting_is_answered_and_says_what_was_computed(panel, family: str, block_size: int, axes: int):
    panel.set(family=family, block_size=block_size, axes=axes, offset=16)
    summary = panel.summary()
    assert summary["error"] is None
    commutes = family != "independent" or block_size == 2 or axes == 1
    assert (summary["drift"] == 0) == commutes == (summary["largest_defect"] == 0)
    assert ("do not commute" in summary["says"]) != commutes


def test_slider_and_click_choose_the_offset_without_a_computation(panel):
    before = panel.dataset
    panel._controls["offset"].value = 2
    assert panel.summary()["offset"] == 2
    assert panel.chart.selected["offset"] == 2
    panel.chart.selected = {"defect": [3, 4], "offset": 11}
    assert panel.summary()["offset"] == panel._controls["offset"].value == 11
    assert panel.chart.selected["defect"] == [3, 4]
    panel.set(offset=12)
    assert panel.dataset is before


def test_controls_follow_cells(panel):
    panel.set(family="axial partition", block_size=8, seed=5, picture="frequencies")
    assert {name: control.value for name, control in {**panel._top, **panel._controls}.items()} == {
        "family": "axial partition", "axes": 2, "block_size": 8, "seed": 5, "picture": "frequencies", "offset": 8,
    }  # fmt: skip


@pytest.mark.parametrize(
    "wrong", [{"family": "LieRE"}, {"block_size": 5}, {"axes": 3}, {"seed": -1}, {"picture": "spectrum"}, {"offset": 17}]
)
def test_refused_in_one_line(panel, wrong: dict):
    panel.set(**wrong)
    assert "Try:" in panel.summary()["error"]
    panel.set(family="independent", block_size=4, axes=2, seed=3, picture="defect", offset=8)
    assert panel.summary()["error"] is None


def test_opened_with_what_is_not_there_it_says_so():
    panel = CommutingRotations(block_size=7)
    assert "block size is 7" in str(panel.summary()["error"])
    panel.set(block_size=8)
    assert panel.summary()["block_size"] == panel._top["block_size"].value == 8
