"""A panel over a small model, and means to stop that model between two blocks for as long as a test needs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
import pytest

from lens.panels import LogitLens

PATIENCE = 30  # seconds after which a wait has failed; nothing here takes that long


class Gate:
    """Stops the model before one block while it is shut, and remembers which prompts entered the model."""

    def __init__(self, model: Any, block: int = 1):
        self.prompts: list[list[int]] = []
        self.blocks_run: list[int] = []
        self._open, self._reached = threading.Event(), threading.Event()
        self._open.set()
        self._handles = [model.module.register_forward_pre_hook(self._remember, with_kwargs=True)]
        for number, part in enumerate(model.anatomy.blocks):
            self._handles.append(part.module.register_forward_pre_hook(self._before(number, number == block)))

    def _remember(self, _module, _args, kwargs) -> None:
        self.prompts.append(kwargs["input_ids"][0].tolist())

    def _before(self, number: int, stops: bool):
        def hook(_module, _args) -> None:
            self.blocks_run.append(number)
            if stops and not self._open.is_set():
                self._reached.set()
                assert self._open.wait(PATIENCE)

        return hook

    def shut(self) -> None:
        self._reached.clear()
        self._open.clear()

    def wait_until_reached(self) -> None:
        assert self._reached.wait(PATIENCE)

    def open(self) -> None:
        self._open.set()

    def remove(self) -> None:
        self.open()
        for handle in self._handles:
            handle.remove()


@pytest.fixture
def gate(tiny):
    gate = Gate(tiny)
    yield gate
    gate.remove()


@pytest.fixture
def panel(tiny) -> LogitLens:
    return LogitLens(tiny, "w1 w2 w3 w4", stride=1)


class Controls:
    """The parts of a panel that a reader touches."""

    def __init__(self, panel: LogitLens):
        top, self.line, self.grid, self.note = panel.children
        self.text, self.model, self.prompt, self.bar, self.cancel, self.chip = top.children
        assert isinstance(self.text, widgets.Text)
        assert isinstance(self.cancel, widgets.Button)


@pytest.fixture
def controls(panel) -> Controls:
    return Controls(panel)


@pytest.fixture
def hooks(tiny) -> Callable[[], int]:
    """How many hooks the model carries now."""
    return lambda: sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in tiny.module.modules())


class InThread:
    """A function in a thread of its own: what it returns or raises comes out of `result()`."""

    def __init__(self, function: Callable[[], Any]):
        self._value: Any = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(function,), daemon=True)
        self._thread.start()

    def _run(self, function: Callable[[], Any]) -> None:
        try:
            self._value = function()
        except BaseException as failure:
            self._failure = failure

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def result(self, patience: float = PATIENCE) -> Any:
        self._thread.join(patience)
        assert not self._thread.is_alive(), "does not return"
        if self._failure is not None:
            raise self._failure
        return self._value
