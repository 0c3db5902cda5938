"""Spectra of attention patterns: singular values, the ranks that are made of them, and how far a pattern mixes positions.

The eigenvalues of a causal pattern are its diagonal, and say nothing of mixing: a head that looks at the token before and one
that looks at the first token have the same ones. Singular values tell them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr
from torch import Tensor

from lens.base.errors import InputError
from lens.base.provenance import library_versions
from lens.models.heads import HeadStates
from lens.models.run import Run
from lens.probes.dataset import exact, variable
from lens.probes.patterns import read_patterns, reduced
from lens.probes.singular_values import (
    EXACT,
    RANKS,
    SAMPLED,
    contraction,
    dobrushin,
    eigenvalues,
    kept_values,
    spectrum_of_matrix,
)

SOURCE = (
    "effective rank: Roy and Vetterli, EUSIPCO 2007; rank of attention: Dong, Cordonnier and Loukas, arXiv 2103.03404; "
    "contraction: Dobrushin, Theory Probab. Appl. 1, 1956; concentration and spectral gap: arXiv 2311.13541; "
    "largest singular values: Halko, Martinsson and Tropp, arXiv 0909.4061"
)


def attention_spectrum(
    patterns: Run | Tensor | np.ndarray,
    *,
    drop_sink: bool = False,
    renormalise: bool = False,
    top: int | None = None,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """Singular values, ranks, eigenvalues and mixing of attention patterns.

    Args:
        patterns: a run with attention, or weights `[query, key]`, `[head, query, key]` or `[block, head, query, key]`.
        drop_sink: leave the first key and the first query out, and give each row its share back: a head that gives the first
            token nearly everything has nearly rank one, whatever else it does.
        renormalise: give rows back what a learned sink took of them.
        top: how many singular values; None for all up to 512 positions and the 32 largest beyond.
        check: called before every block, and head of a block; raising from it stops the work.

    Returns:
        Dataset over `block`, `head` (as many of them as the input has) and `rank`, which counts from 1:

        - `singular_value[…, rank]`, descending; the largest is at least 1 where rows sum to 1, and at most √positions;
        - `stable_rank` ≤ `participation_ratio` ≤ `energy_rank` ≤ `effective_rank`, and `numerical_rank`: five readings of how
          many directions a pattern has, 1 to positions; zero patterns have NaN. Without all singular values only the first
          two are known, exactly, and the others are NaN;
        - `contraction`: κ = ‖ΠA‖₂, with Π removing the mean over positions: states X obey ‖ΠAX‖ ≤ κ‖ΠX‖ where rows sum to 1.
          It can exceed 1;
        - `dobrushin`: δ = ½ max‖A_m − A_n‖₁ over pairs of queries, 0 (all look at the same) to 1: no direction of states
          spans more than δ of its range afterwards. Beyond 512 positions over pairs of 512 drawn queries: a lower bound;
        - `eigenvalue[…, order]` and `eigenvalue_imaginary`, the largest first, and `gap`, 1 less the second largest modulus. The
          eigenvalues of a causal pattern are its diagonal, and say nothing of mixing. Beyond 512 positions NaN for others;
        - `self_attention[…, query]`: the diagonal.

        Ranks and singular values grow with the number of positions: compare equal lengths only. The attributes `ranks`,
        `dobrushin` and `eigenvalues` say in words what is a bound, and what is missing.

    Cost: `O(positions³)` a head. Memory: the patterns in float64 and, for a head at a time, `positions²` values more.

    Raises:
        InputError: see `lens.probes.patterns.read_patterns`; `top` below 1. UnsupportedModelError: largest singular values of a
            long text that do not settle.
    """
    _require_top(top)
    found = read_patterns(patterns)
    weights = reduced(found.weights, drop_sink=drop_sink, renormalise=renormalise)
    shape, size = weights.shape[:-2], weights.shape[-1]
    spectra, mixing, values = [], [], []
    for head in weights.reshape(-1, size, size).numpy():
        if check is not None:
            check()
        spectra.append(spectrum_of_matrix(head, top))
        mixing.append((contraction(head), dobrushin(head)))
        values.append(eigenvalues(head))
    kappa, delta = np.array(mixing).T.reshape(2, *shape)
    eigen = np.array(values).reshape(*shape, size)
    ranks = {name: np.array([spectrum.ranks[name] for spectrum in spectra]).reshape(shape) for name in RANKS}
    first = int(drop_sink)
    singular = np.array([spectrum.singular for spectrum in spectra])
    coordinates = {name: value for name, value in found.coordinates.items() if not set(value.dims) - {*found.dims}}
    return xr.Dataset(
        {
            "singular_value": exact((*found.dims, "rank"), singular.reshape(*shape, -1), "singular value"),
            **{name: variable(found.dims, value, f"rank: {RANKS[name]}") for name, value in ranks.items()},
            "contraction": exact(found.dims, kappa, "largest stretch of what differs between positions"),
            "dobrushin": exact(found.dims, delta, "largest distance of two queries' patterns, 0 to 1"),
            "eigenvalue": exact((*found.dims, "order"), np.real(eigen), "eigenvalue, real part"),
            "eigenvalue_imaginary": exact((*found.dims, "order"), np.imag(eigen), "eigenvalue, imaginary part"),
            "self_attention": exact((*found.dims, "query"), weights.diagonal(0, -2, -1).numpy(), "attention to the token itself"),
            "gap": exact(found.dims, _gap(eigen), "1 less the second largest eigenvalue in size"),
        },
        {
            **coordinates,
            "rank": variable(("rank",), np.arange(1, singular.shape[-1] + 1), "rank of the singular value"),
            "order": variable(("order",), np.arange(1, size + 1), "place of the eigenvalue, the largest first"),
            "query": variable(("query",), np.arange(first, first + size), "position of the query"),
        },
        {
            **found.facts, **notices(size, found.is_causal, singular.shape[-1]), "source": SOURCE, "probe": "attention_spectrum",
            "dropped_sink": first, "renormalised": int(renormalise), "positions": size,
        },
    )  # fmt: skip


def notices(positions: int, causal: bool, singular: int) -> dict[str, str]:
    """What of a spectrum is exact, what a bound and what missing, in words, as attributes of a result."""
    long = positions > EXACT
    eigen = (
        "of causal patterns: their diagonals, which say nothing of mixing; use singular values"
        if causal
        else f"not computed beyond {EXACT} positions"
        if long
        else "complex"
    )
    return {
        "ranks": "from all singular values"
        if singular == positions
        else f"from the {singular} largest singular values, Σσ² and Σσ⁴: stable_rank and participation_ratio alone",
        "dobrushin": f"a lower bound, over pairs of {SAMPLED} queries" if long else "over all pairs of queries",
        "eigenvalues": eigen,
    }


def logit_spectrum(
    states: HeadStates | Sequence[HeadStates],
    *,
    masked: bool = False,
    top: int | None = None,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """Singular values and ranks of the logits of heads, before the softmax.

    Unmasked, logits are products of queries with keys, so that their rank is at most the width of a head, and rotation does
    not raise it; a soft cap, a mask and the softmax do.

    Args:
        states: of one text, from `lens.head_states`.
        masked: with zeros where a query sees no key, instead of the logits that are never used.
        top: how many singular values; None for all up to 512 positions and the 32 largest beyond.
        check: called before every head; raising from it stops the work.

    Returns:
        Dataset over `block`, `head` and `rank`: `singular_value` and the five ranks, as in `attention_spectrum`. Unlike those of
        weights they change when a constant is added to all logits of a row, which the softmax does not see.

    Raises:
        InputError: no block, blocks of several shapes, or `top` below 1.
    """
    _require_top(top)
    blocks = [states] if isinstance(states, HeadStates) else list(states)
    shapes = {tuple(block.query.shape) for block in blocks}
    if len(shapes) != 1:
        raise InputError(f"{len(shapes)} shapes of queries", "blocks of one shape", "the blocks of one kind at a time")
    heads, size, width = shapes.pop()
    spectra = []
    for block in blocks:
        for head in range(heads):
            if check is not None:
                check()
            logits = block.logits(head)
            spectra.append(spectrum_of_matrix(np.where(block.seen(), logits, 0.0) if masked else logits, top))
    dims, shape, count = ("block", "head"), (len(blocks), heads), min(top or kept_values(size), size)
    ranks = {name: np.array([spectrum.ranks[name] for spectrum in spectra]).reshape(shape) for name in RANKS}
    singular = np.array([spectrum.singular for spectrum in spectra]).reshape(*shape, count)
    return xr.Dataset(
        {
            "singular_value": exact((*dims, "rank"), singular, "singular value of the logits"),
            **{name: variable(dims, value, f"rank of the logits: {RANKS[name]}") for name, value in ranks.items()},
        },
        {
            "block": variable(("block",), np.array([block.block for block in blocks]), "block"),
            "head": variable(("head",), np.arange(heads), "query head"),
            "rank": variable(("rank",), np.arange(1, count + 1), "rank of the singular value"),
        },
        {"source": SOURCE, "probe": "logit_spectrum", "masked": int(masked), "positions": size, "width": width,
         "ranks": notices(size, False, count)["ranks"], **library_versions()},
    )  # fmt: skip


def _require_top(top: int | None) -> None:
    if top is not None and top < 1:
        raise InputError(f"top={top}", "1 or more singular values, or None for the default", "top=32")


def _gap(values: np.ndarray) -> np.ndarray:
    if values.shape[-1] < 2:
        return np.full(values.shape[:-1], np.nan)
    return np.asarray(1 - np.abs(values)[..., 1])
