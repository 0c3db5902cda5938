"""Stopping early where a lens is sure: how many layers that saves, and what it costs in agreement.

Source: Din, Karidi, Choshen and Geva, "Jump to Conclusions: Short-Cutting Transformers With Linear
Transformations" (arXiv 2303.09435), section 5, with the threshold of Schuster et al., "Confident Adaptive Language
Modeling" (arXiv 2207.07061): a token leaves at the first layer, from 1 on, whose two most probable words differ
in probability by more than `0.9·λ + 0.1·exp(−4t/N)`, t being its position and N the mean length of a prefix.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.probes.dataset import variable
from lens.probes.verdict import document_interval

SOURCE = "arXiv 2303.09435, section 5 (early exit)"
NEVER = 1.112  # the threshold then exceeds 1 at every position
# The plain lens is so sure of itself that its curve lies between λ = 1 and never.
STRICTNESS = (-NEVER, *np.linspace(0, 1, 41).round(3).tolist(), *np.linspace(1.003, NEVER, 38).round(5).tolist())


def early_exit(readings: xr.Dataset, strictness: Sequence[float] = STRICTNESS) -> xr.Dataset:
    """Agreement with the whole model against layers saved, for each lens.

    Args:
        readings: from `lens.compare_lenses`, of layers up to the last.
        strictness: values of λ; −1.112 makes every token leave at the first layer, 1.112 none before the last.

    Returns:
        Dataset over `lens` and `strictness` with

        - `agreement`: share of tokens whose word at the exit is the whole model's first word;
        - `layers_run`: mean number of blocks that were run;
        - `layers_saved`: one less their share of all blocks;

        and over `lens`: `saved_at_95`, layers saved where agreement is 95 %, between two neighbouring λ by a
        straight line, with its 95 % interval over documents (`saved_at_95_low`, `saved_at_95_high`).

    Raises:
        InputError: λ not in ascending order.
    """
    if sorted(strictness) != list(strictness) or not len(strictness):
        raise InputError("The strictness is not in ascending order", "ascending values", "strictness=(0.0, 0.5, 1.0)")
    exits, agrees = _exits(readings, np.array(strictness))
    blocks = int(readings.layer[-1])
    documents = [readings.document.to_numpy() == d for d in np.unique(readings.document)]
    per_document = np.stack([np.stack([agrees[..., d].sum(-1), exits[..., d].sum(-1)]) for d in documents])
    sizes = np.array([d.sum() for d in documents])
    rows = [_saved_at(per_document[:, :, number], sizes, blocks) for number in range(readings.sizes["lens"])]
    curve = ("lens", "strictness")
    facts = {name: value for name, value in readings.attrs.items() if name not in ("source", "probe")}
    return xr.Dataset(
        {
            "agreement": variable(curve, agrees.mean(-1), "share of tokens that keep the whole model's first word"),
            "layers_run": variable(curve, exits.mean(-1), "mean number of blocks that were run"),
            "layers_saved": variable(curve, 1 - exits.mean(-1) / blocks, "share of blocks that were not run"),
            "saved_at_95": variable(("lens",), np.array([r[0] for r in rows]), "share of blocks saved at 95 % agreement"),
            "saved_at_95_low": variable(("lens",), np.array([r[1] for r in rows]), "lower end of its 95 % interval"),
            "saved_at_95_high": variable(("lens",), np.array([r[2] for r in rows]), "upper end of its 95 % interval"),
        },
        coords={
            "lens": readings.lens.variable,
            "strictness": variable(("strictness",), np.array(strictness), "λ of the exit threshold"),
        },
        attrs={"source": SOURCE, "probe": "early_exit", "blocks": blocks, **facts},
    )


def _exits(readings: xr.Dataset, strictness: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Layer at which each token leaves, and whether it agrees there: `[lens, strictness, token]`."""
    usable = readings.sel(layer=readings.layer > 0)
    layers = usable.layer.to_numpy()
    margin, right = usable.token_margin.to_numpy(), usable.token_rank.to_numpy() == 1
    right[:, -1] = True  # by definition: two nearly equal logits of two products can change places
    position = usable.position.to_numpy()
    easing = 0.1 * np.exp(-4 * position / max(position.mean(), 1))
    exits = np.empty((len(margin), len(strictness), len(position)))
    agrees = np.empty_like(exits)
    for number, value in enumerate(strictness):
        sure = margin > 0.9 * value + easing  # a layer that a lens cannot read is NaN, and NaN is never sure
        sure[:, -1] = True  # at the last layer there is nothing more to run
        place = sure.argmax(1)
        exits[:, number] = layers[place]
        agrees[:, number] = np.take_along_axis(right, place[:, None], axis=1)[:, 0]
    return exits, agrees


def _saved_at(per_document: np.ndarray, sizes: np.ndarray, blocks: int, wanted: float = 0.95) -> tuple[float, float, float]:
    """Share of blocks saved at an agreement, and its interval; sums over each document."""

    def saved(chosen: Sequence[int]) -> float:
        agreement, run = per_document[list(chosen)].sum(0) / sizes[list(chosen)].sum()
        return _crossing(agreement, 1 - run / blocks, wanted)

    everyone = list(range(len(sizes)))
    if len(everyone) < 2:
        return saved(everyone), np.nan, np.nan
    return saved(everyone), *document_interval(everyone, saved)


def _crossing(agreement: np.ndarray, saved: np.ndarray, wanted: float) -> float:
    """Most that is saved at the wanted agreement, on the line through the points of the curve."""
    enough = agreement >= wanted
    best = saved[enough].max(initial=0.0)
    for left, right in zip(range(len(saved) - 1), range(1, len(saved)), strict=True):
        if enough[left] != enough[right]:
            share = (wanted - agreement[left]) / (agreement[right] - agreement[left])
            best = max(best, saved[left] + share * (saved[right] - saved[left]))
    return float(best)
