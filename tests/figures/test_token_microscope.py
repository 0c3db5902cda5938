"""The chart of single tokens says what the Dataset says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr

from lens.base.errors import InputError
from lens.figures.chart import BLACK, BLUE, SKY
from lens.figures.static_chart import static_figure
from lens.figures.token_microscope import MEASURES, class_means, first_compared, microscope_chart
from lens.probes.dataset import texts, variable
from lens.probes.token_classes import CLASSES


@pytest.fixture
def tokens() -> xr.Dataset:
    """Three blocks, two layers, five tokens: one massive first, then a stop word among content words."""
    generator = np.random.default_rng(0)
    error, read = generator.random((3, 5)), generator.normal(size=(2, 5))
    error[:, 0], read[:, 0] = 40, np.nan
    return xr.Dataset(
        {
            "nonlinearity": variable(("block", "position"), error, ""),
            "relative": variable(("block", "position"), error / 2, ""),
            "recovered": variable(("layer", "position"), read, "", "nats"),
            "prefix_loss": variable(("layer", "position"), 5 - read, "", "nats"),
            "token_class": variable(("position",), np.array([1, 2, 1, 2, 2]), ""),
        },
        {
            "block": variable(("block",), np.arange(3), ""),
            "layer": variable(("layer",), np.array([0, 3]), ""),
            "position": variable(("position",), np.arange(5), ""),
            "input_token": texts(("position",), ["The", " sea", " of", " <b>", " tranquillity"], ""),
            "lag": variable(("lag",), np.array([1, 2]), "", "tokens"),
            "class_name": texts(("token_kind",), CLASSES, ""),
        },
    )


def made(tokens: xr.Dataset, **settings) -> list[dict]:
    spec = microscope_chart(tokens, **{"measure": "nonlinearity", "position": 2, **settings})
    return json.loads(json.dumps(spec))["plots"]


def test_the_map_shows_every_token_and_keeps_its_scale_from_the_first(tokens):
    grid, _ = made(tokens)
    assert grid["values"][1] == pytest.approx(tokens.nonlinearity.sel(block=1).to_numpy(), rel=1e-3)
    assert grid["x"]["labels"] == ["The", "·sea", "·of", "·<b>", "·tranquillity"]
    assert grid["y"]["title"] == "block"
    assert 0.8 < grid["value"]["range"][1] <= 1.5
    assert grid["value"]["range"][0] == 0


def test_the_course_stands_beside_the_means_of_classes_without_the_first_token(tokens):
    _, course = made(tokens)
    assert [(one["name"], one["colour"]) for one in course["series"]] == [
        ("stop word", SKY), ("content word", BLUE), ("“·of”", BLACK),
    ]  # fmt: skip
    wanted = tokens.nonlinearity.isel(position=[1, 3, 4]).mean("position")
    assert course["series"][1]["values"] == pytest.approx(wanted.to_numpy(), rel=1e-3)
    assert class_means(tokens, "nonlinearity")["stop word"] == pytest.approx(tokens.nonlinearity.isel(position=2).to_numpy())
    assert course["title"] == "“·of”, stop word, beside means of classes"
    assert course["y"]["range"] == made(tokens)[0]["value"]["range"]


def test_what_is_recovered_has_two_signs_and_a_floor(tokens):
    grid, course = made(tokens, measure="recovered")
    low, high = grid["value"]["range"]
    assert low == -high
    assert grid["value"]["signed"]
    assert grid["y"]["values"] == [0, 3]
    assert grid["values"][0][0] is None
    assert course["rules"][0]["value"] == 0
    assert course["x"]["title"] == "layer"


@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_is_drawn_and_saved(tokens, measure: str):
    assert static_figure(microscope_chart(tokens, measure=measure, position=0)) is not None


def test_other_measures_are_refused(tokens):
    with pytest.raises(InputError, match="one of nonlinearity"):
        microscope_chart(tokens, measure="size", position=0)


def test_tokens_without_the_whole_prefix_are_not_compared(tokens):
    assert first_compared(tokens, "relative") == 1
    assert first_compared(tokens, "recovered") == 2
    assert first_compared(tokens.isel(position=slice(4)), "recovered") == 1
    tokens["recovered"][:, 1] = 30.0
    assert made(tokens, measure="recovered")[0]["value"]["range"][1] < 10
    wanted = tokens.recovered.isel(position=[3, 4]).mean("position")
    assert class_means(tokens, "recovered")["content word"] == pytest.approx(wanted.to_numpy())
