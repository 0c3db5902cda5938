"""The charts of block linearity say what the Datasets say, on axes that stay while the reader compares."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr

from lens.base.errors import InputError
from lens.figures.layer_linearity import LOWEST, linearity_chart

STEPS = ["identity", "shift", "scale", "rotation", "linear"]


def scores(**columns) -> xr.Dataset:
    known = {
        "score": [0.9, 0.95, 0.96],
        "score_update": [0.2, 0.5, 0.6],
        "score_in_sample": [0.92, 0.97, 0.98],
        "score_update_in_sample": [0.3, 0.6, 0.7],
    }
    return xr.Dataset({name: ("block", np.array(v)) for name, v in (known | columns).items()}, {"block": [0, 1, 2]})


def floor(held_out: float = -0.03, in_sample: float = 0.02) -> xr.Dataset:
    known = {"shuffled_r2": held_out, "null_r2": -0.031, "shuffled_r2_in_sample": in_sample, "null_r2_in_sample": 0.03}
    return xr.Dataset({name: ("pair", [value, value - 0.01]) for name, value in known.items()})


def ladder(block: int = 1, r2=(0.8, 0.85, 0.85, 0.9, 0.95), null=(-1.4, -1.0, 0.0, -0.04, -0.03)) -> xr.Dataset:
    return xr.Dataset(
        {"r2": (("pair", "step"), [list(r2)]), "null_r2": (("pair", "step"), [list(null)])},
        {"step": STEPS, "from_layer": ("pair", [block]), "to_layer": ("pair", [block + 1])},
    )


@pytest.mark.parametrize(("scored", "ending", "noise"), [("held out", "", -0.03), ("in sample", "_in_sample", 0.02)])
def test_curves_and_noise_are_those_of_the_way_of_scoring(scored, ending, noise):
    profile, _ = linearity_chart(scores(), floor(), ladder(), scored)["plots"]
    found = {one["name"]: one["values"] for one in profile["series"]}
    assert found == {
        "with residual": scores()[f"score{ending}"].values.tolist(),
        "without residual": scores()[f"score_update{ending}"].values.tolist(),
    }
    assert [line["label"] for line in profile["rules"]] == ["shuffled tokens", "Gaussian noise"]
    assert profile["rules"][0]["value"] == noise
    assert profile["x"]["values"] == [0, 1, 2]
    assert scored in profile["y"]["title"]


def test_the_axis_stays_between_the_ways_of_scoring():
    low = scores(score_update=[-0.7, 0.5, 0.6])
    ranges = [linearity_chart(low, floor(), ladder(), scored)["plots"][0]["y"]["range"] for scored in ("held out", "in sample")]
    assert ranges == [[-0.8, 1.0]] * 2


def test_scores_far_below_nothing_leave_the_axis_but_keep_their_number():
    profile, _ = linearity_chart(scores(score_update=[-40.0, 0.5, 0.6]), floor(), ladder())["plots"]
    assert profile["y"]["range"] == [LOWEST, 1.0]
    assert profile["series"][1]["values"] == [-40, 0.5, 0.6]


def test_the_ladder_names_its_block_and_stands_beside_its_noise():
    _, bars = linearity_chart(scores(), floor(), ladder(block=2))["plots"]
    assert bars["title"] == "block 2, layer 2 to 3"
    assert bars["x"]["labels"] == ["identity", "mean shift", "scale", "rotation", "linear"]
    held_out, noise = bars["series"]
    assert held_out["values"] == [0.8, 0.85, 0.85, 0.9, 0.95]
    assert noise["values"] == [-1.4, -1, 0, -0.04, -0.03]
    assert bars["y"]["range"] == [-0.2, 1.0]


def test_a_chart_is_plain_data():
    spec = linearity_chart(scores(), floor(), ladder())
    assert json.loads(json.dumps(spec, allow_nan=False)) == spec


def test_another_way_of_scoring_is_refused():
    with pytest.raises(InputError, match="The score is 'both'"):
        linearity_chart(scores(), floor(), ladder(), "both")
