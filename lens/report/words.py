"""Numbers as a reader of a report sees them, and how a table becomes short enough to be shown."""

from __future__ import annotations

import numpy as np

from lens.figures.early_exit import NAMES

_SHOWN = 9  # rows of a table; all of them are in its file


def percent(share: float) -> str:
    """A share of what is to be explained; at or below zero it is nothing."""
    if share <= 0:
        return "nothing"
    return f"{100 * share:.0f} %" if share < 0.995 else f"{100 * share:.1f} %"


def part(share: float) -> str:
    """A share that may be zero."""
    return f"{100 * share:.0f} %"


def counted(some: int, heads: int) -> str:
    """How many of a model's heads give something."""
    return f"{some} of the {heads} heads give" if some > 1 else f"{('None', 'One')[some]} of the {heads} heads gives"


def thinned(count: int, shown: int = _SHOWN) -> list[int]:
    """Places of evenly spaced rows, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, shown)).round().astype(int)).tolist()


def lens_name(lens: object) -> str:
    """A lens as sentences call it."""
    name = NAMES.get(str(lens), str(lens))
    return f"{name} lens" if name == "tuned" else name
