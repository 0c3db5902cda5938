"""What has been said of the Three-Phase transformer's loss, held against controls that were trained beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
import xarray as xr

from lens.base.errors import InputError
from lens.probes.phase_family import detectable, seed_noise
from lens.probes.phase_published import SWEEP, published_runs
from lens.probes.verdict import judged, verdict

PAPER, OURS = "Abu Ayyash, arXiv 2604.14430", "ours"
FIRST = 10  # positions at the start of a window, where the horn is more than a hundredth of the energy
_THREE, _ROPE, _SCALED = "three-phase-n3", "three-phase-rope-only", "three-phase-rope-only-scaled"
_SWEPT = {count: f"three-phase-n{count}" for count in SWEEP}

Contrast = Mapping[str, float]


class Claim(NamedTuple):
    """A statement about a number of one seed.

    Attributes:
        claim: in words.
        source: who says so.
        control: what the model is compared with.
        measured: what the number is.
        published: the number of the source, NaN where it has none.
        threshold: from which the claim holds.
        number: of one seed's part of the family; or weights of the members' losses, whose sum in nats is told in per cent
            of perplexity, so that the noise of all members says how well it is known.
        saved: whether per cent are counted downward, as they are published for the gap to the baseline.
    """

    claim: str
    source: str
    control: str
    measured: str
    published: float
    threshold: float
    number: Callable[[xr.Dataset], float] | Contrast
    saved: bool = False


def phase_verdicts(family: xr.Dataset) -> list[dict[str, Any]]:
    """The claims about loss beside what the family says, with intervals over seeds.

    Thresholds are half of the published effect where there is one (5 % for the gap to the baseline), and ours elsewhere. The
    interval is Student's t of the paired numbers of the seeds that have all runs: with three seeds it is wide. Where the
    number is a difference of losses there is a second one, whose noise is that of all members together, see `seed_noise`;
    it is narrower, and true if all members scatter alike.

    Args:
        family: from `phase_family`.

    Returns:
        Rows of `claim`, `source`, `control` (what was trained beside it), `measured` (what the number is; losses are means over
        both corpora), `published` (None where there is no figure), `threshold`, `value` (mean over seeds), `low`, `high` (95 %),
        `seeds`, `verdict`
        (`holds`, `fails`, `open`, or `untested` with fewer than two seeds); `pooled_low`, `pooled_high`, `pooled_verdict` of the
        second interval; and `detectable`: the smallest effect that Student's interval would keep from 0 four times in
        five. The last four are None where the number is no difference of losses.
    """
    seeds = [family.sel(seed=seed) for seed in family["seed"].to_numpy()]
    noise = _noise(family)
    return [_row(claim, [_of_seed(claim, one) for one in seeds], noise) for claim in CLAIMS]


def _row(claim: Claim, numbers: list[float], noise: tuple[float, int]) -> dict[str, Any]:
    known = [number for number in numbers if not np.isnan(number)]
    enough = len(known) > 1
    told = judged([_told(claim, number) for number in known] if enough else [np.nan], claim.threshold)
    facts = {name: getattr(claim, name) for name in ("claim", "source", "control", "measured", "threshold")}
    facts["published"] = None if np.isnan(claim.published) else claim.published
    pooled: dict[str, Any] = dict.fromkeys(_POOLED)
    if enough and not callable(claim.number):
        pooled = _pooled(claim, known, noise)
    return {**facts, **told, "seeds": len(known), **pooled}


def _told(claim: Claim, number: float) -> float:
    """A sum of losses in per cent of perplexity; another number as it is."""
    if callable(claim.number):
        return number
    return float(100 * np.expm1(number)) * (-1 if claim.saved else 1)


_POOLED = ("pooled_low", "pooled_high", "pooled_verdict", "detectable")


def _pooled(claim: Claim, known: list[float], noise: tuple[float, int]) -> dict[str, Any]:
    """Interval with the noise of all members, and the plan's power; NaN of both where there is none to speak of."""
    assert not callable(claim.number)
    deviation, free = noise
    deviation *= float(np.sqrt(sum(weight**2 for weight in claim.number.values()) / 2))
    if np.isnan(deviation):
        return dict.fromkeys(_POOLED)
    reach = scipy.stats.t.ppf(0.975, free) * deviation / np.sqrt(len(known))
    low, high = sorted(_told(claim, float(np.mean(known)) + side * reach) for side in (-1, 1))
    word = verdict((low, high), at_least=claim.threshold)
    power = 100 * np.expm1(detectable(deviation, len(known)))
    return dict(zip(_POOLED, (round(low, 3), round(high, 3), word, round(float(power), 1)), strict=True))


def _noise(family: xr.Dataset) -> tuple[float, int]:
    """Deviation of a difference of two members over seeds, and its degrees of freedom."""
    try:
        return seed_noise(family)
    except InputError:
        return np.nan, 0


def _of_seed(claim: Claim, one: xr.Dataset) -> float:
    try:
        if callable(claim.number):
            return float(claim.number(one))
        return sum(weight * loss(one, name) for name, weight in claim.number.items())
    except KeyError:  # a member that the family lacks
        return np.nan


# -- numbers of one seed ------------------------------------------------------------------------------------------------


def loss(one: xr.Dataset, recipe: str) -> float:
    """Held-out loss, mean over corpora, nats per token."""
    return float(one["test_loss"].sel(recipe=recipe).mean("corpus_name", skipna=False))


def first_cost(one: xr.Dataset, recipe: str, other: str) -> float:
    """By how many per cent the perplexity of one member is above another's at the first ten positions of a window."""
    losses = one["position_loss"].isel(position=slice(FIRST)).mean(("corpus_name", "position"), skipna=False)
    return 100 * float(np.expm1(losses.sel(recipe=recipe) - losses.sel(recipe=other)))


def closed_gap(one: xr.Dataset) -> float:
    """Share of the gap between three phases and the published baseline that the baseline closes by leaving √d out."""
    gap = loss(one, _SCALED) - loss(one, _THREE)
    return (loss(one, _SCALED) - loss(one, _ROPE)) / gap if gap else np.nan


def sweep_contrast() -> dict[str, float]:
    """Weights of seven losses that give the change from one phase to twelve on a straight line over ln N (least squares)."""
    places = np.log(list(_SWEPT))
    weights = (places - places.mean()) / ((places - places.mean()) ** 2).sum() * np.log(12)
    return dict(zip(_SWEPT.values(), weights.tolist(), strict=True))


def sweep_order(one: xr.Dataset) -> float:
    """Spearman's correlation between the number of phases and the loss: 1 if every larger number is worse."""
    losses = [loss(one, name) for name in _SWEPT.values()]
    if not np.ptp(losses) > 0:  # one is missing, or all are equal
        return np.nan
    return _rank_correlation(losses)


def _rank_correlation(losses: list[float]) -> float:
    found: Any = scipy.stats.spearmanr(list(_SWEPT), losses)
    return float(found.statistic)


def speed_up(one: xr.Dataset, recipe: str, other: str) -> float:
    """Updates that another member needs to a held-out loss, over those that one needs.

    The loss is the higher of both last ones, so that both reach it; between two looks it is taken to fall on a line.
    """
    looked_at = one["looked_at"].to_numpy()
    courses = [one["validation_loss"].sel(recipe=name).to_numpy() for name in (recipe, other)]
    target = max(float(course[-1]) for course in courses)
    steps = [_reached(looked_at, course, target) for course in courses]
    return steps[1] / steps[0]


def _reached(looked_at: np.ndarray, course: np.ndarray, target: float) -> float:
    place = int(np.argmax(course <= target))
    if np.isnan(course).any() or place == 0:
        return np.nan
    before, after = course[place - 1], course[place]
    share = (before - target) / (before - after)
    return float(looked_at[place - 1] + share * (looked_at[place] - looked_at[place - 1]))


def _published_sweep() -> tuple[float, float]:
    """The published losses of seven numbers of phases by the same two measures."""
    losses = dict(zip(_SWEPT.values(), published_runs()["sweep_loss"].to_numpy().tolist(), strict=True))
    line = 100 * float(np.expm1(sum(weight * losses[name] for name, weight in sweep_contrast().items())))
    return round(line, 1), round(_rank_correlation(list(losses.values())), 2)


def _above(one: str, other: str) -> dict[str, float]:
    return {one: 1.0, other: -1.0}


_LINE, _ORDER = _published_sweep()
CLAIMS: tuple[Claim, ...] = (
    Claim("Three phases beat a RoPE-only model", f"{PAPER}, Exp. 11", "RoPE only, embedding × √d", "% of perplexity saved",
          7.2, 5.0, _above(_THREE, _SCALED), saved=True),
    Claim("Three phases beat RoPE only with the same embedding, too", OURS, "RoPE only, no √d", "% of perplexity saved",
          np.nan, 5.0, _above(_THREE, _ROPE), saved=True),
    Claim("RoPE only gains as much by leaving √d out", OURS, "RoPE only, embedding × √d", "% of perplexity saved",
          np.nan, 5.0, _above(_ROPE, _SCALED), saved=True),
    Claim("The multiplier √d explains the gap", OURS, "RoPE only, with and without √d", "share of the gap closed without √d",
          np.nan, 0.9, closed_gap),
    Claim("Rotation of the stream carries the model", PAPER, "no rotation", "% of perplexity lost",
          np.nan, 1.0, _above("three-phase-no-rotation", _THREE)),
    Claim("Learning the angles matters", PAPER, "angles frozen", "% of perplexity lost",
          np.nan, 1.0, _above("three-phase-frozen-theta", _THREE)),
    Claim("The horn helps", f"{PAPER}, Exp. 9", "no horn", "% of perplexity lost",
          0.5, 0.25, _above("three-phase-no-horn", _THREE)),
    Claim("The horn helps the first ten positions", OURS, "no horn", "% of perplexity lost there",
          np.nan, 0.25, lambda one: first_cost(one, "three-phase-no-horn", _THREE)),
    Claim("Three phases are worse than one", f"{PAPER}, Exp. 13", "one phase", "% of perplexity lost",
          2.0, 1.0, _above(_THREE, "three-phase-n1")),
    Claim("The more phases, the worse", f"{PAPER}, Exp. 13", "1 to 12 phases, heads fixed", "% lost from 1 to 12, fitted line",
          _LINE, 2.3, sweep_contrast()),
    Claim("Every larger number of phases is worse", f"{PAPER}, Exp. 13", "1 to 12 phases, heads fixed",
          "rank correlation of N and loss", _ORDER, 0.9, sweep_order),
    Claim("Weight decay of the angles costs loss", OURS, "angles spared from decay", "% of perplexity lost",
          np.nan, 0.5, _above(_THREE, "three-phase-no-theta-decay")),
    Claim("Three phases learn 1.93 times as fast", f"{PAPER}, Exp. 11", "RoPE only, embedding × √d", "updates to one loss, ratio",
          1.93, 1.5, lambda one: speed_up(one, _THREE, _SCALED)),
    Claim("Three phases learn so much faster than RoPE without √d", OURS, "RoPE only, no √d", "updates to one loss, ratio",
          np.nan, 1.5, lambda one: speed_up(one, _THREE, _ROPE)),
)  # fmt: skip
