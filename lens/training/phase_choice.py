"""A Three-Phase training chosen by a few switches; one that is a recipe of the family has that recipe's name and title."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from typing import Any

from lens.base.errors import InputError
from lens.training.phase_recipes import FAMILY, SHAPE, TRAINING, PhaseRecipe, TextRecipe, phase_recipe

WIDTH: int = SHAPE["hidden_size"]
DIVISORS = tuple(phases for phases in range(1, WIDTH // 2 + 1) if WIDTH % (2 * phases) == 0)
"""Numbers of phases that leave an even number of channels in each."""
ROPE_BASE = 10_000.0
ROTATIONS = {
    "learned": "",
    "frozen": "angles stay where they start",
    "tied": "one angle for a block",
    "off": "no rotation of the stream",
}
"""What the rotation of the stream can be, and how it is said in a title."""
_KEPT = 1e-9  # relative: two multipliers that are one number in two notations


@dataclass(frozen=True)
class PhaseChoice:
    """Switches of a training; those of a published Three-Phase model by default.

    Attributes:
        num_phases: one of `DIVISORS`.
        rope_base: base of the rotary positions of queries and keys.
        rotation: of the stream, see `ROTATIONS`.
        horn: whether the mean over channels of the embedding becomes 1/(position + 1).
        theta_decay: whether weight decay acts on the learned angles, too.
        multiplier: whether the embedding is multiplied by √d, as in the published baseline.
        steps: number of updates.

    Raises:
        InputError: numbers that describe no model or no training.
    """

    num_phases: int = 3
    rope_base: float | int = ROPE_BASE
    rotation: str = "learned"
    horn: bool = True
    theta_decay: bool = True
    multiplier: bool = False
    steps: int = 200

    def __post_init__(self) -> None:
        if self.num_phases not in DIVISORS:
            shown = ", ".join(map(str, DIVISORS))
            raise InputError(f"{self.num_phases!r} phases of {WIDTH} channels", f"one of {shown}", "num_phases=3")
        if self.rotation not in ROTATIONS:
            raise InputError(f"The rotation is {self.rotation!r}", f"one of {', '.join(ROTATIONS)}", "rotation='learned'")
        if not (isinstance(self.rope_base, int | float) and 1 < self.rope_base < math.inf):
            raise InputError(f"The rotary base is {self.rope_base!r}", "a number above 1", f"rope_base={ROPE_BASE:.0f}")
        if not (isinstance(self.steps, int) and self.steps >= 1):
            raise InputError(f"{self.steps!r} steps", "a whole number of at least 1", "steps=200")

    def recipe(self, text: TextRecipe | None = None) -> PhaseRecipe:
        """The recipe; of the family's size, and with its text if no other is given."""
        model, undecayed = self._model(), self._undecayed()
        known = next((one for one in map(phase_recipe, FAMILY) if _same(one, model, undecayed)), None)
        if known is None:
            key = hashlib.sha256(json.dumps([model, undecayed]).encode()).hexdigest()[:8]
            training = replace(TRAINING, name=f"three-phase-choice-{key}", undecayed=undecayed)
            known = PhaseRecipe(training.name, self.title, {**SHAPE, **model}, training)
        chosen = replace(known, text=text or known.text)
        return chosen if self.steps == chosen.training.steps else chosen.shortened(self.steps)

    @property
    def title(self) -> str:
        """In words: what differs from the published model."""
        if self._plain:
            parts = ["RoPE only"]
        else:
            parts = [f"{self.num_phases} phase{'s' if self.num_phases > 1 else ''}", ROTATIONS[self.rotation]]
            parts += ["no horn"] * (not self.horn) + ["no decay of angles"] * bool(self._undecayed())
        parts += [f"RoPE base {self.rope_base:,.0f}"] * (self.rope_base != ROPE_BASE)
        return ", ".join(filter(None, parts)) + " × √d" * self.multiplier

    @property
    def _plain(self) -> bool:
        """One phase, not rotated and without a horn, is a Llama: norm of one phase is norm of the stream."""
        return self.num_phases == 1 and self.rotation == "off" and not self.horn

    def _model(self) -> dict[str, Any]:
        found: dict[str, Any] = {"num_phases": self.num_phases}
        if self._plain:
            found["phase_norm"] = False
        if self.rotation != "learned":
            found["phase_rotation"] = self.rotation
        if not self.horn:
            found["horn"] = "none"
        if self.multiplier:
            found["embedding_multiplier"] = math.sqrt(WIDTH)
        if self.rope_base != ROPE_BASE:
            found["rope_parameters"] = {"rope_type": "default", "rope_theta": float(self.rope_base)}
        return found

    def _undecayed(self) -> tuple[str, ...]:
        """Without learned angles there is nothing to spare."""
        return () if self.theta_decay or self.rotation not in ("learned", "tied") else ("theta",)


def _same(recipe: PhaseRecipe, model: dict[str, Any], undecayed: tuple[str, ...]) -> bool:
    wanted = {**SHAPE, **model}
    if recipe.model.keys() != wanted.keys() or tuple(recipe.training.undecayed) != undecayed:
        return False
    return all(_equal(recipe.model[name], value) for name, value in wanted.items())


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=_KEPT)
    return one == other
