"""Charts of lenses beside each other: how faithful each is at every layer, and what stopping early would save."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.figures.chart import Plot, axis, chart, lines, rule, series

NAMES = {"plain": "plain lens", "shortcut": "shortcut", "tuned": "tuned"}
MEASURES = {
    "precision_1": ("first word is the model's first", ""),
    "precision_5": ("first word is among the model's first 5", ""),
    "precision_10": ("first word is among the model's first 10", ""),
    "surprisal": ("surprisal of the first word to the model", "nats"),
    "kl_to_final": ("KL(model‖lens)", "nats"),
}
_POINTS = 81  # of the curve against layers saved


def early_exit_chart(readings: xr.Dataset, exits: xr.Dataset, measure: str = "precision_1") -> dict[str, Any]:
    """One measure of every lens over the layers, and agreement against layers saved.

    Args:
        readings: from `lens.compare_lenses`.
        exits: from `lens.early_exit`.
        measure: `precision_1`, `precision_5`, `precision_10`, `surprisal` or `kl_to_final`.

    Raises:
        InputError: an unknown measure.
    """
    return chart([_profile(readings, measure), _curve(exits)])


def _profile(readings: xr.Dataset, measure: str) -> Plot:
    if measure not in MEASURES:
        raise InputError(f"The measure is {measure!r}", f"one of {', '.join(MEASURES)}", "measure='precision_1'")
    title, unit = MEASURES[measure]
    name, _, k = measure.partition("_") if measure.startswith("precision") else (measure, "", "")
    values = readings[name].sel(k=int(k)) if k else readings[name]
    ends = {"precision": ("precision_low", "precision_high"), "kl_to_final": ("kl_low", "kl_high")}.get(name)
    curves = []
    for lens in readings.lens.to_numpy():
        chosen = {"lens": lens, **({"k": int(k)} if k else {})}
        low, high = (None, None) if ends is None else (readings[ends[0]].sel(chosen), readings[ends[1]].sel(chosen))
        curves.append(series(_name(lens), values.sel(lens=lens).to_numpy(), low=low, high=high))
    y_axis = axis(title, unit, range=(0.0, 1.0)) if k else axis(title, unit)
    return lines("layer", readings.layer.to_numpy(), curves, x_axis="layer", y_axis=y_axis)


def _curve(exits: xr.Dataset) -> Plot:
    """Agreement at evenly spaced savings, on straight lines between the points that were measured."""
    grid = np.linspace(0, 1, _POINTS)
    curves = []
    for lens in exits.lens.to_numpy():
        saved, agreement = (exits[name].sel(lens=lens).to_numpy() for name in ("layers_saved", "agreement"))
        order = np.argsort(saved, kind="stable")
        inside = (grid >= saved.min()) & (grid <= saved.max())
        curves.append(series(_name(lens), np.where(inside, np.interp(grid, saved[order], agreement[order]), np.nan)))
    y_axis = axis("same word as the whole model", range=(0.0, 1.0))
    return lines("saved", 100 * grid, curves, x_axis=axis("layers saved", "%"), y_axis=y_axis, rules=[rule(0.95, "95 %")])


def _name(lens: str) -> str:
    return NAMES.get(str(lens), str(lens))
