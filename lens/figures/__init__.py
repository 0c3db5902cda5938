"""Pictures: a Dataset from a probe in, a figure or the description of a grid out. Nothing here computes a result."""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = ("export", "logit_lens", "page", "static")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"lens.figures.{name}")
    raise AttributeError(f"module 'lens.figures' has no attribute {name!r}")
