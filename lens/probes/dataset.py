"""How every probe labels its result: dims, coordinates, units, and where it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

import numpy as np
import torch
import xarray as xr

from lens.base.provenance import library_versions
from lens.base.text import storable
from lens.models.run import Run


def variable(dims: tuple[str, ...], values: torch.Tensor | np.ndarray, long_name: str, units: str = "1") -> xr.Variable:
    """A labelled array; integers become int32 and floats float32, which is what is saved.

    Args:
        dims: names of the axes.
        values: a tensor on any device, or an array.
        long_name: what it is, in words.
        units: `nats`, `1` for pure numbers.
    """
    array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if array.dtype.kind in "iu":
        array = array.astype(np.int32)
    elif array.dtype.kind == "f":
        array = array.astype(np.float32)
    return xr.Variable(dims, array, {"long_name": long_name, "units": units})


def exact(dims: tuple[str, ...], values: np.ndarray | SupportsFloat, long_name: str, units: str = "1") -> xr.Variable:
    """A labelled array kept in float64, for numbers whose last digits matter (frequencies, bases)."""
    return xr.Variable(dims, np.asarray(values, dtype=np.float64), {"long_name": long_name, "units": units})


def texts(dims: tuple[str, ...], values: Any, long_name: str) -> xr.Variable:
    """A labelled array of token texts, as netCDF can hold them."""
    array = np.array(values, dtype=object)  # objects, because one long token would widen a fixed-width array everywhere
    array.ravel()[:] = [storable(text) for text in array.ravel()]
    return xr.Variable(dims, array, {"long_name": long_name})


def prompt_coordinates(run: Run, layers: Sequence[int] | None = None) -> dict[str, xr.Variable]:
    """Coordinates that every probe of one run shares; `layers` where not all were read."""
    shown = np.arange(run.residual.shape[0]) if layers is None else np.array(layers)
    return {
        "layer": variable(("layer",), shown, "residual state (0 is the embedding)"),
        "position": variable(("position",), np.arange(len(run)), "position in the prompt"),
        "input_id": variable(("position",), run.token_ids, "token id of the prompt"),
        "input_token": texts(("position",), run.tokens, "token of the prompt"),
    }


def provenance(run: Run, source: str, extra: Mapping[str, str | int | float] | None = None) -> dict[str, str | int | float]:
    """Attributes of a result: the paper it implements, the model, the prompt, the versions."""
    prompt = storable(run.text) if run.text is not None else ""
    return {"source": source, "prompt": prompt, "tokens": len(run), **run.model.provenance(), **(extra or {})}


def fit_provenance(source: Mapping[str, Any]) -> dict[str, str | int | float]:
    """Attributes that say what was fitted: the moments' or the training text's own, each name prefixed, and the versions."""
    return {**{f"fitted_{name}": value for name, value in source.items()}, **library_versions()}
