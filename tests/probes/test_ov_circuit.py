"""OV circuits: exact scores of matrices that are known, small matrices for large ones, and a model's own circuits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lens.base.errors import Cancelled, InputError, UnsupportedModelError
from lens.models.head_weights import HeadWeights, head_weights
from lens.models.model import Model
from lens.models.vocabulary_maps import VocabularyMaps, vocabulary_maps
from lens.probes.ov_circuit import circuit_spectrum, copying_score, ov_circuit, ov_matrix
from tests.models.families import build


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2", "granite"])
def model(request) -> Model:
    """With an RMS norm, a LayerNorm and tied ends, a norm behind attention, and a factor on what is written."""
    return Model(build(request.param), name=request.param)


@pytest.fixture(scope="module")
def weights(model: Model) -> tuple[HeadWeights, ...]:
    return head_weights(model)


@pytest.fixture(scope="module")
def vocabulary(model: Model) -> VocabularyMaps:
    return vocabulary_maps(model)


def ends(vocabulary: VocabularyMaps) -> tuple[np.ndarray, np.ndarray]:
    """`W_E [vocab, d]` and `W_U [d, vocab]`, without their means over the vocabulary."""
    unembedding = vocabulary.unembedding_of(torch.arange(len(vocabulary.head))).T
    embedding = vocabulary.embedding.double().numpy()
    return embedding - embedding.mean(0), unembedding


# -- known matrices -------------------------------------------------------------------------------


def test_positive_and_negative_matrices():
    """To the last digits."""
    rows = np.random.default_rng(0).normal(size=(50, 50))
    assert copying_score(rows @ rows.T) == pytest.approx(1, abs=1e-13)
    assert copying_score(-rows @ rows.T) == pytest.approx(-1, abs=1e-13)


def test_random_matrices_score_nothing():
    """A mean of 0 ± 0.03 over one matrix of 50 rows, and none beyond 0.15; the spread is 1.5 / n by the circular law."""
    generator = np.random.default_rng(1)
    scores = np.array([copying_score(generator.normal(size=(50, 50))) for _ in range(200)])
    assert abs(scores.mean()) < 3 * 0.03 / np.sqrt(200)
    assert np.abs(scores).max() < 0.15
    assert scores.std() == pytest.approx(0.03, rel=0.2)


def test_a_rotation_scores_its_cosine():
    turn = np.array([[np.cos(0.7), -np.sin(0.7)], [np.sin(0.7), np.cos(0.7)]])
    assert copying_score(turn) == pytest.approx(np.cos(0.7), abs=1e-14)
    assert copying_score(np.linalg.eigvals(turn)) == pytest.approx(np.cos(0.7), abs=1e-14)


def test_a_zero_matrix_has_no_score():
    with pytest.raises(InputError, match="zero"):
        copying_score(np.zeros((3, 3)))


def test_the_small_matrix_has_the_large_ones_eigenvalues():
    """AB and BA, to 1e-13 of the largest."""
    generator = np.random.default_rng(2)
    left, right = generator.normal(size=(60, 7)), generator.normal(size=(7, 60))
    found = circuit_spectrum(right @ left, left.T @ left, right @ right.T)
    large = np.linalg.eigvals(left @ right)
    large = large[np.argsort(-np.abs(large))]
    scale = np.abs(large[0])
    np.testing.assert_allclose(np.sort_complex(found.eigenvalues), np.sort_complex(large[:7]), atol=1e-13 * scale)
    assert np.abs(large[7:]).max() < 1e-12 * scale
    np.testing.assert_allclose(found.singular_values, np.linalg.svd(left @ right, compute_uv=False)[:7], rtol=1e-10)
    assert copying_score(found.eigenvalues) == pytest.approx(copying_score(right @ left), abs=1e-14)


def test_departure_from_normality():
    """Zero for a symmetric matrix, √2 for a nilpotent one of rank one, the commutator's size for any other."""
    generator = np.random.default_rng(3)
    left, right = generator.normal(size=(30, 5)), generator.normal(size=(5, 30))
    full = left @ right
    found = circuit_spectrum(right @ left, left.T @ left, right @ right.T)
    wanted = np.linalg.norm(full @ full.T - full.T @ full) / np.linalg.norm(full) ** 2
    assert found.departure == pytest.approx(wanted, rel=1e-9)
    assert found.seen == pytest.approx((np.abs(np.linalg.eigvals(full)) ** 2).sum() / (full**2).sum(), rel=1e-9)
    normal = circuit_spectrum(left.T @ left, left.T @ left, left.T @ left)
    assert normal.departure < 1e-7
    assert normal.seen == pytest.approx(1, abs=1e-12)
    nilpotent = circuit_spectrum(np.zeros((1, 1)), np.ones((1, 1)), np.ones((1, 1)))
    assert nilpotent.departure == pytest.approx(np.sqrt(2))
    assert nilpotent.seen == 0


# -- of a model -----------------------------------------------------------------------------------


def test_circuits_are_those_of_the_full_matrices(weights: tuple[HeadWeights, ...], vocabulary: VocabularyMaps):
    embedding, unembedding = ends(vocabulary)
    found = ov_circuit(weights, vocabulary)
    for block, head in ((0, 0), (2, 3)):
        inner = ov_matrix(weights[block], head)
        for circuit, full in (("residual", inner), ("vocabulary", embedding @ inner @ unembedding)):
            here = found.sel(circuit=circuit, block=block, head=head)
            rank = here.sizes["rank"]
            singular = np.linalg.svd(full, compute_uv=False)
            np.testing.assert_allclose(here.singular_value, singular[:rank], rtol=1e-6, atol=1e-6 * singular[0])
            values = np.linalg.eigvals(full)
            values = values[np.argsort(-np.abs(values))][:rank]
            ours = here.eigenvalue_real.to_numpy() + 1j * here.eigenvalue_imaginary.to_numpy()
            np.testing.assert_allclose(np.sort_complex(ours), np.sort_complex(values), atol=1e-9 * np.abs(values[0]))
            assert float(here.copying_score) == pytest.approx(values.real.sum() / np.abs(values).sum(), abs=1e-9)
            wanted = np.linalg.norm(full @ full.T - full.T @ full) / np.linalg.norm(full) ** 2
            assert float(here.departure) == pytest.approx(wanted, rel=1e-6)
            assert int(here.non_normal) == (wanted > 0.5)


def test_the_embeddings_mean_changes_no_eigenvalue(weights: tuple[HeadWeights, ...], vocabulary: VocabularyMaps):
    """Since the unembeddings' mean is away."""
    _, unembedding = ends(vocabulary)
    embedding = vocabulary.embedding.double().numpy()
    inner = ov_matrix(weights[1], 2)
    assert np.abs(unembedding.mean(-1)).max() < 1e-12 * np.abs(unembedding).max()
    values = np.linalg.eigvals(embedding @ inner @ unembedding)
    found = ov_circuit(weights, vocabulary).sel(circuit="vocabulary", block=1, head=2)
    assert float(found.copying_score) == pytest.approx(values.real.sum() / np.abs(values).sum(), abs=1e-8)


def test_the_unembedding_is_the_models_own(model: Model, vocabulary: VocabularyMaps):
    """Logits of the last residual, up to a length at each position, the norm's shift and what is the same for all tokens."""
    run = model.run(list(range(3, 20)))
    assert run.logits is not None
    hidden = model.readout.normalise(run.residual[-1]).detach().double().numpy()
    logits = hidden @ vocabulary.head.double().numpy().T
    wanted = logits - logits.mean(-1, keepdims=True)
    _, unembedding = ends(vocabulary)
    shift = vocabulary.norm.shift @ (vocabulary.head.double().numpy() - vocabulary.centre).T
    made = run.residual[-1].double().numpy() @ unembedding
    length = (made * (wanted - shift)).sum(-1, keepdims=True) / (made**2).sum(-1, keepdims=True)
    assert (length > 0).all()
    np.testing.assert_allclose(length * made + shift, wanted, atol=2e-5 * np.abs(wanted).max())


def test_products_over_the_vocabulary(vocabulary: VocabularyMaps):
    embedding, unembedding = ends(vocabulary)
    np.testing.assert_allclose(vocabulary.across, unembedding @ embedding, atol=1e-9 * np.abs(vocabulary.across).max())
    np.testing.assert_allclose(vocabulary.embeddings, embedding.T @ embedding, rtol=1e-9, atol=1e-9)
    wanted = unembedding @ unembedding.T
    np.testing.assert_allclose(vocabulary.unembeddings, wanted, atol=1e-9 * np.abs(wanted).max())


def test_a_copying_head_scores_one_and_a_suppressing_one_minus_one(tiny: Model):
    """Built from the model's own ends: what moves the embeddings onto the tokens' own unembeddings."""
    vocabulary = vocabulary_maps(tiny)
    (one,) = head_weights(tiny, [0])
    read = vocabulary.across.T / one.norm.gain[:, None]
    one.value[:] = read[:, : one.value.shape[-1]]
    one.output[0] = np.eye(one.output.shape[1], one.output.shape[2])
    one.output[1] = -one.output[0]
    found = ov_circuit([one], vocabulary).sel(circuit="vocabulary", block=0)
    assert float(found.copying_score[0]) == pytest.approx(1, abs=1e-9)
    assert float(found.copying_score[1]) == pytest.approx(-1, abs=1e-9)
    assert np.isnan(found.mismatched_score).all()  # there is no other block


def test_shapes_names_and_the_round_trip(tmp_path, tiny: Model):
    found = ov_circuit(head_weights(tiny), vocabulary_maps(tiny))
    assert found.copying_score.dims == ("circuit", "block", "head")
    assert found.singular_value.sizes["rank"] == 8
    assert all("long_name" in value.attrs and "units" in value.attrs for value in found.data_vars.values() if value.dims)
    found.to_netcdf(tmp_path / "found.nc")
    assert np.abs(found.copying_score).max() <= 1 + 1e-12


def test_what_cannot_be_read(tiny: Model):
    with pytest.raises(UnsupportedModelError, match="width 16"):
        vocabulary_maps(Model(build("opt-projected")))

    def stop() -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        vocabulary_maps(tiny, check=stop)
    with pytest.raises(Cancelled):
        ov_circuit(head_weights(tiny), vocabulary_maps(tiny), check=stop)
