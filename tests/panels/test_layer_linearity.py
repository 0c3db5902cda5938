"""The linearity panel: masks are gathered once, the rest is arithmetic, and a click shows a block's ladder."""

from __future__ import annotations

import ipywidgets as widgets
import pytest

import lens
from lens.base.errors import InputError
from lens.collect import collect_moments
from lens.figures.layer_linearity import linearity_chart
from lens.panels import LayerLinearity
from lens.probes.procrustes import procrustes
from tests.collect.passes import made_up
from tests.models.families import build, word_tokenizer
from tests.panels.conftest import Gate

TOKENS = 1500
TEXTS = made_up()


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def model(cache):
    return lens.load(build("llama"), word_tokenizer())


@pytest.fixture
def panel(model) -> LayerLinearity:
    return LayerLinearity(model, TEXTS, tokens=TOKENS)


def moments(model, mask):
    pairs = "overview" if mask == "robust" else "adjacent"
    return collect_moments(model, TEXTS, tokens=TOKENS, pairs=pairs, mask=mask, window=64)


@pytest.mark.parametrize("mask", ["robust", "first", "none"])
def test_scores_and_picture_are_those_of_the_probes(model, mask):
    panel = LayerLinearity(model, TEXTS, tokens=TOKENS, mask=mask, block=2)
    parts = moments(model, mask)
    assert panel.linearity.identical(lens.linearity(parts.train, parts.test))
    ladder = procrustes(parts.train, parts.test, pairs=[(2, 3)], subspaces=(None,))
    assert panel.chart.spec == linearity_chart(panel.linearity, lens.noise_floor(parts.train, parts.test), ladder)
    assert panel.chart.selected == {"block": 2}
    assert panel.summary()["mask"] == mask


def test_the_summary_is_plain_rounded_data(panel, model):
    summary, scores = panel.summary(), panel.linearity
    assert (summary["block"], summary["scored"], summary["error"]) == (1, "held out", None)
    assert summary["tokens_fitted"] == moments(model, "robust").train.count
    assert summary["median"]["score_update"] == round(float(scores.score_update.median()), 3)
    assert summary["of_block"]["update_norm"] == round(float(scores.update_norm.sel(block=1)), 3)
    assert list(summary["ladder"]) == ["identity", "shift", "scale", "rotation", "linear"]
    assert summary["ladder"]["linear"] == pytest.approx(summary["of_block"]["score"], abs=1e-3)
    assert summary["shuffled_r2"] < 0 < summary["shuffled_r2_in_sample"]


def test_the_line_says_how_much_is_the_stream_and_how_much_the_fit(panel):
    scores, says = panel.linearity, panel.summary()["says"]
    own, stays = float(scores.score_update.median()), 1 - float(scores.update_energy.median())
    assert f"{100 * own:.0f} % of what it adds itself" in says
    assert f"already explains {100 * stays:.0f} %" in says
    assert f"{100 * float(scores.score_update_in_sample.median()):.0f} %. Block 1" in says
    assert "Massive" not in says
    panel.set(mask="none")
    assert panel.summary()["says"].endswith("Massive states are among the tokens.")


def test_a_click_on_a_block_shows_its_ladder(panel):
    before = panel.chart.spec
    panel.chart.selected = {"block": 0}
    summary = panel.summary()
    assert summary["block"] == 0
    assert panel.chart.spec["plots"][1]["title"] == "block 0, layer 0 to 1"
    assert panel.chart.spec["plots"][0] == before["plots"][0]


def test_scored_and_block_run_no_model_and_a_mask_runs_it_once(model):
    text = made_up(seed=5)
    gate = Gate(model)
    try:
        panel = LayerLinearity(model, text, tokens=TOKENS)
        gate.blocks_run.clear()
        panel.set(scored="in sample", block=0)
        assert gate.blocks_run == []
        panel.set(mask="none")
        assert gate.blocks_run
        gate.blocks_run.clear()
        panel.set(mask="robust")
        panel.set(mask="none")
        assert gate.blocks_run == []
    finally:
        gate.remove()


def test_going_to_and_fro_between_masks_solves_nothing_again(panel):
    first = panel.linearity
    panel.set(mask="none")
    assert panel.linearity is not first
    panel.set(mask="robust")
    assert panel.linearity is first


def test_controls_follow_the_settings(panel):
    panel.set(mask="none", scored="in sample", block=2)
    top, controls = panel.children[:2]
    mask, scored, block = controls.children
    assert isinstance(block, widgets.SelectionSlider)
    assert (mask.value, scored.value, block.value) == ("none", "in sample", 2)
    assert block.options == (0, 1, 2)
    assert [one.value for one in top.children[:2]] == [panel._settings["model"], TEXTS]
    scored.value = "held out"
    assert panel.summary()["scored"] == "held out"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": 9}, "The block is 9"),
        ({"scored": "both"}, "The score is 'both'"),
        ({"mask": "robot"}, "The mask is 'robot'"),
        ({"tokens": 20}, "Windows of 64 and 20 tokens"),
    ],
)
def test_refusals_are_one_line_and_the_picture_stays(panel, changes, message):
    before = panel.chart.spec
    panel.set(**changes)
    assert message in panel.summary()["error"]
    assert panel.chart.spec == before


def test_unknown_settings_are_refused(panel):
    with pytest.raises(InputError, match="no setting"):
        panel.set(layer=2)


def test_texts_that_are_too_short_are_one_line_until_others_are_chosen(model):
    panel = LayerLinearity(model, made_up(documents=12, longest=12), tokens=TOKENS)
    assert set(panel.summary()) == {"error"}
    assert "gives no tokens" in panel.summary()["error"]
    panel.set(corpus=TEXTS)
    assert panel.summary()["error"] is None


def test_cancel_during_a_pass_keeps_the_old_picture(model):
    panel = LayerLinearity(model, made_up(seed=6), tokens=TOKENS)
    before = panel.chart.spec
    gate = Gate(model)
    try:
        gate.shut()
        panel.post(mask="first")
        gate.wait_until_reached()
        panel.cancel()
        gate.open()
        assert "Cancelled" in panel.summary()["error"]
        assert panel.summary()["mask"] == "robust"
        assert panel.chart.spec == before
    finally:
        gate.remove()
    panel.set(block=0)
    assert panel.summary()["block"] == 0


def test_names_of_texts_are_text(model):
    """Documents of the training part alone leave the others empty, and the line that says so names the text."""
    hostile = lens.corpora.Corpus("<script>alert(1)</script> $x$", [document.text for document in TEXTS.part("train")])
    panel = LayerLinearity(model, hostile, tokens=TOKENS)
    assert "&lt;script&gt;alert(1)" in panel._line.value
    assert "<script>" not in panel._says.value + panel._line.value + panel._chip.value
    assert "<script>alert(1)</script> $x$" in repr(panel)
