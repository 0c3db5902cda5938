"""The phase panel: cut the residual stream of any model into N phases, and see whether the cut means anything to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ipywidgets as widgets
import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.figures.phase_view import phase_view_chart
from lens.models.model import Model
from lens.panels.panel import Job
from lens.panels.text_panel import TextPanel
from lens.probes.phase_view import MEASURES, ChannelSums, channel_sums, phase_view

EXAMPLE = (
    "The keeper of the lighthouse climbed the stairs, lit the lamp and wrote in his book that the sea was calm. In the morning a "
    "ship came from the north with letters, flour and oil, and its captain told him that the old king was dead and that his "
    "daughter would be crowned before the first snow."
)
SHORTEST, LONGEST = 4, 1024  # tokens
FIRST_TOKEN = ("without", "with")
_MEASURES = {
    "lengths of phases": "length",
    "means of phases": "mean",
    "angles between layers": "angle",
    "correlation of channels": "correlation",
    "rotation of pairs": "rotation",
}


@dataclass(frozen=True)
class _Result:
    """One text's stream, read once with and without the first token, and the views that were asked for since."""

    model: Model
    tokens: int
    sums: Mapping[str, ChannelSums]
    views: dict[tuple[str, int, str], xr.Dataset] = field(default_factory=dict)

    def view(self, measure: str, phases: int, first_token: str) -> xr.Dataset:
        key = (measure, phases, first_token)
        if key not in self.views:
            self.views[key] = phase_view(self.sums[first_token], phases, measure)
        return self.views[key]

    @property
    def cuts(self) -> tuple[int, ...]:
        return tuple(self.sums["without"].linked)

    @property
    def own(self) -> int | None:
        return self.sums["without"].own_phases


class PhaseView(TextPanel):
    """The residual stream of any model as N phases of adjacent channels, beside random partitions of its pairs of channels.

    Args:
        model: a `lens.Model`, or anything `lens.load` takes.
        text: 4 to 1024 tokens.
        phases: N; by default that of a Three-Phase model, and 3 for others.
        measure: `length`, `mean`, `angle`, `correlation` or `rotation`, see `lens.phase_view`.
        layer: whose phases are shown; by default the middle one. Of what happens between layers, the block before it.
        first_token: `without` it or `with` it; in many models its state outweighs all others.

    `set(phases=…, layer=…)` changes settings from a cell, a click in the left picture chooses a layer; `summary()` gives what is
    shown as plain data, `view` the Dataset.
    """

    COMPUTED = ("model", "text")
    VIEW = ("phases", "measure", "layer", "first_token")

    def __init__(
        self,
        model: Model | str = "smollm2-135m",
        text: str = EXAMPLE,
        *,
        phases: int | None = None,
        measure: str = "length",
        layer: int | None = None,
        first_token: str = "without",
    ):
        narrow = widgets.Layout(width="auto")
        controls = {
            "phases": _slider("phases N", [3]),
            "layer": _slider("layer", [0]),
            "measure": widgets.Dropdown(options=list(_MEASURES.items()), layout=narrow, tooltip="what is compared"),
            "first_token": widgets.ToggleButtons(
                options=[(f"{name} first token", name) for name in FIRST_TOKEN], style={"button_width": "auto"}, layout=narrow
            ),
        }
        view = {"phases": phases, "measure": measure, "layer": layer, "first_token": first_token}
        super().__init__(model, text, view, controls, placeholder="Type a few sentences and press Enter")
        self._open(view)

    # -- for cells --------------------------------------------------------------------------------

    @property
    def view(self) -> xr.Dataset:
        """What is shown, from `lens.phase_view`."""
        shown = self._shown()
        return shown.view(self._view["measure"], self._view["phases"], self._view["first_token"])

    # -- computation ------------------------------------------------------------------------------

    def _compute(self, job: Job) -> _Result:
        model = self._model(job)
        ids = self._token_ids(job, model, SHORTEST, min(LONGEST, model.context or LONGEST), "a few sentences")
        with job.holding(model.lock, "running"):
            run = model.run(ids, logits=False, check=job.check_blocks(model.n_layers, "running"))
        job.token.check()
        return _Result(model, len(ids), {name: channel_sums(run, drop_first=name == "without") for name in FIRST_TOKEN})

    # -- view -------------------------------------------------------------------------------------

    def _checked(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        for name, known in (("measure", MEASURES), ("first_token", FIRST_TOKEN)):
            if view[name] not in known:
                raise InputError(f"The {name} is {view[name]!r}", f"one of {', '.join(known)}", f"{name}={known[0]!r}")
        cuts, layers = result.cuts, range(result.model.n_layers + 1)
        phases, layer = (None if self._stale(name, view[name], known) else view[name] for name, known in
                         (("phases", cuts), ("layer", layers)))  # fmt: skip
        phases = phases if phases is not None else result.own or (3 if 3 in cuts else cuts[-1])
        layer = layer if layer is not None else len(layers) // 2
        if phases not in cuts:
            found = f"{phases!r} phases of {result.model.d_model} channels"
            raise InputError(found, f"one of {', '.join(map(str, cuts))}", f"phases={cuts[-1]}")
        if layer not in layers:
            raise InputError(f"The layer is {layer!r}", f"0 to {layers[-1]}", f"layer={layers[-1]}")
        return {**view, "phases": int(phases), "layer": int(layer)}

    def _stale(self, name: str, value: Any, known: Any) -> bool:
        """Whether a setting was chosen for another model, and is none of this one's."""
        return value is None or (value == self._view[name] and value not in known)

    def _spec(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        return phase_view_chart(result.view(view["measure"], view["phases"], view["first_token"]), view["layer"])

    def _facts(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        found = result.view(view["measure"], view["phases"], view["first_token"])
        places = found.sizes.get("block", found.sizes.get("layer"))
        at = max(view["layer"] - 1, 0) if "block" in found.dims else view["layer"]
        names = ("statistic", "random_low", "random_middle", "random_high", "deviations")
        here = {name: _digits(float(found[name][at])) for name in names}
        facts = {**view, "tokens": result.tokens, "own_phases": result.own, "places": places, "place": at, **here}
        facts["above"] = int((found.statistic > found.random_high + 1e-12).sum())
        if view["measure"] == "rotation":
            facts |= {name: _digits(float(np.rad2deg(found[name][at]))) for name in ("miss", "turn_size")}
        return {**facts, "says": _sentence(facts)}

    def _selection(self, view: Mapping[str, Any]) -> dict[str, Any]:
        return {"layers": view["layer"], "blocks": max(view["layer"] - 1, 0)}

    def _chosen(self, selected: Mapping[str, Any]) -> dict[str, Any]:
        """A click on a layer chooses it, one on a block the layer behind it."""
        if "blocks" in selected and selected["blocks"] != max(self._view["layer"] - 1, 0):
            return {"layer": int(selected["blocks"]) + 1}
        return {"layer": int(selected["layers"])} if "layers" in selected else {}

    def _show_view(self, view: Mapping[str, Any]) -> None:
        options = {"phases": list(self._result.cuts), "layer": list(range(self._result.model.n_layers + 1))}
        for name, values in options.items():
            if list(self._controls[name].options) != values:
                self._controls[name].options = values
        super()._show_view(view)


def _slider(name: str, options: list[int]) -> widgets.SelectionSlider:
    """Its options are known once a model has been looked at."""
    layout = widgets.Layout(flex="1 1 15em", width="auto", max_width="24em")
    return widgets.SelectionSlider(options=options, description=name, style={"description_width": "auto"}, layout=layout)


def _digits(value: float) -> float:
    return float(f"{value:.3g}")


# -- in words --------------------------------------------------------------------------------------

_DIFFER = {"length": "The lengths", "mean": "The means", "angle": "The angles to the layer before"}


def _sentence(facts: Mapping[str, Any]) -> str:
    if facts["measure"] == "rotation":
        return _of_rotation(facts)
    if facts["phases"] == 1:
        return "One phase is the whole stream: there is nothing to compare."
    place = f"{'block' if facts['measure'] == 'angle' else 'layer'} {facts['place']}"
    own, low, high = (f"{facts[name]:.3g}".replace("-", "−") for name in ("statistic", "random_low", "random_high"))
    if facts["measure"] == "correlation":
        start = f"In {place} channels of one phase correlate by {own} more than channels of different phases"
    else:
        unit = "°" if facts["measure"] == "angle" else ""
        start = f"{_DIFFER[facts['measure']]} of the {facts['phases']} phases of {place} differ by up to {own}{unit}"
    return (
        f"{start}; for 95 % of random partitions it is {low} to {high}. "
        f"Adjacent channels are above that band in {facts['above']} of {facts['places']} {place.split()[0]}s; "
        f"chance gives {0.025 * facts['places']:.1g}."
    )


def _of_rotation(facts: Mapping[str, Any]) -> str:
    phases, block = facts["phases"], facts["place"]
    if phases == 1:
        locked = (
            f"Block {block} turns all pairs alike with a strength of {facts['statistic']:.2f} (1: one rotation and nothing else)"
        )
    else:
        locked = (
            f"Block {block} turns each of {phases} phases {360 / phases:.3g}° further than the one before with a strength of "
            f"{facts['statistic']:.2f} (1: just so); random partitions reach {facts['random_high']:.2f}"
        )
    if np.isnan(facts["miss"]):
        return f"{locked}. No rotation is imposed here, and a pair of channels turns by {facts['turn_size']:.2g}° on average."
    own = "" if facts["own_phases"] == phases else f", in {facts['own_phases']} phases,"
    return f"{locked}. The rotation that the model imposes{own} is missed by {facts['miss']:.2g}° on average, of 90° by chance."
