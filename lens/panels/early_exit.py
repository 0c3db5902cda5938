"""The early-exit panel: how sure a lens must be before the rest of the model is left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.figures.early_exit import MEASURES, NAMES, early_exit_chart
from lens.models.locks import ModelLock
from lens.panels.fitted import ChartPanel
from lens.panels.panel import Job
from lens.probes.early_exit import early_exit

_LABELS = {"precision_1": "precision@1", "precision_5": "precision@5", "precision_10": "precision@10"}
_LABELS |= {"surprisal": "surprisal", "kl_to_final": "KL to the model"}


@dataclass(frozen=True)
class _Result:
    readings: xr.Dataset
    exits: xr.Dataset


class EarlyExit(ChartPanel):
    """Lenses compared layer by layer, and what stopping early with each would save.

    Args:
        readings: from `lens.compare_lenses`; no model is needed any more.
        measure: `precision_1`, `precision_5`, `precision_10`, `surprisal` or `kl_to_final`.
        strictness: λ of the exit threshold, from 0 (leave at once) to 1.112 (never before the end).

    `set(measure=…, strictness=…)`, `summary()`, and `exits`, the whole result of `lens.early_exit`.
    """

    VIEW = ("measure", "strictness")

    def __init__(self, readings: xr.Dataset, *, measure: str = "precision_1", strictness: float = 0.8):
        self._given = _Result(readings, early_exit(readings))
        steps = [
            (f"{value:.2f}", value)
            for value in self._given.exits.strictness.to_numpy().astype(float).round(5).tolist()
            if value >= 0
        ]
        style, wide = {"description_width": "auto"}, widgets.Layout(width="26em")
        controls = {
            "measure": widgets.Dropdown(
                options=[(_LABELS[name], name) for name in MEASURES], layout=widgets.Layout(width="auto")
            ),
            "strictness": widgets.SelectionSlider(options=steps, description="strictness λ", style=style, layout=wide),
        }
        super().__init__({}, {"measure": measure, "strictness": strictness}, {}, controls)
        self._result = self._given
        self._shown_settings = {}
        self._open({"measure": measure, "strictness": strictness})

    def __repr__(self) -> str:
        return f"EarlyExit(lenses={self._given.readings.lens.to_numpy().tolist()})"

    @property
    def exits(self) -> xr.Dataset:
        """Agreement and layers saved of every lens, from `lens.early_exit`."""
        return self._given.exits

    def _compute(self, job: Job) -> _Result:
        return self._given

    def _checked(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        if view["measure"] not in MEASURES:
            raise InputError(f"The measure is {view['measure']!r}", f"one of {', '.join(MEASURES)}", "measure='precision_1'")
        known = np.array([value for _, value in self._controls["strictness"].options])
        if not isinstance(view["strictness"], (int, float)) or not 0 <= view["strictness"] <= known.max():
            raise InputError(f"The strictness is {view['strictness']!r}", f"0 to {known.max():.3f}", "strictness=0.8")
        return {"measure": view["measure"], "strictness": float(known[np.abs(known - view["strictness"]).argmin()])}

    def _spec(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        return early_exit_chart(result.readings, result.exits, view["measure"])

    def _facts(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        exits = result.exits
        here = exits.sel(strictness=view["strictness"], method="nearest")
        lenses = [str(lens) for lens in exits.lens.to_numpy()]
        agreement, saved, at_95 = (
            {lens: round(float(values.sel(lens=lens)), 3) for lens in lenses}
            for values in (here.agreement, here.layers_saved, exits.saved_at_95)
        )
        parts = [
            f"the {_name(lens)} saves {100 * saved[lens]:.0f} % of the layers, {100 * agreement[lens]:.0f} % of the words stay"
            for lens in lenses
        ]
        limits = ", ".join(f"{100 * at_95[lens]:.1f} % ({_name(lens)})" for lens in lenses)
        says = f"At λ = {view['strictness']:.2f} " + "; ".join(parts) + f". At 95 % agreement the layers saved are {limits}."
        return {**view, "agreement": agreement, "layers_saved": saved, "saved_at_95": at_95, "says": says}

    def _selection(self, view: Mapping[str, Any]) -> dict[str, Any]:
        return dict(self.chart.selected)

    def _lock(self) -> ModelLock | None:
        return None


def _name(lens: str) -> str:
    name = NAMES.get(lens, lens)
    return name if name.endswith("lens") else f"{name} lens"
