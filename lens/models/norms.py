"""A norm as a map: what it takes away, what it multiplies by, what it adds. Found by asking the norm, not by its name."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from lens.base.errors import UnsupportedModelError

_SIZE = 64.0  # of the states that a norm is asked with; its epsilon is lost in their square


@dataclass(frozen=True, eq=False)
class NormMap:
    """`norm(x) = (x − mean of x, if centred) / length(x) · gain + shift`, with one positive length for each state.

    Attributes:
        gain: `[d]`; of Gemma's norms 1 + weight.
        shift: `[d]`, zero for RMS norms.
        centred: whether each state's mean over its dimensions is taken away (LayerNorm).
        unit: whether there is a length at all; False for the identity.
    """

    gain: Float64[np.ndarray, " d"]
    shift: Float64[np.ndarray, " d"]
    centred: bool
    unit: bool = True

    @staticmethod
    def identity(width: int) -> NormMap:
        return NormMap(np.ones(width), np.zeros(width), centred=False, unit=False)

    def fold(self, matrix: Float64[np.ndarray, "d some"]) -> Float64[np.ndarray, "d some"]:
        """A matrix that reads normed states, as one that reads the states before the norm, but for their length and the shift."""
        folded = self.gain[:, None] * matrix
        return folded - folded.mean(0) if self.centred else folded

    def apply_linear(self, rows: Float64[np.ndarray, "some d"]) -> Float64[np.ndarray, "some d"]:
        """Rows through the norm, but for their length and the shift."""
        return (rows - rows.mean(-1, keepdims=True) if self.centred else rows) * self.gain

    def length(self, rows: Float64[np.ndarray, "some d"]) -> Float64[np.ndarray, " some"]:
        """What the norm divides states by, but for its epsilon: the root of the mean of their squares; 1 where there is none."""
        if not self.unit:
            return np.ones(len(rows))
        kept = rows - rows.mean(-1, keepdims=True) if self.centred else rows
        return np.sqrt((kept**2).mean(-1))


def norm_map(norm: nn.Module, states: Tensor) -> NormMap:
    """Gain, shift and centring of a norm, proved on states that it was given.

    Args:
        norm: a module from states `[..., d]` to states `[..., d]`.
        states: `[..., d]`, real ones, in the dtype and on the device of the norm.

    Raises:
        UnsupportedModelError: a module that does anything else.
    """
    width = states.shape[-1]
    signs = torch.ones(width, dtype=states.dtype, device=states.device)
    signs[1::2] = -1
    rows = torch.stack([_SIZE * signs, -_SIZE * signs, _SIZE * (signs + 1)])[None]
    with torch.no_grad():
        up, down, moved = (row.to("cpu", torch.float64).numpy() for row in norm(rows)[0])
        real = norm(states).reshape(-1, width).to("cpu", torch.float64).numpy()
    asked = signs.to("cpu", torch.float64).numpy()
    eps = max(torch.finfo(states.dtype).eps, torch.finfo(torch.float32).eps)
    centred = bool(np.abs(moved - up).max() <= 64 * eps * np.abs(up).max())
    kept = asked - asked.mean() if centred else asked
    gain = (up - down) / 2 / kept * np.sqrt((kept**2).mean())
    shift = (up + down) / 2
    shift = np.where(np.abs(shift) <= 4 * eps * np.abs(up).max(), 0.0, shift)
    found = NormMap(gain, shift, centred)
    rows = states.reshape(-1, width).to("cpu", torch.float64).numpy()
    direction = found.apply_linear(rows)
    aimed = real - shift
    length = (aimed * direction).sum(-1, keepdims=True) / (direction**2).sum(-1, keepdims=True)
    if np.abs(length * direction - aimed).max() > 256 * eps * np.abs(real).max() or not (length > 0).all():
        raise UnsupportedModelError(
            f"{type(norm).__name__} is no division by a length with a gain and a shift",
            "an RMS norm or a LayerNorm",
            "another family",
        )
    return found
