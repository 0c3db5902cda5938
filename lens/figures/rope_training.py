"""Charts of models trained at several bases: loss by position beyond the trained length, and its cost by base beside theories."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.figures.chart import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, YELLOW, axis, chart, lines, rule, series

_COLOURS = (SKY, BLUE, GREEN, PURPLE, YELLOW, ORANGE)
THEORIES = ("trained angles", "aliasing", "DC stability", "similar beats random")  # four dashes can be told apart


def rope_training_chart(dataset: xr.Dataset, verdicts: xr.Dataset, reach: int = 1024) -> dict[str, Any]:
    """Loss by position of every base, and what reading `reach` tokens costs by base, with the bases that theories ask for.

    Args:
        dataset: from `rope_training`; bands are the range over seeds.
        verdicts: from `rope_training_verdicts`; intervals are over documents.
        reach: one of the latter's.

    Raises:
        InputError: another reach.
    """
    known = verdicts.reach.to_numpy().tolist()
    if reach not in known:
        raise InputError(f"The reach is {reach!r}", f"one of {', '.join(map(str, known))}", f"reach={known[-1]}")
    return chart([_by_position(dataset), _by_base(verdicts, reach)])


def _by_position(dataset: xr.Dataset) -> dict[str, Any]:
    loss = dataset.loss.mean("document")
    bins = dataset.position.to_numpy()
    middle = bins + (bins[1] - bins[0]) / 2
    curves = [
        series(_named(str(setting)), part.mean("seed"), low=part.min("seed"), high=part.max("seed"), colour=colour)
        for setting, part, colour in zip(dataset.setting.to_numpy(), loss, _COLOURS, strict=False)
    ]
    turning = dataset.isel(setting=np.flatnonzero(~np.isnan(dataset.base)))
    short = turning.short_loss.mean(("document", "seed", "setting"))
    curves.append(series("all bases in short windows", short, colour=BLACK))
    return lines(
        "position", middle, curves, x_axis=axis("position", "bytes"), y_axis=axis("loss", "nats/byte"),
        title="held-out text, read at once", rules=[rule(dataset.attrs["length"], "trained length", on="x")],
    )  # fmt: skip


def _by_base(verdicts: xr.Dataset, reach: int) -> dict[str, Any]:
    shown = verdicts.sel(reach=reach)
    known = ~np.isnan(shown.base.to_numpy())
    curves = [
        series(words, shown[name][known], low=shown[f"{name}_low"][known], high=shown[f"{name}_high"][known], colour=colour)
        for name, words, colour in (("cost", "as trained", BLUE), ("divided_cost", "slow lanes slowed", GREEN))
    ]
    required = [rule(float(shown.required.sel(theory=name)), name, on="x") for name in THEORIES]
    return lines(
        "base", shown.base.to_numpy()[known], curves, x_axis=axis("base", scale="log"),
        y_axis=axis(f"cost of reading {reach:,} bytes at once", "nats/byte"),
        title=f"against windows of {verdicts.attrs['length']}", rules=required,
    )  # fmt: skip


def _named(setting: str) -> str:
    return setting if setting == "no rotation" else f"base {setting}"
