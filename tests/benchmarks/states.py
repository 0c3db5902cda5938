"""States of real text that several benchmarks work on, drawn and masked as a corpus pass does it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

import lens
from lens.collect import draw_windows, in_batches
from lens.corpora import Part
from lens.models.model import Model
from lens.models.run import residual_states
from lens.moments import outlier_limits, token_norms

BATCH_TOKENS = 2048
WINDOW = 256


def batches(model: Model, part: Part, tokens: int) -> list[Tensor]:
    """Token ids `[sequence, position]` of one part of the default corpus."""
    windows = draw_windows(model, lens.corpus("wikipedia"), part, tokens, WINDOW)
    return in_batches(windows, BATCH_TOKENS)


def states_of(model: Model, ids: Sequence[Tensor]) -> Iterator[Tensor]:
    """Residual states `[layer, sequence, position, d]` of one batch after the other."""
    for batch in ids:
        yield residual_states(model.module, model.anatomy, batch)


@dataclass(frozen=True)
class Pilot:
    """Point `[layer, d]` near the means, and norms `[layer]` from which on a token is massive."""

    shift: Tensor
    limits: Tensor


def pilot(states: Tensor) -> Pilot:
    """Of the first batch, with the default mask."""
    norms = token_norms(states).flatten(1)
    limits = outlier_limits(norms, "robust")
    ordinary = (norms <= limits[:, None]).all(0)
    return Pilot(states.flatten(1, 2)[:, ordinary].mean(1), limits)


def shuffled(pairs: Sequence[tuple[int, int]], layers: int) -> tuple[tuple[int, int], ...]:
    """The pairs of which a pass keeps a shuffled copy too: from the middle one step on, and to the end."""
    middle = [pair for pair in pairs if pair[0] == layers // 2]
    return tuple(sorted({middle[0], middle[-1]}))
