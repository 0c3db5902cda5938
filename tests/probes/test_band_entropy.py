"""Entropy of rotated keys, at its two ends and against the eigenvalues that it stands for."""

from __future__ import annotations

import numpy as np
import pytest

from lens.base.errors import InputError
from lens.probes.band_entropy import band_entropy, chosen_by_entropy, lane_entropy, top_singular_value, truncated_entropy
from tests.probes.test_lanes import LENGTH, made_up


def test_a_fast_lane_with_a_constant_key_is_spread_over_the_plane():
    constant = np.full((4096, 3), 2.0 - 1.0j)
    entropy = lane_entropy(constant, np.array([1.0, 0.1, 0.01]))
    assert np.abs(entropy - np.log(2)).max() < 1e-3


def test_a_lane_that_stands_still_holds_its_key_on_a_line():
    assert lane_entropy(np.full((100, 1), 3.0 + 4.0j), np.zeros(1)).tolist() == [0.0]


def test_the_closed_form_is_the_entropy_of_the_gram_matrix():
    generator = np.random.default_rng(0)
    keys = generator.normal(size=(2, 50, 8, 2)).view(complex)[..., 0] + 0.7
    theta = 10_000.0 ** (-np.arange(8) / 8)
    turned = keys * np.exp(1j * np.multiply.outer(np.arange(50), theta))
    points = np.stack([turned.real, turned.imag], axis=-1)
    gram = np.einsum("hplx,hply->hlxy", points, points)
    values = np.linalg.eigvalsh(gram)
    shares = values / values.sum(-1, keepdims=True)
    assert np.abs(lane_entropy(keys, theta) + (shares * np.log(shares)).sum(-1)).max() < 1e-12
    assert np.abs(top_singular_value(keys, theta) - np.sqrt(values[..., -1])).max() < 1e-12


def test_of_a_coherent_lane_the_largest_singular_value_grows_like_the_root_of_the_length():
    theta = np.array([1e-6, 1.0])
    short, long = (top_singular_value(np.full((length, 2), 3.0 + 4.0j), theta) for length in (100, 400))
    assert short[0] == pytest.approx(5 * 10, rel=1e-6)
    assert long[0] / short[0] == pytest.approx(2, rel=1e-4)
    assert long[1] == pytest.approx(5 * 20 / np.sqrt(2), rel=0.01)  # spread evenly over two directions


def test_the_truncated_entropy_is_that_of_the_largest_eigenvalues():
    still = np.array([[1.0 + 0j, 0], [0, 1], [0, 1j]])  # three unit vectors in four dimensions
    theta = np.zeros(2)
    assert [float(truncated_entropy(still, theta, rank)) for rank in (1, 2, 3, 4)] == pytest.approx(
        [0, np.log(2), np.log(3), np.log(3)]
    )
    with pytest.raises(InputError, match="The rank is 5"):
        truncated_entropy(still, theta, 5)


def test_the_direction_is_asked_for():
    entropy = np.array([0.1, 0.4, 0.4, 0.6])
    assert chosen_by_entropy(entropy, 0.4, "low").tolist() == [True, False, False, False]
    assert chosen_by_entropy(entropy, 0.4, "high").tolist() == [False, True, True, True]


def test_the_dataset_leaves_the_first_token_out():
    states = made_up()
    found = band_entropy(states, rank=4)
    states.key[:, 0] *= 1000
    again = band_entropy(states, rank=4)
    for name in ("entropy", "effective_rank", "top_singular_value", "truncated_entropy"):
        assert np.array_equal(found[name], again[name])
    assert dict(found.sizes) == {"block": 1, "kv_head": 2, "lane": 8}
    assert found.effective_rank.min() >= 1
    assert found.effective_rank.max() <= 2
    assert found.attrs["tokens"] == LENGTH - 1


def test_blocks_of_two_tables_are_refused():
    with pytest.raises(InputError, match="2 shapes or tables"):
        band_entropy([made_up(), made_up(theta=np.ones(8))])
    with pytest.raises(InputError, match="2 tokens"):
        band_entropy(made_up(length=2))
