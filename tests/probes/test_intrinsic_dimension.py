"""Intrinsic dimension: known manifolds have theirs, estimators the bias that they are known to have."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lens.base.errors import InputError
from lens.probes.intrinsic_dimension import dimension_estimates, intrinsic_dimension, neighbour_ratios, participation_ratio


def cube(tokens: int, dimension: int, seed: int = 0, width: int = 50) -> torch.Tensor:
    """Uniform points of a cube, laid isometrically into more dimensions."""
    generator = torch.Generator().manual_seed(seed)
    frame = torch.linalg.qr(torch.randn(width, dimension, generator=generator, dtype=torch.float64)).Q
    return torch.rand(tokens, dimension, generator=generator, dtype=torch.float64) @ frame.T


def test_a_sheet_in_fifty_dimensions_has_two():
    found = dimension_estimates(*neighbour_ratios(cube(4000, 2, seed=1)))
    for name, value in found.items():
        assert value == pytest.approx(2.0, abs=0.15), name


@pytest.mark.parametrize(("dimension", "expected", "spread"), [(5, (4.73, 4.74, 4.76), 0.2), (10, (8.57, 8.69, 8.71), 0.32)])
def test_cubes_of_more_dimensions_are_underestimated_by_as_much_as_is_known(dimension: int, expected, spread: float):
    """Means of 60 draws; one draw of 4,000 points lies within three of its standard deviations."""
    found = dimension_estimates(*neighbour_ratios(cube(4000, dimension)))
    assert list(found.values()) == pytest.approx(expected, abs=3 * spread)


def test_ratios_are_those_of_all_distances_and_do_not_care_about_scale_place_and_frame():
    states = cube(700, 4, width=12)
    distances = torch.cdist(states, states).fill_diagonal_(torch.inf).sort(dim=1).values
    wanted = np.sort((distances[:, 1] / distances[:, 0]).numpy())
    ratios, count = neighbour_ratios(states)
    assert count == 700
    assert ratios == pytest.approx(wanted, rel=1e-6)
    turned = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64)).Q
    assert neighbour_ratios(40 * states @ turned + 7)[0] == pytest.approx(wanted, rel=1e-6)


def test_near_neighbours_far_from_the_origin_are_told_apart():
    """A product of float32 states rounds distances of 1e-5 away; they are taken again exactly."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(300, 20, generator=generator, dtype=torch.float64)
    twins = base + 1e-5 * torch.randn(300, 20, generator=generator, dtype=torch.float64)
    ratios, _ = neighbour_ratios(torch.cat([base, twins]))
    assert ratios.min() > 1e4


def test_duplicates_have_no_ratio_but_count():
    states = torch.cat([cube(400, 3), cube(100, 3)[:1].expand(100, -1)])
    ratios, count = neighbour_ratios(states)
    assert count == 500
    assert len(ratios) == 400 - 1  # the hundred, and the one that they repeat, have a neighbour at no distance
    plain = dimension_estimates(ratios, 399)["lowest 20 %"]
    assert dimension_estimates(ratios, count)["lowest 20 %"] == pytest.approx(plain * 399 / 500, rel=0.02)


def test_the_estimates_by_hand():
    """μ = e^{1/10}, e^{2/10}, …: −ln(1 − F) over ln μ through the origin, and n over the sum."""
    logs = np.arange(1, 11) / 10
    found = dimension_estimates(np.exp(logs), 10)
    assert found["likelihood"] == pytest.approx(10 / 5.5)
    two, rise = logs[:2], -np.log([0.9, 0.8])
    assert found["lowest 20 %"] == pytest.approx((two @ rise) / (two @ two))
    nothing = dimension_estimates(np.ones(20), 20)
    assert all(np.isnan(value) for value in nothing.values())


def test_participation_ratio():
    line = torch.linspace(-1, 1, 50)[:, None] * torch.randn(1, 8)
    assert participation_ratio(line) == pytest.approx(1, abs=1e-6)
    corners = torch.cat([torch.eye(6), -torch.eye(6)])
    assert participation_ratio(corners) == pytest.approx(6)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(100, 400, generator=generator)
    assert participation_ratio(noise) == pytest.approx(100 * 400 / 500, rel=0.02)


def test_curves_over_the_size_of_the_sample():
    states = torch.stack([cube(600, 2), cube(600, 6)])
    found = intrinsic_dimension(states, layers=(5, 9), sizes=(64, 300, 5000))
    assert found["size"].to_numpy().tolist() == [64, 300, 600]
    assert found.layer.to_numpy().tolist() == [5, 9]
    whole = dimension_estimates(*neighbour_ratios(states[1]))
    last = found.dimension.sel(layer=9, size=600)
    assert last.to_numpy() == pytest.approx(list(whole.values()), rel=1e-6)  # the order of tokens does not matter
    assert float(found.participation_ratio.sel(layer=5, size=600)) == pytest.approx(participation_ratio(states[0]), rel=1e-9)
    assert float(found.participation_ratio_null.sel(size=300)) == pytest.approx(300 * 50 / 350)
    assert float(found.distinct_share.min()) == 1


def test_too_few_states_are_refused():
    with pytest.raises(InputError, match="16 tokens or more"):
        neighbour_ratios(torch.randn(8, 4))
    with pytest.raises(InputError, match="finite"):
        neighbour_ratios(torch.full((20, 4), torch.nan))
    with pytest.raises(InputError, match="samples of"):
        intrinsic_dimension(torch.randn(2, 30, 4), sizes=(8,))
