"""Pictures: a Dataset from a probe in, a figure or the description of a grid out. Nothing here computes a result."""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = (
    "chart",
    "chart_page",
    "early_exit",
    "export",
    "layer_linearity",
    "linear_shortcuts",
    "logit_lens",
    "page",
    "rotation_drift",
    "static",
    "static_chart",
)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"lens.figures.{name}")
    raise AttributeError(f"module 'lens.figures' has no attribute {name!r}")
