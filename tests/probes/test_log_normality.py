"""Normal logits keep the prediction while their variance is small; the heads of a model are what they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

import lens
from lens.base.errors import InputError
from lens.probes.log_normality import log_normality, row_shapes
from tests.models.families import build


@pytest.mark.parametrize(("sigma", "entropy", "predicted"), [(1.0, 6.433, 6.431), (2.0, 5.028, 4.931), (3.0, 3.42, 2.43)])
def test_entropy_of_normal_logits(sigma: float, entropy: float, predicted: float):
    """1,024 keys: ln n − v/2 is right for a standard deviation of 1, departs at 2, and is a nat off at 3."""
    rows = sigma * np.random.default_rng(0).standard_normal((2_000, 1_024))
    shapes = row_shapes(rows, np.ones(rows.shape, dtype=bool))
    found = shapes["entropy"]
    error = 4 * found.std() / np.sqrt(len(found))
    assert found.mean() == pytest.approx(entropy, abs=error + 0.006)
    assert shapes["predicted_entropy"].mean() == pytest.approx(predicted, abs=0.03)
    assert np.log(1_024) - sigma**2 / 2 == pytest.approx(predicted, abs=0.005)


def test_shapes_of_rows_of_unequal_length():
    rows = np.random.default_rng(1).gamma(2.0, size=(3, 300))
    seen = np.arange(300) < np.array([[300], [100], [20]])
    found = row_shapes(np.where(seen, rows, 1e9), seen)
    for number, length in enumerate((300, 100, 20)):
        row = rows[number, :length]
        assert found["variance"][number] == pytest.approx(row.var())
        assert found["skewness"][number] == pytest.approx(scipy.stats.skew(row))
        assert found["excess_kurtosis"][number] == pytest.approx(scipy.stats.kurtosis(row))
        assert found["entropy"][number] == pytest.approx(scipy.stats.entropy(np.exp(row)))
        assert found["predicted_entropy"][number] == pytest.approx(np.log(length) - row.var() / 2)
    assert found["frozen"].tolist() == [0, 0, 0]
    assert row_shapes(10 * rows, seen)["frozen"].tolist() == [1, 1, 1]


@pytest.fixture
def states(tokenizer):
    return lens.head_states(lens.load(build("llama"), tokenizer), list(range(5, 45)))


def test_heads_are_means_over_rows_with_enough_keys(states):
    found = log_normality(states)
    logits = states[1].logits(2)
    rows = [logits[m, : m + 1] for m in range(15, 40)]
    assert float(found.variance[1, 2]) == pytest.approx(np.mean([row.var() for row in rows]), rel=1e-12)
    assert float(found.skewness[1, 2]) == pytest.approx(np.mean([scipy.stats.skew(row) for row in rows]), rel=1e-9)
    pattern = states[1].pattern(2)[15:]
    assert float(found.entropy[1, 2]) == pytest.approx(scipy.stats.entropy(pattern, axis=-1).mean(), rel=1e-12)


def test_temperature_divides_the_variance_by_its_square(states):
    one, two = log_normality(states), log_normality(states, temperature=2.0)
    assert two.variance.to_numpy() == pytest.approx(one.variance.to_numpy() / 4)
    assert two.skewness.to_numpy() == pytest.approx(one.skewness.to_numpy())
    assert (two.entropy >= one.entropy).all()


def test_the_first_key_can_be_left_out(states):
    found = log_normality(states, skip_first=True)
    logits = states[0].logits(0)
    expected = np.mean([logits[m, 1 : m + 1].var() for m in range(16, 40)])
    assert float(found.variance[0, 0]) == pytest.approx(expected, rel=1e-12)


def test_a_sliding_window_is_what_a_query_sees(states):
    found = log_normality(replace(states[0], window=20))
    logits = states[0].logits(0)
    expected = np.mean([logits[m, max(0, m - 19) : m + 1].var() for m in range(15, 40)])
    assert float(found.variance[0, 0]) == pytest.approx(expected, rel=1e-12)
    assert float(found.variance[0, 0]) != pytest.approx(float(log_normality(states[0]).variance[0, 0]), rel=1e-6)


def test_a_window_of_too_few_keys_has_no_shape(tokenizer):
    states = lens.head_states(lens.load(build("mistral"), tokenizer), list(range(5, 45)))
    assert states[0].window == 4
    assert np.isnan(log_normality(states).variance).all()


def test_what_cannot_be_read_is_refused(states):
    with pytest.raises(InputError, match="temperature is 0"):
        log_normality(states, temperature=0.0)
    with pytest.raises(InputError, match="No block"):
        log_normality([])
