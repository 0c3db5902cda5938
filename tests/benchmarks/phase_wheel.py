"""From a slider to its picture: the wheel of phases and the absorb button, in Python and in a real JupyterLab in Chromium."""

from __future__ import annotations

import time
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
    """Another number of phases, met for the first time and again; another layer; the button; and the slider in a browser."""
    wheel, absorbed = PhaseWheel(), AbsorbedRotation()
    others = [phases for phases in FAMILY if phases != 3]
    texts = [f"The city was founded in the {word} century" for word in ("tenth", "last", "first", "third")]
    found = {
        "PhaseWheel, a shipped model opened for the first time": [_cost(wheel, phases=phases) for phases in others],
        "PhaseWheel, another sentence": [_cost(wheel, text=text) for text in texts],
        "PhaseWheel, a model and sentence seen before": _again(wheel, repeats),
        "PhaseWheel, another layer": [_cost(wheel, layer=layer) for _ in range(repeats) for layer in range(5)],
        "AbsorbedRotation, another sentence: absorbing and 8 passes": [_cost(absorbed, text=text) for text in texts],
        "AbsorbedRotation, the button": [_cost(absorbed, absorbed=pressed) for pressed in repeats * [True, False]],
    }
    goals = {"PhaseWheel": GOAL, "AbsorbedRotation": None}
    listed = []
    for name, costs in found.items():
        goal = goals[name.split(",")[0]]
        wall, processor = np.median(costs, 0)
        listed += [Row(f"{name}, median", float(wall), goal=goal), Row("the same, processor time", float(processor))]
    return [*listed, *_in_a_browser()]


def _again(wheel: PhaseWheel, repeats: int) -> list[tuple[float, float]]:
    wheel.set(phases=3)
    return [_cost(wheel, phases=phases) for phases in repeats * [12, 3]][1:]


def _cost(panel: PhaseWheel | AbsorbedRotation, **changes: Any) -> tuple[float, float]:
    """Seconds on the wall and of the processor until the picture is up to date."""
    wall, processor = time.perf_counter(), time.process_time()
    panel.set(**changes)
    return time.perf_counter() - wall, time.process_time() - processor


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
