"""A rotary frequency table beside the plain one of its base: lanes, kernels, and where every lane points at a position."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.base.provenance import library_versions
from lens.models.frequencies import RopeTable, rope_table
from lens.models.frequency_kinds import FORMULAS
from lens.probes.dataset import exact, texts, variable
from lens.probes.rope import FREQUENCIES, KERNEL, Lanes, frequencies_of, kernel_values

POINTS = 240  # runs of offsets in a picture


def compare_rope(
    kind: str = "default",
    *,
    base: float | int = 10_000.0,
    width: int = 128,
    context: int = 4096,
    **parameters: Any,
) -> xr.Dataset:
    """The lanes of a rotary table, and its kernel over the context, beside the default table of the same base.

    Args:
        kind, base, width, context, parameters: as in `rope_frequencies`. What a kind needs as a list and was not given is
            put in by `stand_ins`.

    Returns:
        Dataset over `table` (`default` and the kind; one entry for `default` alone), `lane` and `offset` (the first of each
        run), all of it float64:

        - `theta` (radians/token), `wavelength` (tokens), `turns` over the context, `band` for both tables;
        - `treatment` of the kind's lanes, and `attention_factor` of both;
        - `low` and `high`, extremes of the kernel `Σ cos θ_iδ` (lanes) in each of at most 240 runs of offsets, and `last`, the
          run's last offset;
        - `first_negative`, the first offset at which the kernel is below zero, NaN where there is none;
        - `slowest_wavelength` of the lanes that turn, tokens.

        The attributes `stand_ins` names the parameters that were put in, and `parameter_…` hold the others. At 128
        dimensions and 131,072 tokens 10 ms.

    Raises:
        InputError: as `rope_frequencies`.
    """
    added = stand_ins(kind, base, width, parameters)
    chosen = rope_table(kind, base, width, **parameters, **added)
    tables = {"default": rope_table("default", base, chosen.width)} | ({kind: chosen} if kind != "default" else {})
    lanes = [frequencies_of(table, context) for table in tables.values()]
    starts = np.arange(0, context + 1, -(-(context + 1) // POINTS))
    kernels = [_kernel(table, context, starts) for table in tables.values()]
    given = {f"parameter_{name}": value for name, value in parameters.items() if isinstance(value, str | int | float)}
    attrs = {"source": f"{FREQUENCIES}; {KERNEL}", "probe": "compare_rope", "kind": kind, "base": float(base),
             "width": int(chosen.width), "context": int(context), "stand_ins": ", ".join(added)}  # fmt: skip
    return xr.Dataset(
        {
            **{name: _stacked(lanes, name) for name in ("theta", "wavelength", "turns", "band", "attention_factor")},
            "slowest_wavelength": _each([_slowest(table) for table in tables.values()], "longest wavelength of a turning lane"),
            "treatment": texts(("lane",), list(chosen.treatment), "what the kind does to the lane"),
            "low": exact(("table", "offset"), np.stack([low for low, _, _ in kernels]), "least of the run", "lanes"),
            "high": exact(("table", "offset"), np.stack([high for _, high, _ in kernels]), "greatest of the run", "lanes"),
            "last": variable(("offset",), np.append(starts[1:] - 1, context), "last offset of the run", "tokens"),
            "first_negative": _each([below for _, _, below in kernels], "first offset at which the kernel is below zero"),
        },
        coords={
            "table": texts(("table",), list(tables), "frequency table"),
            "lane": lanes[0].lane.variable,
            "offset": variable(("offset",), starts, "first offset of the run", "tokens"),
        },
        attrs={**attrs, **given, **library_versions()},
    )


def stand_ins(kind: str, base: float | int, width: int, parameters: dict[str, Any]) -> dict[str, Any]:
    """Lists that a kind needs and that were not given, so that every kind can be looked at.

    LongRoPE's factors are found by a search for each model; here they are 1 within the original length, and beyond it grow
    geometrically from lane to lane up to `factor`. An explicit table gets the default's frequencies.
    """
    if kind not in FORMULAS:
        raise InputError(f"The kind of rotary table is {kind!r}", f"one of {', '.join(FORMULAS)}", "kind='default'")
    lanes = width // 2
    growing = np.geomspace(1.0, parameters.get("factor", 1.0), lanes)
    offered = {"longrope": {"short_factor": np.ones(lanes), "long_factor": growing},
               "explicit": {"theta": rope_table("default", base, width).theta}}  # fmt: skip
    return {name: values for name, values in offered.get(kind, {}).items() if parameters.get(name) is None}


def phases(theta: Lanes, position: int) -> xr.Dataset:
    """Where every lane of a key points at a position, if all of them begin at angle 0.

    Returns:
        Dataset over `lane` with `angle` (radians, within a turn), and the scalars `mean_real` and `mean_imaginary`, the mean
        of the lanes as unit vectors; `mean_real` times the lanes is the kernel at this offset.

    Raises:
        InputError: a position below zero.
    """
    if position < 0:
        raise InputError(f"The position is {position}", "0 or more", "position=100")
    turned = np.exp(1j * (position * np.asarray(theta, dtype=np.float64)))
    mean = turned.mean()
    return xr.Dataset(
        {
            "angle": exact(("lane",), np.angle(turned) % (2 * np.pi), "angle at the position", "radians"),
            "mean_real": exact((), mean.real, "mean of the lanes' cosines"),
            "mean_imaginary": exact((), mean.imag, "mean of the lanes' sines"),
        },
        coords={"lane": variable(("lane",), np.arange(len(theta)), "rotary lane, the fastest first")},
        attrs={"source": FREQUENCIES, "probe": "phases", "position": int(position), **library_versions()},
    )


def _stacked(each: list[xr.Dataset], name: str) -> xr.Variable:
    # By hand: xarray's own concat takes longer than all else together, and a slider waits for it.
    first = each[0][name].variable
    return xr.Variable(("table", *first.dims), np.stack([one[name].to_numpy() for one in each]), first.attrs)


def _each(values: list[float], long_name: str) -> xr.Variable:
    return exact(("table",), np.array(values), long_name, "tokens")


def _slowest(table: RopeTable) -> float:
    turning = table.wavelength[np.isfinite(table.wavelength)]
    return float(turning.max()) if turning.size else np.nan


def _kernel(table: RopeTable, context: int, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Least and greatest value of the kernel in each run of offsets, and the first offset at which it is below zero."""
    # Not through `rope_kernel`: an index over a million offsets takes as long as the kernel, and a slider waits for it.
    values = kernel_values(table.theta, context + 1)
    first = int(np.argmax(values < 0))
    return np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts), float(first) if values[first] < 0 else np.nan
