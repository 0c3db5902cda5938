"""How large the base must be for the kernel of relative positions to stay positive over a context.

Men et al., arXiv 2405.14591: where queries and keys are alike, `Σ cos(θ_iδ)` is by how much a similar key is expected to
outscore a random one at distance δ. Bases that keep it positive up to the context are no interval: windows open and
close. Two numbers are therefore given, on the grid of bases `10^(k/600)`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files

import numpy as np
import scipy.optimize
import scipy.special
import xarray as xr

from lens.base.errors import InputError
from lens.base.provenance import library_versions
from lens.probes.dataset import exact, variable
from lens.probes.rope import KERNEL, Lanes, first_negative, kernel_values

STEPS_PER_DECADE = 600
LOOKED_ABOVE = 100.0  # times the infimum: how far up failures are looked for

PUBLISHED = {
    1: 4.3e3, 2: 1.6e4, 4: 2.7e4, 8: 8.4e4, 16: 3.1e5, 32: 6.4e5, 64: 2.1e6, 128: 7.8e6, 256: 3.6e7, 512: 6.4e7, 1000: 5.1e8,
}  # fmt: skip
"""Lower bounds of the base as Men et al. give them, of 128 rotary dimensions, by thousands of tokens (1M as 1000)."""

WIDTHS = (16, 32, 64, 80, 96, 128, 192, 256)
CONTEXTS = tuple(sorted({*(2**k for k in range(8, 21)), 163_840, 1_010_000}))
"""With these rotary widths, and contexts in tokens, the package's own table can do without a search."""

_RECORD = "rope-minimum-bases.json"
_BATCH = 64  # bases tried at one offset together
_NEAR = 512  # offsets looked at first, around the last one that failed


@dataclass(frozen=True)
class MinimumBase:
    """Smallest bases that keep the kernel from falling below zero at any integer offset up to the context.

    Attributes:
        infimum: the smallest base of the grid that does; larger ones may fail again.
        safe: from here on every base of the grid does, up to a hundred times the infimum.
    """

    infimum: float
    safe: float


def minimum_bases(contexts: Sequence[int], widths: Sequence[int]) -> xr.Dataset:
    """The smallest bases for several contexts and rotary widths.

    Args:
        contexts: tokens.
        widths: rotary dimensions of a head; even, four or more.

    Returns:
        Dataset with `infimum` and `safe` over `context` and `width`; the limit of many lanes is 1.622 times the context.
        Pairs that the package's own table holds are read from it, others computed: see `min_base`.

    Raises:
        InputError: a context or width for which there is none.
    """
    found = [[known_min_base(context, width) for width in widths] for context in contexts]
    dims = ("context", "width")
    return xr.Dataset(
        {
            "infimum": exact(dims, np.array([[one.infimum for one in row] for row in found]), "smallest base that does"),
            "safe": exact(dims, np.array([[one.safe for one in row] for row in found]), "base from which every base does"),
        },
        coords={
            "context": variable(("context",), np.array(contexts), "context", "tokens"),
            "width": variable(("width",), np.array(widths), "rotary dimensions of a head"),
        },
        attrs={"source": KERNEL, "probe": "minimum_bases", "steps_per_decade": STEPS_PER_DECADE, **library_versions()},
    )


def published_minimum_bases() -> xr.Dataset:
    """The published lower bounds of the base beside the computed ones, for 128 rotary dimensions.

    Returns:
        Dataset over `published_context` (thousands of tokens): `published` base; `first_negative` with it, over
        `thousand` (a k of 1000 or of 1024 tokens), NaN where it keeps the kernel positive as it should; `infimum` and `safe`
        at a k of 1024, and `ratio`, the infimum as a share of the published base.
    """
    thousands, bases = np.array(list(PUBLISHED)), np.array(list(PUBLISHED.values()))
    contexts = 1024 * np.where(thousands == 1000, 1024, thousands)
    computed = minimum_bases(contexts.tolist(), [128]).isel(width=0).drop_vars(("context", "width"))
    ours = computed.rename_dims(context="published_context")
    exponents = -2 * np.arange(64) / 128
    found = [
        [first_negative(base**exponents, int(context)) for context in (1000 * thousand, exactly)]
        for base, thousand, exactly in zip(bases, thousands, contexts, strict=True)
    ]
    negative = np.array([[np.nan if first is None else first for first in row] for row in found])
    ratio = ours.infimum.to_numpy() / bases
    return (
        ours.assign(
            published=exact(("published_context",), bases, "published lower bound of the base"),
            first_negative=exact(("published_context", "thousand"), negative, "first offset below zero with it", "tokens"),
            ratio=exact(("published_context",), ratio, "computed infimum as a share of the published bound"),
        )
        .assign_coords(
            published_context=variable(("published_context",), thousands, "context", "thousand tokens"),
            thousand=variable(("thousand",), np.array([1000, 1024]), "tokens in a k"),
        )
        .assign_attrs(probe="published_minimum_bases")
    )


def known_min_base(context: int, width: int) -> MinimumBase:
    """`min_base`, from the package's own table where it is there."""
    return _shipped().get((context, width)) or min_base(context, width)


@cache
def base_per_token() -> float:
    """Required base per token of context in the limit of many lanes: 1.622.

    The sum becomes `Ci(δ) − Ci(δ/b)` up to a factor, which first falls to zero near the first zero of the cosine integral.
    """
    return 1 / scipy.optimize.root_scalar(lambda x: scipy.special.sici(x)[1], bracket=(0.3, 1.0), xtol=1e-14).root


@lru_cache(maxsize=256)
def min_base(context: int, width: int) -> MinimumBase:
    """Search the grid `10^(k/600)`: upward for the infimum, then downward from a hundred times that for the safe base.

    Windows of feasible bases that are narrower than 0.4 % can be missed. Cost on one core: half a second at 4,096
    tokens, four at 131,072; results are kept in the process.

    Raises:
        InputError: a width below four, with which every base fails at the second token, or a context out of bounds.
    """
    if width < 4 or width % 2:
        raise InputError(f"The rotary width is {width}", "an even number, four or more", "width=128")
    exponents = -2 * np.arange(width // 2) / width
    first = _first_feasible(context, exponents)
    last = first + round(STEPS_PER_DECADE * np.log10(LOOKED_ABOVE))
    failing = (k for k in range(last, first, -1) if first_negative(_theta(k, exponents), context) is not None)
    return MinimumBase(_base(first), _base(next(failing, first - 1) + 1))


def _first_feasible(context: int, exponents: Lanes) -> int:
    """Index of the first base of the grid, above 1, that never fails."""
    k, failed = 1, 2
    while True:
        # Most bases fail where the one before them did, so that one offset is tried for many of them first.
        theta = 10 ** np.multiply.outer(np.arange(k, k + _BATCH) / STEPS_PER_DECADE, exponents)
        open_ones = np.flatnonzero(np.cos(min(failed, context) * theta).sum(axis=1) >= 0)
        if not open_ones.size:
            k += _BATCH
            continue
        k += int(open_ones[0])
        found = _any_negative(theta[open_ones[0]], context, failed)
        if found is None:
            return k
        failed = found


def _any_negative(theta: Lanes, context: int, near: int) -> int | None:
    start = max(1, near - _NEAR // 2)
    values = kernel_values(theta, min(_NEAR, context + 1 - start), start=start)
    lowest = int(values.argmin())
    return start + lowest if values[lowest] < 0 else first_negative(theta, context)


def _theta(k: int, exponents: Lanes) -> Lanes:
    return 10 ** (k / STEPS_PER_DECADE * exponents)


def _base(k: int) -> float:
    return float(10 ** (k / STEPS_PER_DECADE))


@cache
def _shipped() -> dict[tuple[int, int], MinimumBase]:
    """By context and width, as `min_base` found them; see the record's own `command`."""
    table = json.loads(files("lens.records").joinpath(_RECORD).read_text(encoding="utf-8"))
    return {(context, width): MinimumBase(_base(low), _base(high)) for context, width, low, high in table["grid_steps"]}
