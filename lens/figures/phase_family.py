"""Charts of the Three-Phase family: how its members learn, and by how much their losses differ."""

from __future__ import annotations

from typing import Any

import xarray as xr

from lens.base.errors import InputError
from lens.figures.chart import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, axis, bars, chart, lines, series

NAMES = {
    "three-phase-n1": "1 phase",
    **{f"three-phase-n{count}": f"{count} phases" for count in (2, 3, 4, 6, 8, 12)},
    "three-phase-rope-only": "RoPE only",
    "three-phase-rope-only-scaled": "RoPE only × √d",
    "three-phase-no-horn": "3, no horn",
    "three-phase-no-rotation": "3, no rotation",
    "three-phase-frozen-theta": "3, angles frozen",
    "three-phase-no-theta-decay": "3, angles undecayed",
}
"""Members in few words; others go by the name of their recipe."""
CURVES = {
    "three-phase-n1": SKY,
    "three-phase-n3": BLUE,
    "three-phase-n12": GREEN,
    "three-phase-no-rotation": PURPLE,
    "three-phase-rope-only": BLACK,
    "three-phase-rope-only-scaled": ORANGE,
}
"""Members whose course is drawn, and their colours."""
_FROM = 90  # updates; before, all losses fall alike, and far


def phase_family_chart(family: xr.Dataset, differences: xr.Dataset) -> dict[str, Any]:
    """Held-out loss while the family trains, and by how much every member's final loss is above that of one of them.

    Args:
        family: from `phase_family`; bands are the range over seeds.
        differences: from `family_differences`; whiskers are 95 % intervals with the noise of all members.

    Returns:
        A chart of two plots, `looked_at` and `difference`.

    Raises:
        InputError: a family without any of the members of `CURVES`.
    """
    return chart([loss_curves(family), difference_bars(differences)])


def loss_curves(family: xr.Dataset) -> dict[str, Any]:
    """Held-out loss over updates: the mean over seeds and its range, of those of `CURVES` that the family has."""
    shown = [name for name in family["recipe"].to_numpy().tolist() if name in CURVES]
    if not shown:
        raise InputError("The family has no member with a curve", f"one of {', '.join(CURVES)}", "a record of several trainings")
    loss = family["validation_loss"].where(family["looked_at"] >= _FROM, drop=True)
    curves = []
    for name in shown:
        one = loss.sel(recipe=name)
        curves.append(series(NAMES[name], one.mean("seed"), low=one.min("seed"), high=one.max("seed"), colour=CURVES[name]))
    x = loss["looked_at"]
    return lines("looked_at", x, curves, x_axis="updates", y_axis=axis("held-out loss", "nats/token"), marks=False)


def difference_bars(differences: xr.Dataset) -> dict[str, Any]:
    """Differences in loss as rows, the members in their order."""
    names = [NAMES.get(str(name), str(name)) for name in differences["recipe"].to_numpy()]
    other = differences.attrs["other"]
    low, high = differences["pooled_low"], differences["pooled_high"]
    # The last digits of a loss are noise, and -1.5·10⁻⁴ is no more than 0.
    bar = series("difference", differences["average"].round(3), low=low, high=high, colour=BLUE)
    return bars(
        "difference", names, [bar], label_axis="member", value_axis=axis("loss above it", "nats/token"),
        title=f"final loss against: {NAMES.get(other, other)}",
    )  # fmt: skip
