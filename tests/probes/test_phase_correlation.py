"""Correlation of channels by phase, against states whose structure is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

import lens
from lens.base.errors import InputError
from lens.moments import Accumulator
from lens.probes.phase_correlation import phase_correlation
from tests.models.families import build


@pytest.fixture(scope="module")
def run():
    return lens.load(build("llama")).run(list(range(1, 64)))


def with_states(run, states: torch.Tensor):
    names = ("x",) * len(states)
    return replace(run, residual=states.expand(2, -1, -1).float(), token_ids=torch.arange(len(states)), tokens=names, logits=None)


def test_the_means_are_those_of_a_correlation_matrix(run):
    found = phase_correlation(run, 4, partitions=2)
    for layer in (0, 3):
        strength = np.abs(np.corrcoef(run.residual[layer].double().numpy().T))
        phase = np.arange(32) // 8
        same = phase[:, None] == phase
        np.fill_diagonal(strength, np.nan)
        assert float(found.within[layer]) == pytest.approx(np.nanmean(strength[same]), rel=1e-12)
        assert float(found.between[layer]) == pytest.approx(np.nanmean(strength[~same]), rel=1e-12)


def test_independent_channels_show_the_noise_and_nothing_between_phases(run):
    states = torch.randn(4000, 32, dtype=torch.float64)
    found = phase_correlation(with_states(run, states), 2, partitions=50)
    assert float(found.noise) == pytest.approx(np.sqrt(2 / (np.pi * 4000)))
    assert float(found.within[0]) == pytest.approx(float(found.noise), rel=0.06)
    assert 0.02 < float(found.above[0].sel(unit="channel")) < 0.98


def test_a_phase_of_its_own_is_seen_by_both_kinds_of_partitions(run):
    shared = torch.randn(500, 4).repeat_interleave(8, 1)
    found = phase_correlation(with_states(run, shared + torch.randn(500, 32)), 4, partitions=50)
    assert (found.above == 0).all()
    assert float(found.within[0]) == pytest.approx(0.5, abs=0.05)
    assert float(found.between[0]) < 0.1


def test_mere_pairs_are_seen_by_partitions_of_channels_alone(run):
    shared = torch.randn(2000, 16).repeat_interleave(2, 1)
    found = phase_correlation(with_states(run, shared + 0.3 * torch.randn(2000, 32)), 4, partitions=100).isel(layer=0)
    assert float(found.above.sel(unit="channel")) == 0
    assert float(found.above.sel(unit="pair")) > 0.02


def test_moments_give_what_the_run_gives(run):
    layers, limits = ((0, 1), (1, 2), (2, 3)), torch.full((4,), torch.inf)
    accumulator = Accumulator(run.residual.mean(1), limits, layers, drop_first=False, source={})
    accumulator.add(run.residual[:, None])
    accumulator.flush()
    found, plain = phase_correlation(accumulator.moments, 4, partitions=3), phase_correlation(run, 4, partitions=3)
    assert np.allclose(found.within, plain.within, atol=1e-5)
    assert np.allclose(found.random_difference, plain.random_difference, atol=1e-5)
    with pytest.raises(InputError, match="not given"):
        phase_correlation(accumulator.moments)
    with pytest.raises(InputError, match="are of mlp"):
        phase_correlation(replace(accumulator.moments, source={"states": "mlp"}), 4)


def test_what_cannot_be_compared_is_refused(run):
    with pytest.raises(InputError, match="1 phases of 32"):
        phase_correlation(run, 1)
    with pytest.raises(InputError, match="does not vary"):
        phase_correlation(run.model.run([1]), 2)
    with pytest.raises(InputError, match="no phases of its own"):
        phase_correlation(run)


def test_it_goes_to_a_file_and_back(run, tmp_path):
    found = phase_correlation(run, 2, partitions=3)
    found.to_netcdf(tmp_path / "correlation.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "correlation.nc", engine="h5netcdf") as kept:
        xr.testing.assert_identical(kept.load(), found)
