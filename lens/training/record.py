"""What a training was told to do, and what it did: a recipe, and the record of a run as JSON lines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from lens.base.errors import InputError
from lens.base.files import atomic_file

Optimiser = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Recipe:
    """How to train, whatever is trained.

    Attributes:
        name: how it is called in records.
        steps: number of updates.
        optimiser: `sgd` (with Nesterov momentum), `adam` (weight decay joins the gradient) or `adamw`
            (weight decay shrinks the weights; Loshchilov and Hutter, arXiv 1711.05101).
        learning_rate: its peak.
        momentum: of the gradient; Adam's first β.
        weight_decay: pull towards 0.
        warm_up: steps over which the rate rises in equal parts to its peak.
        schedule: what it does then: stays `constant`, or falls to 0 in a `linear` or `cosine` way.
        clip: largest norm of the gradient of all parameters together; None leaves it as it is.
        seed: for whoever draws batches and initial weights.
        square_momentum: of the squared gradient, Adam's second β.
        floor: share of the peak that a `linear` or `cosine` schedule falls to, instead of 0.
        undecayed: ends of the names of parameters that weight decay leaves alone.

    Raises:
        InputError: numbers that describe no training.
    """

    name: str
    steps: int
    optimiser: Optimiser
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 0.0
    warm_up: int = 0
    schedule: Schedule = "linear"
    clip: float | None = None
    seed: int = 0
    square_momentum: float = 0.999
    floor: float = 0.0
    undecayed: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "undecayed", tuple(self.undecayed))  # a list, where it comes from a file
        if self.optimiser not in get_args(Optimiser) or self.schedule not in get_args(Schedule):
            known = ", ".join((*get_args(Optimiser), *get_args(Schedule)))
            raise InputError(
                f"The recipe {self.name} asks for {self.optimiser}, {self.schedule}", f"some of {known}", "adam, linear"
            )
        if not 0 <= self.warm_up < self.steps:
            found = f"{self.steps} steps, {self.warm_up} of them warm-up"
            raise InputError(found, "one step at least after the warm-up", "fewer warm-up steps, or more steps")
        if not (self.learning_rate > 0 and 0 < self.momentum < 1 and self.weight_decay >= 0):
            found = f"Learning rate {self.learning_rate}, momentum {self.momentum}, weight decay {self.weight_decay}"
            raise InputError(found, "a rate above 0, a momentum between 0 and 1, a decay of at least 0", "1e-3, 0.9 and 0")
        if not (0 < self.square_momentum < 1 and 0 <= self.floor <= 1):
            found = f"A momentum of the square of {self.square_momentum}, a floor of {self.floor}"
            raise InputError(found, "one between 0 and 1, and a share of the peak", "square_momentum=0.999, floor=0.0")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"Gradients clipped at {self.clip}", "a norm above 0", "clip=1.0, or None")

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0. It would reach its floor at the step after the last one."""
        if step < self.warm_up:
            return self.learning_rate * (step + 1) / self.warm_up
        done = (step - self.warm_up) / (self.steps - self.warm_up)
        falls = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
        return self.learning_rate * (self.floor + (1 - self.floor) * falls[self.schedule])

    def facts(self) -> dict[str, Any]:
        """Its fields as plain values; of the last three, which most recipes leave alone, those that were set.

        So a recipe that was written down before there were these fields is still the same recipe.
        """
        known = {field.name: field.default for field in fields(self)[-3:]}
        found = {name: value for name, value in asdict(self).items() if name not in known or value != known[name]}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


@dataclass(frozen=True)
class StepRecord:
    """One update.

    Attributes:
        terms: what was minimised, by name; their sum is the loss.
        learning_rate: of this step.
        gradient_norm: of all parameters together, before clipping.
        seconds: wall time, without that of looking.
        observed: what was looked at after the update, plain values; in most steps nothing.
    """

    terms: Mapping[str, float]
    learning_rate: float
    gradient_norm: float
    seconds: float
    observed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        return sum(self.terms.values())

    def facts(self) -> dict[str, Any]:
        """Its fields as plain values; what was observed only where something was."""
        found = asdict(self)
        if not self.observed:
            del found["observed"]
        return found


@dataclass(frozen=True)
class Record:
    """A training from its first step to its last, interruptions left out.

    Attributes:
        recipe: what was asked for.
        source: what it was trained on (corpus, hashes, …), plain values.
        environment: device, number of threads, versions of the libraries.
        steps: every update, in order.
        tokens_per_step: how many tokens one update saw, None where tokens are not what it saw.
        results: what was measured afterwards, by name.
    """

    recipe: Recipe
    source: Mapping[str, Any]
    environment: Mapping[str, Any]
    steps: tuple[StepRecord, ...]
    tokens_per_step: int | None = None
    results: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Wall time of all updates."""
        return sum((step.seconds for step in self.steps), 0.0)

    @property
    def tokens(self) -> int | None:
        """Tokens seen, repeated ones counted each time."""
        return None if self.tokens_per_step is None else self.tokens_per_step * len(self.steps)

    def write(self, path: Path | str) -> Path:
        """Write JSON lines, atomically: what was asked for, one line a step, and what was measured afterwards."""
        asked = {"recipe": self.recipe.facts(), "tokens_per_step": self.tokens_per_step}
        lines = [{**asked, "source": dict(self.source), "environment": dict(self.environment)}]
        lines += [{"step": number, "loss": step.loss, **step.facts()} for number, step in enumerate(self.steps, 1)]
        lines += [{"seconds": self.seconds, "tokens": self.tokens, "results": dict(self.results)}]
        with atomic_file(path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return Path(path)


def read_record(path: Path | str) -> Record:
    """Read what `Record.write` wrote.

    Raises:
        InputError: no such file, or another kind of file.
    """
    try:
        first, *steps, last = (json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines())
        done = [{name: step[name] for name in StepRecord.__dataclass_fields__ if name in step} for step in steps]
        return Record(
            recipe=Recipe(**first["recipe"]),
            source=first["source"],
            environment=first["environment"],
            steps=tuple(StepRecord(**step) for step in done),
            tokens_per_step=first["tokens_per_step"],
            results=last["results"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no record of a training ({error})", "a file that Record.write wrote", "another file"
        ) from error
