"""Charts of block linearity: the score of every block, and the ladder of maps of one of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.figures.chart import axis, bars, chart, lines, rule, series

LOWEST = -1.0
"""Where axes end at the latest: how bad a map is that is worse than none is told by its number."""

_COLUMNS: Mapping[str, tuple[str, str]] = {
    "held out": ("score", "score_update"),
    "in sample": ("score_in_sample", "score_update_in_sample"),
}
_FLOORS: Mapping[str, tuple[str, str]] = {
    "held out": ("shuffled_r2", "null_r2"),
    "in sample": ("shuffled_r2_in_sample", "null_r2_in_sample"),
}
_STEPS = {"shift": "mean shift"}  # the chart's own names


def linearity_chart(linearity: xr.Dataset, floor: xr.Dataset, ladder: xr.Dataset, scored: str = "held out") -> dict[str, Any]:
    """The profile of the score over blocks, with and without the residual stream, and one block's ladder.

    Args:
        linearity: from `lens.linearity`.
        floor: from `lens.noise_floor` on the same moments.
        ladder: from `procrustes`, of one pair.
        scored: `held out`, or `in sample` on the tokens that were fitted. The ladder is held out either way.

    Raises:
        InputError: another word for `scored`.
    """
    if scored not in _COLUMNS:
        raise InputError(f"The score is {scored!r}", f"one of {', '.join(_COLUMNS)}", "scored='held out'")
    noise = dict(zip(("shuffled tokens", "Gaussian noise"), _FLOORS[scored], strict=True))
    columns = dict(zip(("with residual", "without residual"), _COLUMNS[scored], strict=True))
    block = int(ladder.from_layer[0])
    steps = [_STEPS.get(str(step), str(step)) for step in ladder.step.values]
    profile = lines(
        "block",
        linearity.block,
        {name: linearity[column].to_numpy() for name, column in columns.items()},
        x_axis="block",
        y_axis=axis(f"R², {scored}", range=(_foot(*_all_scores(linearity, floor)), 1.0)),
        rules=[rule(float(floor[column].max()), label) for label, column in noise.items()],
    )
    maps = [series("held out", ladder.r2[0].to_numpy()), series("noise floor", ladder.null_r2[0].to_numpy())]
    title = f"block {block}, layer {block} to {block + 1}"
    bound = axis("R², held out", range=(_foot(ladder.r2.to_numpy()), 1.0))
    return chart([profile, bars("ladder", steps, maps, label_axis="map", value_axis=bound, title=title)])


def _all_scores(linearity: xr.Dataset, floor: xr.Dataset) -> list[np.ndarray]:
    """Of both ways of scoring, so that the axis stays when the reader goes from one to the other."""
    found = [linearity[name].to_numpy() for pair in _COLUMNS.values() for name in pair]
    return found + [floor[name].to_numpy() for pair in _FLOORS.values() for name in pair]


def _foot(*values: np.ndarray) -> float:
    """A round number at or below all values, from `LOWEST` to a little below zero."""
    least = min(float(np.nanmin(each)) for each in values)
    return max(LOWEST, min(-0.2, math.floor(5 * max(least, LOWEST)) / 5))
