"""Spectra of attention patterns: singular values, the ranks that are made of them, and how far a pattern mixes positions.

The eigenvalues of a causal pattern are its diagonal, and say nothing of mixing: a head that looks at the token before and one
that looks at the first token have the same ones. Singular values tell them apart.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import xarray as xr
from scipy.special import entr
from torch import Tensor

from lens.models.run import Run
from lens.probes.dataset import exact, variable
from lens.probes.patterns import read_patterns, without_first_key

SOURCE = (
    "effective rank: Roy and Vetterli, EUSIPCO 2007; rank of attention: Dong, Cordonnier and Loukas, arXiv 2103.03404; "
    "contraction: Dobrushin, Theory Probab. Appl. 1, 1956"
)
_RANKS = {
    "stable_rank": "Σσ²/σ₁²",
    "participation_ratio": "(Σσ²)²/Σσ⁴",
    "energy_rank": "exp of the entropy of σ²/Σσ²",
    "effective_rank": "exp of the entropy of σ/Σσ",
    "numerical_rank": "singular values above positions · eps · σ₁",
}


def attention_spectrum(
    patterns: Run | Tensor | np.ndarray, *, drop_sink: bool = False, check: Callable[[], None] | None = None
) -> xr.Dataset:
    """Singular values, ranks and mixing of attention patterns.

    Args:
        patterns: a run with attention, or weights `[query, key]`, `[head, query, key]` or `[block, head, query, key]`.
        drop_sink: leave the first key and the first query out, and give each row its share back: a head that gives the first
            token nearly everything has nearly rank one, whatever else it does.
        check: called before every block, and head of a block; raising from it stops the work.

    Returns:
        Dataset over `block`, `head` (as many of them as the input has) and `rank`, which counts from 1:

        - `singular_value[…, rank]`, descending; the largest is at least 1 where rows sum to 1, and at most √positions;
        - `stable_rank` ≤ `participation_ratio` ≤ `energy_rank` ≤ `effective_rank`, and `numerical_rank`: five readings of how
          many directions a pattern has, 1 to positions; zero patterns have NaN;
        - `contraction`: κ = ‖ΠA‖₂, with Π removing the mean over positions: states X obey ‖ΠAX‖ ≤ κ‖ΠX‖ where rows sum to 1.
          It can exceed 1;
        - `dobrushin`: δ = ½ max‖A_m − A_n‖₁ over pairs of queries, 0 (all look at the same) to 1: no direction of states
          spans more than δ of its range afterwards;
        - `self_attention[…, query]`: the diagonal, which for a causal pattern are its eigenvalues; `gap`, 1 less the second
          largest of them in size (NaN where the pattern is not causal).

        Ranks and singular values grow with the number of positions: compare equal lengths only.

    Cost: `O(positions³)` a head. Memory: the patterns in float64 and, for a head at a time, `positions²` values more.

    Raises:
        InputError: see `lens.probes.patterns.read_patterns`.
    """
    found = read_patterns(patterns)
    weights = without_first_key(found.weights) if drop_sink else found.weights
    shape, size = weights.shape[:-2], weights.shape[-1]
    heads = weights.reshape(-1, size, size)
    values, mixing = [], []
    for head in heads:
        if check is not None:
            check()
        values.append(torch.linalg.svdvals(head))
        mixing.append((_contraction(head), _dobrushin(head)))
    singular = torch.stack(values).reshape(*shape, size).numpy()
    contraction, dobrushin = np.array(mixing).T.reshape(2, *shape)
    diagonal = weights.diagonal(0, -2, -1).numpy()
    ranks = {name: variable(found.dims, value, f"rank: {_RANKS[name]}") for name, value in rank_measures(singular).items()}
    first = int(drop_sink)
    coordinates = {name: value for name, value in found.coordinates.items() if not set(value.dims) - {*found.dims}}
    return xr.Dataset(
        {
            "singular_value": exact((*found.dims, "rank"), singular, "singular value"),
            **ranks,
            "contraction": exact(found.dims, contraction, "largest stretch of what differs between positions"),
            "dobrushin": exact(found.dims, dobrushin, "largest distance of two queries' patterns, 0 to 1"),
            "self_attention": exact((*found.dims, "query"), diagonal, "attention to the token itself"),
            "gap": exact(found.dims, _gap(diagonal, found.is_causal), "1 less the second largest eigenvalue"),
        },
        {
            **coordinates,
            "rank": variable(("rank",), np.arange(1, size + 1), "rank of the singular value"),
            "query": variable(("query",), np.arange(first, first + size), "position of the query"),
        },
        {**found.facts, "source": SOURCE, "probe": "attention_spectrum", "dropped_sink": first, "positions": size},
    )


def rank_measures(singular: np.ndarray) -> dict[str, np.ndarray]:
    """Five ranks of matrices from their singular values `[..., rank]`, descending; of a zero matrix NaN, and 0 numerically."""
    size = singular.shape[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        energy = singular**2
        total = energy.sum(-1)
        found = {
            "stable_rank": total / energy[..., 0],
            "participation_ratio": total**2 / (energy**2).sum(-1),
            "energy_rank": np.exp(_entropy(energy / total[..., None])),
            "effective_rank": np.exp(_entropy(singular / singular.sum(-1, keepdims=True))),
            "numerical_rank": (singular > size * np.finfo(float).eps * singular[..., :1]).sum(-1).astype(float),
        }
    return {name: np.asarray(value) for name, value in found.items()}


def _entropy(shares: np.ndarray) -> np.ndarray:
    return np.asarray(entr(shares).sum(-1))


def _contraction(weights: Tensor) -> float:
    return float(torch.linalg.matrix_norm(weights - weights.mean(0), ord=2))


def _dobrushin(weights: Tensor) -> float:
    return float(torch.cdist(weights[None], weights[None], p=1.0).max()) / 2


def _gap(diagonal: np.ndarray, causal: bool) -> np.ndarray:
    if not causal or diagonal.shape[-1] < 2:
        return np.full(diagonal.shape[:-1], np.nan)
    return np.asarray(1 - np.sort(np.abs(diagonal), axis=-1)[..., -2])
