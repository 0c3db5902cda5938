"""A residual stream of any model cut into N parts of adjacent channels, and random partitions to compare them with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from lens.base.errors import InputError
from lens.models.model import Model
from lens.models.run import Run, require_memory
from lens.probes.dataset import provenance

Unit = Literal["pair", "channel"]


@dataclass(frozen=True)
class Stream:
    """Residual states of one or more texts.

    Attributes:
        states: float64 `[layer, token, d]` on the CPU, the tokens of all texts behind one another.
        positions: of each token in its own text.
        token_ids: of each token.
        model: that was run.
        phases: N.
        facts: provenance.
    """

    states: Float64[Tensor, "layer token d"]
    positions: Int64[Tensor, " token"]
    token_ids: Int64[Tensor, " token"]
    model: Model
    phases: int
    facts: dict[str, Any]


def read_stream(runs: Run | Sequence[Run], phases: int | None, drop_first: bool) -> Stream:
    """Residual states of runs of one model.

    Args:
        runs: one run or several.
        phases: N, for any model; by default that of a Three-Phase model.
        drop_first: whether the first token of every text is left out: in many models its state outweighs all others.

    Raises:
        InputError: no run, runs of several models, no token that is left, or a number of phases that does not cut the stream
            into parts of an even number of channels. MemoryEstimateError: more than 1 GiB of states.
    """
    listed = [runs] if isinstance(runs, Run) else list(runs)
    if len({id(run.model.module) for run in listed}) != 1:
        raise InputError(f"{len(listed)} runs, not of one model", "one run or more, of one model", "model.run(text)")
    model = listed[0].model
    found = number_of_phases(model, phases)
    require_memory("The states in float64", 8 * sum(run.residual.numel() for run in listed), "fewer or shorter texts")
    first = int(drop_first)
    states = torch.cat([run.residual[:, first:].to("cpu", torch.float64) for run in listed], 1)
    if not states.shape[1]:
        raise InputError("No token is left without the first", "texts of two tokens or more", "drop_first=False")
    positions = torch.cat([torch.arange(first, len(run)) for run in listed])
    ids = torch.cat([run.token_ids[first:] for run in listed])
    facts = {**provenance(listed[0], ""), "texts": len(listed), "tokens": states.shape[1], "phases": found}
    facts["drop_first"] = first
    if len(listed) > 1:
        del facts["prompt"]
    return Stream(states, positions, ids, model, found, facts)


def number_of_phases(model: Model, phases: int | None) -> int:
    """N as given, or as a Three-Phase model has it; see `read_stream`."""
    found = getattr(model.module.config, "num_phases", None) if phases is None else phases
    if found is None:
        raise InputError(f"{model.name} has no phases of its own", "how many to cut its stream into", "phases=3")
    if found < 1 or model.d_model % (2 * found):
        needed = f"a number whose double divides {model.d_model}, the channels of {model.name}"
        raise InputError(f"{found} phases", needed, "phases=2")
    return found


def own_partition(width: int, phases: int) -> Float64[Tensor, "channel phase"]:
    """One where a channel is of a phase, else zero: phase i has channels `i · width / phases` and those after it."""
    return torch.eye(phases, dtype=torch.float64).repeat_interleave(width // phases, 0)


def random_partitions(
    width: int, phases: int, count: int, seed: int, unit: Unit = "channel"
) -> Float64[Tensor, "channel partition phase"]:
    """As `own_partition`, with the channels dealt out at random, in equal parts.

    Args:
        width: channels.
        phases: N.
        count: of partitions.
        seed: for their draw.
        unit: `channel`, or `pair`, which keeps channels 2k and 2k + 1 in one part, as phases do.

    Raises:
        InputError: another unit, or no partition.
    """
    if unit not in get_args(Unit) or count < 1:
        raise InputError(f"{count} partitions of {unit}s", "one or more, of pairs or channels", "unit='pair'")
    random = np.random.default_rng(seed)
    size = 2 if unit == "pair" else 1
    owned = own_partition(width // size, phases)
    dealt = [owned[torch.from_numpy(random.permutation(width // size))].repeat_interleave(size, 0) for _ in range(count)]
    return torch.stack(dealt, 1)
