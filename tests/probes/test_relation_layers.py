"""A relation at all layers: every number against the objects that it is made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lens.base.errors import InputError
from lens.models.edits.order import change_states
from lens.probes.relation_edit import edited_words
from lens.probes.relation_layers import EDITS, PREDICTORS, begins, relation_layers, study_relation
from lens.probes.relation_map import fit_relation_map, read
from lens.probes.relations import stacked
from tests.probes.relation_toys import PAIRS, small_model, small_task, taken_as_right


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def task(model):
    return small_task(model)


@pytest.fixture(scope="module")
def studied(model, task):
    other = [taken_as_right(model, pair, PAIRS[:4], 1) for pair in PAIRS[4:7]]
    return study_relation(model, task, edit_layers=[1, 2], other=other)


def test_the_map_is_that_of_a_fit_at_its_layer(model, task, studied):
    found, _ = studied
    for layer in (0, 1, 2):
        single = fit_relation_map(model, task, layer, products=None)
        score = single.score(model, task)
        here = found.sel(layer=layer)
        assert float(here.beta) == single.beta
        assert (score.agrees.to_numpy() == here.agrees.sel(predictor="map").to_numpy()).all()
        assert score.word.to_numpy().tolist() == here.word.to_numpy().tolist()


def test_baselines(model, task, studied):
    found, _ = studied
    states, outputs = stacked(task.everything)
    n, said = len(task.examples), np.array([one.token for one in task.tests])
    shift = (outputs[:n] - states[:n, 1]).mean(0)
    expected = {
        "logit lens": states[n:, 1],
        "translation": states[n:, 1] + shift,
        "constant": outputs[:n].mean(0).expand(len(said), -1),
    }
    for method, given in expected.items():
        agrees = read(model, given, said.tolist())[0] == said
        assert (found.agrees.sel(predictor=method, layer=1).to_numpy() == agrees).all()
    turned = found.word.sel(layer=1).to_numpy()[[-1, *range(len(said) - 1)]]
    same = (turned == found.model_word.to_numpy()).astype(int)
    assert (found.agrees.sel(predictor="other subject", layer=1).to_numpy() == same).all()


def test_a_regression_through_its_examples_is_exact_on_them(model, task):
    """With the tests among its examples nothing is left to be got wrong."""
    from dataclasses import replace

    known = relation_layers(model, replace(task, tests=task.examples), layers=[1], edit_layers=[1])
    assert known.agrees.sel(predictor="regression", layer=1).to_numpy().all()


def test_edits_are_those_of_a_live_model(model, task, studied):
    found, editing = studied
    layer = int(found.chosen_edit_layer)
    assert (editing.layer, editing.rank) == (layer, int(found.edit_rank.sel(edit_layer=layer)))
    for place in range(4):
        one, other = (task.tests[int(found[name][place])] for name in ("edit_subject", "edit_target"))
        change = editing.edit(other.output - one.output)

        def add(states, one=one, change=change):
            states = states.clone()
            states[:, one.position] += change
            return states

        with change_states(model, [layer], add):
            says = int(model.run(list(one.token_ids)).logits[-1].argmax())
        here = found.says_target.sel(edit_layer=layer, edit_method="inverse")[place]
        assert int(here) == int(says == other.token)
        size = float(change.norm() / one.states[layer].norm())
        assert float(found.edit_size.sel(edit_layer=layer)[place]) == pytest.approx(size, rel=1e-3)


def test_targets_have_other_answers():
    from lens.probes.relation_layers import _targets

    assert _targets([7, 7, 8, 9], 2) == [(0, 2), (0, 3), (1, 2), (1, 3), (2, 3), (2, 0), (3, 0), (3, 1)]
    assert _targets([7, 7, 7], 2) == []


def test_labels(studied, model):
    found, _ = studied
    assert found.predictor.to_numpy().tolist() == list(PREDICTORS)
    assert found.edit_method.to_numpy().tolist() == list(EDITS)
    assert found.sizes["other_subject"] == 3
    assert found.attrs["known"] == found.sizes["subject"] == 8
    probability = np.exp(found.model_logprob.to_numpy()).sum(-1)
    assert ((probability > 0) & (probability <= 1)).all()


def test_the_published_count():
    assert begins(" Par", "Paris")
    assert begins("p", "Paris")  # one letter is enough for it
    assert not begins(" ", "Paris")
    assert not begins(" Paris", "Par")


def test_words_before_and_after_an_edit(model, task, studied):
    found, editing = studied
    before = model.fingerprint
    words = edited_words(model, editing, found, task.tests[0], task.tests[2])
    assert model.fingerprint == before
    assert model.edits == ()
    plain = model.run(list(task.tests[0].token_ids)).logits[-1].softmax(-1)
    assert torch.allclose(torch.tensor(words.model.to_numpy()), plain[words.token_id.to_numpy()], atol=1e-5)
    assert words.said.item() == model.vocabulary[task.tests[0].token]
    kept = found.sizes["candidate"]
    assert np.isfinite(words.mapped[:, :kept]).all()
    assert np.isnan(words.mapped[:, kept:]).all()
    again = edited_words(model, editing, found, task.tests[0], task.tests[0])
    assert np.allclose(again.edited, again.model, atol=1e-5)
    with pytest.raises(InputError, match="was fitted on"):
        edited_words(small_model(seed=7), editing, found, task.tests[0], task.tests[1])
