"""Context-aware RoPE: where it is RoPE, what its paths do, and the paper's own figures."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lens.base.errors import InputError
from lens.probes.context_aware import (
    DOUBTS,
    base_of_rate,
    context_aware,
    phases,
    pre_activation_of,
    published_perplexity,
    rate_of_base,
    token_rate,
)

RANDOM = np.random.default_rng(0)
STATES, WEIGHT = RANDOM.standard_normal((12, 8)), RANDOM.standard_normal((8, 3))


def test_a_constant_rate_is_rope():
    rate = rate_of_base(1e4, 64)
    assert rate == pytest.approx(0.7498942, abs=5e-8)
    theta = 1e4 ** (-2 * np.arange(32) / 64)
    found = phases(np.full((100, 1), rate), 32)
    np.testing.assert_allclose(found[0], np.arange(1, 101)[:, None] * theta, rtol=1e-12)
    assert base_of_rate(rate, 64) == pytest.approx(1e4, rel=1e-12)


def test_weights_of_zero_are_a_base_that_nobody_asked_for():
    """And no weights at all give base 10,000: it needs a bias, which the formula lacks."""
    assert token_rate(np.array(0.0)) == pytest.approx(0.5906161, abs=5e-8) == 1 / (1 + math.log(2))
    assert base_of_rate(1 / (1 + math.log(2)), 64) == pytest.approx(2.08e7, rel=1e-3)
    assert pre_activation_of(rate_of_base(1e4, 64)) == pytest.approx(-0.9266569, abs=5e-8)
    found = context_aware(STATES, np.zeros((8, 1)), width=64, bias=pre_activation_of(rate_of_base(1e4, 64)))
    np.testing.assert_allclose(found.phase[0, -1], 12 * 1e4 ** (-2 * np.arange(32) / 64), rtol=1e-6)


def test_phases_grow_and_lane_0_is_blind_to_the_text():
    found = context_aware(STATES, WEIGHT, width=16)
    assert (found.phase.diff("position") > 0).all()
    np.testing.assert_array_equal(found.phase.sel(head=1)[:, 0], np.arange(1, 13))
    assert ((found.rate > 0) & (found.rate < 1)).all()
    np.testing.assert_allclose(found.smallest_step, (found.rate.min("position") ** 7), rtol=1e-5)


def test_what_stands_before_does_not_matter():
    """Phases between later tokens depend on these alone, as in RoPE; what stands between them does matter."""
    first = phases(token_rate(STATES @ WEIGHT), 8)
    other = STATES.copy()
    other[:5] = RANDOM.standard_normal((5, 8))
    second = phases(token_rate(other @ WEIGHT), 8)
    assert not np.allclose(first[:, 5:], second[:, 5:])
    np.testing.assert_allclose(first[:, 5:] - first[:, 5:6], second[:, 5:] - second[:, 5:6], atol=1e-12)
    assert not np.allclose(first[:, 8, 1] - first[:, 2, 1], second[:, 8, 1] - second[:, 2, 1])


def test_effective_distance_is_the_distance_where_all_tokens_are_alike():
    alike = context_aware(np.ones((6, 8)), WEIGHT, width=16).effective_distance
    distance = np.arange(6)[:, None] - np.arange(6)[None]
    for head in alike:
        np.testing.assert_allclose(head, np.where(distance >= 0, distance, np.nan), atol=1e-5)
    path = context_aware(STATES, WEIGHT, width=16).effective_distance
    rate = token_rate(STATES @ WEIGHT)[:, 2]
    assert float(path[2, 9, 4]) == pytest.approx(rate[5:10].sum() / rate.mean(), rel=1e-6)


def test_published_figures_and_what_they_give():
    found = published_perplexity()
    reduction = found.reduction.sel(length=1024)
    assert float(reduction.sel(model="124M")) == pytest.approx(0.622, abs=5e-4)
    assert float(reduction.sel(model="44M")) == pytest.approx(0.548, abs=5e-4)
    assert 768 % 10
    assert any("768" in doubt for doubt in DOUBTS)
    assert all(doubt in found.attrs["doubts"] for doubt in DOUBTS)


def test_refused():
    with pytest.raises(InputError, match="shape"):
        context_aware(STATES, WEIGHT.T, width=16)
    for wrong in ({"width": 15}, {"width": 16, "lane": 8}):
        with pytest.raises(InputError, match="Lane"):
            context_aware(STATES, WEIGHT, **wrong)
    with pytest.raises(InputError, match="between 0 and 1"):
        pre_activation_of(1.0)
