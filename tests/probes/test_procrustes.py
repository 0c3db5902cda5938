"""Procrustes: planted rotations are found to the last digit, angles are those of the plane, noise scores its null."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

import lens
from lens.base.errors import InputError
from lens.moments import Moments
from lens.probes.procrustes import (
    STEPS,
    OrthogonalMap,
    energy_angle,
    orthogonal_map,
    polar,
    procrustes,
    rotation_angles,
    similarity_null,
)
from tests.probes.test_shortcuts import moments_of, noise

THIRTY = math.acos((6 + 2 * math.cos(math.pi / 6)) / 8)  # one plane of eight directions turned by 30°


def states(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turn(d: int, seed: int = 7) -> torch.Tensor:
    """A random orthogonal matrix of determinant 1."""
    q = torch.linalg.qr(states(d, d, seed)).Q
    q[:, 0] *= torch.linalg.det(q).sign()
    return q


def in_plane(degrees: float, d: int) -> torch.Tensor:
    """A rotation of the first two coordinates, for row vectors."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = torch.eye(d, dtype=torch.float64)
    matrix[:2, :2] = torch.tensor([[cosine, sine], [-sine, cosine]], dtype=torch.float64)
    return matrix


def fit(moments: Moments) -> OrthogonalMap:
    return orthogonal_map(moments.within[0], moments.across[0, 1], moments.within[1])


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (2.5, 3.0)])
def test_a_planted_rotation_with_scale_and_shift_is_found_to_twelve_digits(scale: float, shift: float):
    x, planted = states(2000, 64), turn(64)
    found = fit(moments_of(x, scale * x @ planted + shift))
    assert (found.rotation - planted).abs().max() < 1e-12
    assert found.scale == pytest.approx(scale, abs=1e-12)
    assert found.similarity == pytest.approx(1, abs=1e-12)
    assert found.determinant == 1


def test_a_rotation_in_one_plane_has_its_angle_there_and_its_energy_angle_in_closed_form():
    scatter = torch.eye(8, dtype=torch.float64)
    matrix = in_plane(30, 8)
    expected = torch.tensor([30.0, 30, 0, 0, 0, 0, 0, 0], dtype=torch.float64)
    assert energy_angle(matrix, scatter) == pytest.approx(14.871, abs=5e-4)
    assert energy_angle(matrix, scatter) == pytest.approx(math.degrees(THIRTY), abs=1e-9)
    x = states(5000, 8)
    found = fit(moments_of(x, x @ matrix))
    assert torch.allclose(rotation_angles(found.rotation), expected, atol=1e-6)
    assert energy_angle(found.rotation, moments_of(x).within[0]) == pytest.approx(14.871, abs=0.5)


@pytest.mark.parametrize("degrees", [0.0, 1e-5, 0.01, 45.0, 90.0, 179.99, 180.0])
def test_angles_are_exact_near_both_ends(degrees: float):
    frame = turn(6)
    found = rotation_angles(frame.T @ in_plane(degrees, 6) @ frame)
    assert torch.allclose(found, torch.tensor([degrees] * 2 + [0.0] * 4, dtype=torch.float64), atol=2e-6)


def test_angles_are_those_of_the_eigenvalues():
    matrix = turn(31)
    expected = torch.linalg.eigvals(matrix).angle().abs().rad2deg().sort(descending=True).values
    assert torch.allclose(rotation_angles(matrix), expected, atol=1e-9)


def test_a_reflection_is_told_by_its_determinant_and_one_angle_of_180():
    x = states(500, 6)
    mirror = torch.diag(torch.tensor([-1.0, 1, 1, 1, 1, 1], dtype=torch.float64))
    found = procrustes(moments_of(x, x @ mirror), moments_of(x, x @ mirror), subspaces=(None,))
    assert found.determinant.item() == -1
    assert np.allclose(found.rotation_angle[0], [180, 0, 0, 0, 0, 0], atol=1e-4)


def test_the_polar_factor_of_a_singular_matrix_turns_no_more_than_it_must():
    x = states(300, 5)
    x[:, 3:] = 0
    scatter = x.T @ x
    assert torch.allclose(polar(scatter)[0], torch.eye(5, dtype=torch.float64), atol=1e-12)
    assert torch.equal(polar(torch.zeros(3, 3, dtype=torch.float64))[0], torch.eye(3, dtype=torch.float64))
    planted = in_plane(20, 5)
    assert torch.allclose(polar(scatter @ planted)[0], planted, atol=1e-12)


def test_the_polar_factor_times_a_symmetric_stretch_is_the_matrix():
    matrix = states(9, 9)
    orthogonal, values = polar(matrix)
    stretch = orthogonal.T @ matrix
    assert torch.allclose(orthogonal @ orthogonal.T, torch.eye(9, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(stretch, stretch.T, atol=1e-12)
    assert torch.allclose(torch.linalg.eigvalsh(stretch).flip(0), values, atol=1e-12)


def test_similarity_does_not_care_about_rotation_scale_and_shift_of_either_side():
    x, y = states(400, 12), states(400, 12, 1) + states(400, 12)
    plain = fit(moments_of(x, y)).similarity
    assert fit(moments_of(3 * x @ turn(12) - 2, y)).similarity == pytest.approx(plain, abs=1e-12)
    assert fit(moments_of(x, 0.2 * y @ turn(12, 8) + 5)).similarity == pytest.approx(plain, abs=1e-12)
    assert fit(moments_of(y, x)).similarity == pytest.approx(plain, abs=1e-12)
    assert 0 < plain < 1


@pytest.mark.parametrize(("n", "expected"), [(1000, 0.266), (4000, 0.134)])
def test_similarity_of_noise_is_its_null_level(n: int, expected: float):
    assert fit(noise(n, 100, 0)).similarity == pytest.approx(expected, abs=0.005)
    assert similarity_null(n, 100) == pytest.approx(expected, abs=0.005)


def test_uneven_noise_is_no_more_similar_than_even_noise():
    weights = torch.logspace(0, -2, 100, dtype=torch.float64)
    found = fit(moments_of(states(1000, 100) * weights, states(1000, 100, 1) * weights))
    assert 0.05 < found.similarity < similarity_null(1000, 100)


def deformed(n: int, seed: int, d: int = 12) -> Moments:
    """A shift, a scale, a rotation, a stretch, and noise: every step of the ladder has something to find."""
    x = states(n, d, seed)
    stretch = torch.diag(torch.linspace(0.5, 2, d, dtype=torch.float64))
    return moments_of(x, 1.5 * x @ in_plane(50, d) @ stretch + 1 + 0.3 * states(n, d, seed + 100))


def test_the_ladder_rises_in_sample_and_each_step_finds_what_is_its_own():
    moments = deformed(600, 0)
    found = procrustes(moments, moments, ridge=0.0).r2.isel(pair=0)
    assert list(found.step.values) == list(STEPS)
    assert (np.diff(found) > 0.01).all()
    held_out = procrustes(moments, deformed(400, 1), ridge=0.0).r2.isel(pair=0)
    assert (np.diff(held_out) > 0).all()
    assert np.allclose(held_out, found, atol=0.08)


def test_the_ladder_is_the_score_of_predictions():
    train, (x, y) = deformed(300, 0), (states(90, 12, 5), states(90, 12, 6) + states(90, 12, 5))
    found = procrustes(train, moments_of(x, y), ridge=1e-3).r2.isel(pair=0)
    fitted = fit(train)
    plain = train.across[0, 1].trace() / train.within[0].trace()
    centred = x - train.mean[0]
    shortcut = lens.fit_shortcuts(train, ridge=1e-3).maps[0, 1].matrix
    predictions = {
        "identity": x,
        "shift": centred + train.mean[1],
        "scale": plain * centred + train.mean[1],
        "rotation": fitted.scale * centred @ fitted.rotation + train.mean[1],
        "linear": centred @ shortcut + train.mean[1],
    }
    for step, prediction in predictions.items():
        expected = 1 - (prediction - y).square().sum() / (y - y.mean(0)).square().sum()
        assert float(found.sel(step=step)) == pytest.approx(float(expected), abs=1e-6)


def test_an_exact_rotation_stops_the_ladder_at_its_step():
    x, other, planted = states(400, 10), states(300, 10, 1), turn(10)
    found = procrustes(moments_of(x, 2 * x @ planted + 1), moments_of(other, 2 * other @ planted + 1), ridge=0.0)
    assert np.allclose(found.r2.sel(step=["rotation", "linear"]), 1, atol=1e-6)
    assert found.r2.sel(step="scale").item() < 0.5
    assert found.similarity_held_out.item() == pytest.approx(1, abs=1e-6)
    assert found.energy_angle_noise.sel(subspace="all").item() < 1e-4
    assert found.energy_angle.sel(subspace="all").item() == pytest.approx(
        energy_angle(planted, moments_of(x).within[0]), abs=1e-4
    )


def test_every_step_of_the_ladder_scores_its_null_where_targets_are_shuffled():
    scores, nulls = [], []
    for seed in range(12):
        x, other = states(800, 40, seed), states(800, 40, 50 + seed)
        order = torch.randperm(800, generator=torch.Generator().manual_seed(seed))
        train, test = (moments_of(z, 1.5 * z[order] @ in_plane(30, 40) + 0.5) for z in (x, other))
        found = procrustes(train, test, ridge=0.0)
        scores.append(found.r2[0].values)
        nulls.append(found.null_r2[0].values)
    assert np.allclose(np.mean(scores, 0), np.mean(nulls, 0), atol=0.006)
    assert np.mean(nulls, 0)[3] == pytest.approx(-0.036, abs=0.001)  # 64/(9π²) · 40/800
    assert abs(np.mean([r[3] for r in scores])) > 0.03


def test_identity_and_shift_score_exactly_their_null_on_average_over_all_shuffles():
    x, y = states(3, 2), states(3, 2, 1)
    train = noise(20, 2, 3)
    orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
    found = [procrustes(train, moments_of(x, y[order]), ridge=0.0) for order in orders]
    mean = np.mean([each.r2[0].values for each in found], 0)
    assert np.allclose(mean[:2], found[0].null_r2[0, :2], atol=1e-6)


def test_held_out_similarity_of_noise_is_nothing():
    found = procrustes(noise(1000, 100, 0), noise(4000, 100, 1))
    assert found.similarity.item() > 0.25
    assert abs(found.similarity_held_out.item()) < 0.01
    assert found.energy_angle.sel(subspace="all").item() == pytest.approx(90, abs=3)
    assert found.energy_angle_noise.sel(subspace="all").item() == pytest.approx(90, abs=3)


def test_angles_inside_the_dominant_subspace_are_its_own():
    """Strong coordinates turn by 10° in one plane, weak ones are mixed at random."""
    d, weak = 30, turn(26)
    weights = torch.tensor([10.0] * 4 + [0.5] * 26, dtype=torch.float64)
    matrix = torch.eye(d, dtype=torch.float64)
    matrix[:4, :4] = in_plane(10, 4)
    matrix[4:, 4:] = weak

    def blocks(n: int, seed: int) -> Moments:
        x = states(n, d, seed) * weights
        return moments_of(x, x @ matrix)

    found = procrustes(blocks(3000, 0), blocks(1000, 1), subspaces=(4, 0.9, None)).isel(pair=0)
    assert list(found["size"]) == [4, 4, 30]
    assert np.allclose(found.mean_angle[:2], 5, atol=0.05)
    assert float(found.mean_angle[2]) > 60
    assert np.allclose(found.energy_angle[:2], math.degrees(math.acos((2 + 2 * math.cos(math.radians(10))) / 4)), atol=0.2)
    assert float(found.rotation_angle.mean()) == pytest.approx(float(found.mean_angle[2]), abs=1e-4)
    assert (np.diff(found.rotation_angle) <= 0).all()
    assert (found.principal_angle_max[:2] < 1).all()  # the strong coordinates stay among themselves
    assert float(found.principal_angle_max[2]) == pytest.approx(0, abs=1e-4)


def test_leading_directions_that_swap_with_weak_ones_are_at_right_angles():
    x = states(2000, 6) * torch.tensor([9.0, 8, 7, 1, 1, 1], dtype=torch.float64)
    found = procrustes(moments_of(x, x.roll(3, dims=1)), moments_of(x, x.roll(3, dims=1)), subspaces=(3,))
    assert found.principal_angle_mean.item() == pytest.approx(90, abs=5)
    assert found["size"].item() == 3


def test_pairs_and_wide_subspaces():
    x = states(300, 8)
    moments = moments_of(x, x @ turn(8), x @ turn(8, 9))
    found = procrustes(moments, moments, pairs=[(1, 2), (0, 2)], subspaces=(50, None))
    assert list(zip(found.from_layer.values, found.to_layer.values, strict=True)) == [(0, 2), (1, 2)]
    assert (found["size"] == 8).all()
    assert (found.energy_angle[:, 0] == found.energy_angle[:, 1]).all()
    assert procrustes(moments, moments).sizes["pair"] == 3


def test_states_on_a_hyperplane_are_no_trouble():
    """Rows that sum to 0, as LayerNorm gives them: one direction without variance, which is left where it is."""
    x = states(400, 10)
    x = x - x.mean(1, keepdim=True)
    found = procrustes(moments_of(x, 2 * x), moments_of(x, 2 * x), ridge=0.0)
    assert float(found.rotation_angle.max()) < 1e-4
    assert (found.determinant == 1).all()
    assert np.allclose(found.r2.sel(step=["scale", "rotation", "linear"]), 1, atol=1e-6)


def test_what_cannot_be_told_is_refused():
    good = noise(100, 10, 0)
    with pytest.raises(InputError, match="10 training tokens"):
        procrustes(noise(10, 20, 0), noise(100, 20, 1))
    with pytest.raises(InputError, match=r"lack the pairs \[\(0, 2\)\]"):
        procrustes(good, good, pairs=[(0, 1), (0, 2)])
    with pytest.raises(InputError, match="lack the pairs"):
        procrustes(good, replace(good, across={}))
    with pytest.raises(InputError, match="lack the pairs"):
        procrustes(good, good, pairs=[])
    x = states(100, 10)
    with pytest.raises(InputError, match="one state at layer 1"):
        procrustes(good, moments_of(x, torch.full_like(x, 3.0)))
    for wrong in ((0,), (-3,), (1.5,), (0.0,), ()):
        with pytest.raises(InputError, match="subspaces"):
            procrustes(good, good, subspaces=wrong)


def test_result_goes_through_netcdf_with_units_and_provenance(tmp_path):
    train = replace(deformed(200, 0), source={"model": "toy", "corpus": "none"})
    found = procrustes(train, deformed(100, 1))
    found.to_netcdf(tmp_path / "found.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "found.nc", engine="h5netcdf") as again:
        xr.testing.assert_identical(again.load(), found)
    assert found.energy_angle.attrs["units"] == "degrees"
    assert (found.attrs["fitted_model"], found.attrs["tokens_fitted"], found.attrs["tokens_scored"]) == ("toy", 200, 100)
    assert "Schönemann" in found.attrs["source"]
    assert list(found.subspace.values) == ["10", "50", "90 %", "all"]


def test_smollm2_first_block_turns_states_over_and_middle_blocks_hardly(smollm2):
    moments = lens.collect_moments(smollm2, lens.corpus("wikipedia"), tokens=3072, pairs="both")
    found = procrustes(moments.train, moments.test, pairs=[(0, 1), (10, 11), (15, 16)], ridge=1e-2)
    angle = found.energy_angle.sel(subspace="all")
    assert float(angle[0]) > 60
    assert (angle[1:] < 25).all()
    assert (found.energy_angle.sel(subspace="10")[1:] < 10).all()
    first, *middle = found.r2
    assert all(float(block.sel(step="shift")) > 0.8 for block in middle)
    assert float(first.sel(step="scale")) < 0.1  # the first block leaves nothing of its input as it was
    for block in found.r2:
        assert block.sel(step="shift") < block.sel(step="rotation") < block.sel(step="linear")
