"""The token microscope: what it computes, shows and says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import lens
from lens.figures.token_microscope import microscope_chart
from lens.panels.token_microscope import TokenMicroscope
from lens.probes.contextualisation import contextualisation
from lens.probes.prefix_decoder import RECIPE, fit_prefix_decoder
from lens.probes.token_nonlinearity import token_nonlinearity
from tests.models.families import build
from tests.probes.test_deletion_test import prose, prose_tokenizer

TEXT = prose(1000, 24)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Model, corpus and decoder, and a cache of their own."""
    model = lens.load(build("llama"), prose_tokenizer())
    text = lens.corpus([prose(seed) for seed in range(60)])
    decoder = fit_prefix_decoder(
        model, text, tokens=600, names=40, hidden=16, width=8, window=60, lags=(1, 2), recipe=replace(RECIPE, steps=5, warm_up=1)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield model, text, decoder


@pytest.fixture
def panel(parts) -> TokenMicroscope:
    model, text, decoder = parts
    return TokenMicroscope(model, TEXT, corpus=text, tokens=1200, decoder=decoder)


def test_first_sight_is_the_probe_and_says_its_numbers(panel, parts):
    model, text, decoder = parts
    moments = lens.collect_moments(model, text, tokens=1200, pairs="overview", window=64)
    shortcuts = lens.fit_shortcuts(moments.train, pairs=[(0, 1), (1, 2), (2, 3)])
    run = model.run(TEXT, logits=False)
    wanted = token_nonlinearity(run, shortcuts, moments.train)
    assert np.allclose(panel.tokens.nonlinearity, wanted.nonlinearity, rtol=1e-5)
    assert np.array_equal(panel.tokens.recovered, contextualisation(run, decoder).recovered, equal_nan=True)
    summary = panel.summary()
    means = wanted.nonlinearity.mean("block").to_numpy()[1:]
    assert summary["error"] is None
    assert summary["selected"]["position"] == means.argmax() + 1
    assert summary["largest"]["mean"] == float(f"{means.max():.3g}")
    assert f"errs most on “{summary['largest']['token']}”" in summary["says"]
    assert summary["selected"]["class"] in ("stop word", "content word", "punctuation")
    assert panel.chart.selected["tokens"] == [summary["selected"]["position"], summary["selected"]["block"]]


def test_every_measure_is_that_of_its_probe(panel):
    for measure in ("relative", "recovered", "prefix_loss"):
        panel.set(measure=measure, position=3, layer=1)
        assert panel.chart.spec == microscope_chart(panel.tokens, measure=measure, position=3)
        summary = panel.summary()
        depth = "block" if measure == "relative" else "layer"
        value = float(panel.tokens[measure].sel({depth: 1, "position": 3}))
        assert summary["selected"]["value"] == pytest.approx(value, rel=1e-2)
        assert summary["error"] is None
    assert "read best at layer" in summary["says"]


def test_a_view_is_changed_without_a_computation(panel):
    before = panel.tokens
    panel.set(position=4, layer=0)
    panel.chart.selected = {"tokens": [5, 2], "depth": 0}
    assert panel.summary()["selected"]["position"] == 5
    assert panel.chart.selected == {"tokens": [5, 2], "depth": 2}
    panel.chart.selected = {"tokens": [5, 2], "depth": 1}
    assert panel.summary()["selected"]["block"] == 1
    assert panel.chart.selected == {"tokens": [5, 1], "depth": 1}
    panel.set(layer=2)
    panel._controls["measure"].value = "recovered"
    assert panel.summary()["selected"]["layer"] == 2
    assert panel.tokens is before


def test_another_text_keeps_the_maps_and_a_position_that_it_has(panel):
    fitted = dict(panel._fitted)
    panel.set(position=20)
    panel.set(text="zu1 the zu2 , zu3")
    assert panel._fitted == fitted
    assert panel.summary()["tokens"] == 5
    assert panel.summary()["selected"]["position"] < 5


def test_without_a_decoder_only_maps_are_shown(parts):
    model, text, _ = parts
    panel = TokenMicroscope(model, TEXT, corpus=text, tokens=1200)
    assert "recovered" not in panel.tokens
    panel.set(measure="recovered")
    assert "No prefix decoder is shipped" in panel.summary()["error"]
    assert panel.summary()["measure"] == "nonlinearity"


def test_refused_in_one_line(panel):
    for wrong in ({"measure": "size"}, {"layer": 4}, {"position": 99}, {"text": "zu1"}, {"text": 7}):
        panel.set(**wrong)
        assert "Try:" in panel.summary()["error"]
        panel.set(measure="nonlinearity", layer=1, position=2, text=TEXT)
        assert panel.summary()["error"] is None
