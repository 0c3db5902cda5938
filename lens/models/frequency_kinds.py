"""The formula of each kind of rotary frequency table, in float64.

Sources: RoFormer (arXiv 2104.09864); position interpolation (2306.15595); NTK-aware scaling and YaRN (2309.00071);
LongRoPE (2402.13753); Llama 3.1's rule and the proportional kind as `transformers.modeling_rope_utils` has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from lens.base.errors import InputError

Lanes = Float64[np.ndarray, " lane"]
Found = tuple[Lanes, float, np.ndarray]  # frequencies, attention factor, treatment of each lane
ORIGINAL_LENGTH = "original_max_position_embeddings"


@dataclass(frozen=True)
class Request:
    """What one table is computed from."""

    base: float
    width: int
    given: Mapping[str, Any]

    @property
    def exponents(self) -> Lanes:
        return np.arange(0, self.width, 2) / self.width

    def default(self, base: float | None = None) -> Lanes:
        return (self.base if base is None else base) ** -self.exponents

    def number(self, name: str, otherwise: float | None = None) -> float:
        return float(self.given[name] if otherwise is None else self.given.get(name, otherwise))

    def lanes(self, name: str) -> Lanes:
        values, wanted = np.asarray(self.given[name], dtype=np.float64), len(self.exponents)
        if values.shape != (wanted,):
            raise InputError(f"{name} has the shape {values.shape}", f"({wanted},), one number for each lane", "another width")
        return values


def _treated(by: Float64[np.ndarray, " lane"] | float, theta: Lanes) -> np.ndarray:
    """`divided` where a lane's frequency is divided by something else than one."""
    return np.where(np.broadcast_to(by, theta.shape) == 1, "unchanged", "divided")


def _default(request: Request) -> Found:
    theta = request.default()
    return theta, 1.0, _treated(1.0, theta)


def _linear(request: Request) -> Found:
    theta, factor = request.default(), request.number("factor")
    return theta / factor, 1.0, _treated(factor, theta)


def _ntk(request: Request) -> Found:
    return _stretched_base(request, request.number("factor"))


def _dynamic(request: Request) -> Found:
    factor, original = request.number("factor"), request.number(ORIGINAL_LENGTH)
    length = max(request.number("length", original), original)
    return _stretched_base(request, factor * length / original - (factor - 1))


def _stretched_base(request: Request, stretch: float) -> Found:
    """The base that divides the slowest lane by `stretch` and leaves lane 0 alone: b · stretch^(r/(r−2))."""
    theta = request.default(request.base * stretch ** (request.width / (request.width - 2)))
    lanes = np.arange(len(theta))
    treatment = np.where((lanes == 0) | (stretch == 1), "unchanged", np.where(lanes == lanes[-1], "divided", "blended"))
    return theta, 1.0, treatment


def _yarn(request: Request) -> Found:
    factor, original = request.number("factor"), request.number(ORIGINAL_LENGTH)
    low, high = yarn_range(
        request.base,
        request.width,
        original,
        request.number("beta_fast", 32.0),
        request.number("beta_slow", 1.0),
        truncate=bool(request.given.get("truncate", True)),
    )
    low, high = max(low, 0.0), min(high, request.width - 1.0)
    high += 0.001 if low == high else 0.0  # transformers' way around a ramp without a length
    theta = request.default()
    mix = np.clip((np.arange(len(theta)) - low) / (high - low), 0, 1)
    attention_factor = request.given.get("attention_factor")
    if attention_factor is None:
        whole, part = request.given.get("mscale"), request.given.get("mscale_all_dim")
        both = bool(whole) and bool(part)
        attention_factor = _mscale(factor, whole) / _mscale(factor, part) if both else _mscale(factor, 1.0)
    blended = np.where(mix == 0, "unchanged", np.where(mix == 1, "divided", "blended"))
    scaled = theta if factor == 1 else mix * (theta / factor) + (1 - mix) * theta
    return scaled, attention_factor, np.where(factor == 1, "unchanged", blended)


def yarn_range(
    base: float | int,
    width: int,
    original: float | int,
    beta_fast: float | int = 32,
    beta_slow: float | int = 1,
    *,
    truncate: bool = True,
) -> tuple[float, float]:
    """The lanes, in fractions, that make `beta_fast` and `beta_slow` turns over the original length.

    YaRN leaves faster lanes than the first alone and divides slower ones than the second. Truncated, the two
    are rounded away from each other. They are not limited to the lanes that there are.
    """

    def lane(turns: float | int) -> float:
        return width * math.log(original / (2 * math.pi * turns)) / (2 * math.log(base))

    low, high = lane(beta_fast), lane(beta_slow)
    return (float(math.floor(low)), float(math.ceil(high))) if truncate else (low, high)


def _mscale(factor: float, weight: Any) -> float:
    return 0.1 * float(weight) * math.log(factor) + 1 if factor > 1 else 1.0


def _llama3(request: Request) -> Found:
    theta, factor = request.default(), request.number("factor")
    low, high = request.number("low_freq_factor"), request.number("high_freq_factor")
    if not high > low:
        raise InputError(f"high_freq_factor is {high:g} and low_freq_factor {low:g}", "the first above the second", "4 and 1")
    turns = request.number(ORIGINAL_LENGTH) * theta / (2 * np.pi)
    share = (turns - low) / (high - low)  # how much of a lane stays as it is
    treatment = np.where(turns < low, "divided", np.where(turns > high, "unchanged", "blended"))
    kept = np.clip(share, 0, 1)
    scaled = theta if factor == 1 else np.where(kept == 1, theta, ((1 - kept) / factor + kept) * theta)
    return scaled, 1.0, np.where(factor == 1, "unchanged", treatment)


def _longrope(request: Request) -> Found:
    original = request.number(ORIGINAL_LENGTH)
    short, long = request.lanes("short_factor"), request.lanes("long_factor")
    by = long if request.number("length", original) > original else short
    attention_factor = request.given.get("attention_factor")
    if attention_factor is None:
        if "factor" not in request.given:
            raise InputError(
                "The rotary kind 'longrope' was given neither factor nor attention_factor",
                "one of them, for the scale of cos and sin",
                "factor = max_position_embeddings / original_max_position_embeddings",
            )
        factor = request.number("factor")
        attention_factor = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    theta = request.default()
    return theta / by, attention_factor, _treated(by, theta)


def _proportional(request: Request) -> Found:
    share, factor = request.number("partial_rotary_factor", 1.0), request.number("factor", 1.0)
    theta = request.default()
    moving = np.arange(len(theta)) < int(share * request.width // 2)
    return np.where(moving, theta / factor, 0.0), 1.0, np.where(moving, _treated(factor, theta), "stopped")


def _explicit(request: Request) -> Found:
    theta = np.array(request.given["theta"], dtype=np.float64)
    if theta.ndim != 1 or not len(theta) or not np.isfinite(theta).all():
        raise InputError(f"theta has the shape {theta.shape}", "finite numbers, one for each lane", "theta=[1.0, 0.1]")
    return theta, request.number("attention_factor", 1.0), np.where(theta == 0, "stopped", "given")


FORMULAS: dict[str, tuple[Callable[[Request], Found], tuple[str, ...], tuple[str, ...]]] = {
    "default": (_default, (), ()),
    "linear": (_linear, ("factor",), ()),
    "ntk": (_ntk, ("factor",), ()),
    "dynamic": (_dynamic, ("factor", ORIGINAL_LENGTH), ("length",)),
    "yarn": (
        _yarn,
        ("factor", ORIGINAL_LENGTH),
        ("beta_fast", "beta_slow", "truncate", "attention_factor", "mscale", "mscale_all_dim"),
    ),
    "llama3": (_llama3, ("factor", "low_freq_factor", "high_freq_factor", ORIGINAL_LENGTH), ()),
    "longrope": (_longrope, ("short_factor", "long_factor", ORIGINAL_LENGTH), ("factor", "attention_factor", "length")),
    "proportional": (_proportional, (), ("partial_rotary_factor", "factor")),
    "explicit": (_explicit, ("theta",), ("attention_factor",)),
}
