"""Rotation of blocks: a planted rotation and stretch come apart again, and angles add up over depth as they should."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

from lens.base.errors import InputError
from lens.moments import Moments
from lens.probes.procrustes import procrustes
from lens.probes.rotation import rotation
from tests.probes.test_procrustes import in_plane, states, turn
from tests.probes.test_shortcuts import moments_of, noise

WIDTH = 8
STRETCH = torch.tensor([3.0, 2, 1.5, 1, 1, 1, 0.5, 0.25], dtype=torch.float64)


def chain(n: int, seed: int, noise_level: float = 0.0) -> Moments:
    """Two blocks that turn the same plane by 25° and 35°, then one that turns by 40° and stretches."""
    frame = turn(WIDTH, 3)
    x = states(n, WIDTH, seed)
    y = x @ in_plane(25, WIDTH) + 1
    z = y @ in_plane(35, WIDTH)
    w = z @ in_plane(40, WIDTH) @ (frame.T * STRETCH @ frame) + noise_level * states(n, WIDTH, seed + 50)
    return moments_of(x, y, z, w)


def test_a_planted_rotation_and_stretch_come_apart_again():
    found = rotation(chain(500, 0), chain(300, 1), ridge=0.0)
    expected = [[degrees] * 2 + [0] * 6 for degrees in (25, 35, 40)]
    assert np.allclose(found.principal_angle, expected, atol=1e-4)
    assert np.allclose(found.mean_angle, [25 / 4, 35 / 4, 10], atol=1e-4)
    assert np.allclose(found.stretch, [np.ones(8), np.ones(8), STRETCH.numpy()], atol=1e-5)
    assert (found.determinant == 1).all()


def test_shares_of_the_output_are_what_was_planted_and_add_up_to_one():
    level = 0.4
    found = rotation(chain(4000, 0, level), chain(4000, 1, level), ridge=0.0)
    assert np.allclose(found.share.sum("part"), 1, atol=1e-6)
    assert np.allclose(found.share.sel(part=["stretch", "rest"])[:2], 0, atol=1e-6)
    last = found.share[2]
    energy = float((STRETCH**2).sum()) + WIDTH * level**2
    assert float(last.sel(part="rest")) == pytest.approx(WIDTH * level**2 / energy, abs=0.01)
    rigid = float(STRETCH.sum()) ** 2 / WIDTH / energy  # ρ² of isotropic states and a stretch
    assert float(last.sel(part=["scale", "rotation"]).sum()) == pytest.approx(rigid, abs=0.02)


def test_noise_is_all_rest():
    found = rotation(noise(2000, 40, 0), noise(4000, 40, 1), ridge=0.0)
    assert np.allclose(found.share, found.null_share, atol=0.01)
    assert np.allclose(found.null_share.sum("part"), 1, atol=1e-6)
    assert float(found.null_share.sel(part="rest").item()) > 1
    assert found.energy_angle.item() == pytest.approx(90, abs=3)
    assert found.energy_angle_noise.item() == pytest.approx(90, abs=3)


def test_energy_angles_and_shares_are_those_of_procrustes():
    train, test = chain(300, 0, 0.3), chain(200, 1, 0.3)
    found = rotation(train, test, ridge=1e-3)
    other = procrustes(train, test, pairs=[(0, 1), (1, 2), (2, 3)], subspaces=(None,), ridge=1e-3)
    assert np.allclose(found.energy_angle, other.energy_angle[:, 0], atol=1e-5)
    assert np.allclose(found.energy_angle_noise, other.energy_angle_noise[:, 0], atol=1e-5)
    assert np.allclose(found.share.sel(part="rest"), 1 - other.r2.sel(step="linear"), atol=1e-6)
    assert np.allclose(found.share.sel(part="scale"), other.r2.sel(step="scale"), atol=1e-6)


def test_paths_add_up_blocks_and_direct_angles_are_those_of_the_direct_pairs():
    moments = chain(4000, 0)
    found = rotation(moments, moments, ridge=0.0)
    one, two, three = (float(angle) for angle in found.energy_angle)
    assert np.allclose(found.path_from_first, [0, one, one + two, one + two + three], atol=1e-4)
    assert np.allclose(found.path_to_last, [one + two + three, two + three, three, 0], atol=1e-4)
    direct = procrustes(moments, moments, pairs=[(0, 2), (0, 3), (1, 3)], subspaces=(None,)).energy_angle[:, 0]
    assert np.allclose(found.direct_from_first, [0, one, direct[0], direct[1]], atol=1e-4)
    assert np.allclose(found.direct_to_last, [direct[1], direct[2], three, 0], atol=1e-4)
    # Isotropic states, one plane: 25° and 35° make 60°, whose energy angle is arccos((6 + 2·cos 60°)/8).
    assert float(found.direct_from_first[2]) == pytest.approx(np.degrees(np.arccos(7 / 8)), abs=0.5)


def test_turns_that_undo_each_other_make_a_long_path_to_nowhere():
    x = states(400, WIDTH)
    y = x @ turn(WIDTH)
    found = rotation(moments_of(x, y, x), moments_of(x, y, x), ridge=0.0)
    assert float(found.path_from_first[-1]) > 60
    assert float(found.direct_from_first[-1]) == pytest.approx(0, abs=1e-4)


def test_missing_pairs_leave_gaps():
    moments = chain(300, 0)
    some = replace(moments, across={pair: moments.across[pair] for pair in [(0, 1), (2, 3), (1, 3)]})
    found = rotation(some, moments)
    assert list(found.block) == [0, 2]
    assert list(np.isnan(found.path_from_first)) == [False, False, True, True]
    assert list(np.isnan(found.path_to_last)) == [True, True, False, False]
    assert list(np.isnan(found.direct_from_first)) == [False, False, True, True]
    assert list(np.isnan(found.direct_to_last)) == [True, False, False, False]


def test_a_reflection_is_told():
    x = states(200, 5)
    mirrored = x * torch.tensor([1.0, 1, -2, 1, 1], dtype=torch.float64)
    found = rotation(moments_of(x, mirrored), moments_of(x, mirrored), ridge=0.0)
    assert found.determinant.item() == -1
    assert np.allclose(found.principal_angle, [[180, 0, 0, 0, 0]], atol=1e-4)
    assert np.allclose(found.stretch, [[2, 1, 1, 1, 1]], atol=1e-5)


def test_states_on_a_hyperplane_stay_there():
    x = states(300, 6)
    x = x - x.mean(1, keepdim=True)
    found = rotation(moments_of(x, 2 * x), moments_of(x, 2 * x), ridge=1e-6)
    assert float(found.principal_angle.max()) < 1e-3
    assert np.allclose(found.stretch, [[2, 2, 2, 2, 2, 0]], atol=1e-4)


def test_what_cannot_be_told_is_refused():
    moments = chain(300, 0)
    with pytest.raises(InputError, match="adjacent"):
        rotation(replace(moments, across={(0, 2): moments.across[0, 2]}), moments)
    with pytest.raises(InputError, match="lack the pairs"):
        rotation(moments, noise(300, WIDTH, 0))
    with pytest.raises(InputError, match="6 training tokens"):
        rotation(chain(6, 0), moments)


def test_result_goes_through_netcdf(tmp_path):
    found = rotation(chain(200, 0), chain(100, 1))
    found.to_netcdf(tmp_path / "found.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "found.nc", engine="h5netcdf") as again:
        xr.testing.assert_identical(again.load(), found)
    assert {found[name].attrs["units"] for name in ("energy_angle", "path_to_last", "principal_angle")} == {"degrees"}
