"""What each block does to the stream as a linear map: how far it turns, stretches, and leaves unexplained.

The fitted map of a block is split into a rotation and a stretch (polar decomposition), and the angles
are followed over depth: how far states turn from block to block against how far they have come.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from lens.base.errors import InputError
from lens.moments import Moments, Pair
from lens.probes.dataset import fit_provenance, texts, variable
from lens.probes.procrustes import (
    energy_angle,
    ladder,
    ladder_null,
    orthogonal_map,
    polar,
    require_more_tokens_than_width,
    rotation_angles,
    selected_pairs,
)
from lens.probes.shortcuts import solve_ridge
from lens.probes.spectrum import component_coordinate

SOURCE = "Higham, 'Computing the polar decomposition', SIAM J. Sci. Stat. Comput. 7 (1986); Schönemann 1966 (energy angle)"
PARTS = ("scale", "rotation", "stretch", "rest")


def rotation(train: Moments, test: Moments, *, ridge: float = 1e-4) -> xr.Dataset:
    """Rotation, stretch and noise of every block, and the drift of the rotation over depth.

    A block's map `h[b+1] − μ ≈ (h[b] − μ) A` is split as `A = W P`: W orthogonal, P a symmetric stretch.
    The angles of W count every direction alike, also those of hardly any variance, where it is badly
    determined; the energy angle, of the best rotation for the states themselves, counts them by energy.

    Args:
        train, test: moments with the adjacent pairs, of documents that do not overlap. Pairs from layer 0
            or to the last layer add the direct angles (`pairs="both"` has the latter, `"all"` both).
        ridge: penalty of the map, as a share of the mean variance.

    Returns:
        Dataset over `block` (block b leads from layer b to b+1) and `layer`; angles in degrees:

        - `share[block, part]`: held-out shares of the output's variance, adding up to 1: `scale` is what
          the state itself explains, shifted and scaled; `rotation` and `stretch` what the best rotation, then any
          matrix, explains beyond that; `rest` what no linear map does. Any but the last may be below 0;
        - `null_share`: the same where targets belong to other tokens;
        - `energy_angle[block]`: `arccos(tr(Q·Sxx)/tr Sxx)` of the Procrustes rotation; `energy_angle_noise`: the same
          between the rotations fitted on `train` and on `test`;
        - `principal_angle[block, component]`: angles of W, largest first; `mean_angle[block]`: their mean, 90 for
          a random rotation; `determinant[block]`: −1 where one of them is a reflection's 180;
        - `stretch[block, component]`: singular values of A, which are those of P, largest first;
        - `path_from_first[layer]`, `path_to_last[layer]`: energy angles of the blocks between, added up, and
          `direct_from_first`, `direct_to_last`: energy angle of the direct pair. NaN where a pair is missing.
          A path can exceed 180°: turns in different planes add to it and partly undo each other.

    Cost: four decompositions `[d, d]` per block and one per further pair from layer 0 or to the last one.

    Raises:
        InputError: no adjacent pairs, no more training tokens than the stream is wide, or states that do not vary.
    """
    adjacent = [pair for pair in train.pairs if pair[1] == pair[0] + 1]
    if not adjacent:
        raise InputError("The moments lack adjacent pairs", "them in both parts", "collect_moments(pairs='adjacent' or 'both')")
    selected_pairs(adjacent, train, test)
    require_more_tokens_than_width(train)
    rows = [_block_row(train, test, pair, ridge) for pair in adjacent]
    last = len(train.mean) - 1
    angles = {pair: float(row["energy_angle"]) for pair, row in zip(adjacent, rows, strict=True)}
    drift = _drift(angles | _far_angles(train, last), last)
    facts = {"source": SOURCE, "probe": "rotation", "ridge": ridge}
    return xr.Dataset(
        {
            name: variable(dims, np.stack([row[name] for row in rows]), label, units)
            for name, (dims, label, units) in _LABELS.items()
        }
        | {name: variable(("layer",), drift[name], label, "degrees") for name, label in _DRIFT.items()},
        coords={
            "block": variable(("block",), np.array([i for i, _ in adjacent]), "block, from layer b to b+1"),
            "part": texts(("part",), list(PARTS), "part of the output's variance"),
            "component": component_coordinate(train.width),
            "layer": variable(("layer",), np.arange(last + 1), "residual state (0 is the embedding)"),
        },
        attrs={**facts, "tokens_fitted": train.count, "tokens_scored": test.count, **fit_provenance(train.source)},
    )


_LABELS = {
    "share": (("block", "part"), "held-out share of variance", "1"),
    "null_share": (("block", "part"), "share where targets belong to other tokens", "1"),
    "energy_angle": (("block",), "angle by which the best rotation turns states, by energy", "degrees"),
    "energy_angle_noise": (("block",), "angle between rotations fitted on the two texts, by energy", "degrees"),
    "principal_angle": (("block", "component"), "angle of the map's orthogonal part", "degrees"),
    "mean_angle": (("block",), "mean angle of the map's orthogonal part", "degrees"),
    "determinant": (("block",), "determinant of the map's orthogonal part, −1 with a reflection", "1"),
    "stretch": (("block", "component"), "singular value of the map", "1"),
}
_DRIFT = {
    "path_from_first": "energy angles of the blocks from the embedding to here, added up",
    "direct_from_first": "energy angle from the embedding to here",
    "path_to_last": "energy angles of the blocks from here to the last layer, added up",
    "direct_to_last": "energy angle from here to the last layer",
}


def _block_row(train: Moments, test: Moments, pair: Pair, ridge: float) -> dict[str, np.ndarray]:
    """One block's values, by the names of `_LABELS`."""
    i, j = pair
    fitted, again = (orthogonal_map(m.within[i], m.across[pair], m.within[j]) for m in (train, test))
    turn, stretch = polar(solve_ridge(train.within[i], train.across[pair], ridge))
    angles = rotation_angles(turn)
    found = {
        "share": _shares(ladder(train, test, pair, fitted, ridge)),
        "null_share": _shares(ladder_null(train, test, pair)),
        "energy_angle": energy_angle(fitted.rotation, train.within[i]),
        "energy_angle_noise": energy_angle(fitted.rotation @ again.rotation.T, train.within[i]),
        "principal_angle": angles,
        "mean_angle": angles.mean(),
        "determinant": torch.linalg.slogdet(turn).sign.int(),
        "stretch": stretch,
    }
    return {name: np.asarray(value) for name, value in found.items()}


def _shares(scores: Float[Tensor, " step"]) -> Float[Tensor, " part"]:
    """What each of the last three steps of a ladder adds to the one before, and what the last one leaves."""
    scale, turned, linear = scores[2:]
    return torch.stack([scale, turned - scale, linear - turned, 1 - linear])


def _far_angles(moments: Moments, last: int) -> dict[Pair, float]:
    """Energy angles of the pairs from layer 0 and to the last one that skip layers."""
    far = [(i, j) for i, j in moments.pairs if j > i + 1 and (i == 0 or j == last)]
    blocks = {(i, j): (moments.within[i], moments.across[i, j], moments.within[j]) for i, j in far}
    return {pair: energy_angle(orthogonal_map(*found).rotation, found[0]) for pair, found in blocks.items()}


def _drift(angles: Mapping[Pair, float], last: int) -> dict[str, np.ndarray]:
    """Paths and direct angles of all layers, by the names of `_DRIFT`, from the energy angles of pairs."""
    steps = np.array([angles.get((i, i + 1), np.nan) for i in range(last)])
    return {
        "path_from_first": np.concatenate([[0.0], steps.cumsum()]),
        "direct_from_first": np.array([0.0, *(angles.get((0, j), np.nan) for j in range(1, last + 1))]),
        "path_to_last": np.concatenate([steps[::-1].cumsum()[::-1], [0.0]]),
        "direct_to_last": np.array([*(angles.get((i, last), np.nan) for i in range(last)), 0.0]),
    }
