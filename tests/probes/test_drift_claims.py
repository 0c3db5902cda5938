"""Claims about drift and balance: the published numbers, families whose drift is known, and the one that is shipped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr

import lens
from lens.base.errors import InputError
from lens.probes.drift_claims import (
    CLAIMS,
    DEEP,
    THREE,
    depth_order,
    drift_profile,
    drift_slope,
    drift_verdicts,
    drifted_less,
    shared_part,
)
from lens.probes.theta_drift import PUBLISHED, published_drift, theta_drift

STILL = "three-phase-no-theta-decay"
DEEP_STILL = f"{DEEP}-no-theta-decay"


def made_family(drifts: dict[str, list[np.ndarray]], means: dict[str, list[np.ndarray]] | None = None) -> xr.Dataset:
    """Members by recipe and seed, from their final drifts `[block, pair]`; they begin at none, and half-way are at half."""
    rows = []
    for seed in range(2):
        for name, given in drifts.items():
            if seed < len(given):
                blocks = len(given[seed])
                start = (np.arange(blocks) + 1) * np.pi / (2 * blocks)
                found = theta_drift(start[:, None] + np.array([0, 0.5, 1])[:, None, None] * given[seed], decayed=0.9)
                found = found.rename(step="looked_at").drop_vars("theta").expand_dims(recipe=[name], seed=[seed])
                rows.append(found.drop_attrs(deep=False))
    family = xr.combine_by_coords(rows, join="outer", combine_attrs="drop")
    family["title"] = ("recipe", [f"title of {name}" for name in family.recipe.values])
    for name, values in (means or {}).items():
        course = xr.DataArray(np.array(values)[:, :, None], dims=("seed", "looked_at", "layer", "phase"), coords={"layer": [0]})
        own = course.expand_dims(recipe=[name])
        family = xr.merge(
            [family, own.rename("phase_mean"), own.sum("phase").rename("residual")], join="outer", compat="no_conflicts"
        )
    return family


def noise(seed: int, blocks: int, size: float = 0.01, pairs: int = 64) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=(blocks, pairs))
    return size * (found - found.mean(-1, keepdims=True)) / found.std(-1, keepdims=True)


def rows(family: xr.Dataset) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["claim"], row["trained"]): row for row in drift_verdicts(family)}


def test_the_published_profile_is_a_j_and_no_u():
    then = published_drift()
    rms = then["rms"].to_numpy()
    assert drifted_less(rms) == pytest.approx(6 / 11)  # the first block is the sixth of twelve
    assert int(rms.argmin()) == 2
    assert int(rms.argmax()) == 11
    assert depth_order(rms) == pytest.approx(0.811, abs=5e-4)
    slope, constant = drift_slope(then["initial"].to_numpy(), then["mean_drift"].to_numpy())
    assert (slope, constant) == (pytest.approx(-0.125, abs=5e-4), pytest.approx(0.061, abs=5e-4))
    assert shared_part(float(then["mean_drift"][-1]), float(rms[-1])) == pytest.approx(1, abs=1e-3)


def test_what_is_made_is_found():
    """The published drift in twelve blocks, all of one angle; in four, decay's, and pairs that scatter alike in all blocks."""
    shift = np.array([final - initial for initial, final, _ in PUBLISHED])
    start = (np.arange(4) + 1) * np.pi / 8
    with_decay = [noise(seed, 4) - 0.1 * start[:, None] for seed in (1, 2)]
    without = [noise(seed, 4) - 0.02 * start[:, None] for seed in (3, 4)]
    deep = np.repeat(shift[:, None], 64, 1)
    found = rows(made_family({THREE: with_decay, STILL: without, DEEP: [deep], DEEP_STILL: [0.5 * deep]}))
    ends = found["Drift is largest at both ends", "12 blocks, N = 3"]
    assert (ends["value"], ends["published"], ends["verdict"], ends["seeds"]) == (0.545, 0.545, "one run", 1)
    assert (ends["low"], ends["high"]) == (None, None)
    assert found["Drift grows with depth", "4 blocks, N = 3"]["verdict"] == "holds"
    made = found["Weight decay makes the profile", "4 blocks, N = 3"]
    assert (made["value"], made["low"], made["high"], made["verdict"]) == (0.8, 0.8, 0.8, "holds")
    assert found["Weight decay makes the profile", "12 blocks, N = 3"]["value"] == 0.5
    shared = (0.1 * start[-1]) ** 2
    one = found["A block drifts by one angle", "4 blocks, N = 3"]
    assert one["value"] == pytest.approx(shared / (shared + 1e-4), abs=5e-4)
    assert one["verdict"] == "holds"
    assert found["A block drifts by one angle without decay, too", "4 blocks, N = 3"]["verdict"] == "holds"
    own = found["Pairs go their own ways in the last block", "4 blocks, N = 3"]
    assert (own["value"], own["verdict"]) == (1.0, "fails")
    assert found["Phase means balance themselves without a horn", "no horn"]["verdict"] == "untested"


def test_a_profile_that_decay_does_not_make():
    start = (np.arange(4) + 1) * np.pi / 8
    drift = [noise(seed, 4) + 0.2 * start[:, None] for seed in (1, 2)]
    found = rows(made_family({THREE: drift, STILL: drift}))
    made = found["Weight decay makes the profile", "4 blocks, N = 3"]
    assert (made["value"], made["verdict"]) == (0.0, "fails")
    assert found["Weight decay makes the profile", "12 blocks, N = 3"]["verdict"] == "untested"


def test_balance_is_judged_against_a_model_without_phases():
    still = [noise(seed, 4) for seed in (1, 2)]
    settling = [np.array([[0.03, 0.01, 0.02], [0.02, 0.01, 0], [0.01, -0.01, 0]]) for _ in range(2)]
    idle = [np.array([[0.03, 0.0, 0.02]] * 3) for _ in range(2)]
    family = made_family({THREE: still}, {"three-phase-no-horn": settling, "three-phase-rope-only": idle})
    found = rows(family)
    fall = found["Phase means balance themselves without a horn", "no horn"]
    assert (fall["value"], fall["verdict"]) == (0.06, "holds")
    control = found["Phases balance better than a cut that means nothing", "no horn; RoPE only"]
    assert (control["value"], control["verdict"]) == (0.01, "holds")


def test_profile_is_the_members_own():
    drift = [noise(seed, 4) - 0.1 for seed in (1, 2)]
    family = made_family({THREE: drift, STILL: drift[:1], DEEP: [noise(5, 12)]})
    found = drift_profile(family)
    assert found.sizes == {"seed": 2, "looked_at": 3, "block": 4}
    np.testing.assert_allclose(found.mean_drift[:, -1], -0.1, atol=1e-12)
    np.testing.assert_allclose(found.mean_drift[:, 1], -0.05, atol=1e-12)
    np.testing.assert_allclose(found.spread[:, -1], 0.01, rtol=1e-9)
    np.testing.assert_allclose(found.control_mean_drift[0, -1], -0.1, atol=1e-12)
    assert np.isnan(found.control_mean_drift[1]).all()
    np.testing.assert_allclose(found.decay_drift, -0.1 * found.initial)
    # Four blocks begin at the angles of the published blocks 2, 5, 8 and 11.
    shift = published_drift()["mean_drift"].to_numpy()
    np.testing.assert_allclose(found.published_mean_drift, shift[[2, 5, 8, 11]])
    deep = drift_profile(family, DEEP)
    assert deep.sizes == {"seed": 1, "looked_at": 3, "block": 12}
    np.testing.assert_allclose(deep.published_mean_drift, shift)
    assert deep.attrs["control"] == ""
    with pytest.raises(InputError, match="no member with angles"):
        drift_profile(family, "three-phase-rope-only")


def test_the_shipped_family_says_what_its_angles_say():
    family = lens.phase_family()
    found = drift_verdicts(family)
    assert [row["claim"] for row in found] == [claim.claim for claim in CLAIMS]
    assert {row["verdict"] for row in found} <= {"holds", "fails", "open", "one run", "untested"}
    order = next(row for row in found if row["claim"] == "Drift grows with depth" and row["trained"] == "4 blocks, N = 3")
    theta = family["theta"].sel(recipe=THREE, looked_at=800)[:, :4, :16].to_numpy()
    start = (np.arange(4) + 1) * np.pi / 8
    rms = np.sqrt(((theta - start[:, None]) ** 2).mean(-1))
    assert order["value"] == pytest.approx(np.mean([depth_order(one) for one in rms]), abs=5e-4)
    # Decay alone would have drawn every block further down than it went.
    profile = drift_profile(family)
    assert (profile.mean_drift[:, -1] > profile.decay_drift).all()
