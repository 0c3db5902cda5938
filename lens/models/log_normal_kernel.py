"""The kernel of linear log-normal attention: exponentials of queries and keys, and their moments matched to softmax's."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_NARROWEST, _WIDEST = 1e-3, 50.0  # spreads of exponents that are tried; above, sums of products leave float64
_TRIES = 60


def log_weights(query: Tensor, key: Tensor) -> Tensor:
    """ln Σ_c exp(q_c + k_c), `[..., query, key]`, but for a constant of each row.

    The largest exponent of every query and every key is taken out first, so that nothing overflows.
    """
    top = key.amax(-1)
    sums = (query - query.amax(-1, keepdim=True)).exp() @ (key - top[..., None]).exp().mT
    return sums.clamp(min=torch.finfo(sums.dtype).tiny).log() + top[..., None, :]


def matched_scales(logits: Tensor, query: Tensor, key: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and beta, `[..., head, 1, 1]`, whose log-weights vary over the keys of a row as the logits do, on average.

    The spread s of alpha·q and beta·k is alike, s/√2 each, as in arXiv 2311.13541; where the paper fits a line between
    the two variances, s is found for these very queries and keys, between 0.001 and 50 (the nearer end where no s
    there fits). Logits that do not vary give zeros, which is uniform attention.
    """
    target = _row_variance(logits, seen)
    sides = [side.std((-2, -1), correction=0, keepdim=True) for side in (query, key)]
    unit = [1 / (math.sqrt(2) * side.masked_fill(side == 0, torch.inf)) for side in sides]
    query, key = unit[0] * query, unit[1] * key

    def gap(spread: Tensor) -> Tensor:
        found = _row_variance(log_weights(spread.exp() * query, spread.exp() * key), seen)
        return found.clamp(min=1e-300).log() - target.clamp(min=1e-300).log()

    spread = _root(gap, target.new_full(target.shape, math.log(_NARROWEST)), target.new_full(target.shape, math.log(_WIDEST)))
    spread = spread.exp().masked_fill(target == 0, 0.0)
    return spread * unit[0], spread * unit[1]


def _row_variance(values: Tensor, seen: Tensor) -> Tensor:
    """Of seen entries, within rows of two and more, averaged over rows; `[..., head, 1, 1]`."""
    count = seen.sum(-1, keepdim=True).to(values)
    values = values.masked_fill(~seen, 0.0)
    centred = (values - values.sum(-1, keepdim=True) / count.clamp(min=1)).masked_fill(~seen, 0.0)
    variance, rows = (centred.square().sum(-1, keepdim=True) / count.clamp(min=1)), (count > 1).to(values)
    return (variance * rows).sum(-2, keepdim=True) / rows.sum(-2, keepdim=True).clamp(min=1)


def _root(gap: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Where an increasing function is zero, for all entries at once: regula falsi in the Illinois form."""
    below, above = gap(low), gap(high)
    found = torch.where(below > 0, low, high)
    inside = (below < 0) & (above > 0)
    side = torch.zeros_like(low)
    for _ in range(_TRIES):
        if not bool(inside.any()):
            break
        tried = (high - above * (high - low) / (above - below)).where(inside, found)
        value = gap(tried)
        found, moved = tried, value.sign()
        # An end that stays a second time has its value halved, or it would never move.
        again = torch.where(moved == side, 0.5, 1.0)
        low, below, above = (
            torch.where(moved < 0, new, old) for new, old in ((tried, low), (value, below), (above * again, above))
        )
        high, above, below = (
            torch.where(moved > 0, new, old) for new, old in ((tried, high), (value, above), (below * again, below))
        )
        side, inside = moved, inside & (value.abs() > 1e-8)
    return found
