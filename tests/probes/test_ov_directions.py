"""Singular vectors of OV circuits over the vocabulary, against the full matrix."""

from __future__ import annotations

import numpy as np
import pytest

from lens.base.errors import InputError
from lens.models.head_weights import head_weights
from lens.models.model import Model
from lens.models.vocabulary_maps import vocabulary_maps
from lens.probes.ov_circuit import ov_circuit, ov_matrix
from lens.probes.ov_directions import ov_directions
from tests.models.families import build
from tests.probes.test_ov_circuit import ends


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request, tokenizer) -> Model:
    return Model(build(request.param), tokenizer, name=request.param)


def test_vectors_are_those_of_the_full_matrix(model: Model):
    weights, vocabulary = head_weights(model, [1, 2]), vocabulary_maps(model)
    found = ov_directions(model, weights[0], 3, vocabulary, vectors=3, top_k=4)
    embedding, unembedding = ends(vocabulary)
    left, singular, right = np.linalg.svd(embedding @ ov_matrix(weights[0], 3) @ unembedding)
    np.testing.assert_allclose(found.singular_value, singular[:3], rtol=1e-5)
    np.testing.assert_allclose(found.share, singular[:3] ** 2 / (singular**2).sum(), rtol=1e-5)
    spectrum = ov_circuit(weights, vocabulary).sel(circuit="vocabulary", block=1, head=3)
    np.testing.assert_allclose(found.singular_value, spectrum.singular_value[:3], rtol=1e-5)
    for vector in range(3):
        sign = 1 if left[:, vector].max() >= -left[:, vector].min() else -1
        for end, full in (("attended", sign * left[:, vector]), ("raised", sign * right[vector])):
            for pole, order in (("+", np.argsort(-full)[:4]), ("−", np.argsort(full)[:4])):
                here = found.isel(vector=vector).sel(end=end, pole=pole)
                np.testing.assert_array_equal(here.token_id, order)
                np.testing.assert_allclose(here.entry, full[order], atol=1e-5)
                assert list(here.token.to_numpy()) == [model.vocabulary[token] for token in order]


def test_what_cannot_be_asked(model: Model):
    weights, vocabulary = head_weights(model, [0]), vocabulary_maps(model)
    for wrong in ({"vectors": 9}, {"vectors": 0}, {"top_k": 1000}):
        with pytest.raises(InputError, match="vectors of"):
            ov_directions(model, weights[0], 0, vocabulary, **wrong)
