"""Charts of how the singular values of attention fall, head by head, and of what a model loses with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.figures.chart import BLACK, BLUE, GREEN, ORANGE, axis, chart, heat_map, lines, rule, series

_QUARTER = 4


def low_rank_chart(found: xr.Dataset) -> dict[str, Any]:
    """How much of the patterns the first singular values have, on average and in each head, and what cutting the others costs.

    Args:
        found: from `low_rank_attention`.

    Returns:
        A chart of three plots: `share` over the number of singular values (mean over heads and documents, and the uniform
        causal pattern), `heads`, the share of the first quarter, and `cost` over the rank that patterns are cut to.
    """
    rank = max(1, int(found.attrs["tokens"]) // _QUARTER)
    mean = found.singular_share.mean("document")
    whole = [
        series("all heads", mean.mean(("block", "head")), colour=BLUE),
        series("their squares", found.energy_share.mean(("document", "block", "head")), colour=GREEN),
        series("uniform causal", found.uniform_singular_share, colour=BLACK),
    ]
    share = lines(
        "share", found["rank"], whole, x_axis="number of singular values", y_axis=axis("share of their sum", range=(0.0, 1.0)),
        rules=[rule(rank, "a quarter", on="x")], marks=False,
    )  # fmt: skip
    heads = heat_map(
        "heads", found["head"], found["block"], mean.sel(rank=rank), x_axis="head", y_axis="block",
        value_axis=axis(f"share of the first {rank}", range=(float(np.floor(10 * mean.sel(rank=rank).min()) / 10), 1.0)),
    )  # fmt: skip
    costs = [
        series(
            name, found.cost.sel(part=part), low=found.cost_low.sel(part=part), high=found.cost_high.sel(part=part), colour=colour
        )
        for part, name, colour in (("best", "as it comes", ORANGE), ("masked", "mask put on again", BLUE))
    ]
    cost = lines(
        "cost", found.kept, costs, x_axis=axis("rank of every pattern", scale="log"), y_axis=axis("added loss", "nats/token"),
    )  # fmt: skip
    return chart([share, heads, cost])


def temperature_chart(found: xr.Dataset, temperatures: dict[str, float]) -> dict[str, Any]:
    """What other temperatures of the softmax cost, and how many tokens heads look at under them.

    Args:
        found: from `attention_what_if`, with `patterns`.
        temperatures: of operators by name; the model as trained is at 1.

    Raises:
        InputError: an operator that the result does not have.
    """
    known = found.operator.to_numpy().tolist()
    for name in temperatures:
        if name not in known:
            raise InputError(f"The operator is {name!r}", f"one of {', '.join(map(str, known))}", "names of attention_what_if")
    places = sorted({known[0]: 1.0, **temperatures}.items(), key=lambda one: one[1])
    rows = found.sel(operator=[name for name, _ in places])
    x, x_axis = [value for _, value in places], axis("temperature of every softmax", scale="log")
    cost = series("added loss", rows.cost, low=rows.cost_low, high=rows.cost_high, colour=BLUE)
    looks = series("tokens looked at", np.exp(rows.mean_entropy), colour=BLUE)
    return chart([
        lines("temperature", x, [cost], x_axis=x_axis, y_axis=axis("added loss", "nats/token"), rules=[rule(0, "as trained")]),
        lines("temperature", x, [looks], x_axis=x_axis, y_axis=axis("exp of the mean entropy", "tokens")),
    ])  # fmt: skip
