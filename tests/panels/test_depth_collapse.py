"""The depth panel: what it computes, shows and says."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import AutoConfig, AutoModelForCausalLM

import lens
from lens.figures.rank_collapse import PICTURES, collapse_chart
from lens.models.model import Model
from lens.panels.depth_collapse import DepthCollapse
from lens.probes.rank_collapse import rank_collapse
from tests.models.families import build

TEXT = " ".join(f"w{(11 * i) % 120}" for i in range(30))


@pytest.fixture(scope="module")
def model(tokenizer) -> Model:
    return lens.load(build("llama"), tokenizer)


@pytest.fixture
def panel(model) -> DepthCollapse:
    return DepthCollapse(model, TEXT)


def test_first_sight_is_the_probe_and_says_its_numbers(panel, model):
    wanted = rank_collapse(model, TEXT)
    assert np.array_equal(panel.collapse.residual_ratio, wanted.residual_ratio)
    summary = panel.summary()
    assert summary["error"] is None
    assert summary["layer"] == 2
    last = float(wanted.residual_ratio.sel(variant="whole", first_token="without")[-1])
    assert summary["last_layer"]["whole"] == float(f"{last:.3g}")
    assert f"At the last layer {100 * last:.0f} % of the size of the states differs" in summary["says"]
    assert "white noise" in summary["says"]
    assert panel.chart.selected == {"layers": 2}
    assert model.edits == ()


def test_every_picture_is_that_of_its_probe_and_says_so(panel):
    named = {"bands": "slow_over_white", "parts": "smoother_blocks", "patterns": "passed"}
    assert set(PICTURES) - set(named) == {"over layers"}
    for picture, fact in named.items():
        panel.set(picture=picture, layer=1, first_token="with", measure="mean_cosine")
        result = panel._shown()
        shown = {"measure": "mean_cosine", "first_token": "with", "picture": picture, "layer": 1}
        assert panel.chart.spec == collapse_chart(result.collapse, result.details[picture], **shown)
        assert fact in panel.summary()
        assert "The first token counts here" in panel.summary()["says"]


def test_a_view_is_changed_without_a_computation(panel):
    before = panel.collapse
    panel._controls["first_token"].value = "with"
    assert panel.summary()["first_token"] == "with"
    panel.chart.selected = {"layers": 3}
    assert panel.summary()["layer"] == 3
    panel.set(picture="parts")
    assert panel.chart.selected == {"layers": 3, "parts": 2}
    panel.chart.selected = {"layers": 3, "parts": 0}
    assert panel.summary()["layer"] == 1
    assert panel.collapse is before


def test_a_deep_enough_model_has_a_spectrum_over_layers(tokenizer):
    config = AutoConfig.for_model(
        "llama", vocab_size=128, hidden_size=16, intermediate_size=24, num_hidden_layers=6, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    panel = DepthCollapse(lens.load(AutoModelForCausalLM.from_config(config), tokenizer), TEXT, picture="over layers")
    assert panel.summary()["error"] is None
    assert "cycles/layer" in panel.summary()["says"]


def test_refused_in_one_line(panel):
    for wrong in (
        {"measure": "rank"}, {"first_token": "no"}, {"picture": "cake"}, {"picture": "over layers"}, {"layer": 4},
        {"text": "w1 w2"},
    ):  # fmt: skip
        panel.set(**wrong)
        assert "Try:" in panel.summary()["error"]
        panel.set(measure="residual_ratio", first_token="without", picture="bands", layer=1, text=TEXT)
        assert panel.summary()["error"] is None
