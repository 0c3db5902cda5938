"""The charts of a sweep say what its Dataset says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr

from lens.base.errors import InputError
from lens.figures.rope_sweep import ablation_chart, sweep_chart
from lens.figures.static_chart import static_figure

NAMES = ["as trained", "base 100", "base 1,000", "base 1,000,000", "slow lanes stopped"]


def sweep() -> xr.Dataset:
    cost = np.array([0.0, 2.0, 0.5, 0.25, 0.125])
    binned = np.outer(cost, [0.5, 1.5])
    return xr.Dataset(
        {
            "cost": ("table", cost), "cost_low": ("table", cost - 0.1), "cost_high": ("table", cost + 0.1),
            "bin_cost": (("table", "bin"), binned), "bin_cost_low": (("table", "bin"), binned - 0.1),
            "bin_cost_high": (("table", "bin"), binned + 0.1),
        },
        {
            "table": NAMES, "base": ("table", [1e4, 1e2, 1e3, 1e6, 1e4]),
            "kind": ("table", ["as trained", *["base"] * 3, "lanes"]),
            "bin_start": ("bin", [0, 16]), "bin_stop": ("bin", [16, 101]),
        },
        {"trained_base": 1e4},
    )  # fmt: skip


def values(plot) -> dict[str, list]:
    return {one["name"]: one["values"] for one in plot["series"]}


def test_cost_by_base_has_the_trained_base_at_zero():
    plot = sweep_chart(sweep())["plots"][0]
    assert plot["x"]["values"] == [100, 1000, 10000, 1000000]
    assert plot["x"]["scale"] == "log"
    assert values(plot) == {"turned": [2, 0.5, 0, 0.25], "as trained": [None, None, 0, None]}
    assert plot["series"][0]["low"] == [1.9, 0.4, 0, 0.15]


def test_a_trained_base_that_was_swept_too_is_one_point():
    rows = sweep()
    rows["base"] = ("table", [1e3, 1e2, 1e3, 1e6, 1e3])
    rows.attrs["trained_base"] = 1e3
    assert sweep_chart(rows)["plots"][0]["x"]["values"] == [100, 1000, 1000000]


def test_cost_by_position_stands_in_the_middle_of_each_bin():
    plot = sweep_chart(sweep(), ["base 100", "slow lanes stopped"])["plots"][1]
    assert plot["x"]["values"] == [7.5, 58]
    assert values(plot) == {"base 100": [1, 3], "slow lanes stopped": [0.0625, 0.1875]}


def test_by_default_bases_are_shown_by_position():
    assert list(values(sweep_chart(sweep())["plots"][1])) == NAMES[1:4]


def test_ablations_of_several_sweeps_stand_beside_each_other():
    other = sweep()
    other["cost"] = 2 * other.cost
    (plot,) = ablation_chart({"256": sweep(), "2,048": other}, ["slow lanes stopped", "base 100"])["plots"]
    assert plot["x"]["labels"] == ["slow lanes stopped", "base 100"]
    assert values(plot) == {"256": [0.125, 2], "2,048": [0.25, 4]}


def test_refusals():
    with pytest.raises(InputError, match="The sweep has 1 bases"):
        sweep_chart(sweep().isel(table=[0, 1]))
    with pytest.raises(InputError, match="The tables are base 7"):
        sweep_chart(sweep(), ["base 7"])
    with pytest.raises(InputError, match="has no row base 7"):
        ablation_chart({"256": sweep()}, ["base 7"])


def test_charts_are_json_and_can_be_drawn():
    for spec in (sweep_chart(sweep()), ablation_chart({"256": sweep()}, NAMES)):
        assert json.loads(json.dumps(spec)) == spec
        assert static_figure(spec).get_axes()
