"""A lens for streams that rotate: a state is turned as far as the blocks ahead would turn it before the last layer reads it.

The plain lens reads a state of a Three-Phase model in the wrong basis, because every block still ahead rotates the whole
skip path. The missing turn is known exactly. Reading through it is what the plain lens does to the twin of the model
whose rotations were absorbed into its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lens.base.errors import InputError
from lens.models.model import Model
from lens.models.three_phase import stream_angles
from lens.models.three_phase.modeling import turn_phases


class TurnedLens:
    """Carries states to the last layer by the rotations of the blocks between, for `lens.logit_lens(run, …)`.

    Args:
        model: a Three-Phase model.

    Attributes:
        kind: `turned`.
        layers: all but the last.
        source: the model; nothing was fitted.

    Raises:
        UnsupportedModelError: no Three-Phase model, or one that adds the rotated stream instead of replacing the stream.
    """

    kind = "turned"

    def __init__(self, model: Model):
        self._model, angles = model, stream_angles(model.module)
        self._ahead = angles[-1] - angles
        self.layers = tuple(range(len(angles) - 1))
        self.source: Mapping[str, Any] = {"model": model.name}

    def require_model(self, model: Model) -> None:
        """Raise `InputError` for another model."""
        if model.module is not self._model.module:
            raise InputError(f"A lens of {self._model.name}", f"one of {model.name}", "TurnedLens(model)")

    def translate(self, layer: int, states: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """States of `layer` as the rotations ahead leave them, in the given dtype and on the given device."""
        return turn_phases(states, self._ahead[layer].to(states.device))
