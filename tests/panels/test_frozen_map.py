"""The frozen-map panel: what it computes, shows and says."""

from __future__ import annotations

import pytest

import lens
from lens.figures.frozen_map import PICTURES, frozen_chart
from lens.models.model import Model
from lens.panels.frozen_map import FrozenMap
from lens.probes.frozen_map import frozen_contributions
from tests.models.families import build

TEXT = "w1 w5 w9 w13 w17"


@pytest.fixture(scope="module")
def model(tokenizer) -> Model:
    return lens.load(build("llama"), tokenizer)


@pytest.fixture(scope="module")
def opened(model) -> FrozenMap:
    return FrozenMap(model, TEXT)


@pytest.fixture
def panel(opened) -> FrozenMap:
    opened.set(text=TEXT, target="", rival="", centred=True, picture="layers", beside="removed")
    return opened


def test_first_sight_is_the_probe_and_says_its_numbers(panel, model):
    wanted = frozen_contributions(model, TEXT, centred=True)
    summary = panel.summary()
    assert summary["error"] is None
    assert list(summary["contributions"].values()) == pytest.approx(wanted.contribution.to_numpy(), abs=1e-3)
    assert summary["logit"] == round(float(wanted.logit), 3)
    assert sum(summary["contributions"].values()) + summary["bias"] == pytest.approx(summary["logit"], abs=0.01)
    most = max(summary["contributions"], key=summary["contributions"].get)
    needed = max(summary["lost"], key=summary["lost"].get)
    assert f"{float(wanted.logit):.2f}, is the sum of 5 contributions" in summary["says"]
    assert f"“{most}” gives most, {summary['contributions'][most]:+.2f}" in summary["says"]
    assert f"loses most, {summary['lost'][needed]:.2f}" in summary["says"]
    assert model.edits == ()
    assert model.lock.holder is None


def test_another_target_keeps_the_map(panel):
    spectrum, chosen = panel.spectrum, panel.summary()["target"]
    panel.set(target="w20", rival=chosen)
    summary = panel.summary()
    assert (summary["target"], summary["rival"]) == ("w20", chosen)
    assert "less that of" in summary["says"]
    assert summary["logit"] < 0
    assert panel.spectrum is spectrum
    panel.set(text="w2 w5 w9")
    assert panel.spectrum is not spectrum
    assert len(panel.summary()["contributions"]) == 3


def test_a_view_is_changed_without_a_computation(panel):
    before = panel.contributions
    for picture in PICTURES:
        panel._controls["picture"].value = picture
        assert panel.summary()["picture"] == picture
        wanted = frozen_chart(panel.contributions, panel.spectrum, panel.ablations, picture=picture, beside="removed")
        assert panel.chart.spec == wanted
    panel._controls["beside"].value = "gradient"
    assert panel.summary()["beside"] == "gradient"
    assert panel.contributions is before


def test_biases_are_named(tokenizer):
    panel = FrozenMap(lens.load(build("gpt2"), tokenizer), "w1 w2 w3", centred=False)
    summary = panel.summary()
    assert summary["bias"] != 0
    assert f"contributions and {summary['bias']:.2f} of biases" in summary["says"]


def test_refused_in_one_line(panel):
    for wrong in (
        {"picture": "cake"}, {"beside": "cake"}, {"target": "w1 w2"}, {"target": 5}, {"text": "w1"},
        {"target": "w4", "rival": "w4"},
    ):  # fmt: skip
        panel.set(**wrong)
        assert "Try:" in panel.summary()["error"]
        panel.set(text=TEXT, target="", rival="", picture="layers", beside="removed")
        assert panel.summary()["error"] is None
