"""How far each block turns the phases of the stream and their pairs of channels: measured, and as a rotation imposes it.

What is measured depends on the basis. The twin of a Three-Phase model whose rotation was absorbed into its weights has the
same logits, and each of its pairs turns by just the imposed angle less.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Complex128, Float64
from torch import Tensor

from lens.base.errors import InputError
from lens.models.run import Run
from lens.models.three_phase import ThreePhaseForCausalLM, stream_angles
from lens.probes.dataset import exact, variable
from lens.probes.phases import Stream, own_partition, random_partitions, read_stream

SOURCE = "our own; the phases and rotations of Abu Ayyash, arXiv 2604.14430, section 3"


def phase_turn(
    runs: Run | Sequence[Run], phases: int | None = None, *, partitions: int = 100, seed: int = 0, drop_first: bool = False
) -> xr.Dataset:
    """Angles between consecutive residual states, by phase and by pair of adjacent channels, against random partitions.

    Args:
        runs: one run of any model, or several, whose tokens count alike.
        phases: N; by default that of a Three-Phase model.
        partitions: random ones to compare with.
        seed: for their draw.
        drop_first: True leaves out the first token of every text, whose state outweighs all others in many models.

    Returns:
        Dataset over `block` (block b leads from layer b to b + 1), `phase`, `pair` and `partition`:

        - `angle[block, phase]`: mean over tokens of the angle between a phase before and after the block, degrees;
          `state_angle[block]`: of the whole state; `angle_spread[block]`: largest less smallest phase;
          `random_angle_spread[block, partition]`: the same for random partitions;
        - `turn[block, phase, pair]`: signed angle of the rotation that takes a pair of channels closest to what it is after the
          block, over all tokens, radians, −π to π; `coherence`: what share of their lengths that rotation explains, 0 to 1;
        - `imposed[block, phase, pair]`: angle of a Three-Phase model's rotation, −π to π; NaN for other models;
        - `miss[block]`: mean over pairs, by coherence, of the difference between turn and imposed angle without its sign,
          radians; π/2 by chance;
        - `turn_size[block]`: the same mean of the turn's size; `random_turn_size[block, partition]`: of channels
          paired at random.

    Raises:
        InputError: as `lens.probes.phases.read_stream`, no partition, or a phase of zeros.
    """
    stream = read_stream(runs, phases, drop_first)
    width = stream.states.shape[-1]
    own = own_partition(width, stream.phases)[:, None]
    drawn = random_partitions(width, stream.phases, partitions, seed)
    angle = _angles(stream.states, own)[:, 0]
    orders = [torch.arange(width), *_shuffles(width, partitions, seed)]
    turns = torch.stack([_pair_turns(*states, orders) for states in itertools.pairwise(stream.states)])
    pairs, random_pairs = turns[:, 0].unflatten(-1, (stream.phases, -1)), turns[:, 1:]
    imposed = _imposed(stream)
    found = {
        "angle": exact(("block", "phase"), angle.numpy(), "angle between a phase before and after a block", "degrees"),
        "state_angle": exact(("block",), _angles(stream.states, own.sum(-1, keepdim=True))[:, 0, 0].numpy(), "angle", "degrees"),
        "angle_spread": exact(("block",), _spread(angle).numpy(), "largest less smallest angle of a phase", "degrees"),
        "random_angle_spread": exact(
            ("block", "partition"), _spread(_angles(stream.states, drawn)).numpy(), "the same, random partitions", "degrees"
        ),
        "turn": exact(("block", "phase", "pair"), pairs.angle().numpy(), "measured rotation of a pair", "radian"),
        "coherence": exact(("block", "phase", "pair"), pairs.abs().numpy(), "share explained by the rotation"),
        "imposed": exact(("block", "phase", "pair"), imposed.angle().numpy(), "rotation that the model imposes", "radian"),
        "miss": exact(("block",), _mean_size((pairs / imposed).flatten(1)).numpy(), "measured less imposed rotation", "radian"),
        "turn_size": exact(("block",), _mean_size(pairs.flatten(1)).numpy(), "size of the measured rotation", "radian"),
        "random_turn_size": exact(
            ("block", "partition"), _mean_size(random_pairs).numpy(), "the same, channels paired at random", "radian"
        ),
    }
    coordinates = {
        name: variable((name,), np.arange(size), text)
        for name, size, text in (
            ("block", len(angle), "block, from layer b to b+1"),
            ("phase", stream.phases, "phase, from the first channels on"),
            ("pair", pairs.shape[-1], "pair of adjacent channels of a phase"),
        )
    }
    return xr.Dataset(found, coordinates, {**stream.facts, "source": SOURCE, "probe": "phase_turn", "seed": seed})


def _angles(states: Float64[Tensor, "layer token d"], partition: Tensor) -> Float64[Tensor, "block partition phase"]:
    """Mean over tokens, degrees."""
    found = []
    for before, after in itertools.pairwise(states):
        dot, *squares = (torch.einsum("td,dpn->tpn", product, partition) for product in (before * after, before**2, after**2))
        lengths = (squares[0] * squares[1]).sqrt()
        if not bool((lengths > 0).all()):
            raise InputError("A phase of a token is zero", "phases with a direction", "fewer phases, or other tokens")
        found.append((dot / lengths).clamp(-1, 1).arccos().rad2deg().mean(0))
    return torch.stack(found)


def _pair_turns(
    before: Float64[Tensor, "token d"], after: Float64[Tensor, "token d"], orders: Sequence[Tensor]
) -> Complex128[Tensor, "order pair"]:
    """For every order of the channels, neighbours being pairs: Σ conj(before) · after over tokens, over both lengths."""
    cross, found = before.T @ after, []
    energies = [states.pow(2).sum(0) for states in (before, after)]
    for order in orders:
        one, other = order.view(-1, 2).unbind(-1)
        product = torch.complex(cross[one, one] + cross[other, other], cross[one, other] - cross[other, one])
        lengths = (energies[0][one] + energies[0][other]) * (energies[1][one] + energies[1][other])
        found.append(product / lengths.sqrt())
    return torch.stack(found)


def _imposed(stream: Stream) -> Complex128[Tensor, "block phase pair"]:
    """As numbers of length one; NaN where the model imposes nothing."""
    module = stream.model.module
    if isinstance(module, ThreePhaseForCausalLM) and not module.config.residual_rotation:
        angles = stream_angles(module).diff(dim=0)
        if angles.shape[1] == stream.phases:
            return torch.polar(torch.ones_like(angles), angles)
    shape = (len(stream.states) - 1, stream.phases, stream.states.shape[-1] // (2 * stream.phases))
    return torch.full(shape, complex("nan"), dtype=torch.complex128)


def _mean_size(turns: Complex128[Tensor, "*batch pair"]) -> Float64[Tensor, "*batch"]:
    return (turns.abs() * turns.angle().abs()).sum(-1) / turns.abs().sum(-1)


def _spread(values: Float64[Tensor, "*batch phase"]) -> Float64[Tensor, "*batch"]:
    return values.amax(-1) - values.amin(-1)


def _shuffles(width: int, count: int, seed: int) -> list[Tensor]:
    random = np.random.default_rng(seed)
    return [torch.from_numpy(random.permutation(width)) for _ in range(count)]
