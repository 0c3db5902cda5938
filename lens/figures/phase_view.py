"""Charts of a residual stream cut into N phases: how far its phases differ through depth, beside chance, and one layer of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.figures.chart import BLACK, ORANGE, Plot, axis, chart, heat_map, lines, scatter, series

MEASURES = {
    "length": ("largest less smallest length", ""),
    "mean": ("largest less smallest mean", ""),
    "angle": ("largest less smallest angle", "degrees"),
    "correlation": ("|correlation| within less between", ""),
    "rotation": ("locking of the phases’ turns", ""),
}
_ONE = {
    "length": ("length of the phase, times √N", ""),
    "mean": ("mean of the phase", ""),
    "angle": ("angle to the layer before", "degrees"),
}


def phase_view_chart(view: xr.Dataset, layer: int) -> dict[str, Any]:
    """A measure through depth beside random partitions, and the phases (or pairs) of one layer.

    Args:
        view: from `phase_view`.
        layer: whose phases are shown; of a measure between layers, the block that leads to it, and block 0 for layer 0.

    Raises:
        InputError: no such layer.
    """
    between = "block" in view.dims
    last = view.sizes["block"] if between else view.sizes["layer"] - 1
    if layer not in range(last + 1):
        raise InputError(f"The layer is {layer!r}", f"0 to {last}", f"layer={last}")
    here = view.isel(block=max(layer - 1, 0)) if between else view.isel(layer=layer)
    measure = str(view.attrs["measure"])
    beside = {"correlation": _links, "rotation": _turns}.get(measure, _phases)(here, measure)
    return chart([_depth(view, measure, "block" if between else "layer"), beside])


def _depth(view: xr.Dataset, measure: str, place: str) -> Plot:
    title, unit = MEASURES[measure]
    # Of one phase there is nothing to compare, and the curves lie on each other.
    random = series("random partitions", view.random_middle, low=view.random_low, high=view.random_high, colour=BLACK)
    own = series("adjacent channels", view.statistic, colour=ORANGE)
    fixed = (0.0, 1.0) if measure == "rotation" else None
    return lines(place + "s", view[place], [own, random], x_axis=place, y_axis=axis(title, unit, range=fixed))


def _phases(here: xr.Dataset, measure: str) -> Plot:
    title, unit = _ONE[measure]
    count = here.sizes["phase"]
    low, high = (np.full(count, float(here[name])) for name in ("value_low", "value_high"))
    found = [
        series("phases", here.value, colour=ORANGE),
        series("random parts", (low + high) / 2, low=low, high=high, colour=BLACK),
    ]
    return lines("phases", here.phase, found, x_axis="phase", y_axis=axis(title, unit), title=_named(here))


def _links(here: xr.Dataset, _measure: str) -> Plot:
    return heat_map(
        "phases", here.phase, here.other, here.value, x_axis="phase", y_axis="phase",
        value_axis=axis("mean |correlation|", range=_narrow(here.value.to_numpy())), title=_named(here),
    )  # fmt: skip


def _narrow(values: np.ndarray) -> tuple[float, float]:
    """Round numbers around the values, without zero: they differ by a few hundredths."""
    low, high = np.floor(100 * values.min()) / 100, np.ceil(100 * values.max()) / 100
    return float(low), float(max(high, low + 0.01))


def _turns(here: xr.Dataset, _measure: str) -> Plot:
    """Measured, beside imposed where something is."""
    phases = int(here.attrs["phases"])
    size = here.sizes["pair"] // phases
    dots = [
        {"x": pair, "y": turn, "label": f"pair {pair} (phase {pair // size})", "group": "measured turn"}
        for pair, turn in enumerate(np.rad2deg(here.turn.to_numpy()).tolist())
    ]
    imposed = np.rad2deg(here.imposed.to_numpy())
    curves = {"imposed turn": (here.pair.to_numpy(), _with_gaps(imposed))} if np.isfinite(imposed).all() else {}
    return scatter(
        "pairs", dots, curves, x_axis=axis("pair", range=(0, max(here.sizes["pair"] - 1, 1))),
        y_axis=axis("turn", "degrees", range=(-180, 180)), title=_named(here),
    )  # fmt: skip


def _with_gaps(angles: np.ndarray) -> np.ndarray:
    """A gap after every jump, so that phases are not joined."""
    found = angles.copy()
    found[:-1][np.abs(np.diff(angles)) > 30] = np.nan
    return found


def _named(here: xr.Dataset) -> str:
    return f"block {int(here.block)}" if "block" in here.coords else f"layer {int(here.layer)}"
