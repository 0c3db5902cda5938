"""The charts of operators say what the Datasets say."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr

from lens.base.errors import InputError
from lens.figures.chart import chart
from lens.figures.operator_zoo import FIXED, MAPS, SHOWN, operator_maps, operator_measures_chart, operator_zoo_chart
from lens.figures.static_chart import static_figure
from lens.models.operators import OPERATORS, LowRank, Softmax
from lens.probes.operator_zoo import bare_input, operator_zoo

TOKENS = ["<b>a", " b", " c", " d", " e", "\n"]
DRAW = np.random.default_rng(0).standard_normal((2, 6, 4))


def tried(*losses: float) -> xr.Dataset:
    return xr.Dataset({"loss": ("scope", list(losses))}, {"scope": ["as trained", "this head", "this block", "all blocks"]})


@pytest.fixture(scope="module")
def zoo() -> xr.Dataset:
    return operator_zoo(bare_input(*DRAW))


@pytest.fixture(scope="module")
def cold() -> xr.Dataset:
    return operator_zoo(bare_input(*DRAW), operators={"softmax, temperature 0.5": Softmax(0.5)})


def test_the_chosen_pattern_its_singular_values_and_losses(zoo, cold):
    runs = {"softmax": tried(2.0, 2.0, 2.1, 2.5), "softmax, temperature 0.5": tried(2.0, 1.9, 2.0, 3.0)}
    spec = operator_zoo_chart(zoo, cold, runs, tokens=TOKENS, own=2.0)
    cells, scree, losses = spec["plots"]
    assert cells["title"] == "softmax, temperature 0.5"
    assert cells["values"][3][:4] == pytest.approx(cold.attention[0, 3, :4].to_numpy(), rel=1e-3)
    assert cells["values"][3][4:] == [None, None]
    names = [one["name"] for one in scree["series"]]
    assert names == ["softmax, temperature 0.5", "softmax", "softplus", "re-weighted softplus", "log-normal", "alibi", "uniform"]
    assert scree["series"][0]["values"][:3] == pytest.approx(cold.singular_value[0, :3].to_numpy(), rel=1e-3)
    assert losses["x"]["labels"] == ["softmax, temperature 0.5", "softmax"]  # the newest first
    assert [one["values"] for one in losses["series"]] == [[-0.1, 0], [0, 0.1], [1, 0.5]]
    assert "2.00 nats" in losses["title"]
    json.dumps(spec, allow_nan=False)
    static_figure(spec, {"cells": [1, 3]})


def test_fixed_operators_are_beside_each_other(zoo):
    scree = operator_zoo_chart(zoo, zoo.sel(operator=["uniform"]), {}, tokens=TOKENS, own=2.0)["plots"][1]
    assert {one["name"] for one in scree["series"]} == {"softmax", *FIXED}


def test_an_operator_keeps_its_colour_whichever_is_chosen(zoo, cold):
    seen = {}
    for chosen in (cold, *(zoo.sel(operator=[name]) for name in OPERATORS)):
        scree = operator_zoo_chart(zoo, chosen, {}, tokens=TOKENS, own=2.0)["plots"][1]
        colours = [one["colour"] for one in scree["series"]]
        assert len(set(colours)) == len(colours)
        for one in scree["series"]:
            assert seen.setdefault(one["name"], one["colour"]) == one["colour"]
    assert set(OPERATORS) < set(seen)


def test_an_operator_that_was_not_run_has_an_empty_row(zoo):
    losses = operator_zoo_chart(zoo, zoo.sel(operator=["alibi"]), {}, tokens=TOKENS, own=2.0)["plots"][2]
    assert losses["x"]["labels"] == ["alibi: not tried"]
    assert [one["values"] for one in losses["series"]] == [[None]] * 3


def test_five_runs_are_kept_in_view(zoo):
    runs = {f"run {number}": tried(2.0, 2.0, 2.0, 2.0 + number) for number in range(7)}
    losses = operator_zoo_chart(zoo, zoo.sel(operator=["alibi"]), runs, tokens=TOKENS, own=2.0)["plots"][2]
    assert losses["x"]["labels"] == [f"run {number}" for number in (6, 5, 4, 3, 2)]


@pytest.mark.parametrize("measure", SHOWN)
def test_every_measure_has_a_bar_for_each_operator(zoo, cold, measure):
    bars = operator_measures_chart(zoo, cold, measure)["plots"][0]
    assert bars["x"]["labels"] == ["softmax", "at temperature 0.5", *list(OPERATORS)[1:]]
    values = bars["series"][0]["values"]
    assert values[1] == pytest.approx(float(cold[measure][0]), rel=1e-3)
    assert values[2] == pytest.approx(float(zoo[measure].sel(operator="softplus")), rel=1e-3)
    assert operator_measures_chart(zoo, zoo.sel(operator=["softmax"]), measure)["plots"][0]["x"]["labels"] == list(OPERATORS)


def test_a_measure_that_is_not_defined_has_no_line(zoo):
    cut = operator_zoo(bare_input(*DRAW), operators={"low rank, rank 2": LowRank(2)})
    bars = operator_measures_chart(zoo, cut, "mean_entropy")["plots"][0]
    assert bars["rules"] == []
    assert bars["series"][0]["values"][bars["x"]["labels"].index("at rank 2")] is None


def test_small_maps_mark_the_chosen_one_and_blank_what_is_hidden(zoo):
    spec = operator_maps(zoo, "uniform")
    plots = {plot["name"].removeprefix(MAPS): plot for plot in spec["plots"]}
    assert list(plots) == list(OPERATORS)
    assert [name for name, plot in plots.items() if plot["title"].startswith("▸")] == ["uniform"]
    assert plots["softmax"]["values"][0][1:] == [None] * 5
    assert plots["uniform"]["values"][1] == [0.5, 0.5, None, None, None, None]
    known = [cell for row in plots["low rank"]["values"] for cell in row]
    assert None not in known
    assert 0 <= min(known) <= max(known) <= 1
    assert chart(spec["plots"]) == spec
    json.dumps(spec, allow_nan=False)


def test_another_measure_is_refused(zoo):
    with pytest.raises(InputError, match="measure is 'beauty'"):
        operator_measures_chart(zoo, zoo.sel(operator=["softmax"]), "beauty")
