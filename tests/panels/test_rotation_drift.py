"""The rotation panel: every pair is decomposed once, pictures and subspaces are chosen from what was found."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import lens
from lens.collect import collect_moments
from lens.figures.rotation_drift import rotation_chart
from lens.panels import RotationDrift, rotation_drift
from lens.probes.procrustes import procrustes
from lens.probes.rotation import rotation
from tests.collect.passes import made_up
from tests.models.families import build, word_tokenizer
from tests.panels.conftest import Gate

TOKENS = 1500
TEXTS = made_up()
SUBSPACES = (10, 50, 0.9, None)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def model(cache):
    return lens.load(build("llama"), word_tokenizer())


@pytest.fixture(scope="module")
def moments(model):
    return collect_moments(model, TEXTS, tokens=TOKENS, pairs="overview", window=64)


@pytest.fixture
def panel(model) -> RotationDrift:
    return RotationDrift(model, TEXTS, tokens=TOKENS)


@pytest.fixture
def decomposed(monkeypatch) -> list:
    """The pairs that the probe was asked for, in order."""
    asked = []

    def counted(train, test, *, pairs, subspaces):
        asked.extend(pairs)
        return procrustes(train, test, pairs=pairs, subspaces=subspaces)

    monkeypatch.setattr(rotation_drift, "procrustes", counted)
    return asked


def test_angles_and_picture_are_those_of_the_probe(panel, moments):
    steps = procrustes(moments.train, moments.test, pairs=[(0, 1), (1, 2), (2, 3)], subspaces=SUBSPACES)
    xr.testing.assert_allclose(panel.angles, steps)
    direct = procrustes(moments.train, moments.test, pairs=[(0, 3), (1, 3), (2, 3)], subspaces=SUBSPACES)
    assert panel.chart.spec == rotation_chart(steps, direct, steps.isel(pair=[1]), "50", "blocks")
    assert panel.chart.selected == {"blocks": 1}


def test_the_angles_over_depth_are_those_of_the_drift_probe(panel, moments):
    panel.set(picture="depth", subspace="all")
    drift = rotation(moments.train, moments.test)
    added, direct = (np.array(one["values"]) for one in panel.chart.spec["plots"][0]["series"])
    assert added == pytest.approx(drift.path_to_last.to_numpy()[:3], rel=1e-3)
    assert direct == pytest.approx(drift.direct_to_last.to_numpy()[:3], rel=1e-3)


def test_the_summary_is_plain_rounded_data(panel):
    panel.set(source=0, target=3, subspace="10")
    summary = panel.summary()
    assert (summary["source"], summary["target"], summary["subspace"], summary["directions"]) == (0, 3, "10", 10)
    assert list(summary["r2"]) == ["identity", "shift", "scale", "rotation", "linear"]
    assert summary["from_first_to_last"]["direct"] == round(summary["energy_angle"])
    medians = panel.angles.energy_angle.sel(subspace="10").median()
    assert summary["median_of_blocks"]["energy_angle"] == round(float(medians), 1)
    assert f"turn by {summary['energy_angle']:.1f}° (10 directions)" in summary["says"]
    assert f"lead {summary['from_first_to_last']['direct']}° away" in summary["says"]


def test_the_line_warns_of_all_directions_and_of_noise(panel):
    panel.set(subspace="all")
    assert panel.summary()["says"].endswith("see it in the first ten.")
    angle, noise = panel.summary()["energy_angle"], panel.summary()["energy_angle_noise"]
    assert ("hardly more than noise" in panel.summary()["says"]) == (angle < 2 * noise)


def test_a_pair_is_decomposed_once(model, decomposed):
    panel = RotationDrift(model, TEXTS, tokens=TOKENS)
    assert sorted(decomposed) == [(0, 1), (0, 3), (1, 2), (1, 3), (2, 3)]
    panel.set(source=0, target=2)
    assert decomposed[5:] == [(0, 2)]
    panel.set(source=1, target=3, subspace="10", picture="shares")
    panel.set(source=0, target=2, picture="depth")
    assert len(decomposed) == 6


def test_clicks_choose_pairs(panel):
    panel.chart.selected = {"blocks": 0}
    assert (panel.summary()["source"], panel.summary()["target"]) == (0, 1)
    panel.set(picture="depth")
    panel.chart.selected = {"depth": 1}
    assert (panel.summary()["source"], panel.summary()["target"]) == (1, 3)
    assert panel.chart.selected == {"depth": 1}
    assert panel.chart.spec["plots"][1]["title"].startswith("layer 1 to 3: mean ")


def test_controls_follow_the_settings_and_the_target_follows_the_source(panel):
    panel.set(source=0, target=1, subspace="90 %", picture="shares")
    picture, subspace, source, target = panel.children[1].children
    assert (picture.value, subspace.value, source.value, target.value) == ("shares", "90 %", 0, 1)
    assert target.options == (1, 2, 3)
    source.value = 2
    assert (panel.summary()["source"], panel.summary()["target"]) == (2, 3)
    assert target.options == (3,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": 3}, "The source layer is 3"),
        ({"source": 2, "target": 1}, "No pair leads from layer 2 to 1"),
        ({"subspace": "7"}, "The subspace is '7'"),
        ({"picture": "pie"}, "The picture is 'pie'"),
    ],
)
def test_refusals_are_one_line_and_the_picture_stays(panel, changes, message):
    before = panel.chart.spec
    panel.set(**changes)
    assert message in panel.summary()["error"]
    assert panel.chart.spec == before


def test_a_wrong_setting_at_the_start_is_one_line(model):
    panel = RotationDrift(model, TEXTS, tokens=TOKENS, subspace="7")
    assert "The subspace is '7'" in panel.summary()["error"]


def test_cancel_during_a_pass_keeps_the_old_picture(panel, model):
    before = panel.chart.spec
    gate = Gate(model)
    try:
        gate.shut()
        panel.post(corpus=made_up(seed=6))
        gate.wait_until_reached()
        panel.cancel()
        gate.open()
        assert "Cancelled" in panel.summary()["error"]
        assert panel.chart.spec == before
    finally:
        gate.remove()


def test_cancel_between_two_pairs_keeps_the_old_picture(panel, monkeypatch):
    """The moments are there already; the decompositions alone can be stopped as well."""
    panel.set(tokens=TOKENS - 64)
    before, asked = panel.chart.spec, []

    def cancelling(train, test, *, pairs, subspaces):
        asked.extend(pairs)
        panel.cancel()
        return procrustes(train, test, pairs=pairs, subspaces=subspaces)

    monkeypatch.setattr(rotation_drift, "procrustes", cancelling)
    panel.post(tokens=TOKENS)
    assert "Cancelled" in panel.summary()["error"]
    assert len(asked) == 1
    assert panel.chart.spec == before


def test_names_of_texts_are_text(model):
    hostile = lens.corpora.Corpus("<img src=x onerror=alert(1)>", [document.text for document in TEXTS.part("train")])
    panel = RotationDrift(model, hostile, tokens=TOKENS)
    assert "&lt;img" in panel._line.value
    assert "<img" not in panel._says.value + panel._line.value + panel._chip.value
