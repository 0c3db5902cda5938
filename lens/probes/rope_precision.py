"""What finite precision does to rotary angles: errors of the lanes, and positions that become one.

The claim that motivates it is the precision wall (arXiv 2602.10959): with a base above the inverse of the machine epsilon,
neighbouring positions are said to become indistinguishable. The sine of a tiny angle keeps its relative precision, so they
do not; what suffers is the fast lanes at large positions, and any path that rounds the positions themselves.
"""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from lens.base.errors import InputError
from lens.base.provenance import library_versions
from lens.models.frequencies import rope_table
from lens.probes.dataset import exact, variable

SOURCE = "our own measurement; the claim: arXiv 2602.10959 (precision bound)"
PATHS = ("float32 angles", "rounded frequencies", "bfloat16 tables", "bfloat16 positions", "running product")
MOST_POSITIONS = 1 << 22


def rope_precision(
    base: float = 10_000.0,
    width: int = 128,
    positions: int | Int[np.ndarray, " position"] = 4096,
    path: str = "float32 angles",
) -> xr.Dataset:
    """Rotary tables as they come out in low precision, against float64.

    Args:
        base: of the default frequencies.
        width: rotary dimensions of a head.
        positions: how many from 0, or the positions themselves, increasing.
        path: how cosines and sines are made:

            - `float32 angles`: frequencies and angles in float32, as libraries do;
            - `rounded frequencies`: frequencies in float64, rounded once, then the same;
            - `bfloat16 tables`: as `float32 angles`, cosines and sines cast to bfloat16;
            - `bfloat16 positions`: as `float32 angles`, but the positions are cast to bfloat16 first;
            - `running product`: as `float32 angles`, but every frequency is the one before times `base^(−2/width)`.

    Returns:
        Dataset over `lane`: `angle_error` (radians; largest over the positions, before cosine and sine), `table_error` (largest
        of cosine and sine), `adjacent_collisions` (pairs of neighbouring positions with the same cosine and sine, bit for
        bit), `last_collides` (whether the last such pair is one); and the scalar `distinct_positions`, how many different
        rows the table has. Memory: 170 bytes a position. Cost: five seconds for a million positions of 64 lanes.

    Raises:
        InputError: an unknown path, or positions that are none, too many or do not increase.
    """
    if path not in PATHS:
        raise InputError(f"The path is {path!r}", f"one of {', '.join(PATHS)}", "path='float32 angles'")
    places = _places(positions)
    truth, turns = rope_table("default", float(base), width).theta, _frequencies(float(base), width, path)
    seen = torch.from_numpy(places)
    seen = seen.bfloat16().float() if path == "bfloat16 positions" else seen.float()
    groups, rows = np.zeros(len(places), dtype=np.int64), []
    for theta, turn in zip(truth, turns, strict=True):
        angles = seen * turn
        cosine, sine = _table(angles, path)
        true = places * theta
        off = max(_largest_gap(cosine, np.cos(true)), _largest_gap(sine, np.sin(true)))
        same = ((cosine[1:] == cosine[:-1]) & (sine[1:] == sine[:-1])).numpy()
        rows.append((_largest_gap(angles, true), off, int(same.sum()), bool(same[-1:].any())))
        groups = _refined(groups, cosine, sine)
    errors, table_errors, collisions, last = (np.array(column) for column in zip(*rows, strict=True))
    facts = {"path": path, "base": float(base), "width": width, "positions": len(places), "last_position": int(places[-1])}
    return xr.Dataset(
        {
            "angle_error": exact(("lane",), errors, "largest error of the angle", "radians"),
            "table_error": exact(("lane",), table_errors, "largest error of cosine and sine"),
            "adjacent_collisions": variable(("lane",), collisions, "neighbouring positions with the same cosine and sine"),
            "last_collides": variable(("lane",), last, "whether the last two positions have the same cosine and sine"),
            "distinct_positions": variable((), np.array(groups.max() + 1), "positions that differ in some lane"),
        },
        coords={"lane": variable(("lane",), np.arange(len(truth)), "rotary lane, the fastest first")},
        attrs={"source": SOURCE, "probe": "rope_precision", **facts, **library_versions()},
    )


def _frequencies(base: float, width: int, path: str) -> Float[Tensor, " lane"]:
    """In float32, by the operations that the path stands for."""
    exponents = torch.arange(0, width, 2, dtype=torch.int64).float() / width
    if path == "rounded frequencies":
        return torch.from_numpy(base ** -(np.arange(0, width, 2) / width)).float()
    if path == "running product":
        ratio = torch.tensor(base, dtype=torch.float32) ** (-2 / width)
        return torch.cumprod(torch.cat([torch.ones(1), ratio.expand(width // 2 - 1)]), 0)
    return 1.0 / (base**exponents)


def _table(angles: Float[Tensor, " position"], path: str) -> tuple[Tensor, Tensor]:
    cosine, sine = angles.cos(), angles.sin()
    if path != "bfloat16 tables":
        return cosine, sine
    return cosine.bfloat16().float(), sine.bfloat16().float()  # every bfloat16 is a float32, so that nothing else changes


def _largest_gap(found: Float[Tensor, " position"], true: Float[np.ndarray, " position"]) -> float:
    return float(np.abs(found.double().numpy() - true).max())


def _refined(groups: Int[np.ndarray, " position"], cosine: Tensor, sine: Tensor) -> Int[np.ndarray, " position"]:
    """Groups of positions that agree in one lane more; what differs once need not be looked at again."""
    if groups.max() + 1 == len(groups):
        return groups
    bits = np.stack([groups, *(part.numpy().view(np.int32).astype(np.int64) for part in (cosine, sine))])
    order = np.lexsort(bits)
    new = (np.diff(bits[:, order], axis=1) != 0).any(axis=0)
    refined = np.empty_like(groups)
    refined[order] = np.concatenate([[0], np.cumsum(new)])
    return refined


def _places(positions: int | Int[np.ndarray, " position"]) -> Int[np.ndarray, " position"]:
    if isinstance(positions, int):
        positions = np.arange(positions if 0 <= positions <= MOST_POSITIONS else 0)
    places = positions.astype(np.int64)
    if not 0 < len(places) <= MOST_POSITIONS or (np.diff(places) <= 0).any() or places[0] < 0:
        needed = f"1 to {MOST_POSITIONS:,} of them, increasing from 0 or more"
        raise InputError(f"There are {len(places)} positions, or they do not increase", needed, "positions=4096")
    return places
