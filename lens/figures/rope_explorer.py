"""Charts of a rotary table: where its lanes point, how long they take for a turn, and what they add up to over the offsets."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from lens.figures.chart import BLUE, ORANGE, axis, chart, clock, lines, rule, series

COLOURS = (BLUE, ORANGE)  # of the default table and of the kind beside it
LONGEST = (1e8, 1e13)  # tokens; ends of the axis of wavelengths, which stays while a slider moves within one of them
_SHORTEST_HAND = 0.4


def explorer_chart(compared: xr.Dataset, pointing: xr.Dataset) -> dict[str, Any]:
    """A clock of all lanes, their wavelengths and their kernel.

    The clock and the wavelengths share the selection `lane`; `offset` is that of the kernel.

    Args:
        compared: from `compare_rope`.
        pointing: from `phases`, of the kind's table.
    """
    return chart([_clock(compared, pointing), _wavelengths(compared), _kernel(compared)])


def _clock(compared: xr.Dataset, pointing: xr.Dataset) -> dict[str, Any]:
    shown = compared.isel(table=-1)
    wavelength, bands = shown.wavelength.to_numpy(), shown.band.to_numpy()
    count, position = len(wavelength), pointing.attrs["position"]
    # Fast lanes reach the rim and slow ones end nearer to the centre, so that hands of one angle are told apart.
    hands = [
        {
            "angle": angle,
            "label": f"lane {lane}",
            "group": f"{bands[lane]} lanes",
            "length": 1 - (1 - _SHORTEST_HAND) * lane / max(1, count - 1),
            "value": lane,
            "note": f"a turn in {tokens(wavelength[lane])} tokens" if np.isfinite(wavelength[lane]) else "stands still",
        }
        for lane, angle in enumerate(pointing.angle.to_numpy())
    ]
    mean = complex(pointing.mean_real, pointing.mean_imaginary)
    here = {"angle": float(np.angle(mean)), "length": min(1.0, abs(mean)), "label": "mean", "note": f"cosine {mean.real:.2f}"}
    return clock("lane", hands, title=f"position {position:,}", here=here)


def _wavelengths(compared: xr.Dataset) -> dict[str, Any]:
    wavelength = compared.wavelength.to_numpy()
    drawn = [
        series(name, row, colour=colour) for name, row, colour in zip(compared.table.values, wavelength, COLOURS, strict=False)
    ]
    longest = wavelength[np.isfinite(wavelength)].max(initial=1.0)
    bound = axis("tokens for one turn", scale="log", range=(1.0, next((end for end in LONGEST if longest <= end), 1e20)))
    slowest = float(compared.slowest_wavelength[-1])
    title = f"slowest turn: {tokens(slowest)} tokens" if np.isfinite(slowest) else "no lane turns"
    rules = [*_lengths(compared), *_treated(compared)]
    return lines("lane", compared.lane, drawn, x_axis="lane", y_axis=bound, rules=rules, title=title)


def _lengths(compared: xr.Dataset) -> list[dict[str, Any]]:
    """The context, and the fractions of the length at which YaRN and Llama 3 change what they do to a lane."""
    context = compared.attrs["context"]
    original = compared.attrs.get("parameter_original_max_position_embeddings", context)
    name = "context" if original == context else "L₀"
    beside = [] if original == context else [rule(context, "context")]
    return [*beside, rule(original, name), rule(original / 4, f"{name}/4"), rule(original / 32, f"{name}/32")]


def _treated(compared: xr.Dataset) -> list[dict[str, Any]]:
    """Where lanes begin to be changed, if not all of them are treated alike."""
    treatment = compared.treatment.to_numpy()
    if len(set(treatment)) == 1:
        return []
    firsts = {name: int(np.flatnonzero(treatment == name)[0]) for name in ("blended", "divided", "stopped") if name in treatment}
    return [rule(lane, f"{name} from lane", on="x") for name, lane in firsts.items() if lane]


def _kernel(compared: xr.Dataset) -> dict[str, Any]:
    width, context = compared.sizes["lane"], compared.attrs["context"]
    last = compared["last"].to_numpy()
    single, run = last == compared.offset.to_numpy(), int(last[0]) + 1  # the ends of a run of one offset are its value
    drawn, found = [], []
    parts = (compared[name].to_numpy() for name in ("table", "low", "high", "first_negative"))
    for name, low, high, first, colour in zip(*parts, COLOURS, strict=False):
        drawn.append(series(name, np.where(single, low, np.nan), low=low, high=high, colour=colour))
        if np.isfinite(first):
            found.append(rule(first, "below zero at" if compared.sizes["table"] == 1 else f"{name} below zero at", on="x"))
    first = float(compared.first_negative[-1])
    title = f"first below zero: {first:,.0f}" if np.isfinite(first) else "above zero within the context"
    named = "sum of cosines" + (f", extremes of {run:,}" if run > 1 else "")
    return lines(
        "offset", compared.offset, drawn, x_axis=axis("offset", "tokens", range=(0, context)), title=title,
        y_axis=axis(named, range=(-width / 2, width)), rules=found, marks=False,
    )  # fmt: skip


def tokens(count: float | int) -> str:
    """A number of tokens in words that stay short."""
    for size, word in ((1e9, " billion"), (1e6, " million")):
        if count >= size:
            return f"{count / size:.3g}{word}"
    return f"{count:,.0f}" if count >= 100 else f"{count:.3g}"
