"""The shortcut panel over a small model and made-up texts: every pair of layers, by slider, by click and by cell."""

from __future__ import annotations

import numpy as np
import pytest

import lens
from lens.base.errors import InputError
from lens.corpora import Corpus
from lens.panels import LinearShortcuts, fitted
from lens.probes.shortcuts import fit_shortcuts, noise_floor


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LENS_CACHE", str(tmp_path / "cache"))


def made_up(name: str = "made up", seed: int = 0) -> Corpus:
    words = np.random.default_rng(seed).integers(4, 123, (80, 60))
    return Corpus(name, [" ".join(f"w{word}" for word in row) for row in words])


@pytest.fixture
def panel(tiny) -> LinearShortcuts:
    return LinearShortcuts(tiny, made_up(), tokens=2000)


def test_first_sight_is_the_middle_to_the_end_and_what_the_probe_says(panel, tiny):
    moments = lens.collect_moments(tiny, made_up(), tokens=2000, pairs="overview", window=64)
    score = fit_shortcuts(moments.train).score(moments.test)
    assert panel.score.identical(score)
    found = panel.summary()
    row = score.isel(pair=((score.from_layer == 1) & (score.to_layer == 3)).to_numpy()).squeeze()
    assert (found["source"], found["target"], found["error"]) == (1, 3, None)
    assert found["r2_pooled"] == round(float(row.r2_pooled), 3)
    assert found["shuffled_r2"] == round(float(noise_floor(moments.train, moments.test).shuffled_r2.max()), 3)
    assert "layer 3 from layer 1" in found["says"]


def test_sliders_and_cells_choose_the_same_pair(panel):
    panel.set(source=0, target=1)
    assert [panel._controls[name].value for name in ("source", "target")] == [0, 1]
    panel._controls["target"].value = 2
    panel.wait()
    assert panel.summary()["target"] == 2
    assert panel.chart.selected["pairs"] == [0, 2]


def test_a_click_in_the_map_moves_the_sliders(panel):
    panel.chart.selected = {"pairs": [0, 2]}
    panel.wait()
    assert [panel._controls[name].value for name in ("source", "target")] == [0, 2]
    panel.chart.selected = {**panel.chart.selected, "profile": 1}
    panel.wait()
    assert (panel.summary()["source"], panel.summary()["target"]) == (1, 2)


def test_the_target_follows_a_source_beyond_it(panel):
    panel.set(source=0, target=1)
    panel.set(source=2)
    assert (panel.summary()["source"], panel.summary()["target"], panel.error) == (2, 3, None)


def test_pairs_without_a_map_are_one_line_and_the_picture_stays(panel):
    before = panel.chart.spec
    panel.set(source=7)
    assert panel.error.startswith("The source layer is 7")
    panel.set(target=0)
    assert panel.error.startswith("No map leads from layer 1 to 0")
    assert panel.chart.spec == before
    panel.set(target=2)
    assert panel.error is None


def test_another_corpus_is_another_fit_and_can_be_chosen_again(panel):
    first = panel.score
    panel.set(corpus=made_up("<b>other</b>", seed=1))
    assert not panel.score.identical(first)
    assert [label for label, _ in panel._top["corpus"].options][-1] == "<b>other</b>"
    with pytest.raises(InputError, match="no setting"):
        panel.set(colour="red")


def test_a_corpus_without_enough_text_is_one_line(tiny):
    panel = LinearShortcuts(tiny, Corpus("short", ["w5 w6"]))
    assert panel.error.startswith("The train part of short gives no tokens")
    assert panel.summary() == {"error": panel.error}
    with pytest.raises(InputError, match="no picture yet"):
        _ = panel.score


def test_the_map_blank_above_the_diagonal_has_every_layer(panel):
    pairs, profile = panel.chart.spec["plots"]
    assert (pairs["x"]["values"], pairs["y"]["values"]) == ([0, 1, 2], [1, 2, 3])
    assert [[cell is None for cell in row] for row in pairs["values"]] == [
        [False, True, True], [False, False, True], [False, False, False]
    ]  # fmt: skip
    assert profile["title"] == "to layer 3"


def test_a_picture_for_places_without_a_kernel(panel):
    assert panel._repr_mimebundle_()["image/png"].startswith(b"\x89PNG")


def test_a_first_fit_that_takes_long_leaves_the_cell_and_comes_later(tiny, gate, monkeypatch):
    """The cell returns with an empty chart, so that the page shows the bar; `summary` waits."""
    monkeypatch.setattr(fitted, "FIRST_SIGHT", 0.1)
    gate.shut()
    panel = LinearShortcuts(tiny, made_up(), tokens=2000)
    gate.wait_until_reached()
    assert panel.chart.spec == {}
    gate.open()
    assert panel.summary()["error"] is None
    assert panel.chart.spec["plots"][0]["kind"] == "heat_map"


def test_a_cell_that_holds_the_model_gets_its_picture_at_once(tiny, monkeypatch):
    monkeypatch.setattr(fitted, "FIRST_SIGHT", 0.0)
    with tiny.lock.hold("a test"):
        panel = LinearShortcuts(tiny, made_up(), tokens=2000)
        assert panel.chart.spec["plots"][0]["kind"] == "heat_map"
