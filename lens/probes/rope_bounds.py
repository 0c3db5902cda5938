"""How large the base must be, by every theory: named hypotheses, each with its assumptions, none of them a verdict.

They disagree by orders of magnitude, and each is contradicted by models that work: `lens.probes.rope_practice` counts where,
`lens.probes.rope_problems` says why in words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr

from lens.base.errors import InputError
from lens.base.provenance import library_versions
from lens.models.frequencies import RopeTable, rope_table
from lens.probes.dataset import exact, variable
from lens.probes.rope import first_negative
from lens.probes.rope_minimum import known_min_base

LIU = "Liu, arXiv 2602.10959 (formula as given in summaries of the paper)"
SLOW_SHARE = 0.25  # of the lanes; what models in use have at least, see `lens.probes.rope_practice`
DTYPES = ("float16", "bfloat16", "float32", "float64")
LANES = ("stated", "exact")
Numbers = np.ndarray | np.floating  # an array without axes becomes a number in arithmetic


@dataclass(frozen=True)
class Setting:
    """What the required bases depend on; `context` may hold several."""

    context: np.ndarray
    layers: int
    width: int
    epsilon: float
    dtype: str
    lane: str

    def of_slowest_lane(self, inverse_turn: float | Numbers) -> Numbers:
        """The base whose slowest lane turns by one over this a token.

        As stated, that lane turns by 1/b; exactly, by `b^(−(1 − 2/width))`.
        """
        power = self.width / (self.width - 2) if self.lane == "exact" else 1.0
        return np.broadcast_to(np.asarray(inverse_turn, dtype=np.float64) ** power, self.context.shape)


@dataclass(frozen=True)
class Theory:
    """A hypothesis about the base.

    Attributes:
        name: as it is shown.
        title: in full.
        source: who holds it.
        assumptions: what it takes for granted.
        is_lower: whether it asks for at least a base, or for less than one.
        required: that base.
    """

    name: str
    title: str
    source: str
    assumptions: str
    is_lower: bool
    required: Callable[[Setting], Numbers]


def _aliasing(setting: Setting) -> Numbers:
    return setting.of_slowest_lane(setting.context / (2 * np.pi))


def _stability(setting: Setting) -> Numbers:
    return setting.of_slowest_lane(setting.context / np.arccos(setting.epsilon))


def _depth(setting: Setting) -> Numbers:
    return setting.of_slowest_lane(setting.context / np.arccos(setting.epsilon ** (1 / setting.layers)))


def _wall(setting: Setting) -> Numbers:
    return setting.of_slowest_lane(1 / torch.finfo(getattr(torch, setting.dtype)).eps)


def _similar(setting: Setting) -> Numbers:
    return _minimum(setting, "infimum")


def _similar_safe(setting: Setting) -> Numbers:
    return _minimum(setting, "safe")


def _minimum(setting: Setting, end: Literal["infimum", "safe"]) -> Numbers:
    found = [getattr(known_min_base(int(context), setting.width), end) for context in setting.context.ravel()]
    return np.reshape(found, setting.context.shape)


def _slow_share(setting: Setting) -> Numbers:
    return (setting.context / (2 * np.pi)) ** (1 / (1 - SLOW_SHARE))


_ONE_TURN = "the slowest lane decides; it is taken to turn by 1/base a token"
_SIMILAR = (
    "queries and keys have independent components of one variance; a similar key is the query plus noise; every lane weighs the "
    "same; one hop, for depth lets information travel in several"
)
THEORIES = {
    "aliasing": Theory("aliasing", "Aliasing: the slowest lane completes no turn", LIU, _ONE_TURN, True, _aliasing),
    "dc_stability": Theory(
        "DC stability", "DC stability: the slowest lane's cosine stays at ε or above", LIU,
        f"{_ONE_TURN}; ε is a choice, 0.95 there", True, _stability,
    ),
    "depth": Theory(
        "depth", "Depth: the slowest lane's cosine to the power of the layers stays at ε or above", LIU,
        f"{_ONE_TURN}; every layer attenuates by that cosine once more, independently of the others", True, _depth,
    ),
    "precision_wall": Theory(
        "precision wall", "Precision wall: a step of the slowest lane is no smaller than the machine epsilon", LIU,
        f"{_ONE_TURN}; angles are held in the dtype, and a step below its epsilon is lost", False, _wall,
    ),
    "similar_beats_random": Theory(
        "similar beats random", "Similar beats random: a similar key is expected to outscore a random one at every distance",
        "Men et al., arXiv 2405.14591; the smallest such base, larger ones may fail again", _SIMILAR, True, _similar,
    ),
    "similar_beats_random_safe": Theory(
        "similar beats random, safely", "Similar beats random: so at this base and at every larger one that was tried",
        "Men et al., arXiv 2405.14591; the end of the failures is our reading", _SIMILAR, True, _similar_safe,
    ),
    "slow_lane_share": Theory(
        "slow-lane share", "Slow-lane share: a quarter of the lanes are slower than one turn over the context",
        "our own description of released models", "what models in use have in common is what is needed; no theorem", True,
        _slow_share,
    ),
}  # fmt: skip
"""By the name of their variable."""


def rope_bounds(
    context: int | Sequence[int] = 4096,
    layers: int = 32,
    width: int = 128,
    base: float | None = None,
    *,
    epsilon: float = 0.95,
    dtype: str = "float32",
    lane: str = "stated",
) -> xr.Dataset:
    """The base that every theory asks for.

    Args:
        context: tokens, or several contexts, which then become the dimension `context`. Of a model whose layers look at a
            window, the window.
        layers: depth of the model.
        width: rotary dimensions of a head; even, four or more.
        base: one to hold against the theories; needs a single context.
        epsilon: least cosine of the slowest lane, between 0 and 1.
        dtype: `float16`, `bfloat16`, `float32` or `float64`, in which angles are held. Libraries compute angles in float32
            whatever the model's weights are.
        lane: `stated` (the slowest lane turns by 1/base, as the theories say) or `exact` (`base^(−(1 − 2/width))`).

    Returns:
        Dataset with one variable for each theory, the required base: `aliasing`, `dc_stability`, `depth`, `similar_beats_random`,
        `similar_beats_random_safe`, `slow_lane_share` ask for at least that; `precision_wall` for less. Attributes: `short_name`,
        `theory`, `source`, `assumptions`, `bound`, and `met` (`yes` or `no`) where a base was given. Its lanes then follow
        as scalars: see `lanes_in_context` and `slow_share`. Under 5 ms where the package's table holds width and
        contexts, else see `min_base`.

    Raises:
        InputError: a setting out of its range, or a base with several contexts.
    """
    contexts = np.asarray(context)
    setting = Setting(contexts.astype(np.float64), layers, width, epsilon, dtype, lane)
    _require(setting)
    columns = {name: _column(theory, setting) for name, theory in THEORIES.items()}
    facts: dict[str, Any] = {"layers": layers, "width": width, "epsilon": epsilon, "dtype": dtype, "lane": lane}
    if contexts.ndim == 0:
        facts["context"] = int(contexts)
    places = {} if contexts.ndim == 0 else {"context": variable(("context",), contexts, "context", "tokens")}
    facts |= {"source": "; ".join(dict.fromkeys(theory.source for theory in THEORIES.values())), "probe": "rope_bounds"}
    found = xr.Dataset(columns, coords=places, attrs={**facts, **library_versions()})
    return found if base is None else _held_against(found, float(base))


def _held_against(bounds: xr.Dataset, base: float) -> xr.Dataset:
    if "context" in bounds.dims:
        raise InputError(f"A base and {bounds.sizes['context']} contexts", "one context to hold a base against", "context=4096")
    table = rope_table("default", base, bounds.attrs["width"])
    for name in THEORIES:
        bounds[name].attrs["met"] = "yes" if allows(bounds, name, base) else "no"
    context = bounds.attrs["context"]
    lanes = lanes_in_context(table, context, bounds.attrs["epsilon"])
    lanes["slow_share_of_many"] = exact((), slow_share(base, context), "share of lanes that complete no turn, were they many")
    return bounds.assign(lanes).assign_attrs(base=base)


def allows(bounds: xr.Dataset, theory: str, base: float) -> bool:
    """Whether a theory holds a base to be right for a context.

    Bases that keep the kernel positive are no interval: for `similar_beats_random` the base itself is tried.

    Args:
        bounds: from `rope_bounds`, of that one context.
        theory: a variable of it.
        base: of a table without scaling.
    """
    if theory == "similar_beats_random":
        return first_negative(rope_table("default", base, bounds.attrs["width"]).theta, bounds.attrs["context"]) is None
    return is_met(theory, base, float(bounds[theory]))


def lanes_in_context(table: RopeTable, context: int, epsilon: float = 0.95) -> dict[str, xr.Variable]:
    """What the lanes of a table do over a context, as labelled scalars.

    Returns:
        `lanes`; `constant_lanes` (cosine at `epsilon` or above all the way) and `slow_lanes` (no full turn); `slow_share`;
        `slowest_phase` (radians that the slowest lane has turned by at the end; the exact lane) and `slowest_cosine`;
        `first_negative`: the first offset at which a random key is expected to outscore a similar one, NaN if there is none.
    """
    reach = context * np.abs(table.theta)
    slow = int((table.wavelength > context).sum())
    negative = first_negative(table.theta, context)
    return {
        "lanes": variable((), np.array(len(reach)), "rotary lanes"),
        "constant_lanes": variable((), np.array((reach <= np.arccos(epsilon)).sum()), "lanes whose cosine stays at ε or above"),
        "slow_lanes": variable((), np.array(slow), "lanes that complete no turn"),
        "slow_share": exact((), slow / len(reach), "share of lanes that complete no turn"),
        "slowest_phase": exact((), reach.min(), "turn of the slowest lane over the context", "radians"),
        "slowest_cosine": exact((), np.cos(reach.min()), "cosine of that turn"),
        "first_negative": exact((), np.nan if negative is None else negative, "first offset with a negative kernel", "tokens"),
    }


def slow_share(base: float, context: int) -> float:
    """Share of lanes slower than one turn over the context, were lanes so many that counting does not matter:
    `1 − ln(context/2π)/ln base`, whatever the width."""
    return float(1 - np.log(context / (2 * np.pi)) / np.log(base))


def is_met(theory: str, base: float, required: float) -> bool:
    """Whether a base is at least the required one, or, for the wall, less; `allows` tells more of a table without scaling.

    Args:
        theory: a key of `THEORIES`.
    """
    return bool(base >= required if THEORIES[theory].is_lower else base < required)


def _column(theory: Theory, setting: Setting) -> xr.Variable:
    dims = ("context",) * setting.context.ndim
    found = exact(dims, theory.required(setting), f"required base, {theory.name}")
    bound = "at least" if theory.is_lower else "less than"
    found.attrs |= {
        "short_name": theory.name,
        "theory": theory.title,
        "source": theory.source,
        "assumptions": theory.assumptions,
        "bound": bound,
    }
    return found


def _require(setting: Setting) -> None:
    wanted = {
        "context": (setting.context.size > 0 and bool((setting.context >= 1).all()), "one token or more"),
        "layers": (setting.layers >= 1, "one or more"),
        "width": (setting.width >= 4 and setting.width % 2 == 0, "an even number, four or more"),
        "epsilon": (0 < setting.epsilon < 1, "between 0 and 1"),
        "dtype": (setting.dtype in DTYPES, f"one of {', '.join(DTYPES)}"),
        "lane": (setting.lane in LANES, f"one of {', '.join(LANES)}"),
    }
    usual = {"context": 4096, "layers": 32, "width": 128, "epsilon": 0.95, "dtype": "'float32'", "lane": "'stated'"}
    for name, (fits, needed) in wanted.items():
        if not fits:
            raise InputError(f"The {name} is {getattr(setting, name)}", needed, f"{name}={usual[name]}")
