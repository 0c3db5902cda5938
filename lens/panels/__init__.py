"""Panels: a model in, an ipywidgets panel out. They hold controls and events, and no mathematics of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lens.panels.logit_lens import LogitLens as LogitLens
    from lens.panels.logit_lens import side_by_side as side_by_side

_PUBLIC = ("LogitLens", "side_by_side")


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        import lens.panels.logit_lens as module

        return getattr(module, name)
    raise AttributeError(f"module 'lens.panels' has no attribute {name!r}")
