"""The operator panel: operators, numbers, heads and live runs, by click and by call, on a small model."""

from __future__ import annotations

import pytest

import lens
from lens.models.heads import head_states
from lens.models.operators import OPERATORS, ReweightedSoftplus, Softmax, Uniform
from lens.panels.operator_zoo import LONGEST, OperatorZoo
from lens.probes.attention_what_if import attention_what_if_text
from lens.probes.operator_zoo import operator_zoo
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
def panel(model) -> OperatorZoo:
    return OperatorZoo(model, TEXT)


def shared(panel, name):
    """The cell that is marked in a small map."""
    return [round(place) for place in panel.maps.selected[f"map {name}"]]


def test_first_sight_has_a_pattern_all_maps_and_a_live_run(panel, model, states):
    found = panel.summary()
    assert (found["operator"], found["parameter"], found["error"]) == ("softmax", 2.0, None)
    expected = operator_zoo(states[found["block"]], found["head"], {"x": Softmax(2.0)})
    assert found["measures"]["mean_entropy"] == round(float(expected.mean_entropy[0]), 3)
    live = attention_what_if_text(model, model.encode(TEXT), Softmax(2.0), found["block"], found["head"])
    assert found["losses"] == {
        "softmax, temperature 2": {str(s): round(float(live.loss.sel(scope=s)), 3) for s in live.scope.values}
    }
    assert f"{found['losses'][found['label']]['all blocks']:.2f} nats a token" in found["says"]
    assert [plot["name"] for plot in panel.chart.spec["plots"]] == ["cells", "scree", "losses"]
    assert len(panel.maps.spec["plots"]) == len(OPERATORS) == panel.zoo.sizes["operator"]
    query, key = found["cell"]
    assert panel.chart.selected == {"cells": [key, query]}
    assert all(shared(panel, name) == [key, query] for name in OPERATORS)


def test_a_number_answers_without_the_model(panel, model, states):
    gate = Gate(model)
    try:
        panel.set(block=2, head=1, operator="re-weighted softplus", parameter=15.0, measure="stable_rank")
        found = panel.summary()
        assert gate.prompts == []
    finally:
        gate.remove()
    expected = operator_zoo(states[2], 1, {"x": ReweightedSoftplus(15.0)})
    assert found["measures"]["effective_rank"] == round(float(expected.effective_rank[0]), 3)
    assert found["label"] == "re-weighted softplus, power 15"
    assert "has not been tried" in found["says"]
    assert panel.chart.spec["plots"][2]["x"]["labels"] == ["re-weighted softplus, power 15: not tried"]
    assert panel._controls["parameter"].value == 15.0
    assert panel._controls["parameter"].description == "power"


def test_trying_it_runs_the_live_model_and_gives_it_back(panel, model):
    before = model.fingerprint
    panel.set(operator="uniform")
    panel.run()
    found = panel.summary()
    live = attention_what_if_text(model, model.encode(TEXT), Uniform(), found["block"], found["head"])
    assert found["losses"]["uniform"]["this block"] == round(float(live.loss.sel(scope="this block")), 3)
    assert list(found["losses"]) == ["softmax, temperature 2", "uniform"]
    assert model.fingerprint == before
    assert model.edits == ()
    panel.set(head=0)
    assert panel.summary()["losses"] == {}
    panel.set(head=found["head"])
    assert panel.summary()["losses"] == found["losses"]  # runs are kept


def test_a_live_run_can_be_cancelled_and_leaves_the_model_as_it_was(panel, model):
    before = panel.summary()
    panel.set(operator="identity")
    gate = Gate(model)
    try:
        gate.shut()
        panel.post(try_live=True)
        gate.wait_until_reached()
        assert panel.chart.selected  # the old picture stays
        panel.cancel()
        gate.open()
        panel.wait()
    finally:
        gate.remove()
    found = panel.summary()
    assert "Cancelled" in found["error"]
    assert found["losses"] == before["losses"]
    assert model.edits == ()


def test_another_operator_comes_with_its_own_number(panel):
    panel.set(operator="low rank, masked")
    assert panel.summary()["parameter"] == 8
    assert panel._controls["parameter"].layout.display == ""
    panel.set(operator="alibi")
    assert panel.summary()["parameter"] is None
    assert panel._controls["parameter"].layout.display == "none"
    panel.set(operator="softmax")
    assert panel.summary()["label"] == "softmax"


def test_an_operator_that_looks_ahead_is_not_run(panel):
    panel.set(operator="low rank", parameter=2)
    assert "rows that sum to" in panel.summary()["says"]
    panel.run()
    assert "later keys" in panel.summary()["error"]
    assert list(panel.summary()["losses"]) == ["softmax, temperature 2"]


def test_a_click_on_a_small_map_chooses_operator_and_pair(panel):
    panel.maps.selected = {**panel.maps.selected, "map previous token": [2, 3]}
    panel.wait()
    found = panel.summary()
    assert (found["operator"], found["cell"]) == ("previous token", (3, 2))
    assert (found["query"], found["key"], found["weight"]) == ("w4", "w3", 1)
    assert panel.chart.selected == {"cells": [2, 3]}
    assert shared(panel, "softmax") == [2, 3]
    panel.maps.selected = {**panel.maps.selected, "map identity": [2, 3]}  # the cell that is marked already
    panel.wait()
    assert (panel.summary()["operator"], panel.summary()["cell"]) == ("identity", (3, 2))
    panel.chart.selected = {"cells": [0, 5]}
    panel.wait()
    assert panel.summary()["cell"] == (5, 0)


def test_another_text_is_tried_anew(panel):
    panel.set(text="w1 w1 w2 w2 w3")
    found = panel.summary()
    assert found["tokens"] == 5
    assert list(found["losses"]) == ["softmax, temperature 2"]
    assert len(panel.chart.spec["plots"][0]["values"]) == 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"text": "w1"}, f"3 to {LONGEST}"),
        ({"text": 3}, "a str"),
        ({"operator": "magic"}, "softmax"),
        ({"block": 9}, "0 to 2"),
        ({"head": "0"}, "0 to 3"),
        ({"measure": "beauty"}, "mean_entropy"),
        ({"cell": (9, 0)}, "0 to 7"),
        ({"operator": "softmax", "parameter": -1.0}, "above zero"),
    ],
)
def test_what_does_not_fit_is_one_line(panel, change, words):
    before = panel.summary()
    panel.set(**change)
    found = panel.summary()
    assert words in found["error"]
    assert {**found, "error": None} == before
