"""The absorb button: θ disappears into the weights, and no logit notices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import xarray as xr

from lens.base.errors import InputError
from lens.figures.absorbed_rotation import absorbed_chart
from lens.figures.export import export_table
from lens.models.model import Model
from lens.models.shipped import shipped_models
from lens.panels.panel import Job
from lens.panels.text_panel import TextPanel
from lens.probes.absorbed_rotation import Absorbed, absorbed_rotation

EXAMPLE = "The city was founded in the twelfth cent"
MODEL = "three-phase-n3"
_PRESS, _UNDO = "Absorb the rotation", "Undo: bring θ back"


@dataclass(frozen=True)
class _Result:
    """A model, its twin, and how they compare on a text."""

    model: Model
    absorbed: Absorbed

    @property
    def dataset(self) -> xr.Dataset:
        return self.absorbed.dataset


class AbsorbedRotation(TextPanel):
    """A Three-Phase model whose rotation a button takes away: weights absorb it, θ is gone, and every logit stays.

    Beside it stands the model whose rotation is left out while its weights stay as they are, which is another model. Undo
    brings θ back; the model itself is never changed.

    Args:
        model: a `lens.Model` with phases that turn, or anything `lens.load` takes; by default the shipped model of three
            phases.
        text: 2 to 128 tokens.
        absorbed: whether the button is pressed.
        layer, pair: of the stream whose turn is shown; by default the middle layer.

    `set(absorbed=True)` does what the button does; `dataset` is what is shown, `current` the model as it stands there, for any
    other panel or probe, `export(path)` writes the turns.
    """

    COMPUTED = ("model", "text")
    VIEW = ("absorbed", "layer", "pair")

    def __init__(
        self,
        model: Model | str | None = None,
        text: str = EXAMPLE,
        *,
        absorbed: bool = False,
        layer: int | None = None,
        pair: int = 0,
    ):
        layout, style = widgets.Layout(width="16em"), {"description_width": "auto"}
        button = widgets.ToggleButton(False, description=_PRESS, button_style="primary", layout=widgets.Layout(width="auto"))
        controls = {
            "absorbed": button,
            "layer": widgets.IntSlider(0, 0, 4, description="layer", layout=layout, style=style),
            "pair": widgets.IntSlider(0, 0, 15, description="pair", layout=layout, style=style),
        }
        chosen = MODEL if model is None else model
        view = {"absorbed": absorbed, "layer": layer, "pair": pair}
        super().__init__(chosen, text, view, controls)
        named = {name: name for name in shipped_models() if not name.startswith(("three-phase-rope", "three-phase-no-rotation"))}
        self._models = {**named, **{name: known for name, known in self._models.items() if known is chosen}}
        self._top["model"].options = list(self._models.items())
        self._open(view)

    # -- for cells --------------------------------------------------------------------------------

    @property
    def dataset(self) -> xr.Dataset:
        """All comparisons, from `absorbed_rotation`."""
        return self._shown().dataset

    @property
    def current(self) -> Model:
        """The model as the button left it: with its rotation, or its twin without."""
        result = self._shown()
        return result.absorbed.twin if self._view["absorbed"] else result.model

    def export(self, path: str | Path) -> Path:
        """Write the turns of the stream as `.csv`, or all that was compared as `.nc`.

        Raises:
            InputError: another suffix.
        """
        return export_table(self.dataset, path, ("imposed", "measured", "coherence"), ("variant", "layer", "phase", "pair"))

    # -- steps ------------------------------------------------------------------------------------

    def _compute(self, job: Job) -> _Result:
        model = self._model(job)
        ids = self._token_ids(job, model, 2, min(128, model.context or 128), "a sentence")
        with job.holding(model.lock, "absorbing the rotation"):
            run = model.run(ids, check=job.check_blocks(model.n_layers, "running"))
            return _Result(model, absorbed_rotation(run))

    def _checked(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(view["absorbed"], bool):
            raise InputError(f"absorbed is {view['absorbed']!r}", "True or False", "absorbed=True")
        last = {name: result.dataset.sizes[name] - 1 for name in ("layer", "pair")}
        found = {"layer": last["layer"] // 2 if view["layer"] is None else view["layer"], "pair": view["pair"]}
        for name, place in found.items():
            if place not in range(last[name] + 1):
                if place != self._view[name] or not isinstance(place, int):
                    raise InputError(f"The {name} is {place!r}", f"0 to {last[name]}", f"{name}={last[name]}")
                found[name] = last[name]  # of a deeper model, or one of fewer phases
        return {"absorbed": view["absorbed"], **found}

    def _spec(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        return absorbed_chart(result.dataset, **view)

    def _facts(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        found = result.dataset
        here = found.sel(variant="absorbed" if view["absorbed"] else "with rotation", layer=view["layer"], pair=view["pair"])
        gap = found.gap.max("position")
        facts = {
            **view,
            "angles": int(here.angles),
            "imposed": [round(math.degrees(angle) % 360, 1) for angle in here.imposed.to_numpy()],
            "measured": [round(math.degrees(angle), 1) for angle in here.measured.to_numpy()],
            "largest_change": {str(name): _digits(float(gap.sel(precision=name))) for name in found.precision.to_numpy()},
            "largest_change_left_out": _digits(float(found.left_out_gap.max())),
            "logit_spread": _digits(float(found.logit_spread.mean())),
            "next_token": {str(name): str(found.next_token.sel(variant=name).item()) for name in found.variant.to_numpy()},
        }
        return {**facts, "says": _sentence(facts, int(found.angles.max()))}

    def _show_view(self, view: Mapping[str, Any]) -> None:
        for name in ("layer", "pair"):
            self._controls[name].max = self._result.dataset.sizes[name] - 1
        self._controls["absorbed"].description = _UNDO if view["absorbed"] else _PRESS
        super()._show_view(view)


def _digits(value: float) -> float:
    return float(f"{value:.2g}")


def _sentence(facts: Mapping[str, Any], angles: int) -> str:
    left_out = facts["largest_change_left_out"]
    if not facts["absorbed"]:
        return (
            f"{angles} angles θ turn the stream on its way; were they left out, logits would change by up to {left_out:.0f}. "
            "Press the button, and the weights absorb them."
        )
    change = {name: _bound(value) for name, value in facts["largest_change"].items()}
    return (
        f"θ is gone, {angles} angles before and none now, and no logit changes by more than {change['float32']} in float32 or "
        f"{change['float64']} in float64; left out without being absorbed, it would be {left_out:.0f}. This is an identity: the "
        "rotation gives a trained model no function that it could not have without."
    )


def _bound(value: float) -> str:
    """The least even power of ten that is no less: rounding differs from machine to machine."""
    power = 2 * math.ceil(math.log10(max(value, 1e-16)) / 2)
    return "10" + str(power).translate(_RAISED)


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
