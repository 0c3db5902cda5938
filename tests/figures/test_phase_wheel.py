"""Charts of the wheel and of the absorbed rotation: what stands where, and axes that stay."""

from __future__ import annotations

import json

import numpy as np
import pytest

import lens
from lens.base.errors import InputError
from lens.figures.absorbed_rotation import absorbed_chart
from lens.figures.chart import phase_colours
from lens.figures.phase_wheel import lens_chart, wheel_chart
from lens.figures.static_chart import static_figure
from lens.probes.absorbed_rotation import absorbed_rotation
from lens.probes.logit_lens import logit_lens
from lens.probes.phase_family import phase_family
from lens.probes.phase_wheel import family_losses, phase_wheel, recipe_drift


@pytest.fixture(scope="module")
def run():
    return lens.load("three-phase-n4").run("The city was founded")


@pytest.fixture(scope="module")
def draw(run):
    wheel, drift, losses = phase_wheel(run), recipe_drift(run.model), family_losses(phase_family())
    chosen = {"path": "block", "layer": 2, "pair": 0, "recipe": "three-phase-n4"}
    return lambda **changes: wheel_chart(wheel, drift, losses, **{**chosen, **changes})


def test_spokes_have_colours_letters_and_a_resultant(draw):
    dial, drift, losses = draw()["plots"]
    assert [group["colour"] for group in dial["groups"]] == phase_colours(4)
    assert [hand["mark"] for hand in dial["hands"] if hand["kind"] == "spoke"] == ["0", "1", "2", "3"]
    assert dial["here"]["length"] == pytest.approx(0, abs=1e-6)  # the shipped angles are in float32
    assert len(dial["ticks"]) == 4
    assert draw(path="accumulated", layer=4)["plots"][0]["here"]["length"] == pytest.approx(
        0.8
    )  # come round: the length of a spoke
    assert [one["name"] for one in drift["series"]] == ["mean ± spread", "weight decay alone", "pair 0"]
    assert [one["name"] for one in losses["series"]] == ["4 phases", "every number of phases", "RoPE only, × √d"]
    with pytest.raises(InputError, match="'spiral'"):
        draw(path="spiral")


def test_axes_stay_from_pair_to_pair(draw):
    assert len({tuple(draw(pair=pair)["plots"][1]["y"]["range"]) for pair in range(12)}) == 1


def test_the_lens_stands_over_the_token_that_it_reads(run):
    found = logit_lens(run, top_k=1)
    plot = lens_chart(found)["plots"][0]
    assert plot["x"]["labels"] == list(run.tokens)[1:]
    blind = np.log(run.model.vocab_size)
    np.testing.assert_allclose(np.array(plot["values"], float), found.next_surprisal[:, :-1] - blind, rtol=1e-3, atol=1e-4)


def test_absorbing_takes_the_spokes_and_keeps_the_bars(run):
    found = absorbed_rotation(run).dataset
    before, after = (absorbed_chart(found, absorbed=pressed, layer=2, pair=3) for pressed in (False, True))
    assert [hand["kind"] for hand in before["plots"][0]["hands"]] == ["spoke", "trace"] * 4
    assert [hand["kind"] for hand in after["plots"][0]["hands"]] == ["trace"] * 4
    pointed = [hand["angle"] for hand in before["plots"][0]["hands"] if hand["kind"] == "spoke"]
    assert after["plots"][0]["ticks"] == pointed
    with_theta, absorbed, left_out = (one["values"] for one in after["plots"][1]["series"])
    assert before["plots"][1]["series"][0]["values"] == with_theta == absorbed != left_out
    for spec in (before, after):
        assert len(static_figure(spec).axes) == 3
        assert len(json.dumps(spec)) < 10_000
