"""The wedge says what the Datasets say, and its texts are safe to show."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr

from lens.figures.rope_bounds import bounds_chart, hypotheses, hypotheses_html, in_words, practice_table, theory_table
from tests.base.hostile import HOSTILE

CONTEXTS = np.array([1024, 4096, 65_536])
NAMES = {"depth": "at least", "precision_wall": "less than"}


def bound(name: str, values) -> xr.Variable:
    dims = ("context",) if np.ndim(values) else ()
    facts = {"short_name": name.replace("_", " "), "theory": f"{name}: it asks", "source": "someone", "assumptions": "much",
             "bound": NAMES[name], "met": "no"}  # fmt: skip
    return xr.Variable(dims, values, facts)


LINES = xr.Dataset(
    {"depth": bound("depth", 18.0 * CONTEXTS), "precision_wall": bound("precision_wall", np.full(3, 8_388_608.0))},
    {"context": CONTEXTS},
)
SETTING = xr.Dataset(
    {"depth": bound("depth", 73_728.0), "precision_wall": bound("precision_wall", 8_388_608.0)},
    attrs={"context": 4096, "base": 20_000.0},
)
PRACTICE = xr.Dataset(
    {
        "context": ("model", [4096, 4096, 65_536]),
        "effective_base": ("model", [1e4, 1.1e4, 1e6]),
        "supported": ("model", [True, True, False]),
        "met": (("model", "theory"), [[False, True], [False, True], [True, False]]),
    },
    {"model": ["one", "two", "three"], "theory": list(NAMES)},
)
PROBLEMS = xr.Dataset(
    {"theory": ("problem", ["depth", "depth", "precision_wall"]), "sentence": ("problem", ["first", "second", "third"])}
)


def plot(theories=tuple(NAMES), model=None, practice=PRACTICE) -> dict:
    return bounds_chart(LINES, practice, theories, SETTING, model)["plots"][0]


def test_theories_are_lines_and_models_are_dots():
    shown = plot()
    assert {curve["name"]: curve["y"] for curve in shown["curves"]} == {
        "depth": [18_432, 73_728, 1_179_648], "precision wall": [8_388_608] * 3,
    }  # fmt: skip
    assert [(dot["x"], dot["y"], dot["label"]) for dot in shown["dots"]] == [
        (4096, 10_000, "one"), (4096, 11_000, "two"), (65_536, 1_000_000, "three"),
    ]  # fmt: skip
    assert [shown["groups"][dot["group"]]["name"] for dot in shown["dots"]] == [
        "released models", "released models", "not offered for this context",
    ]  # fmt: skip
    assert (shown["x"]["scale"], shown["y"]["scale"]) == ("log", "log")


def test_theories_can_be_left_out_and_keep_their_colours():
    colours = {curve["name"]: curve["colour"] for curve in plot()["curves"]}
    alone = plot(["depth"])["curves"]
    assert [(curve["name"], curve["colour"]) for curve in alone] == [("depth", colours["depth"])]
    assert plot([])["curves"] == []


def test_the_place_of_the_controls_is_marked_unless_a_model_stands_there():
    assert plot()["here"] == {"x": 4096, "y": 20_000, "label": "the controls", "group": 0}
    assert plot(model="one")["here"] is None


def test_names_do_not_lie_over_each_other_and_that_of_the_model_is_shown():
    assert plot()["named"] == ["one", "three"]
    assert plot(model="two")["named"] == ["two", "three"]


def test_the_axes_stay_while_a_slider_moves():
    other = bounds_chart(1e3 * LINES.assign_coords(context=CONTEXTS), PRACTICE, [], SETTING.assign_attrs(base=1e9))["plots"][0]
    assert (other["x"]["range"], other["y"]["range"]) == (plot()["x"]["range"], plot()["y"]["range"])


def test_a_setting_and_a_model_have_verdicts_of_their_own():
    for model, met in ((None, [False, False]), ("one", [False, True]), ("three", [True, False])):
        rows = hypotheses(SETTING, PRACTICE, PROBLEMS, list(NAMES), model)
        assert [row["met"] for row in rows] == met
    assert [(row["name"], row["bound"], row["required"], row["against"]) for row in rows] == [
        ("depth", "at least", 73_728.0, ["first", "second"]), ("precision wall", "less than", 8_388_608.0, ["third"]),
    ]  # fmt: skip
    assert hypotheses(SETTING, PRACTICE, PROBLEMS, ["precision_wall"])[0]["name"] == "precision wall"


def test_the_table_says_all_of_it():
    page = hypotheses_html(hypotheses(SETTING, PRACTICE, PROBLEMS, list(NAMES), "one"))
    for text in ("at least 73,728", "less than 8.39 million", ">no<", ">yes<", "first", "second", "third", "Assumes: much"):
        assert text in page


def test_the_models_as_a_table_for_print():
    practice = PRACTICE.assign(
        required=(("model", "theory"), [[73_728.0, 8_388_608.0]] * 3), base=("model", [1e4, 1.1e4, 1e6]),
        kind=("model", ["default", "yarn", "linear"]), slow_lanes=("model", [1, 2, 3]), lanes=("model", [8, 8, 8]),
        first_negative=("model", [91.0, np.nan, 12_345.0]),
    )  # fmt: skip
    lines = practice_table(practice, list(NAMES)).splitlines()
    assert lines[0].split()[:4] == ["model", "base", "kind", "context"]
    assert lines[1].split() == ["one", "10,000", "default", "4,096", "73,728", "*", "8.39", "million", "1/8", "91"]
    assert lines[3].split() == ["three", "1", "million", "linear", "65,536", "73,728", "8.39", "million", "*", "3/8", "12,345"]
    assert lines[2].endswith("2/8         none")


def test_how_theories_fare_as_a_table_for_print():
    practice = PRACTICE.assign(
        used_though_not_met=("theory", [2, 0]), met_though_unused=("theory", [1, 0]), hypothesis=("theory", ["depth", "wall"])
    )
    lines = [line.split() for line in theory_table(practice).splitlines()]
    assert lines[0][:6] == ["hypothesis", "not", "met", "by,", "of", "2"]
    assert lines[1:] == [["depth", "2", "1"], ["wall", "0", "0"]]


@pytest.mark.parametrize("text", HOSTILE)
def test_names_and_sentences_are_text(text):
    problems = PROBLEMS.assign(sentence=("problem", [text] * 3))
    page = hypotheses_html(hypotheses(SETTING, PRACTICE, problems, list(NAMES)))
    assert "<script" not in page.lower()
    assert "<img" not in page.lower()
    assert page.count("<td>") == 8


@pytest.mark.parametrize(
    ("base", "words"),
    [(652, "652"), (12_898.3, "12,898"), (999_999.4, "999,999"), (999_999.6, "1 million"), (2_315_558, "2.32 million"),
     (3.876e9, "3.88 billion"), (4.6e12, "4.6 trillion"), (1.2e17, "1.20e+17")],
)  # fmt: skip
def test_bases_in_words(base, words):
    assert in_words(float(base)) == words


def test_the_chart_is_plain_data():
    spec = bounds_chart(LINES, PRACTICE, list(NAMES), SETTING, "one")
    assert json.loads(json.dumps(spec, allow_nan=False)) == spec
