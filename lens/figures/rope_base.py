"""Charts of a model whose rotary base was turned: loss by token and by base, and one head's attention before and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.base.text import visible
from lens.figures.chart import BLUE, ORANGE, axis, chart, heat_map, lines, rule, series

BESIDE = ("turned", "alone", "difference")
"""What may stand beside the trained head: the whole model turned, its layer alone turned, or the first less the trained one."""

_SETTING = {"turned": "whole model turned", "alone": "this layer alone turned"}
_LONGEST_LABEL = 9


def loss_chart(trained: xr.Dataset, turned: xr.Dataset, visited: Mapping[float, float], trained_base: float) -> dict[str, Any]:
    """Loss of each token, and mean loss over the bases tried so far.

    Args:
        trained: from `lens.logit_lens`, of the model as it is; two tokens at least.
        turned: the same of the same text with the base turned.
        visited: base to mean loss of the text, nats per token, of every base tried, one at least.
        trained_base: the base that the model was trained with.
    """
    return chart([_losses(trained, turned), _bases(visited, trained_base, float(token_loss(trained).mean()))])


def head_chart(head: xr.Dataset, beside: str) -> dict[str, Any]:
    """Attention of one head in the trained model, and beside it what the turn makes of it.

    Args:
        head: from `lens.probes.rope_turn.turned_head`.
        beside: `turned` (the whole model), `alone` (this layer alone) or `difference` (turned less trained).

    Raises:
        InputError: another word for what stands beside.
    """
    if beside not in BESIDE:
        raise InputError(f"What stands beside the head is {beside!r}", f"one of {', '.join(BESIDE)}", "beside='turned'")
    place = f"block {head.attrs['block']}, head {head.attrs['head']}"
    trained = head.attention.sel(setting="trained")
    if beside == "difference":
        change = head.attention.sel(setting=_SETTING["turned"]) - trained
        other = _map(head, change, f"{place}, turned less trained", signed=True)
    else:
        other = _map(head, head.attention.sel(setting=_SETTING[beside]), f"{place}, {_SETTING[beside]}")
    return chart([_map(head, trained, f"{place}, trained"), other])


def token_loss(lens: xr.Dataset) -> np.ndarray:
    """−log p of the next token after each position but the last, nats, from a `lens.logit_lens` Dataset: its last layer's."""
    return lens.next_surprisal.isel(layer=-1).to_numpy()[:-1].astype(float)


def _losses(trained: xr.Dataset, turned: xr.Dataset) -> dict[str, Any]:
    before, after = token_loss(trained), token_loss(turned)
    labels = _tokens(trained.input_token)[1:]
    curves = [series("trained", before, colour=BLUE), series("turned", after, colour=ORANGE)]
    top = float(np.nanmax([before, after]))
    return lines(
        "position",
        np.arange(len(before)),
        curves,
        x_axis=axis("token predicted", labels=labels),
        y_axis=axis("loss", "nats", range=(0.0, max(8.0, 4 * np.ceil(top / 4)))),
        title="by token",
    )


def _bases(visited: Mapping[float, float], trained_base: float, as_trained: float) -> dict[str, Any]:
    bases = np.array(sorted({*visited, trained_base}))
    losses = np.array([visited.get(base, as_trained) for base in bases])
    at = np.where(bases == trained_base, as_trained, np.nan)
    curves = [series("bases tried", losses, colour=ORANGE), series("as trained", at, colour=BLUE)]
    low = float(np.floor(min(losses.min(), as_trained)))
    return lines(
        "base",
        bases,
        curves,
        x_axis=axis("rotary base", scale="log", range=(min(1e2, bases[0]), max(1e9, bases[-1]))),
        y_axis=axis("mean loss of this text", "nats per token", range=(low, max(low + 2, float(np.ceil(losses.max()))))),
        title="by base",
        rules=[rule(trained_base, "trained base", on="x")],
    )


def _map(head: xr.Dataset, pattern: xr.DataArray, title: str, *, signed: bool = False) -> dict[str, Any]:
    tokens = _tokens(head.input_token)
    places = np.arange(len(tokens))
    seen = np.where(places[:, None] >= places, pattern.to_numpy(), np.nan)  # what a causal model cannot look at stays blank
    return heat_map(
        "attention",
        places,
        places,
        seen,
        x_axis=axis("to", labels=tokens),
        y_axis=axis("from", labels=tokens),
        value_axis=axis("change of attention" if signed else "attention", range=(-1.0, 1.0) if signed else (0.0, 1.0)),
        title=title,
        signed=signed,
    )


def _tokens(tokens: xr.DataArray) -> list[str]:
    return [visible(str(token), _LONGEST_LABEL) for token in tokens.to_numpy()]
