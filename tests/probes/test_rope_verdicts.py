"""Theories of the base against a sweep made by hand, in which it is known where the model works."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from lens.base.errors import InputError
from lens.probes.rope_sweep import TRAINED, rope_sweep
from lens.probes.rope_verdicts import bounds_to_try, breaking_points, rope_verdicts

BASES = [1e2, 3e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8]
COSTS = [4.0, 1.0, 0.5, 0.09, 0.0, 0.05, 0.2, 0.5]


def made(costs=COSTS, width: float = 0.02, window: int = 256) -> xr.Dataset:
    """A sweep of a model trained at 100,000 with 30 blocks and 64 rotary dimensions; intervals are `cost ± width`."""
    cost = np.array([0.0, *costs])
    kinds = [TRAINED, *["base"] * len(BASES)]
    return xr.Dataset(
        {
            name: (("table",), values, {"long_name": name, "units": "nats"})
            for name, values in {"cost": cost, "cost_low": cost - width, "cost_high": cost + width}.items()
        }
        | {"document_cost": (("document",), np.zeros(12))},
        {"table": [TRAINED, *(f"base {base:g}" for base in BASES)], "base": ("table", [1e5, *BASES]), "kind": ("table", kinds)},
        {"window": window, "blocks": 30, "width": 64, "trained_base": 1e5, "model": "m", "corpus": "c", "tokens_scored": 3060},
    )


def test_outcomes_are_read_off_the_intervals():
    found = rope_verdicts(made())
    assert found.base.to_numpy().tolist() == BASES
    assert found.outcome.to_numpy().tolist() == ["fails", "fails", "fails", "open", "works", "works", "fails", "fails"]
    assert (found.attrs["decided"], found.attrs["works_from"], found.attrs["works_to"]) == (7, 1e5, 1e6)
    surer = rope_verdicts(made(width=0.005))
    assert surer.outcome.to_numpy().tolist()[3] == "works"
    assert (surer.attrs["decided"], surer.attrs["works_from"]) == (8, 1e4)


@pytest.mark.parametrize(
    ("theory", "required", "right", "works_though", "fails_though", "short_of", "at"),
    [
        ("DC stability", 806.1457801, 5, 0, 3, (3e2, 1.0), (1e3, 0.5)),
        ("depth", 4379.0415, 6, 0, 2, (1e3, 0.5), (1e4, 0.09)),
        ("aliasing", 40.7436654, 3, 0, 5, (np.nan, np.nan), (1e2, 4.0)),
        ("precision wall", 8388608.0, 5, 0, 3, (1e7, 0.2), (1e6, 0.05)),
    ],
)
def test_theories_are_counted_as_by_hand(theory, required, right, works_though, fails_though, short_of, at):
    found = rope_verdicts(made(width=0.005)).sel(theory=theory)
    assert float(found.required) == pytest.approx(required, rel=1e-6)
    counts = int(found.right), int(found.works_though_not_allowed), int(found.fails_though_allowed)
    assert counts == (right, works_though, fails_though)
    assert (float(found.base_short_of), float(found.cost_short_of)) == pytest.approx(short_of, nan_ok=True)
    assert (float(found.base_at), float(found.cost_at)) == pytest.approx(at, nan_ok=True)


def test_a_base_above_the_smallest_one_can_let_the_kernel_fall_below_zero():
    """The bases at which a similar key is always ahead are no interval, so that each one is tried itself."""
    theta = 5e3 ** (-np.arange(32) / 32)
    assert (np.cos(np.multiply.outer(np.arange(513), theta)).sum(1) < 0).any()
    sweep = made(window=512)
    sweep["base"] = ("table", [1e5, 1e2, 3e2, 1e3, 5e3, 1e5, 1e6, 1e7, 1e8])
    found = rope_verdicts(sweep).sel(theory="similar beats random")
    assert float(found.required) < 5e3
    assert not found.allowed.sel(base=5e3)


def test_a_base_that_works_below_a_bound_speaks_against_it():
    found = rope_verdicts(made(costs=[0.5, 0.5, 0.01, 0.01, 0, 0, 0, 0], width=0.005)).sel(theory="depth")
    assert int(found.works_though_not_allowed) == 1
    assert int(found.right) == 7


def test_every_bound_can_be_tried_and_stands_on_its_own_side():
    bounds = bounds_to_try(256, 30, 64)
    assert bounds["depth"] == pytest.approx(4379.0415, rel=1e-6)
    sweep = made()
    sweep["base"] = ("table", [1e5, *list(bounds.values())[:7], 1e9])
    found = rope_verdicts(sweep)
    for theory in ("DC stability", "depth", "similar beats random", "slow-lane share"):
        assert float(found.base_at.sel(theory=theory)) == pytest.approx(bounds[theory], rel=1e-6)


def test_bounds_that_agree_are_tried_once():
    found = bounds_to_try(100, 1, 64)
    assert "depth" not in found
    assert len(set(found.values())) == len(found)


def test_a_sweep_of_a_model_can_be_judged_and_kept(tiny, tmp_path: Path):
    rng = np.random.default_rng(0)
    sweep = rope_sweep(tiny, rng.integers(4, 120, (5, 30)).tolist(), [20.0, 1e3, 1e4, 1e8])
    found = rope_verdicts(sweep, tolerance=0.01)
    assert found.base.to_numpy().tolist() == [20, 1e3, 1e4, 1e8]
    assert found.cost.to_numpy() == pytest.approx(sweep.cost[1:].to_numpy())
    assert found.outcome.sel(base=1e4) == "works"
    found.to_netcdf(tmp_path / "verdicts.nc")
    with xr.open_dataset(tmp_path / "verdicts.nc") as again:
        xr.testing.assert_identical(again.load(), found)


def test_one_base_or_one_document_is_refused(tiny):
    with pytest.raises(InputError, match="1 other bases"):
        rope_verdicts(made().isel(table=[0, 1]))
    with pytest.raises(InputError, match="1 documents"):
        rope_verdicts(rope_sweep(tiny, [[5, 9, 17, 3, 44]], [20.0, 1e3]))


def made_long() -> xr.Dataset:
    """Base 100 is lost from position 40 on, base 1,000 never; positions beyond 50 are reached by one window of four."""
    loss = np.full((3, 60), 2.0)
    loss[1, 40:] = 9.0
    loss[2] = 3.0
    return xr.Dataset(
        {"loss": (("table", "position"), loss), "scored": ("position", [4] * 50 + [1] * 10)},
        {"base": ("table", [1e5, 1e2, 1e3]), "kind": ("table", [TRAINED, "base", "base"])},
        {"width": 64, "model": "m", "corpus": "c", "tokens_scored": 210},
    )


def test_a_model_is_lost_where_its_average_cost_is_too_high():
    found = breaking_points(made_long(), cost=3.0, average=10)
    # The average from position p on is above 3 of 7 once more than 3/7 of its ten positions lie beyond 40: from 35 on.
    assert found.position.to_numpy() == pytest.approx([35 + 4.5, np.nan], nan_ok=True)
    assert float(found.slowest_phase[0]) == pytest.approx(39.5 * 100 ** -(62 / 64))
    assert found.highest_cost.to_numpy().tolist() == [7, 1]


def test_rare_positions_weigh_less():
    sweep = made_long()
    sweep["loss"][1, 40:50] = 2.0
    found = breaking_points(sweep, cost=3.0, average=15)  # five positions of weight four, or ten of weight one
    assert np.isnan(found.position[0])
    assert float(found.highest_cost[0]) == pytest.approx(7 * 10 / (5 * 4 + 10))


def test_windows_shorter_than_the_average_are_refused():
    with pytest.raises(InputError, match="60 positions"):
        breaking_points(made_long(), average=61)
