"""Spectra: exact for planted covariances, indifferent to rotation, shift and scale, and noise has its null."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

import lens
from lens.base.errors import InputError
from lens.probes.spectrum import spectrum
from tests.probes.test_procrustes import states, turn
from tests.probes.test_shortcuts import moments_of, noise

MEASURES = ["participation_ratio", "effective_rank", "anisotropy"]


def planted(variances: list[float], frame: torch.Tensor) -> torch.Tensor:
    """States whose covariance has exactly these eigenvalues along the rows of the frame."""
    n, d = 50, len(variances)
    white = torch.linalg.qr(states(n, d) - states(n, d).mean(0)).Q * (n - 1) ** 0.5
    return white * torch.tensor(variances, dtype=torch.float64).sqrt() @ frame


def test_eigenvalues_shares_and_all_measures_of_a_planted_covariance():
    found = spectrum(moments_of(planted([8, 4, 4], turn(3)) + 7, planted([1, 1, 1], turn(3)))).isel(layer=0)
    assert np.allclose(found.eigenvalue, [8, 4, 4], rtol=1e-5)
    assert np.allclose(found.share, [0.5, 0.25, 0.25], rtol=1e-5)
    assert float(found.participation_ratio) == pytest.approx(16**2 / 96, rel=1e-5)
    assert float(found.effective_rank) == pytest.approx(2**1.5, rel=1e-5)
    assert float(found.anisotropy) == pytest.approx(0.5, rel=1e-5)


def test_even_states_fill_all_directions_and_rank_one_fills_one():
    line = states(50, 1) @ states(1, 6, 3)
    found = spectrum(moments_of(planted([2.0] * 6, torch.eye(6, dtype=torch.float64)), line))
    for name in MEASURES[:2]:
        assert np.allclose(found[name], [6, 1], atol=1e-4)
    assert np.allclose(found.anisotropy, [1 / 6, 1], atol=1e-5)


def test_rotation_shift_and_scale_change_no_measure():
    x = states(80, 10) * torch.linspace(1, 3, 10, dtype=torch.float64)
    found = spectrum(moments_of(x, 0.3 * x @ turn(10) + 100))
    for name in [*MEASURES, "share"]:
        assert np.allclose(found[name][0], found[name][1], rtol=1e-5)


@pytest.mark.parametrize(("n", "d"), [(4000, 100), (300, 400)])
def test_isotropic_noise_has_its_null(n: int, d: int):
    found = spectrum(noise(n, d, 0)).isel(layer=0)
    for name in MEASURES:
        assert float(found[name]) == pytest.approx(float(found[f"{name}_null"]), rel=0.04)
    assert float(spectrum(noise(4000, 100, 1)).anisotropy_null[0]) == pytest.approx(0.0134, abs=5e-5)


def test_a_massive_coordinate_is_named_with_its_share():
    x = torch.linalg.qr(states(200, 8) - states(200, 8).mean(0)).Q
    x[:, 5] *= 30
    found = spectrum(moments_of(x, x[:, [5, 0, 1, 2, 3, 4, 6, 7]]))
    assert list(found.top_coordinate) == [5, 0]
    assert np.allclose(found.top_coordinate_share, 900 / 907, rtol=1e-5)
    assert np.allclose(found.anisotropy, 900 / 907, rtol=1e-5)


def test_what_does_not_vary_is_refused():
    x = states(100, 4)
    with pytest.raises(InputError, match="one state at layer 1"):
        spectrum(moments_of(x, torch.full_like(x, 1e4)))
    with pytest.raises(InputError, match="1 tokens"):
        spectrum(replace(moments_of(x, x), count=1))


def test_result_goes_through_netcdf(tmp_path):
    found = spectrum(noise(100, 5, 0))
    found.to_netcdf(tmp_path / "found.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "found.nc", engine="h5netcdf") as again:
        xr.testing.assert_identical(again.load(), found)
    assert list(found.component) == [1, 2, 3, 4, 5]
    assert (np.diff(found.eigenvalue) <= 0).all()


def test_a_real_pass_leaves_out_only_layers_without_a_pair(tiny):
    text = lens.corpus([" ".join(f"w{(i * k) % 97}" for i in range(40)) for k in range(1, 60)])
    moments = lens.collect_moments(tiny, text, tokens=400, pairs=[(0, 1), (1, 3)], window=32)
    assert list(spectrum(moments.train).layer) == [0, 1, 3]
