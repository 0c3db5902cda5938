"""Charts of what all heads do with their lanes, over several documents."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from lens.figures.chart import BLUE, GREEN, ORANGE, axis, chart, heat_map, lines, rule, scatter, series
from lens.figures.head_lanes import wavelength

NAMED = 6  # heads that bear their names


def lane_claims_chart(claims: xr.Dataset) -> dict[str, Any]:
    """Where queries and keys lie over lanes and blocks, and whether heads with fast lanes look one token back.

    Args:
        claims: from `lane_claims`.

    Returns:
        A chart of three plots: `lanes` (mean length of each lane, first token apart), `shares` (share of each lane in each
        block) and `heads` (fast share against previous-token score, one dot for each head).
    """
    mean = claims.mean("document", keep_attrs=True)
    return chart([_lengths(mean), _lanes(mean), _heads(mean)])


def key_order_chart(claims: xr.Dataset) -> dict[str, Any]:
    """Whether far keys beat near ones, and whether distance turns the order of keys over, at three bases.

    Args:
        claims: from `lane_claims`.

    Returns:
        A chart of two plots over the distance, means over all heads and documents.
    """
    titles = {
        "far_beats_near": "probability that the key beats one in the near half",
        "flipped": "probability that two keys change places",
    }
    names = {base: "trained base" if base == 1 else f"{base:g} × the base" for base in claims.base.to_numpy().tolist()}
    plots = []
    for name, title in titles.items():
        mean = claims[name].mean(("document", "block", "head"))
        curves = [
            series(names[base], mean.sel(base=base), colour=colour)
            for base, colour in zip(names, (ORANGE, BLUE, GREEN), strict=True)
        ]
        plots.append(lines(
            "distance", claims.distance, curves, x_axis=axis("distance", "tokens", scale="log"),
            y_axis=axis(title, range=(0.0, 1.0)), rules=[rule(0.5, "by chance")],
        ))  # fmt: skip
    return chart(plots)


def _lengths(mean: xr.Dataset) -> dict[str, Any]:
    over = ("block", "head")
    curves = [
        series("queries", mean.query_amplitude.mean(over), colour=BLUE),
        series("keys", mean.key_amplitude.mean(over), colour=ORANGE),
        series("first key", mean.first_key_amplitude.mean(over), colour=GREEN),
    ]
    slow = mean.lane.where((mean.band == "slow").any("block"), drop=True)
    rules = [rule(float(slow[0]) - 0.5, "longer than the context", on="x")] if slow.size else []
    return lines("lanes", mean.lane, curves, x_axis="lane, the fastest first", y_axis="mean length", rules=rules)


def _lanes(mean: xr.Dataset) -> dict[str, Any]:
    share = mean.joint_share.mean("head")
    lengths = mean.wavelength.to_numpy()
    same = bool((lengths == lengths[0]).all())
    lanes = (
        axis("wavelength of the lane", "tokens", labels=[wavelength(one) for one in lengths[0]])
        if same
        else axis("lane, the fastest first")
    )
    return heat_map(
        "shares", mean.lane, mean["block"], share, x_axis=lanes, y_axis="block",
        value_axis=axis("share of the lane", range=(0.0, float(np.ceil(20 * share.max()) / 20))),
    )  # fmt: skip


def _heads(mean: xr.Dataset) -> dict[str, Any]:
    blocks = mean["block"].to_numpy()
    dots = [
        {
            "x": float(mean.fast_share[row, head]), "y": float(mean.previous_token[row, head]), "label": f"{blocks[row]}.{head}",
            "group": _part(row, len(blocks)),
        }
        for row in range(len(blocks)) for head in range(mean.sizes["head"])
    ]  # fmt: skip
    strongest = sorted(dots, key=lambda dot: -dot["y"])[:NAMED]
    return scatter(
        "heads", dots, x_axis=axis("share of the fast lanes", range=(0.0, _end([dot["x"] for dot in dots]))),
        y_axis=axis("attention to the token before", range=(0.0, 1.0)), named=[dot["label"] for dot in strongest],
        title="heads, as block.head",
    )  # fmt: skip


def _part(row: int, count: int) -> str:
    """Fifths at both ends, of which it has been said that the fast heads sit there."""
    return "first fifth of the blocks" if 5 * row < count else "last fifth" if 5 * row >= 4 * count else "between"


def _end(values: list[float]) -> float:
    return float(np.ceil(20 * max(values)) / 20)
