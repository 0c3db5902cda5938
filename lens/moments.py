"""Sufficient statistics of token states: all that a linear probe needs, gathered in one pass.

Count, means, and centred second moments of chosen pairs of layers. They add up, so that batches,
machines and files merge by the same line, and their size does not depend on the number of tokens.
Source of the merge: Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing
Sample Variances" (1979), equations 2.1 and 2.2 in matrix form.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lens.base.errors import InputError

Mask = Literal["robust", "first", "none"]
Pair = tuple[int, int]
OUTLIER = 5.0  # times a layer's median norm, from which a state counts as massive


def residual_pairs(layers: int, which: str | Iterable[Pair]) -> tuple[Pair, ...]:
    """Pairs of residual states `(from_layer, to_layer)` of a model of `layers` blocks.

    Args:
        layers: number of blocks; states run from 0 to `layers`.
        which: `adjacent`, `to_final`, `both` of them, `overview` (both, and all pairs of about ten evenly spaced
            layers), `all`, or the pairs themselves.

    Raises:
        InputError: an unknown word, or a pair that is not `0 ≤ from < to ≤ layers`.
    """
    named: dict[str, set[Pair]] = {
        "adjacent": {(i, i + 1) for i in range(layers)},
        "to_final": {(i, layers) for i in range(layers)},
        "all": {(i, j) for j in range(layers + 1) for i in range(j)},
    }
    named["both"] = named["adjacent"] | named["to_final"]
    spaced = overview_layers(layers)
    named["overview"] = named["both"] | {(i, j) for j in spaced for i in spaced if i < j}
    if isinstance(which, str):
        if which not in named:
            raise InputError(f"The pairs are {which!r}", f"one of {', '.join(named)}, or a list of pairs", "pairs='both'")
        return tuple(sorted(named[which]))
    pairs = {(int(i), int(j)) for i, j in which}
    wrong = [pair for pair in pairs if not 0 <= pair[0] < pair[1] <= layers]
    if wrong or not pairs:
        raise InputError(f"The pairs {wrong or 'none'}", f"0 ≤ from < to ≤ {layers}", "pairs='both'")
    return tuple(sorted(pairs))


def overview_layers(layers: int) -> tuple[int, ...]:
    """About ten evenly spaced states of a model of `layers` blocks, the embedding and the last one among them."""
    return (*range(0, layers, max(1, -(-layers // 10))), layers)


@dataclass(frozen=True)
class Moments:
    """Statistics of token states, float64.

    For the residual stream, state ℓ is layer ℓ. For a part of the blocks (attention, MLP, a norm) of a model with B of
    them, state b is what enters it in block b, and state B + b is what leaves it.

    Attributes:
        count: tokens kept.
        mean: `[state, d]`.
        within: state i to `Σ (x−μ)ᵀ(x−μ)`, `[d, d]`.
        across: pair (i, j) to `Σ (xᵢ−μᵢ)ᵀ(xⱼ−μⱼ)`, `[d, d]`.
        shuffled: the same for one or two pairs, but with the states j of other tokens, of another text where a batch
            holds several: what a map scores on it is noise.
        dropped: tokens left out, by reason.
        limits: `[layer]` norms of the residual stream above which a token is left out; infinite without the robust mask.
        source: what they were gathered from (model, corpus, mask, …); merging needs equal ones.
    """

    count: int
    mean: Float[Tensor, "state d"]
    within: Mapping[int, Float[Tensor, "d d"]]
    across: Mapping[Pair, Float[Tensor, "d d"]]
    dropped: Mapping[str, int]
    limits: Float[Tensor, " layer"]
    source: Mapping[str, str | int | float] = field(default_factory=dict)
    shuffled: Mapping[Pair, Float[Tensor, "d d"]] = field(default_factory=dict)

    @property
    def pairs(self) -> tuple[Pair, ...]:
        return tuple(sorted(self.across))

    @property
    def width(self) -> int:
        return self.mean.shape[1]

    def to(self, device: torch.device | str) -> Moments:
        """The same moments with their sums on another device."""

        def moved(matrices: Mapping[Any, Tensor]) -> dict[Any, Tensor]:
            return {key: value.to(device) for key, value in matrices.items()}

        within, across, shuffled = map(moved, (self.within, self.across, self.shuffled))
        return replace(self, mean=self.mean.to(device), within=within, across=across, shuffled=shuffled)

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
        step, weight = other.mean - self.mean, self.count * other.count / count

        def joined(left: Mapping[Pair, Tensor], right: Mapping[Pair, Tensor]) -> dict[Pair, Tensor]:
            return {(i, j): torch.addr(a + right[i, j], step[i], step[j], alpha=weight) for (i, j), a in left.items()}

        own = {(i, i): a for i, a in self.within.items()}
        return replace(
            self,
            count=count,
            mean=self.mean + step * (other.count / count),
            within={i: a for (i, _), a in joined(own, {(i, i): b for i, b in other.within.items()}).items()},
            across=joined(self.across, other.across),
            shuffled=joined(self.shuffled, other.shuffled),
            dropped=_add_counts(self.dropped, other.dropped),
        )


def _require_same(left: Moments, right: Moments) -> None:
    pairs = left.pairs == right.pairs and left.shuffled.keys() == right.shuffled.keys()
    for name, same in (
        ("pairs", pairs and left.within.keys() == right.within.keys()),
        ("limits of the mask", torch.equal(left.limits, right.limits)),
        ("source", dict(left.source) == dict(right.source)),
    ):
        if not same:
            raise InputError(f"Two moments differ in their {name}", "equal ones", "gathering both with the same options")


def _add_counts(left: Mapping[str, int], right: Mapping[str, int]) -> dict[str, int]:
    return {reason: left.get(reason, 0) + right.get(reason, 0) for reason in {**left, **right}}


@dataclass(frozen=True)
class Kept:
    """Which tokens of a batch count: `tokens[sequence, position]`, and how many were left out, by reason."""

    tokens: Bool[Tensor, "sequence position"]
    dropped: Mapping[str, int]


def token_norms(states: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows"]:
    """Euclidean norms, in float32 at least: those of half-precision states would overflow in their own dtype."""
    return torch.linalg.vector_norm(states, dim=-1, dtype=torch.promote_types(states.dtype, torch.float32))


def keep(residual: Float[Tensor, "layer sequence position d"], limits: Float[Tensor, " layer"], drop_first: bool) -> Kept:
    """Apply the mask: position 0 where it is to be dropped, and tokens whose norm exceeds the limit at any layer."""
    norms = token_norms(residual)
    massive = (norms > limits.to(norms.device, norms.dtype)[:, None, None]).any(0)
    first = torch.zeros_like(massive)
    first[:, 0] = drop_first
    dropped = {"first position": int(first.sum()), "massive": int((massive & ~first).sum())}
    return Kept(~(massive | first), dropped)


class Accumulator:
    """Gathers moments of one part of a corpus, batch by batch.

    States are shifted by a fixed point near their mean and multiplied in float32; after `flush_every`
    tokens the sums are centred and merged into float64. Shifting first is what makes float32 safe: its
    uncentred sums lose three to five digits.

    Args:
        shift: `[state, d]` float32, near the means (from a pilot).
        limits: `[layer]` norms of the residual stream; a token above any of them is dropped as massive.
        pairs: which second moments to keep.
        drop_first: whether position 0 is dropped.
        source: see `Moments`.
        shuffled: pairs, some of the others, for which moments of shuffled tokens are kept too.

    Memory: `12 · d² · (states + pairs)` bytes: the sums in float64, and those since the last flush in float32.
    """

    def __init__(
        self,
        shift: Float[Tensor, "state d"],
        limits: Float[Tensor, " layer"],
        pairs: Iterable[Pair],
        *,
        drop_first: bool,
        source: Mapping[str, str | int | float],
        shuffled: Iterable[Pair] = (),
        flush_every: int = 8192,
    ):
        self.shift, self.limits, self.drop_first, self.flush_every = shift, limits, drop_first, flush_every
        self.pairs, self.shuffled = tuple(sorted(pairs)), tuple(sorted(shuffled))
        self.states = tuple(sorted({state for pair in self.pairs for state in pair}))
        self.source = dict(source)
        self._recent = self._zeros(torch.float32)
        self.moments = self._empty()
        self._clear()

    def _zeros(self, dtype: torch.dtype) -> tuple[dict[Pair, Tensor], ...]:
        shape = (self.shift.shape[1],) * 2
        keys = ([(state, state) for state in self.states], self.pairs, self.shuffled)
        return tuple({key: torch.zeros(shape, dtype=dtype, device=self.shift.device) for key in some} for some in keys)

    def _empty(self) -> Moments:
        within, across, shuffled = self._zeros(torch.float64)
        return Moments(
            count=0,
            mean=torch.zeros_like(self.shift, dtype=torch.float64),
            within={i: value for (i, _), value in within.items()},
            across=across,
            dropped={"first position": 0, "massive": 0},
            limits=self.limits.double().cpu(),
            source=self.source,
            shuffled=shuffled,
        )

    def resume(self, moments: Moments) -> None:
        """Go on from moments that were written earlier, on this accumulator's device."""
        self.moments = moments.to(self.shift.device)

    def _clear(self) -> None:
        self._count, self.just_flushed = 0, True
        self._sum = torch.zeros_like(self.shift)
        for matrices in self._recent:
            for matrix in matrices.values():
                matrix.zero_()

    def add(self, states: Float[Tensor, "state sequence position d"], kept: Kept | None = None) -> None:
        """Take in one batch of states of whole windows, each starting at its position 0.

        Args:
            states: float32 states are overwritten, which saves the time and room of a copy.
            kept: which tokens count; needed where the states are not the residual stream itself.
        """
        kept = keep(states, self.limits, self.drop_first) if kept is None else kept
        self.moments = replace(self.moments, dropped=_add_counts(self.moments.dropped, kept.dropped))
        tokens = kept.tokens.flatten()
        shifted = states.float().flatten(1, 2).sub_(self.shift[:, None])
        shifted[:, ~tokens] = 0  # a state at the shift adds nothing to any sum
        self.just_flushed = False
        self._count += int(tokens.sum())
        self._sum += shifted.sum(1)
        within, across, shuffled = self._recent
        with _full_precision():
            for (i, _), matrix in within.items():
                _add_gram(matrix, shifted[i])
            for (i, j), matrix in across.items():
                matrix.addmm_(shifted[i].T, shifted[j])
            if shuffled:
                order, others = self._partners(kept.tokens)
                for (i, j), matrix in shuffled.items():
                    matrix.addmm_(shifted[i][order].T, shifted[j][others])
        if self._count >= self.flush_every:
            self.flush()

    def _partners(self, tokens: Bool[Tensor, "sequence position"]) -> tuple[Tensor, Tensor]:
        """Places of the kept tokens, and in the same order those of their partners: half a batch away lies another text."""
        # Seeds that a resumed pass has too, and another part of the corpus has not.
        seed = zlib.crc32(f"{self.source} {self.moments.count + self._count}".encode())
        order = _shuffle_texts(tokens, seed)
        return order, order.roll(len(order) // 2)

    def flush(self) -> None:
        """Centre what was gathered since the last flush and merge it into the float64 moments, in place.

        Raises:
            InputError: states that are not finite.
        """
        if not self._count:
            return
        if not all(bool(matrix.diagonal().isfinite().all()) for matrix in self._recent[0].values()):
            found = f"Among {self._count} tokens are states that are not finite, or too large to be squared"
            raise InputError(found, "states that their dtype can hold", "opening the model with dtype='float32'")
        former, total, count = self.moments, self._sum.double(), self._count
        step = self.shift.double() + total / count - former.mean
        weight = former.count * count / (former.count + count)
        own = {(i, i): value for i, value in former.within.items()}
        for recent, merged in zip(self._recent, (own, former.across, former.shuffled), strict=True):
            for (i, j), raw in recent.items():
                centred = _mirror(raw) if i == j else raw
                sums = merged[i, j].add_(centred).addr_(total[i], total[j], alpha=-1 / count)
                sums.addr_(step[i], step[j], alpha=weight)
        mean = former.mean + step * (count / (former.count + count))
        self.moments = replace(former, count=former.count + count, mean=mean)
        self._clear()


@contextmanager
def _full_precision() -> Iterator[None]:
    """Multiply float32 as float32, whatever the user allows elsewhere: TF32 and bfloat16 lose what is summed here."""
    # One by one, because the setting for all of them refuses to be read where a single one was set.
    settings: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    lowered = [(setting, setting.fp32_precision) for setting in settings if setting.fp32_precision not in ("none", "ieee")]
    for setting, _ in lowered:
        setting.fp32_precision = "ieee"
    try:
        yield
    finally:
        for setting, former in lowered:
            setting.fp32_precision = former


def _shuffle_texts(tokens: Bool[Tensor, "sequence position"], seed: int) -> Int64[Tensor, " token"]:
    """Places of the kept tokens, text by text, in random order within each, so that partners share no position either."""
    sequences, positions = tokens.shape
    order = torch.rand(sequences, positions, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    order = (order + positions * torch.arange(sequences)[:, None]).flatten().to(tokens.device)
    return order[tokens.flatten()[order]]


def _add_gram(into: Tensor, x: Tensor) -> None:
    """Add `xᵀx`, but for its lower left quarter, which `_mirror` fills: a quarter of the work saved."""
    half = x.shape[1] // 2
    into[:half].addmm_(x[:, :half].T, x)
    into[half:, half:].addmm_(x[:, half:].T, x[:, half:])


def _mirror(gram: Tensor) -> Tensor:
    half = gram.shape[0] // 2
    gram[half:, :half] = gram[:half, half:].T
    return gram


def outlier_limits(norms: Float[Tensor, "layer token"], mask: Mask) -> Float[Tensor, " layer"]:
    """Norms from which a token counts as massive: five times a layer's median over a pilot, or infinity."""
    if mask == "robust":
        return OUTLIER * norms.median(dim=1).values
    return torch.full((norms.shape[0],), torch.inf, device=norms.device)
