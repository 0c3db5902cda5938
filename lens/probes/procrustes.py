"""From one layer to another: shift, scaling, rotation or deformation, and by how many degrees.

The orthogonal map is the true Procrustes solution, from the singular vectors of the cross moment:
Schönemann, "A generalized solution of the orthogonal Procrustes problem", Psychometrika 31 (1966). What
arXiv 2405.12250 calls Procrustes similarity is unconstrained least squares; that one is `linearity`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from lens.base.errors import InputError
from lens.moments import Moments, Pair
from lens.probes.dataset import fit_provenance, texts, variable
from lens.probes.shortcuts import AffineMap, held_out_null, solve_ridge, squared_error
from lens.probes.spectrum import component_coordinate, principal_axes, require_variation

SOURCE = (
    "Schönemann 1966 (rotation and scale); Björck and Golub, Math. Comp. 27 (1973) (principal angles); "
    "arXiv 2405.12250, section 3 (its linearity score is the ladder's last step, in sample)"
)
STEPS = ("identity", "shift", "scale", "rotation", "linear")
Subspace = int | float | None


@dataclass(frozen=True)
class OrthogonalMap:
    """`y − μy ≈ scale · (x − μx) · rotation`, best in the mean square; rotation may hold a reflection.

    Attributes:
        rotation: orthogonal.
        scale: the factor that goes with it.
        similarity: ρ, from 0 to 1; its square is the in-sample R².
    """

    rotation: Float[Tensor, "d d"]
    scale: float
    similarity: float

    @property
    def determinant(self) -> int:
        """1, or −1 where one of the rotation's angles is a reflection's 180°."""
        return int(torch.linalg.slogdet(self.rotation).sign.item())


def polar(matrix: Float[Tensor, "d d"]) -> tuple[Float[Tensor, "d d"], Float[Tensor, " d"]]:
    """Orthogonal factor W of `matrix = W P`, P symmetric, and the singular values, largest first.

    W is also the orthogonal matrix nearest to `matrix`. Where the matrix has no rank, W is not determined
    by it; there the one that turns least is taken.
    """
    left, values, right = torch.linalg.svd(matrix)
    rank = int((values > 1e-12 * values[0]).sum())
    orthogonal = left[:, :rank] @ right[:rank]
    if rank < len(values):
        u, _, v = torch.linalg.svd(left[:, rank:].T @ right[rank:].T)
        orthogonal = orthogonal + left[:, rank:] @ (u @ v) @ right[rank:]
    return orthogonal, values


def orthogonal_map(
    within_from: Float[Tensor, "d d"], across: Float[Tensor, "d d"], within_to: Float[Tensor, "d d"]
) -> OrthogonalMap:
    """Procrustes solution from centred second moments of states with any variance, in their dtype."""
    rotation, values = polar(across)
    before, after = within_from.trace(), within_to.trace()
    return OrthogonalMap(rotation, float(values.sum() / before), float(values.sum() / (before * after).sqrt()))


def energy_angle(rotation: Float[Tensor, "d d"], within: Float[Tensor, "d d"]) -> float:
    """`arccos(tr(Q·Sxx) / tr(Sxx))` in degrees: the mean cosine by which Q turns centred states, weighted by their energy."""
    cosine = float((rotation * within).sum() / within.trace())
    return math.degrees(math.acos(max(-1.0, min(1.0, cosine))))


def rotation_angles(rotation: Float[Tensor, "d d"]) -> Float[Tensor, " d"]:
    """Degrees from 0 to 180, largest first, one per eigenvalue `e^{±iθ}` of an orthogonal matrix."""
    # Cosines alone lose half the digits near 0. The symmetric part's eigenvectors span the planes, and
    # the antisymmetric part stretches each of them by its sine.
    cosines, planes = torch.linalg.eigh((rotation + rotation.T) / 2)
    sines = ((rotation - rotation.T) / 2 @ planes).norm(dim=0)
    return torch.rad2deg(torch.atan2(sines, cosines)).sort(descending=True).values


def similarity_null(tokens: int, width: int) -> float:
    """Expected ρ of independent isotropic Gaussian states, `8/(3π) · √(d/n)`; uneven spectra have a lower one."""
    return min(1.0, 8 / (3 * math.pi) * math.sqrt(width / tokens))


def ladder(train: Moments, test: Moments, pair: Pair, fitted: OrthogonalMap, ridge: float) -> Float[Tensor, " step"]:
    """Held-out R², pooled over coordinates, of ever freer maps, in the order of `STEPS`; fitted on `train`.

    Args:
        train, test: moments with that pair.
        pair: from and to layer.
        fitted: the pair's Procrustes solution on `train`.
        ridge: penalty of the linear step, as in `fit_shortcuts`.
    """
    i, j = pair
    unit, origin = torch.eye(train.width, dtype=torch.float64), torch.zeros(train.width, dtype=torch.float64)
    matrices = (
        unit,
        train.across[pair].trace() / train.within[i].trace() * unit,
        fitted.scale * fitted.rotation,
        solve_ridge(train.within[i], train.across[pair], ridge),
    )
    maps = [AffineMap(unit, origin, origin), *(AffineMap(matrix, train.mean[i], train.mean[j]) for matrix in matrices)]
    return torch.tensor([_explained(step, test, pair, test.across[pair]) for step in maps], dtype=torch.float64)


def ladder_null(train: Moments, test: Moments, pair: Pair) -> Float[Tensor, " step"]:
    """What the ladder's steps score where target states belong to other tokens.

    The first three are means over all ways of dealing the targets out, the third to order 1/n; the last
    two are expectations for independent Gaussian states, for the rotation isotropic ones.
    """
    i, j = pair
    unit, origin = torch.eye(train.width, dtype=torch.float64), torch.zeros(train.width, dtype=torch.float64)
    maps = [AffineMap(unit, origin, origin), *(AffineMap(m, train.mean[i], train.mean[j]) for m in (unit, 0 * unit))]
    dealt = [_explained(step, test, pair, 0 * unit) for step in maps]
    fitted = [-(similarity_null(train.count, train.width) ** 2), held_out_null(train.count, train.width)]
    return torch.tensor([*dealt, *fitted], dtype=torch.float64)


def _explained(step: AffineMap, test: Moments, pair: Pair, across: Float[Tensor, "d d"]) -> float:
    i, j = pair
    offset = (test.mean[j] - step.mean_to) - (test.mean[i] - step.mean_from) @ step.matrix
    total = test.within[j].diagonal()
    error = squared_error(test.within[i], across, total, step.matrix).sum() + test.count * offset.square().sum()
    return float(1 - error / total.sum())


def procrustes(
    train: Moments,
    test: Moments,
    *,
    pairs: Sequence[Pair] | None = None,
    subspaces: Sequence[Subspace] = (10, 50, 0.9, None),
    ridge: float = 1e-4,
) -> xr.Dataset:
    """Rotation, scale and deformation between pairs of layers, fitted on one text and scored on another.

    No single angle is safe. Full-space angles are ruled by directions of little variance, where the
    rotation is hardly determined (a random one has a mean of 90°); so all are given inside the subspaces
    of most variance too, with rotations fitted there.

    Args:
        train, test: moments of documents that do not overlap.
        pairs: which pairs; by default all of the moments.
        subspaces: spans of the leading eigenvectors of `Sxx/tr Sxx + Syy/tr Syy`: a number of
            directions, a share of variance below 1, or None for the whole space.
        ridge: penalty of the ladder's linear step, as a share of the mean variance.

    Returns:
        Dataset over `pair` (coordinates `from_layer`, `to_layer`). Angles are in degrees, all else pure numbers:

        - `r2[pair, step]`: held-out R², pooled over coordinates, of the map that is the identity, then with a
          shift of the mean, one scale, a rotation with its scale, and any matrix; `null_r2` beside it,
          what the steps score where targets belong to other tokens;
        - `similarity`: ρ in sample; `similarity_held_out`: the correlation that the rotation reaches on `test`,
          0 for unrelated layers; `similarity_null`: the in-sample one of independent isotropic Gaussian states;
        - `scale`: that goes with the rotation;
        - `energy_angle[pair, subspace]`: `arccos(tr(Q·Sxx)/tr Sxx)`, how far the rotation turns centred states, by
          energy; `energy_angle_noise`: the same between the rotations fitted on `train` and on `test`, which is
          mostly the error of the smaller text;
        - `mean_angle[pair, subspace]`: mean of the rotation's angles; `rotation_angle[pair, component]`: all of them in
          the whole space, largest first;
        - `determinant[pair, subspace]`: −1 where one of these angles is a reflection's spurious 180°;
        - `size[pair, subspace]`: directions in it, at most the width;
        - `principal_angle_mean`, `principal_angle_max` `[pair, subspace]`: between the leading eigenvectors, that many, of
          either layer alone.

    Cost: about ten decompositions `[d, d]` per pair, under a second at d = 576 on two cores.

    Raises:
        InputError: a missing pair, no more training tokens than the stream is wide, states that do not
            vary, or a subspace that is none.
    """
    chosen = selected_pairs(pairs, train, test)
    require_more_tokens_than_width(train)
    _require_subspaces(subspaces)
    axes = {layer: principal_axes(train.within[layer])[1] for pair in chosen for layer in pair}
    rows = [_pair_row(train, test, pair, subspaces, axes, ridge) for pair in chosen]
    columns = {
        name: variable(dims, np.stack([row[name] for row in rows]), label, units)
        for name, (dims, label, units) in _LABELS.items()
    }
    facts = {"source": SOURCE, "probe": "procrustes", "ridge": ridge}
    return xr.Dataset(
        columns,
        coords={
            **pair_coordinates(chosen),
            "subspace": texts(("subspace",), [_name(s) for s in subspaces], "directions of most variance"),
            "step": texts(("step",), list(STEPS), "map, each freer than the one before"),
            "component": component_coordinate(train.width),
        },
        attrs={**facts, "tokens_fitted": train.count, "tokens_scored": test.count, **fit_provenance(train.source)},
    )


_LABELS = {
    "r2": (("pair", "step"), "held-out R², pooled over coordinates", "1"),
    "null_r2": (("pair", "step"), "R² where targets belong to other tokens", "1"),
    "similarity": (("pair",), "Procrustes similarity, in sample", "1"),
    "similarity_held_out": (("pair",), "correlation of rotated and true states, held out", "1"),
    "similarity_null": (("pair",), "similarity of independent isotropic Gaussian states, in sample", "1"),
    "scale": (("pair",), "scale that goes with the rotation", "1"),
    "energy_angle": (("pair", "subspace"), "angle by which the rotation turns states, by energy", "degrees"),
    "energy_angle_noise": (("pair", "subspace"), "angle between rotations fitted on the two texts, by energy", "degrees"),
    "mean_angle": (("pair", "subspace"), "mean of the rotation's angles", "degrees"),
    "rotation_angle": (("pair", "component"), "angle of the rotation", "degrees"),
    "determinant": (("pair", "subspace"), "determinant of the rotation, −1 with a reflection", "1"),
    "size": (("pair", "subspace"), "directions in the subspace", "1"),
    "principal_angle_mean": (("pair", "subspace"), "mean angle between the layers' leading directions", "degrees"),
    "principal_angle_max": (("pair", "subspace"), "largest angle between the layers' leading directions", "degrees"),
}


def _pair_row(
    train: Moments, test: Moments, pair: Pair, subspaces: Sequence[Subspace], axes: Mapping[int, Tensor], ridge: float
) -> dict[str, np.ndarray]:
    """One pair's values, by the names of `_LABELS`."""
    blocks = [_blocks(moments, pair) for moments in (train, test)]
    fits = [orthogonal_map(*found) for found in blocks]
    (before, _, after), (test_before, test_across, test_after) = blocks
    turns = rotation_angles(fits[0].rotation)
    found = {
        "r2": ladder(train, test, pair, fits[0], ridge),
        "null_r2": ladder_null(train, test, pair),
        "rotation_angle": turns,
        "similarity": fits[0].similarity,
        "similarity_held_out": (fits[0].rotation * test_across).sum() / (test_before.trace() * test_after.trace()).sqrt(),
        "similarity_null": similarity_null(train.count, train.width),
        "scale": fits[0].scale,
    }
    variances, joint = principal_axes(before / before.trace() + after / after.trace())
    inside = []
    for size in (_size(subspace, variances) for subspace in subspaces):
        leading = [axes[layer][:, :size] for layer in pair]
        if size == train.width:
            angles = _angles(fits, before, turns)
        else:
            basis = joint[:, :size]
            smaller = [[basis.T @ block @ basis for block in of_text] for of_text in blocks]
            there = [orthogonal_map(*of_text) for of_text in smaller]
            angles = _angles(there, smaller[0][0], rotation_angles(there[0].rotation))
        inside.append({"size": size, **angles, **_principal_angles(*leading)})
    found |= {name: np.array([row[name] for row in inside]) for name in inside[0]}
    return {name: np.asarray(value) for name, value in found.items()}


def _blocks(moments: Moments, pair: Pair) -> tuple[Tensor, Tensor, Tensor]:
    return moments.within[pair[0]], moments.across[pair], moments.within[pair[1]]


def _angles(fits: Sequence[OrthogonalMap], within: Float[Tensor, "d d"], turns: Float[Tensor, " d"]) -> dict[str, float]:
    """Of the first fit, whose rotation angles are `turns`, and between it and the second one."""
    rotation, again = (fit.rotation for fit in fits)
    return {
        "energy_angle": energy_angle(rotation, within),
        "energy_angle_noise": energy_angle(rotation @ again.T, within),
        "mean_angle": float(turns.mean()),
        "determinant": fits[0].determinant,
    }


def _principal_angles(left: Float[Tensor, "d k"], right: Float[Tensor, "d k"]) -> dict[str, float]:
    """Between the spans of orthonormal columns; sines and cosines both, since either alone is blunt at one end."""
    if left.shape[0] == left.shape[1]:  # both span everything
        return {"principal_angle_mean": 0.0, "principal_angle_max": 0.0}
    overlap = left.T @ right
    sines = torch.linalg.svdvals(right - left @ overlap).flip(0)
    angles = torch.rad2deg(torch.atan2(sines, torch.linalg.svdvals(overlap)))
    return {"principal_angle_mean": float(angles.mean()), "principal_angle_max": float(angles.max())}


def _size(subspace: Subspace, variances: Float[Tensor, " d"]) -> int:
    width = len(variances)
    if subspace is None:
        return width
    if isinstance(subspace, int):
        return min(subspace, width)
    shares = variances.cumsum(0) / variances.sum()
    return min(int((shares < subspace).sum()) + 1, width)


def _name(subspace: Subspace) -> str:
    if subspace is None:
        return "all"
    return str(subspace) if isinstance(subspace, int) else f"{100 * subspace:g} %"


def _require_subspaces(subspaces: Sequence[Subspace]) -> None:
    wrong = [s for s in subspaces if s is not None and not (s >= 1 if isinstance(s, int) else 0 < s < 1)]
    if wrong or not subspaces:
        needed = "numbers of directions, shares of variance between 0 and 1, or None for all"
        raise InputError(f"The subspaces {wrong or 'none'}", needed, "subspaces=(10, 50, 0.9, None)")


def require_more_tokens_than_width(train: Moments) -> None:
    """Refuse training moments on which a linear map would fit anything.

    Raises:
        InputError: no more tokens than the stream is wide.
    """
    if train.count <= train.width:
        raise InputError(f"{train.count} training tokens", f"more than {train.width}", "collect_moments(..., tokens=20_000)")


def selected_pairs(pairs: Sequence[Pair] | None, *moments: Moments) -> tuple[Pair, ...]:
    """The pairs asked for, in order, or all of the first moments.

    Raises:
        InputError: none, one that some of the moments lack, or one with a layer whose states do not vary.
    """
    chosen = moments[0].pairs if pairs is None else tuple(sorted(set(pairs)))
    missing = [pair for pair in chosen if any(pair not in each.across for each in moments)]
    if missing or not chosen:
        there = f"some of {list(moments[0].pairs)[:4]} … in every part"
        raise InputError(f"The moments lack the pairs {missing or 'asked for'}", there, "collect_moments(pairs=…)")
    for each in moments:
        require_variation(each, {layer for pair in chosen for layer in pair})
    return chosen


def pair_coordinates(pairs: Sequence[Pair]) -> dict[str, xr.Variable]:
    """Coordinates of the dimension `pair`."""
    return {
        "from_layer": variable(("pair",), np.array([i for i, _ in pairs]), "layer that the map starts from"),
        "to_layer": variable(("pair",), np.array([j for _, j in pairs]), "layer that the map leads to"),
    }
