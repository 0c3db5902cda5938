"""Largest singular values without the others, against the complete decomposition; what is sampled stays a lower bound."""

from __future__ import annotations

import numpy as np
import pytest

import lens
from lens.base.errors import InputError
from lens.probes.attention_spectrum import attention_spectrum, logit_spectrum
from lens.probes.singular_values import (
    EXACT,
    RANKS,
    contraction,
    dobrushin,
    eigenvalues,
    largest_singular_values,
    spectrum_of_matrix,
)
from tests.models.families import build
from tests.probes.test_attention_spectrum import previous_token, sink, uniform_causal

LONG = EXACT + 38


def local(size: int) -> np.ndarray:
    """Random heads that favour what is near: a spectrum that falls off slowly."""
    distance = np.subtract.outer(np.arange(size), np.arange(size))
    weights = np.where(distance >= 0, np.exp(np.random.default_rng(0).standard_normal((size, size)) - distance / 8), 0)
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("make", [uniform_causal, previous_token, sink, local])
def test_the_largest_of_a_long_text_are_those_of_the_whole(make):
    matrix = make(LONG)
    whole = np.linalg.svd(matrix, compute_uv=False)
    assert largest_singular_values(matrix, 32) == pytest.approx(whole[:32], abs=1e-9 * whole[0])
    singular, ranks = spectrum_of_matrix(matrix)
    assert len(singular) == 32
    assert ranks["stable_rank"] == pytest.approx((whole**2).sum() / whole[0] ** 2, rel=1e-8)
    assert ranks["participation_ratio"] == pytest.approx((whole**2).sum() ** 2 / (whole**4).sum(), rel=1e-8)
    assert {name for name in RANKS if np.isnan(ranks[name])} == {"energy_rank", "effective_rank", "numerical_rank"}
    centred = np.linalg.norm(matrix - matrix.mean(0), 2)
    assert contraction(matrix) == pytest.approx(centred, abs=1e-8)


def test_asked_for_all_of_a_long_text_there_are_all():
    matrix = uniform_causal(LONG)
    complete = spectrum_of_matrix(matrix, LONG)
    assert len(complete.singular) == LONG
    assert complete.ranks["effective_rank"] > complete.ranks["energy_rank"] > 1
    few = spectrum_of_matrix(uniform_causal(64), 5)
    assert few.singular == pytest.approx(np.linalg.svd(uniform_causal(64), compute_uv=False)[:5], rel=1e-8)
    assert np.isnan(few.ranks["effective_rank"])


def test_a_zero_matrix_has_no_ranks():
    singular, ranks = spectrum_of_matrix(np.zeros((LONG, LONG)))
    assert not singular.any()
    assert np.isnan(list(ranks.values())).all()


def test_a_spectrum_that_hardly_falls_off_is_computed_in_full():
    """Those asked for do not part from hundreds that are all but as large; noise, which thins out, is no trouble."""
    values = np.linspace(1.001, 1, LONG)
    assert largest_singular_values(np.diag(values), 32) == pytest.approx(values[:32], abs=1e-12)
    noise = np.random.default_rng(0).standard_normal((LONG, LONG))
    whole = np.linalg.svd(noise, compute_uv=False)
    assert largest_singular_values(noise, 32) == pytest.approx(whole[:32], abs=1e-9 * whole[0])


def test_pairs_of_drawn_queries_give_a_lower_bound():
    matrix = local(LONG)
    exact = max(np.abs(matrix - row).sum(-1).max() for row in matrix) / 2
    assert 0.9 * exact < dobrushin(matrix) <= exact + 1e-12
    assert dobrushin(previous_token(LONG)) == 1
    assert dobrushin(sink(LONG)) == 0
    found = attention_spectrum(matrix)
    assert "a lower bound" in found.attrs["dobrushin"]
    assert "over all pairs" in attention_spectrum(local(20)).attrs["dobrushin"]


def test_eigenvalues_of_attention_in_both_directions():
    """A cycle's are the roots of unity; those of a causal pattern are its diagonal."""
    cycle = np.roll(np.eye(6), 1, axis=0)
    assert np.sort_complex(eigenvalues(cycle)) == pytest.approx(np.sort_complex(np.roots([1, 0, 0, 0, 0, 0, -1])), abs=1e-12)
    found = attention_spectrum(cycle)
    assert float(np.hypot(found.eigenvalue, found.eigenvalue_imaginary).min()) == pytest.approx(1)
    assert float(found.gap) == pytest.approx(0, abs=1e-12)
    assert found.attrs["eigenvalues"] == "complex"
    causal = attention_spectrum(uniform_causal())
    assert causal.eigenvalue.to_numpy() == pytest.approx([1 / n for n in range(1, 9)])
    assert not causal.eigenvalue_imaginary.any()
    assert "say nothing of mixing" in causal.attrs["eigenvalues"]


def test_rows_of_an_attention_matrix_have_the_eigenvalue_one():
    weights = np.random.default_rng(3).dirichlet(np.ones(30), 30)
    found = eigenvalues(weights)
    assert found[0] == pytest.approx(1)
    assert np.abs(found[1]) < 1
    assert found.sum() == pytest.approx(np.trace(weights))
    assert np.isnan(eigenvalues(np.full((LONG, LONG), 1 / LONG))).all()  # not computed


def test_what_a_sink_took_can_be_given_back():
    half = 0.5 * uniform_causal()
    raw, back = attention_spectrum(half), attention_spectrum(half, renormalise=True)
    assert float(raw.singular_value[0]) == pytest.approx(0.5 * 1.379779, rel=1e-6)
    assert float(back.singular_value[0]) == pytest.approx(1.379779, rel=1e-6)
    assert float(back.contraction) == pytest.approx(2 * float(raw.contraction))


def test_logits_have_no_more_directions_than_a_head(tokenizer):
    """Rotation does not raise the rank of queries times keys; masks and the softmax do."""
    states = lens.head_states(lens.load(build("llama"), tokenizer), list(range(5, 45)))
    found = logit_spectrum(states)
    assert (found.numerical_rank == 8).all()  # the width of a head
    assert (logit_spectrum(states, masked=True).numerical_rank > 30).all()
    assert float(spectrum_of_matrix(states[1].pattern(2)).ranks["numerical_rank"]) > 30
    # Without rotation: all positions alike.
    still = np.zeros_like(states[1].theta)
    assert spectrum_of_matrix(states[1].logits(2, theta=still)).ranks["numerical_rank"] == 8
    expected = np.linalg.svd(states[1].logits(2), compute_uv=False)
    assert found.singular_value[1, 2].to_numpy() == pytest.approx(expected, rel=1e-12, abs=1e-10)


def test_a_common_rotation_or_a_constant_in_a_row(tokenizer):
    """Turning all queries and keys alike changes no logits; a constant in a row changes these, and no weights."""
    (states,) = lens.head_states(lens.load(build("gpt2"), tokenizer), list(range(5, 25)), [1])
    query, key = (side[2].double().numpy() for side in (states.query, states.key))
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0]
    assert np.linalg.svd(query @ turn, compute_uv=False) == pytest.approx(np.linalg.svd(query, compute_uv=False), rel=1e-12)
    assert (query @ turn) @ (key @ turn).T == pytest.approx(query @ key.T, abs=1e-12)
    logits = states.logits(2)
    shifted = logits + np.arange(20)[:, None]
    one, other = (spectrum_of_matrix(states.softmax(2, each)).singular for each in (logits, shifted))
    assert one == pytest.approx(other, abs=1e-12)
    assert spectrum_of_matrix(logits).singular[0] != pytest.approx(spectrum_of_matrix(shifted).singular[0], rel=1e-3)


def test_impossible_wishes_are_refused():
    with pytest.raises(InputError, match="top=0"):
        attention_spectrum(np.eye(4), top=0)
    with pytest.raises(InputError, match="0 shapes"):
        logit_spectrum([])
