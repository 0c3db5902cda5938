"""Moments add up, and stay exact where plain float32 sums do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lens.base.errors import InputError
from lens.moments import Accumulator, Moments, outlier_limits, residual_pairs

LAYERS, WIDTH = 3, 5
PAIRS = ((0, 1), (0, 2), (1, 2))


def gather(states: torch.Tensor, flush_every: int = 64, shift: torch.Tensor | None = None) -> Moments:
    """Moments of `[layer, token, d]`, taken in windows of ten tokens."""
    start = torch.zeros(LAYERS, WIDTH) if shift is None else shift
    limits = torch.full((LAYERS,), torch.inf)
    into = Accumulator(start, limits, PAIRS, drop_first=False, source={"a": 1}, flush_every=flush_every)
    for piece in states.split(10, dim=1):
        into.add(piece[:, None])
    into.flush()
    return into.moments


def by_hand(states: torch.Tensor) -> dict[tuple[int, int], np.ndarray]:
    x = states.double().numpy()
    centred = x - x.mean(1, keepdims=True)
    return {(i, j): centred[i].T @ centred[j] for i in range(LAYERS) for j in range(i, LAYERS)}


def same(left: Moments, right: Moments, relative: float) -> bool:
    pairs = [(left.mean, right.mean), *((left.across[p], right.across[p]) for p in PAIRS)]
    pairs += [(left.within[i], right.within[i]) for i in range(LAYERS)]
    return left.count == right.count and all((a - b).norm() <= relative * b.norm().clamp(min=1e-9) for a, b in pairs)


@pytest.mark.parametrize("flush_every", [1, 7, 64, 10_000])
def test_equal_to_scatter_matrices_however_they_are_gathered(flush_every: int):
    states = torch.randn(LAYERS, 230, WIDTH)
    found, expected = gather(states, flush_every), by_hand(states)
    assert found.count == 230
    assert torch.allclose(found.mean, states.double().mean(1), atol=1e-6)
    for i in range(LAYERS):
        assert np.linalg.norm(found.within[i].numpy() - expected[i, i]) <= 1e-6 * np.linalg.norm(expected[i, i])
    for pair in PAIRS:
        assert np.linalg.norm(found.across[pair].numpy() - expected[pair]) <= 1e-6 * np.linalg.norm(expected[pair])


def test_a_large_mean_does_no_harm_when_the_shift_is_near_it():
    """Offset 100 with scales down to 1: uncentred float32 sums would be off by more than 1e-3."""
    scales = torch.logspace(0, 2, WIDTH)
    states = 100 + torch.randn(LAYERS, 5000, WIDTH) * scales
    found, expected = gather(states, 1000, shift=torch.full((LAYERS, WIDTH), 100.0)), by_hand(states)
    for pair in PAIRS:
        assert np.abs(found.across[pair].numpy() - expected[pair]).max() <= 1e-6 * np.abs(expected[1, 1]).max()


@settings(deadline=None, max_examples=40)
@given(sizes=st.lists(st.integers(1, 40), min_size=3, max_size=3), seed=st.integers(0, 2**31))
def test_merging_is_associative_and_commutative(sizes: list[int], seed: int):
    generator = torch.Generator().manual_seed(seed)
    a, b, c = (gather(torch.randn(LAYERS, n, WIDTH, generator=generator) * 3 + 1) for n in sizes)
    assert same((a + b) + c, a + (b + c), 1e-12)
    assert same(a + b, b + a, 1e-12)


def test_merging_equals_one_pass_over_everything():
    states = torch.randn(LAYERS, 300, WIDTH) + 2
    parts = [gather(piece) for piece in states.split(70, dim=1)]
    assert same(sum(parts[1:], parts[0]), gather(states), 1e-6)


def test_nothing_is_neutral():
    some = gather(torch.randn(LAYERS, 50, WIDTH))
    empty = Accumulator(torch.zeros(LAYERS, WIDTH), some.limits.float(), PAIRS, drop_first=False, source={"a": 1}).moments
    assert same(some + empty, some, 0.0)
    assert same(empty + some, some, 0.0)


def test_merging_refuses_other_limits_pairs_and_sources():
    some = gather(torch.randn(LAYERS, 50, WIDTH))
    limits = torch.ones(LAYERS)
    others = {
        "limits": Accumulator(torch.zeros(LAYERS, WIDTH), limits, PAIRS, drop_first=False, source={"a": 1}).moments,
        "pairs": Accumulator(
            torch.zeros(LAYERS, WIDTH), some.limits.float(), PAIRS[:1], drop_first=False, source={"a": 1}
        ).moments,
        "source": Accumulator(torch.zeros(LAYERS, WIDTH), some.limits.float(), PAIRS, drop_first=False, source={"a": 2}).moments,
    }
    for word, other in others.items():
        with pytest.raises(InputError, match=word):
            _ = some + other


def test_robust_mask_drops_exactly_the_massive_token():
    """One row of one layer gets a huge coordinate: it alone is dropped, at every layer."""
    states = torch.randn(LAYERS, 400, WIDTH)
    states[1, 123, 2] += 150 * WIDTH**0.5
    limits = outlier_limits(states.norm(dim=-1), "robust")
    into = Accumulator(torch.zeros(LAYERS, WIDTH), limits, PAIRS, drop_first=False, source={})
    into.add(states[:, None])
    into.flush()
    kept = [token for token in range(400) if token != 123]
    assert into.moments.dropped == {"first position": 0, "massive": 1}
    assert torch.allclose(into.moments.mean, states[:, kept].double().mean(1), atol=1e-6)


def test_first_positions_are_dropped_and_counted_apart():
    states = torch.randn(LAYERS, 4, 6, WIDTH)
    into = Accumulator(torch.zeros(LAYERS, WIDTH), torch.full((LAYERS,), torch.inf), PAIRS, drop_first=True, source={})
    into.add(states)
    into.flush()
    assert into.moments.dropped == {"first position": 4, "massive": 0}
    assert into.moments.count == 20
    assert torch.allclose(into.moments.mean, states[:, :, 1:].double().flatten(1, 2).mean(1), atol=1e-6)


def test_pairs_by_word():
    assert residual_pairs(2, "adjacent") == ((0, 1), (1, 2))
    assert residual_pairs(2, "to_final") == ((0, 2), (1, 2))
    assert residual_pairs(2, "both") == ((0, 1), (0, 2), (1, 2))
    assert len(residual_pairs(30, "all")) == 31 * 30 / 2
    assert residual_pairs(3, [(1, 3), (0, 2)]) == ((0, 2), (1, 3))


@pytest.mark.parametrize("wrong", ["some", [(2, 2)], [(2, 1)], [(0, 9)], []])
def test_wrong_pairs_are_refused(wrong):
    with pytest.raises(InputError, match="pairs"):
        residual_pairs(3, wrong)
