"""Means and lengths of the phases of a residual stream, and where the horn is, each beside what chance gives.

That the mean of the embedded tokens is the horn is an identity, computed right after the horn was put there. That phases
are balanced is one, too, as long as any other partition of the channels is as balanced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float64
from torch import Tensor

from lens.base.errors import InputError
from lens.models.run import Run
from lens.models.three_phase import ThreePhaseForCausalLM, transported_direction
from lens.probes.dataset import exact, texts, variable
from lens.probes.phases import Stream, own_partition, random_partitions, read_stream

SOURCE = "Abu Ayyash, arXiv 2604.14430, sections 4.5 to 4.9; nulls and the transported direction: our own"
EQUAL, TRANSPORTED = "equal channels", "transported"


def phase_balance(
    runs: Run | Sequence[Run], phases: int | None = None, *, partitions: int = 100, seed: int = 0, drop_first: bool = False
) -> xr.Dataset:
    """Means and lengths of phases through depth, against random partitions of the same channels.

    Args:
        runs: one run of any model, or several, whose tokens count alike.
        phases: N; by default that of a Three-Phase model.
        partitions: random ones to compare with.
        seed: for their draw.
        drop_first: True leaves out the first token of every text, whose state outweighs all others in many models.

    Returns:
        Dataset over `layer`, `phase` and `partition`:

        - `phase_mean[layer, phase]`: over tokens and the channels of a phase; `residual[layer]`: their sum over phases, the
          published zero-sum residual; `squared_residual`: mean over tokens of its square;
        - `radius[layer, phase]`: mean over tokens of `√N · ‖phase‖ / ‖state‖`, one for phases of equal length;
        - `mean_spread`, `radius_spread[layer]`: largest less smallest phase; `random_mean_spread`,
          `random_radius_spread[layer, partition]`: the same for random partitions;
        - `share[layer, direction]`: mean over tokens of the state's squared cosine with a direction: `equal channels`, where the
          horn is put, and for a model whose rotations replace the stream `transported`, what they turn that direction into;
          `random_share`: what a random direction has, 1/d;
        - `horn_fit[layer, direction]`: R² of the component along it as a line in 1/(position + 1); NaN where the component or the
          position does not vary;
        - `untrained_deviation`: standard deviation of a phase's mean at layer 0 for an embedding of independent standard
          normal numbers and these tokens, without a horn.

    Cost: a product `[layer · token, d] × [d, partitions · N]`.

    Raises:
        InputError: as `lens.probes.phases.read_stream`, or no partition.
    """
    stream = read_stream(runs, phases, drop_first)
    width = stream.states.shape[-1]
    own = own_partition(width, stream.phases)[:, None]
    drawn = random_partitions(width, stream.phases, partitions, seed)
    mean, radius = (statistic(stream.states, own)[:, 0] for statistic in (_means, _radii))
    totals = stream.states.mean(-1) * stream.phases
    directions = _directions(stream)
    components = {name: (stream.states * along[:, None]).sum(-1) for name, along in directions.items()}
    lengths = stream.states.norm(dim=-1)
    _, counts = np.unique(stream.token_ids.numpy(), return_counts=True)
    found = {
        "phase_mean": exact(("layer", "phase"), mean.numpy(), "mean over tokens and channels of a phase"),
        "residual": exact(("layer",), mean.sum(-1).numpy(), "sum of the phases' means"),
        "squared_residual": exact(("layer",), totals.pow(2).mean(-1).numpy(), "mean square of the sum of a token's phase means"),
        "radius": exact(("layer", "phase"), radius.numpy(), "length of a phase over that of the state, times √N"),
        "share": exact(("layer", "direction"), _columns(components, lambda c: (c / lengths).pow(2).mean(-1)), "squared cosine"),
        "horn_fit": exact(
            ("layer", "direction"), _columns(components, lambda c: _fit(c, stream.positions)), "R² with 1/(position + 1)"
        ),
        "random_share": exact((), 1 / width, "squared cosine with a random direction"),
        "untrained_deviation": exact(
            (),
            math.sqrt((counts**2).sum() / len(stream.token_ids) ** 2 * stream.phases / width),
            "deviation of an untrained mean",
        ),
    }
    for name, values, random in (("mean", mean, _means), ("radius", radius, _radii)):
        long_name = f"largest less smallest {name} of a phase"
        found[f"{name}_spread"] = exact(("layer",), _spread(values).numpy(), long_name)
        spreads = _spread(random(stream.states, drawn)).numpy()
        found[f"random_{name}_spread"] = exact(("layer", "partition"), spreads, f"{long_name}, random partitions")
    coordinates = {
        "layer": variable(("layer",), np.arange(len(mean)), "residual state (0 is the embedding)"),
        "phase": variable(("phase",), np.arange(stream.phases), "phase, from the first channels on"),
        "direction": texts(("direction",), list(directions), "direction in the stream"),
    }
    return xr.Dataset(found, coordinates, {**stream.facts, "source": SOURCE, "probe": "phase_balance", "seed": seed})


def _means(states: Float64[Tensor, "layer token d"], partition: Tensor) -> Float64[Tensor, "layer partition phase"]:
    return torch.einsum("ld,dpn->lpn", states.mean(1), partition) / partition[:, 0, 0].sum()


def _radii(states: Float64[Tensor, "layer token d"], partition: Tensor) -> Float64[Tensor, "layer partition phase"]:
    found = []
    for layer in states:  # one at a time: every token has a number for each part of each partition
        shares = torch.einsum("td,dpn->tpn", layer.pow(2), partition) / layer.pow(2).sum(-1)[:, None, None]
        found.append((partition.shape[-1] * shares).sqrt().mean(0))
    return torch.stack(found)


def _spread(values: Float64[Tensor, "*batch phase"]) -> Float64[Tensor, "*batch"]:
    return values.amax(-1) - values.amin(-1)


def _directions(stream: Stream) -> dict[str, Float64[Tensor, "layer d"]]:
    layers, _, width = stream.states.shape
    found = {EQUAL: torch.full((layers, width), 1 / math.sqrt(width), dtype=torch.float64)}
    module = stream.model.module
    if isinstance(module, ThreePhaseForCausalLM) and not module.config.residual_rotation:
        found[TRANSPORTED] = torch.stack([transported_direction(module, layer) for layer in range(layers)])
    return found


def _columns(components: dict[str, Tensor], statistic: Callable[[Tensor], Tensor | np.ndarray]) -> np.ndarray:
    return np.stack([np.asarray(statistic(component)) for component in components.values()], -1)


def _fit(component: Float64[Tensor, "layer token"], positions: Tensor) -> np.ndarray:
    """R² of a line in 1/(position + 1), for each layer."""
    horn = 1 / (positions.double() + 1)
    deviations, horn = component - component.mean(-1, keepdim=True), horn - horn.mean()
    energy = deviations.pow(2).sum(-1) * horn.pow(2).sum()
    scale = component.pow(2).sum(-1) * horn.pow(2).sum()
    fits = (deviations @ horn).pow(2) / energy
    return np.where(energy > 1e-24 * scale, fits, np.nan)  # below that the component is constant but for rounding


def untrained_deviation(probabilities: np.ndarray, tokens: int, channels: int) -> float:
    """Standard deviation of a phase's mean for an untrained embedding of independent standard normal numbers.

    A mean over tokens weighs each entry of the table by how often its token occurs: `√(E Σ counts² / tokens² / channels)`.

    Args:
        probabilities: of the vocabulary's tokens, drawn independently.
        tokens: in the mean.
        channels: of the phase.

    Raises:
        InputError: probabilities that do not sum to one.
    """
    values = np.asarray(probabilities, dtype=np.float64)
    if (values < 0).any() or abs(values.sum() - 1) > 1e-6:
        raise InputError(f"The probabilities sum to {values.sum():.6g}", "to 1, none below 0", "counts / counts.sum()")
    return math.sqrt((1 / tokens + (1 - 1 / tokens) * float((values**2).sum())) / channels)
