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
    bound = axis(found, "degrees", scale="log", range=(_least(steps), 200.0))
    return lines("blocks", here.from_layer, curves, x_axis="block", y_axis=bound)


def _least(steps: xr.Dataset) -> float:
    """A power of ten at or below the angles of every subspace, so that the axis stays from one to the other."""
    known = np.concatenate([steps[name].to_numpy().ravel() for name in ("energy_angle", "energy_angle_noise")])
    return float(10.0 ** np.clip(np.floor(np.log10(known[known > 0].min(initial=1.0))), -2, 1))


def _shares(steps: xr.Dataset) -> dict[str, Any]:
    shown = {"mean shift": "shift", "scale": "scale", "rotation": "rotation", "linear": "linear"}
    curves = {name: steps.r2.sel(step=step).to_numpy() for name, step in shown.items()}
    rules = [rule(float(steps.null_r2.sel(step="linear").max()), "noise floor")]
    least = min(float(steps.r2.sel(step=list(shown.values())).min()), rules[0]["value"])
    bound = axis("R², held out", range=(max(-1.0, min(-0.2, np.floor(5 * least) / 5)), 1.0))
    return lines("blocks", steps.from_layer, curves, x_axis="block", y_axis=bound, rules=rules)


def _turns(pair: xr.Dataset, subspace: str) -> dict[str, Any]:
    turns, angle = pair.rotation_angle[0].to_numpy(), float(pair.energy_angle.sel(subspace=subspace)[0])
    counts, edges = np.histogram(turns, bins=np.arange(0.0, 180.0 + BIN, BIN))
    title = f"layer {int(pair.from_layer[0])} to {int(pair.to_layer[0])}: mean {turns.mean():.0f}°, by energy {angle:.1f}°"
    return histogram(
        "turns",
        edges,
        [series("directions", counts, colour=BLUE)],
        x_axis=axis("angle of the rotation, all directions", "degrees", range=(0.0, 180.0)),
        y_axis="directions",
        title=title,
    )


def named(subspace: str) -> str:
    """A subspace in words, from its name in the Dataset: "10", "90 %", "all"."""
    if subspace == "all":
        return "all directions"
    return f"{subspace} of variance" if subspace.endswith("%") else f"{subspace} directions"
