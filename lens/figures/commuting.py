"""Charts of a rotary family: where its equation fails, which frequencies it has, and logits while the image moves."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.figures.chart import BLUE, ORANGE, axis, bars, chart, heat_map, lines, series

PICTURES = ("defect", "commutator", "frequencies", "logits")
# Keys whose logits with the first query are followed. None lies on the diagonal, along which the image moves: there every
# family keeps its logits, for a matrix commutes with its multiples.
PAIRS = (1, 4, 3, 12)


def commuting_chart(dataset: xr.Dataset, offset: int, picture: str) -> dict[str, Any]:
    """What a family is on the left, and what becomes of logits on the right while the whole image moves.

    Args:
        dataset: from `commuting`.
        offset: by how much the image is moved, one of the Dataset's.
        picture: `defect` (of the equation, by position), `commutator` (by block), `frequencies` or `logits` (how they
            have changed at this offset).

    Raises:
        InputError: another picture or offset.
    """
    if picture not in PICTURES:
        raise InputError(f"The picture is {picture!r}", f"one of {', '.join(PICTURES)}", "picture='defect'")
    if offset not in dataset.offset:
        last = int(dataset.offset[-1])
        raise InputError(f"The offset is {offset!r}", f"a whole number from 0 to {last}", f"offset={last // 2}")
    drawn = {"defect": _defect, "commutator": _commutator, "frequencies": _frequencies}
    left = _change(dataset, offset) if picture == "logits" else drawn[picture](dataset)
    return chart([left, _followed(dataset)])


def _defect(dataset: xr.Dataset) -> dict[str, Any]:
    last = dataset.attrs["axes"]
    return heat_map(
        "defect", dataset.x, dataset.y, dataset.defect.transpose("y", "x"), title="does R(x)ᵀR(y) equal R(y − x)?",
        x_axis=axis("x, along axis 1", "positions"), y_axis=axis(f"y, along axis {last}", "positions"),
        value_axis=axis("defect", range=(0.0, 2.0)),
    )  # fmt: skip


def _commutator(dataset: xr.Dataset) -> dict[str, Any]:
    values = dataset.commutator[:, 0, -1].to_numpy()
    blocks = np.arange(len(values))
    return bars(
        "commutator", blocks, [series("first and last axis", values, colour=BLUE)], label_axis="block",
        value_axis=axis("relative commutator", range=(0.0, 1.0)), title="do the matrices of two axes commute?",
    )  # fmt: skip


def _frequencies(dataset: xr.Dataset) -> dict[str, Any]:
    """Those that turn, fastest first; an axis that turns only some blocks has a shorter curve."""
    found = [np.sort(part.to_numpy().ravel())[::-1] for part in dataset.frequency]
    known = [np.where(values > 1e-12, values, np.nan) for values in found]
    names = dataset.axis.to_numpy().tolist()
    curves = [series(name, part, colour=colour) for name, part, colour in zip(names, known, (BLUE, ORANGE), strict=False)]
    lanes = np.arange(len(known[0]))
    bound = axis("effective frequency", "rad/position", scale="log")
    return lines("frequency", lanes, curves, x_axis="lane, fastest first", y_axis=bound, title="eigenvalues of the matrices")


def _followed(dataset: xr.Dataset) -> dict[str, Any]:
    """Logits of the first patch's query with a few keys, over all offsets."""
    values = dataset.logit[:, 0].to_numpy()
    names = {key: "(" + ", ".join(f"{step:.0f}" for step in dataset.place[key].to_numpy()) + ")" for key in PAIRS}
    end = float(np.ceil(np.abs(values).max()))
    return lines(
        "offset", dataset.offset, {f"to {names[key]}": values[:, key] for key in PAIRS},
        x_axis=axis("image moved by", "positions"), y_axis=axis("logit of the first patch", range=(-end, end)),
        title="logits while the whole image moves",
    )  # fmt: skip


def _change(dataset: xr.Dataset, offset: int) -> dict[str, Any]:
    change = (dataset.logit.sel(offset=offset) - dataset.logit[0]).to_numpy()
    patches = np.arange(len(change))
    largest = float(np.abs(dataset.logit - dataset.logit[0]).max())
    end = float(np.ceil(largest)) if largest > 1e-6 else 1.0  # rounding alone is no change
    return heat_map(
        "change", patches, patches, change, x_axis="key", y_axis="query", signed=True,
        value_axis=axis("change of the logit", range=(-end, end)), title=f"what moving the image by {offset} does to logits",
    )  # fmt: skip
