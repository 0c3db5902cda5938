"""Charts of a model's loss under other rotary tables: against the base, by position, and table by table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.figures.chart import BLUE, ORANGE, axis, bars, chart, lines, rule, series

MOST_CURVES = 6


def sweep_chart(sweep: xr.Dataset, tables: Sequence[str] | None = None) -> dict[str, Any]:
    """Increase of the loss against the base, and bin by bin for some tables, with 95 % intervals over documents.

    Args:
        sweep: from `lens.probes.rope_sweep.rope_sweep`, with two bases at least.
        tables: names of rows that are shown by position, at most six; by default bases spread over the sweep.

    Raises:
        InputError: fewer than two bases, an unknown row, or more than six.
    """
    turned = sweep.isel(table=sweep.kind.to_numpy() == "base").sortby("base")
    known = [str(name) for name in sweep.table.to_numpy()]
    if turned.sizes["table"] < 2:
        raise InputError(f"The sweep has {turned.sizes['table']} bases", "two at least", "rope_sweep(model, corpus, [1e4, 1e6])")
    names = [str(name) for name in turned.table.to_numpy()]
    spread = np.unique(np.linspace(0, len(names) - 1, MOST_CURVES).round().astype(int))
    chosen = [names[place] for place in spread] if tables is None else list(tables)
    if not chosen or len(chosen) > MOST_CURVES or not set(chosen) <= set(known):
        raise InputError(
            f"The tables are {', '.join(chosen) or 'none'}", f"up to {MOST_CURVES} of {', '.join(known)}", "tables=None"
        )
    return chart([_by_base(turned, float(sweep.attrs["trained_base"])), _by_position(sweep.sel(table=chosen))])


def ablation_chart(sweeps: Mapping[str, xr.Dataset], tables: Sequence[str]) -> dict[str, Any]:
    """Increase of the loss under each of several tables as bars with 95 % intervals, beside each other for several sweeps.

    Args:
        sweeps: name (such as the length of the windows) to a result of `rope_sweep`.
        tables: names of rows that all of them have.

    Raises:
        InputError: a row that a sweep lacks.
    """
    for name, sweep in sweeps.items():
        missing = sorted(set(tables) - set(sweep.table.to_numpy().tolist()))
        if missing:
            raise InputError(f"The sweep {name} has no row {', '.join(missing)}", "rows of every sweep", "tables of both")
    found = []
    for name, sweep in sweeps.items():
        rows = sweep.sel(table=list(tables))
        found.append(series(name, rows.cost, low=rows.cost_low, high=rows.cost_high))
    return chart(
        [bars("tables", list(tables), found, label_axis="rotary table", value_axis=axis("increase of the loss", "nats"))]
    )


def _by_base(turned: xr.Dataset, trained: float) -> dict[str, Any]:
    """The trained base has a point of its own at zero, for it is what all others are measured against."""
    bases = np.unique([*turned.base.to_numpy().astype(float), trained])
    places = np.searchsorted(bases, turned.base.to_numpy().astype(float))
    cost, low, high = (np.full(len(bases), np.nan) for _ in range(3))
    for values, name in ((cost, "cost"), (low, "cost_low"), (high, "cost_high")):
        values[places] = turned[name].to_numpy()
    at = np.where(bases == trained, 0.0, np.nan)
    for values in (cost, low, high):
        values[bases == trained] = 0.0
    curves = [series("turned", cost, low=low, high=high, colour=ORANGE), series("as trained", at, colour=BLUE)]
    return lines(
        "base", bases, curves, x_axis=axis("rotary base", scale="log"), y_axis=axis("increase of the loss", "nats per token"),
        rules=[rule(trained, "trained base", on="x")],
    )  # fmt: skip


def _by_position(rows: xr.Dataset) -> dict[str, Any]:
    middle = (rows.bin_start.to_numpy() + rows.bin_stop.to_numpy() - 1) / 2
    curves = [
        series(str(name), rows.bin_cost[n], low=rows.bin_cost_low[n], high=rows.bin_cost_high[n])
        for n, name in enumerate(rows.table.to_numpy())
    ]
    return lines(
        "position", middle, curves, x_axis=axis("position", "tokens", scale="log"),
        y_axis=axis("increase of the loss", "nats per token"),
    )  # fmt: skip
