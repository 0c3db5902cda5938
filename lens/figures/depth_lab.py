"""Charts of edits of depth: what blocks are worth, how loss grows as they go, and which channels carry the stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from lens.base.text import visible
from lens.figures.chart import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, YELLOW, axis, bars, chart, lines, rule, series

DONE = {
    "removed": "removed",
    "swapped": "swapped with the next",
    "parallel": "in parallel with the next",
    "replaced": "replaced by its map",
}
"""Edits of a block, in words."""
_INFLUENCE, _KL = (0.005, 2.0), (0.01, 20.0)  # ends of logarithmic axes
_CURVES = {
    "random": ("at random", BLACK),
    "last first": ("last ones first", YELLOW),
    "block influence": ("by block influence", BLUE),
    "influence at output": ("by influence at output", SKY),
    "linearity": ("most linear first", PURPLE),
    "linearity, replaced": ("most linear, replaced by maps", GREEN),
    "closest pairs, parallel": ("pairs in parallel", ORANGE),
}


def depth_lab_chart(blocks: xr.Dataset, words: xr.Dataset, *, kind: str, chosen: str, kl: float | None) -> dict[str, Any]:
    """What each block does to its states, what an edit of each costs, and the next words with and without the chosen edit.

    Args:
        blocks: over `block`: `block_influence`, `influence_at_output`, `kl_to_original` of this kind of edit on one text.
        words: from `EditedTexts.next_words`.
        kind: the edit.
        chosen: the chosen edit in words.
        kl: of the chosen edit, nats, where it is none of those of single blocks; else None.

    Returns:
        A chart of three plots: `blocks` twice, where a click chooses a block, and `words`.
    """
    influence = [
        series("at the block", _at_least(blocks.block_influence, _INFLUENCE), colour=BLUE),
        series("at the output", _at_least(blocks.influence_at_output, _INFLUENCE), colour=SKY),
    ]
    cost = [series(f"each block {DONE[kind]}", _at_least(blocks.kl_to_original, _KL), colour=ORANGE)]
    rules = [] if kl is None else [rule(max(kl, _KL[0]), chosen)]
    return chart([
        lines("blocks", blocks.block, influence, x_axis="block", title="what the block changes",
              y_axis=axis("1 − cosine of states", scale="log", range=_INFLUENCE)),
        lines("blocks", blocks.block, cost, x_axis="block", title="what the edit costs on this text", rules=rules,
              y_axis=axis("KL to the whole model", "nats/token", scale="log", range=_KL)),
        _words(words),
    ])  # fmt: skip


def _words(words: xr.Dataset) -> dict[str, Any]:
    labels = [visible(str(word)) for word in words.token.to_numpy()]
    labels = [label if labels.index(label) == place else f"{label} ({place})" for place, label in enumerate(labels)]
    heights = [
        series("whole model", 100 * words.probability.sel(read_from="model"), colour=GREEN),
        series("edited", 100 * words.probability.sel(read_from="edited"), colour=ORANGE),
    ]
    return bars(
        "words", labels, heights, label_axis="next word", value_axis=axis("probability", "%"), title="the next word",
    )  # fmt: skip


def depth_curves_chart(claims: xr.Dataset) -> dict[str, Any]:
    """What is added to the loss by 1, 2, … edits at once, in different orders; mean over documents, drawn orders together.

    Args:
        claims: from `depth_claims`, or `depth_curves` with curves of those names.
    """
    added = (claims.curve_loss - claims.loss).mean("document")
    count = claims.edits_made.to_numpy()
    names = [str(name) for name in claims.curve.to_numpy()]
    found = []
    for name, (words, colour) in _CURVES.items():
        mine = [one for one in names if one == name or (name == "random" and one.startswith("random"))]
        if mine:
            found.append(series(words, added.sel(curve=mine).mean("curve"), colour=colour))
    return chart([
        lines("curves", count, found, x_axis=axis("edits at once", "blocks or pairs"),
              y_axis=axis("added loss", "nats/token", scale="log", range=(0.01, 30.0))),
    ])  # fmt: skip


def hidden_dimensions_chart(claims: xr.Dataset) -> dict[str, Any]:
    """The largest activations of every layer beside the median, and how many channels carry the states.

    Args:
        claims: from `depth_claims`, or `hidden_dimensions`.
    """
    mean = claims.mean("document")
    sizes = [
        series("largest", mean.largest.sel(size_rank=1), colour=ORANGE),
        series("third largest", mean.largest.sel(size_rank=3), colour=YELLOW),
        series("median", mean.median_size, colour=BLUE),
    ]
    half = mean.sel(share=0.5)
    shares = [
        series("channels with half of Σ|h|", half.active_share, colour=BLUE),
        series("of these, in common with the layer before", half.layer_overlap, colour=GREEN),
        series("of these, in common with the next token", half.neighbour_overlap, colour=ORANGE),
        series("of these, active over 16 tokens", half.shared_share, colour=PURPLE),
    ]
    return chart([
        lines("layers", claims.layer, sizes, x_axis="layer", y_axis=axis("size of activations", scale="log")),
        lines("layers", claims.layer, shares, x_axis="layer", y_axis=axis("share", range=(0.0, 1.0))),
    ])  # fmt: skip


def _at_least(values: xr.DataArray, ends: tuple[float, float]) -> np.ndarray:
    """What a logarithmic axis can show: smaller values stand at its foot, missing ones are gaps."""
    found = values.to_numpy().astype(float)
    return np.where(np.isnan(found), np.nan, np.maximum(found, ends[0]))
