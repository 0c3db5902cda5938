"""How long panels take on SmolLM2: until their first picture, and from a control to the next one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from lens import panels
from lens.models.load import load
from lens.probes.dataset import exact, texts
from lens.runs.run import Budget, Measure, Measured, NamedRun, Setting

_OTHER = "The Nile flows north through Egypt, and the capital of Egypt is the city of"
# Panel, what it opens with, and for each control two settings that it is moved between.
_MOVES: Mapping[str, Mapping[str, tuple[Any, Any]]] = {
    "LogitLens": {"text": (_OTHER, _OTHER + " Cairo"), "colour": ("entropy", "probability")},
    "RopeBase": {"base": (10_000.0, 100_000.0), "head": (1, 2)},
    "HeadLanes": {"text": (_OTHER, _OTHER + " Cairo"), "head": (1, 2)},
    "AttentionAtlas": {"text": (_OTHER, _OTHER + " Cairo"), "head": (1, 2), "measure": ("stable_rank", "effective_rank")},
    "OperatorZoo": {"text": (_OTHER, _OTHER + " Cairo"), "head": (1, 2)},
    "HeadCircuits": {"head": (1, 2)},
    "DepthCollapse": {"text": (_OTHER, _OTHER + " Cairo"), "layer": (10, 20)},
}


def pieces(budget: Budget) -> Mapping[str, Measure]:
    """One piece for each panel."""
    return {name: partial(_latency, name=name) for name in budget["panels"]}


PANELS = NamedRun(
    "panels",
    "Latency of panels on SmolLM2: first picture, and every control",
    {plan: {"panels": list(_MOVES), "repeats": 7} for plan in ("cpu", "cuda")},
    pieces,
)


def _latency(setting: Setting, *, name: str) -> Measured:
    """Seconds of `set(...)`, which returns when the picture is up to date; a browser's own time is not in it."""
    model = load("smollm2-135m", device=setting.device)
    began = time.perf_counter()
    panel = getattr(panels, name)(model)
    panel.summary()  # waits for the first picture
    first = time.perf_counter() - began
    moves = _MOVES[name]
    seconds = [[_moved(setting, panel, control, value) for value in _alternating(setting, moves[control])] for control in moves]
    panel.close()
    found = {
        "first_picture": exact((), first, "opening, with the model already loaded", "s"),
        "least": exact(("control",), np.min(seconds, axis=1), "least time to the next picture", "s"),
        "median": exact(("control",), np.median(seconds, axis=1), "median time to the next picture", "s"),
    }
    return Measured(xr.Dataset(found, {"control": texts(("control",), list(moves), "control that is moved")}, {"panel": name}))


def _alternating(setting: Setting, values: tuple[Any, Any]) -> list[Any]:
    return [values[turn % 2] for turn in range(int(setting.budget["repeats"]))]


def _moved(setting: Setting, panel: Any, control: str, value: Any) -> float:
    setting.check()
    began = time.perf_counter()
    panel.set(**{control: value})
    return time.perf_counter() - began
