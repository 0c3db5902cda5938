"""Descriptions of small linked charts: plain data that the browser draws (`chart.js`), and matplotlib for files (`static_chart`).

A chart is a row of plots. A plot is made by `lines`, `bars`, `histogram` or `heat_map` from numpy or xarray
values; `chart` puts plots together. The result is a dict of numbers, texts and lists that JSON can hold: values
that are not finite become None and show as gaps, the others keep four significant digits.

A plot's `name` is the key under which the chart's `selected` holds what the reader chose in it: the x of a `lines` plot,
`[x, y]` of a heat map. Plots with one name show one selection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import ArrayLike

from lens.base.errors import InputError

# Okabe & Ito, "Color Universal Design" (2008). Vermillion is left out: in the suite it means "selected".
BLUE, GREEN, PURPLE, ORANGE, SKY, YELLOW, BLACK = "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000"
MARKS = {
    BLUE: "circle",
    GREEN: "square",
    PURPLE: "diamond",
    ORANGE: "triangle",
    SKY: "wedge",
    YELLOW: "plus",
    BLACK: "cross",
}
"""Each colour has its own mark, so that no series is known by its colour alone."""

SERIES_COLOURS = {
    "plain lens": BLUE,
    "shortcut": GREEN,
    "tuned": PURPLE,
    # the ladder from doing nothing to a full linear map
    "identity": BLUE,
    "mean shift": SKY,
    "scale": ORANGE,
    "rotation": PURPLE,
    "linear": GREEN,
    # parts of a block
    "block": BLUE,
    "attention": ORANGE,
    "mlp": PURPLE,
    # two ways of measuring one thing
    "held out": BLUE,
    "in sample": ORANGE,
    "with residual": BLUE,
    "without residual": ORANGE,
    "noise floor": BLACK,
}
"""The same colour for the same thing in every chart; names that are not here get what their plot leaves free."""

MOST_POINTS = 2_000
MOST_CELLS = 10_000
MOST_BARS = 4  # bars beside each other; beyond, their fills cannot be told apart

SCRIPTS = ("theme.js", "chart_plot.js", "chart_series.js", "chart_map.js", "chart.js")
STYLES = ("theme.css", "chart.css")

Axis = dict[str, Any]
Plot = dict[str, Any]
SeriesLike = Mapping[str, ArrayLike] | Sequence[dict[str, Any]]


def axis(
    title: str,
    unit: str = "",
    *,
    scale: str = "linear",
    range: Sequence[SupportsFloat] | None = None,
    labels: Sequence[str] | None = None,
) -> Axis:
    """What an axis shows. Wherever an axis is asked for, its title alone will do.

    Args:
        title: the quantity, as in "KL to the last layer".
        unit: as in "nats"; empty for pure numbers.
        scale: `linear` or `log`. On a logarithmic axis values that are not positive are gaps.
        range: both ends. By default round numbers around the data; give it where pictures are compared or a
            slider changes the values, so that the axis stays.
        labels: texts to show instead of the numbers, one for each x (or y) value, as for tokens.

    Raises:
        InputError: an unknown scale, or a range that is empty, not finite or not positive on a logarithmic axis.
    """
    if scale not in ("linear", "log"):
        raise InputError(f"The scale is {scale!r}", "linear or log", "scale='linear'")
    if range is not None:
        low, high = (float(end) for end in range)
        if not (np.isfinite([low, high]).all() and low < high and (scale == "linear" or low > 0)):
            needed = "two finite ends, the smaller first, positive on a log scale"
            raise InputError(f"The range of {title!r} is {low:g} to {high:g}", needed, "range=None")
    ends = None if range is None else [float(end) for end in range]
    found: Axis = {"title": title, "unit": unit, "scale": scale, "range": ends}
    return found if labels is None else {**found, "labels": [str(label) for label in labels]}


def rule(value: SupportsFloat, label: str) -> dict[str, Any]:
    """A dashed line at a value, with its name: the noise floor, the full model's score."""
    if not np.isfinite(float(value)):
        raise InputError(f"The line {label!r} stands at {value}", "a finite value", "leave the line out")
    return {"value": _plain(value), "label": label}


def series(
    name: str, values: ArrayLike, *, low: ArrayLike | None = None, high: ArrayLike | None = None, colour: str | None = None
) -> dict[str, Any]:
    """One named curve or set of bars.

    Args:
        name: what it is; `SERIES_COLOURS` gives known names their colour.
        values: one for each x; NaN where there is none.
        low, high: ends of an interval around each value; both or neither.
        colour: one of this module's colours, for a name that is not in the table.

    Raises:
        InputError: an interval with one end or another length, or an unknown colour.
    """
    if (low is None) != (high is None):
        raise InputError(f"The interval of {name!r} has one end", "low and high, or neither", "series(…, low=…, high=…)")
    if colour is not None and colour not in MARKS:
        raise InputError(f"The colour is {colour!r}", f"one of {', '.join(MARKS)}", "colour=None")
    one = {"name": name, "values": _vector(values, name), "colour": colour or SERIES_COLOURS.get(name)}
    if low is None or high is None:
        return one
    ends = {"low": _vector(low, name), "high": _vector(high, name)}
    if any(len(end) != len(one["values"]) for end in ends.values()):
        what = f"The interval of {name!r} has another length than its values"
        raise InputError(what, "one interval for each value", "low and high of the values' length")
    return {**one, **ends}


def lines(
    name: str,
    x: ArrayLike,
    curves: SeriesLike,
    *,
    x_axis: str | Axis,
    y_axis: str | Axis,
    title: str = "",
    rules: Sequence[dict[str, Any]] = (),
) -> Plot:
    """Curves over one x, with marks, gaps and intervals; a click selects an x.

    Args:
        name: key of the selection.
        x: increasing numbers, at most 2,000.
        curves: `{name: values}`, or a list of `series(…)`; at most seven.
        x_axis, y_axis: an `axis(…)` or a title.
        title: a short heading; leave it out where the axes say it all.
        rules: dashed lines from `rule(…)`.

    Raises:
        InputError: sizes that do not fit each other, x that does not increase, or what is not positive on a log axis.
    """
    places = _increasing(x, name)
    found = _coloured(curves, len(places), name)
    x_axis, y_axis = _labelled(_axis(x_axis), len(places)), _axis(y_axis)
    x_axis["range"] = x_axis["range"] or _span(places, x_axis)
    y_axis["range"] = y_axis["range"] or _round_range(_extent(found, rules), y_axis["scale"], name)
    return {"kind": "lines", "name": name, "title": title, "x": {**x_axis, "values": places}, "y": y_axis,
            "series": found, "rules": list(rules)}  # fmt: skip


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
    places: list[float | int] = list(range(len(texts))) if texts else _increasing(labels, name)
    found = _bar_series(heights, len(places), name)
    x_axis, y_axis = _axis(label_axis), _value_axis(value_axis, found, rules, name)
    if texts:
        x_axis["labels"] = texts
    return {"kind": "bars", "name": name, "title": title, "x": {**_labelled(x_axis, len(places)), "values": places},
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
    places = _increasing(edges, name)
    found = _bar_series(counts, len(places) - 1, name)
    x_axis, y_axis = _axis(x_axis), _value_axis(y_axis, found, rules, name)
    x_axis["range"] = x_axis["range"] or _span(places, x_axis)
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
) -> Plot:
    """Values over two axes, y upward; a click selects a cell.

    Args:
        name: key of the selection.
        x, y: increasing numbers (layers, positions, heads).
        values: `[y, x]`; NaN leaves the cell blank, as in a triangular map.
        value_axis: the quantity, its unit and its range. Values outside the range are coloured as its end and marked.
        signed: blue below zero and orange above, over a range that is symmetric.

    Raises:
        InputError: values of another shape, more than 10,000 cells, a logarithmic value axis or a signed range that is
            not symmetric.
    """
    columns, rows = _increasing(x, name), _increasing(y, name)
    cells = np.asarray(values, dtype=float)
    if cells.shape != (len(rows), len(columns)):
        needed = f"(y, x) = ({len(rows)}, {len(columns)})"
        raise InputError(f"The values of {name!r} have shape {cells.shape}", needed, "values.T")
    if cells.size > MOST_CELLS:
        raise InputError(f"{name!r} has {cells.size:,} cells", f"at most {MOST_CELLS:,}", "every second row and column")
    value = _axis(value_axis)
    value["range"] = value["range"] or _cell_range(cells, signed)
    if value["scale"] == "log" or (signed and value["range"][0] != -value["range"][1]):
        low, high = value["range"]
        found = f"{value['title']!r} runs on a {value['scale']} scale from {low:g} to {high:g}"
        raise InputError(found, "a linear scale, symmetric if signed", "range=(-1, 1)")
    return {"kind": "heat_map", "name": name, "title": title, "x": {**_labelled(_axis(x_axis), len(columns)), "values": columns},
            "y": {**_labelled(_axis(y_axis), len(rows)), "values": rows}, "value": {**value, "signed": signed},
            "values": [[_plain(cell) for cell in row] for row in cells]}  # fmt: skip


def chart(plots: Sequence[Plot]) -> dict[str, Any]:
    """The description of a row of plots, for `lens.panels.chart.Chart` and `static_figure`.

    Raises:
        InputError: no plot, or two of one name whose selections could not be the same.
    """
    if not plots:
        raise InputError("The chart has no plot", "one or more", "chart([lines(…)])")
    seen: dict[str, Any] = {}
    for plot in plots:
        places = [plot["x"].get("values"), plot["y"].get("values"), plot["kind"]]
        if seen.setdefault(plot["name"], places) != places:
            raise InputError(f"Two plots are named {plot['name']!r}", "one kind and the same axes for one name", "another name")
    return {"plots": list(plots)}


# -- sizes ----------------------------------------------------------------------------------------


def _vector(values: ArrayLike, name: str) -> list[float | int | None]:
    found = np.asarray(values, dtype=float)
    if found.ndim != 1:
        raise InputError(f"{name!r} has {found.ndim} axes", "one", "values.ravel()")
    return [_plain(value) for value in found]


def _increasing(values: Any, name: str) -> list[float | int]:
    found = np.asarray(values, dtype=float)
    if found.ndim != 1 or not 0 < found.size <= MOST_POINTS or not np.isfinite(found).all() or (np.diff(found) <= 0).any():
        needed = f"1 to {MOST_POINTS:,} finite numbers that increase"
        raise InputError(f"An axis of {name!r} has shape {found.shape}", needed, "np.unique(x)")
    return [int(value) if value.is_integer() else float(f"{value:.7g}") for value in found.tolist()]


def _span(places: list[float | int], found: Axis) -> list[float | int]:
    if found["scale"] == "log" and places[0] <= 0:
        raise InputError(f"{found['title']!r} begins at {places[0]:g}", "positive values on a logarithmic axis", "scale='linear'")
    if len(places) > 1:
        return [places[0], places[-1]]
    return [places[0] / 2, places[0] * 2] if found["scale"] == "log" else [places[0] - 0.5, places[0] + 0.5]


def _labelled(found: Axis, count: int) -> Axis:
    if len(found.get("labels", [None] * count)) != count:
        raise InputError(f"The axis {found['title']!r} has {len(found['labels'])} labels", f"{count}", "one for each value")
    return found


def _axis(given: str | Axis) -> Axis:
    return axis(given) if isinstance(given, str) else dict(given)


def _coloured(given: SeriesLike, count: int, name: str) -> list[dict[str, Any]]:
    """Series of the right length, each with a colour of its own and the mark that belongs to it."""
    found = [series(key, values) for key, values in given.items()] if isinstance(given, Mapping) else [dict(one) for one in given]
    for one in found:
        if len(one["values"]) != count:
            raise InputError(f"{one['name']!r} in {name!r} has {len(one['values'])} values", f"{count}", "one value for each x")
    taken = [one["colour"] for one in found if one["colour"]]
    free = iter([colour for colour in MARKS if colour not in taken])
    if not 0 < len(found) <= len(MARKS) or len(set(taken)) < len(taken):
        what = f"{name!r} has {len(found)} series, {len(taken)} of them in {len(set(taken))} fixed colours"
        needed = f"1 to {len(MARKS)} series, each in a colour of its own"
        raise InputError(what, needed, "two plots, or series(…, colour=…)")
    for one in found:
        one["colour"] = one["colour"] or next(free)
        one["marker"] = MARKS[one["colour"]]
    return found


def _bar_series(given: SeriesLike, count: int, name: str) -> list[dict[str, Any]]:
    found = _coloured(given, count, name)
    if len(found) > MOST_BARS:
        raise InputError(f"{name!r} has {len(found)} bars beside each other", f"at most {MOST_BARS}", "lines(…)")
    return found


# -- numbers --------------------------------------------------------------------------------------


def _plain(value: Any) -> float | int | None:
    """Four significant digits; whole numbers stay as they are, what is not finite becomes None."""
    value = float(value)
    if not np.isfinite(value):
        return None
    return int(value) if value.is_integer() else float(f"{value:.4g}")


def _extent(found: list[dict[str, Any]], rules: Sequence[dict[str, Any]]) -> np.ndarray:
    everything = [value for one in found for part in ("values", "low", "high") for value in one.get(part, [])]
    everything += [line["value"] for line in rules]
    return np.array([value for value in everything if value is not None], dtype=float)


def _value_axis(given: str | Axis, found: list[dict[str, Any]], rules: Sequence[dict[str, Any]], name: str) -> Axis:
    value = _axis(given)
    if value["scale"] == "log":
        raise InputError(f"The value axis of {name!r} is logarithmic", "a linear one, for bars start at zero", "lines(…)")
    value["range"] = value["range"] or _round_range(np.append(_extent(found, rules), 0.0), "linear", name)
    return value


def _cell_range(cells: np.ndarray, signed: bool) -> list[float | int]:
    known = cells[np.isfinite(cells)]
    if signed:
        end = _round_range(np.array([0.0, np.abs(known).max(initial=0.0)]), "linear", "")[1]
        return [-end, end]
    return _round_range(known, "linear", "")


def _round_range(values: np.ndarray, scale: str, name: str) -> list[float | int]:
    """Round numbers around the values: multiples of 1, 2 or 5 times a power of ten."""
    if scale == "log":
        values = values[values > 0]
        if not values.size:
            raise InputError(f"{name!r} has no positive value", "one or more on a logarithmic axis", "scale='linear'")
        low, high = 10 ** np.floor(np.log10(values.min()) + 1e-9), 10 ** np.ceil(np.log10(values.max()) - 1e-9)
        return [float(f"{low:.6g}"), float(f"{high if high > low else 10 * low:.6g}")]
    if not values.size:
        return [0.0, 1.0]
    low, high = float(values.min()), float(values.max())
    if low == high:
        low, high = (low - 0.1 * abs(low), high + 0.1 * abs(high)) if low else (0.0, 1.0)
    step = _round_step((high - low) / 8)
    return [float(f"{step * np.floor(low / step + 1e-9):.12g}"), float(f"{step * np.ceil(high / step - 1e-9):.12g}")]


def _round_step(least: float) -> float:
    power = 10 ** np.floor(np.log10(least))
    return float(power * next(factor for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9)))
