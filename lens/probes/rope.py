"""Rotary position embeddings on paper: frequencies, the kernel of relative positions, and the base that keeps it positive.

A lane is one plane of two rotary dimensions; it turns by θ radians from one token to the next. No model is needed here:
everything follows from the frequencies. Sources: Su et al., arXiv 2104.09864 (rotary embeddings); Men et al.,
arXiv 2405.14591 (the kernel must not fall below zero within the context).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Complex, Float
from numpy.typing import ArrayLike

from lens.base.errors import InputError
from lens.base.provenance import library_versions
from lens.models.frequencies import RopeTable, rope_table
from lens.probes.dataset import exact, texts, variable

FREQUENCIES = "arXiv 2104.09864, section 3.2 (θ); scaled kinds as in transformers' modeling_rope_utils"
KERNEL = "Men et al., arXiv 2405.14591 (B_m, the sum of the lanes' cosines)"
FAST = 32  # tokens; a lane with a shorter wavelength tells neighbours apart
BANDS = ("fast", "middle", "slow")
MOST_OFFSETS = 1 << 22

Lanes = Float[np.ndarray, " lane"]
Weights = Complex[np.ndarray, " weight"] | Float[np.ndarray, " weight"]


def rope_frequencies(
    kind: str = "default", *, base: float = 10_000.0, width: int = 128, context: int = 4096, **parameters: Any
) -> xr.Dataset:
    """How fast every lane of a rotary embedding turns.

    Args:
        kind: as in transformers' `rope_type`, or `ntk`, `proportional`, `explicit`; see `lens.models.frequencies`.
        base: the b in θ = b^(−2i/width).
        width: rotary dimensions of a head; there are half as many lanes.
        context: tokens that the turns are counted over.
        parameters: of the kind, by transformers' names (`factor`, `original_max_position_embeddings`, …).

    Returns:
        Dataset over `lane`, the fastest first: `theta` (radians per token), `wavelength` (tokens for one turn, infinite
        for a lane that stands still), `turns` over the context, `band` (`fast`: wavelength below 32 tokens; `slow`: longer
        than the context; `middle`), `treatment` (what the kind did to the lane, against `default` at the same base),
        and the scalar `attention_factor`, which multiplies cosine and sine, so that logits grow by its square.

    Raises:
        InputError: an unknown kind, a parameter it does not have or lacks, or a context of no tokens.
    """
    return frequencies_of(rope_table(kind, base, width, **parameters), context)


def frequencies_of(table: RopeTable, context: int) -> xr.Dataset:
    """The same, of a table that is there already: a model's own."""
    _require_context(context)
    wavelength = np.asarray(table.wavelength, dtype=np.float64)
    columns = {
        "theta": exact(("lane",), table.theta, "turn from one token to the next", "radians/token"),
        "wavelength": exact(("lane",), wavelength, "tokens for one turn", "tokens"),
        "turns": exact(("lane",), context * table.theta / (2 * np.pi), "turns over the context"),
        "band": texts(("lane",), bands(wavelength, context), "fast, middle or slow"),
        "treatment": texts(("lane",), list(table.treatment), "what the kind does to the lane"),
        "attention_factor": exact((), table.attention_factor, "factor on cosine and sine"),
    }
    settings = {"kind": table.kind, "base": float(table.base), "width": int(table.width), "context": int(context)}
    given = {f"parameter_{name}": _storable(value) for name, value in table.parameters.items() if value is not None}
    return xr.Dataset(
        columns,
        coords={"lane": variable(("lane",), np.arange(len(table.theta)), "rotary lane, the fastest first")},
        attrs={"source": FREQUENCIES, "probe": "rope_frequencies", **settings, **given, **library_versions()},
    )


def bands(wavelength: ArrayLike, context: int) -> list[str]:
    """`fast` (wavelength below 32 tokens), `slow` (longer than the context) or `middle`, for every lane."""
    tokens = np.asarray(wavelength, dtype=np.float64)
    return np.select([tokens < FAST, tokens > context], ["fast", "slow"], "middle").tolist()


def _storable(value: Any) -> str | int | float:
    if isinstance(value, bool) or not isinstance(value, (str, int, float, np.integer, np.floating)):
        return str(np.asarray(value).tolist())
    return value.item() if isinstance(value, np.generic) else value


# -- the kernel of relative positions -------------------------------------------------------------


def rope_kernel(table: RopeTable | Lanes, context: int, weights: Weights | None = None) -> xr.Dataset:
    """What the distance between two tokens alone does to a logit: `K(δ) = Re Σ z_i exp(iθ_iδ)`.

    Args:
        table: frequencies, or a table of them; its attention factor is left out.
        context: the largest offset δ; at most 4,194,304.
        weights: complex z of the lanes, as a head's mean query and key give them; ones by default, for which K is
            Men et al.'s B and counts lanes.

    Returns:
        Dataset with `kernel` over `offset` (0 to `context`; every integer, for the fastest lane turns once in 6.28
        tokens), in units of the weights, and the scalar `ceiling` Σ|z|, which no offset exceeds.
        Memory: 20 bytes an offset. Cost: 4 ms at 131,072 offsets of 64 lanes.

    Raises:
        InputError: no offsets or too many, or other weights than lanes.
    """
    theta = table.theta if isinstance(table, RopeTable) else np.asarray(table, dtype=np.float64)
    _require_context(context)
    factors = np.ones(len(theta)) if weights is None else np.asarray(weights)
    if factors.shape != theta.shape:
        raise InputError(f"The weights have shape {factors.shape}", f"one for each of {len(theta)} lanes", "weights=None")
    units = "lanes" if weights is None else "weight"
    return xr.Dataset(
        {
            "kernel": exact(("offset",), kernel_values(theta, context + 1, factors), "sum over the lanes", units),
            "ceiling": exact((), np.abs(factors).sum(), "bound of the kernel", units),
        },
        coords={"offset": variable(("offset",), np.arange(context + 1), "distance between query and key")},
        attrs={"source": KERNEL, "probe": "rope_kernel", "lanes": len(theta), "context": int(context), **library_versions()},
    )


def envelope(kernel: xr.Dataset, points: int = 1000) -> xr.Dataset:
    """Least and greatest value of a kernel in each of at most `points` runs of offsets, for a picture that hides no swing.

    Returns:
        Dataset over `offset` (the first of each run): `low`, `high`, and `last`, the run's last offset.

    Raises:
        InputError: less than one point.
    """
    if points < 1:
        raise InputError(f"{points} points", "one or more", "points=1000")
    values, offsets = kernel.kernel.to_numpy(), kernel.offset.to_numpy()
    size = -(-len(values) // points)
    starts = np.arange(0, len(values), size)
    units = kernel.kernel.attrs["units"]
    return xr.Dataset(
        {
            "low": exact(("offset",), np.minimum.reduceat(values, starts), "least of the run", units),
            "high": exact(("offset",), np.maximum.reduceat(values, starts), "greatest of the run", units),
            "last": variable(("offset",), offsets[np.append(starts[1:], len(values)) - 1], "last offset of the run"),
        },
        coords={"offset": variable(("offset",), offsets[starts], "first offset of the run")},
        attrs=kernel.attrs,
    )


def kernel_values(theta: Lanes, count: int, weights: Weights | None = None, start: int = 0) -> Float[np.ndarray, " offset"]:
    """K at the offsets `start` … `start + count − 1`, in float64.

    The addition theorem makes it two matrix products: `start + jn + i` turns by `θ(start + jn)`, then by `θi`.
    """
    rows = max(1, int(np.sqrt(count)))
    columns = -(-count // rows)
    coarse = np.exp(1j * np.multiply.outer(start + columns * np.arange(rows, dtype=np.float64), theta))
    if weights is not None:
        coarse *= weights
    fine = np.exp(-1j * np.multiply.outer(np.arange(columns, dtype=np.float64), theta))
    # The real part of a product with a conjugate is the product of the two as pairs of real numbers.
    return (coarse.view(np.float64) @ fine.view(np.float64).T).ravel()[:count]


def first_negative(theta: Lanes, context: int) -> int | None:
    """The first offset from 1 to `context` at which `Σ cos(θ_iδ)` is below zero; None if there is none.

    There a random key is expected to score higher than a similar one: Men et al., arXiv 2405.14591.
    """
    _require_context(context)
    return _first_negative(np.asarray(theta, dtype=np.float64).tobytes(), context)


@lru_cache(maxsize=1024)
def _first_negative(theta_bytes: bytes, context: int) -> int | None:
    """Kept, because a slider of anything else asks for the same lanes again."""
    theta, start, count = np.frombuffer(theta_bytes), 1, 256
    while start <= context:
        count = min(count, context + 1 - start)
        below = np.flatnonzero(kernel_values(theta, count, start=start) < 0)
        if below.size:
            return start + int(below[0])
        start, count = start + count, 2 * count
    return None


def _require_context(context: int) -> None:
    if not 1 <= context <= MOST_OFFSETS:
        raise InputError(f"The context is {context} tokens", f"1 to {MOST_OFFSETS:,}", "context=4096")
