"""The charts of claims on attention say what the Datasets say."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr

from lens.figures.attention_claims import attention_claims_chart, attention_growth_chart

DIMS = ("document", "block", "head")


@pytest.fixture
def claims() -> xr.Dataset:
    values = np.linspace(0.1, 0.9, 24).reshape(2, 6, 2)
    names = ("normalised_entropy", "key_entropy", "rest_predicted_entropy")
    gap = np.zeros((2, 6, 2))
    gap[:, 4, 1] = 0.4
    return xr.Dataset(
        {**dict.fromkeys(names, (DIMS, values)), "rest_entropy_gap": (DIMS, gap)},
        {"block": [0, 2, 4, 6, 8, 10], "head": [0, 1]},
        {"tokens": 100},
    )


def test_every_head_is_a_dot_in_its_quadrant(claims):
    plot = attention_claims_chart(claims)["plots"][0]
    assert len(plot["dots"]) == 12
    mean = claims.mean("document")
    last = plot["dots"][-1]
    assert last["label"] == "10.1"
    assert last["x"] == pytest.approx(float(mean.normalised_entropy[5, 1]), rel=1e-3)
    assert last["y"] == pytest.approx(float(mean.key_entropy[5, 1]) / np.log(100), rel=1e-3)
    assert [line["value"] for line in plot["rules"]] == [0.5, 0.5]
    assert plot["named"][0] == "0.0"  # of these, the least biased
    assert [group["name"] for group in plot["groups"]] == ["early blocks", "middle blocks", "late blocks"]


def test_the_farthest_from_the_prediction_is_named(claims):
    claims["rest_predicted_entropy"][:, 0, 0] = -5.0
    claims["rest_entropy_gap"][:, 0, 0] = 5.2
    plot = attention_claims_chart(claims)["plots"][1]
    assert plot["named"][0] == "8.1"
    (line,) = plot["curves"]
    assert line["x"] == line["y"] == [0, 2]
    dots = {dot["label"]: (dot["x"], dot["y"]) for dot in plot["dots"]}
    assert dots["0.0"] == pytest.approx((0, 0.2))
    assert dots["8.1"][1] - dots["8.1"][0] == pytest.approx(0.4, abs=1e-3)
    json.dumps(plot, allow_nan=False)


@pytest.fixture
def growth() -> xr.Dataset:
    dims = ("length", "block", "head")
    entropy = np.broadcast_to(np.log([[[16.0]], [[32.0]], [[64.0]]]), (3, 2, 2))
    kinds = np.array([["dilutes", "dilutes"], ["keeps its support", "dilutes"]], dtype=object)
    ranks = np.stack([np.full((2, 2), each) for each in (2.0, 3.0, np.nan)])
    return xr.Dataset(
        {
            "mean_entropy": (dims, entropy),
            "kind": (("block", "head"), kinds),
            **dict.fromkeys(("effective_rank", "participation_ratio", "stable_rank"), (dims, ranks)),
        },
        {"length": [16, 32, 64], "block": [0, 1], "head": [0, 1]},
    )


def test_kinds_of_heads_stand_beside_uniform_attention(growth):
    entropy, ranks = attention_growth_chart(growth)["plots"]
    assert [one["name"] for one in entropy["series"]] == ["dilutes", "keeps its support", "uniform attention"]
    assert entropy["series"][0]["values"] == pytest.approx(np.log([16, 32, 64]), rel=1e-3)
    assert entropy["series"][2]["values"][0] == pytest.approx(np.log(np.arange(1.0, 17)).mean(), rel=1e-3)
    assert ranks["series"][0]["values"][:2] == [2.0, 3.0]
    assert ranks["series"][0]["values"][2] is None
