"""Charts of what all heads' attention is like, over several documents, and of how it grows with the length of a text."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.special
import xarray as xr

from lens.figures.chart import BLACK, BLUE, GREEN, ORANGE, axis, chart, lines, rule, scatter, series

NAMED = 6  # heads that bear their names
_KINDS = {"dilutes": ORANGE, "open": GREEN, "keeps its support": BLUE}


def attention_claims_chart(claims: xr.Dataset) -> dict[str, Any]:
    """How heads concentrate, and whether the variance of their logits foretells their entropy.

    Args:
        claims: from `attention_claims`.

    Returns:
        A chart of two plots, one dot for each head: `concentration` (entropy of rows over that of uniform attention, against
        that of the mean over queries over ln tokens: below and left, all queries look at the same; below and right, each has
        its own) and `entropy` (measured against predicted, the first token left out; a prediction below 0 stands at 0).
    """
    mean = claims.mean("document", keep_attrs=True)
    return chart([_concentration(mean), _entropy(mean)])


def attention_growth_chart(growth: xr.Dataset) -> dict[str, Any]:
    """Entropy and ranks against the length of the text.

    Args:
        growth: from `attention_growth`, with its default measures.

    Returns:
        A chart of two plots over the length: `entropy` (means over the heads of each kind, beside uniform attention) and `ranks`
        (medians over all heads).
    """
    length = growth["length"].to_numpy()
    kinds = {kind: growth.kind == kind for kind in _KINDS}
    curves = [
        series(kind, growth.mean_entropy.where(which).mean(("block", "head")), colour=_KINDS[kind])
        for kind, which in kinds.items()
        if which.any()
    ]
    uniform = scipy.special.gammaln(length + 1.0) / length
    entropy = lines(
        "entropy", length, [*curves, series("uniform attention", uniform, colour=BLACK)],
        x_axis=axis("length of the text", "tokens", scale="log"), y_axis=axis("mean entropy", "nats"),
    )  # fmt: skip
    names = {"effective_rank": ORANGE, "participation_ratio": GREEN, "stable_rank": BLUE}
    medians = [
        series(name.replace("_", " "), growth[name].median(("block", "head")), colour=colour) for name, colour in names.items()
    ]
    ranks = lines(
        "ranks", length, medians, x_axis=axis("length of the text", "tokens", scale="log"),
        y_axis=axis("median over heads", "directions", scale="log"),
    )  # fmt: skip
    return chart([entropy, ranks])


def _concentration(mean: xr.Dataset) -> dict[str, Any]:
    keys = mean.key_entropy / np.log(mean.attrs["tokens"])
    dots = _dots(mean, mean.normalised_entropy, keys)
    unbiased = sorted(dots, key=lambda dot: dot["x"] - dot["y"])[:NAMED]
    return scatter(
        "concentration", dots, x_axis=axis("entropy of a query, over the most", range=(0.0, 1.0)),
        y_axis=axis("entropy of their mean, over the most", range=(0.0, 1.0)),
        rules=[rule(0.5, "half, queries", on="x"), rule(0.5, "half, their mean")], named=[dot["label"] for dot in unbiased],
        title="heads, as block.head",
    )  # fmt: skip


def _entropy(mean: xr.Dataset) -> dict[str, Any]:
    measured = mean.rest_predicted_entropy + mean.rest_entropy_gap
    dots = _dots(mean, mean.rest_predicted_entropy.clip(min=0), measured)
    farthest = sorted(dots, key=lambda dot: -abs(dot["y"] - dot["x"]))[:NAMED]
    end = float(np.ceil(max(max(dot["x"], dot["y"]) for dot in dots)))
    return scatter(
        "entropy", dots, {"if logits were normal": ([0.0, end], [0.0, end])},
        x_axis=axis("predicted from the variance, or 0", "nats", range=(0.0, end)),
        y_axis=axis("measured", "nats", range=(0.0, end)), named=[dot["label"] for dot in farthest],
        title="entropy, the first token apart",
    )  # fmt: skip


def _dots(mean: xr.Dataset, x: xr.DataArray, y: xr.DataArray) -> list[dict[str, Any]]:
    blocks = mean["block"].to_numpy()
    across, up = x.to_numpy(), y.to_numpy()
    return [
        {"x": float(across[row, head]), "y": float(up[row, head]), "label": f"{block}.{head}", "group": _part(row, len(blocks))}
        for row, block in enumerate(blocks)
        for head in range(mean.sizes["head"])
    ]


def _part(row: int, count: int) -> str:
    return ("early blocks", "middle blocks", "late blocks")[row * 3 // count]
