"""Charts of collapse through depth: how alike positions become with and without skips and MLPs, and what filters them."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.figures.chart import BLUE, GREEN, ORANGE, PURPLE, SKY, YELLOW, axis, chart, lines, rule, series

VARIANTS = {
    "whole": ("whole model", BLUE),
    "no_skips": ("no skips", GREEN),
    "no_mlp": ("no MLPs", PURPLE),
    "neither": ("attention alone", ORANGE),
}
MEASURES = {
    "residual_ratio": ("share that differs between positions", ""),
    "composite_ratio": ("the same, composite norm", ""),
    "high_to_low": ("differing over common part", "nats"),
    "mean_cosine": ("mean cosine of two positions", ""),
    "effective_rank": ("effective rank", "directions"),
}
PICTURES = ("bands", "parts", "patterns", "over layers")
ROUNDING = 1e-6  # of float32 states, in the two ratios
_BANDS = (BLUE, SKY, GREEN, ORANGE, YELLOW)  # slow to fast
_RATIOS = ("residual_ratio", "composite_ratio")


def collapse_chart(
    collapse: xr.Dataset, detail: xr.Dataset, *, measure: str, first_token: str, picture: str, layer: int
) -> dict[str, Any]:
    """How alike positions are at every layer, and beside it one of four pictures.

    Args:
        collapse: from `rank_collapse`.
        detail: from `token_spectrum` (`bands`), `low_pass` (`parts`), `attention_response` (`patterns`) or `layer_spectrum`
            (`over layers`).
        measure: one of `MEASURES`.
        first_token: `with` or `without`.
        picture: one of `PICTURES`.
        layer: whose block's patterns are shown.

    Raises:
        InputError: another measure or picture.
    """
    for name, found, known in (("measure", measure, MEASURES), ("picture", picture, PICTURES)):
        if found not in known:
            raise InputError(f"The {name} is {found!r}", f"one of {', '.join(known)}", f"{name}={next(iter(known))!r}")
    make = {"bands": _bands, "parts": _parts, "patterns": _patterns, "over layers": _over_layers}[picture]
    return chart([_depth(collapse, measure, first_token), make(detail, layer)])


def _depth(collapse: xr.Dataset, measure: str, first_token: str) -> dict[str, Any]:
    shown = collapse[measure].sel(first_token=first_token)
    title, unit = MEASURES[measure]
    found = [
        series(VARIANTS[variant][0], shown.sel(variant=variant), colour=VARIANTS[variant][1])
        for variant in shown.variant.to_numpy().tolist()
    ]
    values = shown.to_numpy()
    ratio = measure in _RATIOS
    value_axis = axis(title, unit, scale="log", range=(1e-7, 1.0)) if ratio else axis(title, unit, range=_range(measure, values))
    rules = [rule(ROUNDING, "rounding", on="y")] if ratio and np.nanmin(values) < 10 * ROUNDING else []
    return lines("layers", shown.layer, found, x_axis="layer", y_axis=value_axis, rules=rules)


def _range(measure: str, values: np.ndarray) -> tuple[float, float] | None:
    """Of cosines both ends, so that the axis stays when the first token comes and goes."""
    return (min(0.0, float(np.floor(10 * np.nanmin(values)) / 10)), 1.0) if measure == "mean_cosine" else None


def _bands(spectrum: xr.Dataset, _layer: int) -> dict[str, Any]:
    """Shares over those of white noise, of the bands that a text of this length has."""
    share, white = spectrum.neuron_share, spectrum.white_share
    excess = (share / white).where(white > 0, drop=True)
    colours = dict(zip(spectrum.band.to_numpy().tolist(), _BANDS, strict=True))
    found = [series(str(band), excess.sel(band=band), colour=colours[band]) for band in excess.band.to_numpy().tolist()]
    return lines(
        "layers", spectrum.layer, found, x_axis="layer", y_axis="power by period, over white noise’s",
        rules=[rule(1, "white noise", on="y")],
    )  # fmt: skip


def _parts(parts: xr.Dataset, _layer: int) -> dict[str, Any]:
    change = parts.change
    found = {stage: change.sel(stage=stage) for stage in change.stage.to_numpy().tolist()}
    return lines(
        "parts", change.block, found, x_axis="block", y_axis=axis("differing over common part: out less in", "nats"),
        rules=[rule(0, "as it was", on="y")],
    )  # fmt: skip


def _patterns(response: xr.Dataset, layer: int) -> dict[str, Any]:
    """What the patterns of the block before a layer pass, and those of all blocks."""
    waves = response.response.isel(frequency=slice(1, None))
    block = max(layer - 1, 0)
    found = [
        series(f"block {block}", waves.sel(block=block).mean("head"), colour=ORANGE),
        series("all blocks", waves.mean(("block", "head")), colour=BLUE),
    ]
    return lines(
        "patterns", waves.frequency, found, x_axis=axis("frequency", "cycles/token"),
        y_axis=axis("what a pattern passes of a wave", range=(0, 1.4)), rules=[rule(1, "all of it", on="y")], marks=False,
    )  # fmt: skip


def _over_layers(spectrum: xr.Dataset, _layer: int) -> dict[str, Any]:
    shown = spectrum.isel(frequency=slice(1, None))
    found = [series("states", shown.share, colour=BLUE), series("white noise", shown.white_share, colour=ORANGE)]
    return lines(
        "over layers", shown.frequency, found, x_axis=axis("frequency", "cycles/layer"),
        y_axis=axis("share of power, exploratory", scale="log"),
    )  # fmt: skip
