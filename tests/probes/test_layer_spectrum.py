"""Spectra over depth, and the decay of variances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from lens.base.errors import InputError
from lens.models.model import Model
from lens.probes.layer_spectrum import layer_spectrum, power_law
from tests.models.families import build


def to_and_fro(layers: int) -> torch.Tensor:
    """Two positions whose states are ±v, growing all the way."""
    signs = (-1.0) ** torch.arange(layers, dtype=torch.float64)
    sizes = 1.3 ** torch.arange(layers, dtype=torch.float64)
    return (signs * sizes)[:, None, None] * torch.randn(1, 2, 6, dtype=torch.float64)


def test_states_that_point_to_and_fro_have_half_a_cycle_a_layer():
    found = layer_spectrum(to_and_fro(32))
    assert float(found.frequency[int(found.share.argmax("frequency"))]) == 0.5
    assert float(found.share.sel(frequency=0.5)) > 0.97
    odd = layer_spectrum(to_and_fro(31))
    assert float(odd.frequency[int(odd.share.argmax("frequency"))]) == pytest.approx(15 / 31)


def test_a_wave_over_layers_is_found_and_a_straight_way_is_not():
    layers = torch.arange(32, dtype=torch.float64)[:, None, None]
    one, other = torch.eye(4, dtype=torch.float64)[:2, None]
    turning = torch.cos(2 * torch.pi * layers / 8) * one + torch.sin(2 * torch.pi * layers / 8) * other
    found = layer_spectrum(turning.expand(32, 3, 4))
    assert float(found.frequency[int(found.share.argmax("frequency"))]) == pytest.approx(1 / 8)
    assert float(layer_spectrum(torch.ones(8, 2, 4, dtype=torch.float64)).power.max()) < 1e-28


def test_white_noise_has_the_shares_that_are_said_to_be_its():
    found = layer_spectrum(torch.randn(31, 200, 200, dtype=torch.float64))
    assert found.share.to_numpy() == pytest.approx(found.white_share.to_numpy(), rel=0.03, abs=1e-4)
    assert float(found.share.sum()) == pytest.approx(1)


def test_power_adds_up_and_the_first_position_is_no_part_of_the_share():
    states = torch.randn(9, 3, 5, dtype=torch.float64)
    units = (states / states.norm(dim=-1, keepdim=True)).numpy()
    layers = np.arange(9)
    rest = units - np.stack([np.polyval(np.polyfit(layers, units[:, 1, d], 1), layers) for d in range(5)], 1)[:, None]
    found = layer_spectrum(states)
    assert float(found.power.sel(position=1).sum()) == pytest.approx((rest[:, 1] ** 2).sum(), rel=1e-12)
    other = states.clone()
    other[:, 0] = torch.randn(9, 5, dtype=torch.float64)
    assert np.allclose(layer_spectrum(other).share, found.share, rtol=1e-12)


def test_few_layers_and_states_without_a_direction_are_refused():
    run = Model(build("llama")).run(list(range(12)))
    with pytest.raises(InputError, match="five layers"):
        layer_spectrum(run)  # three blocks: four states
    states = torch.ones(6, 3, 4)
    states[2] = 0
    with pytest.raises(InputError, match="state of layer 2 is zero"):
        layer_spectrum(states)


def test_a_power_law_is_found_in_the_range_that_it_holds_in():
    ranks = np.arange(1, 101)
    values = np.stack([ranks**-1.5, np.where(ranks < 20, 1.0, (ranks / 20) ** -2.0)])
    eigenvalues = xr.DataArray(values, dims=("layer", "component"), coords={"layer": [0, 7], "component": ranks})
    found = power_law(eigenvalues, first=20, last=100)
    assert found.exponent.to_numpy() == pytest.approx([1.5, 2.0])
    assert found.r_squared.to_numpy() == pytest.approx([1, 1])
    whole = power_law(eigenvalues, first=1, last=100)
    assert float(whole.r_squared.sel(layer=7)) < 0.95
    assert power_law(eigenvalues[0], first=1, last=3).exponent == pytest.approx(1.5)


def test_ranges_that_hold_no_line_are_refused():
    eigenvalues = xr.DataArray(np.r_[np.ones(5), 0], dims=("component",))
    for first, last in ((0, 5), (1, 2), (4, 7)):
        with pytest.raises(InputError, match="within 1 to 6"):
            power_law(eigenvalues, first=first, last=last)
    with pytest.raises(InputError, match="is zero"):
        power_law(eigenvalues, first=3, last=6)
