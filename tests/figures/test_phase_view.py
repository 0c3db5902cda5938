"""Charts of a stream as phases."""

from __future__ import annotations

import numpy as np
import pytest

import lens
from lens.base.errors import InputError
from lens.figures.phase_view import phase_view_chart
from lens.figures.static_chart import static_figure
from lens.probes.phase_view import MEASURES, channel_sums, phase_view
from tests.models.families import build


@pytest.fixture(scope="module")
def sums():
    return {name: channel_sums(lens.load(build(name)).run(list(range(3, 40)), logits=False)) for name in ("llama", "three-phase")}


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("phases", [1, 4])
def test_every_measure_has_a_picture(sums, measure, phases):
    view = phase_view(sums["llama"], phases, measure)
    depth, beside = phase_view_chart(view, 2)["plots"]
    assert depth["series"][0]["values"] == pytest.approx(view.statistic.values, rel=1e-3, abs=1e-4, nan_ok=True) or phases == 1
    assert depth["name"] == ("blocks" if measure in ("angle", "rotation") else "layers")
    assert beside["title"] == ("block 1" if measure in ("angle", "rotation") else "layer 2")
    static_figure(phase_view_chart(view, 0))


def test_imposed_turns_are_drawn_where_there_are_any(sums):
    for name, drawn in (("llama", False), ("three-phase", True)):
        view = phase_view(sums[name], 2, "rotation")
        beside = phase_view_chart(view, 3)["plots"][1]
        assert bool(beside["curves"]) == drawn
        assert [dot["y"] for dot in beside["dots"]] == pytest.approx(np.rad2deg(view.turn[2]).values, rel=1e-3)
        assert beside["dots"][9]["label"] == "pair 9 (phase 1)"


def test_other_layers_are_refused(sums):
    for measure in ("length", "angle"):
        with pytest.raises(InputError, match="0 to 3"):
            phase_view_chart(phase_view(sums["llama"], 2, measure), 4)
