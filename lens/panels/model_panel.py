"""What panels over one model share: the menu that chooses it, opening it, and its lock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ipywidgets as widgets

from lens.models.catalogue import NAMED_MODELS
from lens.models.load import load
from lens.models.locks import ModelLock
from lens.models.model import Model
from lens.panels.fitted import ChartPanel
from lens.panels.panel import Job


class ModelPanel(ChartPanel):
    """A chart of one model.

    Args:
        model: a `lens.Model`, or anything `lens.load` takes.
        settings: what the computation depends on beside the model.
        view: what only the picture depends on.
        before, after: widgets of the first row before and after the menu of models, by the setting that they show.
        controls: widgets of the second row, by the view setting that they show.
    """

    def __init__(
        self,
        model: Model | str,
        settings: Mapping[str, Any],
        view: Mapping[str, Any],
        before: Mapping[str, Any],
        controls: Mapping[str, Any],
        *,
        after: Mapping[str, Any] | None = None,
    ):
        self._models: dict[str, Any] = {name: name for name in NAMED_MODELS} | {_name(model): model}
        self._opened: Model | None = None
        narrow = widgets.Layout(width="auto")
        menu = widgets.Dropdown(options=list(self._models.items()), value=model, layout=narrow, tooltip="model")
        super().__init__({"model": model, **settings}, view, {**before, "model": menu, **(after or {})}, controls)

    @property
    def _chosen_name(self) -> str:
        return _name(self._settings["model"])

    def _model(self, job: Job) -> Model:
        chosen = job.settings["model"]
        self._opened = chosen if isinstance(chosen, Model) else load(chosen, progress=job.progress)
        return self._opened

    def _mirror(self, settings: Mapping[str, Any]) -> None:
        self._models[_name(settings["model"])] = settings["model"]
        self._top["model"].options = list(self._models.items())
        super()._mirror(settings)

    def _lock(self) -> ModelLock | None:
        chosen = self._settings["model"]
        model = chosen if isinstance(chosen, Model) else self._opened
        return None if model is None else model.lock


def _name(model: Model | str) -> str:
    return model.name if isinstance(model, Model) else str(model)
