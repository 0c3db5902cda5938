"""The toy after ComplexFormer: where it is RoPE or has no positions, and that it says what it is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lens.base.errors import InputError
from lens.probes import complex_former as module
from lens.probes.complex_former import complex_former, interaction

RANDOM = np.random.default_rng(0)
QUERIES, KEYS = (RANDOM.standard_normal((7, 16)) + 1j * RANDOM.standard_normal((7, 16)) for _ in range(2))
THETA = 1e4 ** (-np.arange(16) / 16)


def rope(queries: np.ndarray, keys: np.ndarray, theta: np.ndarray) -> np.ndarray:
    turn = np.exp(1j * np.arange(len(queries))[:, None] * theta)
    return ((queries * turn) @ (keys * turn).conj().T).real


def test_identity_is_rope():
    np.testing.assert_allclose(interaction(QUERIES, KEYS, THETA, scaling=0.25), 0.25 * rope(QUERIES, KEYS, THETA), atol=1e-12)


def test_without_gain_it_has_no_positions():
    np.testing.assert_allclose(interaction(QUERIES, KEYS, THETA, gain=0.0), (QUERIES @ KEYS.conj().T).real, atol=1e-12)


def test_without_adapt_norms_and_distance_are_left():
    found = interaction(QUERIES, KEYS, THETA, adapt=np.zeros_like)
    turned = interaction(QUERIES * np.exp(1j * RANDOM.uniform(0, 6, 16)), KEYS * np.exp(2j), THETA, adapt=np.zeros_like)
    np.testing.assert_allclose(found, turned, atol=1e-12)
    assert found[3, 1] == pytest.approx((np.abs(QUERIES[3]) * np.abs(KEYS[1]) * np.cos(2 * THETA)).sum(), abs=1e-12)


def test_a_slope_jumps_at_the_cut():
    """Half a slope of angles just above and below π: the reading is no continuous function of queries and keys."""
    keys, theta = np.ones((1, 1), complex), np.ones(1)
    above, below = (np.exp(1j * (math.pi + sign * 1e-6))[None, None] for sign in (1, -1))
    found = [interaction(np.array(query), keys, theta, adapt=lambda angle: 0.5 * angle, gain=1.0) for query in (above, below)]
    np.testing.assert_allclose(found, 0, atol=1e-5)  # cos is even, so without a distance the jump is not seen
    two = [interaction(np.vstack([query, query]), keys, theta, adapt=lambda angle: 0.5 * angle)[1, 0] for query in (above, below)]
    assert abs(two[0] - two[1]) == pytest.approx(2 * math.sin(1), abs=1e-5)


def test_a_lane_of_zeros_adds_nothing():
    with_zeros = QUERIES.copy()
    with_zeros[:, 3] = 0
    rest = np.arange(16) != 3
    expected = interaction(QUERIES[:, rest], KEYS[:, rest], THETA[rest], adapt=np.sin)
    np.testing.assert_allclose(interaction(with_zeros, KEYS, THETA, adapt=np.sin), expected, atol=1e-12)


def test_dataset_says_what_it_is():
    found = complex_former(QUERIES, KEYS, THETA)
    assert found.logit.dims == ("query", "key")
    assert found.attrs["experimental"] == "yes"
    assert "withdrawn" in found.attrs["status"]
    assert "our reading" in found.attrs["source"]
    assert "withdrawn" in str(module.__doc__)


def test_refused():
    with pytest.raises(InputError, match="frequencies"):
        complex_former(QUERIES, KEYS, THETA[:-1])
    with pytest.raises(InputError, match="shape"):
        complex_former(QUERIES, KEYS, THETA, adapt=lambda angle: angle.sum(-1))
