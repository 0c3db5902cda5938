"""CKA: 1 for the same geometry, its exact null for shuffled tokens, and one outlier's power over it."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
import xarray as xr

from lens.base.errors import InputError
from lens.moments import Accumulator, Mask, outlier_limits
from lens.probes.cka import cka
from tests.probes.test_procrustes import states, turn
from tests.probes.test_shortcuts import moments_of, noise


def test_a_layer_is_like_itself():
    x = states(60, 12)
    assert cka(moments_of(x, x)).cka.item() == pytest.approx(1, abs=1e-6)


def test_rotation_scale_and_shift_of_either_side_change_nothing_and_a_stretch_does():
    x, y = states(200, 12), states(200, 12, 1) + states(200, 12)
    plain = cka(moments_of(x, y)).cka.item()
    assert cka(moments_of(3 * x @ turn(12) - 2, y)).cka.item() == pytest.approx(plain, abs=1e-6)
    assert cka(moments_of(x, 0.2 * y @ turn(12, 8) + 5)).cka.item() == pytest.approx(plain, abs=1e-6)
    assert cka(moments_of(y, x)).cka.item() == pytest.approx(plain, abs=1e-6)
    stretch = torch.linspace(0.1, 3, 12, dtype=torch.float64)
    assert abs(cka(moments_of(x, y * stretch)).cka.item() - plain) > 0.01


@pytest.mark.parametrize(("n", "expected"), [(1000, 0.0909), (4000, 0.0244)])
def test_noise_has_its_null_level(n: int, expected: float):
    found = cka(noise(n, 100, 0))
    assert found.cka.item() == pytest.approx(expected, abs=0.002)
    assert found.null.item() == pytest.approx(100 / (n + 100), rel=0.01)


def test_the_null_is_the_mean_over_every_shuffle_of_any_states():
    x, y = states(6, 3) ** 3, states(6, 3, 1).exp() + 4
    shuffled = [cka(moments_of(x, y[list(order)])).cka.item() for order in permutations(range(6))]
    assert cka(moments_of(x, y)).null.item() == pytest.approx(np.mean(shuffled), abs=1e-6)


@pytest.mark.parametrize(("mask", "dropped"), [("none", 0), ("robust", 1)])
def test_one_massive_token_rules_cka_until_the_robust_mask_drops_it(mask: Mask, dropped: int):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 64, generator=generator)
    y = x @ turn(64).float() + 0.1 * torch.randn(20_000, 64, generator=generator)
    y[777, 5] += 150 * 64**0.5
    both = torch.stack([x, y])
    limits = outlier_limits(both.norm(dim=-1), mask)
    into = Accumulator(both.mean(1), limits, [(0, 1)], drop_first=False, source={})
    into.add(both.reshape(2, 100, 200, 64))
    into.flush()
    assert (into.moments.count, into.moments.dropped["massive"]) == (20_000 - dropped, dropped)
    found = cka(into.moments).cka.item()
    assert found > 0.95 if dropped else found < 0.3


def test_pairs_are_selected_and_missing_ones_refused():
    x = states(50, 5)
    moments = moments_of(x, x, states(50, 5, 1))
    found = cka(moments, pairs=[(0, 2), (0, 1)])
    assert list(found.to_layer) == [1, 2]
    assert np.allclose(found.cka, cka(moments).cka[:2])
    with pytest.raises(InputError, match="lack the pairs"):
        cka(moments, pairs=[(1, 3)])
    with pytest.raises(InputError, match="1 tokens"):
        cka(replace(moments, count=1))
    with pytest.raises(InputError, match="one state at layer 0"):
        cka(moments_of(torch.ones(9, 3, dtype=torch.float64), states(9, 3)))


def test_result_goes_through_netcdf(tmp_path):
    found = cka(noise(100, 5, 0))
    found.to_netcdf(tmp_path / "found.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "found.nc", engine="h5netcdf") as again:
        xr.testing.assert_identical(again.load(), found)
