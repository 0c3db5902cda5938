"""Controls of the training panel: switches that make a model, and what is shown of its training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets

from lens.figures.phase_training import PICTURES
from lens.training.background import devices
from lens.training.phase_choice import DIVISORS, ROPE_BASE

_STEPS = (50, 100, 200, 400, 800, 1600)
_SEEDS = tuple(range(10))
_BASES = (10.0, 100.0, 1_000.0, ROPE_BASE, 100_000.0, 1_000_000.0)


def switches() -> dict[str, Any]:
    """Controls of the settings, by name; what each tells apart is said on hover."""
    narrow, style = widgets.Layout(width="auto"), {"description_width": "auto"}

    def menu(name: str, options: Sequence[Any], value: Any, tooltip: str) -> widgets.Dropdown:
        return widgets.Dropdown(options=options, value=value, description=name, style=style, layout=narrow, tooltip=tooltip)

    def switch(name: str, value: bool, tooltip: str) -> widgets.ToggleButton:
        return widgets.ToggleButton(value=value, description=name, layout=narrow, tooltip=tooltip)

    turns = [("learned", "learned"), ("frozen", "frozen"), ("one angle a block", "tied"), ("off", "off")]
    phases = widgets.SelectionSlider(
        options=[(str(n), n) for n in DIVISORS], value=3, description="phases N", style=style,
        layout=widgets.Layout(width="17em"),
        tooltip="parts of the stream, each normed by itself and turned 2π/N from the one before; one is no partition",
    )  # fmt: skip
    return {
        "num_phases": phases,
        "rope_base": menu("RoPE base", [(f"{base:,.0f}", base) for base in _BASES], ROPE_BASE, "of queries and keys"),
        "rotation": menu("rotation", turns, "learned", "of the stream: off or frozen show what learned angles are good for"),
        "horn": switch("horn", True, "1/(position + 1) in the place of the embedding's mean over channels"),
        "theta_decay": switch("decay of angles", True, "weight decay shrinks angles too, and most the large ones of deep blocks"),
        "multiplier": switch(
            "× √d", False, "the embedding times √d, as in the published baseline and not in the published model"
        ),
        "steps": menu("steps", [(f"{count:,}", count) for count in _STEPS], 200, "updates of 16 windows of 128 tokens each"),
        "seed": menu("seed", [(str(seed), seed) for seed in _SEEDS], 0, "of weights and windows; equal seeds make a fair pair"),
        "device": menu("on", list(devices()), "cpu", "cuda computes in bfloat16 and does not repeat bit for bit"),
    }


def view_controls() -> dict[str, Any]:
    """Controls of the picture, by name."""
    style = {"button_width": "auto"}
    return {
        "picture": widgets.ToggleButtons(options=[(words, name) for name, words in PICTURES.items()], style=style),
        "layer": widgets.SelectionSlider(
            options=list(range(5)), description="layer", style={"description_width": "auto"}, layout=widgets.Layout(width="14em"),
            tooltip="residual state of lengths, means and shares; 0 is the embedding",
        ),
    }  # fmt: skip


def button(words: str, icon: str) -> widgets.Button:
    """A button as wide as its words."""
    return widgets.Button(description=words, icon=icon, layout=widgets.Layout(width="auto"))
