"""Charts of linear maps of relations: how often they say what the model says, and the words of one prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from lens.base.text import visible
from lens.figures.chart import BLACK, BLUE, GREEN, ORANGE, PURPLE, axis, bars, chart, lines, rule, series

_CHEAPER = ["logit lens", "translation", "regression"]  # than a Jacobian
_ROWS = 8  # words


def relations_chart(shares: xr.Dataset, words: xr.Dataset, *, layer: int) -> dict[str, Any]:
    """How often maps and edits do what they should, by layer, and what is said to one prompt.

    Args:
        shares: from `lens.probes.relation_claims.relation_shares`.
        words: from `lens.probes.relation_edit.edited_words`.
        layer: whose map's words are shown.
    """
    return chart([_layers(shares), _words(words, layer)])


def _layers(shares: xr.Dataset) -> dict[str, Any]:
    """Ways without a Jacobian as one curve, the best of them at each layer: one by one they lie on each other, near zero."""
    mapped, agreement = shares.sel(predictor="map"), shares.agreement
    found = [
        series("linear map", mapped.agreement, low=mapped.agreement_low, high=mapped.agreement_high, colour=GREEN),
        series("best of lens, shift, regression", agreement.sel(predictor=_CHEAPER).max("predictor"), colour=PURPLE),
        series("one answer for all", agreement.sel(predictor="constant"), colour=BLACK),
    ]
    edits = shares.sel(edit_method="inverse").reindex(edit_layer=shares.layer.to_numpy())
    found.append(series("edit reaches its target", edits.reached, low=edits.reached_low, high=edits.reached_high, colour=ORANGE))
    return lines(
        "layers", shares.layer, found, x_axis="layer of the subject’s state", y_axis=axis("share of the subjects", range=(0, 1)),
        rules=[rule(int(shares.chosen_layer), "chosen on examples", on="x")],
    )  # fmt: skip


def _words(words: xr.Dataset, layer: int) -> dict[str, Any]:
    """The same words whatever the layer, so that the rows stay while it moves."""
    weight = words.model + words.edited + words.mapped.fillna(0).mean("layer")
    shown = words.isel(token=np.argsort(-weight.to_numpy(), kind="stable")[:_ROWS])
    found = [
        series("model", shown.model, colour=BLUE),
        series(f"linear map, layer {layer}", shown.mapped.sel(layer=layer), colour=GREEN),
        series("model, edited", shown.edited, colour=ORANGE),
    ]
    return bars(
        "words", [visible(piece) for piece in shown.token_text.to_numpy().tolist()], found, label_axis="next token",
        value_axis=axis("probability", range=(0, 1)),
    )  # fmt: skip
