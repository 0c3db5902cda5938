"""Commuting angle matrices: the theorem both ways, published means, and what is left of them in one dimension."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.linalg import block_diag, expm

from lens.base.errors import InputError
from lens.probes.commuting import (
    FAMILIES,
    angle_matrices,
    commuting,
    equation_defect,
    frequencies,
    logits,
    relative_commutator,
    rotations,
)

COMMUTING = FAMILIES[:2]
SIZES = (2, 3, 4, 8, 16)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("block_size", SIZES)
def test_rotations_are_the_matrix_exponential(family: str, block_size: int):
    angles = angle_matrices(family, block_size=block_size, scale=0.3)
    positions = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, -3.0], [7.5, 11.0]])
    found = rotations(angles, positions)
    for position, blocks in zip(positions, found, strict=True):
        whole = np.einsum("a,abij->bij", position, angles.matrices)
        np.testing.assert_allclose(blocks, [expm(block) for block in whole], atol=1e-12)
    np.testing.assert_allclose(found.swapaxes(-1, -2) @ found, np.broadcast_to(np.eye(block_size), found.shape), atol=1e-13)
    np.testing.assert_allclose(np.linalg.det(found), 1, atol=1e-13)


@pytest.mark.parametrize("family", COMMUTING)
@pytest.mark.parametrize("block_size", SIZES)
def test_commuting_families_obey_the_equation(family: str, block_size: int):
    angles = angle_matrices(family, block_size=block_size, axes=2, seed=3)
    first, second = angles.matrices
    assert relative_commutator(first, second).max() <= 1e-14
    random = np.random.default_rng(0)
    x, y = random.uniform(-10, 10, (2, 20, 2))
    assert equation_defect(angles, x, y).max() <= 1e-13


@pytest.mark.parametrize("block_size", SIZES[1:])
def test_independent_matrices_break_it(block_size: int):
    """And break it in proportion to the area, while it is small: exp(−uA)exp(vB) = exp(vB − uA + uv[B, A]/2 + …)."""
    angles = angle_matrices("independent", block_size=block_size, scale=0.3)
    x, y = np.array([3.0, 0.0]), np.array([0.0, 4.0])
    assert equation_defect(angles, x, y) > 0.1
    first, second = angles.matrices
    expected = 1e-8 / 2 * np.linalg.norm(first @ second - second @ first, ord=2, axis=(-2, -1)).max()
    assert equation_defect(angles, 1e-4 * np.eye(2)[0], 1e-4 * np.eye(2)[1]) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("size", "mean", "error"),
    [(3, math.pi / (4 * math.sqrt(2)), 0.011), (4, 0.558, 0.010), (8, 0.459, 0.005), (16, 0.340, 0.002)],
)
def test_relative_commutator_of_random_skew_pairs(size: int, mean: float, error: float):
    """For size 3 they are vectors, the commutator their product: the mean of |sin| over √2."""
    free = np.random.default_rng(size).standard_normal((2, 200, size, size))
    first, second = free - free.swapaxes(-1, -2)
    assert relative_commutator(first, second).mean() == pytest.approx(mean, abs=3 * error)


def test_planes_always_commute():
    angles = angle_matrices("independent", block_size=2)
    first, second = angles.matrices
    assert relative_commutator(first, second).max() == 0
    assert equation_defect(angles, np.array([5.0, 1.0]), np.array([-2.0, 9.0])) <= 1e-13


def test_frequencies_are_eigenvalues():
    angles = angle_matrices("linearly dependent", block_size=5, width=20, axes=2)
    for matrices, found in zip(angles.matrices, frequencies(angles), strict=True):
        for matrix, omega in zip(matrices, found, strict=True):
            values = np.linalg.eigvals(matrix)
            assert np.abs(values.real).max() < 1e-14
            np.testing.assert_allclose(sorted(values.imag), sorted([*omega, 0, *-omega]), atol=1e-14)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_one_dimension_it_is_rope_in_another_basis(family: str):
    """Real planes from the eigenvectors: there logits are those of RoPE with the eigenvalues as frequencies."""
    angles = angle_matrices(family, block_size=8, width=48, axes=1, seed=5, scale=0.4)
    whole = block_diag(*angles.matrices[0])
    values, vectors = np.linalg.eigh(1j * whole)
    positive = values > 1e-9
    queries, keys = np.random.default_rng(1).standard_normal((2, 6, 48))
    q, k = ((part @ vectors[:, positive]) * math.sqrt(2) for part in (queries, keys))
    distance = np.arange(6)[:, None, None] - np.arange(6)[None, :, None]
    expected = (q[:, None] * k[None].conj() * np.exp(1j * distance * values[positive])).sum(-1).real / math.sqrt(48)
    np.testing.assert_allclose(logits(angles, queries, keys, np.arange(6.0)[:, None]), expected, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_dataset_says_whether_moving_the_image_matters(family: str):
    found = commuting(family, block_size=4, axes=2, seed=1)
    stays = family in COMMUTING
    assert found.logit.dims == ("offset", "query", "key")
    assert found.logit.shape == (17, 16, 16)
    assert (float(found.drift.max()) < 1e-12) == stays
    assert (float(found.defect.max()) < 1e-12) == stays
    assert found.orthogonality_defect < 1e-13
    assert found.determinant_defect < 1e-13
    assert float(found.drift[0]) == 0
    assert found.defect.attrs["units"] == "1"
    assert found.frequency.attrs["units"] == "rad/position"
    if not stays:
        assert float(found.drift[-1]) > 0.1
        assert float(found.defect[0].max()) < 1e-12  # both on one axis
    assert found.attrs["family"] == family
    assert "2506.03737" in found.attrs["source"]


def test_axial_partition_gives_each_block_one_axis():
    found = commuting("axial partition", block_size=4, axes=2)
    still = (found.frequency == 0).all("lane")
    assert (still.sum("axis") == 1).all()
    assert not still.isel(axis=0, block=0)
    assert not still.isel(axis=1, block=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"family": "commuting"},
        {"block_size": 5},
        {"block_size": 1},
        {"axes": 0},
        {"family": "axial partition", "block_size": 48},
    ],
)
def test_refused(wrong: dict):
    with pytest.raises(InputError, match="Try:"):
        angle_matrices(**wrong)
