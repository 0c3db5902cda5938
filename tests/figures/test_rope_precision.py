"""The chart of precision says what the Datasets say."""

from __future__ import annotations

import json

import pytest
import xarray as xr

from lens.figures.rope_precision import precision_chart


def found(path: str, errors) -> xr.Dataset:
    return xr.Dataset(
        {"angle_error": ("lane", errors), "table_error": ("lane", [error / 2 for error in errors])},
        {"lane": [0, 1, 2]},
        {"path": path, "base": 1e4, "last_position": 4095},
    )


ONE, OTHER = found("float32 angles", [1e-3, 1e-4, 0.0]), found("bfloat16 positions", [8.0, 4.0, 2.0])


@pytest.mark.parametrize(
    ("measure", "factor", "title"), [("angle_error", 1, "error of the angle"), ("table_error", 2, "error of cosine and sine")]
)
def test_each_path_is_a_curve_over_the_lanes(measure, factor, title):
    spec = precision_chart([ONE, OTHER], measure)
    plot = spec["plots"][0]
    values = {one["name"]: one["values"] for one in plot["series"]}
    assert values["bfloat16 positions"] == [8 / factor, 4 / factor, 2 / factor]
    assert values["float32 angles"] == [1e-3 / factor, 1e-4 / factor, 0]
    assert (plot["y"]["title"], plot["y"]["scale"], plot["title"]) == (title, "log", "base 10,000, positions up to 4,095")
    assert json.loads(json.dumps(spec, allow_nan=False)) == spec


def test_a_path_keeps_its_colour():
    alone, both = (precision_chart(shown)["plots"][0]["series"] for shown in ([OTHER], [ONE, OTHER]))
    assert alone[0]["colour"] == both[1]["colour"]
