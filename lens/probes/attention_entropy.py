"""How concentrated attention is, query by query and over keys: entropies, effective support, sinks.

A pattern can be concentrated in two ways. *Biased*: all queries look at one key, so that rows and the mean over queries are
both narrow. *Unbiased*: each query looks at a key of its own, so that rows are narrow and their mean is wide. The names are
those of Linear Log-Normal Attention (arXiv 2311.13541); this pair of entropies is our own reading of them.
"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float64, Int
from torch import Tensor

from lens.base.errors import InputError
from lens.models.run import Run
from lens.probes.dataset import exact
from lens.probes.patterns import read_patterns, reduced

SOURCE = "entropy: Shannon, 1948; attention sinks: Xiao et al., arXiv 2309.17453; concentration: arXiv 2311.13541"


def attention_entropy(
    patterns: Run | Tensor | np.ndarray, *, drop_sink: bool = False, renormalise: bool = False, window: int | None = None
) -> xr.Dataset:
    """Entropies of attention patterns over keys and over queries, and what one key takes.

    What a row lacks to 1 (the share of a learned sink) counts as one outcome more.

    Args:
        patterns: a run with attention, or weights `[query, key]`, `[head, query, key]` or `[block, head, query, key]`, causal
            or not.
        drop_sink: leave the first key and the first query out, and give each row its share back.
        renormalise: give rows back what a learned sink took of them, instead of counting it as an outcome.
        window: keys that a query sees, itself included; None for all before it.

    Returns:
        Dataset over `block`, `head` (as many of them as the input has) and `query`:

        - `entropy[…, query]` of a row, nats; `effective_support`, its exponential, tokens; `normalised_entropy`, over that of
          the keys that the query can see, 0 to 1; `divergence_from_uniform`, how far it is below that, nats; the latter two
          NaN where a query sees one key only;
        - over `block` and `head`: `mean_entropy` over all queries; `first_token`, the mean share of the first key over all
          queries but the first (of the first that is left, if the sink was dropped); `top_key` and `top_key_share`, the key
          with the largest mean share, and that share; `key_entropy` of the mean over queries, nats; `lacking`, the mean of
          what rows lack to 1.

    Cost: `O(positions²)` a head. Memory: three times the patterns in float64.

    Raises:
        InputError: see `lens.probes.patterns.read_patterns`; a window below 1.
    """
    if window is not None and window < 1:
        raise InputError(f"A window of {window}", "1 key or more, or None for all", "window=128")
    found = read_patterns(patterns)
    weights = reduced(found.weights, drop_sink=drop_sink, renormalise=renormalise)
    first, size = int(drop_sink), weights.shape[-1]
    visible = torch.full((size,), size)
    if found.is_causal:
        visible = torch.arange(1, size + 1).clamp(max=window or size)
    rows, heads = concentration(weights, visible)
    coordinates = {name: value for name, value in found.coordinates.items() if not set(value.dims) - {*found.dims}}
    return xr.Dataset(
        {name: exact((*found.dims, "query"), rows[name].numpy(), *words) for name, words in ROWS.items()}
        | {name: exact(found.dims, heads[name].numpy(), *words) for name, words in HEADS.items()}
        | {"top_key": exact(found.dims, heads["top_key"].numpy() + first, *HEADS["top_key"])},
        {**coordinates, "query": exact(("query",), np.arange(first, first + size), "position of the query")},
        {
            **found.facts, "source": SOURCE, "probe": "attention_entropy", "positions": size, "dropped_sink": first,
            "renormalised": int(renormalise),
        },
    )  # fmt: skip


ROWS = {
    "entropy": ("entropy of a query's attention", "nats"),
    "effective_support": ("effective number of keys", "tokens"),
    "normalised_entropy": ("entropy over that of uniform attention", "1"),
    "divergence_from_uniform": ("KL divergence to uniform attention", "nats"),
}
HEADS = {
    "mean_entropy": ("mean entropy over queries", "nats"),
    "first_token": ("mean attention to the first token", "1"),
    "top_key": ("key with the largest mean share", "1"),
    "top_key_share": ("its mean share", "1"),
    "key_entropy": ("entropy of the mean over queries", "nats"),
    "lacking": ("what rows lack to 1", "1"),
}


def concentration(
    weights: Float64[Tensor, "*axes query key"], visible: Int[Tensor, " query"]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Numbers of every row, as in `ROWS`, and of every pattern, as in `HEADS`.

    Args:
        weights: rows sum to 1 or less.
        visible: keys that each query can see.
    """
    lacking = lacking_of(weights)
    entropy = _entropy(weights) + torch.special.entr(lacking)
    outcomes = visible + (lacking > 0)
    most = torch.log(outcomes.double())
    mean = weights.mean(-2)
    top = mean.max(-1)
    several = torch.where(outcomes > 1, 1.0, torch.nan)
    rows = {
        "entropy": entropy,
        "effective_support": entropy.exp(),
        "normalised_entropy": several * entropy / most,
        "divergence_from_uniform": several * (most - entropy),
    }
    return rows, {
        "mean_entropy": entropy.mean(-1),
        "first_token": weights[..., 1:, 0].mean(-1),
        "top_key": top.indices.double(),
        "top_key_share": top.values,
        "key_entropy": _entropy(mean) + torch.special.entr(lacking.mean(-1)),
        "lacking": lacking.mean(-1),
    }


def lacking_of(weights: Float64[Tensor, "*axes query key"]) -> Float64[Tensor, "*axes query"]:
    """What rows lack to 1; the rounding of a softmax is not counted."""
    lacking = (1 - weights.sum(-1)).clamp(min=0)
    return torch.where(lacking > 1e-6, lacking, 0.0)


def _entropy(shares: Tensor) -> Tensor:
    return torch.special.entr(shares).sum(-1)
