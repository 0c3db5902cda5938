"""How long panels take: until their first picture, and from a control to the next one."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from lens import panels
from lens.corpora import corpus
from lens.models.load import load
from lens.models.model import Model
from lens.probes.compare_lenses import compare_lenses
from lens.probes.dataset import exact, texts
from lens.runs.run import Budget, Measure, Measured, NamedRun, Setting

_MODEL, _SMALL = "smollm2-135m", "three-phase-n3"
_NILE = "The Nile flows north through Egypt, and the capital of Egypt is the city of"
_TEXTS = (_NILE, _NILE + " Cairo")
_READ = 600  # tokens behind the early-exit panel, which shows readings and runs no model
Moves = Mapping[str, tuple[Any, Any]]

MOVES: Mapping[str, Moves] = {
    "LogitLens": {"text": _TEXTS, "lens": ("shortcut", "plain"), "colour": ("entropy", "probability")},
    "LinearShortcuts": {"source": (12, 15), "target": (21, 30)},
    "EarlyExit": {"measure": ("surprisal", "precision_1"), "strictness": (0.5, 0.9)},
    "DepthLab": {"text": _TEXTS, "edit": ("swapped", "removed"), "blocks": ((3, 5), (10, 12))},
    "LayerLinearity": {"scored": ("in sample", "held out"), "block": (5, 20)},
    "RotationDrift": {"source": (12, 15), "subspace": ("10", "50"), "picture": ("depth", "blocks")},
    "Relations": {"relation": ("verb: past", "country: capital"), "layer": (9, 21)},
    "RopeExplorer": {"base": (500_000.0, 20_000.0), "kind": ("ntk", "default"), "position": (1_000, 200)},
    "RopeBounds": {"context": (32_768, 8_192), "base": (500_000.0, 20_000.0)},
    "RopeBase": {"text": _TEXTS, "base": (10_000.0, 1_000_000.0), "head": (1, 2)},
    "HeadLanes": {"text": _TEXTS, "head": (1, 2), "base": (10_000.0, 1_000_000.0)},
    "CommutingRotations": {"family": ("axial partition", "independent"), "offset": (4, 12)},
    "AttentionAtlas": {"text": _TEXTS, "head": (1, 2), "measure": ("stable_rank", "effective_rank")},
    "OperatorZoo": {"text": _TEXTS, "head": (1, 2), "operator": ("alibi", "softmax")},
    "FrozenMap": {"text": ("The capital of Italy is", "The capital of Spain is"), "picture": ("blocks", "layers")},
    "HeadCircuits": {"text": _TEXTS, "head": (1, 2), "offset": (4, 2)},
    "DepthCollapse": {"text": _TEXTS, "picture": ("parts", "bands"), "layer": (10, 20)},
    "PhaseWheel": {"phases": (1, 3), "text": _TEXTS, "layer": (1, 2)},
    "AbsorbedRotation": {"text": _TEXTS, "absorbed": (True, False), "layer": (1, 2)},
    "PhaseTraining": {"num_phases": (1, 3), "layer": (1, 2)},
    "TokenMicroscope": {"text": _TEXTS, "measure": ("recovered", "nonlinearity"), "position": (5, 7)},
    "Claims": {"search": ("attention", "rotation"), "verdict": ("fails", "holds")},
    "PhaseView": {"text": _TEXTS, "measure": ("mean", "length"), "phases": (1, 3)},
}
"""For every panel its controls, each with two settings that it is moved between; none is what the one before it left."""

NO_PANELS: Mapping[str, str] = {"side_by_side": "two logit lenses in one row, each measured as LogitLens"}
"""What else `lens.panels` has, and why it is not measured."""

_WITHOUT_MODEL = (
    "RopeExplorer",
    "RopeBounds",
    "CommutingRotations",
    "PhaseWheel",
    "Claims",
)  # or with one that they open themselves


def pieces(budget: Budget) -> Mapping[str, Measure]:
    """One piece for each panel."""
    return {name: partial(_latency, name=name) for name in budget["panels"]}


PANELS = NamedRun(
    "panels",
    "Latency of every panel: first picture, and every control",
    {plan: {"model": _MODEL, "panels": list(MOVES), "turns": 3} for plan in ("cpu", "cuda")},
    pieces,
)


def _latency(setting: Setting, *, name: str) -> Measured:
    """Seconds of `set(...)`, which returns when the picture is up to date; a browser's own time is not in it.

    What a panel shows is opened twice: the first time it may have to fit or read what is then kept on disk.
    """
    opened, moves = _opener(setting, name), MOVES[name]
    panel, first = _opened(setting, opened)
    _close(panel)
    panel, following = _opened(setting, opened)
    turns = [_moved(setting, panel, control, moves[control]) for control in moves]
    wall, processor = (np.array(found) for found in zip(*turns, strict=True))
    _close(panel)
    found = {
        "first_picture": exact((), first, "opening with the model loaded, where a fit may have to be made first", "s"),
        "next_opening": exact((), following, "opening it once more", "s"),
        "wall_time": exact(("control", "turn"), wall, "time to the next picture", "s"),
        "processor_time": exact(("control", "turn"), processor, "processor time to the next picture, all threads", "s"),
        "first": exact(("control",), wall[:, :2].max(1), "time to the next picture, the first time at either setting", "s"),
        "least": exact(("control",), wall.min(1), "least time to the next picture", "s"),
        "median": exact(("control",), np.median(wall, axis=1), "median time to the next picture", "s"),
    }
    return Measured(xr.Dataset(found, {"control": texts(("control",), list(moves), "control that is moved")}, {"panel": name}))


def _opener(setting: Setting, name: str) -> Callable[[], Any]:
    """What opens a panel, with its model loaded on the device."""
    panel = getattr(panels, name)
    if name in _WITHOUT_MODEL:
        return panel
    if name == "PhaseTraining":
        return partial(panel, device=str(setting.device))
    model = load(_SMALL if name == "AbsorbedRotation" else setting.budget["model"], device=setting.device)
    return partial(panel, _readings(setting, model) if name == "EarlyExit" else model)


def _readings(setting: Setting, model: Model) -> xr.Dataset:
    text = corpus("wikipedia")
    return compare_lenses(model, text, {"plain": None}, tokens=_READ, window=min(256, model.context or 256), check=setting.check)


def _opened(setting: Setting, opened: Callable[[], Any]) -> tuple[Any, float]:
    """A panel with its picture, and how long both took."""
    setting.check()
    began = time.perf_counter()
    panel = opened()
    panel.summary()  # waits for the picture
    seconds = time.perf_counter() - began
    _require_picture(panel, "opening")
    return panel, seconds


def _require_picture(panel: Any, what: str) -> None:
    if panel.error is not None:
        raise RuntimeError(f"{type(panel).__name__}, {what}: {panel.error}")


def _close(panel: Any) -> None:
    """With all that it is made of: a control that stays open holds its panel in memory, moments and all."""
    waiting = [panel]
    while waiting:
        widget = waiting.pop()
        waiting += getattr(widget, "children", ())
        widget.close()
    gc.collect()


def _moved(setting: Setting, panel: Any, control: str, values: tuple[Any, Any]) -> tuple[list[float], list[float]]:
    """Wall and processor seconds of every turn."""
    turns = []
    for turn in range(int(setting.budget["turns"])):
        setting.check()
        value = values[turn % 2]
        wall, processor = time.perf_counter(), time.process_time()
        panel.set(**{control: value})
        turns.append((time.perf_counter() - wall, time.process_time() - processor))
        _require_picture(panel, f"{control}={value!r}")
    walls, processors = zip(*turns, strict=True)
    return list(walls), list(processors)
