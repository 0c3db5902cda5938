"""Kernel attention with relative positions in O(T log T): Toeplitz products by the fast Fourier transform.

Softmax attention is quadratic because each weight is a function of one query and one key together. With features φ in the
place of the exponential, and a bias by offset alone, numerator and denominator are products of a Toeplitz matrix with columns
that know the keys only, and a Toeplitz matrix sits in a circulant of twice its size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from lens.base.errors import InputError
from lens.base.provenance import library_versions
from lens.probes.dataset import exact

SOURCE = (
    "Luo et al., Stable, Fast and Accurate: Kernelized Attention with Relative Positional Encoding, NeurIPS 2021 "
    "(arXiv 2106.12566), section 3; features: Choromanski et al., arXiv 2009.14794"
)
_DIGITS = 1e-6  # relative error of a denominator, above which a row is refused
_ROUNDING = 4 * float(np.finfo(float).eps)  # of one transform, times its size's logarithm


def relative_kernel(
    query: Tensor | np.ndarray,
    key: Tensor | np.ndarray,
    value: Tensor | np.ndarray,
    bias: Tensor | np.ndarray,
    *,
    features: int = 64,
    seed: int = 0,
    causal: bool = True,
) -> xr.Dataset:
    """Attention with positive random features of unit-norm queries and keys, and a bias by offset, without a pattern.

    Row i is Σⱼ w_ij v_j / Σⱼ w_ij with w_ij = exp(b_{j−i}) · φ(q_i)·φ(k_j). The largest bias is taken away before the
    exponential, which changes no ratio: without that, a bias of 710 overflows.

    Args:
        query, key: `[position, width]`; each is scaled to length 1, because the variance of the features grows with the
            exponential of the squared length.
        value: `[position, value_width]`.
        bias: `[2 · position − 1]`, of offsets j − i from −(position − 1) to position − 1; those above 0 are not read where
            `causal`.
        features: random projections of each.
        seed: of the projections.
        causal: whether a query sees no later key.

    Returns:
        Dataset over `query` and `width`: `output`, and `denominator[query]`, the sum of a row's weights, in units of exp(max b).

    Cost: `(value_width + 1) · features` transforms of length 2 · position; O(position · log position) of each. Memory: as many
    columns of `position` complex numbers.

    Raises:
        InputError: shapes that do not fit, what is not finite, or a bias that leaves a row so little that rounding of the
            transform reaches its sixth digit (`relative_kernel_weights` is then the way).
    """
    sides = _sides(query, key, bias, features, seed, causal)
    values = _float64(value)
    if values.ndim != 2 or len(values) != len(sides.query) or not np.isfinite(values).all():
        found = f"The values have the shape {values.shape}, or are not finite"
        raise InputError(found, f"[{len(sides.query)}, width], finite", "one row for each position")
    carried = np.concatenate([values, np.ones((len(values), 1))], axis=-1)
    columns = sides.key[:, :, None] * carried[:, None, :]
    mixed = toeplitz_product(sides.decay, columns.reshape(len(columns), -1)).reshape(columns.shape)
    sums = np.einsum("im,imw->iw", sides.query, mixed)
    denominator = sums[:, -1]
    # What the transform of the denominator's columns can be off by, as each query reads it.
    off = _ROUNDING * np.log2(2 * len(values)) * np.linalg.norm(sides.decay) * sides.query @ np.linalg.norm(sides.key, axis=0)
    if (denominator * _DIGITS < off).any():
        row = int((denominator / off).argmin())
        raise InputError(
            f"The weights of query {row} add up to {denominator[row]:.2g} of the largest",
            f"more than {off[row] / _DIGITS:.2g}, which rounding leaves visible",
            "relative_kernel_weights, or a bias of a smaller range",
        )
    facts = {"source": SOURCE, "probe": "relative_kernel", "positions": len(values), "features": features, "seed": seed}
    return xr.Dataset(
        {
            "output": exact(("query", "width"), sums[:, :-1] / denominator[:, None], "attention output"),
            "denominator": exact(("query",), denominator, "sum of a row's weights, over that of the largest bias"),
        },
        {"query": exact(("query",), np.arange(len(values)), "position of the query")},
        {**facts, "causal": int(causal), "transform_length": 2 * len(values), **library_versions()},
    )


def relative_kernel_weights(
    query: Tensor | np.ndarray,
    key: Tensor | np.ndarray,
    bias: Tensor | np.ndarray,
    *,
    features: int = 64,
    seed: int = 0,
    causal: bool = True,
) -> Float[np.ndarray, "query key"]:
    """The pattern behind `relative_kernel`, entry by entry in O(position²): rows sum to 1. Arguments as there."""
    sides = _sides(query, key, bias, features, seed, causal)
    size = len(sides.query)
    offset = np.subtract.outer(np.arange(size), np.arange(size))
    weights = sides.decay[size - 1 - offset] * (sides.query @ sides.key.T)
    sums = weights.sum(-1, keepdims=True)
    if not (sums > 0).all():
        found = f"Query {int(sums.argmin())} has no weight that float64 can hold"
        raise InputError(found, "a bias within 700 of its largest for each query", "a bias of a smaller range")
    return weights / sums


def toeplitz_product(
    coefficients: Float[np.ndarray, " offset"], columns: Float[np.ndarray, "position column"]
) -> Float[np.ndarray, "position column"]:
    """T·x of a Toeplitz matrix T_ij = c_{j−i}, by circular convolution of length 2 · position.

    Args:
        coefficients: `[2 · position − 1]`, of offsets j − i from −(position − 1) to position − 1.
        columns: `[position, column]`.

    Raises:
        InputError: another number of coefficients.
    """
    size = len(columns)
    if coefficients.shape != (2 * size - 1,):
        raise InputError(
            f"There are {coefficients.shape} coefficients", f"{2 * size - 1}, one for each offset", "offsets −9 to 9"
        )
    # First column of the circulant: offsets 0, −1, …, then one that no entry uses, then those above 0 from the far end.
    first = np.concatenate([coefficients[size - 1 :: -1], [0.0], coefficients[: size - 1 : -1]])
    spectrum = np.fft.rfft(first)[:, None] * np.fft.rfft(columns, 2 * size, axis=0)
    return np.fft.irfft(spectrum, 2 * size, axis=0)[:size]


def positive_features(
    states: Float[np.ndarray, "position width"], projections: Float[np.ndarray, "feature width"]
) -> Float[np.ndarray, "position feature"]:
    """φ(x) = exp(ω·x − |x|²/2)/√features, whose products have the mean exp(x·y) over Gaussian projections ω."""
    return np.exp(states @ projections.T - (states**2).sum(-1, keepdims=True) / 2) / np.sqrt(len(projections))


@dataclass(frozen=True, eq=False)
class _Sides:
    """Features of unit queries and keys `[position, feature]`, and the exponential of the bias `[offset]`."""

    query: np.ndarray
    key: np.ndarray
    decay: np.ndarray


def _sides(
    query: Tensor | np.ndarray, key: Tensor | np.ndarray, bias: Tensor | np.ndarray, features: int, seed: int, causal: bool
) -> _Sides:
    states = [_float64(query), _float64(key)]
    if states[0].ndim != 2 or states[0].shape != states[1].shape or not len(states[0]):
        shapes = " and ".join(str(side.shape) for side in states)
        raise InputError(f"Queries and keys have the shapes {shapes}", "[position, width] for both", "one head's")
    if not all(np.isfinite(side).all() and side.any(-1).all() for side in states):
        raise InputError("A query or key is zero or not finite", "vectors that have a direction", "other states")
    if features < 1:
        raise InputError(f"There are {features} features", "at least 1", "features=64")
    size, given = len(states[0]), _float64(bias)
    if given.shape != (2 * size - 1,):
        raise InputError(f"The bias has the shape {given.shape}", f"({2 * size - 1},), one for each offset", "np.zeros")
    seen = given[:size] if causal else given
    if np.isnan(seen).any() or not np.isfinite(seen.max()):
        raise InputError("The bias has NaN or no finite largest value", "numbers, or −inf for what is not seen", "np.zeros")
    decay = np.zeros(2 * size - 1)
    decay[: len(seen)] = np.exp(seen - seen.max())
    projections = np.random.default_rng(seed).standard_normal((features, states[0].shape[1]))
    query_features, key_features = (
        positive_features(side / np.linalg.norm(side, axis=-1, keepdims=True), projections) for side in states
    )
    return _Sides(query_features, key_features, decay)


def _float64(values: Tensor | np.ndarray) -> np.ndarray:
    return values.detach().to("cpu", torch.float64).numpy() if isinstance(values, Tensor) else np.asarray(values, dtype=float)
