"""What a cell of the lens grid can be coloured by, and how a value becomes a shade."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr

from lens.base.errors import InputError

ACCENT = "#d4581a"
SURFACE, DEEP = "#ffffff", "#0f4c8a"


@dataclass(frozen=True)
class Measure:
    """One colouring: `range` maps to shades 0..1, on a linear or logarithmic scale; `reverse` makes small values dark."""

    name: str
    label: str
    unit: str
    scale: Literal["linear", "log"]
    range: tuple[float, float]
    reverse: bool = False

    def shade(self, values: np.ndarray) -> np.ndarray:
        """Shades between 0 (the page) and 1 (the full hue); NaN stays NaN."""
        low, high = self.range
        if self.scale == "log":
            values, low, high = np.log(np.maximum(values, low)), np.log(low), np.log(high)
        share = np.clip((values - low) / (high - low), 0.0, 1.0)
        return 1.0 - share if self.reverse else share

    @property
    def ends(self) -> tuple[str, str]:
        """Labels of shade 0 and shade 1."""
        low, high = (f"{end:,.0f}" if end >= 1000 else f"{end:.3g}" for end in self.range)
        return (high, low) if self.reverse else (low, high)

    @property
    def title(self) -> str:
        """Name with its unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def spec(self) -> dict[str, Any]:
        """Plain data for the browser."""
        return {**asdict(self), "range": list(self.range)}


def measures(dataset: xr.Dataset) -> dict[str, Measure]:
    """The colourings of a logit-lens Dataset. Ranges depend on the vocabulary alone, so that two pictures compare."""
    vocabulary = int(dataset.attrs["vocabulary"])
    found = (
        Measure("probability", "probability", "", "linear", (0.0, 1.0)),
        Measure("entropy", "entropy", "nats", "linear", (0.0, float(np.log(vocabulary)))),
        Measure("next_rank", "rank of next", "", "log", (1.0, float(vocabulary)), reverse=True),
        Measure("kl_to_final", "KL to last", "nats", "log", (0.01, 100.0)),
    )
    return {measure.name: measure for measure in found}


def cell_values(dataset: xr.Dataset, measure: str) -> np.ndarray:
    """Values `[layer, position]` that a colouring shows."""
    if measure == "probability":
        return np.exp(dataset.logprob.sel(rank=1).to_numpy())
    return dataset[measure].to_numpy()


def chosen_measure(dataset: xr.Dataset, name: str) -> Measure:
    """The colouring of that name.

    Raises:
        InputError: no such colouring.
    """
    known = measures(dataset)
    if name not in known:
        raise InputError(f"The colour is {name!r}", f"one of {', '.join(known)}", "colour='probability'")
    return known[name]


def shown_layers(dataset: xr.Dataset, stride: int) -> list[int]:
    """Every `stride`-th layer, the first and the last always; all of them where only some layers were read."""
    if stride < 1:
        raise InputError(f"The layer stride is {stride}", "1 or more", "stride=1")
    layers = dataset.layer.to_numpy().tolist()
    some = layers[-1] - layers[0] >= len(layers)
    return [layer for layer in layers if some or layer % stride == 0 or layer in (layers[0], layers[-1])]


def first_shown(layers: list[int], layer: float | np.number) -> int | None:
    """First of the shown layers at or above `layer`; None for NaN."""
    return next((shown for shown in layers if shown >= layer), None)


def shown_correct(dataset: xr.Dataset, layers: list[int]) -> list[int | None]:
    """For each position, the first of the shown layers whose first word is the one that really follows."""
    following = [*dataset.input_id.to_numpy()[1:], None]
    first = dict(zip(dataset.layer.to_numpy().tolist(), dataset.token_id.isel(rank=0).to_numpy(), strict=True))
    return [next((layer for layer in layers if first[layer][p] == token), None) for p, token in enumerate(following)]


def ink(shade: float | np.floating) -> str:
    """Black or white, whichever reads better (at least 4.5 : 1) on a shade from `SURFACE` to `DEEP`; NaN is the surface."""
    shade = 0.0 if np.isnan(shade) else shade
    channels = [a + (b - a) * shade for a, b in zip(_bytes(SURFACE), _bytes(DEEP), strict=True)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else "#ffffff"


def _bytes(colour: str) -> list[float]:
    return [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
