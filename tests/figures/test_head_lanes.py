"""The charts of heads and lanes say what the Datasets say."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr

from lens.base.errors import InputError
from lens.figures.chart import SERIES_COLOURS
from lens.figures.head_lanes import SIDE, head_lanes_chart, wavelength

TOKENS = ["<b>one</b>", " two", " three", "\n"]
HEADS = xr.Dataset(
    {
        "fast_share": (("block", "head"), np.array([[0.1, 0.2], [0.32, 0.05]])),
        "slow_share": (("block", "head"), np.array([[0.7, 0.6], [0.5, 0.8]])),
        "previous_token": (("block", "head"), np.array([[0.1, 0.3], [0.9, 0.2]])),
    },
    {"block": [2, 5], "head": [0, 1]},
)


def pattern(length: int = 4) -> xr.Dataset:
    weights = np.tri(length) / np.arange(1, length + 1)[:, None]
    places = np.arange(length)
    return xr.Dataset(
        {"attention": (("query", "key"), weights), "logit": (("query", "key"), np.add.outer(places, -places).astype(float))},
        {"query": places, "key": places},
    )


def cell(wavelengths=(6.3, 40.0, 400.0, 50_000.0), unrotated: float = 0.0) -> xr.Dataset:
    return xr.Dataset(
        {
            "contribution": (("cell", "lane"), np.array([[3.0, -1.0, 0.5, -2.0]])),
            "unrotated": (("cell",), [unrotated]),
            "logit": (("cell",), [0.5 + unrotated]),
        },
        {
            "query": ("cell", [2]), "key": ("cell", [1]), "lane": np.arange(4), "wavelength": ("lane", np.array(wavelengths)),
            "band": ("lane", ["fast", "middle", "middle", "slow"]),
        },
    )  # fmt: skip


OFFSETS = xr.Dataset(
    {
        "contribution": (("lane", "offset"), np.array([[1.0, 3.0, 0.0], [-8.0, -8.0, 0.0]])),
        "pairs": ("offset", [3, 2, 1]),
        "level": (("lane",), np.array([2.0, -8.0])),
    },
    {"lane": [0, 1], "offset": [0, 1, 2], "wavelength": ("lane", [6.283, np.inf])},
)
KERNEL = xr.Dataset(
    {"kernel": ("offset", [1.0, 2.0]), "logit": ("offset", [1.5, 2.5]), "offset_share": ((), 0.25)}, {"offset": [0, 1]}
)


def plots(picture="cell", detail=None, values="attention", score="fast_share", cells=None, tokens=TOKENS, start=0, before=None):
    found = detail if detail is not None else {"offsets": OFFSETS, "kernel": KERNEL}.get(picture, cell())
    return head_lanes_chart(
        HEADS, pattern() if cells is None else cells, found, tokens=tokens, start=start, score=score, values=values,
        picture=picture, before=before,
    )["plots"]  # fmt: skip


def test_the_map_of_heads_has_blocks_upward_and_a_scale_from_zero():
    heads = plots()[0]
    assert (heads["name"], heads["x"]["values"], heads["y"]["values"]) == ("heads", [0, 1], [2, 5])
    assert heads["values"] == [[0.1, 0.2], [0.32, 0.05]]
    assert heads["value"]["range"] == [0, 0.4]
    assert plots(score="previous_token")[0]["values"][1] == [0.9, 0.2]


def test_keys_after_the_query_are_blank_and_tokens_are_text():
    attention = plots()[1]
    assert attention["values"][1] == [0.5, 0.5, None, None]
    assert attention["x"]["labels"] == attention["y"]["labels"] == ["<b>one</b>", "·two", "·three", "↵"]
    assert attention["value"]["range"] == [0, 1]
    assert plots(values="logit")[1]["values"][3] == [3, 2, 1, 0]


def test_of_a_longer_text_a_stretch_is_shown():
    length = SIDE + 50
    attention = plots(cells=pattern(length), tokens=[f"t{n}" for n in range(length)], start=30)[1]
    assert len(attention["values"]) == SIDE
    assert attention["x"]["values"][0] == 30
    assert attention["y"]["labels"][-1] == f"t{30 + SIDE - 1}"


def test_lanes_have_the_colours_of_their_bands_and_never_meet():
    lanes = plots()[2]
    assert lanes["title"] == "·three → ·two, 1 token apart: logit 0.50"
    assert {one["name"]: one["values"] for one in lanes["series"]} == {
        "fast lanes": [3, None, None, None], "middle lanes": [None, -1, 0.5, None], "slow lanes": [None, None, None, -2],
    }  # fmt: skip
    assert all(one["colour"] == SERIES_COLOURS[one["name"]] for one in lanes["series"])
    assert lanes["x"]["values"] == [6.3, 40, 400, 50_000]


def test_lanes_without_a_wavelength_are_numbered():
    lanes = plots(detail=cell((6.3, 40.0, 400.0, np.inf), unrotated=-1.25))[2]
    assert lanes["x"]["values"] == [0, 1, 2, 3]
    assert lanes["title"].endswith("logit −0.75, −1.25 of it from dimensions that do not turn")


def test_the_map_of_distances_shows_what_changes_with_them():
    offsets = plots("offsets")[2]
    assert offsets["values"] == [[-1, 1], [0, 0]]
    assert offsets["y"]["labels"] == ["6.28", "still"]
    assert offsets["title"] == "without each lane’s mean, which runs from −8.0 to 2.0"


def test_the_kernel_stands_beside_the_mean_logit_and_the_live_one():
    assert [one["name"] for one in plots("kernel")[2]["series"]] == ["mean logit", "mean query and mean key alone"]
    kernel = plots("kernel", before=KERNEL + 1)[2]
    assert kernel["series"][2] | {"colour": 0} == {
        "name": "mean logit, live base",
        "values": [2.5, 3.5],
        "colour": 0,
        "marker": "cross",
    }
    assert kernel["title"] == "distance alone explains 25 % of the variance"


def test_wavelengths_have_three_digits():
    assert [wavelength(value) for value in (6.2832, 44.44, 123.4, 24_683.0, np.inf)] == ["6.28", "44.4", "123", "24,700", "still"]


@pytest.mark.parametrize("picture", ["cell", "offsets", "kernel"])
def test_a_chart_is_plain_data(picture):
    found = plots(picture)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"score": "size"}, "score is 'size'"), ({"values": "x"}, "values is 'x'"), ({"picture": "pie"}, "picture is 'pie'")],
)
def test_unknown_pictures_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        plots(**changes)
