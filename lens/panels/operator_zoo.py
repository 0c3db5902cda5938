"""The operator panel: one head's queries and keys, many ways to make attention of them, and what the model says to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ipywidgets as widgets
import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.base.text import visible
from lens.figures.head_lanes import signed
from lens.figures.operator_zoo import MAPS, SHOWN, operator_maps, operator_measures_chart, operator_zoo_chart
from lens.figures.page import widget_source
from lens.models.heads import HeadStates, head_states
from lens.models.model import Model
from lens.models.operators import OPERATORS
from lens.models.tokens import pieces
from lens.panels.chart import Chart
from lens.panels.panel import Job
from lens.panels.text_panel import TextPanel
from lens.panels.value_slider import geometric_steps
from lens.probes.attention_what_if import attention_what_if_text
from lens.probes.operator_zoo import ADJUSTABLE, ZOO_MEASURES, adjusted, operator_zoo

EXAMPLE = (
    "The keeper of the lighthouse climbed the stairs, lit the lamp and wrote in his book what the keeper before him had seen."
)
LONGEST = 40  # tokens; each operator's map has as many rows and columns
_FIRST = ("softmax", 2.0)
_STEPS: dict[str, tuple[float, ...]] = {
    "temperature": tuple(sorted({*(float(f"{value:.2g}") for value in geometric_steps(10.0, -1, 1, 12)), 2.0, 0.5})),
    "power": (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0, 30.0),
}


class SmallMaps(Chart):
    """Patterns side by side, small."""

    _css = Chart._css + widget_source("operator_zoo.css")


@dataclass(frozen=True)
class _Result:
    """One text's queries and keys, and what was made of them so far.

    Attributes:
        zoos: every operator as it comes, by block and head.
        tried: runs of the live model by block and head, the newest last; by operator and number.
        own: loss of the text in the model as trained, once a run has found it.
    """

    model: Model
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    states: tuple[HeadStates, ...]
    zoos: dict[tuple[int, int], xr.Dataset] = field(default_factory=dict)
    tried: dict[tuple[int, int], dict[str, xr.Dataset]] = field(default_factory=dict)
    own: list[float] = field(default_factory=list)
    last: dict[tuple[int, int, str], xr.Dataset] = field(default_factory=dict)

    def zoo(self, block: int, head: int) -> xr.Dataset:
        if (block, head) not in self.zoos:
            self.zoos[block, head] = operator_zoo(self.states[block], head)
        return self.zoos[block, head]

    def chosen(self, view: Mapping[str, Any]) -> xr.Dataset:
        """The chosen operator alone, under its name with its number; the last one asked for is kept."""
        place = (view["block"], view["head"], _label(view))
        if place not in self.last:
            operator = adjusted(view["operator"], view["parameter"])
            found = operator_zoo(self.states[view["block"]], view["head"], {_label(view): operator})
            self.last.clear()
            self.last[place] = found
            return found
        return self.last[place]

    def runs(self, view: Mapping[str, Any]) -> dict[str, xr.Dataset]:
        return self.tried.setdefault((view["block"], view["head"]), {})


class OperatorZoo(TextPanel):
    """Attention operators on the queries and keys of one head: patterns, singular values, measures, and losses in the live model.

    Queries and keys are the trained model's and stay as they are; only what makes weights of them is another one. In the live
    model the blocks behind an operator get other inputs than they were trained with, as it would be without training anew.

    Args:
        model: a `lens.Model`, or anything `lens.load` takes.
        text: 3 to 40 tokens.
        block, head: whose queries and keys; by default the head whose effective rank is the middle one of all.
        operator: one of `lens.operators.OPERATORS`.
        parameter: its number (temperature, power, rank, size of a diagonal block); None for the one it comes with.
        measure: of the bars, one of `lens.figures.operator_zoo.SHOWN`.

    `set(operator=…, parameter=…)` changes settings from a cell, `run()` tries the chosen operator in the live model (the first
    one is tried when the panel opens), `summary()` gives what is shown as plain data, `zoo` the Dataset of all operators. A
    click on a small map chooses its operator, and the pair of tokens everywhere.
    """

    COMPUTED = ("model", "text")
    VIEW = ("block", "head", "operator", "parameter", "measure", "cell", "try_live")

    def __init__(
        self,
        model: Model | str = "smollm2-135m",
        text: str = EXAMPLE,
        *,
        block: int | None = None,
        head: int | None = None,
        operator: str = _FIRST[0],
        parameter: float | int | None = None,
        measure: str = "mean_entropy",
    ):
        self._drawn: tuple[Any, ...] | None = None
        self.maps, self.measures = SmallMaps(layout=widgets.Layout(flex="1 1 30em")), Chart()
        self.measures.layout = widgets.Layout(flex="0 1 27em", min_width="20em")
        self.maps.add_class("lens-small-maps")
        narrow, style = widgets.Layout(width="auto"), {"description_width": "auto"}
        controls = {
            "block": widgets.IntSlider(description="block", style=style, layout=widgets.Layout(width="15em")),
            "head": widgets.IntSlider(description="head", style=style, layout=widgets.Layout(width="13em")),
            "operator": widgets.Dropdown(options=list(OPERATORS), layout=narrow, tooltip="operator"),
            "parameter": widgets.SelectionSlider(options=[("–", 0.0)], style=style, layout=widgets.Layout(width="21em")),
            "measure": widgets.Dropdown(
                options=[(short, name) for name, short in SHOWN.items()], layout=narrow, tooltip="what the bars show"
            ),
        }
        if parameter is None and operator == _FIRST[0]:
            parameter = _FIRST[1]
        view = {"block": block, "head": head, "operator": operator, "parameter": parameter, "measure": measure, "cell": None,
                "try_live": True}  # fmt: skip
        super().__init__(model, text, view, controls)
        self._button = widgets.Button(description="Try in the live model", layout=narrow)
        self._button.on_click(lambda _: self.post(try_live=True))
        rows = [self.children[0], widgets.HBox([*controls.values(), self._button])]
        rows[1].add_class("lens-top")
        both = widgets.HBox([self.measures, self.maps], layout=widgets.Layout(flex_flow="row wrap", grid_gap="0 2em"))
        self.children = (*rows, self._line, self._says, self.chart, both)
        self.maps.observe(self._on_map, "selected")
        self._open(view)

    # -- for cells --------------------------------------------------------------------------------

    @property
    def zoo(self) -> xr.Dataset:
        """Every operator as it comes on the shown head, from `operator_zoo`."""
        return self._shown().zoo(self._view["block"], self._view["head"])

    def run(self) -> None:
        """Try the chosen operator in the live model, and return when its losses are shown."""
        self.set(try_live=True)

    # -- computation ------------------------------------------------------------------------------

    def _compute(self, job: Job) -> _Result:
        model = self._model(job)
        ids = self._token_ids(job, model, 3, LONGEST, "a sentence, or lens.operator_zoo for more")
        with job.holding(model.lock, "running for its heads"):
            states = head_states(model, ids, check=job.check_blocks(model.n_layers, "running"))
        return _Result(model, tuple(ids), tuple(pieces(model.tokenizer, ids)), states)

    def _prepare(self, job: Job, result: _Result | None) -> Mapping[str, Any]:
        shown = self._result if result is None else result
        if shown is None:
            return job.view
        if result is not None:
            job.view["try_live"] = True  # another text or model has no losses yet
        view = self._checked(shown, {**self._view, **job.view})
        if view["try_live"]:
            self._try(job, shown, view)
        view["try_live"] = False
        drawn = (shown, view["block"], view["head"], view["operator"])
        zoo = shown.zoo(view["block"], view["head"])
        return {
            "view": view, "spec": self._spec(shown, view), "says": self._facts(shown, view)["says"], "drawn": drawn,
            "measures": operator_measures_chart(zoo, shown.chosen(view), view["measure"]),
            "maps": None if drawn == self._drawn else operator_maps(zoo, view["operator"]),
        }  # fmt: skip

    def _try(self, job: Job, shown: _Result, view: Mapping[str, Any]) -> None:
        """Run the live model three times under the chosen operator and once without."""
        operator, model = adjusted(view["operator"], view["parameter"]), shown.model
        check = job.check_blocks(4 * model.n_layers, f"running with {_label(view)}")
        with job.holding(model.lock, f"running with {_label(view)}"):
            found = attention_what_if_text(model, shown.ids, operator, view["block"], view["head"], check=check)
        runs = shown.runs(view)
        runs.pop(_label(view), None)
        runs[_label(view)] = found
        shown.own[:] = [float(found.loss.isel(scope=0))]

    # -- view -------------------------------------------------------------------------------------

    def _checked(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        block, head = self._place(result, view)
        name, value = view["operator"], view["parameter"]
        if name != self._view["operator"] and value == self._view["parameter"] and self._result is not None:
            value = None  # it was another operator's
        adjusted(name, value)  # refuses what it is not
        if name in ADJUSTABLE and value is None:
            value = getattr(adjusted(name), ADJUSTABLE[name])
        if view["measure"] not in SHOWN:
            raise InputError(f"The measure is {view['measure']!r}", f"one of {', '.join(SHOWN)}", "measure='mean_entropy'")
        found = {**view, "block": block, "head": head, "parameter": value}
        return {**found, "cell": self._cell(result, found)}

    def _place(self, result: _Result, view: Mapping[str, Any]) -> tuple[int, int]:
        blocks, heads = len(result.states), len(result.states[0].query)
        place = []
        for name, count, start in (("block", blocks, blocks // 3), ("head", heads, heads // 3)):
            value = start if view[name] is None else view[name]
            if not isinstance(value, int) or not 0 <= value < count:
                if self._result is None or result is self._result or value != self._view[name]:
                    raise InputError(f"The {name} is {value!r}", f"0 to {count - 1}", f"{name}=0")
                value = count - 1  # chosen for another model
            place.append(value)
        return place[0], place[1]

    def _cell(self, result: _Result, view: Mapping[str, Any]) -> tuple[int, int]:
        length, cell = len(result.tokens), view["cell"]
        replaced = self._result is not None and result is not self._result and cell == self._view["cell"]
        if cell is None or replaced:
            pattern = result.zoo(view["block"], view["head"]).attention.sel(operator="softmax").to_numpy().copy()
            pattern[:2], pattern[:, 0] = 0, 0  # the first key is a sink as a rule
            np.fill_diagonal(pattern, 0)
            query, key = np.unravel_index(int(pattern.argmax()), pattern.shape)
            return int(query), int(key)
        if not (isinstance(cell, (tuple, list)) and len(cell) == 2 and all(0 <= place < length for place in cell)):
            raise InputError(f"The cell is {cell!r}", f"(query, key), each 0 to {length - 1}", "cell=(5, 4)")
        return int(cell[0]), int(cell[1])

    def _spec(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        zoo, runs = result.zoo(view["block"], view["head"]), result.runs(view)
        return operator_zoo_chart(zoo, result.chosen(view), runs, tokens=result.tokens, own=result.own[0])

    def _facts(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        zoo, one = result.zoo(view["block"], view["head"]), result.chosen(view).isel(operator=0)
        softmax, (query, key) = zoo.sel(operator="softmax"), view["cell"]
        runs = result.runs(view)
        losses = {name: {str(scope): round(float(found.loss.sel(scope=scope)), 3) for scope in found.scope.to_numpy()}
                  for name, found in runs.items()}  # fmt: skip
        facts = {
            "model": result.model.name,
            "tokens": len(result.tokens),
            **{name: view[name] for name in ("block", "head", "operator", "parameter", "measure", "cell")},
            "label": _label(view),
            "query": visible(result.tokens[query]),
            "key": visible(result.tokens[key]),
            "weight": round(float(one.attention[query, key]), 3),
            "softmax_weight": round(float(softmax.attention[query, key]), 3),
            "measures": {name: _rounded(one[name]) for name in ZOO_MEASURES},
            "softmax_measures": {name: _rounded(softmax[name]) for name in ZOO_MEASURES},
            "losses": losses,
        }
        return {**facts, "says": _sentence(facts)}

    def _selection(self, view: Mapping[str, Any]) -> dict[str, Any]:
        return {"cells": [view["cell"][1], view["cell"][0]]}

    def _chosen(self, selected: Mapping[str, Any]) -> dict[str, Any]:
        return {"cell": (int(selected["cells"][1]), int(selected["cells"][0]))} if "cells" in selected else {}

    def _on_map(self, change: Any) -> None:
        """A click in a small map, the one whose selection is another one now."""
        if self._is_muted:
            return
        for name, cell in change["new"].items():
            if cell != change["old"].get(name):
                self.post(operator=name.removeprefix(MAPS), cell=(int(cell[1]), int(cell[0])))

    def _apply(self, view: Mapping[str, Any]) -> None:
        super()._apply(view)
        if self._result is None:
            return
        self.measures.spec = view["measures"]
        with self.maps.hold_sync(), self._mute():
            if view["maps"] is not None:
                self.maps.spec, self._drawn = view["maps"], view["drawn"]
            # Beside the middle of the cell, which shows the same: a click on that very cell is then still a change.
            beside = [place + 0.25 for place in self._selection(self._view)["cells"]]
            self.maps.selected = {plot["name"]: beside for plot in self.maps.spec["plots"]}

    def _show_view(self, view: Mapping[str, Any]) -> None:
        controls, result = self._controls, self._result
        controls["block"].max, controls["head"].max = len(result.states) - 1, len(result.states[0].query) - 1
        slider, name = controls["parameter"], view["operator"]
        slider.layout.display = "" if name in ADJUSTABLE else "none"
        if name in ADJUSTABLE:
            slider.description = ADJUSTABLE[name]
            options = _options(name, view["parameter"], len(result.tokens))
            with slider.hold_sync():
                if list(slider.options) != options:
                    slider.options = options
                slider.value = view["parameter"]
        rest = {one: control for one, control in controls.items() if one != "parameter"}
        for one, control in rest.items():
            if control.value != view[one]:
                control.value = view[one]

    def _dim(self, label: str | None, seconds: float) -> None:
        super()._dim(label, seconds)
        self.maps.busy = self.measures.busy = self.chart.busy


def _label(view: Mapping[str, Any]) -> str:
    """An operator with its number, where it has another one than it comes with."""
    name, value = view["operator"], view["parameter"]
    if value is None or value == getattr(adjusted(name), ADJUSTABLE.get(name, ""), None):
        return name
    return f"{name}, {ADJUSTABLE[name]} {value:g}"


def _options(name: str, value: float | int, positions: int) -> list[tuple[str, Any]]:
    """Steps of the slider, the number that a cell gave among them."""
    steps = {*_STEPS.get(ADJUSTABLE[name], range(1, positions + 1)), value}
    return [(f"{step:g}", step) for step in sorted(steps)]


def _rounded(value: xr.DataArray) -> float | None:
    return round(float(value), 3) if np.isfinite(float(value)) else None


def _sentence(facts: Mapping[str, Any]) -> str:
    own, new, label = facts["softmax_measures"], facts["measures"], facts["label"]
    place = f"head {facts['head']} of block {facts['block']}"
    text = f"On the queries and keys of {place} the model’s softmax has an effective rank of {own['effective_rank']:.1f}"
    text += f" and looks at {np.exp(own['mean_entropy']):.1f} tokens at a time"
    if label == "softmax":
        text += "."
    elif new["mean_entropy"] is None:
        text += f"; {label} has {new['effective_rank']:.1f}, weights down to {signed(new['least_weight'])} and rows that sum to "
        text += f"{new['row_sum_least']:.2f} to {new['row_sum_most']:.2f}."
    else:
        text += f"; {label} has {new['effective_rank']:.1f}, looks at {np.exp(new['mean_entropy']):.1f}, and puts "
        text += f"{100 * new['moved']:.0f} % of the attention elsewhere."
    loss = facts["losses"].get(label)
    if loss is None:
        return f"{text} It has not been tried in the live model for this head."
    return (
        f"{text} In the live model, which was not trained with it, the text costs {loss['all blocks']:.2f} nats a token instead "
        f"of {loss['as trained']:.2f} where all blocks use it, {loss['this block']:.2f} where this block does, and "
        f"{loss['this head']:.2f} where this head does."
    )
