"""The explorer's charts: hands where the lanes point, lines at the lengths that matter, an axis that stays."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lens.figures.chart import GREEN, PURPLE, SKY
from lens.figures.rope_explorer import explorer_chart, tokens
from lens.figures.static_chart import static_figure
from lens.probes.rope_compare import compare_rope, phases


def drawn(kind="default", position=100, **options):
    compared = compare_rope(kind, **options)
    return explorer_chart(compared, phases(compared.theta.isel(table=-1).to_numpy(), position))["plots"]


YARN = {"width": 64, "context": 32_768, "factor": 4.0, "original_max_position_embeddings": 8192}


def test_hands_point_where_their_lanes_are_at_the_position():
    clock = drawn(width=64, position=3)[0]
    angles = [hand["angle"] for hand in clock["hands"]]
    np.testing.assert_allclose(angles, 3.0 * 1e4 ** (-np.arange(32) / 32), atol=1e-4)
    assert [group["colour"] for group in clock["groups"]] == [SKY, GREEN, PURPLE]


def test_the_mean_of_the_hands_is_the_kernel_over_the_lanes():
    here = drawn(width=64, position=700)[0]["here"]
    kernel = np.cos(700 * 1e4 ** (-np.arange(32) / 32)).sum()
    assert here["length"] * np.cos(here["angle"]) == pytest.approx(kernel / 32, abs=1e-3)


def test_the_lines_are_those_of_the_original_length_where_there_is_one():
    assert {line["label"]: line["value"] for line in drawn(context=4096)[1]["rules"]} == {
        "context": 4096, "context/4": 1024, "context/32": 128,
    }  # fmt: skip
    rules = {line["label"]: line["value"] for line in drawn("yarn", **YARN)[1]["rules"]}
    assert {name: rules[name] for name in ("context", "L₀", "L₀/4", "L₀/32")} == {
        "context": 32_768, "L₀": 8192, "L₀/4": 2048, "L₀/32": 256,
    }  # fmt: skip
    # b^(2i/64)·2π crosses 8192/32 and 8192 tokens near lanes 12.9 and 24.9; YaRN rounds them away from each other.
    assert (rules["blended from lane"], rules["divided from lane"]) == (13, 25)


def test_axes_stay_while_the_base_moves():
    ranges = [[plot["y"]["range"] for plot in drawn(base=base)[1:]] for base in (1e3, 1e4, 1e6)]
    assert ranges[0] == ranges[1] == ranges[2]


def test_a_lane_that_stands_still_is_a_gap_and_its_hand_does_not_turn():
    plots = drawn("proportional", width=8, partial_rotary_factor=0.5)
    assert plots[1]["series"][1]["values"][2:] == [None, None]
    assert [hand["note"] for hand in plots[0]["hands"]][2:] == ["stands still"] * 2
    assert [hand["angle"] for hand in plots[0]["hands"]][2:] == [0, 0]


def test_the_kernel_is_an_envelope_that_holds_every_offset():
    kernel = drawn(width=64, context=4096)[2]
    values = np.cos(np.outer(np.arange(4097), 1e4 ** (-np.arange(32) / 32))).sum(axis=1)
    low, high = (np.array(kernel["series"][0][end]) for end in ("low", "high"))
    assert low.min() == pytest.approx(values.min(), rel=1e-3)
    assert high[0] == 32
    starts = np.array(kernel["x"]["values"])
    run = np.searchsorted(starts, np.arange(4097), side="right") - 1
    assert (values >= low[run] - 2e-3 * np.abs(low[run])).all()
    assert (values <= high[run] + 2e-3 * np.abs(high[run])).all()
    assert [line["value"] for line in kernel["rules"]] == [725]


def test_every_kind_is_plain_data_and_a_file():
    for kind, options in {"default": {}, "yarn": YARN, "explicit": {"theta": [1.0, 0.0, 0.1]}}.items():
        plots = drawn(kind, **options)
        assert json.loads(json.dumps(plots, allow_nan=False)) == plots
        assert len(static_figure({"plots": plots}, {"lane": 1, "offset": 10}).axes) == 3


@pytest.mark.parametrize(
    ("count", "text"), [(6.283, "6.28"), (54_410, "54,410"), (5.06e6, "5.06 million"), (1.25e10, "12.5 billion")]
)
def test_tokens_are_short_words(count, text):
    assert tokens(count) == text
