"""The published numbers agree with each other, and say what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import xarray as xr

from lens.probes.phase_published import published_runs


@pytest.fixture(scope="module")
def found():
    return published_runs()


def test_losses_are_the_logarithms_of_the_perplexities(found):
    for loss, perplexity in (
        ("loss", "perplexity"),
        ("sweep_loss", "sweep_perplexity"),
        ("baseline_loss", "baseline_perplexity"),
    ):
        rounding = 5e-3 / found[perplexity].min() + 5e-5  # two decimals at least, and four
        assert float(np.abs(np.log(found[perplexity]) - found[loss]).max()) <= float(rounding)


def test_the_means_and_spreads_are_the_published_ones(found):
    three, one = found.perplexity.sel(phases=3), found.perplexity.sel(phases=1)
    assert (float(three.mean()), float(three.std(ddof=1))) == pytest.approx((16.1723, 0.0954), abs=5e-5)
    assert (float(one.mean()), float(one.std(ddof=1))) == pytest.approx((16.0945, 0.0800), abs=1e-4)
    assert float(found.gain) == pytest.approx(0.0720, abs=5e-5)
    assert float(found.mean_gain) == pytest.approx(0.066, abs=5e-4)


def test_paired_by_seed_three_phases_and_one_do_not_differ(found):
    assert found.difference.values == pytest.approx([0.1293, -0.1025, 0.2067], abs=5e-5)
    assert float(found.mean_difference) == pytest.approx(0.0778, abs=5e-5)
    assert float(found.standard_error) == pytest.approx(0.0929, abs=5e-5)
    assert float(found.standard_error) * math.sqrt(3) == pytest.approx(0.1609, abs=5e-5)
    assert abs(float(found.mean_difference)) < 2 * float(found.standard_error)


def test_in_the_sweep_one_phase_is_best_and_twelve_worst(found):
    order = found.sweep.values[np.argsort(found.sweep_perplexity.values)]
    assert order.tolist() == [1, 2, 4, 3, 6, 8, 12]


def test_it_goes_to_a_file_and_back(found, tmp_path):
    found.to_netcdf(tmp_path / "runs.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "runs.nc", engine="h5netcdf") as kept:
        xr.testing.assert_identical(kept.load(), found)
