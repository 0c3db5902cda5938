"""The training panel: choose a Three-Phase model, press Start, and watch it learn while the notebook stays yours."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import xarray as xr

from lens.base.errors import InputError, LensError
from lens.base.progress import Step
from lens.corpora import Corpus
from lens.figures.export import export_table
from lens.figures.phase_training import MOST_RUNS, PICTURES, phase_training_chart, pictures_of
from lens.panels.fitted import ChartPanel
from lens.panels.panel import Job
from lens.panels.training_controls import button, switches, view_controls
from lens.panels.training_courses import STEPS, Courses
from lens.panels.training_words import about, chip_of, says
from lens.probes.paired_training import paired, paired_training
from lens.training import Record
from lens.training.background import BackgroundTraining, background_training, devices
from lens.training.phase_choice import ROPE_BASE, PhaseChoice
from lens.training.phase_recipes import TextRecipe

_SWITCHES = ("num_phases", "rope_base", "rotation", "horn", "theta_decay", "multiplier", "steps")


@dataclass(frozen=True)
class _Result:
    """What is shown for some settings.

    Attributes:
        choice, seed: the settings; None where they describe no training.
        training: of these settings.
        course: of the run that is shown; of these settings as soon as there is something of it.
        record: of the same, None for one of the shipped record.
        runs: its losses beside those of the trainings that are paired with it.
        running: what trains now, whatever is chosen, with its title.
        pace: seconds for a step, None where none was measured yet, and whether it was measured here.
        problem: what is wrong with the settings, or with a training.
    """

    choice: PhaseChoice | None
    seed: int
    training: BackgroundTraining | None
    course: xr.Dataset
    record: Record | None
    runs: xr.Dataset
    running: tuple[str, BackgroundTraining] | None
    waiting: tuple[str, ...]
    pace: float | None
    here: bool
    problem: str | None

    @property
    def shows_choice(self) -> bool:
        return self.choice is not None and self.course.attrs["title"] == self.choice.title and (
            self.course.attrs["steps"], self.course.attrs["seed"]) == (self.choice.steps, self.seed)  # fmt: skip


class PhaseTraining(ChartPanel):
    """Small Three-Phase models that train in the background: losses and what happens inside, growing step by step.

    Start begins the training of the chosen settings in a thread of its own, or goes on with it where it was stopped, to the same
    bits; so it does after a restart of the kernel. Trainings with one seed and as many steps begin with the same weights
    and read the same windows, and stand in one picture. Until something was trained here, the picture is the shipped record.

    Args:
        num_phases: N; twice it divides 96, the width of the stream.
        rope_base: base of the rotary positions.
        rotation: of the stream between attention and MLP: `learned`, `frozen`, `tied` (one angle for a block) or `off`.
        horn: True puts 1/(position + 1) in the place of the embedding's mean over channels.
        theta_decay: whether weight decay acts on the angles, too.
        multiplier: whether the embedding is multiplied by √d, as in the published baseline only.
        steps: number of updates; the learning rate falls over all of them.
        seed: of weights and windows.
        device: `cpu`, or `cuda` where there is one.
        picture: beside the losses: `angles`, `lengths`, `means`, `shares` or `difference`.
        layer: residual state that lengths, means and shares are of; by default the last one.
        text: another cut of the text, or another vocabulary.
        corpora: to train on, in the place of `wikipedia` and `docstrings`.

    `start()`, `stop()` and `finish()` (which waits) do what the buttons do; `set(num_phases=1)` chooses; `summary()` gives what
    is shown as plain data, `course` the Dataset, `export(path)` writes it.
    """

    COMPUTED = (*_SWITCHES, "seed", "device", "news")
    VIEW = ("picture", "layer")

    def __init__(
        self,
        num_phases: int = 3,
        *,
        rope_base: float | int = ROPE_BASE,
        rotation: str = "learned",
        horn: bool = True,
        theta_decay: bool = True,
        multiplier: bool = False,
        steps: int = 200,
        seed: int = 0,
        device: str = "cpu",
        picture: str | None = None,
        layer: int | None = None,
        text: TextRecipe | None = None,
        corpora: Sequence[Corpus] | None = None,
    ):
        self._text, self._corpora = text or TextRecipe(), corpora
        if corpora is not None:
            self._text = replace(self._text, corpora=tuple(one.name for one in corpora))
        self._news, self._turn = itertools.count(1), threading.Lock()
        self._trainings: dict[BackgroundTraining, PhaseChoice] = {}
        self._courses = Courses()
        self._current: BackgroundTraining | None = None
        self._queue: list[BackgroundTraining] = []
        self._newest_look: int | None = None
        self._focus: BackgroundTraining | str = "three-phase-n3"
        settings = {
            "num_phases": num_phases, "rope_base": rope_base, "rotation": rotation, "horn": horn, "theta_decay": theta_decay,
            "multiplier": multiplier, "steps": steps, "seed": seed, "device": device,
        }  # fmt: skip
        view = {"picture": picture, "layer": layer}
        super().__init__({**settings, "news": 0}, view, switches(), view_controls())
        self._start, self._stop = button("Start", "play"), button("Stop", "pause")
        self._start.on_click(lambda _: self._begin() and self._tell())
        self._stop.on_click(lambda _: self._halt())
        self.children = (*self._rows(), self._line, self._says, self.chart)
        self._open(view)

    def _rows(self) -> list[widgets.HBox]:
        parts = dict(self._top)
        late = [parts.pop(name) for name in ("steps", "seed", "device")]
        if len(devices()) < 2:
            late.pop()
        rows = [list(parts.values()), [*late, self._start, self._stop, self._bar, self._cancel, self._chip],
                list(self._controls.values())]  # fmt: skip
        boxes = [widgets.HBox(row) for row in rows]
        for box in boxes:
            box.add_class("lens-top")
        return boxes

    def __repr__(self) -> str:
        chosen = ", ".join(f"{name}={self._settings[name]!r}" for name in (*_SWITCHES, "seed"))
        return f"PhaseTraining({chosen})"

    # -- for cells --------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin the training of the chosen settings, or go on with it, in the background; returns at once.

        While another one of this panel runs, it waits for its turn.
        """
        self._begin()
        self.set(news=next(self._news))

    def stop(self) -> None:
        """Stop what trains, and what waits; returns when its state is written and it can go on from there."""
        current = self._halt()
        if current is not None:
            current.wait()
        self.set(news=next(self._news))

    def finish(self) -> None:
        """Return when nothing trains or waits any more, with the picture up to date."""
        while (current := self._current) is not None:
            current.wait()
            self._advance(current)
        self.set(news=next(self._news))

    @property
    def course(self) -> xr.Dataset:
        """What is shown of the training so far, as `lens.phase_training` gives it."""
        return self._shown().course

    def export(self, path: str | Path) -> Path:
        """Write the record as `.jsonl`, its Dataset as `.nc`, or the held-out losses as `.csv`.

        Raises:
            InputError: another suffix, or a record that is shipped and not of a training here.
        """
        shown = self._shown()
        if Path(path).suffix != ".jsonl":
            return export_table(shown.course, path, ("validation_loss",), ("looked_at",))
        if shown.record is None:
            raise InputError("The picture shows the shipped record", "a training of this panel for .jsonl", "record.nc")
        return shown.record.write(path)

    def close(self) -> None:
        """Take the panel off the page; what it trains stops and can be gone on with, unless another panel shows it."""
        self._queue.clear()
        current = self._current
        super().close()
        for training in list(self._trainings):
            training.leave(self._tell)
        if current is not None and not current.wanted:
            current.wait()

    # -- what runs --------------------------------------------------------------------------------

    def _training(self, settings: Mapping[str, Any]) -> tuple[PhaseChoice, BackgroundTraining]:
        choice = PhaseChoice(**{name: settings[name] for name in _SWITCHES})
        if not (isinstance(settings["seed"], int) and settings["seed"] >= 0):
            raise InputError(f"The seed is {settings['seed']!r}", "a whole number of at least 0", "seed=0")
        if settings["device"] not in devices():
            raise InputError(f"The device is {settings['device']!r}", f"one of {', '.join(devices())}", "device='cpu'")
        training = background_training(
            choice.recipe(self._text), seed=settings["seed"], device=settings["device"], corpora=self._corpora
        )
        return choice, training

    def _begin(self) -> bool:
        """Start what is chosen, or let it wait for its turn; False where the settings describe nothing."""
        try:
            choice, training = self._training(self._settings)
        except LensError:
            return False  # the line says why
        self._know(training, choice)
        with self._turn:
            if self._current is None or training is self._current:
                training.start()
                self._current = training
            elif training not in self._queue:
                self._queue.append(training)
        self._advance(training)  # it may have been finished before, or have ended already
        return True

    def _halt(self) -> BackgroundTraining | None:
        with self._turn:
            self._queue.clear()
            current = self._current
        if current is not None:
            current.stop()
        return current

    def _know(self, training: BackgroundTraining, choice: PhaseChoice) -> None:
        if training not in self._trainings:
            self._trainings[training] = choice
            training.listen(self._tell)

    def _tell(self) -> None:
        """News of a training: the next one's turn, perhaps, and another picture."""
        if self._closed:
            return
        current = self._current
        if current is not None and not current.running:
            self._advance(current)
        self.post(news=next(self._news))

    def _advance(self, ended: BackgroundTraining) -> None:
        with self._turn:
            if self._current is ended and not ended.running:
                self._current = self._queue.pop(0) if self._queue else None
                if self._current is not None:
                    self._current.start()

    # -- computation ------------------------------------------------------------------------------

    def _compute(self, job: Job) -> _Result:
        problem, choice, training = None, None, None
        try:
            choice, training = self._training(job.settings)
            if training.state != "new":
                self._know(training, choice)
        except InputError as error:
            problem = str(error)
        self._choose_focus(choice, training)
        course, record = self._shown_course()
        others = [one for one in self._beside(course) if paired(one, course) and one.attrs["title"] != course.attrs["title"]]
        current, waiting = self._current, list(self._queue)
        running = None if current is None else (self._trainings[current].title, current)
        pace, here = self._pace()
        return _Result(
            choice, job.settings["seed"], training, course, record, paired_training([course, *others[: MOST_RUNS - 1]]), running,
            tuple(self._trainings[one].title for one in waiting), pace, here, problem or self._failed(training),
        )  # fmt: skip

    def _choose_focus(self, choice: PhaseChoice | None, training: BackgroundTraining | None) -> None:
        """The chosen training once it has something to show, else a shipped one like it, else what was shown before."""
        if training is None or choice is None:
            return
        if self._course(training) is not None:
            self._focus = training
            return
        name = choice.recipe().name
        if self._corpora is None and choice.steps == STEPS and self._courses.ships(name, training.seed):
            self._focus = f"{name}/{training.seed}"

    def _shown_course(self) -> tuple[xr.Dataset, Record | None]:
        if isinstance(self._focus, BackgroundTraining):
            course = self._course(self._focus)
            assert course is not None  # it was chosen for having one
            return course, self._focus.record
        name, _, seed = self._focus.partition("/")
        return self._courses.stored(name, int(seed or 0)), None

    def _beside(self, course: xr.Dataset) -> list[xr.Dataset]:
        """Everything that may be paired with a course: what was trained here, the newest first, and the shipped controls."""
        here = [found for one in reversed(list(self._trainings)) if (found := self._course(one)) is not None]
        if course.attrs["steps"] != STEPS:
            return here
        taken = {one.attrs["title"] for one in here}
        return here + [one for one in self._courses.controls(course.attrs["seed"]) if one.attrs["title"] not in taken]

    def _course(self, training: BackgroundTraining) -> xr.Dataset | None:
        """What is known of a training; None before its first look."""
        return self._courses.grown(training, self._trainings[training].title) if training in self._trainings else None

    def _pace(self) -> tuple[float | None, bool]:
        """Seconds for a step of what was trained here last; until then that of the shipped record."""
        here = [one.pace for one in reversed(list(self._trainings)) if one.pace is not None]
        if here:
            return here[0], True
        return self._courses.pace, False

    def _failed(self, training: BackgroundTraining | None) -> str | None:
        failure = None if training is None else training.failure
        if failure is not None and not isinstance(failure, LensError):
            raise RuntimeError(f"The training ended with {type(failure).__name__}: {failure}") from failure
        return None if failure is None else str(failure)

    # -- view -------------------------------------------------------------------------------------

    def _checked(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        known = pictures_of(result.runs, result.course)
        picture, layers = view["picture"], result.course.sizes["layer"]
        if picture is not None and picture not in PICTURES:
            raise InputError(f"The picture is {picture!r}", f"one of {', '.join(PICTURES)}", "picture='angles'")
        layer = layers - 1 if view["layer"] is None else view["layer"]
        if layer not in range(layers):
            raise InputError(f"The layer is {layer!r}", f"0 to {layers - 1}", "layer=0")
        if picture in PICTURES and picture not in known:
            if picture != self._view["picture"]:
                found = f"{result.course.attrs['title']} has no picture {picture!r}"
                raise InputError(found, f"one of {', '.join(known)}", f"picture={known[0]!r}")
            picture = None  # it was chosen for another training
        return {"picture": picture or known[0], "layer": int(layer)}

    def _spec(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        return phase_training_chart(result.runs, result.course, picture=view["picture"], layer=view["layer"])

    def _facts(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        course, training = result.course, result.training
        held = course["validation_loss"].to_numpy()
        facts = {
            **{name: self._settings[name] for name in (*_SWITCHES, "seed", "device")},
            "state": "none" if training is None else training.state,
            "done": 0 if training is None else training.done,
            "waiting": list(result.waiting),
            "shown": course.attrs["title"],
            "shipped": result.record is None,
            "updates": int(course["looked_at"][-1]),
            "validation_loss": round(float(held[-1]), 3),
            "untrained_loss": round(float(held[0]), 3) if int(course["looked_at"][0]) == 0 else None,
            "beside": self._compared(result.runs),
            **view,
        }
        return {**facts, "says": says(result, view)}

    @staticmethod
    def _compared(runs: xr.Dataset) -> dict[str, Any]:
        """Of every other run the last difference to the one that is shown, and that of test documents where both are finished."""
        found = {}
        for n, title in enumerate(runs["run"].to_numpy().tolist()[1:], 1):
            known = runs["difference"][n].dropna("looked_at")
            found[title] = {
                "updates": int(known["looked_at"][-1]) if known.size else None,
                "difference": round(float(known[-1]), 3) if known.size else None,
                "test_difference": _rounded(runs, n),
            }
        return found

    def _selection(self, view: Mapping[str, Any]) -> dict[str, Any]:
        """The newest update, unless the reader chose an earlier one of the same curves."""
        places = self._result.course["looked_at"].to_numpy().tolist()
        chosen = self.chart.selected.get("updates")
        stays = chosen in places and chosen != self._newest_look
        self._newest_look = places[-1]
        return {"updates": chosen if stays else places[-1]}

    def _show_view(self, view: Mapping[str, Any]) -> None:
        known = pictures_of(self._result.runs, self._result.course)
        options = [(words, name) for name, words in PICTURES.items() if name in known]
        picture, layer = self._controls["picture"], self._controls["layer"]
        if list(picture.options) != options:
            picture.options = options
        layers = list(range(self._result.course.sizes["layer"]))
        if list(layer.options) != layers:
            layer.options = layers
        layer.disabled = view["picture"] in ("angles", "difference")
        super()._show_view(view)

    def _standing(self) -> str | None:
        return None if self._result is None else self._result.problem

    def _show(self, result: _Result, seconds: float) -> None:
        super()._show(result, seconds)
        self._chip_at_rest = chip_of(result)

    def _mirror(self, settings: Mapping[str, Any]) -> None:
        if self._result.choice is None:
            return  # settings that a cell gave and that are none
        for name in ("rope_base", "steps", "seed", "num_phases"):
            control, value = self._top[name], settings[name]
            if value not in [option[1] for option in control.options]:
                control.options = sorted([*control.options, (f"{value:,.0f}", value)], key=lambda option: option[1])
        super()._mirror({name: settings[name] for name in self._top})

    def _rest(self) -> None:
        super()._rest()
        result = self._result
        if result is None:
            return
        running = result.running
        self._bar.layout.display = "" if running and running[1].running else "none"
        if running:
            self._bar.value = Step(running[1].done, running[1].steps, "steps", "").share
        state = "none" if result.training is None else result.training.state
        words = {"new": "Start", "stopped": "Resume", "failed": "Start", "finished": "Trained", "none": "Start"}
        queued = result.training in self._queue
        self._start.description = "Waiting" if queued else words.get(state, "Training …")
        self._start.disabled = queued or state not in ("new", "stopped", "failed")
        self._start.tooltip = about(result)
        self._stop.disabled = running is None


def _rounded(runs: xr.Dataset, n: int) -> list[float] | None:
    values = [float(runs[name][n]) for name in ("test_difference", "low", "high")]
    return None if values[0] != values[0] else [round(value, 4) for value in values]
