"""Linearity of blocks: identities between its scores, and what it says of noise."""

from __future__ import annotations

import pytest
import torch

from lens.base.errors import InputError
from lens.probes.linearity import linearity
from tests.probes.test_shortcuts import moments_of, noise


def chain(n: int, seed: int):
    """Three states of width 16: a linear block, then one with a random, unexplainable update."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 16, generator=generator, dtype=torch.float64)
    fixed = torch.randn(16, 16, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    y = x + 0.1 * x @ fixed
    return moments_of(x, y, y + 0.5 * torch.randn(n, 16, generator=generator, dtype=torch.float64))


def test_a_linear_block_scores_one_and_a_random_update_its_null():
    found = linearity(chain(4000, 0), chain(2000, 1), ridge=0.0)
    assert float(found.score[0]) == pytest.approx(1, abs=1e-6)
    assert float(found.score_update[0]) == pytest.approx(1, abs=1e-6)
    assert float(found.score_update[1]) == pytest.approx(float(found.null[1]), abs=0.01)
    assert float(found.score_update_in_sample[1]) == pytest.approx(float(found.null_in_sample[1]), abs=0.01)
    assert float(found.score[1]) > 0.5  # the residual stream alone makes it look linear


def test_both_scores_are_linked_by_the_energy_of_the_update():
    found = linearity(chain(500, 0), chain(400, 1))
    left = 1 - found.score_update
    assert float(abs(left - (1 - found.score) / found.update_energy).max()) < 1e-6


def test_in_sample_score_of_noise_flatters_and_the_held_out_one_does_not():
    train = noise(1000, 100, 0)
    found = linearity(train, noise(5000, 100, 1), ridge=0.0)
    assert found.score_in_sample.item() == pytest.approx(0.1001, abs=0.02)
    assert found.score.item() == pytest.approx(-0.1125, abs=0.02)


def test_missing_pairs_and_too_few_tokens_are_refused():
    with pytest.raises(InputError, match="adjacent"):
        linearity(moments_of(torch.randn(50, 4)), chain(500, 0))
    with pytest.raises(InputError, match="10 training tokens"):
        linearity(noise(10, 20, 0), noise(100, 20, 0))
