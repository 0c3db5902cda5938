"""The charts of `lens.figures.chart` without a browser: matplotlib, for PNG, PDF and SVG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from lens.base.text import visible
from lens.figures.measures import ACCENT, DEEP, SURFACE
from lens.figures.static import drawable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle": "^", "wedge": "v", "plus": "P", "cross": "X"}
_DASHES: Sequence[Any] = ("--", ":", "-.", (0, (10, 4)))
_CURVES: Sequence[Any] = ("-", (0, (5, 3)), (0, (1, 2)), (0, (7, 2, 1, 2)), (0, (3, 2)), (0, (7, 2, 1, 2, 1, 2)), (0, (10, 3)))
_FILLS = (1.0, 0.0, 0.4, 0.15)  # of bars beside each other, as in the browser
_LINE = "#dfe2e8"
_WARM = "#ba5400"  # the far end of a signed map
_ACROSS = 3  # plots in a row
_LEGEND = 66  # characters of names that fit beside each other above a plot
_NAMES = 30  # labels along a side of a map; of more, every second or third is written
_WRITTEN = 400  # cells; beyond, their values are too small to read


def static_figure(spec: Mapping[str, Any], selected: Mapping[str, Any] | None = None) -> Figure:
    """Draw a chart on white, up to three plots in a row.

    Args:
        spec: from `lens.figures.chart.chart`.
        selected: what each plot's name has selected, as in the widget.
    """
    from matplotlib.figure import Figure

    plots = spec["plots"]
    columns = min(len(plots), _ACROSS)
    rows = -(-len(plots) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.9 * rows), layout="constrained", dpi=150)
    for n, plot in enumerate(plots):
        axes = figure.add_subplot(rows, columns, n + 1)
        _DRAW[plot["kind"]](axes, plot, (selected or {}).get(plot["name"]))
        axes.tick_params(which="both", length=0, labelsize=8, colors="#555")
        axes.set_axisbelow(True)
    return figure


def _draw_lines(axes: Axes, plot: Mapping[str, Any], chosen: Any) -> None:
    x, y = plot["x"], plot["y"]
    places = np.array(x["values"], dtype=float)
    edge = {"markeredgecolor": "white", "markeredgewidth": 0.6, "markersize": 4}
    for one, dash in zip(plot["series"], _CURVES, strict=False):
        colour = seen(one["colour"])
        look = {"marker": _MARKERS[one["marker"]], **edge} if plot["marks"] else {"linestyle": dash}
        axes.plot(places, _numbers(one["values"]), color=colour, linewidth=1.6, label=_text(one["name"]), **look)
        if "low" in one:
            opacity = 0.18 if plot["marks"] else 0.5
            low, high = (_on_scale(_numbers(one[end]), y) for end in ("low", "high"))
            axes.fill_between(places, low, high, color=colour, alpha=opacity, linewidth=0)
    _draw_rules(axes, plot["rules"])
    if chosen is not None:
        axes.axvline(chosen, color=ACCENT, linestyle=(0, (4, 3)), linewidth=1.2)
    _scale(axes, x, y)
    if "labels" in x:
        axes.set_xticks(places, [_label(label) for label in x["labels"]], rotation=90)
    _finish(axes, plot, "y")


def _draw_bars(axes: Axes, plot: Mapping[str, Any], _chosen: Any) -> None:
    x, y, many = plot["x"], plot["y"], len(plot["series"])
    rows = "labels" in x
    edges = np.array(x["edges"] if "edges" in x else np.arange(len(x["values"]) + 1) - 0.5, dtype=float)
    room = np.diff(edges) * (1.0 if "edges" in x else 0.8)
    start = (edges[:-1] + edges[1:] - room) / 2
    meet = rows or _meet(plot["series"])
    for k, one in enumerate(plot["series"]):
        place, beside = (k, many) if meet else (0, 1)
        _draw_one_of_bars(axes, one, start + (place + 0.5) * room / beside, room / beside, _FILLS[k] if many > 1 else None, rows)
    _draw_rules(axes, plot["rules"], turned=rows)
    if rows:
        axes.set_yticks(range(len(x["labels"])), [fill(_text(label), 32) for label in x["labels"]])
        axes.invert_yaxis()
        axes.set(xlim=y["range"], xlabel=_titled(y), ylabel=_titled(x))
    else:
        axes.set(ylim=y["range"], xlabel=_titled(x), ylabel=_titled(y))
        if "values" in x:
            whole = all(isinstance(value, int) for value in x["values"])
            every = -(-len(x["values"]) // (12 if whole else 8))
            names = [f"{value:g}" if whole else f"{float(f'{value:.3g}'):,g}" for value in x["values"][::every]]
            axes.set_xticks(range(0, len(x["values"]), every), names)
    (axes.axvline if rows else axes.axhline)(0, color="#555", linewidth=0.8)
    _finish(axes, plot, "x" if rows else "y")


def _meet(given: Sequence[Mapping[str, Any]]) -> bool:
    """Whether two series have a value at one place; those that never do take turns in one row of bars."""
    known = np.isfinite([_numbers(one["values"]) for one in given])
    return bool((known.sum(0) > 1).any())


def _draw_one_of_bars(
    axes: Axes, one: Mapping[str, Any], places: np.ndarray, thick: np.ndarray, opacity: float | None, rows: bool
) -> None:
    """The bars of one series: solid where they are alone, else with the fill that tells them from their neighbours."""
    heights, colour = _numbers(one["values"]), seen(one["colour"])
    look: dict[str, Any] = {"edgecolor": colour, "facecolor": (*colour, 1.0 if opacity is None else opacity)}
    look["linewidth"] = 0.3 if opacity is None else 1.0
    (axes.barh if rows else axes.bar)(places, np.nan_to_num(heights), thick, label=_text(one["name"]), **look)
    if "low" in one:
        ends = np.abs(np.stack([heights - _numbers(one["low"]), _numbers(one["high"]) - heights]))
        whisker: dict[str, Any] = {"fmt": "none", "ecolor": "black", "elinewidth": 0.8, "capsize": 2}
        if rows:
            axes.errorbar(heights, places, xerr=ends, **whisker)
        else:
            axes.errorbar(places, heights, yerr=ends, **whisker)


def _draw_map(axes: Axes, plot: Mapping[str, Any], chosen: Any) -> None:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    x, y, value = plot["x"], plot["y"], plot["value"]
    cells = np.array([_numbers(row) for row in plot["values"]])
    hue = LinearSegmentedColormap.from_list("lens", [DEEP, SURFACE, _WARM] if value["signed"] else [SURFACE, DEEP])
    low, high = value["range"]
    mesh = axes.pcolormesh(np.ma.masked_invalid(cells), cmap=hue, vmin=low, vmax=high, linewidth=0.4)
    # Edges tell a cell at the pale end from one that has no value.
    mesh.set_edgecolor([_LINE if known else "none" for known in np.isfinite(cells).ravel()])
    bar = mesh.figure.colorbar(mesh, ax=axes, fraction=0.045, pad=0.02)
    notes = _mark_beyond(axes, cells, value["range"], [_ink(hue(0.0)), _ink(hue(1.0))])
    bar.set_label(" ".join([_titled(value), *notes]))
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8)
    _write_values(axes, np.where((cells < low) | (cells > high), np.nan, cells), hue(mesh.norm(cells)))
    for setter, axis, turn in ((axes.set_xticks, x, 90), (axes.set_yticks, y, 0)):
        names = [_label(label) for label in axis["labels"]] if "labels" in axis else [f"{place:g}" for place in axis["values"]]
        every = -(-len(names) // (_NAMES if "labels" in axis else 16))
        setter(np.arange(0, len(names), every) + 0.5, names[::every], rotation=turn if "labels" in axis else 0)
    axes.set(xlabel=_titled(x), ylabel=_titled(y))
    if plot["down"]:
        axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    _entitle(axes, plot)
    if chosen is not None:
        column, row = (int(np.abs(np.array(axis["values"]) - place).argmin()) for axis, place in zip((x, y), chosen, strict=True))
        axes.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor=ACCENT, linewidth=2, zorder=3))


def _mark_beyond(axes: Axes, cells: np.ndarray, ends: Sequence[float | int], inks: Sequence[str]) -> list[str]:
    """Marks the cells whose colour only says that they lie outside the range; what the marks mean."""
    notes = []
    kinds = (("v", cells < ends[0], f"▽ below {ends[0]:g}"), ("^", cells > ends[1], f"△ above {ends[1]:g}"))
    for (marker, where, note), ink in zip(kinds, inks, strict=True):
        rows, columns = np.nonzero(where)
        if rows.size:
            axes.plot(columns + 0.5, rows + 0.5, marker, color="none", markeredgecolor=ink, markersize=3.5, markeredgewidth=0.7)
            notes.append(note.replace("-", "−"))
    return notes


def _write_values(axes: Axes, cells: np.ndarray, colours: Any) -> None:
    if cells.size > _WRITTEN or cells.shape[1] > 12 or cells.shape[0] > 20:
        return
    for row, column in zip(*np.nonzero(np.isfinite(cells)), strict=True):
        text = f"{cells[row, column]:.2f}".replace("-", "−")
        ink = _ink(colours[row, column])
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=6.5, color=ink)


def _draw_scatter(axes: Axes, plot: Mapping[str, Any], chosen: Any) -> None:
    for curve, dash in zip(plot["curves"], _CURVES, strict=False):
        places = np.array(curve["x"], dtype=float), _numbers(curve["y"])
        axes.plot(*places, color=seen(curve["colour"]), linestyle=dash, linewidth=1.6, label=_text(curve["name"]))
    for n, group in enumerate(plot["groups"]):
        places = np.array([[dot["x"], dot["y"]] for dot in plot["dots"] if dot["group"] == n])
        look: dict[str, Any] = {"marker": _MARKERS[group["marker"]], "color": seen(group["colour"]), "zorder": 3}
        axes.plot(*places.T, linestyle="", markersize=5, label=_text(group["name"]) or None, **look)
    _draw_rules(axes, plot["rules"])
    _scale(axes, plot["x"], plot["y"])
    shown = [(dot, "#333") for dot in plot["dots"] if dot["label"] in plot["named"] and dot["label"] != chosen]
    shown += [(dot, ACCENT) for dot in plot["dots"] if dot["label"] == chosen]
    if plot["here"]:
        shown.append((plot["here"], ACCENT))
        axes.plot(plot["here"]["x"], plot["here"]["y"], "o", color=ACCENT, markersize=7, markeredgecolor="white", zorder=4)
    for dot, colour in shown:
        left = axes.transAxes.inverted().transform(axes.transData.transform((dot["x"], dot["y"])))[0] > 0.7
        axes.annotate(_label(dot["label"]), (dot["x"], dot["y"]), xytext=(-5 if left else 5, 3), textcoords="offset points",
                      ha="right" if left else "left", fontsize=7, color=colour, zorder=5)  # fmt: skip
    _finish(axes, plot, "both")


def _draw_clock(axes: Axes, plot: Mapping[str, Any], chosen: Any) -> None:
    """On plain axes, so that the picture stands beside others in the one grid."""
    from matplotlib.patches import Circle

    axes.add_patch(Circle((0, 0), 1, fill=False, edgecolor="#9aa0ab", linewidth=0.8))
    for n, group in enumerate(plot["groups"]):
        for kind, (width, dash, opacity) in _HANDS.items():
            tips = np.array([_tip(hand) for hand in plot["hands"] if (hand["group"], hand.get("kind", "hand")) == (n, kind)])
            if not len(tips):
                continue
            colour, traced = seen(group["colour"]), kind == "trace"
            axes.plot(*_spokes(tips), color=colour, linewidth=width, linestyle=dash, alpha=opacity)
            edge: Any = {"markerfacecolor": "white"} if traced else {"markeredgecolor": "white", "markeredgewidth": 0.5}
            axes.plot(*tips.T, "o" if traced else _MARKERS[group["marker"]], color=colour, markersize=4, **edge,
                      label=None if traced else _label(group["name"]) or None)  # fmt: skip
    for angle in plot["ticks"]:
        axes.plot(*np.outer([np.cos(angle), np.sin(angle)], [0.94, 1.0]), color="#333", linewidth=1.2)
    marked: list[tuple[Any, str, str | None]] = [
        (hand, ACCENT, None) for hand in plot["hands"] if chosen is not None and hand.get("value", hand["label"]) == chosen
    ]
    if plot["here"]:
        marked.append((plot["here"], "black", _text(plot["here"]["label"])))
    for hand, colour, label in marked:
        axes.plot(*_spokes(np.array([_tip(hand)])), color=colour, linewidth=2.2, label=label)
    for text, x, y in (("0", 1.1, 0), ("π/2", 0, 1.1), ("π", -1.1, 0), ("3π/2", 0, -1.1)):
        axes.text(x, y, text, ha="center", va="center", fontsize=8, color="#555")
    axes.set(xlim=(-1.25, 1.25), ylim=(-1.2, 1.2), aspect="equal", xticks=[], yticks=[])
    _finish(axes, {**plot, "series": plot["groups"], "rules": []}, "both")
    axes.spines["bottom"].set_visible(False)


_HANDS: Mapping[str, tuple[float, Any, float]] = {"hand": (0.6, "-", 0.5), "spoke": (1.6, "-", 1.0), "trace": (1.0, ":", 1.0)}


def _tip(hand: Mapping[str, Any]) -> tuple[float, float]:
    return hand["length"] * np.cos(hand["angle"]), hand["length"] * np.sin(hand["angle"])


def _spokes(tips: np.ndarray) -> np.ndarray:
    """`[2, point]` of one line through all hands: centre, tip, and a gap."""
    through = np.full((len(tips), 3, 2), np.nan)
    through[:, 0], through[:, 1] = 0.0, tips
    return through.reshape(-1, 2).T


_DRAW = {"lines": _draw_lines, "bars": _draw_bars, "heat_map": _draw_map, "scatter": _draw_scatter, "clock": _draw_clock}


# -- parts ----------------------------------------------------------------------------------------


def _finish(axes: Axes, plot: Mapping[str, Any], grid: Any) -> None:
    axes.grid(axis=grid, color="#e6e8ec", linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#9aa0ab")
    known = axes.get_legend_handles_labels()[1]
    if (len(known) == 1 and plot["kind"] in ("lines", "bars")) or not known:
        _entitle(axes, plot)
        return
    # Above the axes, where it can hide nothing, with the title on top of it; three names beside each other where they fit.
    columns = max(1, min(3, _LEGEND // max(map(len, known))))
    legend = axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False, fontsize=8, borderaxespad=0.2,
                         title=_text(plot["title"]) or None, alignment="left")  # fmt: skip
    legend.get_title().set(fontsize=10, fontweight="bold")


def _entitle(axes: Axes, plot: Mapping[str, Any]) -> None:
    axes.set_title(_text(plot["title"]), loc="left", fontsize=10, weight="bold")


def _draw_rules(axes: Axes, rules: Sequence[Mapping[str, Any]], *, turned: bool = False) -> None:
    named = len(rules) > 2 or any(rule["on"] == "x" for rule in rules)  # as in the browser, where they bear their values too
    for rule, dash in zip(rules, cycle(_DASHES), strict=False):
        draw = axes.axvline if (rule["on"] == "x") != turned else axes.axhline
        value = rule["value"]
        shown = f"{value:,.0f}" if abs(value) >= 100 else f"{value:g}"
        label = f"{rule['label']} {shown}" if named else rule["label"]
        draw(rule["value"], color="black", linestyle=dash, linewidth=1.0, label=_text(label))


def _scale(axes: Axes, x: Mapping[str, Any], y: Mapping[str, Any]) -> None:
    for axis, setter in ((x, axes.set_xscale), (y, axes.set_yscale)):
        setter(axis["scale"], **({"nonpositive": "mask"} if axis["scale"] == "log" else {}))
    axes.set(xlim=_widened(x), ylim=y["range"], xlabel=_titled(x), ylabel=_titled(y))


def _numbers(values: Sequence[float | int | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _on_scale(values: np.ndarray, axis: Mapping[str, Any]) -> np.ndarray:
    """NaN where a logarithm has no place for a value: an area with such a corner is drawn as a wedge."""
    return np.where(values > 0, values, np.nan) if axis["scale"] == "log" else values


def _titled(axis: Mapping[str, Any]) -> str:
    return _text(f"{axis['title']} ({axis['unit']})" if axis["unit"] else axis["title"])


def _label(text: str) -> str:
    return _text(text, 18)


def _text(text: str, width: int | None = None) -> str:
    return drawable(visible(text, width))


def _widened(x: Mapping[str, Any]) -> tuple[float, float]:
    """Room for the marks at both ends."""
    low, high = x["range"]
    if x["scale"] == "log":
        factor = (high / low) ** 0.02
        return low / factor, high * factor
    return low - 0.02 * (high - low), high + 0.02 * (high - low)


def seen(colour: str) -> tuple[float, float, float]:
    """The colour, darkened until it stands out from white by 3 : 1."""
    channels = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    shares = np.linspace(1, 0, 101)
    share = next(share for share in shares if contrast(share * channels, 1.0) >= 3)
    red, green, blue = (share * channels).tolist()
    return red, green, blue


def _ink(behind: Any) -> str:
    """Black or white, whichever reads better on a colour."""
    channels = np.array(behind[:3])
    return "black" if contrast(channels, 0.0) >= contrast(channels, 1.0) else "white"


def contrast(channels: np.ndarray, other: float) -> float:
    """WCAG 2.2 contrast of a colour with one of known luminance."""
    low, high = sorted((luminance(channels), other))
    return (high + 0.05) / (low + 0.05)


def luminance(channels: np.ndarray) -> float:
    """WCAG 2.2 relative luminance of a colour, from 0 to 1."""
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
