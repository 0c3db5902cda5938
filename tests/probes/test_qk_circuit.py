"""QK forms: the model's own logits from the weights alone, at every distance, and bounds and identities of the form."""

from __future__ import annotations

import numpy as np
import pytest

from lens.base.errors import InputError
from lens.models.head_weights import HeadWeights, head_weights
from lens.models.heads import head_states
from lens.models.model import Model
from lens.probes.qk_circuit import bias_terms, qk_circuit, qk_matrix
from tests.models.families import build
from tests.models.test_head_weights import IDS, entering

FAMILIES = ("llama", "phi", "gptj", "qwen2", "gemma2", "gpt2", "glm")


@pytest.fixture(scope="module", params=FAMILIES)
def model(request) -> Model:
    """Halves and pairs, part of a head turned, biases, LayerNorms, other scales, no rotation."""
    return Model(build(request.param), name=request.param)


@pytest.fixture(scope="module")
def weights(model: Model) -> HeadWeights:
    return head_weights(model, [1])[0]


def test_the_form_gives_the_models_own_logits(model: Model, weights: HeadWeights):
    """With the terms of the biases, for states of unit length; soft caps come after."""
    (states,) = head_states(model, IDS, [1])
    unit = (entering(model, 1)["given"] - weights.norm.shift) / weights.norm.gain
    for head in (0, 3):
        wanted = states.logits(head)
        if weights.softcap is not None:
            wanted = weights.softcap * np.arctanh(wanted / weights.softcap)
        for query, key in ((0, 0), (7, 6), (11, 2)):
            a, b, c = bias_terms(weights, head, query - key)
            made = unit[query] @ qk_matrix(weights, head, query - key) @ unit[key] + unit[query] @ a + unit[key] @ b + c
            assert made == pytest.approx(wanted[query, key], abs=5e-5 * np.abs(wanted).max())


def test_at_no_distance_the_form_is_the_plain_product(weights: HeadWeights):
    found = qk_matrix(weights, 2, 0)
    plain = weights.scaling * weights.reading("query", 2) @ weights.reading("key", 2).T
    np.testing.assert_allclose(found, plain, atol=1e-14 * np.abs(plain).max() * len(plain))


@pytest.mark.parametrize("offset", [0, 1, 17])
def test_lanes_sum_to_the_form(weights: HeadWeights, offset: int):
    lanes = range(-1, len(weights.theta))
    total = sum(qk_matrix(weights, 1, offset, lane=lane) for lane in lanes)
    found = qk_matrix(weights, 1, offset)
    np.testing.assert_allclose(total, found, atol=1e-12 * np.abs(found).max())


def test_numbers_are_those_of_the_full_matrices(weights: HeadWeights):
    offsets = [0, 3, 50]
    found = qk_circuit([weights], offsets, heads=[0, 2])
    for head in (0, 2):
        for offset in offsets:
            full, here = qk_matrix(weights, head, offset), found.sel(block=1, head=head, offset=offset)
            rank = here.sizes["rank"]
            np.testing.assert_allclose(here.singular_value, np.linalg.svd(full, compute_uv=False)[:rank], rtol=1e-9, atol=1e-12)
            values = np.linalg.eigvals(full)
            values = values[np.argsort(-np.abs(values))][:rank]
            assert float(here.matching_score) == pytest.approx(values.real.sum() / np.abs(values).sum(), abs=1e-8)
            assert float(here.positive_share) == pytest.approx((values.real > 0).mean())
            symmetric = (full + full.T) / 2
            assert float(here.symmetric_share) == pytest.approx((symmetric**2).sum() / (full**2).sum(), rel=1e-9)
            assert float(here.trace) == pytest.approx(np.trace(full), abs=1e-9)
            assert float(here.trace_of_square) == pytest.approx(np.trace(full @ full), abs=1e-8)
            spectrum = np.linalg.eigvals(full)
            assert float(here.eigenvalue_mean) == pytest.approx(spectrum.mean().real, abs=1e-10)
            variance = ((spectrum - spectrum.mean()) ** 2).mean().real
            assert float(here.eigenvalue_variance) == pytest.approx(variance, abs=1e-9)
            assert float(here["size"]) == pytest.approx(np.linalg.norm(full))


def test_the_form_is_within_its_bound(weights: HeadWeights):
    """Rotation keeps the singular values of queries and of keys, and so the bound; those of the form change with distance."""
    offsets = np.arange(64)
    found = qk_circuit([weights], offsets)
    sizes, bound = found["size"].to_numpy(), found.size_bound.to_numpy()
    assert (sizes <= bound[..., None] * (1 + 1e-12)).all()
    turns = len(weights.theta) > 0
    assert (np.ptp(found.singular_value.isel(rank=0).to_numpy(), axis=-1) > 1e-6).all() == turns
    for offset in (1, 40):
        moved = weights.scaling * np.linalg.svd(weights.reading("query", 0), compute_uv=False)
        turned = qk_matrix(weights, 0, offset) @ np.linalg.pinv(weights.reading("key", 0).T)
        np.testing.assert_allclose(np.linalg.svd(turned, compute_uv=False)[: len(moved)], moved, rtol=1e-9)


def test_norms_of_queries_are_said():
    found = qk_circuit(head_weights(Model(build("qwen3")), [0]), [0])
    assert found.attrs["normed"] == "key, query"


def test_what_cannot_be_asked(tiny: Model):
    weights = head_weights(tiny, [0])
    for offsets in ([], [3, 1], np.array([0, np.inf])):
        with pytest.raises(InputError, match="offsets"):
            qk_circuit(weights, offsets)
    with pytest.raises(InputError, match="heads"):
        qk_circuit(weights, [0], heads=[4])
