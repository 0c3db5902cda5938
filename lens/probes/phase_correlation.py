"""Whether channels of one phase have more to do with each other than channels of different phases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float64
from torch import Tensor

from lens.base.errors import InputError
from lens.models.run import Run
from lens.moments import Moments
from lens.probes.dataset import exact, fit_provenance, texts, variable
from lens.probes.phases import Unit, own_partition, random_partitions, read_stream

SOURCE = "our own; the phases of Abu Ayyash, arXiv 2604.14430, section 3"


def phase_correlation(
    source: Moments | Run | Sequence[Run],
    phases: int | None = None,
    *,
    partitions: int = 100,
    seed: int = 0,
    drop_first: bool = False,
) -> xr.Dataset:
    """Mean correlation of channels, without its sign, within phases and between them, against random partitions.

    A rotation mixes the two channels of a pair, which always lie in one phase. So phases are compared with
    partitions of channels, and with partitions of whole pairs, which tell whether there is more to a phase than its pairs.

    Args:
        source: moments of the residual stream, or one or several runs of any model.
        phases: N, 2 or more; by default that of a Three-Phase model. Moments need it.
        partitions: random ones of each kind to compare with.
        seed: for their draw.
        drop_first: True leaves out the first token of every text, whose state outweighs all others in many
            models; moments have left out what their mask says.

    Returns:
        Dataset over `layer`, `unit` (`pair`, `channel`) and `partition`:

        - `within`, `between[layer]`: mean over pairs of channels, a channel with itself left out;
        - `difference[layer]`: within less between; `random_difference[layer, unit, partition]`: the same for random partitions;
        - `above[layer, unit]`: share of these that are as large or larger;
        - `noise`: what channels that have nothing to do with each other show with so many independent tokens, √(2/(π · tokens)).

    Cost: a product `[d, d] × [d, partitions · N]` for each layer and unit.

    Raises:
        InputError: as `lens.probes.phases.read_stream`; one phase; or a channel that does not vary.
    """
    covariances, tokens, found_phases, facts = _covariances(source, phases, drop_first)
    width = next(iter(covariances.values())).shape[0]
    if found_phases < 2 or width % (2 * found_phases):
        raise InputError(f"{found_phases} phases of {width} channels", "2 or more, of an even number of channels", "phases=2")
    own = own_partition(width, found_phases)[:, None]
    units = get_args(Unit)
    drawn = {unit: random_partitions(width, found_phases, partitions, seed, unit) for unit in units}
    rows = []
    for layer, covariance in covariances.items():
        strength = _strength(covariance, layer)
        within, between = (mean.item() for mean in _split(strength, own))
        random = np.stack([np.subtract(*_split(strength, drawn[unit])) for unit in units])
        rows.append((within, between, random))
    within, between = (np.array([row[side] for row in rows]) for side in (0, 1))
    random = np.stack([row[2] for row in rows])
    own_difference = within - between
    return xr.Dataset(
        {
            "within": exact(("layer",), within, "mean |correlation| of channels of one phase"),
            "between": exact(("layer",), between, "mean |correlation| of channels of different phases"),
            "difference": exact(("layer",), own_difference, "within less between"),
            "random_difference": exact(("layer", "unit", "partition"), random, "within less between, random partitions"),
            "above": exact(
                ("layer", "unit"), (random >= own_difference[:, None, None]).mean(-1), "share of partitions as large or larger"
            ),
            "noise": exact((), math.sqrt(2 / (math.pi * tokens)), "mean |correlation| of unrelated channels"),
        },
        {
            "layer": variable(("layer",), np.array(list(covariances)), "residual state (0 is the embedding)"),
            "unit": texts(("unit",), list(units), "what random partitions deal out"),
        },
        {**facts, "source": SOURCE, "probe": "phase_correlation", "phases": found_phases, "tokens": tokens, "seed": seed},
    )


def _covariances(
    source: Moments | Run | Sequence[Run], phases: int | None, drop_first: bool
) -> tuple[dict[int, Float64[Tensor, "d d"]], int, int, dict[str, Any]]:
    """Of every layer, up to a factor; how many tokens; N; and provenance."""
    if isinstance(source, Moments):
        if phases is None:
            raise InputError("The number of phases is not given", "how many to cut the stream into", "phases=3")
        if source.source.get("states", "residual") != "residual":
            raise InputError(
                f"The moments are of {source.source['states']}", "the residual stream", "collect_moments(model, corpus)"
            )
        sums = {layer: source.within[layer].to("cpu", torch.float64) for layer in sorted(source.within)}
        return sums, source.count, phases, fit_provenance(source.source)
    stream = read_stream(source, phases, drop_first)
    centred = stream.states - stream.states.mean(1, keepdim=True)
    return {layer: states.T @ states for layer, states in enumerate(centred)}, stream.states.shape[1], stream.phases, stream.facts


def _strength(covariance: Float64[Tensor, "d d"], layer: int) -> Float64[Tensor, "d d"]:
    """Correlations without their signs, zero on the diagonal."""
    deviation = covariance.diagonal().sqrt()
    if not bool((deviation > 0).all()):
        found = f"Channel {int(deviation.argmin())} of layer {layer} does not vary"
        raise InputError(found, "states that differ from token to token", "more tokens")
    strength = (covariance / deviation / deviation[:, None]).abs()
    return strength.fill_diagonal_(0.0)


def _split(strength: Float64[Tensor, "d d"], partition: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean within and between the parts of every partition `[d, partition, phase]`."""
    width, _, phases = partition.shape
    size = width // phases
    reached = (strength @ partition.flatten(1)).view(partition.shape)
    inside = (partition * reached).sum((0, 2))
    within = inside / (phases * size * (size - 1))
    between = (strength.sum() - inside) / (width**2 - phases * size**2)
    return within.numpy(), between.numpy()
