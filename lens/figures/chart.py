"""Descriptions of small linked charts: plain data that the browser draws (`chart.js`), and matplotlib for files (`static_chart`).

A chart is a row of plots. A plot is made by `lines`, `bars`, `histogram`, `heat_map`, `scatter` or `clock` from numpy or
xarray values; `chart` puts plots together. The result is a dict of numbers, texts and lists that JSON can hold: values
that are not finite become None and show as gaps, the others keep four significant digits.

A plot's `name` is the key under which the chart's `selected` holds what the reader chose in it: the x of a `lines` plot,
`[x, y]` of a heat map, the label of a dot, the number or label of a hand. Plots with one name show one selection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lens.base.errors import InputError
from lens.figures.chart_dots import clock, scatter
from lens.figures.chart_parts import (
    BLACK,
    BLUE,
    GREEN,
    MARKS,
    ORANGE,
    PURPLE,
    SERIES_COLOURS,
    SKY,
    YELLOW,
    Axis,
    Plot,
    SeriesLike,
    as_axis,
    axis,
    bar_series,
    cell_range,
    coloured,
    extent,
    increasing,
    labelled,
    phase_colours,
    plain,
    round_range,
    rule,
    series,
    span,
    value_axis_of,
)

__all__ = [
    "BLACK", "BLUE", "GREEN", "MARKS", "ORANGE", "PARTS", "PURPLE", "SCRIPTS", "SERIES_COLOURS", "SKY", "STYLES", "YELLOW",
    "Axis", "Plot", "axis", "bars", "chart", "clock", "heat_map", "histogram", "lines", "phase_colours", "rule",
    "scatter", "series",
]  # fmt: skip

MOST_CELLS = 10_000

_KINDS = ("series", "bars", "map", "scatter", "clock")
PARTS = ("theme.js", "chart_numbers.js", "chart_plot.js", *(f"chart_{kind}.js" for kind in _KINDS), "chart_view.js")
"""Of which other views are built, too."""
SCRIPTS = (*PARTS, "chart.js")
STYLES = ("theme.css", "chart.css")


def lines(
    name: str,
    x: ArrayLike,
    curves: SeriesLike,
    *,
    x_axis: str | Axis,
    y_axis: str | Axis,
    title: str = "",
    rules: Sequence[dict[str, Any]] = (),
    marks: bool = True,
) -> Plot:
    """Curves over one x, with marks, gaps and intervals; a click selects an x.

    Args:
        name: key of the selection.
        x: increasing numbers, at most 2,000.
        curves: `{name: values}`, or a list of `series(…)`; at most seven.
        x_axis, y_axis: an `axis(…)` or a title.
        title: a short heading; leave it out where the axes say it all.
        rules: dashed lines from `rule(…)`.
        marks: False for curves of many points, which are then told apart by their dashes.

    Raises:
        InputError: sizes that do not fit each other, x that does not increase, or what is not positive on a log axis.
    """
    places = increasing(x, name)
    found = coloured(curves, len(places), name)
    x_axis, y_axis = labelled(as_axis(x_axis), len(places)), as_axis(y_axis)
    x_axis["range"] = x_axis["range"] or span(places, x_axis)
    y_axis["range"] = y_axis["range"] or round_range(extent(found, rules), y_axis["scale"], name)
    return {"kind": "lines", "name": name, "title": title, "x": {**x_axis, "values": places}, "y": y_axis,
            "series": found, "rules": list(rules), "marks": marks}  # fmt: skip


def bars(
    name: str,
    labels: Sequence[str] | ArrayLike,
    heights: SeriesLike,
    *,
    label_axis: str | Axis,
    value_axis: str | Axis,
    title: str = "",
    rules: Sequence[dict[str, Any]] = (),
) -> Plot:
    """Bars from zero, several beside each other where there is more than one series.

    Texts as labels run as rows with their values beside them, so that none is cut; numbers (layers) run as columns.

    Args:
        name: the plot's name.
        labels: texts or increasing numbers.
        heights: `{name: values}`, or a list of `series(…)`; at most four.
        label_axis, value_axis: an `axis(…)` or a title.
        title: a short heading.
        rules: marked values from `rule(…)`.

    Raises:
        InputError: sizes that do not fit each other, or a logarithmic axis, on which bars have no foot.
    """
    texts = [label for label in np.asarray(labels).tolist() if isinstance(label, str)]
    places: list[float | int] = list(range(len(texts))) if texts else increasing(labels, name)
    found = bar_series(heights, len(places), name)
    x_axis, y_axis = as_axis(label_axis), value_axis_of(value_axis, found, rules, name)
    if texts:
        x_axis["labels"] = texts
    return {"kind": "bars", "name": name, "title": title, "x": {**labelled(x_axis, len(places)), "values": places},
            "y": y_axis, "series": found, "rules": list(rules)}  # fmt: skip


def histogram(
    name: str,
    edges: ArrayLike,
    counts: SeriesLike,
    *,
    x_axis: str | Axis,
    y_axis: str | Axis = "count",
    title: str = "",
    rules: Sequence[dict[str, Any]] = (),
) -> Plot:
    """Columns between edges, as `numpy.histogram` gives them.

    Args:
        edges: increasing, one more than the counts.
        counts: `{name: counts}`, or a list of `series(…)`; at most four.

    Raises:
        InputError: sizes that do not fit each other, or edges that do not increase.
    """
    places = increasing(edges, name)
    found = bar_series(counts, len(places) - 1, name)
    x_axis, y_axis = as_axis(x_axis), value_axis_of(y_axis, found, rules, name)
    x_axis["range"] = x_axis["range"] or span(places, x_axis)
    return {"kind": "bars", "name": name, "title": title, "x": {**x_axis, "edges": places}, "y": y_axis,
            "series": found, "rules": list(rules)}  # fmt: skip


def heat_map(
    name: str,
    x: ArrayLike,
    y: ArrayLike,
    values: ArrayLike,
    *,
    x_axis: str | Axis,
    y_axis: str | Axis,
    value_axis: str | Axis,
    title: str = "",
    signed: bool = False,
    down: bool = False,
) -> Plot:
    """Values over two axes; a click selects a cell.

    Args:
        name: key of the selection.
        x, y: increasing numbers (layers, positions, heads).
        values: `[y, x]`; NaN leaves the cell blank, as in a triangular map.
        value_axis: the quantity, its unit and its range. Values outside the range are coloured as its end and marked.
        signed: blue below zero and orange above, over a range that is symmetric.
        down: y runs downward, as queries of attention do, and not upward, as layers do.

    Raises:
        InputError: values of another shape, more than 10,000 cells, a logarithmic value axis or a signed range that is
            not symmetric.
    """
    columns, rows = increasing(x, name), increasing(y, name)
    cells = np.asarray(values, dtype=float)
    if cells.shape != (len(rows), len(columns)):
        needed = f"(y, x) = ({len(rows)}, {len(columns)})"
        raise InputError(f"The values of {name!r} have shape {cells.shape}", needed, "values.T")
    if cells.size > MOST_CELLS:
        raise InputError(f"{name!r} has {cells.size:,} cells", f"at most {MOST_CELLS:,}", "every second row and column")
    value = as_axis(value_axis)
    value["range"] = value["range"] or cell_range(cells, signed)
    if value["scale"] == "log" or (signed and value["range"][0] != -value["range"][1]):
        low, high = value["range"]
        found = f"{value['title']!r} runs on a {value['scale']} scale from {low:g} to {high:g}"
        raise InputError(found, "a linear scale, symmetric if signed", "range=(-1, 1)")
    return {"kind": "heat_map", "name": name, "title": title, "x": {**labelled(as_axis(x_axis), len(columns)), "values": columns},
            "y": {**labelled(as_axis(y_axis), len(rows)), "values": rows}, "value": {**value, "signed": signed}, "down": down,
            "values": [[plain(cell) for cell in row] for row in cells]}  # fmt: skip


def chart(plots: Sequence[Plot]) -> dict[str, Any]:
    """The description of a row of plots, for `lens.panels.chart.Chart` and `static_figure`.

    Raises:
        InputError: no plot, or two of one name whose selections could not be the same.
    """
    if not plots:
        raise InputError("The chart has no plot", "one or more", "chart([lines(…)])")
    seen: dict[str, Any] = {}
    for plot in plots:
        choices = _choices(plot)
        if seen.setdefault(plot["name"], choices) != choices:
            raise InputError(f"Two plots are named {plot['name']!r}", "one kind and the same axes for one name", "another name")
    return {"plots": list(plots)}


def _choices(plot: Plot) -> list[Any]:
    """What a reader can select in a plot; curves and a clock over the same numbers can be one selection."""
    if plot["kind"] in ("scatter", "clock"):
        found = [one.get("value", one["label"]) for one in (plot.get("dots") or plot.get("hands") or ())]
        return [found, None, "lines" if all(isinstance(one, int | float) for one in found) else plot["kind"]]
    return [plot["x"].get("values"), plot["y"].get("values"), plot["kind"]]
