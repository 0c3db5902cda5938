"""Charts of a rotation that is absorbed into the weights: how far the stream turns, the next tokens, and every logit's change."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr

from lens.figures.chart import BLUE, GREEN, ORANGE, axis, bars, chart, clock, lines, phase_colours, rule, series

VARIANTS = {"with rotation": ("with θ", BLUE), "absorbed": ("absorbed", GREEN), "left out": ("left out", ORANGE)}
KEY = {"spoke": "imposed by θ", "trace": "measured, long where sure"}
KEY_ABSORBED = {"trace": "measured, long where sure", "tick": "where θ pointed"}
_SPOKE = 0.8  # of the radius, so that names and ticks have room within the rim
_GAPS = (1e-17, 1e3)


def absorbed_chart(found: xr.Dataset, *, absorbed: bool, layer: int, pair: int) -> dict[str, Any]:
    """How far the stream has turned, the likeliest next tokens, and the largest change of a logit at each token.

    Args:
        found: Dataset of `absorbed_rotation`.
        absorbed: whether the model stands there without its rotations.
        layer, pair: of the dial.
    """
    return chart([_dial(found, absorbed, layer, pair), _next_tokens(found, absorbed), _gaps(found, absorbed)])


def _dial(found: xr.Dataset, absorbed: bool, layer: int, pair: int) -> dict[str, Any]:
    """Spokes for what θ imposes, traces for what the states do; without θ no spoke is left."""
    at = found.sel(layer=layer, pair=pair)
    pointed = at.imposed.sel(variant="with rotation").to_numpy().tolist()
    here = at.sel(variant="absorbed" if absorbed else "with rotation")
    colours, hands = phase_colours(found.sizes["phase"]), []
    measures = (here[name].to_numpy().tolist() for name in ("measured", "coherence"))
    for phase, (imposed, measured, coherence) in enumerate(zip(pointed, *measures, strict=True)):
        name = f"phase {phase}"
        own = {"group": name, "colour": colours[phase]}
        if not absorbed:
            hands.append({**own, "label": name, "angle": imposed, "length": _SPOKE, "kind": "spoke", "mark": phase})
        length, note = _SPOKE * min(1.0, coherence), f"explains {100 * coherence:.0f} %"
        trace = {"label": f"{name}, measured", "angle": measured, "length": length, "kind": "trace", "note": note}
        hands.append({**own, **trace, "mark": phase if absorbed else ""})
    count = int(found.angles.max())
    title = f"no angle left of {count}" if absorbed else f"{count} angles θ"
    title = f"{title}: layer {layer}, pair {pair}"
    return clock("phase", hands, title=title, ticks=pointed if absorbed else (), key=KEY_ABSORBED if absorbed else KEY)


def _next_tokens(found: xr.Dataset, absorbed: bool) -> dict[str, Any]:
    shown = list(VARIANTS) if absorbed else ["with rotation"]
    heights = [
        series(VARIANTS[name][0], found.probability.sel(variant=name).to_numpy(), colour=VARIANTS[name][1]) for name in shown
    ]
    most = float(found.probability.max())
    bound = axis("probability", range=(0.0, math.ceil(10 * most) / 10))
    return bars("next", found.token.to_numpy().tolist(), heights, label_axis="next token", value_axis=bound)


def _gaps(found: xr.Dataset, absorbed: bool) -> dict[str, Any]:
    curves = [series("left out", found.left_out_gap, colour=ORANGE)]
    if absorbed:
        names = {"float32": BLUE, "float64": GREEN}
        curves = [*(series(f"absorbed, {name}", _seen(found.gap.sel(precision=name)), colour=colour)
                    for name, colour in names.items()), *curves]  # fmt: skip
    spread = float(found.logit_spread.mean())
    tokens = axis("token", labels=found.input_token.to_numpy().tolist())
    bound = axis("largest change of a logit", scale="log", range=_GAPS)
    return lines("gap", found.position, curves, x_axis=tokens, y_axis=bound, rules=[rule(spread, "spread of the logits")])


def _seen(gap: xr.DataArray) -> np.ndarray:
    """Logits without any change stand at the lower end of the axis."""
    return np.maximum(gap.to_numpy(), _GAPS[0])
