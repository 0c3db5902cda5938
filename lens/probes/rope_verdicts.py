"""What every theory of the rotary base says of bases that a running model was turned to, beside what the model did.

The theories speak of models that were trained at a base. A model that is turned to one meets angles that it has never seen,
and may fail where a trained one would not. That it fails although a bound is met therefore says nothing of that bound; that
it works although a bound is not met says that the bound is not needed, by a model that was not even trained for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.probes.dataset import exact, texts, variable
from lens.probes.rope_bounds import THEORIES, allows, rope_bounds
from lens.probes.verdict import verdict


def bounds_to_try(context: int, layers: int, width: int, *, epsilon: float = 0.95) -> dict[str, float]:
    """The required base of every theory, by its name, as settings for `rope_sweep`; those of one base only once."""
    bounds = rope_bounds(context, layers, width, epsilon=epsilon)
    found = {theory.name: float(bounds[name]) for name, theory in THEORIES.items()}
    return {name: base for n, (name, base) in enumerate(found.items()) if base > 1 and base not in list(found.values())[:n]}


def rope_verdicts(sweep: xr.Dataset, *, tolerance: float = 0.1, epsilon: float = 0.95, lane: str = "stated") -> xr.Dataset:
    """Hold every theory of the base against a sweep of a running model, at the sweep's own window as context.

    A base fails where its cost is at least the tolerance, as far as the interval over documents can tell, and works where it
    is less; where the interval holds the tolerance it counts for nothing.

    Args:
        sweep: from `lens.probes.rope_sweep.rope_sweep`, over several bases and documents.
        tolerance: nats per token.
        epsilon, lane: of the theories, as in `lens.probes.rope_bounds.rope_bounds`.

    Returns:
        Dataset over `theory` and `base`:

        - `cost`, `cost_low`, `cost_high` over `[base]`, nats per token, and `outcome`: works, fails or open;
        - `allowed` over `[theory, base]`: whether the theory holds the base to be sufficient;
        - over `[theory]`: `required` base; of the bases that are not open `right`, the number whose outcome the theory
          foretold, `works_though_not_allowed` and `fails_though_allowed`;
        - `cost_short_of` and `cost_at`, nats per token: cost of the tried base nearest to the bound on the side that is not
          allowed, and on the one that is, with those bases in `base_short_of` and `base_at`; NaN where there is none.

        Attributes: `tolerance`, `decided` (bases that are not open), `works_from` and `works_to`, the least and the largest
        base that work without one that fails between them and the trained base, and `context`.

    Raises:
        InputError: fewer than two bases, or no intervals.
    """
    rows = sweep.isel(table=np.isin(sweep.kind.to_numpy(), ("base", "as trained"))).sortby("base")
    rows = rows.isel(table=np.unique(rows.base.to_numpy(), return_index=True)[1])
    if rows.sizes["table"] < 3 or bool(np.isnan(rows.cost_low).any()):
        found = f"The sweep has {rows.sizes['table'] - 1} other bases and {sweep.sizes['document']} documents"
        raise InputError(found, "two of each at least", "rope_sweep(model, corpus, [1e4, 1e6])")
    bases = rows.base.to_numpy().astype(float)
    words = {"holds": "fails", "fails": "works", "open": "open"}
    ends = zip(rows.cost_low.values.astype(float), rows.cost_high.values.astype(float), strict=True)
    outcome = np.array([words[verdict((low, high), at_least=tolerance)] for low, high in ends])
    context, trained = int(sweep.attrs["window"]), float(sweep.attrs["trained_base"])
    bounds = rope_bounds(context, int(sweep.attrs["blocks"]), int(sweep.attrs["width"]), epsilon=epsilon, lane=lane)
    found = [_against(name, bounds, bases, rows.cost.to_numpy(), outcome) for name in THEORIES]
    start, stop = _working(bases, outcome, trained)
    attrs = {"probe": "rope_verdicts", "tolerance": tolerance, "epsilon": epsilon, "lane": lane, "context": context}
    attrs |= {"decided": int((outcome != "open").sum()), "works_from": start, "works_to": stop, "trained_base": trained}
    costs = {name: variable(("base",), rows[name].to_numpy(), rows[name].attrs["long_name"], "nats") for name in _COSTS}
    return xr.Dataset(
        {
            **costs,
            "outcome": texts(("base",), outcome, "whether the model works at the base"),
            "allowed": variable(("theory", "base"), np.array([one["allowed"] for one in found]), "whether the theory allows it"),
            **{
                name: exact(("theory",), np.array([one[name] for one in found]), words, unit)
                for name, (words, unit) in _COLUMNS.items()
            },
        },
        coords={
            "theory": texts(("theory",), [theory.name for theory in THEORIES.values()], "hypothesis"),
            "base": exact(("base",), bases, "rotary base"),
        },
        attrs={**{name: sweep.attrs[name] for name in _KEPT}, **attrs, "source": bounds.attrs["source"]},
    )


_KEPT = ("model", "corpus", "tokens_scored")
_COSTS = ("cost", "cost_low", "cost_high")
_COLUMNS = {
    "required": ("required base", "1"),
    "right": ("bases whose outcome was foretold", "1"),
    "works_though_not_allowed": ("bases that work though the theory does not allow them", "1"),
    "fails_though_allowed": ("bases that fail though the theory allows them", "1"),
    "base_short_of": ("nearest base tried that is not allowed", "1"),
    "cost_short_of": ("cost at the nearest base tried that is not allowed", "nats"),
    "base_at": ("nearest base tried that is allowed", "1"),
    "cost_at": ("cost at the nearest base tried that is allowed", "nats"),
}


def _against(name: str, bounds: xr.Dataset, bases: np.ndarray, costs: np.ndarray, outcome: np.ndarray) -> dict[str, Any]:
    required = float(bounds[name])
    # A base that was tried because a theory asks for it has lost its last digits on the way.
    exact_bases = np.where(np.isclose(bases, required, rtol=1e-6), required, bases)
    allowed = np.array([allows(bounds, name, float(base)) for base in exact_bases])
    works, fails = outcome == "works", outcome == "fails"
    found: dict[str, Any] = {
        "required": required,
        "allowed": allowed,
        "right": (works & allowed).sum() + (fails & ~allowed).sum(),
        "works_though_not_allowed": (works & ~allowed).sum(),
        "fails_though_allowed": (fails & allowed).sum(),
    }
    for side, where in (("short_of", ~allowed), ("at", allowed)):
        places = np.flatnonzero(where)
        nearest = places[np.abs(np.log(bases[places] / required)).argmin()] if len(places) else None
        found[f"base_{side}"] = np.nan if nearest is None else bases[nearest]
        found[f"cost_{side}"] = np.nan if nearest is None else costs[nearest]
    return found


def _working(bases: np.ndarray, outcome: np.ndarray, trained: float) -> tuple[float, float]:
    """The least and the largest base that work, with none between them and the trained base that fails or is open."""
    here = int(np.flatnonzero(bases == trained)[0])
    low = high = here
    while low > 0 and outcome[low - 1] == "works":
        low -= 1
    while high < len(bases) - 1 and outcome[high + 1] == "works":
        high += 1
    return float(bases[low]), float(bases[high])


def breaking_points(sweep: xr.Dataset, *, cost: float = 3.0, average: int = 24) -> xr.Dataset:
    """The position from which on a turned model is lost, for every base of a sweep, and the slowest lane's phase there.

    Theories of the slowest lane say where in a text, and not only whether, a base fails: aliasing when that lane's phase is 2π,
    DC stability when it is arccos 0.95 = 0.318. Positions beyond the window are not seen.

    Args:
        sweep: from `lens.probes.rope_sweep.rope_sweep`.
        cost: nats per token above the trained model, from which on the model counts as lost.
        average: positions over which the cost is averaged, weighted by the windows that reach them.

    Returns:
        Dataset over `base`, of plain bases only: `position`, tokens, the middle of the first average above the cost, NaN where
        there is none; `slowest_phase`, radians: that position times `base^(−(1 − 2/width))`; and `highest_cost`, nats per
        token, the highest average in the window.

    Raises:
        InputError: a sweep without bases, or windows shorter than the average.
    """
    rows = sweep.isel(table=sweep.kind.to_numpy() == "base").sortby("base")
    if not rows.sizes["table"] or rows.sizes["position"] < average:
        found = f"The sweep has {rows.sizes['table']} bases and {rows.sizes['position']} positions"
        raise InputError(found, f"one base and {average} positions at least", "rope_sweep(model, corpus, [1e3], window=1024)")
    bases, weight, ones = rows.base.to_numpy().astype(float), sweep.scored.to_numpy().astype(float), np.ones(average)
    costs = (rows.loss - sweep.loss.isel(table=0)).to_numpy() * weight
    means = np.stack([np.convolve(row, ones, "valid") for row in costs]) / np.convolve(weight, ones, "valid")
    lost = means > cost
    position = np.where(lost.any(-1), lost.argmax(-1) + (average - 1) / 2, np.nan)
    phase = position * bases ** -(1 - 2 / int(sweep.attrs["width"]))
    return xr.Dataset(
        {
            "position": exact(("base",), position, "position from which on the model is lost", "tokens"),
            "slowest_phase": exact(("base",), phase, "phase of the slowest lane there", "radians"),
            "highest_cost": exact(("base",), means.max(-1), "highest average cost in the window", "nats"),
        },
        coords={"base": exact(("base",), bases, "rotary base")},
        attrs={**{name: sweep.attrs[name] for name in _KEPT}, "probe": "breaking_points", "cost": cost, "average": average,
               "source": "ours; theories of the slowest lane: arXiv 2602.10959"},
    )  # fmt: skip
