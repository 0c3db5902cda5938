"""Charts of circuits: a map of heads, their scores beside what they do, and one head's spectrum, words or distances."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.base.text import visible
from lens.figures.chart import BLACK, BLUE, GREEN, ORANGE, PURPLE, axis, bars, chart, heat_map, lines, rule, scatter, series

SCORES = {
    "vocabulary": "copying score, from embeddings",
    "arriving": "copying score, from arriving states",
    "residual": "copying score, in the stream",
}
"""Words for the circuits of `ov_circuit`."""

MEASURES = {
    **SCORES,
    "copying": "measured copying",
    "induction": "induction on repeated tokens",
    "matching": "matching score of QK, distance 0",
    "departure": "departure from normality",
}
PICTURES = ("eigenvalues", "singular values", "words", "distance")
INDUCTION = 0.3  # mean attention from which a head counts as one of induction
_NAMED = 6  # dots whose names are shown


def head_circuits_chart(
    heads: xr.Dataset,
    spectrum: xr.Dataset,
    *,
    block: int,
    head: int,
    measure: str,
    circuit: str,
    picture: str,
    words: xr.Dataset | None = None,
    vector: int = 1,
    pole: str = "+",
    distances: xr.Dataset | None = None,
    offset: int = 0,
) -> dict[str, Any]:
    """A map of all heads, and one of them in detail, beside the scores and the measured copying of all where there is room.

    Args:
        heads: `measure[block, head]` for each of `MEASURES`.
        spectrum: from `ov_circuit`.
        block, head: the one that is shown.
        measure: of the map, one of `MEASURES`.
        circuit: whose score and spectrum are shown, one of `SCORES`.
        picture: `eigenvalues`, `singular values`, `words` or `distance`.
        words: from `ov_directions`, for `words`, with `vector` and `pole`.
        distances: from `qk_circuit` for this head, for `distance`, with `offset`.

    Raises:
        InputError: another measure, circuit or picture.
    """
    for name, found, known in (("measure", measure, MEASURES), ("circuit", circuit, SCORES), ("picture", picture, PICTURES)):
        if found not in known:
            raise InputError(f"The {name} is {found!r}", f"one of {', '.join(known)}", f"{name}={next(iter(known))!r}")
    here = spectrum.sel(circuit=circuit, block=block, head=head)
    plots = [_map(heads, measure)]
    if picture == "words":
        assert words is not None  # the panel computes what it shows
        plots += _words(words, vector, pole)
    elif picture == "distance":
        assert distances is not None
        plots += [
            _distances(distances),
            _disc(distances.sel(offset=offset).isel(block=0, head=0), f"of QK at distance {offset}"),
        ]
    else:
        plots += [_behaviour(heads, circuit), _disc(here, "of OV") if picture == "eigenvalues" else _sizes(here)]
    return chart(plots)


def label_of(block: int, head: int) -> str:
    """`23.2`: block, then head."""
    return f"{block}.{head}"


def _map(heads: xr.Dataset, measure: str) -> dict[str, Any]:
    values = heads[measure].to_numpy()
    signed = measure not in ("induction", "departure")
    scored = measure in SCORES or measure == "matching"
    ends: dict[str, Any] = {"range": (-1.0, 1.0)} if scored else {"range": (0.0, 1.0)} if measure == "induction" else {}
    unit = "standard deviations" if measure == "copying" else ""
    return heat_map(
        "heads", heads["head"], heads["block"], values, x_axis="head", y_axis="block",
        value_axis=axis(MEASURES[measure], unit, **ends), signed=signed,
    )  # fmt: skip


def _behaviour(heads: xr.Dataset, circuit: str) -> dict[str, Any]:
    """Each head as a dot; those that do most are named."""
    score, copying, induction = (heads[name].to_numpy() for name in (circuit, "copying", "induction"))
    blocks, columns = heads.block.to_numpy().tolist(), heads["head"].to_numpy().tolist()
    dots = [
        {
            "x": score[row, column], "y": copying[row, column], "label": label_of(block, columns[column]),
            "group": "induction heads" if induction[row, column] > INDUCTION else "other heads",
        }
        for row, block in enumerate(blocks)
        for column in range(len(columns))
        if np.isfinite([score[row, column], copying[row, column]]).all()
    ]  # fmt: skip
    dots.sort(key=lambda dot: dot["group"], reverse=True)  # the few above the many
    named = sorted(dots, key=lambda dot: -abs(dot["y"]))[:_NAMED]
    return scatter(
        "behaviour", dots, x_axis=axis(SCORES[circuit], range=(-1.0, 1.0)),
        y_axis=axis("measured copying", "standard deviations"), rules=[rule(0, "no copying", on="y")],
        named=[str(dot["label"]) for dot in named],
    )  # fmt: skip


def _disc(here: xr.Dataset, title: str) -> dict[str, Any]:
    """Eigenvalues in the complex plane, the largest on the circle."""
    real, imaginary = here.eigenvalue_real.to_numpy(), here.eigenvalue_imaginary.to_numpy()
    size = np.hypot(real, imaginary).max()
    ranks = here["rank"].to_numpy().tolist()
    dots = [
        {"x": x / size, "y": y / size, "label": f"eigenvalue {rank}", "group": "to the right" if x > 0 else "to the left"}
        for rank, x, y in zip(ranks, real, imaginary, strict=True)
    ]
    return scatter(
        "eigenvalues", dots, rules=[rule(0, "neither side", on="x")],
        x_axis=axis("real part, over the largest", range=(-1.0, 1.0)), y_axis=axis("imaginary part", range=(-1.0, 1.0)),
        title=f"eigenvalues {title}",
    )  # fmt: skip


def _sizes(here: xr.Dataset) -> dict[str, Any]:
    eigenvalues = np.hypot(here.eigenvalue_real.to_numpy(), here.eigenvalue_imaginary.to_numpy())
    singular = here.singular_value.to_numpy()
    top = singular.max()
    found = [
        series("singular values", singular / top, colour=BLUE),
        series("sizes of eigenvalues", eigenvalues / top, colour=ORANGE),
    ]
    low = max(min(singular.min(), eigenvalues.min()) / top, 1e-3)  # a circuit can have zeros, and rounding in their place
    return lines(
        "sizes", here["rank"], found, x_axis="rank", y_axis=axis("over the largest", scale="log", range=(low / 1.5, 1.5)),
        title=f"eigenvalues see {100 * float(here.seen):.0f} % of the squares", marks=False,
    )  # fmt: skip


def _words(words: xr.Dataset, vector: int, pole: str) -> list[dict[str, Any]]:
    here = words.sel(vector=vector, pole=pole)
    found = []
    for end, title, colour in (("attended", "attending to these …", BLUE), ("raised", "… raises these", GREEN)):
        names = [visible(str(token)) for token in here.token.sel(end=end).to_numpy()]
        entries = np.abs(here.entry.sel(end=end).to_numpy())
        found.append(
            bars(
                end,
                names,
                [series("entry", entries, colour=colour)],
                label_axis="token",
                value_axis="size of the entry",
                title=title,
            )
        )
    return found


def _distances(distances: xr.Dataset) -> dict[str, Any]:
    here = distances.isel(block=0, head=0)
    found: list[Mapping[str, Any]] = [
        series("matching score", here.matching_score, colour=BLUE),
        series("share of eigenvalues to the right", here.positive_share, colour=GREEN),
        series("symmetric share", here.symmetric_share, colour=PURPLE),
        series("size over its bound", here["size"] / here.size_bound, colour=BLACK),
    ]
    return lines(
        "distance", here.offset, [dict(one) for one in found], x_axis=axis("from key to query", "tokens"),
        y_axis=axis("measure of M", range=(-1.0, 1.0)), marks=False,
    )  # fmt: skip
