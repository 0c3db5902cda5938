"""Charts of single tokens: a map of all tokens by depth, and the course of one of them beside the means of its classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.base.text import visible
from lens.figures.chart import BLACK, BLUE, GREEN, ORANGE, SKY, Axis, axis, chart, heat_map, lines, rule, series

MEASURES = {
    "nonlinearity": "error of one matrix",
    "relative": "error over token’s size",
    "recovered": "read of each token before",
    "prefix_loss": "loss of each token before",
}
CLASS_COLOURS = {"punctuation": ORANGE, "stop word": SKY, "content word": BLUE, "word continuation": GREEN}
_UNITS = {"recovered": "nats", "prefix_loss": "nats"}


def microscope_chart(tokens: xr.Dataset, *, measure: str, position: int) -> dict[str, Any]:
    """All tokens by block or layer, and one token through the depth beside the means of each class in this text.

    Args:
        tokens: from `token_nonlinearity`, `contextualisation`, or both merged.
        measure: one of `MEASURES`.
        position: of the token.

    Raises:
        InputError: another measure.
    """
    if measure not in MEASURES:
        raise InputError(f"The measure is {measure!r}", f"one of {', '.join(MEASURES)}", "measure='nonlinearity'")
    return chart([_map(tokens, measure), _course(tokens, measure, position)])


def first_compared(tokens: xr.Dataset, measure: str) -> int:
    """First position that compares with later ones: no map is fitted on 0, and before the longest lag fewer are averaged."""
    longest = int(tokens["lag"].max()) if measure in _UNITS else 1
    return longest if tokens.sizes["position"] > longest + 2 else 1


def class_means(tokens: xr.Dataset, measure: str) -> dict[str, np.ndarray]:
    """Mean of a measure at every depth by class of tokens, over those that compare; only classes that are among them."""
    first = first_compared(tokens, measure)
    classes = tokens.token_class.to_numpy()[first:]
    values = tokens[measure].to_numpy()[:, first:]
    names = tokens.class_name.to_numpy().tolist()
    return {name: values[:, classes == number].mean(1) for number, name in enumerate(names) if (classes == number).any()}


def _map(tokens: xr.Dataset, measure: str) -> dict[str, Any]:
    shown = tokens[measure]
    depth = str(shown.dims[0])
    names = [visible(token) for token in tokens.input_token.to_numpy()]
    return heat_map(
        "tokens", shown.position, shown[depth], shown, x_axis=axis("token", labels=names), y_axis=depth,
        value_axis=_value_axis(tokens, measure), signed=measure == "recovered",
    )  # fmt: skip


def _course(tokens: xr.Dataset, measure: str, position: int) -> dict[str, Any]:
    shown = tokens[measure]
    depth = str(shown.dims[0])
    token = visible(str(tokens.input_token[position].item()), 12)
    kind = str(tokens.class_name[int(tokens.token_class[position])].item())
    found = [series(name, means, colour=CLASS_COLOURS[name]) for name, means in class_means(tokens, measure).items()]
    found.append(series(f"“{token}”", shown.sel(position=position), colour=BLACK))
    value_axis = _value_axis(tokens, measure)
    rules = [rule(0, "no more than frequencies", on="y")] if measure == "recovered" else []
    title = f"“{token}”, {kind}, beside means of classes"
    return lines("depth", shown[depth], found, x_axis=depth, y_axis=value_axis, rules=rules, title=title)


def _value_axis(tokens: xr.Dataset, measure: str) -> Axis:
    """Over the tokens that compare: the first, with its massive state, would leave the others without a shade."""
    values = tokens[measure].to_numpy()[:, first_compared(tokens, measure) :]
    end = float(np.nanquantile(np.abs(values), 0.995))
    step = 10.0 ** np.floor(np.log10(end)) / 2 if end > 0 else 1.0
    top = float(np.ceil(end / step) * step) if end > 0 else 1.0
    low = -top if measure == "recovered" else 0.0
    return axis(MEASURES[measure], _UNITS.get(measure, ""), range=(low, top))
