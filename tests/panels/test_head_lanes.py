"""The lane panel: heads, cells and bases by click and by call, on a small model."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as token_models
from transformers import PreTrainedTokenizerFast

import lens
from lens.figures.head_lanes import SIDE
from lens.models.frequencies import rope_table
from lens.models.heads import head_states
from lens.panels.head_lanes import HeadLanes
from lens.probes.lanes import lane_logits
from lens.probes.positional_kernel import counterfactual, positional_scores
from tests.models.families import build
from tests.panels.conftest import Gate

TEXT = "w1 w2 w3 w4 w5 w6 w7 w8"


@pytest.fixture(scope="module")
def model(tokenizer):
    return lens.load(build("llama"), tokenizer)


@pytest.fixture(scope="module")
def states(model):
    return head_states(model, model.encode(TEXT))


@pytest.fixture
def panel(model) -> HeadLanes:
    return HeadLanes(model, TEXT)


def test_first_sight_is_the_head_that_looks_back_most(panel, states):
    found = panel.summary()
    scores = positional_scores(states).previous_token.to_numpy()
    assert scores[found["block"], found["head"]] == scores.max()
    assert found["previous_token"] == found["previous_token_live"] == round(float(scores.max()), 3)
    assert found["error"] is None
    assert panel.chart.selected == {"heads": [found["head"], found["block"]], "cells": list(found["cell"][::-1])}
    pattern = states[found["block"]].pattern(found["head"])[2:, 1:]
    assert found["attention"] == round(float(pattern.max()), 3)
    assert [plot["name"] for plot in panel.chart.spec["plots"]] == ["heads", "cells", "lanes"]


def test_what_it_says_are_the_probes_numbers(panel, states):
    panel.set(block=2, head=1, cell=(6, 3))
    found, lanes = panel.summary(), lane_logits(states[2], 1, [(6, 3)], context=64)
    assert found["logit"] == round(float(lanes.logit[0]), 3)
    assert sum(found["logit_by_band"].values()) == pytest.approx(found["logit"], abs=2e-3)
    assert (found["query"], found["key"]) == ("w7", "w4")
    assert f"From “w7” to “w4” the logit is {found['logit']:.2f}".replace("-", "−") in found["says"]
    assert "no forward pass" not in found["says"]


def test_another_base_changes_this_block_alone_without_a_forward_pass(panel, model, states):
    gate = Gate(model)
    try:
        panel.set(block=1, head=0, cell=(5, 2), base=37.0)
        found = panel.summary()
        assert gate.prompts == []
    finally:
        gate.remove()
    theta = rope_table("default", 37.0, 8).theta
    expected = counterfactual(states[1], 0, theta)
    assert found["attention"] == round(float(expected.attention[5, 2]), 3)
    assert found["live_base"] == 10_000
    assert "base 37 instead of 10,000 in this block alone, its inputs unchanged" in found["says"]
    shown = panel.chart.spec["plots"][1]["values"][5]
    assert shown[:6] == pytest.approx(expected.attention[5, :6].to_numpy(), rel=1e-3)
    slider = panel._controls["base"]
    assert slider.value == 37.0
    panel.set(base=None)
    assert panel.summary()["base"] == 10_000
    assert dict(slider.options)["10,000 (live)"] == slider.value == 10_000


def test_clicks_choose_heads_and_cells(panel):
    panel.set(cell=(4, 2))
    panel.chart.selected = {**panel.chart.selected, "heads": [3, 1]}
    found = panel.summary()
    assert (found["block"], found["head"], found["cell"]) == (1, 3, (4, 2))
    panel.chart.selected = {**panel.chart.selected, "cells": [1, 7]}
    assert panel.summary()["cell"] == (7, 1)
    assert panel.chart.selected == {"heads": [3, 1], "cells": [1, 7]}


def test_controls_and_calls_show_the_same(panel):
    panel.set(picture="kernel", values="logit", score="previous_token", base=500.0)
    score, values, picture, base, start = panel.children[1].children
    assert (score.value, values.value, picture.value, base.value) == ("previous_token", "logit", "kernel", 500.0)
    assert start.layout.display == "none"
    assert [plot["name"] for plot in panel.chart.spec["plots"]] == ["heads", "cells", "kernel"]
    assert len(panel.chart.spec["plots"][2]["series"]) == 3  # the live kernel beside it
    picture.value = "offsets"
    assert panel.summary()["picture"] == "offsets"


def test_another_text_keeps_the_head_and_finds_its_strongest_cell(panel):
    panel.set(block=0, head=2, cell=(7, 7))
    panel.set(text="w9 w8 w7 w6 w5")
    found = panel.summary()
    assert (found["block"], found["head"], found["tokens"]) == (0, 2, 5)
    query, key = found["cell"]
    assert 1 <= key <= query <= 4


def test_of_a_longer_text_a_stretch_is_shown_and_said(tokenizer):
    module = build("llama")
    module.config.max_position_embeddings = 256
    panel = HeadLanes(lens.load(module, tokenizer), " ".join(f"w{n % 100}" for n in range(130)), cell=(5, 4))
    found = panel.summary()
    assert (found["start"], found["tokens"]) == (0, 130)
    assert found["says"].endswith("The map shows 100 of 130 tokens, from token 0.")
    assert len(panel.chart.spec["plots"][1]["values"]) == SIDE
    panel.set(cell=(129, 128))
    assert panel.summary()["start"] == 30
    assert panel.chart.selected["cells"] == [128, 129]
    panel.set(start=3)
    assert "cells" not in panel.chart.selected
    start = panel._controls["start"]
    assert (start.layout.display, start.max, start.value) == ("", 30, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": 3}, "Block 3, head"),
        ({"head": 4}, "head 4"),
        ({"cell": (2, 5)}, r"The cell is (2, 5)"),
        ({"score": "size"}, "The score is 'size'"),
        ({"values": "x"}, "The values is 'x'"),
        ({"picture": "pie"}, "The picture is 'pie'"),
        ({"base": 0.5}, "The base is 0.5"),
        ({"start": 4}, "The first token shown is 4"),
        ({"text": "w1 w2"}, "The text has 2 tokens"),
        ({"text": ""}, "The text is empty"),
    ],
)
def test_refusals_are_one_line_and_the_picture_stays(panel, changes, message):
    before = panel.chart.spec
    panel.set(**changes)
    assert message in panel.summary()["error"]
    assert panel.chart.spec == before


def test_a_model_that_rotates_nothing_is_refused_in_one_line(tokenizer):
    panel = HeadLanes(lens.load(build("gpt2"), tokenizer), TEXT)
    assert set(panel.summary()) == {"error"}
    assert panel.error


def test_the_newest_text_wins_and_cancel_keeps_the_old_picture(panel, model):
    gate = Gate(model)
    try:
        gate.shut()
        panel.post(text="w5 w6 w7 w8")
        gate.wait_until_reached()
        panel.post(text="w1 w1 w1 w2 w3")
        gate.open()
        assert panel.summary()["tokens"] == 5
        before = panel.chart.spec
        gate.shut()
        panel.post(text="w2 w2 w2")
        gate.wait_until_reached()
        panel.cancel()
        gate.open()
        assert "Cancelled" in panel.summary()["error"]
        assert panel.chart.spec == before
    finally:
        gate.remove()


def test_tables_of_several_layer_types_have_each_their_live_base(tokenizer):
    panel = HeadLanes(lens.load(build("gemma3"), tokenizer), TEXT, block=0, head=0)
    bases = set()
    for block in panel.usage.block.to_numpy().tolist():
        panel.set(block=block)
        found = panel.summary()
        assert found["base"] == found["live_base"]
        assert found["previous_token"] == found["previous_token_live"]
        bases.add(found["live_base"])
    assert np.isfinite(list(bases)).all()


def test_hostile_tokens_stay_text():
    words = {"<script>alert(1)</script>": 0, "<unk>": 1, "w": 2}
    raw = Tokenizer(token_models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    panel = HeadLanes(
        lens.load(build("llama"), PreTrainedTokenizerFast(tokenizer_object=raw)), f"w w {next(iter(words))} w", cell=(2, 2)
    )
    assert panel.summary()["query"] == "<script>alert(1)</script>"
    assert "&lt;script&gt;" in panel._says.value
    assert "<script" not in panel._says.value


@pytest.mark.parametrize("family", ["gptj", "gemma2", "smollm3", "gemma4", "gpt-oss"])
def test_families_with_other_layouts_windows_caps_and_still_blocks_are_shown(family, tokenizer):
    """At the live base every head's map is the attention that the model gives."""
    model = lens.load(build(family), tokenizer)
    panel = HeadLanes(model, TEXT)
    attention = model.run(TEXT, attention=True).attention
    for picture in ("cell", "offsets", "kernel"):
        panel.set(picture=picture)
        found = panel.summary()
        assert found["error"] is None
    shown = np.array(panel.chart.spec["plots"][1]["values"], dtype=float)
    expected = attention[found["block"], found["head"]].numpy()
    assert np.nanmax(np.abs(shown - expected)) < 1e-3  # four digits reach the browser
