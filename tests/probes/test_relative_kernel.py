from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from lens.base.errors import InputError
from lens.probes.relative_kernel import positive_features, relative_kernel, relative_kernel_weights, toeplitz_product

T, WIDTH = 96, 16


@pytest.fixture(scope="module")
def sides():
    draw = np.random.default_rng(1)
    return draw.standard_normal((3, T, WIDTH)), draw.standard_normal(2 * T - 1)


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_toeplitz_product_is_that_of_the_matrix(size):
    draw = np.random.default_rng(size)
    coefficients, columns = draw.standard_normal(2 * size - 1), draw.standard_normal((size, 3))
    matrix = scipy.linalg.toeplitz(coefficients[size - 1 :: -1], coefficients[size - 1 :])  # T_ij = c_{j−i}
    assert np.abs(toeplitz_product(coefficients, columns) - matrix @ columns).max() < 1e-12


@pytest.mark.parametrize("causal", [True, False])
def test_by_fft_equals_entry_by_entry(sides, causal):
    (query, key, value), bias = sides
    found = relative_kernel(query, key, value, bias, causal=causal)
    weights = relative_kernel_weights(query, key, bias, causal=causal)
    assert np.abs(found.output.to_numpy() - weights @ value).max() < 1e-12
    assert np.abs(weights.sum(-1) - 1).max() < 1e-14
    assert found.attrs["transform_length"] == 2 * T
    assert (np.triu(weights, 1) == 0).all() == causal


def test_weights_are_those_of_the_definition(sides):
    (query, key, _), bias = sides
    weights = relative_kernel_weights(query, key, bias, features=8, seed=3)
    projections = np.random.default_rng(3).standard_normal((8, WIDTH))
    phi = [positive_features(side / np.linalg.norm(side, axis=1)[:, None], projections) for side in (query, key)]
    for i in (0, 5, T - 1):
        row = np.array([np.exp(bias[T - 1 + j - i]) * phi[0][i] @ phi[1][j] for j in range(i + 1)])
        assert np.abs(weights[i, : i + 1] - row / row.sum()).max() < 1e-14


def test_a_constant_in_the_bias_changes_nothing_even_where_its_exponential_overflows(sides):
    (query, key, value), bias = sides
    plain = relative_kernel(query, key, value, bias)
    with np.errstate(over="ignore"):
        assert np.isinf(np.exp(bias + 800)).all()
    lifted = relative_kernel(query, key, value, bias + 800)
    assert np.abs(plain.output.to_numpy() - lifted.output.to_numpy()).max() < 1e-10  # 800 takes three digits of the bias


def test_a_huge_bias_of_later_keys_is_not_read_where_they_are_not_seen(sides):
    (query, key, value), bias = sides
    hidden = np.where(np.arange(2 * T - 1) > T - 1, 900.0, bias)
    assert relative_kernel(query, key, value, hidden).output.equals(relative_kernel(query, key, value, bias).output)


def test_a_row_that_rounding_would_eat_is_refused(sides):
    (query, key, value), _ = sides
    bias = np.zeros(2 * T - 1)
    bias[0] = 60.0  # the last query alone sees this offset: all others are left with exp(−60)
    with pytest.raises(InputError, match="rounding"):
        relative_kernel(query, key, value, bias)
    weights = relative_kernel_weights(query, key, bias)
    assert np.abs(weights.sum(-1) - 1).max() < 1e-14
    assert weights[-1, 0] > 1 - 1e-12


def test_features_estimate_the_exponential():
    """Their mean product is exp(x·y), with the relative variance exp(|x + y|²) − 1 over the number of projections."""
    draw = np.random.default_rng(0)
    x, y = draw.standard_normal((2, 50, 8))
    x, y = (side / np.linalg.norm(side, axis=1)[:, None] for side in (x, y))
    projections = draw.standard_normal((20_000, 8))
    found = (positive_features(x, projections) * positive_features(y, projections)).sum(1)
    error = (found / np.exp((x * y).sum(1)) - 1) / np.sqrt((np.exp(((x + y) ** 2).sum(1)) - 1) / 20_000)
    assert np.abs(error).max() < 4.5
    assert 0.5 < error.std() < 1.5


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"bias": np.zeros(T)}, "bias"),
        ({"bias": np.full(2 * T - 1, -np.inf)}, "finite largest"),
        ({"query": np.zeros((T, WIDTH))}, "direction"),
        ({"key": np.ones((T - 1, WIDTH))}, "shapes"),
        ({"value": np.ones((T, 2, 2))}, "values"),
        ({"features": 0}, "features"),
    ],
)
def test_what_does_not_fit_is_refused(sides, change, match):
    (query, key, value), bias = sides
    with pytest.raises(InputError, match=match):
        relative_kernel(**{"query": query, "key": key, "value": value, "bias": bias, **change})


def test_toeplitz_product_refuses_another_number_of_coefficients():
    with pytest.raises(InputError, match="coefficients"):
        toeplitz_product(np.zeros(4), np.zeros((3, 1)))
