"""The shortcut panel: how much of a later layer one matrix can say, for every pair of layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import xarray as xr

from lens.base.errors import InputError
from lens.collect import MomentParts
from lens.corpora import Corpus
from lens.figures.linear_shortcuts import shortcut_chart
from lens.models.model import Model
from lens.panels.fitted import TOKENS, MomentPanel
from lens.panels.panel import Job
from lens.probes.shortcuts import Shortcuts, fit_shortcuts, noise_floor


@dataclass(frozen=True)
class _Result:
    shortcuts: Shortcuts
    score: xr.Dataset
    floor: xr.Dataset


class LinearShortcuts(MomentPanel):
    """R² of linear maps between layers, on text that they were not fitted on.

    Args:
        model: a `lens.Model`, or anything `lens.load` takes.
        corpus: a `lens.Corpus`, or anything `lens.corpus` takes.
        tokens: how many to fit on.
        source, target: the pair of layers that is looked at first; by default the middle layer and the last.

    `set(source=…, target=…)` looks at another pair (a click in the map does the same), `summary()` gives what is shown as
    plain data, `score` all of it, `shortcuts` the maps themselves.
    """

    VIEW = ("source", "target")

    def __init__(
        self,
        model: Model | str = "smollm2-135m",
        corpus: Corpus | str = "wikipedia",
        *,
        tokens: int = TOKENS,
        source: int | None = None,
        target: int | None = None,
    ):
        wide = widgets.Layout(width="22em")
        controls = {
            name: widgets.SelectionSlider(
                options=[0], description=f"{name} layer", layout=wide, style={"description_width": "auto"}
            )
            for name in self.VIEW
        }
        super().__init__(model, corpus, tokens, {"source": source, "target": target}, controls)

    # -- for cells --------------------------------------------------------------------------------

    @property
    def shortcuts(self) -> Shortcuts:
        """The fitted maps, from `lens.fit_shortcuts`."""
        return self._shown().shortcuts

    @property
    def score(self) -> xr.Dataset:
        """R² of every map, from `Shortcuts.score` on the test part."""
        return self._shown().score

    # -- steps ------------------------------------------------------------------------------------

    def _fit(self, job: Job, model: Model, moments: MomentParts) -> _Result:
        shortcuts = fit_shortcuts(moments.train)
        job.token.check()
        return _Result(shortcuts, shortcuts.score(moments.test), noise_floor(moments.train, moments.test))

    def _checked(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        pairs = result.shortcuts.pairs
        last = result.shortcuts.last
        source = last // 2 if view["source"] is None else view["source"]
        target = last if view["target"] is None else view["target"]
        sources = sorted({i for i, _ in pairs})
        if source not in sources:
            raise InputError(f"The source layer is {source!r}", f"one of {sources}", f"source={sources[len(sources) // 2]}")
        targets = [j for i, j in pairs if i == source]
        if target not in targets:
            if view["target"] != self._view["target"]:
                raise InputError(f"No map leads from layer {source} to {target!r}", f"one of {targets}", f"target={last}")
            target = min(targets, key=lambda layer: abs(layer - target))  # the source moved; the target follows
        return {"source": source, "target": target}

    def _spec(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        return shortcut_chart(result.score, result.floor, view["target"])

    def _facts(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        source, target = view["source"], view["target"]
        row = result.score.isel(pair=(result.score.from_layer == source) & (result.score.to_layer == target)).squeeze("pair")
        names = ("r2_pooled", "r2_uniform", "identity_r2_pooled")
        numbers = {name: round(float(row[name]), 3) for name in names}
        floor = round(float(result.floor.shuffled_r2.max()), 3)
        explained, unchanged = (_share(numbers[name]) for name in ("r2_pooled", "identity_r2_pooled"))
        says = (
            f"On text that it was not fitted on, one matrix explains {explained} of the variance of layer "
            f"{target} from layer {source}; "
            f"the unchanged state explains {unchanged}, a map fitted on shuffled tokens {_share(floor)}."
        )
        return {"source": source, "target": target, **numbers, "shuffled_r2": floor, "says": says}

    def _selection(self, view: Mapping[str, Any]) -> dict[str, Any]:
        return {"pairs": [view["source"], view["target"]], "profile": view["source"]}

    def _chosen(self, selected: Mapping[str, Any]) -> dict[str, Any]:
        """A click in the map chooses a pair; one in the profile a source with the same target."""
        pair, source = selected.get("pairs"), selected.get("profile")
        if pair is not None and list(pair) != [self._view["source"], self._view["target"]]:
            return {"source": int(pair[0]), "target": int(pair[1])}
        return {"source": int(source)} if source is not None else {}

    def _show_view(self, view: Mapping[str, Any]) -> None:
        pairs = self._result.shortcuts.pairs
        self._controls["source"].options = sorted({i for i, _ in pairs})
        self._controls["source"].value = view["source"]
        self._controls["target"].options = [j for i, j in pairs if i == view["source"]]
        self._controls["target"].value = view["target"]


def _share(r2: float) -> str:
    return f"{100 * r2:.0f} %" if r2 > 0 else "nothing"
