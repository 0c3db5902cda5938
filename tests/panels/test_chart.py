"""The chart as a widget: what is sent to the browser, and what a gesture there sets here."""

from __future__ import annotations

import numpy as np

from lens.figures.chart import chart, heat_map
from lens.panels.chart import Chart


def pairs() -> dict:
    return chart([heat_map("pairs", [0, 1], [0, 1], np.eye(2), x_axis="from layer", y_axis="to layer", value_axis="R²")])


def test_a_description_is_sent_as_it_is():
    spec = pairs()
    state = Chart(spec=spec, selected={"pairs": [0, 1]}).get_state()
    assert (state["spec"], state["selected"], state["busy"]) == (spec, {"pairs": [0, 1]}, {})


def test_a_gesture_in_the_browser_is_observed_here():
    widget, seen = Chart(spec=pairs()), []
    widget.observe(lambda change: seen.append(change["new"]), "selected")
    widget.set_state({"selected": {"pairs": [1, 1]}})
    assert seen == [{"pairs": [1, 1]}]


def test_two_charts_do_not_share_their_choices():
    one, other = Chart(), Chart()
    one.selected = {"pairs": [0, 0]}
    assert other.selected == {}


def test_a_notebook_without_its_kernel_shows_the_picture():
    bundle = Chart(spec=pairs())._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert data["text/plain"] == "Chart(pairs)"
    assert data["image/png"].startswith(b"\x89PNG")
