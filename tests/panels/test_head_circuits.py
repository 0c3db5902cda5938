"""The circuit panel: heads, circuits, words and distances by click and by call, on a small model."""

from __future__ import annotations

import numpy as np
import pytest

import lens
from lens.models.head_weights import head_weights
from lens.models.model import Model
from lens.models.vocabulary_maps import vocabulary_maps
from lens.panels.head_circuits import HeadCircuits
from lens.probes.copying_behaviour import copying_behaviour, rank_correlation
from lens.probes.ov_circuit import ov_circuit
from lens.probes.ov_directions import ov_directions
from lens.probes.qk_circuit import qk_circuit
from lens.probes.random_tokens import repeated_tokens
from tests.models.families import build

TEXT = "w1 w2 w3 w4 w2 w3 w7 w8"


@pytest.fixture(scope="module")
def model(tokenizer) -> Model:
    return lens.load(build("llama"), tokenizer)


@pytest.fixture(scope="module")
def opened(model) -> HeadCircuits:
    return HeadCircuits(model)


@pytest.fixture
def panel(opened) -> HeadCircuits:
    view = {"measure": "vocabulary", "circuit": "vocabulary", "picture": "eigenvalues", "vector": "1 +", "offset": 1}
    opened.set(text="", block=None, head=None, **view)
    return opened


def test_first_sight_is_a_head_that_does_not_do_what_its_score_says(panel, model):
    found = panel.summary()
    assert found["error"] is None
    weights, vocabulary = head_weights(model), vocabulary_maps(model)
    drawn = [repeated_tokens(model, 32, seed=draw) for draw in range(2)]
    measured = copying_behaviour(model, drawn, weights, vocabulary).mean("document")
    score = ov_circuit(weights, vocabulary).copying_score.sel(circuit="vocabulary")
    place = {"block": found["block"], "head": found["head"]}
    assert found["copying"] == pytest.approx(float(measured.copying.sel(place)), abs=1e-3)
    assert found["vocabulary"] == pytest.approx(float(score.sel(place)), abs=1e-3)
    assert found["copying"] * found["vocabulary"] < 0
    assert found["rank_correlation"]["vocabulary"] == round(rank_correlation(score, measured.copying), 3)
    assert "against its score" in found["says"]
    assert panel.chart.selected == {"heads": [place["head"], place["block"]], "behaviour": f"{place['block']}.{place['head']}"}


def test_the_readers_own_text(panel, model):
    panel.set(text=TEXT, block=1, head=2)
    found = panel.summary()
    measured = copying_behaviour(model, [model.encode(TEXT)], head_weights(model), vocabulary_maps(model))
    assert found["copying"] == pytest.approx(float(measured.copying.sel(document=0, block=1, head=2)), abs=1e-3)
    assert "in this text" in found["says"]
    assert float(panel.heads.induction.sel(block=1, head=2)) == pytest.approx(found["induction"], abs=1e-3)


def test_clicks_in_the_map_and_on_a_dot(panel):
    panel.set(block=0, head=0)
    panel.chart.selected = {**panel.chart.selected, "heads": [3, 2]}
    assert (panel.summary()["block"], panel.summary()["head"]) == (2, 3)
    panel.chart.selected = {**panel.chart.selected, "behaviour": "1.0"}
    assert (panel.summary()["block"], panel.summary()["head"]) == (1, 0)
    assert panel.chart.selected["heads"] == [0, 1]


def test_distances(panel, model):
    panel.set(picture="distance", block=1, head=1, offset=5)
    found = panel.summary()
    wanted = qk_circuit(head_weights(model, [1]), [5], heads=[1]).isel(block=0, head=0, offset=0)
    assert found["qk"]["matching_score"] == pytest.approx(float(wanted.matching_score), abs=1e-3)
    assert panel._controls["offset"].layout.display == ""
    assert [name for name, control in panel._controls.items() if control.layout.display == "none"] == ["vector"]
    panel.chart.selected = {**panel.chart.selected, "distance": 9}
    assert panel.summary()["offset"] == panel._controls["offset"].value == 9
    assert "9 tokens apart" in panel.summary()["says"]
    panel._controls["offset"].value = 1
    assert "1 token apart" in panel.summary()["says"]


def test_words(panel, model):
    panel.set(picture="words", block=2, head=0, vector="2 −")
    found = panel.summary()
    words = ov_directions(model, head_weights(model, [2])[0], 0, vocabulary_maps(model))
    assert found["words"]["raised"] == list(words.token.sel(vector=2, pole="−", end="raised").to_numpy())
    assert f"“{found['words']['attended'][0]}”" in found["says"]


def test_circuits_and_measures(panel):
    for circuit in ("residual", "arriving"):
        panel.set(circuit=circuit, measure="matching", picture="singular values")
        seen = float(panel.circuits.seen.sel(circuit=circuit, block=panel.summary()["block"], head=panel.summary()["head"]))
        assert panel.summary()["seen"] == round(seen, 3)
    np.testing.assert_allclose(panel.chart.spec["plots"][0]["values"], panel.heads.matching, rtol=1e-3)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"block": 9}, "Block 9"),
        ({"measure": "colour"}, "measure"),
        ({"offset": 65}, "distance is 65"),
        ({"vector": "4 +"}, "vector"),
        ({"text": 3}, "int"),
    ],
)
def test_what_cannot_be_shown_is_one_line(panel, wrong, words):
    before = panel.chart.spec
    panel.set(**wrong)
    assert words in panel.summary()["error"]
    assert panel.chart.spec == before
    panel.set(text="", block=0, head=0, measure="vocabulary", offset=1, vector="1 +")
    assert panel.summary()["error"] is None


def test_another_model_brings_its_own_heads(panel, tokenizer):
    panel.set(block=2, head=3)
    other = lens.load(build("gpt2"), tokenizer)
    panel.set(model=other)
    found = panel.summary()
    assert found["model"] == other.name
    assert found["error"] is None
    panel.set(model=lens.load(build("deepseek-v2"), tokenizer))
    assert "has a query that none of" in panel.summary()["error"]
