"""How far the learned angles of a Three-Phase model moved in training: one turn of a whole block, or each pair its own.

Decoupled weight decay shrinks an angle in proportion to where it started, with no gradient at all. So a drift that
grows with depth is no finding before the drift that decay alone would give stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import xarray as xr

from lens.base.errors import InputError, UnsupportedModelError
from lens.base.provenance import library_versions
from lens.models.model import Model
from lens.models.three_phase import ThreePhaseForCausalLM
from lens.models.three_phase.transport import layers
from lens.probes.dataset import exact, variable

SOURCE = "Abu Ayyash, arXiv 2604.14430, sections 4.11, 5.7 and figures 9 and 12; mean, spread and decay: our own"

# Mean angle of each block before and after training, and the norm of the drift over its 128 pairs (N = 3, seed 42).
PUBLISHED = (
    (0.131, 0.178, 0.541), (0.262, 0.282, 0.238), (0.393, 0.397, 0.069), (0.524, 0.515, 0.112), (0.654, 0.635, 0.232),
    (0.785, 0.755, 0.348), (0.916, 0.877, 0.446), (1.047, 0.977, 0.799), (1.178, 1.095, 0.943), (1.309, 1.222, 0.994),
    (1.440, 1.327, 1.279), (1.571, 1.409, 1.833),
)  # fmt: skip
PUBLISHED_PAIRS = 128


def theta_drift(
    theta: Model | np.ndarray | Sequence[Sequence[float]], initial: Sequence[float] | None = None, *, decayed: float = 1.0
) -> xr.Dataset:
    """Drift of every angle from its start, and what of it a whole block shares.

    Args:
        theta: a Three-Phase model, or angles `[block, pair]` or `[step, block, pair]`, radians.
        initial: angle that all pairs of each block started from; by default the model's configuration's, or
            `(block + 1) π / (2 · blocks)`.
        decayed: what weight decay alone would have left of an angle of one, from `decay_factor`; 1 without decay.

    Returns:
        Dataset over `block` and `pair`, and `step` where angles have one; radians:

        - `theta`, `drift`: angle, and angle less its start; `initial[block]`: that start;
        - `norm[block]`: root of the sum of squared drifts over pairs, the published measure, which grows with the root of the
          number of pairs; `rms`: root of their mean, which does not;
        - `mean_drift`: over pairs; `spread`: root mean square of the drifts around it, so that rms² = mean_drift² + spread²;
        - `largest`: largest drift of a pair, without its sign; `ratio`: mean angle over its start;
        - `decay_drift[block]`: the mean drift that weight decay alone would give.

    Raises:
        UnsupportedModelError: no Three-Phase model, or one without angles. InputError: angles that are no such array.
    """
    angles = _angles_of(theta) if isinstance(theta, Model) else np.asarray(theta, dtype=np.float64)
    if angles.ndim not in (2, 3) or not angles.size or not np.isfinite(angles).all():
        raise InputError(f"Angles of shape {angles.shape}", "finite ones, [block, pair] or [step, block, pair]", "a model")
    start = _initial_of(theta, initial, angles.shape[-2])
    drift = angles - start[:, None]
    mean = drift.mean(-1)
    dims = ("step", "block")[3 - angles.ndim :]
    found = {
        "theta": exact((*dims, "pair"), angles, "angle", "radian"),
        "drift": exact((*dims, "pair"), drift, "angle less its start", "radian"),
        "initial": exact(("block",), start, "angle that all pairs started from", "radian"),
        "norm": exact(dims, np.linalg.norm(drift, axis=-1), "norm of the drift over pairs", "radian"),
        "rms": exact(dims, np.sqrt((drift**2).mean(-1)), "root mean square of the drift", "radian"),
        "mean_drift": exact(dims, mean, "mean drift of a block", "radian"),
        "spread": exact(dims, drift.std(-1), "root mean square of the drift around its mean", "radian"),
        "largest": exact(dims, np.abs(drift).max(-1), "largest drift of a pair, without its sign", "radian"),
        "ratio": exact(dims, _ratio(angles.mean(-1), start), "mean angle over its start"),
        "decay_drift": exact(("block",), start * (decayed - 1), "drift by weight decay alone", "radian"),
    }
    coordinates = {
        name: variable((name,), np.arange(size), name) for name, size in zip((*dims, "pair"), angles.shape, strict=True)
    }
    named = theta.provenance() if isinstance(theta, Model) else library_versions()
    return xr.Dataset(found, coordinates, {"source": SOURCE, "probe": "theta_drift", "decayed": decayed, **named})


def _angles_of(model: Model) -> np.ndarray:
    module = model.module
    if not isinstance(module, ThreePhaseForCausalLM):
        raise UnsupportedModelError(f"{model.name} has no learned angles", "a Three-Phase model", "another model")
    rotations = [layer.phase_rotation for layer in layers(module)]
    if any(rotation is None for rotation in rotations):
        found = f"{model.name} has no rotation"
        raise UnsupportedModelError(found, "a Three-Phase model with angles", "phase_rotation='learned'")
    return np.stack([rotation.theta.detach().cpu().double().numpy() for rotation in rotations if rotation is not None])


def _initial_of(theta: object, initial: Sequence[float] | None, blocks: int) -> np.ndarray:
    if initial is None and isinstance(theta, Model):
        starts = torch.tensor([theta.module.config.angle_of(block) for block in range(blocks)], dtype=torch.float32)
        return starts.double().numpy()  # as the angles were when they were made
    start = (np.arange(blocks) + 1) * math.pi / (2 * blocks) if initial is None else np.asarray(initial, dtype=np.float64)
    if start.shape != (blocks,):
        raise InputError(f"{start.size} initial angles", f"{blocks}, one for each block", "initial=None")
    return start


def _ratio(mean: np.ndarray, start: np.ndarray) -> np.ndarray:
    """NaN where a block started from zero."""
    return mean / np.where(start == 0, np.nan, start)


def published_drift() -> xr.Dataset:
    """The published drift of the model of 123 million parameters (three phases, seed 42), from its rounded table.

    Returns:
        Dataset over `block`, radians, as `theta_drift` names them: `initial`, `mean_theta`, `norm`, and from these
        `mean_drift` and `rms`.
    """
    initial, final, norm = np.array(PUBLISHED).T
    found = {
        "initial": exact(("block",), initial, "angle that all pairs started from", "radian"),
        "mean_theta": exact(("block",), final, "mean angle after training", "radian"),
        "norm": exact(("block",), norm, "norm of the drift over pairs", "radian"),
        "mean_drift": exact(("block",), final - initial, "mean drift of a block", "radian"),
        "rms": exact(("block",), norm / math.sqrt(PUBLISHED_PAIRS), "root mean square of the drift", "radian"),
    }
    places = {"block": variable(("block",), np.arange(len(initial)), "block")}
    source = "Abu Ayyash, arXiv 2604.14430, table of section 4.11"
    return xr.Dataset(found, places, {"source": source, "probe": "published_drift", "seed": 42, "phases": 3})


def decay_factor(rates: Iterable[float], weight_decay: float) -> float:
    """What decoupled weight decay alone leaves of a parameter of one: the product of `1 − rate · weight_decay` over steps.

    Args:
        rates: learning rate of every step.
        weight_decay: AdamW's.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", arXiv 1711.05101, algorithm 2.
    """
    return math.exp(math.fsum(math.log1p(-rate * weight_decay) for rate in rates))


def published_rate(step: int, *, steps: int = 30_000, warm_up: int = 500, peak: float = 3e-4, floor: float = 0.1) -> float:
    """Learning rate of the published runs: a linear rise from 0, then half a cosine down to a share of the peak.

    Args:
        step: from 0; the last one is `steps − 1`.
        steps, warm_up, peak: of the run.
        floor: share of the peak that the cosine ends at.
    """
    if step < warm_up:
        return peak * step / warm_up
    done = (step - warm_up) / (steps - warm_up)
    return peak * (floor + (1 - floor) / 2 * (1 + math.cos(math.pi * done)))
