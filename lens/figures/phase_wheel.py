"""Charts of a Three-Phase model: the wheel of its phases, drift of its angles, losses of its family, and a lens on a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.figures.chart import BLACK, BLUE, GREEN, ORANGE, SKY, axis, chart, clock, heat_map, lines, phase_colours, series

PATHS = ("block", "accumulated")
KEY = {"spoke": "imposed, trained", "trace": "measured, long where sure", "tick": "imposed, at the start"}
_SPOKE = 0.8  # of the radius, so that names and ticks have room within the rim
_SURPRISE = 6.0  # nats beside a blind guess, at the ends of the colour scale


def wheel_chart(
    wheel: xr.Dataset, drift: xr.Dataset, losses: xr.Dataset, *, path: str, layer: int, pair: int, recipe: str
) -> dict[str, Any]:
    """The wheel of one layer and pair, drift over depth, and the losses of the family.

    The selection `drift` is a block, `phase` the label of a hand.

    Args:
        wheel: from `phase_wheel`.
        drift: from `theta_drift`, of the same model.
        losses: from `family_losses`.
        path, layer, pair: what of the wheel is shown.
        recipe: which of the family's curves stands out.

    Raises:
        InputError: another path.
    """
    return chart([phase_dial(wheel, path, layer, pair), drift_plot(drift, pair), _losses(losses, recipe)])


def lens_chart(lens: xr.Dataset) -> dict[str, Any]:
    """How surprised a lens is at each token of a sentence, read from the states before it, beside a guess among equal tokens.

    The selection `lens` is a position and a layer.

    Args:
        lens: from `logit_lens`, of two tokens or more.
    """
    blind = math.log(lens.attrs["vocabulary"])
    values = lens.next_surprisal.isel(position=slice(None, -1)).to_numpy() - blind
    tokens = axis("token, read from the states before it", labels=lens.input_token.to_numpy()[1:].tolist())
    end = axis("surprise less a blind guess's", "nats", range=(-_SURPRISE, _SURPRISE))
    positions, layers = lens.position.to_numpy()[1:], lens.layer.to_numpy()
    return chart([heat_map("lens", positions, layers, values, x_axis=tokens, y_axis="layer", value_axis=end, signed=True)])


def phase_dial(wheel: xr.Dataset, path: str, layer: int, pair: int) -> dict[str, Any]:
    """Where the phases of one layer and pair point: imposed, before training, and measured."""
    if path not in PATHS:
        raise InputError(f"The path is {path!r}", f"one of {', '.join(PATHS)}", f"path={PATHS[0]!r}")
    here = wheel.sel(path=path, layer=layer, pair=pair)
    phases = wheel.sizes["phase"]
    colours = phase_colours(phases)
    hands: list[Mapping[str, Any]] = []
    values = (here[name].to_numpy().tolist() for name in ("angle", "start", "measured", "coherence"))
    for phase, (angle, start, found, coherence) in enumerate(zip(*values, strict=True)):
        name = f"phase {phase}"
        own = {"group": name, "colour": colours[phase]}
        turned = f"{math.degrees(angle - start):+.1f}° in training".replace("-", "−")
        hands.append({**own, "label": name, "angle": angle, "length": _SPOKE, "kind": "spoke", "mark": phase, "note": turned})
        length, note = _SPOKE * min(1.0, coherence), f"explains {100 * coherence:.0f} %"
        hands.append({**own, "label": f"{name}, measured", "angle": found, "length": length, "kind": "trace", "note": note})
    mean = complex(here.mean_cosine, here.mean_sine)
    length, note = _SPOKE * min(1.0, abs(mean)), f"length {abs(mean):.2f}"
    resultant = {"angle": float(np.angle(mean)), "length": length, "label": "mean of the phases", "note": note}
    title, starts = _entitled(path, layer, pair), here.start.to_numpy().tolist()
    return clock("phase", hands, title=title, here=resultant, ticks=starts, key=KEY)


def _entitled(path: str, layer: int, pair: int) -> str:
    if layer == 0:
        return f"embedding, pair {pair}"
    blocks = f"block {layer - 1}" if path == "block" or layer == 1 else f"blocks 0 to {layer - 1} together"
    return f"{blocks}, pair {pair}"


def drift_plot(drift: xr.Dataset, pair: int) -> dict[str, Any]:
    """Mean drift of every block with its spread, one pair's own, and what weight decay alone would give; degrees."""
    mean, spread, alone = (np.rad2deg(drift[name].to_numpy()) for name in ("mean_drift", "spread", "decay_drift"))
    own = np.rad2deg(drift.drift.sel(pair=pair).to_numpy())
    curves = [
        series("mean ± spread", mean, low=mean - spread, high=mean + spread, colour=BLUE),
        series("weight decay alone", alone, colour=BLACK),
        series(f"pair {pair}", own, colour=ORANGE),
    ]
    bound = axis("drift of θ", "degrees", range=_bounds(np.rad2deg(drift.drift.to_numpy()), alone))
    return lines("drift", drift.block, curves, x_axis="block", y_axis=bound)


def _bounds(*values: np.ndarray) -> tuple[float, float]:
    """Whole steps of two degrees around all pairs, so that the axis stays from pair to pair."""
    low, high = min(found.min() for found in values), max(found.max() for found in values)
    return 2.0 * math.floor(min(low, -1) / 2), 2.0 * math.ceil(max(high, 1) / 2)


def _losses(losses: xr.Dataset, recipe: str) -> dict[str, Any]:
    """Held-out loss less that of RoPE only, at the same update with the same seed: means and ranges over seeds."""
    names = losses.recipe.to_numpy().tolist()
    parts = {name: losses[name].to_numpy() for name in ("excess", "low", "high")}

    def over_seeds(title: str, name: str, colour: str) -> dict[str, Any]:
        mean, low, high = (part[names.index(name)] for part in parts.values())
        return series(title, mean, low=low, high=high, colour=colour)

    title, none = str(losses.title.to_numpy()[names.index(recipe)]), np.full(losses.sizes["looked_at"], np.nan)
    curves = [
        over_seeds(title, recipe, BLUE),
        series("every number of phases", none, low=losses.family_low, high=losses.family_high, colour=SKY),
        over_seeds("RoPE only, × √d", "three-phase-rope-only-scaled", GREEN),
    ]
    final = float(losses.final.to_numpy()[names.index(recipe)])
    bound = axis("held-out loss less RoPE only's", "nats per token")
    return lines(
        "losses", losses.looked_at, curves, x_axis="updates", y_axis=bound, title=f"{title}: {final:.2f} nats at the end"
    )
