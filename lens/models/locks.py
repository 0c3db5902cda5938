"""One lock per torch module, so that two panels, or a panel and a cell, never run a model at once.

The lock is re-entrant: a cell that holds it may set a trait whose callback runs the model in the
same thread.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


class ModelLock:
    """A re-entrant lock that knows what its holder is doing."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._purposes: list[str] = []

    @property
    def holder(self) -> str | None:
        """What the model is being used for right now, or None when it is free."""
        return self._purposes[0] if self._purposes else None

    @contextmanager
    def hold(self, purpose: str) -> Iterator[None]:
        """Wait for the model, then keep it to the end of the block."""
        with self._lock:
            self._purposes.append(purpose)
            try:
                yield
            finally:
                self._purposes.pop()


_LOCKS: weakref.WeakKeyDictionary[nn.Module, ModelLock] = weakref.WeakKeyDictionary()
_GUARD = threading.Lock()


def lock_of(module: nn.Module) -> ModelLock:
    """The lock of a torch module: the same object for every wrapper around it."""
    with _GUARD:
        return _LOCKS.setdefault(module, ModelLock())
