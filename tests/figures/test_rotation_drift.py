"""The charts of rotations say what the Datasets say."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr

from lens.base.errors import InputError
from lens.figures.rotation_drift import named, paths, rotation_chart

STEPS = ["identity", "shift", "scale", "rotation", "linear"]
SUBSPACES = ["10", "50", "90 %", "all"]


def rotations(pairs, angles) -> xr.Dataset:
    """Energy angles of the subspace "10" as given, those of the others 1, 2 and 3 degrees larger."""
    count = len(pairs)
    angle = np.add.outer(np.array(angles, dtype=float), np.arange(4.0))
    ladder = np.tile([-0.5, 0.1, 0.2, 0.6, 0.9], (count, 1))
    return xr.Dataset(
        {
            "energy_angle": (("pair", "subspace"), angle),
            "energy_angle_noise": (("pair", "subspace"), angle / 2),
            "rotation_angle": (("pair", "component"), np.tile([180.0, 90.0, 12.0, 2.0], (count, 1))),
            "r2": (("pair", "step"), ladder),
            "null_r2": (("pair", "step"), 0 * ladder - 0.03),
        },
        {
            "subspace": SUBSPACES,
            "step": STEPS,
            "from_layer": ("pair", [i for i, _ in pairs]),
            "to_layer": ("pair", [j for _, j in pairs]),
        },
    )


NEIGHBOURS = rotations([(0, 1), (1, 2), (2, 3)], [80, 5, 20])
DIRECT = rotations([(0, 3), (2, 3)], [85, 20])
PAIR = rotations([(1, 2)], [5])


def plots(picture, subspace="10"):
    return rotation_chart(NEIGHBOURS, DIRECT, PAIR, subspace, picture)["plots"]


def values(plot) -> dict[str, list]:
    return {one["name"]: one["values"] for one in plot["series"]}


def test_angles_by_block_stand_beside_their_noise():
    assert values(plots("blocks")[0]) == {"turn": [80, 5, 20], "noise floor": [40, 2.5, 10]}
    assert values(plots("blocks", "all")[0])["turn"] == [83, 8, 23]


def test_the_axis_of_angles_stays_between_subspaces():
    assert plots("blocks")[0]["y"]["range"] == plots("blocks", "all")[0]["y"]["range"] == [1, 200]


def test_paths_add_the_blocks_up_from_a_layer_to_the_last():
    layers, added, direct = paths(NEIGHBOURS, DIRECT, "50")
    assert layers.tolist() == [0, 2]
    assert added.tolist() == [81 + 6 + 21, 21]
    assert direct.tolist() == [86, 21]
    assert values(plots("depth", "50")[0]) == {"blocks added up": [108, 21], "direct": [86, 21]}
    assert plots("depth", "50")[0]["y"]["range"] == [0, 180]


def test_what_maps_explain_is_drawn_in_the_colours_of_the_ladder():
    shares = plots("shares")[0]
    assert {name: found[0] for name, found in values(shares).items()} == {
        "mean shift": 0.1, "scale": 0.2, "rotation": 0.6, "linear": 0.9,
    }  # fmt: skip
    assert shares["rules"] == [{"value": -0.03, "label": "noise floor", "on": "y"}]


def test_the_histogram_counts_every_direction_once():
    turns = plots("blocks", "90 %")[1]
    assert turns["title"] == "layer 1 to 2: mean 71°, by energy 7.0°"
    counts = turns["series"][0]["values"]
    assert sum(counts) == 4
    assert [turns["x"]["edges"][place] for place, count in enumerate(counts) if count] == [0, 10, 90, 175]
    assert turns["x"]["range"] == [0, 180]


def test_subspaces_are_named_in_words():
    assert [named(name) for name in SUBSPACES] == ["10 directions", "50 directions", "90 % of variance", "all directions"]


@pytest.mark.parametrize("picture", ["blocks", "depth", "shares"])
def test_a_chart_is_plain_data(picture):
    spec = rotation_chart(NEIGHBOURS, DIRECT, PAIR, "all", picture)
    assert json.loads(json.dumps(spec, allow_nan=False)) == spec


def test_another_picture_is_refused():
    with pytest.raises(InputError, match="The picture is 'pie'"):
        rotation_chart(NEIGHBOURS, DIRECT, PAIR, "10", "pie")
