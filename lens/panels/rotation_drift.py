"""The rotation panel: by how many degrees layers turn the states, and how far the turns lead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ipywidgets as widgets
import xarray as xr

from lens.base.errors import InputError
from lens.base.progress import Step
from lens.collect import MomentParts
from lens.corpora import Corpus
from lens.figures.rotation_drift import PICTURES, named, paths, rotation_chart
from lens.models.model import Model
from lens.moments import Moments, Pair, overview_layers
from lens.panels.fitted import TOKENS, MomentPanel
from lens.panels.panel import Job
from lens.probes.procrustes import procrustes

_SUBSPACES = {10: "10", 50: "50", 0.9: "90 %", None: "all"}
_PICTURES = {"by block": "blocks", "over depth": "depth", "shares": "shares"}


@dataclass(frozen=True)
class _Result:
    """Moments, and what was found of their pairs so far."""

    train: Moments
    test: Moments
    found: dict[Pair, xr.Dataset]

    @property
    def last(self) -> int:
        return len(self.train.mean) - 1

    @property
    def wanted(self) -> list[Pair]:
        """Pairs that the pictures over all layers need."""
        return sorted({*self._neighbours, *self._to_last})

    @cached_property
    def steps(self) -> xr.Dataset:
        return self.of(self._neighbours)

    @cached_property
    def direct(self) -> xr.Dataset:
        return self.of(self._to_last)

    def of(self, pairs: Sequence[Pair]) -> xr.Dataset:
        return xr.concat([self.found[pair] for pair in pairs], "pair", combine_attrs="override")

    @property
    def _neighbours(self) -> tuple[Pair, ...]:
        return tuple((layer, layer + 1) for layer in range(self.last))

    @property
    def _to_last(self) -> tuple[Pair, ...]:
        return tuple((layer, self.last) for layer in overview_layers(self.last)[:-1])


class RotationDrift(MomentPanel):
    """The rotation that best leads from one layer to another: its angles, and their course over depth.

    Args:
        model: a `lens.Model`, or anything `lens.load` takes.
        corpus: a `lens.Corpus`, or anything `lens.corpus` takes.
        tokens: how many to fit on.
        source, target: the pair of layers that is looked at first; by default one block in the middle.
        subspace: directions of most variance in which energy angles are taken: `10`, `50`, `90 %` (of variance) or `all`.
        picture: `blocks`, `depth` or `shares`.

    `set(source=…, target=…)` looks at another pair; a click on a block, or on a layer over depth, does the same.
    `summary()` gives what is shown as plain data, `angles` the Dataset of all blocks.
    """

    VIEW = ("source", "target", "subspace", "picture")

    def __init__(
        self,
        model: Model | str = "smollm2-135m",
        corpus: Corpus | str = "wikipedia",
        *,
        tokens: int = TOKENS,
        source: int | None = None,
        target: int | None = None,
        subspace: str = "50",
        picture: str = "blocks",
    ):
        def slider(name: str) -> widgets.SelectionSlider:
            layout, style = widgets.Layout(width="16em"), {"description_width": "auto"}
            return widgets.SelectionSlider(options=[0], description=f"{name} layer", layout=layout, style=style)

        controls = {
            "picture": widgets.ToggleButtons(options=list(_PICTURES.items()), style={"button_width": "auto"}),
            "subspace": widgets.Dropdown(
                options=[(named(name), name) for name in _SUBSPACES.values()], tooltip="where energy angles are taken",
                layout=widgets.Layout(width="auto"),
            ),
            "source": slider("source"),
            "target": slider("target"),
        }  # fmt: skip
        view = {"source": source, "target": target, "subspace": subspace, "picture": picture}
        super().__init__(model, corpus, tokens, view, controls)

    # -- for cells --------------------------------------------------------------------------------

    @property
    def angles(self) -> xr.Dataset:
        """Rotations of all blocks, from `procrustes`."""
        return self._shown().steps

    # -- steps ------------------------------------------------------------------------------------

    def _fit(self, job: Job, model: Model, moments: MomentParts) -> _Result:
        result = _Result(moments.train, moments.test, {})
        self._find(job, result, result.wanted)
        return result

    def _find(self, job: Job, result: _Result, pairs: Sequence[Pair]) -> None:
        """Half a second each: kept once found, so that a slider that comes back answers at once."""
        missing = [pair for pair in pairs if pair not in result.found]
        for done, pair in enumerate(missing):
            job.token.check()
            label = f"rotation {pair[0]} → {pair[1]}"
            job.say(label)
            job.report(Step(done, len(missing), "pairs", label))
            result.found[pair] = procrustes(result.train, result.test, pairs=[pair], subspaces=tuple(_SUBSPACES))

    def _prepare(self, job: Job, result: _Result | None) -> Mapping[str, Any]:
        shown = self._result if result is None else result
        if shown is not None:
            view = self._checked(shown, {**self._view, **job.view})
            self._find(job, shown, [(view["source"], view["target"])])
        return super()._prepare(job, result)

    def _checked(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        for name, known in (("subspace", tuple(_SUBSPACES.values())), ("picture", PICTURES)):
            if view[name] not in known:
                raise InputError(f"The {name} is {view[name]!r}", f"one of {', '.join(known)}", f"{name}={known[0]!r}")
        source = result.last // 2 if view["source"] is None else view["source"]
        targets = [j for i, j in result.train.pairs if i == source]
        if not targets:
            raise InputError(f"The source layer is {source!r}", f"0 to {result.last - 1}", f"source={result.last // 2}")
        target = targets[0] if view["target"] is None else view["target"]
        if target not in targets:
            if view["target"] != self._view["target"]:
                raise InputError(f"No pair leads from layer {source} to {target!r}", f"one of {targets}", f"target={targets[0]}")
            target = min(targets, key=lambda layer: abs(layer - target))  # the source moved; the target follows
        return {**view, "source": source, "target": target}

    def _spec(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        shown = result.of([(view["source"], view["target"])])
        return rotation_chart(result.steps, result.direct, shown, view["subspace"], view["picture"])

    def _facts(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        pair = result.found[view["source"], view["target"]].isel(pair=0)
        steps, subspace = result.steps, view["subspace"]
        _, added, straight = paths(steps, result.direct, subspace)
        here = pair.sel(subspace=subspace)
        angles = {name: round(float(here[name]), 1) for name in ("energy_angle", "energy_angle_noise", "mean_angle")}
        medians = {
            name: round(float(steps[name].sel(subspace=subspace).median()), 1) for name in ("energy_angle", "energy_angle_noise")
        }
        path = {"blocks added up": round(float(added[0])), "direct": round(float(straight[0]))}
        return {
            **view,
            "directions": int(here["size"]),
            **angles,
            "r2": {str(step): round(float(r2), 3) for step, r2 in zip(pair.step.values, pair.r2.values, strict=True)},
            "median_of_blocks": medians,
            "from_first_to_last": path,
            "says": _sentence(view, angles, medians, path),
        }

    def _selection(self, view: Mapping[str, Any]) -> dict[str, Any]:
        block = {"blocks": view["source"]} if view["target"] == view["source"] + 1 else {}
        last = {"depth": view["source"]} if view["target"] == self._result.last else {}
        return {**block, **last}

    def _chosen(self, selected: Mapping[str, Any]) -> dict[str, Any]:
        """A click on a block chooses its two layers; one over depth a layer and the last."""
        name = "depth" if self._view["picture"] == "depth" else "blocks"
        layer = selected.get(name)
        if layer is None:
            return {}
        return {"source": int(layer), "target": self._result.last if name == "depth" else int(layer) + 1}

    def _show_view(self, view: Mapping[str, Any]) -> None:
        pairs = self._result.train.pairs
        self._controls["source"].options = sorted({i for i, _ in pairs})
        self._controls["source"].value = view["source"]
        self._controls["target"].options = [j for i, j in pairs if i == view["source"]]
        super()._show_view(view)


def _sentence(view: Mapping[str, Any], angles: Mapping[str, float], medians: Mapping[str, float], path: Mapping[str, int]) -> str:
    where, turn, noise = named(view["subspace"]), angles["energy_angle"], angles["energy_angle_noise"]
    caution = ", hardly more than noise" if turn < 2 * noise else ""
    text = (
        f"From layer {view['source']} to {view['target']} the states turn by {turn:.1f}° ({where}); two fits on different "
        f"texts differ by {noise:.1f}°{caution}. Half of the blocks turn them by more than {medians['energy_angle']:.1f}° "
        f"(noise {medians['energy_angle_noise']:.1f}°); from first to last they add up to {path['blocks added up']}°, and lead "
        f"{path['direct']}° away."
    )
    if view["subspace"] != "all":
        return text
    return f"{text} Directions of little variance rule the angle over all directions: see it in the first ten."
