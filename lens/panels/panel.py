"""What all panels share: one worker, numbered requests, cancelling, and errors in one line.

All widgets of a kernel share one message thread. A panel therefore never computes in a callback: the
callback posts a request, a worker of its own computes it, and a Cancel click still gets through. A
cell computes in its own thread. Whichever thread it is, the newest request wins, and a thread that
waits for the model can be overtaken or cancelled while it waits.
"""

from __future__ import annotations

import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ipywidgets as widgets

from lens.base.errors import Cancelled, InputError, LensError
from lens.base.progress import CancelToken, Step
from lens.base.text import html_safe
from lens.models.locks import ModelLock

_REPORT_EVERY = 0.2  # seconds between two progress messages to the browser
_BAR_AFTER = 2.0  # seconds of work from which a bar is worth its place


class Job:
    """One numbered request.

    Attributes:
        settings: everything that a computation depends on.
        view: changes of what is shown of its result.
        compute: whether a computation was asked for, here or in a request that this one overtook.
    """

    def __init__(self, number: int, settings: Mapping[str, Any], view: Mapping[str, Any], compute: bool):
        self.number, self.settings, self.view, self.compute = number, dict(settings), dict(view), compute
        self.token = CancelToken()
        self.superseded = False
        self.report: Callable[[Step], None] = lambda step: None
        self.say: Callable[[str], None] = lambda text: None

    def supersede(self) -> None:
        self.superseded = True
        self.token.cancel()

    def progress(self, step: Step) -> None:
        """A callback for a download or conversion: reports, and raises `Cancelled` when the job is to stop."""
        self.token.check()
        self.report(step)

    def check_blocks(self, blocks: int, label: str) -> Callable[[], None]:
        """A callback for `model.run`: counts blocks, and raises `Cancelled` when the job is to stop."""
        done = 0

        def check() -> None:
            nonlocal done
            self.token.check()
            self.report(Step(done, blocks, "blocks", label))
            done += 1

        return check

    @contextmanager
    def holding(self, lock: ModelLock, purpose: str) -> Iterator[None]:
        """Hold the model; while another use of it lasts, say which, and stay open to Cancel."""

        def check() -> None:
            self.token.check()
            self.say(f"waiting: the model is {lock.holder or 'in use'}")

        with lock.hold(purpose, check):
            self.token.check()
            yield


class Panel(widgets.VBox):
    """A widget whose settings lead to a computation.

    A subclass names the settings that need a computation (`COMPUTED`) and those that only change the
    view (`VIEW`), and defines four steps: `_compute(job)` and `_prepare(job, result)` run in any
    thread and touch no widget; `_show(result, seconds)` and `_apply(view)` only touch widgets.

    `set(...)` computes in the calling thread and returns when done, for cells and tests; `post(...)`
    hands over to the worker, for events from the browser.
    """

    COMPUTED: tuple[str, ...] = ()
    VIEW: tuple[str, ...] = ()

    def __init__(self, settings: Mapping[str, Any]):
        self._settings = dict(settings)
        self._changed = threading.Condition()
        self._showing = threading.RLock()
        self._newest = self._finished = 0
        self._live: list[Job] = []
        self._waiting: Job | None = None
        self._unshown_view: dict[str, Any] = {}
        self._shown_settings: dict[str, Any] | None = None
        self._failure: BaseException | None = None
        self._worker: threading.Thread | None = None
        self._muted: int | None = None
        self._closed = False
        self._chip_at_rest = ""
        self.error: str | None = None
        self._error_in_view = False
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
        lock = self._lock()
        if lock is not None and lock.mine and self._finished < self._newest:
            self.set()  # the worker cannot go on before this thread lets the model go
        with self._changed:
            self._changed.wait_for(lambda: self._finished >= self._newest)
            failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def cancel(self) -> None:
        """Stop what is running or waiting at its next step; the old picture stays."""
        with self._changed:
            for job in self._live:
                job.compute = False  # a later change of view is no reason to start it again
                job.token.cancel()

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """Plain, rounded data of what the panel shows; waits for what is pending."""

    # -- for events from the browser --------------------------------------------------------------

    def post(self, **changes: Any) -> None:
        """Ask the worker for a computation with changed settings, and return at once."""
        with self._changed:
            job = self._new_job(changes)
            if self._waiting is not None:
                self._finish(self._waiting)  # overtaken before the worker took it
            self._waiting = job
            if self._worker is None:
                self._worker = threading.Thread(target=self._serve, name=f"{type(self).__name__} worker", daemon=True)
                self._worker.start()
            self._changed.notify_all()

    def close(self) -> None:
        """Take the widget off the page, stop what runs, and let the worker end."""
        self.cancel()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        super().close()

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._closed)
                job, self._waiting = self._waiting, None
                if job is None:
                    self._worker = None
                    return
            try:
                self._work(job)
            except BaseException as failure:  # a bug must reach the next summary(), not die with the thread
                self._failure = failure
                self._say(f"Internal error: {type(failure).__name__}: {failure}")
            finally:
                self._finish(job)

    # -- one request ------------------------------------------------------------------------------

    def _new_job(self, changes: Mapping[str, Any]) -> Job:
        unknown = set(changes) - {*self.COMPUTED, *self.VIEW}
        if unknown:
            known = ", ".join((*self.COMPUTED, *self.VIEW))
            raise InputError(f"The panel has no setting {sorted(unknown)}", f"some of {known}", "panel.set(text=…)")
        computed = {name: value for name, value in changes.items() if name in self.COMPUTED}
        with self._changed:
            self._settings.update(computed)
            view, self._unshown_view = self._unshown_view, {}
            for older in self._live:
                view |= older.view
                older.supersede()
            view |= {name: value for name, value in changes.items() if name in self.VIEW}
            compute = bool(computed) or any(older.compute for older in self._live)
            self._newest += 1
            job = Job(self._newest, self._settings, view, compute)
            self._live.append(job)
        job.report, job.say = self._reporter(job), lambda text: self._chip_text(text)
        return job

    def _work(self, job: Job) -> None:
        start = time.perf_counter()
        fresh = job.compute and job.settings != self._shown_settings
        try:
            job.token.check()
            result = self._compute(job) if fresh else None
            view = self._prepare(job, result)
            with self._showing:
                job.token.check()  # it may have been overtaken while another picture was shown
                if not fresh and self._shown_settings is None:
                    self._unshown_view = job.view
                    return
                if fresh:
                    self._show(result, time.perf_counter() - start)
                    self._shown_settings = job.settings
                self._apply(view)
                if fresh and not job.superseded:
                    with self._mute():
                        self._mirror(job.settings)
            if job.compute or self._error_in_view:
                self._say(self._standing())
        except Cancelled:
            if not job.superseded:
                self._give_up(job, "Cancelled. The picture is still the one before.", in_view=False)
        except LensError as error:
            if not job.superseded:
                self._give_up(job, str(error), in_view=not job.compute)
        finally:
            if job.number == self._newest:
                self._rest()

    def _give_up(self, job: Job, message: str, *, in_view: bool) -> None:
        if self._shown_settings is None:
            self._unshown_view = job.view  # there is no picture yet that it could have been meant for
        self._say(message)
        self._error_in_view = in_view

    def _finish(self, job: Job) -> None:
        with self._changed:
            self._live.remove(job)
            # Requests can finish out of order; the newest is the one that counts.
            self._finished = max(self._finished, job.number)
            self._changed.notify_all()

    @abstractmethod
    def _compute(self, job: Job) -> Any: ...

    @abstractmethod
    def _prepare(self, job: Job, result: Any) -> Mapping[str, Any]:
        """View settings of a job, with whatever they need computed; `result` is None for the picture that is shown."""

    @abstractmethod
    def _show(self, result: Any, seconds: float) -> None: ...

    @abstractmethod
    def _apply(self, view: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def _mirror(self, settings: Mapping[str, Any]) -> None:
        """Show settings in the controls; their events are muted meanwhile."""

    @abstractmethod
    def _lock(self) -> ModelLock | None:
        """The lock of the model that the current settings use, if it is open."""

    # -- what the reader sees of it ---------------------------------------------------------------

    def _standing(self) -> str | None:
        """A line that stays although a request went well, for as long as its cause does; none by default."""
        return None

    @contextmanager
    def _mute(self) -> Iterator[None]:
        """Let changes of controls that this thread makes pass without becoming requests."""
        self._muted = threading.get_ident()
        try:
            yield
        finally:
            self._muted = None

    @property
    def _is_muted(self) -> bool:
        return self._muted == threading.get_ident()

    def _reporter(self, job: Job) -> Callable[[Step], None]:
        start, last = time.perf_counter(), 0.0
        first: tuple[float, int | float, str] | None = None

        def report(step: Step) -> None:
            nonlocal last, first
            now = time.perf_counter()
            if job.superseded or now - max(start, last) < _REPORT_EVERY:
                return
            last = now
            self._cancel.layout.display = ""
            if now - start > _BAR_AFTER:
                self._bar.layout.display = ""
            self._bar.value = step.share
            first = first or (now, step.done, step.label)
            speed = _speed(step, first, now)
            self._chip_text(f"{step.label} · {speed}{now - start:.0f} s")
            self._dim(step.label, now - start)

        return report

    def _rest(self) -> None:
        for part in (self._cancel, self._bar):
            part.layout.display = "none"
        self._chip_text(self._chip_at_rest)
        self._dim(None, 0.0)

    def _dim(self, label: str | None, seconds: float) -> None:
        """Tell the picture that it is out of date (a subclass with a picture says how)."""

    def _chip_text(self, text: str) -> None:
        self._chip.value = f'<span class="lens-chip" role="status">{html_safe(text)}</span>' if text else ""

    def _say(self, message: str | None) -> None:
        self.error, self._error_in_view = message, False
        self._line.value = f'<span class="lens-error" role="alert">{html_safe(message)}</span>' if message else ""
        self._line.layout.display = "" if message else "none"


def _speed(step: Step, first: tuple[float, int | float, str], now: float) -> str:
    """Tokens per second since the first report of the same work, in words; empty for other units and at the start."""
    then, done, label = first
    if step.unit != "tokens" or label != step.label or now - then < _BAR_AFTER:
        return ""
    return f"{(step.done - done) / (now - then):,.0f} tokens/s · "
