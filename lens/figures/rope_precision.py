"""Chart of what low precision does to rotary tables: the error of each lane, one curve for each way of making them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from lens.figures.chart import BLACK, BLUE, GREEN, ORANGE, PURPLE, axis, chart, lines, series

MEASURES = {"angle_error": "error of the angle", "table_error": "error of cosine and sine"}
_COLOURS = {
    "float32 angles": BLUE,
    "rounded frequencies": GREEN,
    "bfloat16 tables": PURPLE,
    "bfloat16 positions": ORANGE,
    "running product": BLACK,
}


def precision_chart(found: Sequence[xr.Dataset], measure: str = "table_error") -> dict[str, Any]:
    """Errors over the lanes, logarithmic; lanes without an error are gaps.

    Args:
        found: from `rope_precision`, one for each path, of the same base, width and positions.
        measure: `angle_error` (radians) or `table_error`.
    """
    curves = [series(one.attrs["path"], one[measure].to_numpy(), colour=_COLOURS[one.attrs["path"]]) for one in found]
    facts: Mapping[str, Any] = found[0].attrs
    title = f"base {facts['base']:,.0f}, positions up to {facts['last_position']:,}"
    unit = "radians" if measure == "angle_error" else ""
    return chart([
        lines("lane", found[0].lane, curves, x_axis="lane", y_axis=axis(MEASURES[measure], unit, scale="log"), title=title)
    ])  # fmt: skip
