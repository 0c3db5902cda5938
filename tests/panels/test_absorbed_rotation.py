"""The absorb button: θ goes, logits stay, Undo brings it back."""

from __future__ import annotations

import pytest

import lens
from lens.panels.absorbed_rotation import AbsorbedRotation
from tests.models.families import build


@pytest.fixture(scope="module")
def panel():
    found = AbsorbedRotation()
    yield found
    found.wait()
    found.close()


def kinds(panel):
    return [hand["kind"] for hand in panel.chart.spec["plots"][0]["hands"]]


def test_the_button_takes_theta_away_and_leaves_the_logits(panel):
    button = panel._controls["absorbed"]
    assert (button.value, button.description) == (False, "Absorb the rotation")
    before = panel.summary()
    assert (before["angles"], kinds(panel).count("spoke")) == (64, 3)
    button.value = True
    after = panel.summary()
    assert (after["angles"], kinds(panel)) == (0, ["trace"] * 3)
    assert after["next_token"]["absorbed"] == before["next_token"]["with rotation"] != before["next_token"]["left out"]
    assert after["largest_change"]["float64"] < 1e-12
    assert "no logit changes by more than 10⁻⁴ in float32 or 10⁻¹² in float64" in after["says"]
    assert [one["name"] for one in panel.chart.spec["plots"][2]["series"]] == [
        "absorbed, float32",
        "absorbed, float64",
        "left out",
    ]
    assert "theta" not in "".join(panel.current.module.state_dict())
    button.value = False
    assert panel.summary() == before
    assert "theta" in "".join(panel.current.module.state_dict())


def test_a_sentence_of_the_readers_own_and_another_model(panel):
    panel.set(model="three-phase-n12", text="Returns the sum of all elements", absorbed=True, layer=4)
    panel.set(pair=15)
    assert panel.summary()["error"].startswith("The pair is 15. Needed: 0 to 3.")
    panel.set(pair=3)
    assert (panel.summary()["error"], panel.summary()["angles"]) == (None, 0)
    assert kinds(panel) == ["trace"] * 12


def test_a_model_without_phases_is_one_line_and_the_picture_stays(panel):
    before = panel.chart.spec
    for model, says in (("three-phase-rope-only", "no rotation to absorb"), (build("llama"), "no tokenizer")):
        panel.set(model=lens.load(model))
        assert says in panel.summary()["error"]
        assert panel.chart.spec == before
    panel.set(model="three-phase-n3")
    assert panel.summary()["error"] is None
