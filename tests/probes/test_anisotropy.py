"""Anisotropy: one direction, none, and what a mean and a massive token do to it."""

from __future__ import annotations

import pytest
import torch

from lens.base.errors import InputError
from lens.probes.anisotropy import anisotropy


def found(states: torch.Tensor, **kept: torch.Tensor):
    everything = torch.ones(states.shape[0], dtype=torch.bool)
    return anisotropy(states[None], {"all": everything, **kept})


def value(states: torch.Tensor, name: str = "anisotropy", mean: str = "removed", kept: str = "all", **masks) -> float:
    return found(states, **masks)[name].sel(layer=0, kept=kept, mean_of_states=mean).item()


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(4000, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_one_direction_is_one_and_isotropic_states_are_at_their_null(noise):
    line = torch.linspace(-1, 2, 40, dtype=torch.float64)[:, None] * torch.randn(1, 7, dtype=torch.float64)
    assert value(line) == pytest.approx(1, abs=1e-12)
    assert found(noise).anisotropy_null.item() == pytest.approx(0.0134, abs=5e-5)
    assert value(noise) == pytest.approx(0.0134, rel=0.03)
    assert value(noise, "mean_cosine") == pytest.approx(0, abs=1e-3)


def test_it_does_not_care_about_frame_place_and_scale(noise):
    states = noise[:500] * torch.logspace(0, 1, 100)
    turned = torch.linalg.qr(torch.randn(100, 100, dtype=torch.float64)).Q
    assert value(9 * states @ turned + 5) == pytest.approx(value(states), rel=1e-9)


def test_a_mean_that_is_left_in_looks_like_a_direction(noise):
    moved = noise + 3
    assert value(moved) == pytest.approx(value(noise), rel=1e-9)
    # n·‖μ‖² of n·(‖μ‖² + d), up to the noise's own share
    assert value(moved, mean="left in") == pytest.approx(900 / 1000, abs=0.01)
    assert value(moved, "mean_cosine", mean="left in") == pytest.approx(0.9, abs=0.01)
    assert value(moved, "mean_cosine") == pytest.approx(0, abs=1e-3)


def test_one_massive_token_is_nearly_all_variance_until_it_is_left_out(noise):
    noise[0, 3] = 1e5
    robust = torch.ones(4000, dtype=torch.bool)
    robust[0] = False
    assert value(noise, robust=robust) > 0.999
    assert value(noise, kept="robust", robust=robust) == pytest.approx(0.0134, rel=0.03)
    assert found(noise, robust=robust).tokens.to_numpy().tolist() == [4000, 3999]


def test_mean_cosine_is_that_of_all_pairs():
    states = torch.randn(30, 5, dtype=torch.float64) + 1
    unit = states / states.norm(dim=1, keepdim=True)
    pairs = (unit @ unit.T)[~torch.eye(30, dtype=torch.bool)]
    assert value(states, "mean_cosine", mean="left in") == pytest.approx(float(pairs.mean()), rel=1e-9)


def test_choices_without_tokens_are_refused(noise):
    with pytest.raises(InputError, match="'none'"):
        found(noise, none=torch.zeros(4000, dtype=torch.bool))
    with pytest.raises(InputError, match="'short'"):
        found(noise, short=torch.ones(3, dtype=torch.bool))
