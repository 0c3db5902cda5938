"""What has been said of the angles of a Three-Phase model and of the means of its phases, held against controls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
import xarray as xr

from lens.base.errors import InputError
from lens.probes.dataset import exact
from lens.probes.theta_drift import published_drift
from lens.probes.verdict import judged

PAPER, OURS = "Abu Ayyash, arXiv 2604.14430", "ours"
THREE, DEEP, STILL = "three-phase-n3", "three-phase-12-blocks", "no-theta-decay"
_HORNLESS, _ROPE = "three-phase-no-horn", "three-phase-rope-only"
_CONTROLS = {THREE: f"three-phase-{STILL}", DEEP: f"{DEEP}-{STILL}"}


def drift_profile(family: xr.Dataset, recipe: str = THREE) -> xr.Dataset:
    """Drift of the angles of one member, of its control without decay on angles, of decay alone, and as it is published.

    Args:
        family: from `phase_family`.
        recipe: one of its members with angles.

    Returns:
        Dataset over `seed`, `looked_at` and `block`, radians, the member's own places only:

        - `mean_drift`, `spread`, `rms[seed, looked_at, block]`, as in `theta_drift`; `decay_drift[block]`, what decay alone gives
          by the end; `initial[block]`;
        - `control_mean_drift`, `control_spread`: of the same training without decay on angles; NaN where there is none;
        - `published_mean_drift[block]`: of the published block that began at the same angle; NaN where none did.

    Attributes: `recipe`, `title`, and `control`, the control's recipe or nothing.

    Raises:
        InputError: no such member, or one without angles.
    """
    own = _member(family, recipe)
    control = _CONTROLS.get(recipe, "")
    has = control in family["recipe"].to_numpy()
    other = family.sel(recipe=control).reindex_like(own) if has else own * np.nan
    published = published_drift()
    begun = published["initial"].to_numpy()
    near = np.abs(begun[:, None] - own["initial"].to_numpy()).argmin(0)
    same = np.abs(begun[near] - own["initial"].to_numpy()) < 1e-3  # as it is rounded
    dims = ("seed", "looked_at", "block")
    found = {name: _drift_of(own[name], dims, words) for name, words in _COURSES.items()}
    found |= {f"control_{name}": _drift_of(other[name], dims, f"{_COURSES[name]}, no decay on angles")
              for name in ("mean_drift", "spread")}  # fmt: skip
    found |= {name: exact(("block",), own[name].to_numpy(), words, "radian") for name, words in _OF_BLOCKS.items()}
    found["published_mean_drift"] = exact(
        ("block",), np.where(same, published["mean_drift"].to_numpy()[near], np.nan), "published mean drift", "radian"
    )
    title = str(family["title"].sel(recipe=recipe).item())
    facts = {**family.attrs, "probe": "drift_profile", "recipe": recipe, "title": title, "control": control if has else ""}
    return xr.Dataset(found, {name: own[name].variable for name in dims}, facts)


_OF_BLOCKS = {"initial": "angle that all pairs started from", "decay_drift": "drift by weight decay alone"}
_COURSES = {"mean_drift": "mean drift of a block", "spread": "drifts of pairs around their mean", "rms": "root mean square drift"}


def _member(family: xr.Dataset, recipe: str) -> xr.Dataset:
    """One recipe's angles, without the places and seeds that only others have."""
    known = family["recipe"].to_numpy().tolist()
    turning = [name for name in known if np.isfinite(family["mean_drift"].sel(recipe=name)).any()]
    if recipe not in turning:
        raise InputError(f"{recipe} is no member with angles", f"one of {', '.join(turning)}", THREE)
    names = [*_COURSES, *_OF_BLOCKS]
    found = family[names].sel(recipe=recipe, drop=True)
    for place in ("block", "seed", "looked_at"):
        found = found.dropna(place, how="all", subset=list(_COURSES))
    return found.assign({name: found[name].isel(seed=0, drop=True) for name in _OF_BLOCKS})


def _drift_of(values: xr.DataArray, dims: tuple[str, ...], words: str) -> xr.Variable:
    return exact(dims, values.transpose(*dims).to_numpy(), words, "radian")


# -- numbers of one training ------------------------------------------------------------------------


def at_the_end(one: xr.Dataset, recipe: str) -> xr.Dataset:
    """Drift of the blocks of one recipe and seed after its last update."""
    return _trimmed(one[["mean_drift", "spread", "rms", "initial"]].sel(recipe=recipe))


def _trimmed(one: xr.Dataset) -> xr.Dataset:
    return one.dropna("looked_at", how="all", subset=["mean_drift"]).isel(looked_at=-1).dropna("block")


def drifted_less(rms: np.ndarray) -> float:
    """Share of the other blocks that drift less than the first one: 1 less one block's share if it is one end of a U."""
    return float((rms[1:] < rms[0]).mean())


def depth_order(rms: np.ndarray) -> float:
    """Spearman's correlation of drift with depth: 1 if every block drifts more than the one before."""
    found: Any = scipy.stats.spearmanr(np.arange(len(rms)), rms)
    return float(found.statistic)


def drift_slope(initial: np.ndarray, drift: np.ndarray) -> tuple[float, float]:
    """Slope and constant of the line through mean drifts over the angles at which blocks began."""
    slope, constant = np.polyfit(initial, drift, 1)
    return float(slope), float(constant)


def shared_part(drift: float, rms: float) -> float:
    """Share of a block's squared drift that all its pairs have in common."""
    return drift**2 / rms**2


def _first_end(one: xr.Dataset, recipe: str) -> float:
    return drifted_less(at_the_end(one, recipe)["rms"].to_numpy())


def _order(one: xr.Dataset, recipe: str) -> float:
    return depth_order(at_the_end(one, recipe)["rms"].to_numpy())


def _slope(one: xr.Dataset, recipe: str) -> float:
    last = at_the_end(one, recipe)
    return drift_slope(last["initial"].to_numpy(), last["mean_drift"].to_numpy())[0]


def _made_by_decay(one: xr.Dataset, recipe: str) -> float:
    return 1 - _slope(one, _CONTROLS[recipe]) / _slope(one, recipe)


def _shared(one: xr.Dataset, recipe: str) -> float:
    last = at_the_end(one, recipe).isel(block=-1)
    return shared_part(float(last["mean_drift"]), float(last["rms"]))


def _own_ways(one: xr.Dataset, recipe: str) -> float:
    last = at_the_end(one, recipe)["spread"].to_numpy()
    return float(last[-1] / last[0])


def _residual(one: xr.Dataset, recipe: str) -> np.ndarray:
    """Size of the sum of phase means of the embedded tokens, by look."""
    return np.abs(one["residual"].sel(recipe=recipe, layer=0).dropna("looked_at").to_numpy())


def _settled(one: xr.Dataset) -> float:
    course = _residual(one, _HORNLESS)
    return float(course[0] - course[-1])


def _mean_spread(one: xr.Dataset, recipe: str) -> float:
    means = one["phase_mean"].sel(recipe=recipe, layer=0).dropna("looked_at", how="all").isel(looked_at=-1).dropna("phase")
    return float(means.max() - means.min())


# -- verdicts ---------------------------------------------------------------------------------------


class DriftClaim(NamedTuple):
    """A statement about numbers of one seed, as in `lens.probes.phase_claims`; `published` is NaN where there is no number."""

    claim: str
    source: str
    trained: str
    measured: str
    published: float
    threshold: float
    statistic: Callable[[xr.Dataset], float]


def drift_verdicts(family: xr.Dataset) -> list[dict[str, Any]]:
    """The claims about drift and about phase means beside what the family says, with intervals over seeds.

    Thresholds are ours: the paper gives none. An interval is Student's t over the seeds that have the trainings.

    Args:
        family: from `phase_family`.

    Returns:
        Rows of `claim`, `source`, `trained` (which models), `measured` (what the number is), `published`, `threshold`, `value`
        (mean over seeds), `low`, `high` (95 %), `seeds`, `verdict`: `holds`, `fails`, `open`; `one run`, which has a value and
        no interval; `untested` without any.
    """
    seeds = [family.sel(seed=seed) for seed in family["seed"].to_numpy()]
    return [_row(claim, [value for one in seeds if np.isfinite(value := _of_seed(claim, one))]) for claim in CLAIMS]


def _row(claim: DriftClaim, values: list[float]) -> dict[str, Any]:
    told = judged(values if len(values) > 1 else [np.nan], claim.threshold)
    if len(values) == 1:
        told |= {"value": round(values[0], 3), "verdict": "one run"}
    published = None if np.isnan(claim.published) else round(float(claim.published), 3)
    return {"claim": claim.claim, "source": claim.source, "trained": claim.trained, "measured": claim.measured,
            "published": published, "threshold": claim.threshold, **told, "seeds": len(values)}  # fmt: skip


def _of_seed(claim: DriftClaim, one: xr.Dataset) -> float:
    """NaN of a seed that lacks a member."""
    try:
        return float(claim.statistic(one))
    except (KeyError, IndexError):
        return np.nan


_THEN = published_drift()
_RMS, _SHIFT, _START = (_THEN[name].to_numpy() for name in ("rms", "mean_drift", "initial"))
_FOUR, _TWELVE = "4 blocks, N = 3", "12 blocks, N = 3"
_GONE = "part of the slope of drift on initial angle that goes without decay"
CLAIMS: tuple[DriftClaim, ...] = (
    DriftClaim("Drift is largest at both ends", PAPER, _TWELVE, "share of later blocks that drift less than the first",
               drifted_less(_RMS), 0.9, lambda one: _first_end(one, DEEP)),
    DriftClaim("Drift grows with depth", PAPER, _TWELVE, "rank correlation of drift and depth",
               depth_order(_RMS), 0.8, lambda one: _order(one, DEEP)),
    DriftClaim("Drift grows with depth", PAPER, _FOUR, "rank correlation of drift and depth",
               1.0, 0.8, lambda one: _order(one, THREE)),
    DriftClaim("Weight decay makes the profile", OURS, _TWELVE, _GONE,
               np.nan, 0.5, lambda one: _made_by_decay(one, DEEP)),
    DriftClaim("Weight decay makes the profile", OURS, _FOUR, _GONE,
               np.nan, 0.5, lambda one: _made_by_decay(one, THREE)),
    DriftClaim("A block drifts by one angle", OURS, _TWELVE, "last block: shared part of squared drift",
               shared_part(_SHIFT[-1], _RMS[-1]), 0.8, lambda one: _shared(one, DEEP)),
    DriftClaim("A block drifts by one angle", OURS, _FOUR, "last block: shared part of squared drift",
               np.nan, 0.8, lambda one: _shared(one, THREE)),
    DriftClaim("A block drifts by one angle without decay, too", OURS, _FOUR, "last block: shared part of squared drift",
               np.nan, 0.8, lambda one: _shared(one, _CONTROLS[THREE])),
    DriftClaim("Pairs go their own ways in the last block", PAPER, _FOUR, "spread over pairs: last block over first",
               np.nan, 1.5, lambda one: _own_ways(one, THREE)),
    DriftClaim("Phase means balance themselves without a horn", PAPER, "no horn", "fall of |sum of phase means| in training",
               np.nan, 0.0, _settled),
    DriftClaim("Phases balance better than a cut that means nothing", PAPER, "no horn; RoPE only",
               "RoPE only less no horn: spread of phase means", np.nan, 0.0,
               lambda one: _mean_spread(one, _ROPE) - _mean_spread(one, _HORNLESS)),
)  # fmt: skip
