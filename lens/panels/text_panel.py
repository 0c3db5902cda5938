"""What panels over one model and one typed text share: its box, and reading it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ipywidgets as widgets

from lens.base.errors import InputError
from lens.models.model import Model
from lens.panels.model_panel import ModelPanel
from lens.panels.panel import Job


class TextPanel(ModelPanel):
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
        box = widgets.Text(text, placeholder=placeholder, continuous_update=False)
        box.layout = widgets.Layout(flex="1 1 20em", width="auto")
        super().__init__(model, {"text": text, **(settings or {})}, view, {"text": box}, controls, after=top)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(model={self._chosen_name!r}, text={self._settings['text']!r})"

    # -- steps of a request -----------------------------------------------------------------------

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
