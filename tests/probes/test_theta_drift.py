"""Drift of learned angles: bookkeeping, the published table, and what weight decay alone does."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import lens
from lens.base.errors import InputError, UnsupportedModelError
from lens.models.three_phase import ThreePhaseConfig, ThreePhaseForCausalLM, absorb_rotation
from lens.probes.theta_drift import decay_factor, published_drift, published_rate, theta_drift
from tests.models.families import build

TINY = {"vocab_size": 64, "hidden_size": 48, "intermediate_size": 64, "num_attention_heads": 6, "num_key_value_heads": 3}


def fresh(**options) -> ThreePhaseForCausalLM:
    return ThreePhaseForCausalLM(ThreePhaseConfig(**{**TINY, "num_hidden_layers": 4, **options}))


@pytest.mark.parametrize("options", [{}, {"phase_rotation": "tied"}, {"initial_angles": [0.1, 0.2, 0.0, -1.4]}])
def test_nothing_has_drifted_at_the_start(options):
    found = theta_drift(lens.load(fresh(**options)))
    for name in ("drift", "norm", "rms", "mean_drift", "spread", "largest", "decay_drift"):
        assert (found[name] == 0).all(), name
    assert found.sizes == {"block": 4, "pair": 1 if options.get("phase_rotation") == "tied" else 8}


def test_the_measures_are_those_of_drifts_put_in_by_hand():
    start = (np.arange(4) + 1) * math.pi / 8
    drift = np.array([[0.3, -0.3], [0.1, 0.1], [0.0, -0.4], [0.0, 0.0]])
    found = theta_drift(start[:, None] + drift, decayed=0.9)
    assert found.norm.values == pytest.approx([0.3 * math.sqrt(2), 0.1 * math.sqrt(2), 0.4, 0], abs=1e-15)
    assert found.rms.values == pytest.approx([0.3, 0.1, 0.4 / math.sqrt(2), 0])
    assert found.mean_drift.values == pytest.approx([0, 0.1, -0.2, 0], abs=1e-15)
    assert found.spread.values == pytest.approx([0.3, 0, 0.2, 0], abs=1e-15)
    assert found.largest.values == pytest.approx([0.3, 0.1, 0.4, 0], abs=1e-15)
    assert (found.rms**2).values == pytest.approx((found.mean_drift**2 + found.spread**2).values)
    assert found.decay_drift.values == pytest.approx(-0.1 * start)
    assert found.ratio.values[2] == pytest.approx(1 - 0.2 / start[2])
    steps = theta_drift(np.stack([start[:, None] + 0 * drift, start[:, None] + drift]))
    assert steps.norm.dims == ("step", "block")
    assert np.array_equal(steps.norm[1], found.norm)


def test_a_model_is_read_as_it_is():
    module = fresh()
    with torch.no_grad():
        module.model.layers[2].phase_rotation.theta[5] += 0.25
    found = theta_drift(lens.load(module))
    assert found.drift.values[2, 5] == pytest.approx(0.25, abs=1e-6)
    assert np.count_nonzero(found.drift) == 1


def test_what_has_no_angles_is_refused():
    with pytest.raises(UnsupportedModelError, match="no learned angles"):
        theta_drift(lens.load(build("llama")))
    with pytest.raises(UnsupportedModelError, match="has no rotation"):
        theta_drift(lens.load(absorb_rotation(fresh())))
    with pytest.raises(InputError, match="Angles of shape"):
        theta_drift(np.zeros(4))
    with pytest.raises(InputError, match="3 initial angles"):
        theta_drift(np.zeros((4, 2)), [0.1, 0.2, 0.3])


def test_the_published_table_says_one_angle_for_a_block():
    found = published_drift()
    degrees = np.degrees
    shifts = [2.7, 1.1, 0.2, -0.5, -1.1, -1.7, -2.2, -4.0, -4.8, -5.0, -6.5, -9.3]
    assert degrees(found.mean_drift).values == pytest.approx(shifts, abs=0.05)
    rms = [2.7, 1.2, 0.35, 0.57, 1.2, 1.8, 2.3, 4.0, 4.8, 5.0, 6.5, 9.3]
    assert degrees(found.rms).values == pytest.approx(rms, abs=0.055)
    ratios = [1.359, 1.076, 1.010, 0.983, 0.971, 0.962, 0.957, 0.933, 0.930, 0.934, 0.922, 0.897]
    assert (found.mean_theta / found.initial).values == pytest.approx(ratios, abs=5e-4)
    assert found.initial.values == pytest.approx((np.arange(12) + 1) * math.pi / 24, abs=5e-4)
    spread = np.sqrt(np.maximum(found.rms**2 - found.mean_drift**2, 0))
    assert round(float(spread.max()), 3) == 0.012
    assert list(np.argsort(-found.norm.values)).index(0) == 5  # block 0 has the sixth largest drift: a J and no U
    slope, constant = np.polyfit(found.initial, found.mean_drift, 1)
    assert (constant, slope) == pytest.approx((0.061, -0.125), abs=5e-4)
    assert np.corrcoef(found.initial, found.mean_drift)[0, 1] ** 2 == pytest.approx(0.96, abs=5e-3)


def test_the_published_schedule():
    assert published_rate(0) == 0
    assert published_rate(500) == pytest.approx(3e-4, rel=1e-15)
    assert published_rate(250) == pytest.approx(1.5e-4, rel=1e-15)
    assert published_rate(30_000) == pytest.approx(3e-5, rel=1e-15)
    assert math.fsum(published_rate(step) for step in range(30_000)) == pytest.approx(4.942485, abs=5e-7)


@pytest.mark.parametrize(
    ("steps", "decay", "left", "single"), [(30_000, 0.1, 0.6100259, 0.61004), (20_000, 0.01, 0.9676112, 0.96765)]
)
def test_weight_decay_alone_turns_the_angles_back(steps: int, decay: float, left: float, single: float):
    rates = [published_rate(step, steps=steps) for step in range(steps)]
    assert decay_factor(rates, decay) == pytest.approx(left, abs=5e-8)
    assert np.prod([1 - rate * decay for rate in rates]) == pytest.approx(left, abs=5e-8)
    in_single = np.float32(1)
    for rate in rates:
        in_single *= np.float32(1 - rate * decay)
    assert in_single == pytest.approx(single, abs=5e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_this_is_what_adamw_does_with_a_gradient_of_zero(dtype: torch.dtype):
    theta = torch.nn.Parameter(torch.ones(1, dtype=dtype))
    theta.grad = torch.zeros_like(theta)
    optimiser = torch.optim.AdamW([theta], weight_decay=0.1, betas=(0.9, 0.95))
    expected, rates = theta.detach().numpy().copy(), [published_rate(step) for step in range(700)]
    for rate in rates:
        optimiser.param_groups[0]["lr"] = rate
        optimiser.step()
        expected *= expected.dtype.type(1 - rate * 0.1)
    assert np.array_equal(theta.detach().numpy(), expected)
    assert theta.item() == pytest.approx(decay_factor(rates, 0.1), abs=1e-5)


def test_decay_without_a_gradient_is_none_at_all():
    theta = torch.nn.Parameter(torch.ones(1))
    torch.optim.AdamW([theta], weight_decay=0.1).step()
    assert theta.item() == 1
