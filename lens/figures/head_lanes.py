"""Charts of heads and their lanes: a map of heads, one head's attention, and which frequencies make it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.base.text import visible
from lens.figures.chart import BLACK, BLUE, MOST_CELLS, ORANGE, axis, bars, chart, heat_map, lines, series

SCORES = {
    "fast_share": "share of the fast lanes",
    "slow_share": "share of the slow lanes",
    "previous_token": "attention to the token before",
}
VALUES = ("attention", "logit")
DETAILS = ("cell", "offsets", "kernel")
SIDE = int(MOST_CELLS**0.5)
"""Tokens along a side of the attention map; of a longer text, a stretch is shown."""
FEWEST_PAIRS = 16  # of query and key; means over fewer are left out, of a short text those over less than half of the most


def head_lanes_chart(
    heads: xr.Dataset,
    cells: xr.Dataset,
    detail: xr.Dataset,
    *,
    tokens: Sequence[str],
    start: int,
    score: str,
    values: str,
    picture: str,
    before: xr.Dataset | None = None,
) -> dict[str, Any]:
    """A map of all heads, the attention of one, and the lanes of one cell of it or of all its distances.

    Args:
        heads: `score[block, head]`, from `lane_usage` with `positional_scores`.
        cells: one head, from `counterfactual`.
        detail: from `lane_logits` (of one cell), `lane_offsets` or `positional_kernel`, as `picture` has it.
        tokens: of the text.
        start: first position that is shown, where the text is longer than `SIDE`.
        score: of the map of heads, one of `SCORES`.
        values: `attention` or `logit`.
        picture: `cell`, `offsets` or `kernel`.
        before: the kernel under the live table, where `detail` is that under another.

    Raises:
        InputError: another score, values or picture.
    """
    for name, found, known in (("score", score, SCORES), ("values", values, VALUES), ("picture", picture, DETAILS)):
        if found not in known:
            raise InputError(f"The {name} is {found!r}", f"one of {', '.join(known)}", f"{name}={next(iter(known))!r}")
    third = {"cell": _cell, "offsets": _offsets}.get(picture)
    last = third(detail, tokens) if third else _kernel(detail, before)
    return chart([_heads(heads, score), _attention(cells, tokens, start, values), last])


def _heads(heads: xr.Dataset, score: str) -> dict[str, Any]:
    shares = heads[score].to_numpy()
    end = float(np.ceil(10 * shares.max()) / 10)
    return heat_map(
        "heads",
        heads["head"],
        heads["block"],
        shares,
        x_axis="head",
        y_axis="block",
        value_axis=axis(SCORES[score], range=(0.0, max(end, 0.1))),
    )


def _attention(cells: xr.Dataset, tokens: Sequence[str], start: int, values: str) -> dict[str, Any]:
    """Queries downward, keys to the right; what a causal mask hides stays blank."""
    places = np.arange(start, min(start + SIDE, len(tokens)))
    shown = cells[values].isel(query=places, key=places).to_numpy()
    names = [visible(token) for token in tokens[start : start + SIDE]]
    seen = np.where(np.subtract.outer(places, places) >= 0, shown, np.nan)
    value_axis = axis("attention", range=(0.0, 1.0)) if values == "attention" else axis("logit")
    return heat_map(
        "cells", places, places, seen, x_axis=axis("key", labels=names), y_axis=axis("query", labels=names),
        value_axis=value_axis, down=True,
    )  # fmt: skip


def _cell(detail: xr.Dataset, tokens: Sequence[str]) -> dict[str, Any]:
    cell = detail.isel(cell=0)
    query, key = int(cell["query"]), int(cell["key"])
    rest = float(cell.unrotated)
    title = f"{visible(tokens[query])} → {visible(tokens[key])}, {_apart(query - key)}: logit {signed(float(cell.logit))}"
    if rest:
        title += f", {signed(rest)} of it from dimensions that do not turn"
    lengths, found = cell.wavelength.to_numpy(), cell.contribution.to_numpy()
    parts = {f"{band} lanes": np.where(cell.band.to_numpy() == band, found, np.nan) for band in ("fast", "middle", "slow")}
    by_length = np.isfinite(lengths).all() and (np.diff(lengths) > 0).all()
    named = axis("wavelength of the lane", "tokens") if by_length else axis("lane, the fastest first")
    return bars(
        "lanes", lengths if by_length else cell.lane, {name: part for name, part in parts.items() if np.isfinite(part).any()},
        label_axis=named, value_axis="contribution to the logit", title=title,
    )  # fmt: skip


def _apart(offset: int) -> str:
    return "the token itself" if not offset else f"{offset} token{'s' * (offset > 1)} apart"


def _offsets(detail: xr.Dataset, _tokens: Sequence[str]) -> dict[str, Any]:
    """What changes with distance: of each lane its level is taken away, or one slow lane would outshine all others."""
    enough = int((detail.pairs >= min(FEWEST_PAIRS, detail.pairs.max() / 2)).sum())
    shown = detail.isel(offset=slice(0, min(enough, MOST_CELLS // detail.sizes["lane"])))
    names = [wavelength(length) for length in detail.wavelength.to_numpy()]
    level = detail.level.to_numpy()
    title = f"without each lane’s mean, which runs from {signed(level.min(), 1)} to {signed(level.max(), 1)}"
    return heat_map(
        "offsets", shown.offset, shown.lane, shown.contribution - shown.level, x_axis=axis("from key to query", "tokens"),
        y_axis=axis("wavelength of the lane", "tokens", labels=names), value_axis="contribution to the logit", signed=True,
        title=title,
    )  # fmt: skip


def signed(value: float, digits: int = 2) -> str:
    """A number with a true minus."""
    return f"{value:.{digits}f}".replace("-", "−")


def wavelength(tokens: float) -> str:
    """A wavelength in words of three digits."""
    if not np.isfinite(tokens):
        return "still"
    return f"{float(f'{tokens:.3g}'):,.{2 if tokens < 10 else 1 if tokens < 100 else 0}f}"


def _kernel(detail: xr.Dataset, before: xr.Dataset | None) -> dict[str, Any]:
    curves = [
        series("mean logit", detail.logit, colour=BLUE),
        series("mean query and mean key alone", detail.kernel, colour=ORANGE),
    ]
    if before is not None:
        curves.append(series("mean logit, live base", before.logit, colour=BLACK))
    return lines(
        "kernel", detail.offset, curves, x_axis=axis("from key to query", "tokens"), y_axis="logit",
        title=f"distance alone explains {100 * float(detail.offset_share):.0f} % of the variance",
    )  # fmt: skip
