"""The chart of a relation's maps, from a probe's Datasets."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from lens.figures.relations import relations_chart
from lens.figures.static_chart import static_figure


@pytest.fixture
def shares() -> xr.Dataset:
    methods = ["map", "logit lens", "translation", "regression", "other subject", "constant"]
    edits = ["inverse", "substitution", "output difference", "random direction"]
    agreement = np.linspace(0, 1, 24).reshape(6, 4)
    reached = np.linspace(0.2, 0.9, 8).reshape(4, 2)
    found = {
        "agreement": (("predictor", "layer"), agreement),
        "reached": (("edit_method", "edit_layer"), reached),
        "chosen_layer": 2,
    }
    for name in ("agreement", "reached"):
        dims, values = found[name]
        found |= {f"{name}_low": (dims, values * 0.8), f"{name}_high": (dims, np.minimum(1, values + 0.1))}
    coords = {"predictor": methods, "layer": [0, 1, 2, 3], "edit_method": edits, "edit_layer": [1, 3]}
    return xr.Dataset(found, coords)


@pytest.fixture
def words() -> xr.Dataset:
    texts = [f" w{i}" for i in range(12)]
    model, edited = np.linspace(0, 0.5, 12), np.linspace(0.3, 0, 12)
    mapped = np.tile(np.linspace(0, 1, 12), (4, 1))
    mapped[:, -2:] = np.nan
    found = {"model": ("token", model), "edited": ("token", edited), "mapped": (("layer", "token"), mapped)}
    return xr.Dataset(found, {"token_text": ("token", texts), "layer": [0, 1, 2, 3]})


def test_what_is_drawn(shares, words):
    layers, bars = relations_chart(shares, words, layer=2)["plots"]
    curves = {one["name"]: one for one in layers["series"]}
    assert curves["linear map"]["values"] == pytest.approx(shares.agreement.sel(predictor="map").to_numpy().tolist(), rel=1e-3)
    assert "low" in curves["linear map"]
    cheaper = shares.agreement.sel(predictor=["logit lens", "translation", "regression"]).to_numpy().max(axis=0)
    assert curves["best of lens, shift, regression"]["values"] == pytest.approx(cheaper.tolist(), rel=1e-3)
    assert curves["edit reaches its target"]["values"][0] is None
    assert curves["edit reaches its target"]["values"][3] == pytest.approx(0.3)
    assert layers["rules"][0]["value"] == 2
    assert len(bars["x"]["labels"]) == 8
    names = [one["name"] for one in bars["series"]]
    assert names == ["model", "linear map, layer 2", "model, edited"]


def test_words_keep_their_rows_when_the_layer_moves(shares, words):
    rows = [relations_chart(shares, words, layer=layer)["plots"][1]["x"]["labels"] for layer in (0, 3)]
    assert rows[0] == rows[1]
    static_figure(relations_chart(shares, words, layer=0), {"layers": 0})
