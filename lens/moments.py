"""Sufficient statistics of the residual stream: all that a linear probe needs, gathered in one pass.

Count, means, and centred second moments of chosen pairs of layers. They add up, so that batches,
machines and files merge by the same line, and their size does not depend on the number of tokens.
Source of the merge: Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing
Sample Variances" (1979), equations 2.1 and 2.2 in matrix form.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lens.base.errors import InputError

Mask = Literal["robust", "first", "none"]
Pair = tuple[int, int]
OUTLIER = 5.0  # times a layer's median norm, from which a state counts as massive


def residual_pairs(layers: int, which: str | Iterable[Pair]) -> tuple[Pair, ...]:
    """Pairs of residual states `(from_layer, to_layer)` of a model of `layers` blocks.

    Args:
        layers: number of blocks; states run from 0 to `layers`.
        which: `adjacent`, `to_final`, `both`, `all`, or the pairs themselves.

    Raises:
        InputError: an unknown word, or a pair that is not `0 ≤ from < to ≤ layers`.
    """
    named: dict[str, set[Pair]] = {
        "adjacent": {(i, i + 1) for i in range(layers)},
        "to_final": {(i, layers) for i in range(layers)},
        "all": {(i, j) for j in range(layers + 1) for i in range(j)},
    }
    named["both"] = named["adjacent"] | named["to_final"]
    if isinstance(which, str):
        if which not in named:
            raise InputError(f"The pairs are {which!r}", f"one of {', '.join(named)}, or a list of pairs", "pairs='both'")
        return tuple(sorted(named[which]))
    pairs = {(int(i), int(j)) for i, j in which}
    wrong = [pair for pair in pairs if not 0 <= pair[0] < pair[1] <= layers]
    if wrong or not pairs:
        raise InputError(f"The pairs {wrong or 'none'}", f"0 ≤ from < to ≤ {layers}", "pairs='both'")
    return tuple(sorted(pairs))


@dataclass(frozen=True)
class Moments:
    """Statistics of token states, float64.

    Attributes:
        count: tokens kept.
        mean: `[layer, d]`.
        within: layer ℓ to `Σ (x−μ)ᵀ(x−μ)`, `[d, d]`.
        across: pair (i, j) to `Σ (xᵢ−μᵢ)ᵀ(xⱼ−μⱼ)`, `[d, d]`.
        dropped: tokens left out, by reason.
        limits: `[layer]` norms above which a token is left out; infinite without the robust mask.
        source: what they were gathered from (model, corpus, mask, …); merging needs equal ones.
    """

    count: int
    mean: Float[Tensor, "layer d"]
    within: Mapping[int, Float[Tensor, "d d"]]
    across: Mapping[Pair, Float[Tensor, "d d"]]
    dropped: Mapping[str, int]
    limits: Float[Tensor, " layer"]
    source: Mapping[str, str | int | float] = field(default_factory=dict)

    @property
    def pairs(self) -> tuple[Pair, ...]:
        return tuple(sorted(self.across))

    @property
    def width(self) -> int:
        return self.mean.shape[1]

    def __add__(self, other: Moments) -> Moments:
        """Statistics of both sets of tokens together; associative and commutative up to rounding.

        Raises:
            InputError: other pairs, limits or source.
        """
        _require_same(self, other)
        if 0 in (self.count, other.count):
            full = self if self.count else other
            return replace(full, dropped=_add_counts(self.dropped, other.dropped))
        count = self.count + other.count
        step = other.mean - self.mean
        weight = self.count * other.count / count
        return replace(
            self,
            count=count,
            mean=self.mean + step * (other.count / count),
            within={i: a + other.within[i] + weight * torch.outer(step[i], step[i]) for i, a in self.within.items()},
            across={(i, j): a + other.across[i, j] + weight * torch.outer(step[i], step[j]) for (i, j), a in self.across.items()},
            dropped=_add_counts(self.dropped, other.dropped),
        )


def _require_same(left: Moments, right: Moments) -> None:
    for name, same in (
        ("pairs", left.pairs == right.pairs and left.within.keys() == right.within.keys()),
        ("limits of the mask", torch.equal(left.limits, right.limits)),
        ("source", dict(left.source) == dict(right.source)),
    ):
        if not same:
            raise InputError(f"Two moments differ in their {name}", "equal ones", "gathering both with the same options")


def _add_counts(left: Mapping[str, int], right: Mapping[str, int]) -> dict[str, int]:
    return {reason: left.get(reason, 0) + right.get(reason, 0) for reason in {**left, **right}}


class Accumulator:
    """Gathers moments of one part of a corpus, batch by batch.

    States are shifted by a fixed point near their mean and multiplied in float32; after `flush_every`
    tokens the sums are centred and merged into float64. Shifting first is what makes float32 safe: its
    uncentred sums lose three to five digits.

    Args:
        shift: `[layer, d]` float32, near the means (from a pilot).
        limits: `[layer]` norms; a token above any of them is dropped as massive.
        pairs: which second moments to keep.
        drop_first: whether position 0 is dropped.
        source: see `Moments`.

    Memory: `8 · d² · (layers + pairs)` bytes in float64 and half of it in float32.
    """

    def __init__(
        self,
        shift: Float[Tensor, "layer d"],
        limits: Float[Tensor, " layer"],
        pairs: Iterable[Pair],
        *,
        drop_first: bool,
        source: Mapping[str, str | int | float],
        flush_every: int = 8192,
    ):
        self.shift, self.limits, self.drop_first, self.flush_every = shift, limits, drop_first, flush_every
        self.pairs = tuple(sorted(pairs))
        self.layers = tuple(sorted({layer for pair in self.pairs for layer in pair}))
        self.source = dict(source)
        self.moments = self._empty()
        self._clear()

    def _empty(self) -> Moments:
        width = self.shift.shape[1]

        def zeros() -> Tensor:
            return torch.zeros((width, width), dtype=torch.float64, device=self.shift.device)

        return Moments(
            count=0,
            mean=torch.zeros_like(self.shift, dtype=torch.float64),
            within={layer: zeros() for layer in self.layers},
            across={pair: zeros() for pair in self.pairs},
            dropped={"first position": 0, "massive": 0},
            limits=self.limits.double().cpu(),
            source=self.source,
        )

    def resume(self, moments: Moments) -> None:
        """Go on from moments that were written earlier, on this accumulator's device."""
        device = self.shift.device
        self.moments = replace(
            moments,
            mean=moments.mean.to(device),
            within={layer: value.to(device) for layer, value in moments.within.items()},
            across={pair: value.to(device) for pair, value in moments.across.items()},
        )

    def _clear(self) -> None:
        width, device = self.shift.shape[1], self.shift.device
        self._count = 0
        self._sum = torch.zeros_like(self.shift)
        self.just_flushed = True
        self._within = {layer: torch.zeros((width, width), device=device) for layer in self.layers}
        self._across = {pair: torch.zeros((width, width), device=device) for pair in self.pairs}

    def add(self, states: Float[Tensor, "layer sequence position d"]) -> None:
        """Take in one batch of residual states of whole windows, each starting at its position 0."""
        states = states.float()
        self.just_flushed = False
        kept = self._kept(states)
        shifted = states[:, kept] - self.shift[:, None]
        self._count += shifted.shape[1]
        self._sum += shifted.sum(1)
        for layer in self.layers:
            self._within[layer].addmm_(shifted[layer].T, shifted[layer])
        for i, j in self.pairs:
            self._across[i, j].addmm_(shifted[i].T, shifted[j])
        if self._count >= self.flush_every:
            self.flush()

    def _kept(self, states: Tensor) -> Tensor:
        massive = (states.norm(dim=-1) > self.limits.to(states.device, states.dtype)[:, None, None]).any(0)
        first = torch.zeros_like(massive)
        first[:, 0] = self.drop_first
        dropped = {"first position": int(first.sum()), "massive": int((massive & ~first).sum())}
        self.moments = replace(self.moments, dropped=_add_counts(self.moments.dropped, dropped))
        return ~(massive | first)

    def flush(self) -> None:
        """Centre what was gathered since the last flush and merge it into the float64 moments."""
        if not self._count:
            return
        total, count = self._sum.double(), self._count

        def centred(raw: Tensor, i: int, j: int) -> Tensor:
            return raw.double() - torch.outer(total[i], total[j]) / count

        batch = replace(
            self.moments,
            count=count,
            mean=self.shift.double() + total / count,
            within={layer: centred(raw, layer, layer) for layer, raw in self._within.items()},
            across={(i, j): centred(raw, i, j) for (i, j), raw in self._across.items()},
            dropped={},
        )
        self.moments = self.moments + batch
        self._clear()


def outlier_limits(norms: Float[Tensor, "layer token"], mask: Mask) -> Float[Tensor, " layer"]:
    """Norms from which a token counts as massive: five times a layer's median over a pilot, or infinity."""
    if mask == "robust":
        return OUTLIER * norms.median(dim=1).values
    return torch.full((norms.shape[0],), torch.inf, device=norms.device)
