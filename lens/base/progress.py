"""Progress and cancelling, without deciding who shows it.

Long work takes a `progress` callback and calls it with a `Step`; raising from the callback stops the
work. A terminal gets a bar, a panel its own, and a notebook under test nothing at all, because bars
on stderr would differ from run to run.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lens.base.errors import Cancelled


@dataclass(frozen=True)
class Step:
    """One report: `done` of `total` in `unit`, and what is being done."""

    done: int | float
    total: int | float
    unit: str
    label: str

    @property
    def share(self) -> float:
        """Finished part, between 0 and 1."""
        return min(self.done / self.total, 1.0) if self.total else 1.0


Progress = Callable[[Step], None]


def quiet(step: Step) -> None:
    """Report nothing."""


class CancelToken:
    """A flag one thread sets and another looks at between two steps of its work."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        self._event.set()

    @property
    def cancelled(self) -> bool:
        return self._event.is_set()

    def check(self) -> None:
        """Raise `Cancelled` if `cancel` was called."""
        if self._event.is_set():
            raise Cancelled()


@contextmanager
def terminal_progress() -> Iterator[Progress]:
    """Give a callback that draws a bar on stderr where that is a terminal, and is silent elsewhere."""
    if not sys.stderr.isatty():
        yield quiet
        return
    from tqdm import tqdm

    bars: dict[str, tqdm] = {}

    def report(step: Step) -> None:
        bar = bars.get(step.label)
        if bar is None:
            scale = step.unit == "B"
            bar = bars[step.label] = tqdm(total=step.total, unit=step.unit, unit_scale=scale, unit_divisor=1000, desc=step.label)
        bar.update(step.done - bar.n)

    try:
        yield report
    finally:
        for bar in bars.values():
            bar.close()
