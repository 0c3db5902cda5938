"""The charts of claims on lanes say what the Dataset says."""

from __future__ import annotations

import json

import numpy as np
import xarray as xr

from lens.figures.lane_claims import key_order_chart, lane_claims_chart

DIMS = ("document", "block", "head", "lane")


def claims(blocks: int = 5) -> xr.Dataset:
    shape = (2, blocks, 2, 3)
    amplitude = np.arange(np.prod(shape), dtype=float).reshape(shape)
    return xr.Dataset(
        {
            **dict.fromkeys(("query_amplitude", "key_amplitude", "first_key_amplitude"), (DIMS, amplitude)),
            "joint_share": (DIMS, np.tile([0.2, 0.3, 0.5], (2, blocks, 2, 1))),
            "fast_share": (DIMS[:3], np.full((2, blocks, 2), 0.2)),
            **{
                name: ((*DIMS[:3], "base", "distance"), np.linspace(0, 1, 24 * blocks).reshape(2, blocks, 2, 3, 2))
                for name in ("far_beats_near", "flipped")
            },
            "previous_token": (DIMS[:3], np.linspace(0, 0.9, 4 * blocks).reshape(2, blocks, 2)),
        },
        {
            "block": np.arange(blocks), "head": [0, 1], "lane": [0, 1, 2], "base": [0.01, 1.0, 100.0], "distance": [1, 4],
            "wavelength": (("block", "lane"), np.tile([6.283, 63.0, 9999.0], (blocks, 1))),
            "band": (("block", "lane"), np.tile(["fast", "middle", "slow"], (blocks, 1))),
        },
    )  # fmt: skip


def test_lengths_are_means_with_a_rule_before_the_slow_lanes():
    found = claims()
    plot = lane_claims_chart(found)["plots"][0]
    mean = found.query_amplitude.mean(("document", "block", "head"))
    assert [one["name"] for one in plot["series"]] == ["queries", "keys", "first key"]
    assert plot["series"][0]["values"] == mean.to_numpy().tolist()
    assert plot["rules"] == [{"value": 1.5, "label": "longer than the context", "on": "x"}]


def test_shares_stand_over_wavelengths_or_over_numbers():
    plot = lane_claims_chart(claims())["plots"][1]
    assert plot["x"]["labels"] == ["6.28", "63.0", "10,000"]
    assert plot["values"][4] == [0.2, 0.3, 0.5]
    several = claims()
    several["wavelength"][0] = several.wavelength[0] * 2
    assert "labels" not in lane_claims_chart(several)["plots"][1]["x"]


def test_every_head_is_a_dot_and_the_strongest_are_named():
    found = claims()
    plot = lane_claims_chart(found)["plots"][2]
    assert len(plot["dots"]) == 10
    assert plot["named"][0] == "4.1"
    assert plot["dots"][-1]["y"] == float(f"{found.previous_token.mean('document')[4, 1]:.4g}")
    groups = [group["name"] for group in plot["groups"]]
    assert [groups[dot["group"]] for dot in plot["dots"][::2]] == ["first fifth of the blocks", *["between"] * 3, "last fifth"]


def test_the_order_of_keys_stands_over_distance_at_three_bases():
    found = claims()
    beats, flipped = key_order_chart(found)["plots"]
    assert [one["name"] for one in beats["series"]] == ["0.01 × the base", "trained base", "100 × the base"]
    expected = found.far_beats_near.mean(("document", "block", "head")).sel(base=1)
    assert beats["series"][1]["values"] == [float(f"{value:.4g}") for value in expected]
    assert flipped["x"]["values"] == [1, 4]


def test_a_chart_is_plain_data():
    for spec in (lane_claims_chart(claims()), key_order_chart(claims())):
        assert json.loads(json.dumps(spec, allow_nan=False)) == spec
