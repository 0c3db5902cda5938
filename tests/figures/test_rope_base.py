"""The charts of a turned model say what the lens and the head say."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr

from lens.base.errors import InputError
from lens.figures.rope_base import head_chart, loss_chart, token_loss
from lens.figures.static_chart import static_figure

TOKENS = ["Mary", " had", " <b>"]


def readings(losses) -> xr.Dataset:
    values = np.array([[9.0, 9.0, np.nan], [*losses, np.nan]])
    return xr.Dataset({"next_surprisal": (("layer", "position"), values), "input_token": ("position", TOKENS)})


def head() -> xr.Dataset:
    trained = np.array([[1, 0, 0], [0.5, 0.5, 0], [0.25, 0.25, 0.5]])
    turned = np.array([[1, 0, 0], [0.75, 0.25, 0], [0, 0, 1]])
    settings = ["trained", "whole model turned", "this layer alone turned"]
    return xr.Dataset(
        {"attention": (("setting", "query", "key"), np.stack([trained, turned, (trained + turned) / 2]))},
        {"setting": settings, "input_token": ("position", TOKENS)},
        {"block": 17, "head": 5},
    )


def plots(visited=None) -> list[dict]:
    return loss_chart(readings([1, 3]), readings([2, 13]), visited or {100.0: 5.0, 1e6: 2.0}, 1e5)["plots"]


def values(plot) -> dict[str, list]:
    return {one["name"]: one["values"] for one in plot["series"]}


def test_the_loss_is_the_last_layers():
    assert token_loss(readings([1, 3])).tolist() == [1, 3]


def test_losses_stand_at_the_token_that_was_to_be_predicted():
    plot = plots()[0]
    assert plot["x"]["labels"] == ["·had", "·<b>"]
    assert plot["x"]["values"] == [0, 1]
    assert values(plot) == {"trained": [1, 3], "turned": [2, 13]}
    assert plot["y"]["range"] == [0, 16]


def test_bases_tried_stand_around_the_trained_one():
    plot = plots()[1]
    assert plot["x"]["values"] == [100, 100_000, 1_000_000]
    assert values(plot) == {"bases tried": [5, 2, 2], "as trained": [None, 2, None]}
    assert plot["rules"] == [{"value": 100_000, "label": "trained base", "on": "x"}]
    assert values(plots(visited={1e5: 2.0})[1])["bases tried"] == [2]


def test_bases_beyond_the_axis_widen_it():
    assert plots(visited={20.0: 9.0})[1]["x"]["range"] == [20, 1e9]
    assert plots(visited={20.0: 9.0})[1]["y"]["range"] == [2, 9]
    assert plots(visited={20.0: 2.5})[1]["y"]["range"] == [2, 4]


@pytest.mark.parametrize(
    ("beside", "expected", "title"),
    [
        ("turned", [[1, None, None], [0.75, 0.25, None], [0, 0, 1]], "block 17, head 5, whole model turned"),
        ("alone", [[1, None, None], [0.625, 0.375, None], [0.125, 0.125, 0.75]], "block 17, head 5, this layer alone turned"),
        ("difference", [[0, None, None], [0.25, -0.25, None], [-0.25, -0.25, 0.5]], "block 17, head 5, turned less trained"),
    ],
)
def test_the_trained_head_has_another_beside_it(beside, expected, title):
    trained, other = head_chart(head(), beside)["plots"]
    assert trained["values"] == [[1, None, None], [0.5, 0.5, None], [0.25, 0.25, 0.5]]
    assert trained["title"] == "block 17, head 5, trained"
    assert other["values"] == expected
    assert other["title"] == title
    assert other["value"]["signed"] is (beside == "difference")
    assert trained["name"] == other["name"]  # one selection in both


def test_another_word_is_refused():
    with pytest.raises(InputError, match="mirror"):
        head_chart(head(), "mirror")


def test_charts_are_json_and_can_be_drawn():
    for spec in ({"plots": plots()}, head_chart(head(), "difference")):
        assert json.loads(json.dumps(spec)) == spec
        assert len(static_figure(spec).get_axes()) >= 2
