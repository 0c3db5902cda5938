"""States as signals over depth, and the decay of a layer's variances: exploratory, because depth is short and nothing repeats.

With 31 states the resolution is 1/31 cycles/layer, and each step of the way is made by another block: a peak is a hint to look
there, no frequency of the model.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.signal
import torch
import xarray as xr
from jaxtyping import Float, Float64
from torch import Tensor

from lens.base.errors import InputError
from lens.base.provenance import library_versions
from lens.models.run import Run
from lens.probes.dataset import exact, provenance, variable

SOURCE = "our own, exploratory"


def layer_spectrum(states: Run | Tensor, *, check: Callable[[], None] | None = None) -> xr.Dataset:
    """Power of every position's way through the layers, by cycles a layer.

    Each state is divided by its norm, because the stream grows through depth; then each neuron's linear trend over layers is
    taken away.

    Args:
        states: a run, or states `[layer, position, d]`; five layers or more.
        check: called before every position; raising from it stops the work.

    Returns:
        Dataset over `position` and `frequency` (cycles/layer, 0 to ½ at most, in steps of one over the number of states):

        - `power[position, frequency]`: summed over neurons; states that point to and fro between two sides have all of it at
          the highest frequency;
        - `share[frequency]`: of the sum over all positions but the first, and `white_share[frequency]`, its expectation for
          white noise through the same steps.

    Raises:
        InputError: fewer than five layers or two positions, or a state of zeros.
    """
    residual, facts = (states.residual, provenance(states, SOURCE)) if isinstance(states, Run) else (states, library_versions())
    if residual.ndim != 3 or len(residual) < 5 or residual.shape[1] < 2:
        found = f"States of shape {tuple(residual.shape)}"
        raise InputError(found, "[layer, position, d] with five layers or more and two positions", "a deeper model")
    power = []
    for position in range(residual.shape[1]):
        if check is not None:
            check()
        power.append(_power(_directions(residual[:, position])).sum(1))
    total = np.array(power)[1:].sum(0)
    white = _power(np.eye(len(residual))).sum(1)
    return xr.Dataset(
        {
            "power": exact(("position", "frequency"), np.array(power), "power of unit states over layers"),
            "share": exact(("frequency",), total / total.sum(), "share of the power of all positions but the first"),
            "white_share": exact(("frequency",), white / white.sum(), "share of white noise"),
        },
        {
            "position": variable(("position",), np.arange(residual.shape[1]), "position in the prompt"),
            "frequency": exact(("frequency",), np.fft.rfftfreq(len(residual)), "frequency", "cycles/layer"),
        },
        {**facts, "source": SOURCE, "probe": "layer_spectrum", "layers": len(residual)},
    )


def _directions(way: Float[Tensor, "layer d"]) -> Float64[np.ndarray, "layer d"]:
    values = way.detach().to("cpu", torch.float64).numpy()
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    if not (norms > 0).all():
        raise InputError(f"The state of layer {int(norms.argmin())} is zero", "states that have a direction", "another text")
    return values / norms


def _power(values: Float64[np.ndarray, "layer neuron"]) -> Float64[np.ndarray, "frequency neuron"]:
    size = len(values)
    found = np.abs(np.fft.rfft(scipy.signal.detrend(values, axis=0), axis=0)) ** 2 / size
    found[1 : (size + 1) // 2] *= 2  # bins that stand for their mirror images as well
    return found


def power_law(eigenvalues: xr.DataArray, *, first: int, last: int) -> xr.Dataset:
    """Straight line through ln(eigenvalue) over ln(rank), between two ranks that the caller chooses.

    Nearly any falling curve looks straight over a short range of ranks: compare several ranges before naming an exponent.

    Args:
        eigenvalues: over `component`, ranks from 1 in descending order, and `layer` where there are several; such as
            `lens.spectrum(moments).eigenvalue`.
        first, last: ranks, both counted in; three or more of them.

    Returns:
        Dataset over `layer`: `exponent` α of λ ∝ rank^−α, and `r_squared` of the line.

    Raises:
        InputError: ranks that are not there, fewer than three of them, or a vanishing eigenvalue among them.
    """
    size = eigenvalues.sizes["component"]
    if not 1 <= first <= last - 2 <= size - 2:
        raise InputError(f"Ranks {first} to {last}", f"three ranks or more within 1 to {size}", "first=10, last=100")
    chosen = eigenvalues.isel(component=slice(first - 1, last)).transpose(..., "component")
    values = np.asarray(chosen.to_numpy(), dtype=np.float64)
    if not (values > 0).all():
        raise InputError("An eigenvalue of the range is zero", "variance in every direction of the range", "a smaller last rank")
    x, y = np.log(np.arange(first, last + 1)), np.log(values)
    x = x - x.mean()
    centred = y - y.mean(-1, keepdims=True)
    slope = (centred * x).sum(-1) / (x**2).sum()
    rest, total = ((centred - slope[..., None] * x) ** 2).sum(-1), (centred**2).sum(-1)
    fitted = 1 - np.divide(rest, total, out=np.zeros_like(rest), where=total > 0)
    dims = tuple(str(dim) for dim in chosen.dims[:-1])
    return xr.Dataset(
        {
            "exponent": exact(dims, -slope, "exponent of the decay of eigenvalues over ranks"),
            "r_squared": exact(dims, fitted, "R² of the line"),
        },
        {name: value for name, value in chosen.coords.items() if "component" not in value.dims},
        {"source": SOURCE, "probe": "power_law", "first": first, "last": last, **library_versions()},
    )
