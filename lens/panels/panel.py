"""What all panels share: one worker, numbered requests, cancelling, and errors in one line.

All widgets of a kernel share one message thread. A panel therefore never computes in a callback: the
callback posts a request, a worker of its own computes it, and a Cancel click still gets through.
"""

from __future__ import annotations

import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets as widgets

from lens.base.errors import Cancelled, InputError, LensError
from lens.base.progress import CancelToken, Step
from lens.base.text import html_safe
from lens.models.locks import ModelLock

_REPORT_EVERY = 0.2  # seconds between two progress messages to the browser
_BAR_AFTER = 2.0  # seconds of work from which a bar is worth its place


class Job:
    """One numbered request: what was asked for, and how to tell of its progress or stop it."""

    def __init__(self, number: int, settings: Mapping[str, Any], report: Callable[[Step], None]):
        self.number, self.settings, self.report = number, dict(settings), report
        self.token = CancelToken()
        self.superseded = False

    def check_blocks(self, blocks: int, label: str) -> Callable[[], None]:
        """A callback for `model.run`: counts blocks, and raises `Cancelled` when the job is to stop."""
        done = 0

        def check() -> None:
            nonlocal done
            self.token.check()
            self.report(Step(done, blocks, "blocks", label))
            done += 1

        return check


class Panel(widgets.VBox):
    """A widget whose settings lead to a computation.

    A subclass names the settings that need a computation (`COMPUTED`) and those that only change the
    view (`VIEW`), computes in `_compute(job)` (in any thread, without touching widgets), and shows a
    new result in `_show(result, seconds)` and view settings in `_apply(view)`.

    `set(...)` computes in the calling thread and returns when done, for cells and tests; `post(...)`
    hands over to the worker, for events from the browser. In both, the newest request wins.
    """

    COMPUTED: tuple[str, ...] = ()
    VIEW: tuple[str, ...] = ()

    def __init__(self, settings: Mapping[str, Any]):
        self._settings = dict(settings)
        self._view: dict[str, Any] = {}
        self._attempted: dict[str, Any] | None = None  # settings of the last computation that was not overtaken
        self._changed = threading.Condition()
        self._turn = threading.RLock()  # one computation at a time, whichever thread it runs in
        self._newest = self._finished = 0
        self._waiting: Job | None = None
        self._running: Job | None = None
        self._failure: BaseException | None = None
        self._worker: threading.Thread | None = None
        self.error: str | None = None
        self._chip = widgets.HTML(layout=widgets.Layout(flex="0 0 auto"))
        self._bar = widgets.FloatProgress(min=0, max=1, layout=widgets.Layout(width="7em", display="none"))
        self._cancel = widgets.Button(description="Cancel", layout=widgets.Layout(width="auto", display="none"))
        self._cancel.on_click(lambda _: self.cancel())
        self._line = widgets.HTML(layout=widgets.Layout(display="none"))
        super().__init__()
        self.add_class("lens-panel")

    # -- for cells --------------------------------------------------------------------------------

    def set(self, **changes: Any) -> None:
        """Change settings, compute in this thread, return when the picture is up to date.

        A `LensError` becomes the line in the panel (and `summary()["error"]`); anything else is a bug
        and is raised here.
        """
        job = self._new_job(changes)
        try:
            self._work(job)
        finally:
            self._finish(job)

    def wait(self) -> None:
        """Return when nothing is pending; raise what went wrong in the worker since the last call."""
        with self._changed:
            self._changed.wait_for(lambda: self._finished >= self._newest)
            failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def cancel(self) -> None:
        """Stop what is running at its next step; the old picture stays."""
        with self._changed:
            for job in (self._running, self._waiting):
                if job is not None:
                    job.token.cancel()

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """Plain, rounded data of what the panel shows; waits for what is pending."""

    # -- for events from the browser --------------------------------------------------------------

    def post(self, **changes: Any) -> None:
        """Ask the worker for a computation with changed settings, and return at once."""
        job = self._new_job(changes)
        with self._changed:
            self._waiting = job
            if self._worker is None:
                self._worker = threading.Thread(target=self._serve, name=f"{type(self).__name__} worker", daemon=True)
                self._worker.start()
            self._changed.notify_all()

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None)
                job, self._waiting = self._waiting, None
            assert job is not None  # what was waited for
            try:
                self._work(job)
            except BaseException as failure:  # a bug must reach the next summary(), not die with the thread
                self._failure = failure
                self._say(f"Internal error: {type(failure).__name__}: {failure}")
            finally:
                self._finish(job)

    # -- one computation --------------------------------------------------------------------------

    def _new_job(self, changes: Mapping[str, Any]) -> Job:
        unknown = set(changes) - {*self.COMPUTED, *self.VIEW}
        if unknown:
            raise InputError(
                f"The panel has no setting {sorted(unknown)}",
                f"some of {', '.join((*self.COMPUTED, *self.VIEW))}",
                "panel.set(text=…)",
            )
        with self._changed:
            self._settings.update({name: value for name, value in changes.items() if name in self.COMPUTED})
            self._view.update({name: value for name, value in changes.items() if name in self.VIEW})
            self._newest += 1
            for older in (self._running, self._waiting):
                if older is not None:
                    older.superseded = True
                    older.token.cancel()
            self._waiting = None
            return Job(self._newest, self._settings, self._reporter())

    def _work(self, job: Job) -> None:
        with self._turn:
            if job.superseded:
                return
            self._running = job
            start = time.perf_counter()
            try:
                self._compute_and_show(job, start)
            except Cancelled:
                if not job.superseded:
                    self._give_up(job, "Cancelled. The picture is still the one before.")
            except LensError as error:
                if not job.superseded:
                    self._give_up(job, str(error))
            finally:
                self._running = None
                self._rest()

    def _compute_and_show(self, job: Job, start: float) -> None:
        if job.settings != self._attempted:
            self._report_waiting()
            result = self._compute(job)
            if job.superseded:
                return
            self._attempted = job.settings
            self._show(result, time.perf_counter() - start)
        view, self._view = self._view, {}
        self._apply(view)
        self._say(None)

    def _give_up(self, job: Job, message: str) -> None:
        """Say why; the same settings are not tried again only because the view changes."""
        self._attempted, self._view = job.settings, {}
        self._say(message)

    def _finish(self, job: Job) -> None:
        with self._changed:
            # A superseded job finishes before its successor, so the highest number is what counts.
            self._finished = max(self._finished, job.number)
            self._changed.notify_all()

    @abstractmethod
    def _compute(self, job: Job) -> Any: ...

    @abstractmethod
    def _show(self, result: Any, seconds: float) -> None: ...

    @abstractmethod
    def _apply(self, view: Mapping[str, Any]) -> None: ...

    def _lock(self) -> ModelLock | None:
        """The lock of the model in use, to say who holds it while this panel waits."""
        return None

    # -- what the reader sees of it ---------------------------------------------------------------

    def _reporter(self) -> Callable[[Step], None]:
        start, last = time.perf_counter(), 0.0

        def report(step: Step) -> None:
            nonlocal last
            now = time.perf_counter()
            if now - max(start, last) < _REPORT_EVERY:
                return
            last = now
            self._cancel.layout.display = ""
            if now - start > _BAR_AFTER:
                self._bar.layout.display = ""
            self._bar.value = step.share
            self._chip_text(f"{step.label} · {now - start:.0f} s")
            self._dim(step.label, now - start)

        return report

    def _report_waiting(self) -> None:
        lock = self._lock()
        if lock is not None and lock.holder is not None:
            self._chip_text(f"waiting: the model is {lock.holder}")

    def _rest(self) -> None:
        for part in (self._cancel, self._bar):
            if part.layout.display != "none":
                part.layout.display = "none"
        self._dim(None, 0.0)

    def _dim(self, label: str | None, seconds: float) -> None:
        """Tell the picture that it is out of date (a subclass with a picture says how)."""

    def _chip_text(self, text: str) -> None:
        self._chip.value = f'<span class="lens-chip" role="status">{html_safe(text)}</span>'

    def _say(self, message: str | None) -> None:
        self.error = message
        self._line.value = f'<span class="lens-error" role="alert">{html_safe(message)}</span>' if message else ""
        self._line.layout.display = "" if message else "none"
