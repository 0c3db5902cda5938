"""The early-exit panel: arithmetic on readings that are there already."""

from __future__ import annotations

import numpy as np
import pytest

import lens
from lens.corpora import Corpus
from lens.panels import EarlyExit


@pytest.fixture
def readings(tiny):
    words = np.random.default_rng(3).integers(4, 123, (40, 30))
    corpus = Corpus("made up", [" ".join(f"w{word}" for word in row) for row in words])
    return lens.compare_lenses(tiny, corpus, {"plain": None}, tokens=150)


@pytest.fixture
def panel(readings) -> EarlyExit:
    return EarlyExit(readings, strictness=0.5)


def test_it_says_what_the_probe_says(panel, readings):
    found, exits = panel.summary(), lens.early_exit(readings)
    here = exits.sel(lens="plain").sel(strictness=0.5, method="nearest")
    assert found["agreement"] == {"plain": round(float(here.agreement), 3)}
    assert found["layers_saved"] == {"plain": round(float(here.layers_saved), 3)}
    assert found["saved_at_95"] == {"plain": round(float(exits.saved_at_95[0]), 3)}
    assert "plain lens" in found["says"]


def test_never_saves_nothing_and_at_once_saves_all_but_one_layer(panel):
    panel.set(strictness=1.112)
    assert panel.summary()["layers_saved"] == {"plain": 0.0}
    assert panel.summary()["agreement"] == {"plain": 1.0}


@pytest.mark.parametrize("measure", ["precision_1", "precision_10", "surprisal", "kl_to_final"])
def test_every_measure_is_drawn_with_its_own_values(panel, readings, measure):
    panel.set(measure=measure)
    drawn = panel.chart.spec["plots"][0]["series"][0]["values"]
    name, _, k = measure.rpartition("_") if measure.startswith("precision") else (measure, "", "")
    values = readings[name].sel(lens="plain")
    assert np.allclose(drawn, values.sel(k=int(k)) if k else values, rtol=1e-3)


def test_the_slider_and_the_cell_agree(panel):
    panel._controls["strictness"].value = panel._controls["strictness"].options[3][1]
    panel.wait()
    assert panel.summary()["strictness"] == panel._controls["strictness"].options[3][1]
    panel.set(strictness=0.77)  # the nearest one that was measured
    assert panel._controls["strictness"].value == pytest.approx(0.775)


def test_mistakes_are_one_line(panel):
    panel.set(measure="luck")
    assert panel.error.startswith("The measure is 'luck'")
    panel.set(measure="precision_1", strictness=3)
    assert panel.error.startswith("The strictness is 3")
