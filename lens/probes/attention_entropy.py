"""How concentrated attention is, query by query and over keys: entropies, effective support, sinks.

A pattern can be concentrated in two ways. *Biased*: all queries look at one key, so that rows and the mean over queries are
both narrow. *Unbiased*: each query looks at a key of its own, so that rows are narrow and their mean is wide. The names are
those of Linear Log-Normal Attention (arXiv 2311.13541); this pair of entropies is our own reading of them.
"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from lens.models.run import Run
from lens.probes.dataset import exact
from lens.probes.patterns import read_patterns

SOURCE = "entropy: Shannon, 1948; attention sinks: Xiao et al., arXiv 2309.17453; concentration: arXiv 2311.13541"


def attention_entropy(patterns: Run | Tensor | np.ndarray) -> xr.Dataset:
    """Entropies of attention patterns over keys and over queries, and what one key takes.

    What a row lacks to 1 (the share of a learned sink) counts as one outcome more.

    Args:
        patterns: a run with attention, or weights `[query, key]`, `[head, query, key]` or `[block, head, query, key]`, causal
            or not.

    Returns:
        Dataset over `block`, `head` (as many of them as the input has) and `query`:

        - `entropy[…, query]` of a row, nats; `effective_support`, its exponential, tokens; `normalised_entropy`, over that of
          the keys that the query can see, 0 to 1; `divergence_from_uniform`, how far it is below that, nats; the latter two
          NaN where a query sees one key only;
        - over `block` and `head`: `mean_entropy` over all queries; `first_token`, the mean share of the first key over all
          queries but the first; `top_key` and `top_key_share`, the key with the largest mean share, and that share;
          `key_entropy` of the mean over queries, nats; `lacking`, the mean of what rows lack to 1.

    Cost: `O(positions²)` a head. Memory: three times the patterns in float64.

    Raises:
        InputError: see `lens.probes.patterns.read_patterns`.
    """
    found = read_patterns(patterns)
    weights, size = found.weights, found.size
    lacking = (1 - weights.sum(-1)).clamp(min=0)
    # Rounding of a softmax is no outcome.
    lacking = torch.where(lacking > 1e-6, lacking, 0.0)
    entropy = _entropy(weights) + torch.special.entr(lacking)
    visible = torch.arange(1, size + 1) if found.is_causal else torch.full((size,), size)
    outcomes = visible + (lacking > 0)
    most = torch.log(outcomes.double())
    mean = weights.mean(-2)
    top = mean.max(-1)
    several = torch.where(outcomes > 1, 1.0, torch.nan)
    rows = {
        "entropy": (entropy, "entropy of a query's attention", "nats"),
        "effective_support": (entropy.exp(), "effective number of keys", "tokens"),
        "normalised_entropy": (several * entropy / most, "entropy over that of uniform attention", "1"),
        "divergence_from_uniform": (several * (most - entropy), "KL divergence to uniform attention", "nats"),
    }
    heads = {
        "mean_entropy": (entropy.mean(-1), "mean entropy over queries", "nats"),
        "first_token": (weights[..., 1:, 0].mean(-1), "mean attention to the first token", "1"),
        "top_key": (top.indices.double(), "key with the largest mean share", "1"),
        "top_key_share": (top.values, "its mean share", "1"),
        "key_entropy": (_entropy(mean) + torch.special.entr(lacking.mean(-1)), "entropy of the mean over queries", "nats"),
        "lacking": (lacking.mean(-1), "what rows lack to 1", "1"),
    }
    coordinates = {name: value for name, value in found.coordinates.items() if not set(value.dims) - {*found.dims}}
    return xr.Dataset(
        {name: exact((*found.dims, "query"), value.numpy(), *words) for name, (value, *words) in rows.items()}
        | {name: exact(found.dims, value.numpy(), *words) for name, (value, *words) in heads.items()},
        {**coordinates, "query": exact(("query",), np.arange(size), "position of the query")},
        {**found.facts, "source": SOURCE, "probe": "attention_entropy", "positions": size},
    )


def _entropy(shares: Tensor) -> Tensor:
    return torch.special.entr(shares).sum(-1)
