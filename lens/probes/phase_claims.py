"""What has been said of the Three-Phase transformer's loss, held against controls that were trained beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
import xarray as xr

from lens.base.errors import InputError
from lens.probes.phase_family import detectable, seed_noise
from lens.probes.phase_published import SWEEP, published_runs
from lens.probes.verdict import judged

PAPER, OURS = "arXiv 2604.14430", "ours, from no paper"
FIRST = 10  # positions at the start of a window, where the horn is more than a hundredth of the energy
_THREE, _ROPE, _SCALED = "three-phase-n3", "three-phase-rope-only", "three-phase-rope-only-scaled"
_SWEPT = {count: f"three-phase-n{count}" for count in SWEEP}

Statistic = Callable[[xr.Dataset], float]


class Claim(NamedTuple):
    """A statement about numbers of one seed.

    Attributes:
        claim: in words.
        source: who says so.
        control: what the model is compared with.
        measured: what the number is.
        published: the number of the source, NaN where it has none.
        threshold: from which the claim holds.
        statistic: of one seed's part of the family.
        paired: whether it is a plain difference of two losses in per cent, for which the plan's power is known.
    """

    claim: str
    source: str
    control: str
    measured: str
    published: float
    threshold: float
    statistic: Statistic
    paired: bool = True


def phase_verdicts(family: xr.Dataset) -> list[dict[str, Any]]:
    """The claims about loss beside what the family says, with intervals over seeds.

    Thresholds are half of the published effect where there is one (5 % for the gap to the baseline), and ours elsewhere. An
    interval is Student's t of the paired numbers of all seeds that have both runs; three seeds give a wide one.

    Args:
        family: from `phase_family`.

    Returns:
        Rows of `claim`, `source`, `control` (what was trained beside it), `measured` (what the number is; losses are means over
        both corpora), `published`, `threshold`, `value` (mean over seeds), `low`, `high` (95 %), `seeds`, `verdict`
        (`holds`, `fails`, `open`, or `untested` with fewer than two seeds), and `detectable`: the smallest effect that the
        plan would have told from 0 four times in five, where the number is a difference of two losses.
    """
    seeds = [family.sel(seed=seed) for seed in family["seed"].to_numpy()]
    noise = _noise(family)
    rows = []
    for claim in CLAIMS:
        values = [value for value in (_of_seed(claim.statistic, one) for one in seeds) if not np.isnan(value)]
        told = judged(values if len(values) > 1 else [np.nan], claim.threshold)
        power = round(100 * float(np.expm1(detectable(noise, len(values)))), 1) if claim.paired and len(values) > 1 else np.nan
        rows.append(
            {"claim": claim.claim, "source": claim.source, "control": claim.control, "measured": claim.measured,
             "published": claim.published, "threshold": claim.threshold, **told, "seeds": len(values), "detectable": power}
        )  # fmt: skip
    return rows


def _noise(family: xr.Dataset) -> float:
    try:
        return seed_noise(family)
    except InputError:
        return np.nan


def _of_seed(statistic: Statistic, one: xr.Dataset) -> float:
    try:
        return float(statistic(one))
    except KeyError:  # a member that the family lacks
        return np.nan


# -- numbers of one seed ------------------------------------------------------------------------------------------------


def loss(one: xr.Dataset, recipe: str) -> float:
    """Held-out loss, mean over corpora, nats per token."""
    return float(one["test_loss"].sel(recipe=recipe).mean("corpus_name", skipna=False))


def cost(one: xr.Dataset, recipe: str, other: str) -> float:
    """By how many per cent the perplexity of one member is above that of another."""
    return 100 * (np.exp(loss(one, recipe) - loss(one, other)) - 1)


def saved(one: xr.Dataset, recipe: str, other: str) -> float:
    """By how many per cent the perplexity of one member is below that of another, as it is published."""
    return 100 * (1 - np.exp(loss(one, recipe) - loss(one, other)))


def first_cost(one: xr.Dataset, recipe: str, other: str) -> float:
    """As `cost`, at the first ten positions of a window."""
    losses = one["position_loss"].isel(position=slice(FIRST)).mean(("corpus_name", "position"), skipna=False)
    return 100 * (np.exp(float(losses.sel(recipe=recipe) - losses.sel(recipe=other))) - 1)


def closed_gap(one: xr.Dataset) -> float:
    """Share of the gap between three phases and the published baseline that the baseline closes by leaving √d out."""
    return (loss(one, _SCALED) - loss(one, _ROPE)) / (loss(one, _SCALED) - loss(one, _THREE))


def sweep_cost(one: xr.Dataset) -> float:
    """Per cent of perplexity from one phase to twelve, on a straight line through all seven losses over ln N."""
    losses = [loss(one, name) for name in _SWEPT.values()]
    return 100 * (np.exp(np.polyfit(np.log(list(_SWEPT)), losses, 1)[0] * np.log(12)) - 1)


def sweep_order(one: xr.Dataset) -> float:
    """Spearman's correlation between the number of phases and the loss: 1 if every larger number is worse."""
    losses = [loss(one, name) for name in _SWEPT.values()]
    return np.nan if np.isnan(losses).any() else float(scipy.stats.spearmanr(list(_SWEPT), losses).statistic)


def speed_up(one: xr.Dataset, recipe: str, other: str) -> float:
    """Updates that another member needs to a held-out loss, over those that one needs.

    The loss is the higher of both last ones, so that both reach it; between two looks it is taken to fall on a line.
    """
    looked_at = one["looked_at"].to_numpy()
    courses = [one["validation_loss"].sel(recipe=name).to_numpy() for name in (recipe, other)]
    target = max(course[-1] for course in courses)
    steps = [_reached(looked_at, course, target) for course in courses]
    return steps[1] / steps[0]


def _reached(looked_at: np.ndarray, course: np.ndarray, target: float) -> float:
    if np.isnan(course).any():
        return np.nan
    place = int(np.argmax(course <= target))
    if place == 0:
        return np.nan  # before the first update
    before, after = course[place - 1], course[place]
    share = (before - target) / (before - after)
    return float(looked_at[place - 1] + share * (looked_at[place] - looked_at[place - 1]))


def _published_sweep() -> tuple[float, float]:
    losses = published_runs()["sweep_loss"].to_numpy()
    slope = np.polyfit(np.log(list(SWEEP)), losses, 1)[0]
    order = scipy.stats.spearmanr(list(SWEEP), losses).statistic
    return round(100 * float(np.exp(slope * np.log(12)) - 1), 1), round(float(order), 2)


_LINE, _ORDER = _published_sweep()
CLAIMS: tuple[Claim, ...] = (
    Claim("Three phases beat a RoPE-only model", f"{PAPER}, Exp. 11", "RoPE only, embedding × √d", "% of perplexity saved",
          7.2, 5.0, lambda one: saved(one, _THREE, _SCALED)),
    Claim("They beat one with their own embedding, too", OURS, "RoPE only, no √d", "% of perplexity saved",
          np.nan, 5.0, lambda one: saved(one, _THREE, _ROPE)),
    Claim("The multiplier √d explains the gap", OURS, "RoPE only, with and without √d", "share of the gap closed without √d",
          np.nan, 0.9, closed_gap, paired=False),
    Claim("Rotation of the stream carries the model", PAPER, "no rotation", "% of perplexity lost",
          np.nan, 1.0, lambda one: cost(one, "three-phase-no-rotation", _THREE)),
    Claim("Learning the angles matters", PAPER, "angles frozen", "% of perplexity lost",
          np.nan, 1.0, lambda one: cost(one, "three-phase-frozen-theta", _THREE)),
    Claim("The horn helps", f"{PAPER}, Exp. 9", "no horn", "% of perplexity lost",
          0.5, 0.25, lambda one: cost(one, "three-phase-no-horn", _THREE)),
    Claim("It helps the first ten positions", OURS, "no horn", "% of perplexity lost there",
          np.nan, 0.25, lambda one: first_cost(one, "three-phase-no-horn", _THREE)),
    Claim("Three phases are worse than one", f"{PAPER}, Exp. 13", "one phase", "% of perplexity lost",
          2.0, 1.0, lambda one: cost(one, _THREE, "three-phase-n1")),
    Claim("The more phases, the worse", f"{PAPER}, Exp. 13", "1 to 12 phases, heads fixed", "% lost from 1 to 12, fitted line",
          _LINE, 2.3, sweep_cost, paired=False),
    Claim("Every larger number is worse", f"{PAPER}, Exp. 13", "1 to 12 phases, heads fixed", "rank correlation of N and loss",
          _ORDER, 0.9, sweep_order, paired=False),
    Claim("Weight decay of the angles costs loss", OURS, "angles spared from decay", "% of perplexity lost",
          np.nan, 0.5, lambda one: cost(one, _THREE, "three-phase-no-theta-decay")),
    Claim("Three phases learn 1.93 times as fast", f"{PAPER}, Exp. 11", "RoPE only, embedding × √d", "updates to one loss, ratio",
          1.93, 1.5, lambda one: speed_up(one, _THREE, _SCALED), paired=False),
    Claim("So they do beside their own embedding", OURS, "RoPE only, no √d", "updates to one loss, ratio",
          np.nan, 1.5, lambda one: speed_up(one, _THREE, _ROPE), paired=False),
)  # fmt: skip
