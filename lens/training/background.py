"""Three-Phase trainings that run in threads of their own: whoever asks for one sees its course so far, stops it, goes on.

A kernel trains the same model once: a second request for equal settings is the first one's training. Another process that
trains it already is waited for. What is stopped, and what a closing kernel leaves, goes on from the state on disk.
"""

from __future__ import annotations

import atexit
import json
import statistics
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch

from lens.base.cache import cache_folder
from lens.base.errors import Cancelled
from lens.base.progress import CancelToken, Step
from lens.corpora import Corpus, corpus, download_size
from lens.training.phase_recipes import PhaseRecipe
from lens.training.record import Record, StepRecord
from lens.training.three_phase import kept_training, train_three_phase

State = Literal["new", "preparing", "training", "measuring", "stopped", "finished", "failed"]
RUNNING = ("preparing", "training", "measuring")
_TELL_EVERY = 0.5  # seconds between two news of one training; a change of its state is told at once
_LAST_WAIT = 10.0  # seconds that a kernel which ends gives its trainings to write their states
_STEADY = 20  # last steps of which the middle one is the pace


class BackgroundTraining:
    """One training, or what is on disk of it. `background_training` gives it.

    Attributes:
        recipe, seed, device: what is trained.
        state: `new` (nothing done), `preparing` (texts and vocabulary), `training`, `measuring` (on test documents), `stopped`,
            `finished` or `failed`.
        doing: the same in words, while it runs.
        failure: what went wrong in a failed one.
    """

    def __init__(self, recipe: PhaseRecipe, seed: int, device: str, corpora: Sequence[Corpus] | None = None):
        self.recipe, self.seed, self.device = recipe, seed, device
        self._corpora = corpora
        self._begun: Record | None = kept_training(recipe, seed, device)
        self._steps: list[StepRecord] = [] if self._begun is None else list(self._begun.steps)
        finished = self._begun is not None and bool(self._begun.results)
        self.state: State = "finished" if finished else "stopped" if self._steps else "new"
        self.doing = ""
        self.failure: BaseException | None = None
        self._starting, self._guard = threading.Lock(), threading.Lock()
        self._listeners: list[Callable[[], None]] = []
        self._token = CancelToken()
        self._thread: threading.Thread | None = None
        self._told = 0.0

    # -- what there is of it ----------------------------------------------------------------------

    @property
    def running(self) -> bool:
        return self.state in RUNNING

    @property
    def done(self) -> int:
        """Steps so far."""
        return len(self._steps)

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.recipe.training.steps

    @property
    def pace(self) -> float | None:
        """Seconds from one step to the next: the middle one of the last twenty; None before there are any."""
        recent = [step.seconds for step in self._steps[-_STEADY:]]
        return statistics.median(recent) if recent else None

    @property
    def record(self) -> Record | None:
        """What it has done so far, as a record; of one that is not finished `results` hold the first look at most."""
        begun = self._begun
        return None if begun is None else replace(begun, steps=tuple(self._steps))

    @property
    def to_fetch(self) -> int:
        """Bytes that it would download first."""
        return 0 if self._corpora is not None else sum(download_size(name) for name in self.recipe.text.corpora)

    # -- running ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin, or go on, in a thread of its own; one that runs or is finished is left as it is."""
        with self._starting:
            if self.running or self.state == "finished":
                return
            self.wait()  # of the thread before, all that is left is to end
            self._token, self.failure = CancelToken(), None
            self.state, self.doing = "preparing", "reading the text"
            self._thread = threading.Thread(target=self._run, name=f"training {self.recipe.name}", daemon=True)
            _ALIVE.add(self)
            self._thread.start()

    def stop(self) -> None:
        """Ask it to stop at its next step; what was done stays. `wait` returns when it has."""
        self._token.cancel()

    def wait(self, timeout: float | int | None = None) -> None:
        """Return when it does not run any more, at the latest after some seconds."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def listen(self, told: Callable[[], None]) -> None:
        """Have a function called, in the training's thread, whenever there is news."""
        with self._guard:
            self._listeners.append(told)

    @property
    def wanted(self) -> bool:
        """Whether anybody listens."""
        return bool(self._listeners)

    def leave(self, told: Callable[[], None]) -> None:
        """No more news for a function; a training that nobody listens to any more stops."""
        with self._guard:
            if told in self._listeners:
                self._listeners.remove(told)
                if not self._listeners:
                    self.stop()

    def _run(self) -> None:
        try:
            corpora = self._corpora or [corpus(name, progress=self._fetching) for name in self.recipe.text.corpora]
            self._say("preparing", "making tokens of the text")
            finished = train_three_phase(
                self.recipe, seed=self.seed, device=self.device, corpora=corpora, progress=lambda step: None, check=self._check,
                began=self._set_out, watch=self._watch,
            )  # fmt: skip
            self._begun, self._steps = finished.record, list(finished.record.steps)
            self._say("finished")
        except Cancelled:
            self._say("stopped" if self._steps else "new")
        except BaseException as failure:  # a bug, too, must reach whoever looks, not die with the thread
            self.failure = failure
            self._say("failed")
        finally:
            _ALIVE.discard(self)

    def _fetching(self, step: Step) -> None:
        self._token.check()
        self._say("preparing", f"{step.label} the text, {100 * step.share:.0f} %", quietly=True)

    def _check(self) -> None:
        self._token.check()
        if self.state == "preparing":  # asked for in the waiting for a lock, as no step has begun
            self._say("preparing", "waiting for another process, which trains the same", quietly=True)

    def _set_out(self, begun: Record) -> None:
        self._begun = begun
        self._say("training", "training")

    def _watch(self, number: int, step: StepRecord) -> None:
        """Steps of a state that it goes on from are told again, the same to the last bit."""
        if number <= len(self._steps):
            self._steps[number - 1] = step
        else:
            self._steps.append(step)
        if number == self.steps:
            self._say("measuring", "measuring on test documents")
        else:
            self._say(self.state, self.doing, quietly=True)

    def _say(self, state: State, doing: str = "", *, quietly: bool = False) -> None:
        self.state, self.doing = state, doing
        now = time.monotonic()
        if quietly and now - self._told < _TELL_EVERY:
            return
        self._told = now
        with self._guard:
            listeners = list(self._listeners)
        for told in listeners:
            told()


_KNOWN: weakref.WeakValueDictionary[str, BackgroundTraining] = weakref.WeakValueDictionary()
_ALIVE: set[BackgroundTraining] = set()
_GUARD = threading.Lock()


def background_training(
    recipe: PhaseRecipe, *, seed: int = 0, device: str = "cpu", corpora: Sequence[Corpus] | None = None
) -> BackgroundTraining:
    """The training of some settings: the one that this process already has, or a new one over what is on disk.

    Args:
        recipe: model, number of steps, text.
        seed: of the weights and the windows; trainings with one seed are paired.
        device: `cpu`, where every bit repeats, or `cuda`, where it computes in bfloat16 and they do not.
        corpora: in the place of those that the recipe names.
    """
    told = [recipe.title, dict(recipe.model), recipe.training.facts(), vars(recipe.text), seed, device, str(cache_folder())]
    key = json.dumps([*told, [one.digest for one in corpora or ()]], sort_keys=True)
    with _GUARD:
        found = _KNOWN.get(key)
        if found is None:
            found = _KNOWN[key] = BackgroundTraining(recipe, seed, device, corpora)
        return found


def devices() -> tuple[str, ...]:
    """Where trainings can run here."""
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


@atexit.register
def _write_states() -> None:
    """A kernel that ends, or is restarted, stops its trainings, so that they go on from their last step."""
    for training in list(_ALIVE):
        training.stop()
    for training in list(_ALIVE):
        training.wait(_LAST_WAIT)
