"""The phase panel: what it computes, shows and says."""

from __future__ import annotations

import pytest

import lens
from lens.figures.phase_view import phase_view_chart
from lens.panels.phase_view import PhaseView
from lens.probes.phase_view import MEASURES, phase_view
from tests.models.families import build

TEXT = " ".join(f"w{(11 * i) % 120}" for i in range(30))


@pytest.fixture(scope="module")
def models(tokenizer):
    return {name: lens.load(build(name), tokenizer) for name in ("llama", "three-phase")}


@pytest.fixture
def panel(models) -> PhaseView:
    return PhaseView(models["llama"], TEXT, phases=2)


def test_first_sight_is_the_probe_and_says_its_numbers(panel, models):
    wanted = phase_view(models["llama"].run(TEXT), 2)
    assert panel.view.equals(wanted)
    summary = panel.summary()
    assert (summary["error"], summary["layer"], summary["phases"]) == (None, 2, 2)
    assert f"of layer 2 differ by up to {float(wanted.statistic[2]):.3g};" in summary["says"]
    assert panel.chart.spec == phase_view_chart(wanted, 2)


def test_every_measure_is_said_without_another_pass(panel):
    before = panel._shown()
    for measure in MEASURES:
        for phases in (1, 4):
            panel.set(measure=measure, phases=phases, first_token="with")
            assert panel.summary()["error"] is None
            assert "nan" not in panel.summary()["says"]
            assert panel.view.attrs["drop_first"] == 0
    assert "No rotation is imposed here" in panel.summary()["says"]
    assert panel._shown() is before


def test_a_click_chooses_a_layer(panel):
    panel.chart.selected = {"layers": 3}
    assert panel.summary()["layer"] == 3
    panel.set(measure="angle")
    assert panel.chart.selected["blocks"] == 2
    panel.chart.selected = {"layers": 3, "blocks": 0}
    assert panel.summary()["layer"] == 1


def test_a_three_phase_model_opens_in_its_own_phases(models):
    panel = PhaseView(models["three-phase"], TEXT, measure="rotation")
    summary = panel.summary()
    assert summary["phases"] == summary["own_phases"] == 2
    assert "The rotation that the model imposes is missed by" in summary["says"]
    panel.set(phases=4)
    assert "imposes, in 2 phases, is missed by" in panel.summary()["says"]


def test_refused_in_one_line(panel):
    for wrong in ({"phases": 5}, {"layer": 4}, {"measure": "rank"}, {"first_token": "no"}, {"text": "w1 w2"}):
        panel.set(**wrong)
        assert "Try:" in panel.summary()["error"]
        panel.set(phases=2, layer=1, measure="length", first_token="without", text=TEXT)
        assert panel.summary()["error"] is None
