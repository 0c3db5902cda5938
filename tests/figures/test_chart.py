"""Descriptions of charts: plain data of the right size, the same colour for the same thing, round axes, clear refusals."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from lens.base.errors import InputError
from lens.figures.chart import (
    BLACK,
    BLUE,
    GREEN,
    MARKS,
    PURPLE,
    SCRIPTS,
    SERIES_COLOURS,
    SKY,
    STYLES,
    axis,
    bars,
    chart,
    clock,
    heat_map,
    histogram,
    lines,
    phase_colours,
    rule,
    scatter,
    series,
)
from lens.figures.page import widget_source

FINITE = st.floats(-1e9, 1e9, allow_nan=False).filter(lambda value: value == 0 or abs(value) > 1e-9)
# Okabe & Ito (2008), as printed in their table, without vermillion D55E00.
PUBLISHED = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#CC79A7"}


def curve(values, **options):
    given = {"x_axis": "layer", "y_axis": "KL"} | options
    return lines("kl", range(len(values)), {"plain lens": values}, **given)


def square(n: int) -> np.ndarray:
    """A triangular map with scores of every size."""
    values = np.random.default_rng(0).uniform(-1, 1, (n, n))
    values[np.triu_indices(n, 1)] = np.nan
    return values


def layer_map(values, **options):
    given = {"x_axis": "from layer", "y_axis": "to layer", "value_axis": "R²"} | options
    return heat_map("pairs", range(values.shape[1]), range(values.shape[0]), values, **given)


def dot(label, x=1.0, y=1.0, group="models"):
    return {"x": x, "y": y, "label": label, "group": group}


def cloud(dots, curves=None, **options):
    return scatter("model", dots, curves, **{"x_axis": "context", "y_axis": "base"} | options)


def hand(label, angle, **options):
    return {"label": label, "angle": angle, **options}


# -- plain data -----------------------------------------------------------------------------------


def every_kind() -> dict:
    return chart(
        [
            lines("kl", [0, 1, 2.5], [series("tuned", [1, np.nan, 2], low=[0, 0, 1], high=[2, 2, 3])], x_axis="layer",
                  y_axis=axis("KL", "nats", scale="log"), rules=[rule(0.1, "noise floor")]),
            bars("ladder", ["identity", "linear"], {"R²": [-0.3, 0.9]}, label_axis="map", value_axis="R²"),
            histogram("angles", [0, 90, 180], {"block": [5, 7]}, x_axis=axis("angle", "°")),
            layer_map(square(3), signed=True),
            cloud([dot("a"), dot("b", x=np.float32(2))], {"depth": ([1, 2], [np.nan, 3])}, rules=[rule(1, "c", on="x")]),
            clock("lane", [hand("lane 0", np.float64(7.0), value=np.int64(0))], here=hand("mean", 1.0, length=0.5)),
        ]
    )  # fmt: skip


def test_a_description_is_what_json_holds():
    spec = every_kind()
    assert json.loads(json.dumps(spec, allow_nan=False)) == spec


def test_the_map_of_a_whole_model_is_below_20_kilobytes():
    assert len(json.dumps(chart([layer_map(square(31))])).encode()) < 20_000


def test_what_is_not_finite_is_a_gap():
    plot = curve([0.5, np.nan, np.inf, -np.inf, 2])
    assert plot["series"][0]["values"] == [0.5, None, None, None, 2]
    assert plot["y"]["range"] == [0.4, 2.0]


def test_values_keep_four_digits_and_whole_numbers_all():
    plot = curve([0.123456, 1234.56, 123_456.0, -0.99996, np.float32(0.1)])
    assert plot["series"][0]["values"] == [0.1235, 1235, 123456, -1, 0.1]


def test_a_map_holds_its_rows_from_below_and_blanks_the_rest():
    plot = layer_map(np.array([[0.5, np.nan], [0.25, 1]]))
    assert plot["values"] == [[0.5, None], [0.25, 1]]


def test_arrays_may_be_xarrays():
    read = xr.Dataset({"kl": ("layer", [3.0, 2.0])}, coords={"layer": [0, 4]})
    plot = lines("kl", read.layer, {"plain lens": read.kl}, x_axis="layer", y_axis="KL")
    assert (plot["x"]["values"], plot["series"][0]["values"]) == ([0, 4], [3, 2])


def test_the_givers_own_dicts_stay_as_they_are():
    given_axis, given_series = axis("KL"), series("a", [1.0, 2.0])
    lines("kl", [0, 1], [given_series], x_axis=given_axis, y_axis=given_axis)
    assert (given_axis, given_series) == (axis("KL"), series("a", [1.0, 2.0]))


# -- axes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "ends"),
    [([0.02, 0.98], [0, 1]), ([-0.29, 0.96], [-0.4, 1]), ([3, 27], [0, 30]), ([0.93, 0.999], [0.93, 1]), ([5, 5], [4.4, 5.6])],
)
def test_a_range_is_round_numbers_around_the_values(values, ends):
    assert curve(values)["y"]["range"] == pytest.approx(ends)


@given(st.lists(FINITE, min_size=1, max_size=20))
def test_a_range_holds_all_values(values):
    low, high = curve(values)["y"]["range"]
    assert low < high
    assert low - 1e-3 * (high - low) <= min(values)
    assert max(values) <= high + 1e-3 * (high - low)


def test_a_range_holds_intervals_and_rules_too():
    plot = lines("a", [0, 1], [series("b", [1, 1], low=[0.1, 1], high=[1, 4])], x_axis="x", y_axis="y", rules=[rule(7.5, "c")])
    assert plot["y"]["range"] == [0, 8]


def test_a_logarithmic_range_is_whole_decades_of_the_positive_values():
    assert curve([0, 0.02, 300], y_axis=axis("KL", scale="log"))["y"]["range"] == [0.01, 1000]
    assert curve([1, 1], y_axis=axis("KL", scale="log"))["y"]["range"] == [1, 10]


def test_bars_stand_on_zero():
    assert bars("b", ["a", "b"], {"c": [0.6, 0.7]}, label_axis="x", value_axis="y")["y"]["range"][0] == 0
    assert bars("b", ["a", "b"], {"c": [-0.6, -0.7]}, label_axis="x", value_axis="y")["y"]["range"][1] == 0


def test_a_signed_map_has_zero_in_the_middle():
    assert layer_map(np.array([[-0.2, 0.73]]), signed=True)["value"]["range"] == [-0.8, 0.8]


def test_a_given_range_stays():
    assert curve([1, 2], y_axis=axis("KL", range=(0, 10)))["y"]["range"] == [0, 10]
    assert layer_map(square(2), value_axis=axis("R²", range=(0, 1)))["value"]["range"] == [0, 1]


def test_nothing_known_is_drawn_on_a_unit_axis():
    assert curve([np.nan, np.nan])["y"]["range"] == [0, 1]
    assert layer_map(np.full((2, 2), np.nan))["value"]["range"] == [0, 1]


# -- colours --------------------------------------------------------------------------------------


def test_colours_are_the_published_ones_each_with_its_own_mark():
    assert {colour.upper() for colour in MARKS} == PUBLISHED
    assert len(set(MARKS.values())) == len(MARKS)
    assert set(SERIES_COLOURS.values()) <= set(MARKS)


@pytest.mark.parametrize("names", [["plain lens", "shortcut", "tuned"], ["tuned", "plain lens", "other", "shortcut"]])
def test_a_known_name_has_its_colour_in_any_company(names):
    found = {one["name"]: one for one in lines("a", [0], {name: [1] for name in names}, x_axis="x", y_axis="y")["series"]}
    assert [found[name]["colour"] for name in ("plain lens", "shortcut", "tuned")] == [BLUE, GREEN, PURPLE]
    assert len({one["colour"] for one in found.values()}) == len({one["marker"] for one in found.values()}) == len(names)


def test_a_free_colour_can_be_asked_for():
    plot = lines("a", [0], [series("new", [1], colour=GREEN), series("newer", [1])], x_axis="x", y_axis="y")
    assert [one["colour"] for one in plot["series"]] == [GREEN, BLUE]


# -- dots and hands -------------------------------------------------------------------------------


def test_the_axes_of_a_scatter_hold_dots_curves_rules_and_the_place_of_the_controls():
    logs = {"x_axis": axis("context", scale="log"), "y_axis": axis("base", scale="log")}
    plot = cloud([dot("a", 2, 3)], {"depth": ([0.5, 30], [1, 500])}, rules=[rule(2e4, "wall"), rule(2e3, "L", on="x")], **logs)
    assert (plot["x"]["range"], plot["y"]["range"]) == ([0.1, 1e4], [1, 1e5])
    far = cloud([dot("a", 2, 3)], here={"x": 7, "y": 0.2, "label": "here"}, **logs)
    assert (far["x"]["range"], far["y"]["range"]) == ([1, 10], [0.1, 10])


def test_a_vertical_rule_leaves_the_upward_axis_alone():
    plot = lines("a", [0, 1], {"b": [1, 2]}, x_axis="x", y_axis="y", rules=[rule(50, "c", on="x")])
    assert plot["y"]["range"] == [1, 2]


@pytest.mark.parametrize("phases", [1, 2, 3, 4, 6, 8, 12])
def test_phases_stand_around_one_circle_of_hues_from_blue_on(phases):
    found = phase_colours(phases)
    assert len(set(found)) == phases
    assert found[0] == phase_colours(1)[0]
    assert set(found) <= set(phase_colours(12)) or phases == 8  # phase i of N and phase 2i of 2N have one hue
    plot = lines("a", [0], [series(f"phase {n}", [n], colour=colour) for n, colour in enumerate(found)], x_axis="x", y_axis="y")
    assert [one["colour"] for one in plot["series"]] == found
    assert len({one["marker"] for one in plot["series"]}) == min(phases, len(MARKS))


def test_a_phase_beside_another_thing_has_another_mark():
    given = [series("decay alone", [0], colour=BLUE), series("phase 0", [1], colour=phase_colours(3)[0])]
    assert [one["marker"] for one in lines("a", [0], given, x_axis="x", y_axis="y")["series"]] == ["circle", "square"]


def test_groups_of_dots_get_colours_that_no_curve_has_ink_first():
    plot = cloud([dot("a"), dot("b", group="others")], {"depth": ([1, 2], [1, 2]), "new": ([1, 2], [2, 3])})
    assert plot["groups"][0]["colour"] == BLACK
    drawn = [one["colour"] for one in plot["curves"] + plot["groups"]]
    assert len(set(drawn)) == 4
    assert [one["group"] for one in plot["dots"]] == [0, 1]


def test_bands_of_lanes_have_their_colours_among_dots_and_hands():
    bands = ["fast lanes", "middle lanes", "slow lanes"]
    plots = [
        cloud([dot(band, group=band) for band in bands]),
        clock("lane", [hand(band, 1.0, group=band) for band in bands]),
    ]
    assert [[one["colour"] for one in plot["groups"]] for plot in plots] == [[SKY, GREEN, PURPLE]] * 2


@given(st.floats(-1e6, 1e6))
def test_an_angle_is_one_within_a_turn(angle):
    found = clock("lane", [hand("a", angle)])["hands"][0]["angle"]
    assert 0 <= found < 6.2832
    assert abs(np.exp(1j * found) - np.exp(1j * angle)) < 1e-4


def test_spokes_of_a_wheel_bear_marks_in_the_colours_of_phases():
    colours = phase_colours(12)
    spokes = [hand(f"phase {n}", n, kind="spoke", mark=n, group=f"phase {n}", colour=colours[n]) for n in range(12)]
    traces = [hand(f"phase {n}, measured", n, kind="trace", length=0.5, group=f"phase {n}") for n in range(12)]
    plot = clock("phase", [*spokes, *traces], ticks=[0.0, -np.pi / 2], key={"spoke": "imposed", "trace": "measured"})
    assert [group["colour"] for group in plot["groups"]] == colours
    assert [(one["kind"], one["mark"]) for one in plot["hands"]] == [
        *(("spoke", str(n)) for n in range(12)),
        *[("trace", "")] * 12,
    ]
    assert plot["ticks"] == pytest.approx([0.0, 3 * np.pi / 2], abs=1e-4)
    chart([plot])


def test_a_clock_and_curves_over_the_same_numbers_are_one_selection():
    hands = [hand(f"lane {n}", 0.1 * n, value=n) for n in range(3)]
    curves = lines("lane", range(3), {"wavelength": [1, 2, 3]}, x_axis="lane", y_axis="tokens")
    assert len(chart([clock("lane", hands), curves])["plots"]) == 2
    with pytest.raises(InputError, match="Two plots are named 'lane'"):
        chart([clock("lane", hands[:2]), curves])


def test_sixty_four_hands_are_below_ten_kilobytes():
    hands = [hand(f"lane {n}", 0.1 * n, value=n, group="fast lanes", note="wavelength 6.28 tokens") for n in range(64)]
    assert len(json.dumps(clock("lane", hands)).encode()) < 10_000


# -- refusals -------------------------------------------------------------------------------------


def two(names, values=(1, 2)):
    return lines("a", [0, 1], {name: list(values) for name in names}, x_axis="x", y_axis="y")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: axis("KL", scale="sqrt"), "'sqrt'.*linear or log"),
        (lambda: axis("KL", range=(1, 1)), "'KL' is 1 to 1"),
        (lambda: axis("KL", range=(0, 1), scale="log"), "'KL' is 0 to 1"),
        (lambda: rule(np.nan, "noise floor"), "'noise floor' stands at nan"),
        (lambda: series("a", [1], low=[1]), "'a' has one end"),
        (lambda: series("a", [1], low=[1, 2], high=[1, 2]), "another length"),
        (lambda: series("a", [[1]]), "'a' has 2 axes"),
        (lambda: series("a", [1], colour="#123456"), "#123456"),
        (lambda: phase_colours(13), "13 phases"),
        (lambda: two(["b"], [1, 2, 3]), "'b' in 'a' has 3 values.*Needed: 2"),
        (lambda: two("abcdefgh"), "8 series"),
        (lambda: two([]), "0 series"),
        (lambda: two(["shortcut", "linear"]), "2 of them in 1 fixed colours"),
        (lambda: lines("a", [1, 1], {"b": [1, 2]}, x_axis="x", y_axis="y"), "increase"),
        (lambda: lines("a", [], {"b": []}, x_axis="x", y_axis="y"), "increase"),
        (lambda: curve([0, -1], y_axis=axis("KL", scale="log")), "no positive value"),
        (lambda: curve([1, 2], x_axis=axis("layer", scale="log")), "'layer' begins at 0"),
        (lambda: curve([1, 2], x_axis=axis("token", labels=["a"])), "'token' has 1 labels.*Needed: 2"),
        (lambda: bars("a", ["x"], {key: [1] for key in "bcdef"}, label_axis="x", value_axis="y"), "5 bars"),
        (lambda: bars("a", ["x"], {"b": [1]}, label_axis="x", value_axis=axis("y", scale="log")), "zero"),
        (lambda: histogram("a", [0, 1], {"b": [1, 2]}, x_axis="x"), "2 values.*Needed: 1"),
        (lambda: heat_map("a", [0, 1], [0], np.zeros((2, 1)), x_axis="x", y_axis="y", value_axis="v"), r"\(2, 1\).*\(1, 2\)"),
        (lambda: layer_map(np.zeros((101, 100))), "10,100 cells"),
        (lambda: layer_map(np.zeros((2, 2)), signed=True, value_axis=axis("v", range=(0, 1))), "symmetric"),
        (lambda: layer_map(np.ones((2, 2)), value_axis=axis("v", scale="log", range=(1, 2))), "linear scale"),
        (lambda: rule(1, "a", on="z"), "'a' lies on 'z'.*x or y"),
        (lambda: cloud([]), "no dot and no curve"),
        (lambda: cloud([dot("a"), dot("a")]), "'a' twice"),
        (lambda: cloud([dot("a", x=np.nan)]), "x of 'a' is nan"),
        (lambda: cloud([dot("a", y=0)], y_axis=axis("b", scale="log")), "y of 'a' is 0"),
        (lambda: cloud([dot("a")], here={"x": 1, "y": np.inf, "label": "here"}), "y of 'here' is inf"),
        (lambda: cloud([dot("a")], named=["b"]), "no dot 'b'"),
        (lambda: cloud([dot("a")], {"b": ([1, 2], [1])}), "'b' in 'model' has 1 values.*Needed: 2"),
        (lambda: cloud([dot(name, group=name) for name in "abcdefgh"]), "8 series"),
        (lambda: cloud([dot(str(n)) for n in range(2001)]), "2,001 dots"),
        (lambda: clock("a", []), "0 hands"),
        (lambda: clock("a", [hand("b", np.inf)]), "angle inf"),
        (lambda: clock("a", [hand("b", 1.0, length=1.5)]), "length 1.5"),
        (lambda: clock("a", [hand("b", 1.0, kind="needle")]), "'needle'"),
        (lambda: clock("a", [hand("b", 1.0, value=1), hand("c", 1.0, value=1)]), "1 twice"),
        (lambda: chart([]), "no plot"),
        (lambda: chart([curve([1]), curve([1, 2])]), "Two plots are named 'kl'"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused_in_one_line(make, says):
    with pytest.raises(InputError, match=says) as refused:
        make()
    assert "\n" not in str(refused.value)


def test_plots_of_one_name_share_a_selection_if_their_axes_are_the_same():
    assert len(chart([curve([1, 2]), curve([3, 4])])["plots"]) == 2


@pytest.mark.parametrize("name", [*SCRIPTS, *STYLES])
def test_the_widgets_own_files_cannot_close_the_element_they_stand_in(name):
    assert not re.search(r"(?i)</(script|style)|<!--", widget_source(name))
