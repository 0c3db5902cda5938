"""The charts of the depth laboratory say what the Datasets say, whatever the words."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr

from lens.figures.depth_lab import DONE, depth_lab_chart
from lens.figures.static_chart import static_figure
from tests.base.hostile import HOSTILE


def blocks(kl: list[float]) -> xr.Dataset:
    values = {"block_influence": [1.0, 0.1, 1e-5, 0.2], "influence_at_output": [0.9, 0.0, 0.1, 0.3], "kl_to_original": kl}
    return xr.Dataset({name: ("block", one) for name, one in values.items()}, {"block": range(4)})


def words(tokens: list[str]) -> xr.Dataset:
    probability = np.linspace(0.5, 0.0, 2 * len(tokens)).reshape(len(tokens), 2)
    return xr.Dataset(
        {"probability": (("word", "read_from"), probability), "token": ("word", np.array(tokens, dtype=object))},
        {"read_from": ["model", "edited"]},
    )


def make(kl: list[float], tokens: list[str], kind: str = "removed", chosen: float | None = 0.5):
    spec = depth_lab_chart(blocks(kl), words(tokens), kind=kind, chosen="block 1 removed", kl=chosen)
    static_figure(spec, {"blocks": 1})
    return json.loads(json.dumps(spec))["plots"]


@pytest.mark.parametrize("kind", DONE)
def test_small_values_stand_at_the_foot_and_missing_ones_are_gaps(kind: str):
    influence, cost, next_words = make([8.0, 2.0, 0.0, np.nan], [" the", " a"], kind)
    assert influence["series"][0]["values"] == [1.0, 0.1, 0.005, 0.2]
    assert influence["series"][1]["values"] == [0.9, 0.005, 0.1, 0.3]
    assert cost["series"][0]["values"] == [8.0, 2.0, 0.01, None]
    assert DONE[kind] in cost["series"][0]["name"]
    assert cost["rules"][0]["value"] == 0.5
    assert influence["name"] == cost["name"] == "blocks"
    assert next_words["series"][0]["values"] == pytest.approx([50.0, 100 / 6], rel=1e-3)
    assert next_words["series"][1]["values"] == pytest.approx([100 / 3, 0.0], rel=1e-3)


def test_only_an_edit_that_is_no_dot_has_a_line():
    assert make([8.0, 2.0, 0.0, 1.0], [" the"], chosen=None)[1]["rules"] == []
    assert make([8.0, 2.0, 0.0, 1.0], [" the"], chosen=0.0)[1]["rules"][0]["value"] == 0.01


def test_hostile_words_are_shown_and_told_apart():
    tokens = [*HOSTILE[:6], "x", "x"]
    labels = make([1.0, 1.0, 1.0, 1.0], tokens)[2]["x"]["labels"]
    assert len(set(labels)) == len(tokens)
