"""The wheel panel: sliders and clicks in, spokes, sentence and files out."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from lens.panels.phase_wheel import PhaseWheel


@pytest.fixture(scope="module")
def wheel():
    panel = PhaseWheel(text="The city was founded in the twelfth century.")
    yield panel
    panel.wait()
    panel.close()


def plots(panel):
    return {plot["name"]: plot for plot in panel.chart.spec["plots"]}


def test_every_number_of_phases_stands_around_the_wheel(wheel):
    wheel.set(layer=1, path="block")
    slider = wheel._top["phases"]
    for phases in slider.options:
        slider.value = phases
        found = wheel.summary()
        assert found["error"] is None
        spokes = [hand["angle"] for hand in plots(wheel)["phase"]["hands"] if hand["kind"] == "spoke"]
        assert len(spokes) == phases
        assert np.exp(1j * np.array(spokes)) == pytest.approx(spokes_of(wheel, phases), abs=1e-3)
        assert found["resultant"] == float(phases == 1)
        assert wheel._controls["pair"].max == 96 // (2 * phases) - 1


def spokes_of(panel, phases):
    theta = float(panel.wheel.angle.sel(path="block", layer=1, phase=0, pair=panel.summary()["pair"]))
    return np.exp(1j * (theta + 2 * np.pi * np.arange(phases) / phases))


def test_accumulated_offsets_come_round_and_say_so(wheel):
    wheel.set(phases=3, path="accumulated", layer=3)
    found = wheel.summary()
    assert found["resultant"] == 1
    assert "all point one way again" in found["says"]
    assert plots(wheel)["phase"]["title"] == "blocks 0 to 2 together, pair 0"
    wheel.set(path="block")
    assert "120° apart and cancel" in wheel.summary()["says"]


def test_the_lens_that_turns_reads_what_the_plain_one_cannot(wheel):
    wheel.set(phases=3)
    surprise = wheel.summary()["surprise"]
    assert surprise["plain"][-1] == surprise["turned"][-1] < 0
    assert all(plain > 0 > turned for plain, turned in zip(surprise["plain"][1:-1], surprise["turned"][1:-1], strict=True))
    before = wheel.lens.spec["plots"][0]["values"]
    wheel.set(lens="plain")
    assert wheel.lens.spec["plots"][0]["values"][1] != before[1]
    assert wheel.lens.spec["plots"][0]["values"][-1] == before[-1]


def test_clicks_lead_to_layers_and_hands_stay_chosen(wheel):
    wheel.set(layer=2)
    wheel.chart.selected = {"drift": 3}
    assert wheel.summary()["layer"] == wheel._controls["layer"].value == 4
    wheel.lens.selected = {"lens": [5, 1]}
    assert (wheel.summary()["layer"], wheel.summary()["position"]) == (1, 5)
    wheel.chart.selected = {"drift": 0, "phase": "phase 1"}
    wheel.wait()
    wheel.set(layer=3)
    assert wheel.chart.selected == {"drift": 2, "phase": "phase 1"}
    assert wheel.lens.selected == {"lens": [5, 3]}


def test_a_pair_that_more_phases_lack_becomes_the_last_one(wheel):
    wheel.set(phases=1, pair=47)
    wheel.set(phases=12)
    assert (wheel.summary()["pair"], wheel.summary()["error"]) == (3, None)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"phases": 5}, "5 phases"),
        ({"layer": 5}, "layer is 5"),
        ({"pair": 99}, "pair is 99"),
        ({"path": "spiral"}, "'spiral'"),
        ({"lens": "thick"}, "'thick'"),
        ({"text": ""}, "empty"),
    ],
)
def test_a_mistake_is_one_line_and_the_picture_stays(wheel, changes, says):
    wheel.set(phases=3, text="The city was founded.", layer=1, pair=0)
    before = wheel.chart.spec
    wheel.set(**changes)
    assert says in wheel.summary()["error"]
    assert wheel.chart.spec == before


def test_spokes_are_written_with_all_their_digits(wheel, tmp_path):
    wheel.set(phases=3, text="The city was founded.", layer=1, pair=0)
    rows = list(csv.DictReader(wheel.export(tmp_path / "wheel.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 2 * 5 * 3 * 16
    assert [float(row["angle"]) for row in rows] == wheel.wheel.angle.to_numpy().ravel().tolist()
