"""Plots that only reports show: numbers of layers, heads and lanes that panels show in other ways."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from lens.figures.chart import BLUE, ORANGE, Plot, axis, heat_map, lines, rule, series
from lens.figures.early_exit import NAMES


def wavelength_plot(wavelength: ArrayLike, context: int) -> Plot:
    """Tokens that each rotary lane takes for one turn, with the context.

    Args:
        wavelength: `[lane]`; infinite for a lane that stands still, which leaves a gap.
        context: tokens.
    """
    values = np.asarray(wavelength, dtype=float)
    known = np.where(np.isfinite(values), values, np.nan)
    bound = axis("tokens for one turn", scale="log")
    return lines("lane", np.arange(len(known)), {"lanes": known}, x_axis="lane", y_axis=bound, rules=[rule(context, "context")])


def rank_plot(spectrum: xr.Dataset) -> Plot:
    """How many directions the states of each layer fill.

    Args:
        spectrum: from `lens.probes.spectrum.spectrum`.
    """
    curves = [
        series("effective rank", spectrum.effective_rank, colour=BLUE),
        series("participation ratio", spectrum.participation_ratio, colour=ORANGE),
    ]
    null = rule(float(spectrum.effective_rank_null[0]), "effective rank of isotropic states")
    return lines("layer", spectrum.layer, curves, x_axis="layer", y_axis=axis("directions", scale="log"), rules=[null])


def leading_plot(spectrum: xr.Dataset) -> Plot:
    """What the first direction and the first coordinate of each layer hold of its variance.

    Args:
        spectrum: from `lens.probes.spectrum.spectrum`.
    """
    curves = [
        series("first direction", spectrum.anisotropy, colour=BLUE),
        series("first coordinate", spectrum.top_coordinate_share, colour=ORANGE),
    ]
    null = rule(float(spectrum.anisotropy_null[0]), "first direction of isotropic states")
    return lines(
        "layer", spectrum.layer, curves, x_axis="layer", y_axis=axis("share of variance", range=(0.0, 1.0)), rules=[null]
    )


def kl_plot(readings: xr.Dataset) -> Plot:
    """Distance of what each lens reads from what the model says, up to the last layer but one, whose successor has none.

    Args:
        readings: from `lens.compare_lenses`.
    """
    shown = readings.isel(layer=slice(None, -1))
    # An interval that reaches zero has no lower end on a logarithmic axis.
    shown = shown.assign({name: shown[name].where(shown.kl_low > 0) for name in ("kl_low", "kl_high")})
    curves = [
        series(NAMES.get(str(lens), str(lens)), here.kl_to_final, low=here.kl_low, high=here.kl_high)
        for lens, here in ((lens, shown.sel(lens=lens)) for lens in readings.lens.to_numpy())
    ]
    return lines("layer", shown.layer, curves, x_axis="layer", y_axis=axis("KL(model‖lens)", "nats", scale="log"))


def heads_plot(heads: xr.Dataset, name: str, title: str, limits: tuple[float, float] | None) -> Plot:
    """A measure of every head.

    Args:
        heads: measures over `block` and `head`.
        name: which.
        title: what it is called beside the colours.
        limits: its range, or None for round numbers around the values.
    """
    shown = heads[name].transpose("block", "head")
    return heat_map(name, shown["head"], shown["block"], shown, x_axis="head", y_axis="block",
                    value_axis=axis(title, range=limits))  # fmt: skip
