"""Charts of rotations between layers: angles and shares by block, angles over depth, and one pair's angles."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.figures.chart import BLACK, BLUE, ORANGE, axis, chart, histogram, lines, rule, series

PICTURES = ("blocks", "depth", "shares")
BIN = 5.0  # degrees


def rotation_chart(steps: xr.Dataset, direct: xr.Dataset, pair: xr.Dataset, subspace: str, picture: str) -> dict[str, Any]:
    """A picture over all layers, and the histogram of one pair's angles.

    Args:
        steps: from `procrustes`, of all pairs of neighbours in order.
        direct: the same of pairs to the last layer.
        pair: the same of the one pair that is looked at.
        subspace: which of their subspaces the energy angles are of.
        picture: `blocks` (energy angle of every block), `depth` (angles added up to the last layer, and the direct one)
            or `shares` (variance that ever freer maps explain).

    Raises:
        InputError: another picture.
    """
    if picture not in PICTURES:
        raise InputError(f"The picture is {picture!r}", f"one of {', '.join(PICTURES)}", "picture='blocks'")
    left = _shares(steps) if picture == "shares" else _angles(steps, direct, subspace, picture)
    return chart([left, _turns(pair, subspace)])


def paths(steps: xr.Dataset, direct: xr.Dataset, subspace: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Layers that have a direct pair, energy angles of the blocks from there to the end added up, and the direct ones."""
    starts, angles = steps.from_layer.to_numpy(), steps.energy_angle.sel(subspace=subspace).to_numpy()
    layers = direct.from_layer.to_numpy()
    added = np.array([angles[starts >= layer].sum() for layer in layers])
    return layers, added, direct.energy_angle.sel(subspace=subspace).to_numpy()


def _angles(steps: xr.Dataset, direct: xr.Dataset, subspace: str, picture: str) -> dict[str, Any]:
    found = f"energy angle, {named(subspace)}"
    if picture == "depth":
        layers, added, straight = paths(steps, direct, subspace)
        curves = [series("blocks added up", added, colour=BLUE), series("direct", straight, colour=ORANGE)]
        end = float(np.ceil(added.max() / 90) * 90)
        return lines(
            "depth", layers, curves, x_axis="from layer", y_axis=axis(found, "degrees", range=(0.0, max(90.0, end))),
            title="to the last layer",
        )  # fmt: skip
    here = steps.sel(subspace=subspace)
    curves = [series("turn", here.energy_angle, colour=BLUE), series("noise floor", here.energy_angle_noise, colour=BLACK)]
    end = float(np.ceil(max(steps.energy_angle.max(), steps.energy_angle_noise.max()) / 30) * 30)
    return lines("blocks", here.from_layer, curves, x_axis="block", y_axis=axis(found, "degrees", range=(0.0, end)))


def _shares(steps: xr.Dataset) -> dict[str, Any]:
    shown = {"mean shift": "shift", "scale": "scale", "rotation": "rotation", "linear": "linear"}
    curves = {name: np.clip(steps.r2.sel(step=step).to_numpy(), -0.2, None) for name, step in shown.items()}
    noise = float(steps.null_r2.sel(step="linear").max())
    rules = [rule(max(noise, -0.2), "noise floor")]
    return lines("blocks", steps.from_layer, curves, x_axis="block", y_axis=axis("R², held out", range=(-0.2, 1.0)), rules=rules)


def _turns(pair: xr.Dataset, subspace: str) -> dict[str, Any]:
    turns = pair.rotation_angle[0].to_numpy()
    counts, edges = np.histogram(turns, bins=np.arange(0.0, 180.0 + BIN, BIN))
    one = pair.isel(pair=0).sel(subspace=subspace)
    rules = [rule(float(one.energy_angle), f"energy angle, {named(subspace)}"), rule(float(turns.mean()), "mean")]
    return histogram(
        "turns",
        edges,
        [series("directions", counts, colour=BLUE)],
        x_axis=axis("angle of the rotation, all directions", "degrees"),
        y_axis="directions",
        title=f"layer {int(pair.from_layer[0])} to {int(pair.to_layer[0])}",
        rules=rules,
    )


def named(subspace: str) -> str:
    """A subspace in words, from its name in the Dataset: "10", "90 %", "all"."""
    if subspace == "all":
        return "all directions"
    return f"{subspace} of variance" if subspace.endswith("%") else f"{subspace} directions"
