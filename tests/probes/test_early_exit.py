"""Early exit on readings made by hand, where every exit can be told."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from lens.base.errors import InputError
from lens.probes.early_exit import NEVER, early_exit

POSITION = np.array([1, 2, 3, 1, 2, 3, 1, 2])
DOCUMENT = np.array([0, 0, 0, 1, 1, 1, 2, 2])


def readings(margin: np.ndarray, rank: np.ndarray, lenses: tuple[str, ...] = ("plain",)) -> xr.Dataset:
    """`[lens, layer, token]` margins and ranks of a model of three blocks and eight tokens."""
    cell = ("lens", "layer", "token")
    return xr.Dataset(
        {"token_margin": (cell, margin), "token_rank": (cell, rank)},
        coords={
            "lens": list(lenses), "layer": np.arange(4), "document": ("token", DOCUMENT), "position": ("token", POSITION),
        },
        attrs={"model": "by hand"},
    )  # fmt: skip


@pytest.fixture
def sure_at_one() -> xr.Dataset:
    """Sure at layer 1 with margin 0.8, right there for all tokens but the last two; surer and right later."""
    margin = np.tile(np.array([0.1, 0.8, 0.9, 0.95])[None, :, None], (1, 1, 8))
    rank = np.ones((1, 4, 8))
    rank[:, :2, -2:] = 0
    return readings(margin, rank)


def test_extremes(sure_at_one):
    """Always: every token leaves at layer 1. Never: none before the last. Nobody leaves at layer 0."""
    found = early_exit(sure_at_one, (-NEVER, NEVER)).isel(lens=0)
    assert found.layers_run.values.tolist() == [1.0, 3.0]
    assert found.agreement.values.tolist() == [0.75, 1.0]
    assert found.layers_saved.values == pytest.approx([2 / 3, 0.0])


def test_threshold_falls_with_position(sure_at_one):
    """At λ = 0.85 the threshold is 0.765 + 0.1·exp(−4t/N): above 0.8 only for t = 1."""
    mean = POSITION.mean()
    assert [0.765 + 0.1 * np.exp(-4 * t / mean) < 0.8 for t in (1, 2, 3)] == [True, True, True]
    strict = (0.8 - 0.1 * np.exp(-4 * 1.5 / mean)) / 0.9  # the threshold passes 0.8 between t = 1 and t = 2
    found = early_exit(sure_at_one, (strict,)).isel(lens=0, strictness=0)
    first = POSITION == 1
    assert float(found.layers_run) == pytest.approx(np.where(first, 2, 1).mean())


def test_a_lens_that_is_never_sure_saves_nothing(sure_at_one):
    timid = sure_at_one.assign(token_margin=sure_at_one.token_margin * 0)
    found = early_exit(timid).isel(lens=0)
    assert float(found.layers_run.sel(strictness=0.5)) == 3
    assert float(found.agreement.sel(strictness=0.5)) == 1


def test_layers_that_a_lens_cannot_read_are_passed(sure_at_one):
    blind = sure_at_one.copy(deep=True)
    blind.token_margin[:, 1] = np.nan
    found = early_exit(blind, (-NEVER, 0.5)).isel(lens=0)
    assert found.layers_run.values.tolist() == [2.0, 2.0]


def test_saved_at_95_lies_between_two_points_of_the_curve():
    """A fifth of the exits at layer 2 are wrong: 95 % agreement costs a quarter of what it saves."""
    margin = np.zeros((1, 4, 8))
    margin[:, 2] = 0.5
    rank = np.ones((1, 4, 8))
    rank[:, 2, 0] = 0  # one of eight is wrong
    found = early_exit(readings(margin, rank), (0.1, 0.9)).isel(lens=0)
    assert found.agreement.values.tolist() == [0.875, 1.0]
    assert float(found.saved_at_95) == pytest.approx((1 / 3) * (1 - 0.95) / (1 - 0.875))
    assert float(found.saved_at_95_low) <= float(found.saved_at_95) <= float(found.saved_at_95_high)


def test_a_perfect_lens_saves_all_but_the_first_layer():
    found = early_exit(readings(np.ones((1, 4, 8)), np.ones((1, 4, 8)))).isel(lens=0)
    assert float(found.saved_at_95) == pytest.approx(2 / 3)


def test_several_lenses_keep_their_names_and_go_through_netcdf(sure_at_one, tmp_path):
    both = xr.concat([sure_at_one, sure_at_one.assign(token_margin=sure_at_one.token_margin * 0)], "lens")
    found = early_exit(both.assign_coords(lens=np.array(["plain", "shortcut"], dtype=object)))
    assert (found.saved_at_95.sel(lens="plain") > found.saved_at_95.sel(lens="shortcut")).item()
    found.to_netcdf(tmp_path / "exits.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "exits.nc", engine="h5netcdf") as again:
        xr.testing.assert_identical(again.load(), found)


def test_strictness_out_of_order_is_refused(sure_at_one):
    for wrong in ((0.5, 0.1), ()):
        with pytest.raises(InputError, match="ascending"):
            early_exit(sure_at_one, wrong)
