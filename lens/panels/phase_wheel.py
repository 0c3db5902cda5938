"""The phase wheel: by what angles a Three-Phase model turns its stream, what training made of them, and what reads the stream."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.figures.export import export_table
from lens.figures.phase_wheel import PATHS, lens_chart, wheel_chart
from lens.models.load import load
from lens.models.locks import ModelLock
from lens.models.model import Model
from lens.models.shipped import shipped_record
from lens.panels.chart import Chart
from lens.panels.fitted import ChartPanel
from lens.panels.panel import Job
from lens.probes.logit_lens import logit_lens
from lens.probes.phase_family import phase_family
from lens.probes.phase_wheel import FAMILY, family_losses, phase_wheel, recipe_drift
from lens.probes.turned_lens import TurnedLens

EXAMPLE = "The city was founded in the twelfth century, and after the war it became the largest town."
LENSES = ("turned", "plain")
_PATHS = {"this block": "block", "accumulated": "accumulated"}
_LENSES = {"lens turned with the stream": "turned", "plain lens": "plain"}


@dataclass(frozen=True)
class _Result:
    """One model of the family and what it makes of a sentence; `lenses` by name."""

    model: Model
    phases: int
    wheel: xr.Dataset
    drift: xr.Dataset
    lenses: Mapping[str, xr.Dataset]

    @property
    def last(self) -> int:
        return self.wheel.sizes["layer"] - 1

    @property
    def pairs(self) -> int:
        return self.wheel.sizes["pair"]

    @cached_property
    def surprise(self) -> dict[str, list[float]]:
        """By lens and layer: mean over the sentence, less that of a blind guess, nats."""
        blind = {name: math.log(found.attrs["vocabulary"]) for name, found in self.lenses.items()}
        means = {name: found.next_surprisal.mean("position").to_numpy() for name, found in self.lenses.items()}
        return {name: [round(float(nats) - blind[name], 2) for nats in means[name]] for name in self.lenses}


class PhaseWheel(ChartPanel):
    """The angles of a Three-Phase model as spokes of a wheel: imposed by the blocks, learned, and measured on a sentence.

    The models are those that come with the package, one for each number of phases, alike in all else. Beside the wheel
    stand the drift of the angles over depth, a lens on the sentence, and the losses of the whole family. Words that the lens
    predicts are not shown: at a perplexity of 50 they are seldom worth reading. How surprised it is at each next token is.

    Args:
        phases: 1, 2, 3, 4, 6, 8 or 12.
        text: a sentence of 2 to 128 tokens.
        path: `block`, the turn of the block before a layer, or `accumulated`, that of all blocks before it.
        layer: which residual state; 0 is the embedding, where nothing has turned.
        pair: which pair of channels of each phase.
        lens: `turned`, which turns a state as far as the blocks ahead would before it is read, or `plain`.

    `set(phases=…, layer=…)` does what the sliders do; a click on a block or on a token chooses a layer. `wheel` is the Dataset
    behind the picture, `export(path)` writes it.
    """

    COMPUTED = ("phases", "text")
    VIEW = ("path", "layer", "pair", "lens", "hand", "position")

    def __init__(
        self, phases: int = 3, text: str = EXAMPLE, *, path: str = "block", layer: int = 3, pair: int = 0, lens: str = "turned"
    ):
        self._models: dict[int, Model] = {}  # kept open, a few megabytes each, as are results of the newest text:
        self._kept: dict[tuple[int, str], _Result] = {}  # the slider then comes back at once
        box = widgets.Text(text, placeholder="Type a sentence and press Enter", continuous_update=False)
        box.layout = widgets.Layout(flex="1 1 20em", width="auto")
        auto = {"style": {"button_width": "auto"}, "layout": widgets.Layout(width="auto")}
        numbers = widgets.SelectionSlider(options=list(FAMILY), value=phases if phases in FAMILY else 3, description="phases",
                                          style={"description_width": "auto"}, layout=widgets.Layout(width="16em"))  # fmt: skip
        controls = {
            "path": widgets.ToggleButtons(options=list(_PATHS.items()), **auto),
            "layer": _slider("layer", 4),
            "pair": _slider("pair", 15),
            "lens": widgets.ToggleButtons(options=list(_LENSES.items()), **auto),
        }
        view = {"path": path, "layer": layer, "pair": pair, "lens": lens, "hand": None, "position": None}
        super().__init__({"phases": phases, "text": text}, view, {"phases": numbers, "text": box}, controls)
        self.lens = Chart()
        top, how, *_ = self.children
        how.children, below = how.children[:-1], widgets.HBox([self._controls["lens"]])
        below.add_class("lens-top")
        self.children = (top, how, self._line, self.chart, below, self.lens, self._says)
        self.lens.observe(self._on_select, "selected")
        self._open(view)

    def __repr__(self) -> str:
        return f"PhaseWheel(phases={self._settings['phases']!r}, text={self._settings['text']!r})"

    # -- for cells --------------------------------------------------------------------------------

    @property
    def wheel(self) -> xr.Dataset:
        """All angles of the model, from `phase_wheel`."""
        return self._shown().wheel

    def export(self, path: str | Path) -> Path:
        """Write the spokes as `.csv`, one line for each path, layer, phase and pair, or all angles as `.nc`.

        Raises:
            InputError: another suffix.
        """
        columns = ("angle", "start", "measured", "coherence")
        return export_table(self.wheel, path, columns, ("path", "layer", "phase", "pair"))

    # -- steps ------------------------------------------------------------------------------------

    def _compute(self, job: Job) -> _Result:
        phases, text = job.settings["phases"], job.settings["text"]
        if phases not in FAMILY:
            raise InputError(f"{phases!r} phases", f"one of {', '.join(map(str, FAMILY))}", "phases=3")
        if not isinstance(text, str):
            raise InputError(f"The text is a {type(text).__name__}", "a str", "panel.set(text='…')")
        if (phases, text) in self._kept:
            return self._kept[phases, text]
        model = self._models.get(phases) or self._models.setdefault(phases, load(FAMILY[phases], progress=job.progress))
        ids = model.encode(text)
        if len(ids) < 2:
            raise InputError(f"The text has {len(ids)} token", "two or more", "a sentence")
        with job.holding(model.lock, "running for the phase wheel"):
            run = model.run(text)
            lenses = {name: logit_lens(run, TurnedLens(model) if name == "turned" else None, top_k=1) for name in LENSES}
        found = _Result(model, phases, phase_wheel(run), recipe_drift(model), lenses)
        self._kept = {key: kept for key, kept in self._kept.items() if key[1] == text} | {(phases, text): found}
        return found

    def _checked(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        for name, known in (("path", PATHS), ("lens", LENSES)):
            if view[name] not in known:
                raise InputError(f"The {name} is {view[name]!r}", f"one of {', '.join(known)}", f"{name}={known[0]!r}")
        if view["layer"] not in range(result.last + 1):
            raise InputError(f"The layer is {view['layer']!r}", f"0 to {result.last}", f"layer={result.last}")
        pair = view["pair"]
        if pair not in range(result.pairs):
            if pair != self._view["pair"] or not isinstance(pair, int):
                raise InputError(f"The pair is {pair!r}", f"0 to {result.pairs - 1}", "pair=0")
            pair = result.pairs - 1  # with more phases each has fewer pairs
        position = view["position"]
        tokens = result.lenses["plain"].sizes["position"]
        if position is not None and not 1 <= position < tokens:
            position = None  # of a longer sentence
        return {**view, "pair": pair, "position": position}

    def _spec(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        shown = {name: view[name] for name in ("path", "layer", "pair")}
        return wheel_chart(result.wheel, result.drift, _losses(), **shown, recipe=FAMILY[result.phases])

    def _prepare(self, job: Job, result: _Result | None) -> Mapping[str, Any]:
        prepared, shown = super()._prepare(job, result), self._result if result is None else result
        if shown is None or (result is None and "lens" not in job.view):
            return prepared
        return {**prepared, "lens": lens_chart(shown.lenses[prepared["view"]["lens"]])}

    def _apply(self, view: Mapping[str, Any]) -> None:
        super()._apply(view)
        if self._result is None:
            return
        position = self._view["position"]
        with self.lens.hold_sync(), self._mute():
            self.lens.spec = view.get("lens", self.lens.spec)
            self.lens.selected = {} if position is None else {"lens": [position, self._view["layer"]]}

    def _dim(self, label: str | None, seconds: float) -> None:
        super()._dim(label, seconds)
        self.lens.busy = self.chart.busy

    def _facts(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        here = result.wheel.sel(path=view["path"], layer=view["layer"])
        losses = shipped_record(result.model.name)["results"]["saved_test_loss"]
        block = max(view["layer"] - 1, 0)
        facts = {
            "phases": result.phases,
            **view,
            "degrees": [round(math.degrees(angle) % 360, 1) for angle in here.angle.sel(pair=view["pair"]).values],
            "resultant": round(float(np.hypot(here.mean_cosine, here.mean_sine).sel(pair=view["pair"])), 3),
            "miss": round(math.degrees(float(here.miss)), 1),
            "drift": {name: round(math.degrees(float(result.drift[name].sel(block=block))), 2) for name in _DRIFT},
            "surprise": result.surprise,
            "perplexity": {name: round(math.exp(loss), 1) for name, loss in losses.items()},
        }
        return {**facts, "says": _sentence(facts, result.last)}

    def _selection(self, view: Mapping[str, Any]) -> dict[str, Any]:
        block = {"drift": view["layer"] - 1} if view["layer"] else {}
        return block | ({"phase": view["hand"]} if view["hand"] else {})

    def _chosen(self, selected: Mapping[str, Any]) -> dict[str, Any]:
        """A click on a block or on a token leads to its layer; a hand stays chosen."""
        if "lens" in selected:
            position, layer = selected["lens"]
            return {"position": int(position), "layer": int(layer)}
        block = {"layer": int(selected["drift"]) + 1} if "drift" in selected else {}
        return block | ({"hand": selected["phase"]} if "phase" in selected else {})

    def _show_view(self, view: Mapping[str, Any]) -> None:
        self._controls["layer"].max, self._controls["pair"].max = self._result.last, self._result.pairs - 1
        super()._show_view(view)

    def _lock(self) -> ModelLock | None:
        return None if self._result is None else self._result.model.lock


_DRIFT = ("mean_drift", "spread", "decay_drift")


def _slider(name: str, last: int) -> widgets.IntSlider:
    layout, style = widgets.Layout(width="14em"), {"description_width": "auto"}
    return widgets.IntSlider(0, 0, last, description=name, layout=layout, style=style)


@cache
def _losses() -> xr.Dataset:
    return family_losses(phase_family())


def _sentence(facts: Mapping[str, Any], last: int) -> str:
    layer, plain, turned = facts["layer"], facts["surprise"]["plain"], facts["surprise"]["turned"]
    read = min(max(layer, 1), last - 1)
    lens = (
        f"At layer {read} the plain lens is {_beside(plain[read])} than a blind guess at the next token; turned as far as the "
        f"blocks ahead turn the stream, the same states are {_beside(turned[read])}."
    )
    if layer == 0:
        return f"At the embedding nothing has turned, and all phases point one way. {lens}"
    return f"{_identity(facts)}; measured: the states of this sentence turn so to within {facts['miss']:.0f}° on average. {lens}"


def _identity(facts: Mapping[str, Any]) -> str:
    phases, resultant = facts["phases"], facts["resultant"]
    if phases == 1:
        return "Identity: one phase has no other to balance"
    if facts["path"] == "block":
        return f"Identity: the {phases} phases of a block stand {360 / phases:.0f}° apart and cancel, trained or not"
    count = f"after {facts['layer']} block{'s' if facts['layer'] > 1 else ''}"
    if resultant > 0.5:
        return f"Identity: {count} the offsets of the {phases} phases have come round, and all point one way again"
    return f"Identity: {count} the {phases} phases stand on {_places(phases, facts['layer'])} places and cancel"


def _places(phases: int, layer: int) -> int:
    return phases // math.gcd(phases, layer)


def _beside(nats: float) -> str:
    return f"{abs(nats):.1f} nats {'worse' if nats > 0 else 'better'}"
