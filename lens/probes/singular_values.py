"""Singular values of one square matrix and what is made of them: all of them where it is small, the largest where it is not.

Beyond 512 positions a complete decomposition takes seconds a head. The largest singular values, the sum of all squares and
that of all fourth powers are still within reach, and with them two of the five ranks. The others would need the tail: they
are NaN rather than an estimate.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import entr

EXACT = 512  # positions up to which everything is computed from all singular values and all pairs of queries
TOP = 32  # singular values beyond
SAMPLED = 512  # queries whose pairs are compared beyond
_SPARE = 16  # directions that are iterated beside those asked for
_ROUNDS = 100  # about what a complete decomposition costs
_SETTLED = 1e-10  # change of a singular value in a round, as a part of the largest

RANKS = {
    "stable_rank": "Σσ²/σ₁²",
    "participation_ratio": "(Σσ²)²/Σσ⁴",
    "energy_rank": "exp of the entropy of σ²/Σσ²",
    "effective_rank": "exp of the entropy of σ/Σσ",
    "numerical_rank": "singular values above positions · eps · σ₁",
}

Square = Float[np.ndarray, "query key"]


class Spectrum(NamedTuple):
    """Singular values of a matrix, descending, all or the largest, and its five ranks (NaN where the tail is missing)."""

    singular: Float[np.ndarray, " rank"]
    ranks: dict[str, float]


def spectrum_of_matrix(matrix: Square, top: int | None = None) -> Spectrum:
    """Singular values and ranks of a matrix.

    Args:
        matrix: float64.
        top: how many singular values; None for all up to 512 positions, and 32 beyond.
    """
    top = kept_values(len(matrix)) if top is None else min(top, len(matrix))
    if top == len(matrix):
        singular = np.linalg.svd(matrix, compute_uv=False)
        return Spectrum(singular, {name: float(value) for name, value in rank_measures(singular).items()})
    singular = largest_singular_values(matrix, top)
    return Spectrum(singular, _ranks_without_tail(matrix, float(singular[0])))


def kept_values(positions: int) -> int:
    """How many singular values there are by default."""
    return positions if positions <= EXACT else TOP


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


def largest_singular_values(matrix: Square, top: int) -> Float[np.ndarray, " rank"]:
    """The largest singular values of a matrix, by subspace iteration from random directions (Halko et al., arXiv 0909.4061).

    What it gives can only be too small, and is repeated until no value moves by more than 1e-10 of the largest; in spectra
    that hardly fall off (a token's attention to itself) this takes too long, and all values are computed. No Gram matrix of the
    whole is made, which would halve the digits.
    """
    width = min(top + _SPARE, len(matrix))
    basis = np.linalg.qr(matrix @ np.random.default_rng(0).standard_normal((len(matrix), width)))[0]
    before = np.zeros(top)
    for _ in range(_ROUNDS):
        back = matrix.T @ basis
        found = np.linalg.svd(back, compute_uv=False)[:top]
        if np.abs(found - before).max() <= _SETTLED * found[0]:
            return found
        before = found
        basis = np.linalg.qr(matrix @ np.linalg.qr(back)[0])[0]
    return np.linalg.svd(matrix, compute_uv=False)[:top]


def contraction(weights: Square) -> float:
    """κ = ‖ΠA‖₂, with Π removing the mean over queries."""
    centred = weights - weights.mean(0)
    if len(weights) > EXACT:
        return float(largest_singular_values(centred, 1)[0])
    # Of the largest singular value alone the Gram matrix loses no digits.
    return float(np.sqrt(max(np.linalg.eigvalsh(centred @ centred.T)[-1], 0.0)))


def dobrushin(weights: Square) -> float:
    """δ = ½ max‖A_m − A_n‖₁ over pairs of queries; beyond 512 queries over pairs of 512 drawn ones, a lower bound."""
    if len(weights) < 2:
        return 0.0
    if len(weights) > EXACT:
        weights = weights[np.sort(np.random.default_rng(0).permutation(len(weights))[:SAMPLED])]
    return float(torch.nn.functional.pdist(torch.from_numpy(np.ascontiguousarray(weights)), p=1.0).max()) / 2


def eigenvalues(weights: Square) -> np.ndarray:
    """Complex eigenvalues, the largest first; of a causal pattern its diagonal, of any other beyond 512 positions NaN."""
    if not np.triu(weights, 1).any():
        found = np.diagonal(weights).astype(complex)
    elif len(weights) > EXACT:
        return np.full(len(weights), np.nan + 0j)
    else:
        found = np.linalg.eigvals(weights).astype(complex)
    return found[np.lexsort((-np.imag(found), -np.real(found), -np.round(np.abs(found), 12)))]


def _ranks_without_tail(matrix: Square, largest: float) -> dict[str, float]:
    energy = float((matrix**2).sum())
    fourth = float(((matrix.T @ matrix) ** 2).sum())
    known = {"stable_rank": energy / largest**2, "participation_ratio": energy**2 / fourth} if energy else {}
    return {name: known.get(name, float("nan")) for name in RANKS}


def _entropy(shares: np.ndarray) -> np.ndarray:
    return np.asarray(entr(shares).sum(-1))
