"""One lock per torch module, so that two panels, or a panel and a cell, never run a model at once.

The lock is re-entrant: a cell that holds it may set a trait whose callback runs the model in the
same thread.
"""

from __future__ import annotations

import threading
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import nn

_POLL = 0.02  # seconds between two looks at whether a waiting request is still wanted


class ModelLock:
    """A re-entrant lock that knows who holds it and for what."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._owner: int | None = None
        self._purposes: list[str] = []
        self._edits: dict[str, str] = {}

    @property
    def holder(self) -> str | None:
        """What the model is being used for right now, or None when it is free."""
        return self._purposes[0] if self._purposes else None

    @property
    def mine(self) -> bool:
        """Whether the calling thread holds the lock."""
        return self._owner == threading.get_ident()

    @contextmanager
    def hold(self, purpose: str, check: Callable[[], None] | None = None) -> Iterator[None]:
        """Wait for the model, then keep it to the end of the block.

        Args:
            purpose: what for, as a clause that continues "the model is".
            check: called again and again while waiting; raising from it gives the waiting up.
        """
        if check is None:
            self._lock.acquire()
        else:
            while not self._lock.acquire(timeout=_POLL):
                check()
        self._owner = threading.get_ident()
        self._purposes.append(purpose)
        try:
            yield
        finally:
            self._purposes.pop()
            if not self._purposes:
                self._owner = None
            self._lock.release()

    @property
    def edits(self) -> Mapping[str, str]:
        """Live edits of the module, their unique names to what they are in words. Other threads cannot run it, and see none."""
        return self._edits if self.mine else {}

    @contextmanager
    def edit(self, description: str) -> Iterator[None]:
        """Keep the model to the end of the block, and say for that time that it is edited."""
        name = uuid.uuid4().hex
        with self.hold(f"edited: {description}"):
            self._edits[name] = description
            try:
                yield
            finally:
                del self._edits[name]


_LOCKS: weakref.WeakKeyDictionary[nn.Module, ModelLock] = weakref.WeakKeyDictionary()
_GUARD = threading.Lock()


def lock_of(module: nn.Module) -> ModelLock:
    """The lock of a torch module: the same object for every wrapper around it."""
    with _GUARD:
        return _LOCKS.setdefault(module, ModelLock())
