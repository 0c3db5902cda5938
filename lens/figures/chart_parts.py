"""What all plots of a chart are made of: axes, named lines, series in colours of their own, and round numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
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
    # lanes of rotary positions, by wavelength
    "fast lanes": SKY,
    "middle lanes": GREEN,
    "slow lanes": PURPLE,
    # hypotheses about the base that a context needs
    "aliasing": YELLOW,
    "DC stability": BLUE,
    "depth": ORANGE,
    "precision wall": BLACK,
    "similar beats random": GREEN,
    "slow-lane share": PURPLE,
}
"""The same colour for the same thing in every chart; names that are not here get what their plot leaves free."""

MOST_PHASES = 12
MOST_POINTS = 2_000
MOST_BARS = 4  # bars beside each other; beyond, their fills cannot be told apart

Axis = dict[str, Any]
Plot = dict[str, Any]
SeriesLike = Mapping[str, ArrayLike] | Sequence[dict[str, Any]]


def phase_colours(phases: int) -> list[str]:
    """One colour for each of N phases, around one circle of hues of equal lightness; phase 0 is blue whatever N is.

    `series(…, colour=…)` takes them, and gives marks in turn. Neighbours of many phases look alike: name them, too.

    Source of the colour space: B. Ottosson, "A perceptual color space for image processing" (2020).

    Raises:
        InputError: fewer than 1 phase or more than 12.
    """
    if not 1 <= phases <= MOST_PHASES:
        raise InputError(f"{phases} phases", f"1 to {MOST_PHASES} with a colour each", "fewer phases")
    hues = _FIRST_HUE + 2 * np.pi * np.arange(phases) / phases
    lightness, *chroma = np.full(phases, 0.64), 0.125 * np.cos(hues), 0.125 * np.sin(hues)
    cones = (_CONES @ np.stack([lightness, *chroma])) ** 3
    linear = np.clip(_RED_GREEN_BLUE @ cones, 0, 1)
    channels = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return [f"#{red:02X}{green:02X}{blue:02X}" for red, green, blue in np.rint(255 * channels).astype(int).T.tolist()]


_FIRST_HUE = 4.4  # radians, blue
_CONES = np.array([[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]])
_RED_GREEN_BLUE = np.array(
    [[4.0767416621, -3.3077115913, 0.2309699292], [-1.2684380046, 2.6097574011, -0.3413193965],
     [-0.0041960863, -0.7034186147, 1.7076147010]]
)  # fmt: skip
_PHASE_COLOURS = {colour for phases in range(1, MOST_PHASES + 1) for colour in phase_colours(phases)}


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


def rule(value: SupportsFloat, label: str, *, on: str = "y") -> dict[str, Any]:
    """A dashed line at a value, with its name: the noise floor, the full model's score, the context length.

    Args:
        on: the axis on which the value lies: `y` gives a horizontal line, `x` a vertical one.

    Raises:
        InputError: a value that is not finite, or another axis.
    """
    if not np.isfinite(float(value)):
        raise InputError(f"The line {label!r} stands at {value}", "a finite value", "leave the line out")
    if on not in ("x", "y"):
        raise InputError(f"The line {label!r} lies on {on!r}", "x or y", "on='y'")
    return {"value": plain(value), "label": label, "on": on}


def series(
    name: str, values: ArrayLike, *, low: ArrayLike | None = None, high: ArrayLike | None = None, colour: str | None = None
) -> dict[str, Any]:
    """One named curve or set of bars.

    Args:
        name: what it is; `SERIES_COLOURS` gives known names their colour.
        values: one for each x; NaN where there is none.
        low, high: ends of an interval around each value; both or neither.
        colour: one of this module's colours or of `phase_colours`, for a name that is not in the table.

    Raises:
        InputError: an interval with one end or another length, or an unknown colour.
    """
    if (low is None) != (high is None):
        raise InputError(f"The interval of {name!r} has one end", "low and high, or neither", "series(…, low=…, high=…)")
    if colour is not None and colour not in MARKS and colour not in _PHASE_COLOURS:
        raise InputError(f"The colour is {colour!r}", f"one of {', '.join(MARKS)}", "colour=None")
    one = {"name": name, "values": vector(values, name), "colour": colour or SERIES_COLOURS.get(name)}
    if low is None or high is None:
        return one
    ends = {"low": vector(low, name), "high": vector(high, name)}
    if any(len(end) != len(one["values"]) for end in ends.values()):
        what = f"The interval of {name!r} has another length than its values"
        raise InputError(what, "one interval for each value", "low and high of the values' length")
    return {**one, **ends}


# -- sizes ----------------------------------------------------------------------------------------


def vector(values: ArrayLike, name: str) -> list[float | int | None]:
    found = np.asarray(values, dtype=float)
    if found.ndim != 1:
        raise InputError(f"{name!r} has {found.ndim} axes", "one", "values.ravel()")
    return [plain(value) for value in found]


def increasing(values: Any, name: str) -> list[float | int]:
    found = np.asarray(values, dtype=float)
    if found.ndim != 1 or not 0 < found.size <= MOST_POINTS or not np.isfinite(found).all() or (np.diff(found) <= 0).any():
        needed = f"1 to {MOST_POINTS:,} finite numbers that increase"
        raise InputError(f"An axis of {name!r} has shape {found.shape}", needed, "np.unique(x)")
    return [int(value) if value.is_integer() else float(f"{value:.7g}") for value in found.tolist()]


def span(places: list[float | int], found: Axis) -> list[float | int]:
    if found["scale"] == "log" and places[0] <= 0:
        raise InputError(f"{found['title']!r} begins at {places[0]:g}", "positive values on a logarithmic axis", "scale='linear'")
    if len(places) > 1:
        return [places[0], places[-1]]
    return [places[0] / 2, places[0] * 2] if found["scale"] == "log" else [places[0] - 0.5, places[0] + 0.5]


def labelled(found: Axis, count: int) -> Axis:
    if len(found.get("labels", [None] * count)) != count:
        raise InputError(f"The axis {found['title']!r} has {len(found['labels'])} labels", f"{count}", "one for each value")
    return found


def as_axis(given: str | Axis) -> Axis:
    return axis(given) if isinstance(given, str) else dict(given)


def coloured(given: SeriesLike, count: int, name: str) -> list[dict[str, Any]]:
    """Series of the right length, each with a colour of its own and the mark that belongs to it."""
    found = [series(key, values) for key, values in given.items()] if isinstance(given, Mapping) else [dict(one) for one in given]
    for one in found:
        if len(one["values"]) != count:
            raise InputError(f"{one['name']!r} in {name!r} has {len(one['values'])} values", f"{count}", "one value for each x")
    if not found:
        raise InputError(f"{name!r} has 0 series", "one or more", "series(…)")
    return in_colours(found, name)


def in_colours(found: list[dict[str, Any]], name: str, held: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The same things, each with a colour of its own and the mark that belongs to it; known names keep theirs.

    Args:
        held: colours of other things in the plot, given only when no others are left; beside those, ink comes first.
    """
    taken = [one["colour"] for one in found if one["colour"]]
    order = (lambda colour: (colour in held, colour != BLACK)) if held else (lambda colour: False)
    free = iter(sorted((colour for colour in MARKS if colour not in taken), key=order))
    most = MOST_PHASES if _PHASE_COLOURS.intersection(taken) else len(MARKS)
    if len(found) > most or len(set(taken)) < len(taken):
        what = f"{name!r} has {len(found)} series, {len(taken)} of them in {len(set(taken))} fixed colours"
        needed = f"1 to {len(MARKS)} series, each in a colour of its own"
        raise InputError(what, needed, "two plots, or series(…, colour=…)")
    marks = cycle(mark for colour, mark in MARKS.items() if colour not in taken)  # of phases, which have none of their own
    for one in found:
        one["colour"] = one["colour"] or next(free)
        one["marker"] = MARKS.get(one["colour"]) or next(marks)
    return found


def bar_series(given: SeriesLike, count: int, name: str) -> list[dict[str, Any]]:
    found = coloured(given, count, name)
    if len(found) > MOST_BARS:
        raise InputError(f"{name!r} has {len(found)} bars beside each other", f"at most {MOST_BARS}", "lines(…)")
    return found


# -- numbers --------------------------------------------------------------------------------------


def plain(value: Any) -> float | int | None:
    """Four significant digits; whole numbers stay as they are, what is not finite becomes None."""
    value = float(value)
    if not np.isfinite(value):
        return None
    return int(value) if value.is_integer() else float(f"{value:.4g}")


def extent(found: list[dict[str, Any]], rules: Sequence[dict[str, Any]]) -> np.ndarray:
    """All values of series and of the lines beside them."""
    everything = [value for one in found for part in ("values", "low", "high") for value in one.get(part, [])]
    everything += [line["value"] for line in rules if line["on"] == "y"]
    return np.array([value for value in everything if value is not None], dtype=float)


def value_axis_of(given: str | Axis, found: list[dict[str, Any]], rules: Sequence[dict[str, Any]], name: str) -> Axis:
    value = as_axis(given)
    if value["scale"] == "log":
        raise InputError(f"The value axis of {name!r} is logarithmic", "a linear one, for bars start at zero", "lines(…)")
    value["range"] = value["range"] or round_range(np.append(extent(found, rules), 0.0), "linear", name)
    return value


def cell_range(cells: np.ndarray, signed: bool) -> list[float | int]:
    known = cells[np.isfinite(cells)]
    if signed:
        end = round_range(np.array([0.0, np.abs(known).max(initial=0.0)]), "linear", "")[1]
        return [-end, end]
    return round_range(known, "linear", "")


def round_range(values: np.ndarray, scale: str, name: str) -> list[float | int]:
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
