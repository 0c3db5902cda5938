"""The frozen map of a prompt: what each token gives to a logit, by layers and blocks, and the map's singular vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.base.text import visible
from lens.figures.chart import BLUE, GREEN, ORANGE, axis, bars, chart, heat_map, lines, rule, series

PICTURES = ("layers", "blocks", "vectors", "reading", "values")
BESIDE = {
    "removed": "lost without the token",
    "average": "lost with an average embedding",
    "gradient": "plain gradient",
    "nothing": "",
}
_WORDS = 4  # of a singular vector's, in its label


def frozen_chart(
    contributions: xr.Dataset, spectrum: xr.Dataset, ablations: xr.Dataset, *, picture: str, beside: str
) -> dict[str, Any]:
    """What each token contributes, and beside it one of five pictures.

    Args:
        contributions: from `frozen_contributions`.
        spectrum: from `frozen_map_spectrum`, of the same prompt.
        ablations: from `token_ablations`, of the same prompt and logit.
        picture: `layers` (contributions of residual states), `blocks` (direct and total effect), `vectors` (what each singular
            vector gives), `reading` (where it reads) or `values` (the singular values).
        beside: what stands beside each contribution: what the logit loses without the token (`removed`, or `average` in the place
            of its embedding), the plain `gradient` times the embedding, or `nothing`.

    Raises:
        InputError: another picture, or something else beside it.
    """
    for name, found, known in (("picture", picture, PICTURES), ("bar beside it", beside, tuple(BESIDE))):
        if found not in known:
            raise InputError(f"The {name} is {found!r}", f"one of {', '.join(known)}", f"{known[0]!r}")
    make = {"layers": _layers, "blocks": _blocks, "vectors": _vectors, "reading": _reading, "values": _values}[picture]
    return chart([_tokens(contributions, ablations, beside), make(contributions, spectrum)])


def logit_title(contributions: xr.Dataset) -> str:
    """Which logit the contributions add up to."""
    of = f"logit of “{visible(contributions.attrs['target'])}”"
    if contributions.attrs["rival_id"] >= 0:
        return f"{of} less that of “{visible(contributions.attrs['rival'])}”"
    return f"{of} above the mean" if contributions.attrs["centred"] else of


def token_labels(contributions: xr.Dataset) -> list[str]:
    """Tokens of the prompt, each once: their position stands before those that occur twice."""
    shown = [visible(token) for token in contributions.input_token.to_numpy().tolist()]
    return [f"{place} {token}" if shown.count(token) > 1 else token for place, token in enumerate(shown)]


def _tokens(contributions: xr.Dataset, ablations: xr.Dataset, beside: str) -> dict[str, Any]:
    labels, values = token_labels(contributions), contributions.contribution.to_numpy()
    other = contributions.gradient_contribution if beside in ("gradient", "nothing") else ablations.effect.sel(ablation=beside)
    more = other.to_numpy()
    if float(contributions.bias) != 0:
        labels, values, more = [*labels, "(biases)"], np.append(values, float(contributions.bias)), np.append(more, np.nan)
    found = [series("frozen map", values, colour=BLUE)]
    if beside != "nothing":
        found.append(series(BESIDE[beside], more, colour=ORANGE))
    return bars("tokens", labels, found, label_axis="token", value_axis=axis(f"to the {logit_title(contributions)}", "logit"))


def _layers(contributions: xr.Dataset, _spectrum: xr.Dataset) -> dict[str, Any]:
    return heat_map(
        "layers", contributions.position, contributions.layer, contributions.state_contribution,
        x_axis=axis("token", labels=token_labels(contributions)), y_axis="layer",
        value_axis=axis("contribution of the state", "logit"), signed=True,
    )  # fmt: skip


def _blocks(contributions: xr.Dataset, _spectrum: xr.Dataset) -> dict[str, Any]:
    found = [
        series("through all that follows", contributions.total, colour=BLUE),
        series("straight to the head", contributions.direct, colour=ORANGE),
    ]
    return lines(
        "blocks", contributions.block, found, x_axis="block", y_axis=axis("what the block’s writes give", "logit"),
        rules=[rule(0, "nothing", on="y")],
    )  # fmt: skip


def vector_labels(spectrum: xr.Dataset) -> list[str]:
    """Number and first words of each singular vector, as it raises them in the prompt."""
    rows = spectrum.written.isel(pole=0, place=slice(_WORDS)).to_numpy()
    return [f"{number}: {' '.join(visible(word) for word in row)}" for number, row in enumerate(rows, 1)]


def _vectors(_contributions: xr.Dataset, spectrum: xr.Dataset) -> dict[str, Any]:
    title = f"to the logit of “{visible(spectrum.attrs['target'])}” above the mean"
    found = [series("singular vector", spectrum.contribution, colour=GREEN)]
    return bars(
        "vectors", vector_labels(spectrum), found, label_axis="singular vector: words it raises", value_axis=axis(title, "logit")
    )


def _reading(contributions: xr.Dataset, spectrum: xr.Dataset) -> dict[str, Any]:
    return heat_map(
        "reading", spectrum.position, spectrum.vector, spectrum.reading,
        x_axis=axis("token", labels=token_labels(contributions)), y_axis="singular vector",
        value_axis=axis("share of the vector that reads there", range=(0, 1)), down=True,
    )  # fmt: skip


def _values(_contributions: xr.Dataset, spectrum: xr.Dataset) -> dict[str, Any]:
    found = [series("frozen map", spectrum.singular_value, colour=GREEN)]
    return lines("values", spectrum["rank"], found, x_axis="rank", y_axis=axis("singular value", scale="log"))
