"""Charts of compared lenses say what the Datasets say."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from lens.base.errors import InputError
from lens.figures.early_exit import MEASURES, early_exit_chart


@pytest.fixture
def readings() -> xr.Dataset:
    cell, layers = ("lens", "layer"), np.array([0, 2, 5])
    values = np.array([[0.1, 0.4, 1.0], [np.nan, 0.6, 1.0]])
    precision = xr.Variable((*cell, "k"), np.stack([values, values, values], -1))
    names = {"surprisal": 3 * values, "kl_to_final": 9 * values, "kl_low": 8 * values, "kl_high": 10 * values}
    return xr.Dataset(
        {"precision": precision, "precision_low": precision - 0.1, "precision_high": precision + 0.1}
        | {name: (cell, array) for name, array in names.items()},
        coords={"lens": ["plain", "tuned"], "layer": layers, "k": [1, 5, 10]},
    )


@pytest.fixture
def exits() -> xr.Dataset:
    curve = ("lens", "strictness")
    return xr.Dataset(
        {
            "agreement": (curve, [[0.2, 0.6, 1.0], [0.5, 0.9, 1.0]]),
            "layers_saved": (curve, [[0.8, 0.4, 0.0], [0.5, 0.25, 0.0]]),
        },
        coords={"lens": ["plain", "tuned"], "strictness": [0.0, 0.5, 1.112]},
    )


def test_profile_has_each_lens_with_its_interval_and_gaps(readings, exits):
    profile = early_exit_chart(readings, exits, "kl_to_final")["plots"][0]
    assert profile["x"]["values"] == [0, 2, 5]
    plain, tuned = profile["series"]
    assert (plain["name"], plain["values"], plain["low"]) == ("plain lens", [0.9, 3.6, 9], [0.8, 3.2, 8])
    assert (tuned["name"], tuned["values"]) == ("tuned", [None, 5.4, 9])
    assert profile["y"]["unit"] == "nats"


def test_curve_goes_through_what_was_measured_and_not_beyond(readings, exits):
    curve = early_exit_chart(readings, exits)["plots"][1]
    at = {name: dict(zip(curve["x"]["values"], s["values"], strict=True)) for s in curve["series"] for name in [s["name"]]}
    assert [at["plain lens"][saved] for saved in (0, 40, 80)] == [1, 0.6, 0.2]
    assert at["plain lens"][20] == pytest.approx(0.8)
    assert at["plain lens"][85] is None
    assert at["tuned"][50] == 0.5


@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_can_be_drawn(readings, exits, measure):
    assert early_exit_chart(readings, exits, measure)["plots"][0]["y"]["title"] == MEASURES[measure][0]


def test_another_measure_is_refused(readings, exits):
    with pytest.raises(InputError, match="The measure is 'luck'"):
        early_exit_chart(readings, exits, "luck")
