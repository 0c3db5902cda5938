"""What speaks against each theory of the rotary base: models that work without it, and what its mechanism gets wrong.

Sentences for a panel or a notebook to show beside the bound; their numbers are computed from the settings at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import takewhile

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.base.provenance import library_versions
from lens.models.frequencies import rope_table
from lens.probes.dataset import texts, variable
from lens.probes.rope_bounds import THEORIES, Setting, rope_bounds
from lens.probes.rope_minimum import base_per_token
from lens.probes.rope_precision import rope_precision

_FAR = 2**20 - 1  # the last position of a context of a million
_DEEPEST = 1000  # layers that are counted up to
_MOST_NAMES = 3


def rope_problems(bounds: xr.Dataset, practice: xr.Dataset) -> xr.Dataset:
    """Sentences against each theory.

    Args:
        bounds: from `rope_bounds`, of one context and a base.
        practice: from `rope_practice`, with the same strictness, dtype and lane.

    Returns:
        Dataset over `problem`: `theory` (a variable of `rope_bounds`) and `sentence`. The first of each theory counts the
        released models that contradict it.

    Raises:
        InputError: bounds of several contexts or without a base.
    """
    if "base" not in bounds.attrs:
        raise InputError("The bounds are of no base", "one context and a base", "rope_bounds(4096, base=10_000.0)")
    found = [
        (name, sentence)
        for name in THEORIES
        for sentence in (counter_examples(practice, name), *(write(bounds, practice) for write in _AGAINST.get(name, ())))
        if sentence
    ]
    return xr.Dataset(
        {
            "theory": texts(("problem",), [name for name, _ in found], "theory"),
            "sentence": texts(("problem",), [sentence for _, sentence in found], "what speaks against it"),
        },
        coords={"problem": variable(("problem",), np.arange(len(found)), "sentence")},
        attrs={
            "source": practice.attrs["source"],
            "probe": "rope_problems",
            "base": bounds.attrs["base"],
            "context": bounds.attrs["context"],
            **library_versions(),
        },
    )


def counter_examples(practice: xr.Dataset, theory: str) -> str:
    """How many models that are offered for their context do not meet a theory, and which."""
    used, met = practice.supported.to_numpy(), practice.met.to_numpy()[:, list(practice.theory.to_numpy()).index(theory)]
    against = practice.model.to_numpy()[used & ~met].tolist()
    if against:
        return f"{len(against)} of {used.sum()} models that are offered for their context do not meet it: {_listed(against)}."
    others = f"of {(~used).sum()} settings beyond what is offered it refuses {(~used & ~met).sum()}"
    return f"All {used.sum()} models that are offered for their context meet it; {others}."


# -- one sentence each ----------------------------------------------------------------------------


def _another_lane(bounds: xr.Dataset, practice: xr.Dataset) -> str:
    if bounds.attrs["lane"] == "exact":
        return ""
    base, width = bounds.attrs["base"], bounds.attrs["width"]
    factor = base ** (2 / width)
    setting = f"{width} rotary dimensions, base {base:,.0f}"
    return f"The slowest lane turns {factor:.3g} times as fast as the 1/base that is assumed ({setting})."


def _many_have_turned(bounds: xr.Dataset, practice: xr.Dataset) -> str:
    turned, lanes = int(bounds.lanes) - int(bounds.slow_lanes), int(bounds.lanes)
    context = bounds.attrs["context"]
    return f"At {context:,} tokens {turned} of {lanes} lanes have come round already: positions differ in all lanes together."


def _the_opposite(bounds: xr.Dataset, practice: xr.Dataset) -> str:
    width = bounds.attrs["width"]
    least = (bounds.attrs["context"] / (2 * np.pi)) ** (width / (width - 2))
    return (
        f"Who wants no new angles beyond the training length asks for the opposite: a base below {least:,.0f}, at which every "
        "lane comes round in training (arXiv 2306.15595, 2309.00071)."
    )


def _few_constants(bounds: xr.Dataset, practice: xr.Dataset) -> str:
    count, lanes, epsilon = int(bounds.constant_lanes), int(bounds.lanes), bounds.attrs["epsilon"]
    return f"It judges one lane; {count} of {lanes} keep their cosine at {epsilon:g} or above over the whole context."


def _layers_project_anew(bounds: xr.Dataset, practice: xr.Dataset) -> str:
    return "Every layer makes queries and keys anew from the residual stream, so that a lane's misalignment does not multiply."


def _room_at_a_million(bounds: xr.Dataset, practice: xr.Dataset) -> str:
    layers = _layers_below_wall(*(bounds.attrs[name] for name in ("width", "epsilon", "dtype", "lane")))
    what = f"every model of more than {layers} layers" if layers else "every model"
    return f"At {_FAR + 1:,} tokens it and the {bounds.attrs['dtype']} wall together refuse {what}."


def _no_collision(bounds: xr.Dataset, practice: xr.Dataset) -> str:
    base, colliding, lanes, _, _ = _far_precision(*_largest(practice))
    return (
        f"At base {base:.2g} and position {_FAR:,} {colliding} of {lanes} lanes have the same float32 cosine and sine as one "
        "position before: small angles keep their relative precision."
    )


def _fast_lanes_suffer(bounds: xr.Dataset, practice: xr.Dataset) -> str:
    _, _, _, error, wavelength = _far_precision(*_largest(practice))
    return f"What float32 loses there is in the fast lanes: {error:.2g} radians in the one of {wavelength:.1f} tokens a turn."


def _storage_dtype(bounds: xr.Dataset, practice: xr.Dataset) -> str:
    wall = float(rope_bounds(dtype="bfloat16").precision_wall)
    bases = practice.base.to_numpy()
    refused = f"{(bases >= wall).sum()} of {len(bases)} models"
    return f"Held against the dtype of the weights (bfloat16, below {wall:.0f}) it would refuse {refused}."


def _rounded_positions(bounds: xr.Dataset, practice: xr.Dataset) -> str:
    return f"What does merge positions is casting them: 8,192 in bfloat16 become {_distinct_in_bfloat16():,}."


def _no_interval(bounds: xr.Dataset, practice: xr.Dataset) -> str:
    low, high = float(bounds.similar_beats_random), float(bounds.similar_beats_random_safe)
    if high <= low:
        return ""
    return f"Bases that do are no interval: {low:.3g} is the smallest, and up to {high:.3g} some fail again."


def _lanes_and_not_context(bounds: xr.Dataset, practice: xr.Dataset) -> str:
    context, width = bounds.attrs["context"], bounds.attrs["width"]
    limit = base_per_token() * context
    share = float(bounds.similar_beats_random) / limit
    needed = f"{width} rotary dimensions need {share:.3g} times as much"
    return f"With very many lanes {limit:,.0f} would do; that {needed} is because they are few."


def _earliest(bounds: xr.Dataset, practice: xr.Dataset) -> str:
    used, contexts = practice.supported.to_numpy(), practice.context.to_numpy()
    share = np.where(used, practice.first_negative.to_numpy() / contexts, np.nan)
    first = int(np.nanargmin(share))
    model, where = practice.model.to_numpy()[first], int(practice.first_negative.to_numpy()[first])
    return f"{model} is offered for {contexts[first]:,} tokens, and its kernel falls below zero at {where:,} already."


def _describes_itself(bounds: xr.Dataset, practice: xr.Dataset) -> str:
    share = practice.slow_share.to_numpy()
    used = practice.supported.to_numpy()
    return (
        f"It describes the very models that it is held against: those in use have {100 * share[used].min():.0f} to "
        f"{100 * share[used].max():.0f} % of their lanes slower than one turn, the others {_percents(share[~used])}."
    )


_AGAINST: dict[str, tuple[Callable[[xr.Dataset, xr.Dataset], str], ...]] = {
    "aliasing": (_another_lane, _many_have_turned, _the_opposite),
    "dc_stability": (_another_lane, _few_constants),
    "depth": (_layers_project_anew, _room_at_a_million),
    "precision_wall": (_no_collision, _fast_lanes_suffer, _storage_dtype, _rounded_positions),
    "similar_beats_random": (_earliest, _lanes_and_not_context),
    "similar_beats_random_safe": (_no_interval,),
    "slow_lane_share": (_describes_itself,),
}


# -- numbers that stay ----------------------------------------------------------------------------


def _layers_below_wall(width: int, epsilon: float, dtype: str, lane: str) -> int:
    """Most layers for which a million tokens leave a base between the depth bound and the wall; 0 if none."""

    def leaves_room(layers: int) -> bool:
        setting = Setting(np.array(_FAR + 1.0), layers, width, epsilon, dtype, lane)
        return bool(THEORIES["depth"].required(setting) < THEORIES["precision_wall"].required(setting))

    return sum(1 for _ in takewhile(leaves_room, range(1, _DEEPEST + 1)))


def _largest(practice: xr.Dataset) -> tuple[float, int]:
    """Base and rotary width of the model with the largest base."""
    bases = practice.base.to_numpy()
    return float(bases.max()), int(practice.width.to_numpy()[bases.argmax()])


@lru_cache(maxsize=8)
def _far_precision(base: float, width: int) -> tuple[float, int, int, float, float]:
    """The base again, lanes that collide at the last position of a million, lanes, the largest error and its wavelength."""
    found = rope_precision(base, width, np.array([_FAR - 1, _FAR]))
    errors = found.angle_error.to_numpy()
    wavelength = rope_table("default", base, width).wavelength[errors.argmax()]
    return base, int(found.adjacent_collisions.sum()), len(errors), float(errors.max()), float(wavelength)


@lru_cache(maxsize=1)
def _distinct_in_bfloat16() -> int:
    return int(rope_precision(positions=8192, path="bfloat16 positions").distinct_positions)


def _listed(names: list[str]) -> str:
    more = len(names) - _MOST_NAMES
    if more <= 1:
        return "; ".join(names)
    return f"{'; '.join(names[:_MOST_NAMES])} and {more} more"


def _percents(shares: np.ndarray) -> str:
    return " and ".join(f"{100 * share:.0f} %" for share in sorted(shares))
