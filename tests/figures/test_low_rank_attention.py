"""The charts of ranks and temperatures say what the Datasets say."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr

from lens.base.errors import InputError
from lens.figures.low_rank_attention import low_rank_chart, temperature_chart
from lens.figures.static_chart import static_figure

SHARES = np.linspace(0.2, 1, 8) ** np.array([0.5, 1.0])[:, None]  # of two heads
CUTS = xr.Dataset(
    {
        "singular_share": (("document", "block", "head", "rank"), np.stack([SHARES, SHARES])[:, None]),
        "energy_share": (("document", "block", "head", "rank"), np.stack([SHARES, SHARES])[:, None] ** 0.25),
        "uniform_singular_share": ("rank", np.linspace(0.3, 1, 8)),
        "cost": (("part", "kept"), [[2.0, 0.5], [3.0, 0.25]]),
        "cost_low": (("part", "kept"), [[1.5, 0.25], [2.5, 0.0]]),
        "cost_high": (("part", "kept"), [[2.5, 0.75], [3.5, 0.5]]),
    },
    {"block": [3], "head": [0, 1], "rank": np.arange(1, 9), "part": ["best", "masked"], "kept": [1, 2]},
    {"tokens": 8},
)
SWEEP = xr.Dataset(
    {
        "cost": ("operator", [0.0, 0.5, 0.75]),
        "cost_low": ("operator", [0.0, 0.25, 0.5]),
        "cost_high": ("operator", [0.0, 0.75, 1.0]),
        "mean_entropy": ("operator", np.log([4.0, 8.0, 2.0])),
    },
    {"operator": ["as trained", "warm", "cold"]},
)


def test_shares_heads_and_costs():
    spec = low_rank_chart(CUTS)
    share, heads, cost = spec["plots"]
    assert share["rules"][0]["value"] == 2
    assert share["series"][0]["values"] == pytest.approx(SHARES.mean(0).tolist(), rel=1e-3)
    assert share["series"][2]["values"][0] == 0.3
    assert heads["values"] == [pytest.approx(SHARES[:, 1].tolist(), rel=1e-3)]
    assert heads["value"]["range"][0] <= SHARES[:, 1].min()
    assert cost["x"]["values"] == [1, 2]
    assert [one["values"] for one in cost["series"]] == [[2, 0.5], [3, 0.25]]
    assert cost["series"][1]["high"] == [3.5, 0.5]
    json.dumps(spec, allow_nan=False)
    static_figure(spec)


def test_the_trained_model_stands_at_temperature_one():
    cost, looks = temperature_chart(SWEEP, {"warm": 2.0, "cold": 0.5})["plots"]
    assert cost["x"]["values"] == [0.5, 1, 2]
    assert cost["series"][0]["values"] == [0.75, 0, 0.5]
    assert cost["series"][0]["low"] == [0.5, 0, 0.25]
    assert looks["series"][0]["values"] == [2, 4, 8]


def test_an_unknown_operator_is_refused():
    with pytest.raises(InputError, match="'hot'"):
        temperature_chart(SWEEP, {"hot": 4.0})
