"""The relation panel on SmolLM2: the shipped record, and answers that are changed in the live model."""

from __future__ import annotations

import pytest

import lens
from lens.base.text import visible
from lens.panels.relations import Relations
from lens.probes.relation_record import relation_record, shipped_relation


@pytest.fixture(scope="module")
def model():
    return lens.load("smollm2-135m")


@pytest.fixture(scope="module")
def panel(model):
    return Relations(model)


def test_first_sight(panel, model):
    found = panel.summary()
    assert found["error"] is None
    assert found["relation"] == "country: capital"
    assert found["layer"] == found["chosen_layer"] == int(panel.study.chosen_layer)
    assert found["model_says"] != found["edited_says"] == found["target_says"]
    assert found["says"].count(". ") == 1
    assert model.edits == ()


def test_another_target_is_another_answer(panel, model):
    before = model.fingerprint
    panel.set(subject="Germany", target="Greece")
    found = panel.summary()
    assert (found["subject"], found["model_says"]) == ("Germany", "·Berlin")
    assert found["target_says"] == "·Athens"
    assert model.fingerprint == before


def test_a_layer_is_chosen_by_slider_and_click(panel):
    panel.set(layer=3)
    assert panel.summary()["layer"] == 3
    panel.chart.selected = {"layers": 21}
    assert panel.summary()["layer"] == 21


def test_refusals_keep_the_picture(panel):
    panel.set(subject="Atlantis")
    assert "Atlantis" in panel.summary()["error"]
    panel.set(subject="Germany")
    assert panel.summary()["error"] is None
    panel.set(layer=99)
    assert "layer is 99" in panel.summary()["error"]
    panel.set(layer=9)
    assert panel.summary()["error"] is None
    assert panel.summary()["layer"] == 9


def test_the_model_is_asked_as_it_was_for_the_record(panel):
    """Also where some of the pairs that are shown are no examples."""
    panel.set(relation="thing: colour", subject=None, target=None)
    study, found = panel.study, panel.summary()
    assert len(study.attrs["shown_subjects"].split(", ")) > study.attrs["examples"]
    assert found["error"] is None
    words = [visible(str(one)) for one in study.model_word.to_numpy()]
    subjects = study.subject_text.to_numpy().tolist()
    assert found["model_says"] == words[subjects.index(found["subject"])]


def test_a_record_belongs_to_its_model(model):
    assert shipped_relation(model, "country: capital") is not None
    assert set(relation_record()) <= set(lens.relations())
