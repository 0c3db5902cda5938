"""Plots of single things: dots among curves, and hands on a clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lens.base.errors import InputError
from lens.figures.chart_parts import (
    MOST_POINTS,
    SERIES_COLOURS,
    Axis,
    Plot,
    as_axis,
    in_colours,
    increasing,
    plain,
    round_range,
    series,
)

MOST_HANDS = 512
HAND_KINDS = ("hand", "spoke", "trace")

CurvesLike = Mapping[str, tuple[ArrayLike, ArrayLike]]


def scatter(
    name: str,
    dots: Sequence[Mapping[str, Any]],
    curves: CurvesLike | None = None,
    *,
    x_axis: str | Axis,
    y_axis: str | Axis,
    title: str = "",
    rules: Sequence[dict[str, Any]] = (),
    here: Mapping[str, Any] | None = None,
    named: Sequence[str] = (),
) -> Plot:
    """Dots, each with a name, among curves; a click selects a dot's label.

    Names show where the reader points, and at the dots of `named` where there is room. Dots in one place stay there: a
    second click selects the next of them.

    Args:
        name: key of the selection.
        dots: `{"x": …, "y": …, "label": …, "group": …}` each, labels unique, the group optional; at most 2,000, in at most
            seven groups.
        curves: `{name: (x, y)}`, each over an x of its own that increases; NaN in y is a gap.
        x_axis, y_axis: an `axis(…)` or a title.
        title: a short heading.
        rules: dashed lines from `rule(…)`, on either axis.
        here: one more dot, `{"x": …, "y": …, "label": …}`, marked as the place of the controls; it cannot be selected.
        named: labels that are always shown, the more important first.

    Raises:
        InputError: neither dots nor curves, a label twice, places that are not finite or not positive on a log axis, or
            more groups or curves than there are colours.
    """
    x_axis, y_axis = as_axis(x_axis), as_axis(y_axis)
    drawn = _curves(curves or {}, name)
    if not dots and not drawn:
        raise InputError(f"{name!r} has no dot and no curve", "one or more", "scatter(…, dots=[{…}])")
    groups = _groups(dots, drawn, name)
    found = [_dot(one, groups, x_axis, y_axis) for one in dots]
    _distinct([one["label"] for one in found], name)
    if strange := sorted(set(named) - {one["label"] for one in found}):
        raise InputError(f"{name!r} has no dot {strange[0]!r}", "labels of dots", "named=()")
    place = None if here is None else _dot({**here, "group": ""}, [{"name": ""}], x_axis, y_axis)
    for key, side in (("x", x_axis), ("y", y_axis)):
        values = [one[key] for one in [*found, *([place] if place else [])]]
        values += [value for line in drawn for value in line[key] if value is not None]
        values += [line["value"] for line in rules if line["on"] == key]
        side["range"] = side["range"] or round_range(np.array(values, dtype=float), side["scale"], name)
    return {"kind": "scatter", "name": name, "title": title, "x": x_axis, "y": y_axis, "dots": found, "groups": groups,
            "curves": drawn, "rules": list(rules), "here": place, "named": list(named)}  # fmt: skip


def clock(
    name: str,
    hands: Sequence[Mapping[str, Any]],
    *,
    title: str = "",
    here: Mapping[str, Any] | None = None,
    ticks: Sequence[float] = (),
    key: Mapping[str, str] | None = None,
) -> Plot:
    """Hands on a dial; a click selects one. Angle 0 points to the right, and angles grow as in the complex plane.

    Args:
        name: key of the selection.
        hands: `{"angle": …, "label": …}` each, in radians, of any size; optionally a `group`, a `length` from 0 to 1 (the
            rim), a `note` that the read-out adds, a `value`, the number that a selection holds instead of the label, a
            `colour` of its group, and a `kind`: `hand`; `spoke`, stronger; or `trace`, dashed with an open end. These two
            may have a `mark`, a few letters at the tip. At most 512, in at most seven groups, or twelve of phases.
        title: a short heading.
        here: one more hand in the accent, as for a sum or a mean; it cannot be selected.
        ticks: angles of marks inside the rim, as for places to compare with.
        key: what a `spoke`, a `trace` and a `tick` stand for; the read-out then says this and not the groups.

    Raises:
        InputError: no hand, a label or value twice, an angle that is not finite, a length outside 0 to 1, an unknown kind, or
            more groups than colours.
    """
    if not 0 < len(hands) <= MOST_HANDS:
        raise InputError(f"{name!r} has {len(hands)} hands", f"1 to {MOST_HANDS}", "every second one")
    groups = _groups(hands, [], name)
    found = [_hand(one, groups) for one in hands]
    _distinct([one.get("value", one["label"]) for one in found], name)
    mean = None if here is None else _hand({**here, "group": ""}, [{"name": ""}])
    return {"kind": "clock", "name": name, "title": title, "hands": found, "groups": groups, "here": mean,
            "ticks": [_turned(angle) for angle in ticks], "key": dict(key or {})}  # fmt: skip


def _curves(given: CurvesLike, name: str) -> list[dict[str, Any]]:
    found = []
    for key, (x, y) in given.items():
        values = series(key, y)
        places = increasing(x, key)
        if len(places) != len(values["values"]):
            raise InputError(f"{key!r} in {name!r} has {len(values['values'])} values", f"{len(places)}", "one y for each x")
        found.append({"name": key, "x": places, "y": values["values"], "colour": values["colour"]})
    return in_colours(found, name)


def _groups(given: Sequence[Mapping[str, Any]], curves: Sequence[Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    """Groups in the order in which they are first met, in colours that no curve has as far as there are any."""
    if len(given) > MOST_POINTS:
        raise InputError(f"{name!r} has {len(given):,} dots", f"at most {MOST_POINTS:,}", "some of them")
    names = list(dict.fromkeys(str(one.get("group", "")) for one in given))
    own = {str(one.get("group", "")): one["colour"] for one in given if "colour" in one}
    groups = [{"name": one, "colour": own.get(one, SERIES_COLOURS.get(one))} for one in names]
    return in_colours(groups, name, [one["colour"] for one in curves])


def _dot(given: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], x_axis: Axis, y_axis: Axis) -> dict[str, Any]:
    label = str(given["label"])
    place = {"x": plain(given["x"]), "y": plain(given["y"])}
    for key, side in (("x", x_axis), ("y", y_axis)):
        value = place[key]
        if value is None or (side["scale"] == "log" and value <= 0):
            needed = "a finite number, positive on a log scale"
            raise InputError(f"The {key} of {label!r} is {given[key]}", needed, "leave the dot out")
    return {**place, "label": label, "group": _number_of(given, groups)}


def _hand(given: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    label, angle, length = str(given["label"]), float(given["angle"]), float(given.get("length", 1.0))
    kind, mark = str(given.get("kind", HAND_KINDS[0])), str(given.get("mark", ""))
    if kind not in HAND_KINDS:
        raise InputError(f"The hand {label!r} is a {kind!r}", f"one of {', '.join(HAND_KINDS)}", "kind='spoke'")
    if not np.isfinite(angle) or not 0 <= length <= 1 + 1e-9:
        needed = "a finite angle and a length from 0 to 1"
        raise InputError(f"The hand {label!r} has angle {angle:g} and length {length:g}", needed, "length=1.0")
    found = {"angle": _turned(angle), "length": plain(length), "label": label, "note": str(given.get("note", "")),
             "group": _number_of(given, groups)}  # fmt: skip
    if kind != HAND_KINDS[0]:
        found |= {"kind": kind, "mark": mark}
    return {**found, "value": plain(given["value"])} if "value" in given else found


def _turned(angle: float) -> float:
    """Within one turn, four decimals."""
    return float(f"{angle % (2 * np.pi):.4f}") % 6.2832


def _number_of(given: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> int:
    return [one["name"] for one in groups].index(str(given.get("group", "")))


def _distinct(keys: Sequence[Any], name: str) -> None:
    seen: set[Any] = set()
    for key in keys:
        if key in seen:
            raise InputError(f"{name!r} has {key!r} twice", "another label for each", "add what tells them apart")
        seen.add(key)
