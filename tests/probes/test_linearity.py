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


def real_like(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """States of uneven width and a partly linear output, away from 0."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 12, generator=generator, dtype=torch.float64) * torch.logspace(0, 1, 12, dtype=torch.float64) + 3
    mixed = x @ torch.randn(12, 12, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return x, mixed + torch.tanh(mixed) * 4 + torch.randn(n, 12, generator=generator, dtype=torch.float64) - 7


def test_uniform_scores_and_norm_are_those_of_explicit_predictions():
    (x, y), (other, answer) = real_like(300, 0), real_like(200, 1)
    found = linearity(moments_of(x, y), moments_of(other, answer), ridge=0.0)
    fitted = torch.linalg.lstsq(x - x.mean(0), y - y.mean(0)).solution
    error = ((other - x.mean(0)) @ fitted + y.mean(0) - answer).square().sum(0)
    update = answer - other
    for name, target in (("score_uniform", answer), ("score_update_uniform", update)):
        total = (target - target.mean(0)).square().sum(0)
        assert found[name].item() == pytest.approx(float((1 - error / total).mean()), abs=1e-6)
    ratio = update.square().sum().sqrt() / answer.square().sum().sqrt()
    assert found.update_norm.item() == pytest.approx(float(ratio), abs=1e-6)
    assert found.score_uniform.item() < found.score.item()  # strong coordinates are the predictable ones here


def test_a_coordinate_that_does_not_vary_does_not_count_in_the_uniform_score():
    x, y = real_like(300, 0)
    other, answer = real_like(200, 1)
    still = [torch.cat([z, torch.full((len(z), 1), 0.1, dtype=torch.float64)], dim=1) for z in (x, y, other, answer)]
    whole = linearity(moments_of(x, y), moments_of(other, answer), ridge=0.0)
    padded = linearity(moments_of(*still[:2]), moments_of(*still[2:]), ridge=0.0)
    assert padded.score_uniform.item() == pytest.approx(whole.score_uniform.item(), abs=1e-6)


def test_the_score_does_not_care_about_the_input_frame_and_only_about_rotation_of_the_output():
    (x, y), (other, answer) = real_like(300, 0), real_like(200, 1)
    generator = torch.Generator().manual_seed(8)
    mix = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    turned = torch.linalg.qr(mix).Q

    def score(change_input, change_output) -> float:
        train, test = moments_of(change_input(x), change_output(y)), moments_of(change_input(other), change_output(answer))
        return linearity(train, test, ridge=0.0).score.item()

    plain = score(lambda z: z, lambda z: z)
    assert score(lambda z: 3 * z @ mix + 1, lambda z: 0.5 * z @ turned - 4) == pytest.approx(plain, abs=1e-6)
    assert abs(score(lambda z: z, lambda z: z @ mix) - plain) > 1e-3


def test_the_score_has_a_direction():
    x = torch.randn(400, 4, dtype=torch.float64)
    y = torch.zeros_like(x)
    y[:, 0] = x[:, 0]
    there, back = (
        linearity(moments_of(x, y), moments_of(x, y), ridge=0.0),
        linearity(moments_of(y, x), moments_of(y, x), ridge=0.0),
    )
    assert there.score.item() == pytest.approx(1, abs=1e-6)
    assert back.score.item() == pytest.approx(0.25, abs=0.05)
