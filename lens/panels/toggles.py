"""Buttons of which any number can be on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets as widgets
import traitlets


class Toggles(widgets.HBox):
    """A row of toggle buttons; `value` holds what is on.

    Args:
        options: what each label stands for.
        value: what is on at first.
        tooltips: a text for each label.
    """

    value = traitlets.Tuple()

    def __init__(self, options: Mapping[str, Any], value: Sequence[Any], tooltips: Mapping[str, str] | None = None):
        self._options = dict(options)
        self._buttons = {
            option: widgets.ToggleButton(
                value=option in value, description=label, layout=widgets.Layout(width="auto"), tooltip=(tooltips or {}).get(label)
            )
            for label, option in self._options.items()
        }
        self._following = False
        super().__init__(list(self._buttons.values()), value=tuple(value), layout=widgets.Layout(flex_flow="row wrap"))
        for button in self._buttons.values():
            button.observe(self._on_button, "value")
        self.observe(self._on_value, "value")

    def _on_button(self, change: Any) -> None:
        if not self._following:
            self.value = tuple(option for option, button in self._buttons.items() if button.value)

    def _on_value(self, change: Any) -> None:
        self._following = True  # or else the first button that follows would already be a new value
        try:
            for option, button in self._buttons.items():
                button.value = option in self.value
        finally:
            self._following = False
