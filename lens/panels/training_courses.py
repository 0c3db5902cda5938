"""The curves that the training panel can show: those of the shipped record, and those of trainings here, as they grow."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import xarray as xr

from lens.probes.paired_training import decay_course, stored_course
from lens.probes.phase_family import phase_family
from lens.probes.phase_training import phase_training
from lens.training.background import BackgroundTraining
from lens.training.phase_choice import PhaseChoice

STEPS = 800  # of every training in the shipped record
_STORED = {
    "three-phase-n3": PhaseChoice(3, steps=STEPS),
    "three-phase-rope-only": PhaseChoice(1, rotation="off", horn=False, steps=STEPS),
    "three-phase-rope-only-scaled": PhaseChoice(1, rotation="off", horn=False, multiplier=True, steps=STEPS),
}
"""Trainings of the shipped record that stand beside each other at first sight, and beside every training of as many steps."""


class Courses:
    """One Dataset for each training, labelled with its title; of trainings here, kept until there is news of them."""

    def __init__(self):
        self._grown: dict[BackgroundTraining, tuple[tuple[Any, ...], xr.Dataset]] = {}

    @cached_property
    def _family(self) -> xr.Dataset:
        return phase_family()

    @property
    def pace(self) -> float:
        """Seconds that a step of the shipped models took."""
        return float(self._family["seconds"].sel(recipe="three-phase-n3").mean()) / STEPS

    def ships(self, name: str, seed: int) -> bool:
        """Whether the record has a training of this recipe and seed."""
        return name in self._family["recipe"] and seed in self._family["seed"]

    def stored(self, name: str, seed: int) -> xr.Dataset:
        """Of a training in the shipped record."""
        return _labelled(stored_course(self._family, name, seed), _title_of(name))

    def controls(self, seed: int) -> list[xr.Dataset]:
        """Of the shipped trainings that a training of this seed may be paired with."""
        return [self.stored(name, seed) for name in _STORED if seed in self._family["seed"]]

    def grown(self, training: BackgroundTraining, title: str) -> xr.Dataset | None:
        """What is known of a training here; None before its first look."""
        record = training.record
        if record is None or not (record.results or any(step.observed for step in record.steps)):
            return None
        version = (len(record.steps), bool(record.results), training.state == "finished")
        known = self._grown.get(training)
        if known is None or known[0] != version:
            known = self._grown[training] = (version, _labelled(phase_training(record), title))
        return known[1]


def _labelled(course: xr.Dataset, title: str) -> xr.Dataset:
    found = course.assign_attrs(title=title)
    return found.assign(decay_alone=decay_course(found)) if "theta" in found else found


def _title_of(name: str) -> str:
    """The title that the same settings have here."""
    return _STORED[name].title if name in _STORED else next(
        choice.title for choice in _family_choices() if choice.recipe().name == name)  # fmt: skip


def _family_choices() -> list[PhaseChoice]:
    """Settings of all members of the family."""
    numbers = [PhaseChoice(phases) for phases in (1, 2, 3, 4, 6, 8, 12)]
    controls = [PhaseChoice(rotation=rotation) for rotation in ("off", "frozen")]
    return [*numbers, *controls, PhaseChoice(horn=False), PhaseChoice(theta_decay=False)]
