"""Charts of many operators on one head's queries and keys: their patterns, singular values and measures, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.base.text import visible
from lens.figures.chart import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, YELLOW, axis, bars, chart, heat_map, lines, rule, series

MAPS = "map "
"""Before an operator's name, the name of its small map."""
FIXED = ("uniform", "first token", "previous token", "identity")
"""Operators that ask neither queries nor keys."""
_ASKING = ("softplus", "re-weighted softplus", "log-normal", "alibi", "uniform")  # with the uniform pattern to compare with
SHOWN = {
    "mean_entropy": "entropy",
    "effective_rank": "effective rank",
    "stable_rank": "stable rank",
    "first_token": "first token",
    "previous_token": "token before",
    "same_token": "token itself",
    "top_key_share": "top key",
    "contraction": "contraction κ",
    "dobrushin": "Dobrushin δ",
    "moved": "moved attention",
}
"""Measures that can be chosen, in short."""
_COLOURS = {
    "softmax": GREEN,
    "softplus": PURPLE,
    "re-weighted softplus": ORANGE,
    "log-normal": SKY,
    "alibi": YELLOW,
    "uniform": BLACK,
    # never beside those above but softmax and uniform
    "first token": ORANGE,
    "previous token": PURPLE,
    "identity": SKY,
}
"""Of the operators as they come, whichever is chosen; one with another number, or of another kind, is blue."""
_LEAST = 1e-3  # singular value; below, curves end
_FAINT = -0.005  # weight; from here to 0 the mark of a negative one would say too much
_ROWS = 5  # operators whose cost is shown, the newest first


def operator_zoo_chart(
    zoo: xr.Dataset, chosen: xr.Dataset, tried: Mapping[str, xr.Dataset], *, tokens: Sequence[str], own: float
) -> dict[str, Any]:
    """The chosen operator's pattern, its singular values beside others', and what the live model lost.

    Args:
        zoo: every operator as it comes, from `operator_zoo`.
        chosen: the chosen one alone, from `operator_zoo`; its name ends in ", " and its number where that is another one.
        tried: what was run in the live model by name, from `attention_what_if_text`, the newest last; the newest five are shown.
        tokens: of the text.
        own: loss of the text in the model as trained, nats a token.
    """
    one = chosen.isel(operator=0)
    name = str(one.operator.item())
    return chart([_pattern(one, name, tokens), _scree(zoo, one, name), _losses(tried, name, own)])


def operator_measures_chart(zoo: xr.Dataset, chosen: xr.Dataset, measure: str) -> dict[str, Any]:
    """All operators by one measure, and the chosen one as a row of its own where its number is another one.

    Args:
        zoo, chosen: see `operator_zoo_chart`.
        measure: one of `SHOWN`.

    Raises:
        InputError: another measure.
    """
    if measure not in SHOWN:
        raise InputError(f"The measure is {measure!r}", f"one of {', '.join(SHOWN)}", f"measure={next(iter(SHOWN))!r}")
    one = chosen.isel(operator=0)
    name, here, about = str(one.operator.item()), float(one[measure]), zoo[measure].attrs
    labels, values = [str(other) for other in zoo.operator.to_numpy()], zoo[measure].to_numpy()
    if name not in labels:
        operator, number = name.rsplit(", ", 1)
        row = labels.index(operator) + 1
        labels, values = [*labels[:row], f"at {number}", *labels[row:]], np.insert(values, row, here)
    unit = "" if about["units"] == "1" else str(about["units"])
    return chart([bars(
        "measures", labels, [series(str(about["long_name"]), values, colour=BLUE)], label_axis="operator",
        value_axis=axis(str(about["long_name"]), unit), rules=[rule(here, name)] if np.isfinite(here) else [],
    )])  # fmt: skip


def operator_maps(zoo: xr.Dataset, chosen: str) -> dict[str, Any]:
    """A small map of each operator's pattern, queries downward, the title of the chosen one marked.

    What the mask hides is blank; weights outside 0 to 1 have the colour of that end (the large map marks them).
    """
    places = zoo["query"].to_numpy()
    return chart([
        {
            **heat_map(
                f"{MAPS}{name}", places, places, _seen(zoo.sel(operator=name)).clip(0, 1), x_axis="key", y_axis="query",
                value_axis=axis("attention", range=(0.0, 1.0)), title=f"▸ {name}" if name == chosen else str(name), down=True,
            ),
            "square": True,
        }
        for name in zoo.operator.to_numpy()
    ])  # fmt: skip


def _seen(one: xr.Dataset) -> np.ndarray:
    """Cells above the diagonal are blank, unless an operator puts weight there."""
    pattern = one.attention.to_numpy()
    pattern = np.where((pattern < 0) & (pattern > _FAINT), 0.0, pattern)
    return pattern if float(one.unseen) > 0 else np.where(np.tri(len(pattern), dtype=bool), pattern, np.nan)


def _pattern(one: xr.Dataset, name: str, tokens: Sequence[str]) -> dict[str, Any]:
    names = [visible(token) for token in tokens]
    places = one["query"].to_numpy()
    return heat_map(
        "cells", places, places, _seen(one), x_axis=axis("key", labels=names), y_axis=axis("query", labels=names),
        value_axis=axis("attention", range=(0.0, 1.0)), title=name, down=True,
    )  # fmt: skip


def _scree(zoo: xr.Dataset, one: xr.Dataset, name: str) -> dict[str, Any]:
    """The chosen operator beside the softmax and its kin: those that ask queries and keys, or those that do not."""
    known = [str(other) for other in zoo.operator.to_numpy()]
    beside = [other for other in ("softmax", *(FIXED if name in FIXED else _ASKING)) if other in known and other != name]
    values = {name: one.singular_value, **{other: zoo.singular_value.sel(operator=other) for other in beside}}
    curves = [series(other, _positive(value), colour=_COLOURS.get(other, BLUE)) for other, value in values.items()]
    return lines(
        "scree", zoo["rank"], curves, x_axis="rank", y_axis=axis("singular value", scale="log", range=(_LEAST, 10.0)),
        marks=False,
    )  # fmt: skip


def _positive(values: xr.DataArray) -> np.ndarray:
    found = values.to_numpy()
    return np.where(found >= _LEAST, found, np.nan)


def _losses(tried: Mapping[str, xr.Dataset], name: str, own: float) -> dict[str, Any]:
    """What each adds to the loss, the newest at the top; an empty row where nothing has been run yet."""
    shown = [*tried.items()][::-1][:_ROWS]
    parts = [
        series(scope, [round(float(found.loss.sel(scope=scope)) - own, 2) for _, found in shown] or [np.nan], colour=colour)
        for scope, colour in (("this head", GREEN), ("this block", ORANGE), ("all blocks", BLUE))
    ]
    return bars(
        "losses", [one for one, _ in shown] or [f"{name}: not tried"], parts, label_axis="in the live model",
        value_axis=axis("added loss on this text", "nats/token"), title=f"as trained the text costs {own:.2f} nats a token",
    )  # fmt: skip
