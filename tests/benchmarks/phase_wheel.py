"""From a slider to its picture: the wheel of phases and the absorb button, in Python and in a real JupyterLab in Chromium."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from lens.panels.absorbed_rotation import AbsorbedRotation
from lens.panels.phase_wheel import PhaseWheel
from lens.probes.phase_wheel import FAMILY
from tests.benchmarks.explorer import moves, started
from tests.benchmarks.measure import Row
from tests.browser.lab import MissingError

GOAL = 0.2  # seconds
_CELL = "from lens.panels import PhaseWheel\nPhaseWheel()"
_KEYS = 3 * ["ArrowLeft", "ArrowLeft", *6 * ["ArrowRight"], *4 * ["ArrowLeft"]]  # from three phases to one, to twelve, and back


def rows(repeats: int) -> list[Row]:
    """Another number of phases, opened for the first time and again; another layer; the button; and all of it in a browser."""
    wheel, absorbed = PhaseWheel(), AbsorbedRotation()
    others = [phases for phases in FAMILY if phases != 3]
    first = [_seconds(lambda phases=phases: wheel.set(phases=phases)) for phases in others]
    rounds = [[_seconds(lambda phases=phases: wheel.set(phases=phases)) for phases in others] for _ in range(repeats)]
    again = np.min(rounds, 0)
    layers = [min(_seconds(lambda layer=layer: wheel.set(layer=layer)) for _ in range(repeats)) for layer in range(5)]
    button = min(_seconds(lambda pressed=pressed: absorbed.set(absorbed=pressed)) for pressed in repeats * [True, False])
    texts = [f"The city was founded in the {word} century" for word in ("tenth", "last", "first", "third")]
    absorbing = min(_seconds(lambda text=text: absorbed.set(text=text)) for text in texts)
    return [
        Row("PhaseWheel, a shipped model opened for the first time, slowest of 6", max(first), goal=GOAL),
        Row("PhaseWheel, a shipped model that is open, slowest of 6", float(again.max()), goal=GOAL),
        Row("PhaseWheel, another layer, slowest of 5", max(layers), goal=0.15),
        Row("AbsorbedRotation, another sentence: absorbing and 7 passes", absorbing, goal=GOAL),
        Row("AbsorbedRotation, the button", button, goal=0.15),
        *_in_a_browser(),
    ]


def _seconds(act: Callable[[], Any]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def _in_a_browser() -> list[Row]:
    """None where there is no browser."""
    try:
        with started() as (lab, browser):
            seconds = moves(lab, browser, _CELL, "phases", _KEYS)
    except MissingError:
        return []
    once, kept = [seconds[0], seconds[1], *seconds[4:8]], seconds[8:]  # two and three phases are met again on the way up
    return [
        Row("PhaseWheel in a browser: slider of phases, models opened for the first time, slowest of 6", max(once), goal=GOAL),
        Row(f"the same, models that are open, 95th percentile of {len(kept)}", float(np.quantile(kept, 0.95)), goal=GOAL),
        Row("the same, median", float(np.median(kept))),
    ]
