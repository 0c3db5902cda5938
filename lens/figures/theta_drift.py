"""Charts of the drift of a Three-Phase model's angles: by block beside decay alone and the published one, and in training."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.figures.chart import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, Plot, axis, chart, lines, rule, series

_COURSE_COLOURS = (SKY, BLUE, PURPLE, ORANGE)
_DRAWN = ("mean_drift", "control_mean_drift", "decay_drift", "published_mean_drift")
MOST_BLOCKS = 4  # in the picture of the course


def theta_drift_chart(profile: xr.Dataset, look: int = -1) -> dict[str, Any]:
    """Mean drift of every block, what its pairs do on their own, and both over the updates.

    Args:
        profile: from `drift_profile`.
        look: which look at the model, as an index; the last one by default.

    Raises:
        InputError: no such look.
    """
    looks = profile.sizes["looked_at"]
    if not -looks <= look < looks:
        raise InputError(f"The look is {look!r}", f"0 to {looks - 1}", "look=-1")
    shown = profile.isel(looked_at=look)
    return chart([_by_block(profile, shown), _own_ways(shown), _course(profile)])


def _by_block(profile: xr.Dataset, shown: xr.Dataset) -> Plot:
    """Lines over seeds; what is not there is left out."""
    found = [_over_seeds("with decay", shown["mean_drift"], ORANGE)]
    if np.isfinite(shown["control_mean_drift"]).any():
        found.append(_over_seeds("no decay on angles", shown["control_mean_drift"], BLUE))
    found.append(series("decay alone, by the end", shown["decay_drift"], colour=BLACK))
    if np.isfinite(shown["published_mean_drift"]).any():
        found.append(series("published, 123M", shown["published_mean_drift"], colour=GREEN))
    every = [
        profile[name].to_numpy().ravel() for name in ("mean_drift", "control_mean_drift", "decay_drift", "published_mean_drift")
    ]
    return lines(
        "blocks", shown["block"], found, x_axis="block", y_axis=axis("mean drift of the angle", "radian", range=_round(every)),
        title=f"after {int(shown['looked_at']):,} updates", rules=[rule(0, "as it began", on="y")], marks=True,
    )  # fmt: skip


def _over_seeds(name: str, drift: xr.DataArray, colour: str) -> dict[str, Any]:
    return series(name, drift.mean("seed"), low=drift.min("seed"), high=drift.max("seed"), colour=colour)


def _own_ways(shown: xr.Dataset) -> Plot:
    """The pairs of a block together and apart."""
    found = [
        series("shared by the block", abs(shown["mean_drift"]).mean("seed"), colour=ORANGE),
        series("around it, by pair", shown["spread"].mean("seed"), colour=PURPLE),
    ]
    if np.isfinite(shown["control_spread"]).any():
        found.append(series("by pair, no decay on angles", shown["control_spread"].mean("seed"), colour=BLUE))
    return lines(
        "blocks", shown["block"], found, x_axis="block", y_axis=axis("size of the drift", "radian", range=_from_zero(found)),
        title="one angle, or each pair its own",
    )  # fmt: skip


def _course(profile: xr.Dataset) -> Plot:
    """Mean ± spread of some blocks, mean over seeds."""
    blocks = np.unique(np.linspace(0, profile.sizes["block"] - 1, MOST_BLOCKS).round().astype(int))
    found = []
    for block, colour in zip(blocks.tolist(), _COURSE_COLOURS[-len(blocks) :], strict=True):
        one = profile.isel(block=block).mean("seed")
        drift, spread = one["mean_drift"], one["spread"]
        found.append(series(f"block {block}", drift, low=drift - spread, high=drift + spread, colour=colour))
    return lines(
        "course", profile["looked_at"], found, x_axis=axis("updates"), y_axis=axis("mean drift ± spread", "radian"),
        title=f"{profile.attrs['title']}, with decay", marks=False,
    )  # fmt: skip


def _round(parts: list[np.ndarray]) -> tuple[float, float]:
    """Twentieths around all looks, so that the axis stays while training goes on."""
    values = np.concatenate([*parts, np.zeros(1)])
    return float(np.floor(20 * np.nanmin(values)) / 20), float(max(np.ceil(20 * np.nanmax(values)) / 20, 0.05))


def _from_zero(found: list[dict[str, Any]]) -> tuple[float, float]:
    most = max(value for one in found for value in one["values"] if value is not None)
    return 0.0, float(max(np.ceil(50 * most) / 50, 0.02))
