"""The charts of circuits say what the Datasets say."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr

from lens.base.errors import InputError
from lens.figures.head_circuits import MEASURES, PICTURES, SCORES, head_circuits_chart, label_of
from lens.figures.static_chart import static_figure

BLOCKS, HEADS, RANK = 2, 3, 4
NUMBERS = np.linspace(-0.9, 0.9, BLOCKS * HEADS).reshape(BLOCKS, HEADS)


@pytest.fixture
def heads() -> xr.Dataset:
    found = {name: (("block", "head"), NUMBERS * (number + 1) / 8) for number, name in enumerate(MEASURES)}
    found["induction"] = ("block", "head"), np.abs(NUMBERS)
    return xr.Dataset(found, {"block": [4, 7], "head": [0, 1, 2]})


@pytest.fixture
def spectrum() -> xr.Dataset:
    dims = ("circuit", "block", "head", "rank")
    sizes = (3, BLOCKS, HEADS, RANK)
    real = np.broadcast_to([4.0, -2.0, 1.0, 0.0], sizes)
    imaginary = np.broadcast_to([0.0, 1.0, -1.0, 0.0], sizes)
    return xr.Dataset(
        {
            "eigenvalue_real": (dims, real),
            "eigenvalue_imaginary": (dims, imaginary),
            "singular_value": (dims, np.broadcast_to([8.0, 4.0, 2.0, 1.0], sizes)),
            "seen": (dims[:-1], np.full(sizes[:-1], 0.26)),
        },
        {"circuit": list(SCORES), "block": [4, 7], "head": [0, 1, 2], "rank": [1, 2, 3, 4]},
    )


@pytest.fixture
def words() -> xr.Dataset:
    dims = ("vector", "pole", "end", "place")
    tokens = np.array([[[["<b>", " yes"], ["\n", "=1"]], [["no", "not"], ["x", "y"]]]], dtype=object)
    entries = np.array([[[[0.4, 0.3], [0.2, 0.1]], [[-0.4, -0.2], [-0.3, -0.1]]]])
    coordinates = {"vector": [1], "pole": ["+", "−"], "end": ["attended", "raised"]}
    return xr.Dataset({"token": (dims, tokens), "entry": (dims, entries)}, coordinates)


@pytest.fixture
def distances(spectrum: xr.Dataset) -> xr.Dataset:
    dims = ("block", "head", "offset")
    one = {
        name: (dims, np.array([[[0.1, 0.2, 0.3]]])) for name in ("matching_score", "positive_share", "symmetric_share", "size")
    }
    values = {
        name: ((*dims, "rank"), np.broadcast_to(spectrum[name].to_numpy()[0, 0, 0], (1, 1, 3, RANK)))
        for name in ("eigenvalue_real", "eigenvalue_imaginary")
    }
    bound = {"size_bound": (("block", "head"), np.array([[2.0]]))}
    return xr.Dataset({**one, **values, **bound}, {"block": [4], "head": [1], "offset": [0.0, 1.0, 2.0], "rank": [1, 2, 3, 4]})


def drawn(heads, spectrum, words, distances, **changes):
    given = {"block": 4, "head": 1, "measure": "vocabulary", "circuit": "vocabulary", "picture": "eigenvalues", **changes}
    return head_circuits_chart(heads, spectrum, words=words, distances=distances, offset=2, **given)["plots"]


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("measure", ["vocabulary", "copying", "induction"])
def test_every_picture_is_plain_data_and_can_be_drawn(heads, spectrum, words, distances, picture, measure):
    plots = drawn(heads, spectrum, words, distances, picture=picture, measure=measure)
    json.dumps(plots, allow_nan=False)
    assert len(plots) == 3
    assert plots[0]["values"][1][2] == float(f"{heads[measure].to_numpy()[1, 2]:.4g}")
    static_figure({"plots": plots}, {"heads": [1, 4]})


def test_dots_are_heads_where_score_and_behaviour_meet(heads, spectrum, words, distances):
    plot = drawn(heads, spectrum, words, distances, circuit="arriving")[1]
    found = {dot["label"]: dot for dot in plot["dots"]}
    assert set(found) == {label_of(block, head) for block in (4, 7) for head in range(3)}
    assert found["7.2"]["x"] == pytest.approx(float(heads.arriving.sel(block=7, head=2)), abs=1e-4)
    assert found["7.2"]["y"] == pytest.approx(float(heads.copying.sel(block=7, head=2)), abs=1e-4)
    induction = [group["name"] for group in plot["groups"]].index("induction heads")
    assert {label for label, dot in found.items() if dot["group"] == induction} == {"4.0", "4.1", "7.1", "7.2"}


def test_a_head_that_was_not_measured_has_no_dot(heads, spectrum, words, distances):
    heads.copying[0, 0] = np.nan
    assert "4.0" not in {dot["label"] for dot in drawn(heads, spectrum, words, distances)[1]["dots"]}


def test_eigenvalues_are_shown_over_the_largest(heads, spectrum, words, distances):
    plot = drawn(heads, spectrum, words, distances)[2]
    assert [(dot["x"], dot["y"]) for dot in plot["dots"]] == [(1, 0), (-0.5, 0.25), (0.25, -0.25), (0, 0)]
    assert plot["x"]["range"] == plot["y"]["range"] == [-1, 1]


def test_what_eigenvalues_see_is_said(heads, spectrum, words, distances):
    plot = drawn(heads, spectrum, words, distances, picture="singular values")[2]
    assert plot["title"] == "eigenvalues see 26 % of the squares"
    assert plot["series"][0]["values"] == [1, 0.5, 0.25, 0.125]
    assert plot["series"][1]["values"][1] == pytest.approx(np.hypot(2, 1) / 8, abs=1e-4)


def test_words_of_a_pole(heads, spectrum, words, distances):
    plots = drawn(heads, spectrum, words, distances, picture="words", pole="−")
    assert [plot["name"] for plot in plots] == ["heads", "attended", "raised"]
    assert plots[1]["x"]["labels"] == ["no", "not"]
    assert plots[1]["series"][0]["values"] == [0.4, 0.2]


def test_distances_and_the_spectrum_at_one_of_them(heads, spectrum, words, distances):
    plots = drawn(heads, spectrum, words, distances, picture="distance")
    assert plots[1]["x"]["values"] == [0, 1, 2]
    assert {one["name"]: one["values"] for one in plots[1]["series"]}["size over its bound"] == [0.05, 0.1, 0.15]
    assert plots[2]["title"] == "eigenvalues of QK at distance 2"


def test_what_there_is_not(heads, spectrum, words, distances):
    for name in ("measure", "circuit", "picture"):
        with pytest.raises(InputError, match=f"The {name} is 'colour'"):
            drawn(heads, spectrum, words, distances, **{name: "colour"})
