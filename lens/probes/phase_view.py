"""The residual stream of any model cut into N phases: is a cut into adjacent channels better than a random one?

Every state counts alike, for it is divided by its length first. Then all but the correlations is a sum over the channels of a
phase, so that another N is arithmetic on one number for each channel and never reads the tokens again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Complex128, Float64
from torch import Tensor

from lens.base.errors import InputError
from lens.models.run import Run
from lens.models.three_phase import ThreePhaseForCausalLM, stream_angles
from lens.probes.dataset import exact, variable
from lens.probes.phases import Stream, read_stream

SOURCE = (
    "our own; the phases of Abu Ayyash, arXiv 2604.14430, section 3; moments of a sum over random pairings: Mantel, 'The "
    "detection of disease clustering and a generalized regression approach', Cancer Research 27 (1967)"
)
MEASURES = ("length", "mean", "angle", "correlation", "rotation")
MOST_PHASES = 48
_NORMAL = 1.959964  # deviations of a normal distribution that hold 95 %


@dataclass(frozen=True)
class ChannelSums:
    """What every cut of a stream into phases is made of; states have a root mean square of one, tokens count alike.

    Attributes:
        energy: mean square of each channel, `[layer, channel]`.
        mean: of each channel.
        overlap: mean product of a channel before and after a block, `[block, channel]`.
        turned: mean of `conj(before) · after` of pairs of adjacent channels as complex numbers, `[block, pair]`.
        imposed: rotations of a Three-Phase model, complex numbers of length one; NaN for other models.
        linked: by number of phases, sum of |correlation| between the channels of two phases, `[layer, phase, other]`.
        pairs: of the matrix of |correlation| between pairs, by layer: its sum without the diagonal, its sum of squares, the
            sum of its squared row sums; and the sum within pairs.
        tokens: that were read.
        own_phases: N of a Three-Phase model, else None.
        facts: provenance.
    """

    energy: Float64[Tensor, "layer channel"]
    mean: Float64[Tensor, "layer channel"]
    overlap: Float64[Tensor, "block channel"]
    turned: Complex128[Tensor, "block pair"]
    imposed: Complex128[Tensor, "block pair"]
    linked: Mapping[int, Float64[Tensor, "layer phase other"]]
    pairs: Float64[Tensor, "layer moment"]
    tokens: int
    own_phases: int | None
    facts: Mapping[str, Any]

    @property
    def width(self) -> int:
        """Channels."""
        return self.energy.shape[-1]


def cuts(width: int) -> tuple[int, ...]:
    """Numbers of phases, up to 48, that cut so many channels into phases of whole pairs."""
    return tuple(phases for phases in range(1, min(MOST_PHASES, width // 2) + 1) if width % (2 * phases) == 0)


def channel_sums(runs: Run | Sequence[Run], *, drop_first: bool = True) -> ChannelSums:
    """Read a stream once, for every number of phases.

    Args:
        runs: one run of any model with an even number of channels, or several, whose tokens count alike.
        drop_first: whether the first token of every text is left out: in many models its state outweighs all others.

    Cost: a product `[d, token] × [token, d]` for each layer. Memory: the states in float64 twice, two matrices `[d, d]`.

    Raises:
        InputError: as `lens.probes.phases.read_stream`; one token, fewer than eight channels, or a state of zeros.
    """
    stream = read_stream(runs, 1, drop_first)
    tokens, width = stream.states.shape[1:]
    if tokens < 2 or width < 8:
        raise InputError(f"{tokens} token of {width} channels", "two tokens of eight channels, or more", "a longer text")
    if not bool((stream.states.norm(dim=-1) > 0).all()):
        raise InputError("A state is zero", "states with a direction", "other tokens")
    energy, mean, overlap, turned = [], [], [], []
    for layer in stream.states:
        energy.append(_unit(layer).pow(2).mean(0))
        mean.append(_unit(layer).mean(0))
    for before, after in itertools.pairwise(map(_unit, stream.states)):  # two layers at a time
        overlap.append((before * after).mean(0))
        turned.append((_as_complex(before).conj() * _as_complex(after)).mean(0))
    linked, pairs = _correlations(stream.states, cuts(width))
    module = stream.model.module
    facts = {name: value for name, value in stream.facts.items() if name not in ("phases", "source")}
    return ChannelSums(
        torch.stack(energy),
        torch.stack(mean),
        torch.stack(overlap),
        torch.stack(turned),
        _imposed(stream),
        linked,
        pairs,
        tokens,
        module.config.num_phases if isinstance(module, ThreePhaseForCausalLM) else None,
        facts,
    )


def phase_view(
    source: ChannelSums | Run | Sequence[Run],
    phases: int | None = None,
    measure: str = "length",
    *,
    partitions: int = 100,
    seed: int = 0,
    drop_first: bool = True,
) -> xr.Dataset:
    """One measure of the phases of a stream, against partitions that deal out pairs of adjacent channels at random.

    Args:
        source: one run of any model, several, or what `channel_sums` made of them.
        phases: N, of `cuts(d)`; by default that of a Three-Phase model.
        measure: `length`: of a phase over that of the state, times √N, root mean square over tokens; `mean`: over tokens and
            channels, of states with a root mean square of one; `angle`: between a phase before and after a block, degrees, by
            the sums of products over tokens; `correlation`: mean |correlation| of channels; `rotation`: of pairs of channels.
        partitions: random ones to compare with; for `correlation` all there are, exactly.
        seed: for their draw.
        drop_first: as in `channel_sums`, for runs.

    Returns:
        Dataset over `layer`, or `block` for what happens between layers (`angle`, `rotation`):

        - `statistic`: largest less smallest phase; for `correlation`, mean within phases less mean between them; for
          `rotation` the locking, `|Σ exp(−2πi·n/N) z_n| / N`, z the rotation that phase n shares, with the share of its
          lengths that it explains as its size: 1 where every phase turns 360/N degrees more than the one before;
        - `random_low`, `random_middle`, `random_high`: the same for random partitions, 95 % and the median (the mean for
          `correlation`, whose ends are 1.96 exact standard deviations from it);
        - `deviations`: how many standard deviations of random partitions the statistic is above their mean; NaN where they
          do not vary;
        - `value[…, phase]`; `value_low`, `value_high`: what holds 95 % of random parts. For `correlation`
          `value[layer, phase, other]`, `within` and `between`, and `noise`, what unrelated channels show with so many independent
          tokens. For `rotation` instead `turn[block, pair]`, the measured rotation, `coherence`, and `imposed`, that of a
          Three-Phase model (NaN for others), radians; `miss[block]`: mean over pairs, by coherence, of their difference without
          its sign, π/2 by chance; `turn_size`: the same mean of the turn's size.

    Raises:
        InputError: a number of phases that does not cut the channels into whole pairs, another measure, no partition.
    """
    sums = source if isinstance(source, ChannelSums) else channel_sums(source, drop_first=drop_first)
    found = sums.own_phases if phases is None else phases
    if found is None or found not in sums.linked:
        needed = f"one of {', '.join(map(str, sums.linked))} for {sums.width} channels"
        raise InputError(f"{found} phases" if found else "The number of phases is not given", needed, "phases=2")
    if measure not in MEASURES or partitions < 2:
        raise InputError(f"{measure!r}, {partitions} partitions", f"one of {', '.join(MEASURES)}, 2 or more", "measure='length'")
    make = {"correlation": _correlation, "rotation": _rotation}.get(measure)
    variables = make(sums, found, partitions, seed) if make else _parts(sums, found, measure, partitions, seed)
    sizes = xr.Dataset(variables).sizes
    facts = {**sums.facts, "source": SOURCE, "probe": "phase_view", "phases": found, "measure": measure, "seed": seed}
    facts |= {"own_phases": sums.own_phases} if sums.own_phases else {}
    places = {name: variable((name,), np.arange(sizes[name]), words) for name, words in _PLACES.items() if name in sizes}
    return xr.Dataset(variables, places, facts)


_PLACES = {
    "layer": "residual state (0 is the embedding)",
    "block": "block, from layer b to b+1",
    "phase": "phase, from the first channels on",
    "other": "phase",
    "pair": "pair of adjacent channels",
}
_WORDS = {
    "length": ("length of a phase over that of the state, times √N", "1"),
    "mean": ("mean of a phase, states of root mean square 1", "1"),
    "angle": ("angle between a phase before and after a block", "degrees"),
}


def _unit(states: Float64[Tensor, "token d"]) -> Float64[Tensor, "token d"]:
    """Of a root mean square of one."""
    return states / states.norm(dim=-1, keepdim=True) * math.sqrt(states.shape[-1])


def _as_complex(states: Float64[Tensor, "token d"]) -> Complex128[Tensor, "token pair"]:
    return torch.view_as_complex(states.unflatten(-1, (-1, 2)))


def _imposed(stream: Stream) -> Complex128[Tensor, "block pair"]:
    module = stream.model.module
    if isinstance(module, ThreePhaseForCausalLM) and not module.config.residual_rotation:
        angles = stream_angles(module).diff(dim=0).flatten(1)
        return torch.polar(torch.ones_like(angles), angles)
    return torch.full((len(stream.states) - 1, stream.states.shape[-1] // 2), complex("nan"), dtype=torch.complex128)


# -- lengths, means, angles ------------------------------------------------------------------------


def _parts(sums: ChannelSums, phases: int, measure: str, partitions: int, seed: int) -> dict[str, xr.Variable]:
    orders = _orders(sums.width // 2, partitions, seed)
    values = _VALUES[measure](sums, lambda channels: _totals(channels, phases, orders))  # [place, partition, phase]
    place = "block" if measure == "angle" else "layer"
    words, unit = _WORDS[measure]
    spread = (values.amax(-1) - values.amin(-1)).numpy()
    low, high = np.nanquantile(values[:, 1:].flatten(1).numpy(), [0.025, 0.975], axis=-1)
    return {
        "value": exact((place, "phase"), values[:, 0].numpy(), words, unit),
        "value_low": exact((place,), low, "of random parts, 2.5 % are below", unit),
        "value_high": exact((place,), high, "of random parts, 2.5 % are above", unit),
        **_against_chance((place,), spread[:, 0], spread[:, 1:], f"largest less smallest {measure} of a phase", unit),
    }


def _lengths(sums: ChannelSums, total: Callable[[Tensor], Tensor]) -> Tensor:
    energy = total(sums.energy)
    return (energy * energy.shape[-1] / sums.width).sqrt()


def _means(sums: ChannelSums, total: Callable[[Tensor], Tensor]) -> Tensor:
    found = total(sums.mean)
    return found * found.shape[-1] / sums.width


def _angles(sums: ChannelSums, total: Callable[[Tensor], Tensor]) -> Tensor:
    energy = total(sums.energy)
    return (total(sums.overlap) / (energy[:-1] * energy[1:]).sqrt()).clamp(-1, 1).arccos().rad2deg()


_VALUES: dict[str, Callable[[ChannelSums, Callable[[Tensor], Tensor]], Tensor]] = {
    "length": _lengths,
    "mean": _means,
    "angle": _angles,
}


def _orders(pairs: int, partitions: int, seed: int) -> Tensor:
    """Orders of the pairs, their own first, `[partition, pair]`; phases are neighbours in them."""
    random = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([np.arange(pairs), *(random.permutation(pairs) for _ in range(partitions))]))


def _totals(channels: Tensor, phases: int, orders: Tensor) -> Tensor:
    """`[place, partition, phase]`."""
    return _by_order(channels.unflatten(-1, (-1, 2)).sum(-1), phases, orders)


def _by_order(pairs: Tensor, phases: int, orders: Tensor) -> Tensor:
    return pairs[:, orders].unflatten(-1, (phases, -1)).sum(-1)


def _against_chance(dims: tuple[str, ...], own: np.ndarray, random: np.ndarray, words: str, unit: str) -> dict[str, xr.Variable]:
    """`random` has the partitions last."""
    low, middle, high = np.quantile(random, [0.025, 0.5, 0.975], axis=-1)
    return {
        "statistic": exact(dims, own, words, unit),
        **_band(dims, low, middle, high, unit),
        "deviations": exact(dims, _deviations(own, random.mean(-1), random.std(-1)), "above the mean of random partitions"),
    }


def _band(dims: tuple[str, ...], low: np.ndarray, middle: np.ndarray, high: np.ndarray, unit: str) -> dict[str, xr.Variable]:
    ends = {"random_low": low, "random_middle": middle, "random_high": high}
    return {name: exact(dims, values, "the same of random partitions", unit) for name, values in ends.items()}


def _deviations(own: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """NaN where nothing but rounding varies."""
    return (own - mean) / np.where(deviation > 1e-9 * np.abs(mean), deviation, np.nan)


# -- correlation -----------------------------------------------------------------------------------


def _correlations(states: Tensor, phases: Sequence[int]) -> tuple[dict[int, Tensor], Tensor]:
    """By number of phases the sums between them, and the moments of the matrix of pairs; see `ChannelSums`."""
    linked: dict[int, list[Tensor]] = {count: [] for count in phases}
    moments = []
    for layer in states:
        strength = _strength(layer)
        pairs = strength.unflatten(1, (-1, 2)).sum(-1).unflatten(0, (-1, 2)).sum(1)
        for count, found in linked.items():
            found.append(pairs.unflatten(1, (count, -1)).sum(-1).unflatten(0, (count, -1)).sum(1))
        inner = pairs.diagonal().sum()
        pairs.fill_diagonal_(0.0)
        moments.append(torch.stack([pairs.sum(), pairs.pow(2).sum(), pairs.sum(0).pow(2).sum(), inner]))
    return {count: torch.stack(found) for count, found in linked.items()}, torch.stack(moments)


def _strength(states: Float64[Tensor, "token d"]) -> Float64[Tensor, "d d"]:
    """Correlations without their signs, zero on the diagonal and for a channel that does not vary."""
    centred = states - states.mean(0)
    lengths = centred.norm(dim=0)
    units = torch.where(lengths > 1e-12 * states.norm(dim=0), centred / lengths, 0.0)
    return (units.T @ units).abs().fill_diagonal_(0.0)


def _correlation(sums: ChannelSums, phases: int, _partitions: int, _seed: int) -> dict[str, xr.Variable]:
    linked, width = sums.linked[phases], sums.width
    size = width // phases
    inside, total = linked.diagonal(dim1=1, dim2=2).sum(-1).numpy(), linked.sum((1, 2)).numpy()
    counts = np.full((phases, phases), float(size**2)) - size * np.eye(phases)
    mean, deviation = _inside_of_random(sums.pairs.numpy(), width // 2, phases)
    number = phases * size * (size - 1)

    def difference(found: np.ndarray) -> np.ndarray:
        return found / number - (total - found) / (width**2 - phases * size**2) if phases > 1 else np.full_like(found, np.nan)

    reach = _NORMAL * deviation
    between = (total - inside) / (width**2 - phases * size**2) if phases > 1 else np.full_like(inside, np.nan)
    words = "mean |correlation| within phases less between them"
    return {
        "value": exact(("layer", "phase", "other"), linked.numpy() / counts, "mean |correlation| of channels"),
        "within": exact(("layer",), inside / number, "mean |correlation| of channels of one phase"),
        "between": exact(("layer",), between, "mean |correlation| of channels of different phases"),
        "noise": exact((), math.sqrt(2 / (math.pi * sums.tokens)), "mean |correlation| of unrelated channels"),
        "statistic": exact(("layer",), difference(inside), words),
        **_band(("layer",), difference(mean - reach), difference(mean), difference(mean + reach), "1"),
        "deviations": exact(("layer",), _deviations(inside, mean, deviation), "above the mean of random partitions"),
    }


def _inside_of_random(moments: np.ndarray, pairs: int, phases: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation, over all ways to deal the pairs out, of the sum of |correlation| inside phases, by layer.

    The sum is `Σ S_jk B_π(j)π(k)`, B one where two places are of one phase. The square of a sum over pairs falls into products
    that share both ends, one, and none, each of whose mean is a product of means.
    """
    ways = [pairs * (pairs - 1)]
    ways += [ways[0] * (pairs - 2), ways[0] * (pairs - 2) * (pairs - 3)]
    others = pairs // phases - 1  # of one phase, for each pair
    placed = _products(np.array([pairs * others]), np.array([pairs * others]), np.array([pairs * others**2]))
    found = _products(*moments.T[:3])
    mean = moments[:, 0] * pairs * others / ways[0]
    square = sum(one * other / count for one, other, count in zip(found, placed, ways, strict=True))
    # A phase of one pair, or of all, has nothing to deal out.
    deviation = np.sqrt(np.maximum(square - mean**2, 0.0)) if 1 < phases < pairs else np.zeros_like(mean)
    return mean + moments[:, 3], deviation


def _products(total: np.ndarray, squares: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Over ordered pairs of entries: those at one place or its mirror, those that share one index, the rest, with the root of
    each one's multiplicity taken into either factor."""
    return math.sqrt(2) * squares, 2 * (rows - squares), total**2 - 4 * rows + 2 * squares


# -- rotation --------------------------------------------------------------------------------------


def _rotation(sums: ChannelSums, phases: int, partitions: int, seed: int) -> dict[str, xr.Variable]:
    orders = _orders(sums.width // 2, partitions, seed)
    energy = _totals(sums.energy, phases, orders)
    shared = _by_order(sums.turned, phases, orders) / (energy[:-1] * energy[1:]).sqrt()  # [block, partition, phase]
    steps = torch.polar(torch.ones(phases, dtype=torch.float64), -2 * math.pi / phases * torch.arange(phases).double())
    locking = ((shared * steps).sum(-1).abs() / phases).numpy()
    own = sums.energy.unflatten(-1, (-1, 2)).sum(-1)
    turn = sums.turned / (own[:-1] * own[1:]).sqrt()
    by_pair = ("block", "pair")
    return {
        "turn": exact(by_pair, turn.angle().numpy(), "measured rotation of a pair", "radian"),
        "coherence": exact(by_pair, turn.abs().numpy(), "share explained by the rotation"),
        "imposed": exact(by_pair, sums.imposed.angle().numpy(), "rotation that the model imposes", "radian"),
        "miss": exact(("block",), _mean_size(turn / sums.imposed).numpy(), "measured less imposed rotation", "radian"),
        "turn_size": exact(("block",), _mean_size(turn).numpy(), "size of the measured rotation", "radian"),
        **_against_chance(("block",), locking[:, 0], locking[:, 1:], "locking of the phases' rotations", "1"),
    }


def _mean_size(turns: Complex128[Tensor, "block pair"]) -> Float64[Tensor, " block"]:
    return (turns.abs() * turns.angle().abs()).sum(-1) / turns.abs().sum(-1)
