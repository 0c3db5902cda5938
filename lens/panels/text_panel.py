"""What panels over one model and one typed text share: the two controls, opening the model, reading the text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ipywidgets as widgets

from lens.base.errors import InputError
from lens.models.catalogue import NAMED_MODELS
from lens.models.load import load
from lens.models.locks import ModelLock
from lens.models.model import Model
from lens.panels.fitted import ChartPanel
from lens.panels.panel import Job


class TextPanel(ChartPanel):
    """A chart of what a model does with a text that the reader types.

    Args:
        model: a `lens.Model`, or anything `lens.load` takes.
        text: what the box holds at first.
        view: what only the picture depends on.
        controls: widgets of the second row, by the view setting that they show.
        settings: what the computation depends on beside the model and the text.
        top: widgets of the first row for these, by name.
        placeholder: of the empty box.
    """

    def __init__(
        self,
        model: Model | str,
        text: str,
        view: Mapping[str, Any],
        controls: Mapping[str, Any],
        *,
        settings: Mapping[str, Any] | None = None,
        top: Mapping[str, Any] | None = None,
        placeholder: str = "Type a sentence and press Enter",
    ):
        self._models: dict[str, Any] = {name: name for name in NAMED_MODELS} | {_name(model): model}
        self._opened: Model | None = None
        box = widgets.Text(text, placeholder=placeholder, continuous_update=False)
        box.layout = widgets.Layout(flex="1 1 20em", width="auto")
        narrow = widgets.Layout(width="auto")
        menu = widgets.Dropdown(options=list(self._models.items()), value=model, layout=narrow, tooltip="model")
        super().__init__(
            {"model": model, "text": text, **(settings or {})}, view, {"text": box, "model": menu, **(top or {})}, controls
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(model={_name(self._settings['model'])!r}, text={self._settings['text']!r})"

    # -- steps of a request -----------------------------------------------------------------------

    def _model(self, job: Job) -> Model:
        chosen = job.settings["model"]
        self._opened = chosen if isinstance(chosen, Model) else load(chosen, progress=job.progress)
        return self._opened

    @staticmethod
    def _text(job: Job) -> str:
        text = job.settings["text"]
        if not isinstance(text, str):
            raise InputError(f"The text is a {type(text).__name__}", "a str", "panel.set(text='…')")
        return text

    def _token_ids(self, job: Job, model: Model, least: int, most: int, advice: str) -> list[int]:
        ids = model.encode(self._text(job))
        if not least <= len(ids) <= most:
            raise InputError(f"The text has {len(ids)} tokens", f"{least} to {most}", advice)
        return ids

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
