"""Where a figure's numbers were made, in one line; and the charts of named runs say what their pieces say."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from lens.base.errors import InputError
from lens.figures.run_record import (
    caption,
    exit_chart,
    heads_chart,
    latency_chart,
    linear_chart,
    losses_chart,
    record_rows,
)
from lens.figures.static_chart import static_figure

FACTS = {
    "run_device": "cpu", "run_device_name": "Some Processor", "run_driver": "", "run_threads": 1,
    "run_date": "2026-11-22T01:02:03Z", "run_commit": "0123456789abcdef" * 2 + "01234567",
    "run_command": "lens runs start panels --device cpu --plan cpu --seed 0",
}  # fmt: skip


def plots(spec: dict) -> list[dict]:
    static_figure(spec, {})  # matplotlib can draw it
    return json.loads(json.dumps(spec))["plots"]


def test_the_caption_says_device_date_commit_and_command():
    place = "Made on Some Processor (CPU, 1 thread), 2026-11-22, commit 0123456"
    assert caption(xr.Dataset(attrs=FACTS)) == f"{place}: `{FACTS['run_command']}`"
    several = caption(xr.Dataset(attrs={**FACTS, "run_threads": 2, "run_commit": FACTS["run_commit"] + "+"}))
    assert "(CPU, 2 threads), 2026-11-22, commit 0123456+: " in several
    gpu = {**FACTS, "run_device": "cuda", "run_device_name": "Some GPU", "run_driver": "570.1", "run_commit": ""}
    assert caption(xr.Dataset(attrs=gpu)).startswith("Made on Some GPU (GPU, driver 570.1), 2026-11-22: `")


def test_what_no_run_made_has_no_caption():
    with pytest.raises(InputError, match="does not say its device, device_name, threads, date, commit, command"):
        caption(xr.Dataset())
    with pytest.raises(InputError, match="does not say its date. Needed: a piece of a named run"):
        caption(xr.Dataset(attrs={name: value for name, value in FACTS.items() if name != "run_date"}))


def test_captions_need_no_torch():
    code = (
        "import sys, lens.figures.run_record; assert not {'torch', 'transformers', 'lens.models', 'lens.runs'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_rows_without_a_record_are_empty():
    dims = ("run", "device")
    records = xr.Dataset(
        {
            "pieces": (dims, [[2, 0]]), "planned_pieces": (dims, [[2, 5]]), "seconds": (dims, [[90.0, 0.0]]),
            "device_name": (dims, np.array([["Some Processor", ""]], object)),
            "date": (dims, np.array([["2026-11-22T01:02:03Z", ""]], object)),
        },
        {"run": ["panels"], "device": ["cpu", "cuda"]},
    )  # fmt: skip
    assert record_rows(records) == [
        ["panels", "cpu", "2 of 2", "1.5", "Some Processor", "2026-11-22"],
        ["panels", "cuda", "0 of 5", "", "", ""],
    ]


def test_the_chart_of_linearity_has_the_maps_to_the_last_layer_only():
    linearity = xr.Dataset({"score": ("block", [0.9, 0.8]), "score_update": ("block", [0.5, -0.33])}, {"block": [0, 1]})
    shortcuts = xr.Dataset(
        {"r2_pooled": ("pair", [0.7, 0.1, 0.6]), "identity_r2_pooled": ("pair", [0.2, 0.0, -1.25])},
        {"from_layer": ("pair", [1, 0, 0]), "to_layer": ("pair", [2, 1, 2])},
    )
    blocks, rest = plots(linear_chart(linearity, shortcuts))
    assert [one["values"] for one in blocks["series"]] == [[0.9, 0.8], [0.5, -0.33]]
    assert blocks["y"]["range"] == [-0.4, 1.0]
    assert rest["x"]["values"] == [0, 1]
    assert [one["values"] for one in rest["series"]] == [[0.6, 0.7], [-1.25, 0.2]]
    assert rest["y"]["title"] == "R² of layer 2"


def test_the_chart_of_exits_begins_at_zero_strictness():
    exits = xr.Dataset(
        {name: (("lens", "strictness"), [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]) for name in ("layers_saved", "agreement")},
        {"lens": ["plain", "shortcut"], "strictness": [-0.5, 0.0, 0.5]},
    )
    for plot in plots(exit_chart(exits)):
        assert plot["x"]["values"] == [0.0, 0.5]
        assert [(one["name"], one["values"]) for one in plot["series"]] == [
            ("plain lens", [0.2, 0.3]), ("shortcut", [0.5, 0.6]),
        ]  # fmt: skip


def test_heads_are_averaged_over_texts():
    def battery(values: list[list[float]]) -> xr.Dataset:
        return xr.Dataset({"mean_entropy": (("block", "head"), values)}, {"block": [0, 1]})

    several = {
        64: [battery([[1.0, 3.0], [0.0, 1.0]]), battery([[2.0, 2.0], [3.0, 4.0]])],
        32: [battery([[1.0, 1.0], [0.5, 0.5]])],
    }
    (plot,) = plots(heads_chart(several, {"mean_entropy": "entropy"}))
    assert [(one["name"], one["values"]) for one in plot["series"]] == [("32 tokens", [1.0, 0.5]), ("64 tokens", [2.0, 2.0])]


def test_losses_are_means_over_updates():
    course = xr.Dataset({"train_loss": ("step", [4.0, 2.0, 3.0, 1.0, 9.0])}, {"step": [1, 2, 3, 4, 5]})
    (plot,) = plots(losses_chart({"one": course}, every=2))
    assert plot["x"]["values"] == [1.5, 3.5]
    assert plot["series"][0]["values"] == [3.0, 2.0]


def test_panels_are_sorted_by_their_slowest_control():
    def piece(least: list[float], opening: float) -> xr.Dataset:
        return xr.Dataset({"least": ("control", least), "next_opening": opening}, {"control": ["text", "head"]})

    controls, opening = plots(latency_chart({"Quick": piece([0.01, 0.02], 0.1), "Slow": piece([2.0, 0.5], 3.0)}))
    assert controls["x"]["labels"] == ["Slow: text", "Quick: head"]
    assert controls["series"][0]["values"] == [2.0, 0.02]
    assert opening["x"]["labels"] == ["Slow", "Quick"]
    assert opening["series"][0]["values"] == [3.0, 0.1]
