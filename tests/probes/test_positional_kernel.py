"""Kernels of distance alone, the order of keys, and another base without a forward pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import lens
from lens.base.errors import InputError
from lens.models.frequencies import rope_table
from lens.models.heads import head_states
from lens.probes.lanes import HeadLanes, head_lanes, lane_profiles
from lens.probes.positional_kernel import (
    all_logits,
    counterfactual,
    diagonal_score,
    explained_variance,
    key_order,
    mean_field_kernel,
    order_of_keys,
    positional_kernel,
    positional_scores,
    previous_token_score,
    rebased,
)
from lens.probes.rope import kernel_values
from tests.models.families import build
from tests.probes.test_lanes import LENGTH, made_up

THETA = rope_table("default", 10_000.0, 64).theta


def lanes_of(query: np.ndarray, key: np.ndarray, theta: np.ndarray = THETA, weight: float = 1.0) -> HeadLanes:
    return HeadLanes(query, key, theta, np.full(len(theta), weight), len(theta))


def normal(seed: int, length: int, lanes: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(length, lanes, 2)).view(complex)[..., 0]


# -- the kernel -----------------------------------------------------------------------------------


def test_ones_give_the_kernel_of_the_frequencies_alone():
    ones = np.ones((2000, 32), dtype=complex)
    kernel = mean_field_kernel(lanes_of(ones, ones))
    assert np.abs(kernel - kernel_values(THETA, 2000)).max() < 1e-9
    assert kernel[0] == pytest.approx(32, abs=1e-12)
    assert np.flatnonzero(kernel < 0)[0] == 725  # published for base 10,000 and 64 rotary dimensions


def test_equal_tokens_are_explained_wholly_and_scrambled_ones_hardly():
    """With one content everywhere position is all there is; with contents of mean zero it is nothing."""
    query, key = normal(0, 1), normal(1, 1)
    same = lanes_of(np.repeat(query, 200, 0), np.repeat(key, 200, 0))
    share = explained_variance(all_logits(same), mean_field_kernel(same))
    assert share.kernel == pytest.approx(1, abs=1e-9)
    assert share.kernel_variance == pytest.approx(1, abs=1e-9)
    random = lanes_of(normal(2, 200), normal(3, 200))
    share = explained_variance(all_logits(random), mean_field_kernel(random))
    assert abs(share.kernel) < 0.03
    assert share.kernel <= share.offset < 0.05


def test_shares_are_what_their_definitions_say():
    lanes = head_lanes(made_up(), 0)
    logits, kernel = all_logits(lanes), mean_field_kernel(lanes)
    cells = [(m, n) for m in range(LENGTH) for n in range(m + 1)]
    found = np.array([logits[cell] for cell in cells])
    predicted = np.array([kernel[m - n] for m, n in cells])
    means = np.array([np.diagonal(logits, n - m).mean() for m, n in cells])
    share = explained_variance(logits, kernel)
    assert share.kernel_variance == pytest.approx(predicted.var() / found.var(), rel=1e-12)
    assert share.kernel == pytest.approx(1 - (found - predicted).var() / found.var(), rel=1e-12)
    assert share.offset == pytest.approx(1 - (found - means).var() / found.var(), rel=1e-12)


def test_the_window_limits_the_cells_and_the_offsets():
    lanes = replace(head_lanes(made_up(), 0), window=4)
    assert len(mean_field_kernel(lanes)) == len(lane_profiles(lanes)[0]) == 4
    logits = all_logits(lanes)
    seen = [logits[m, n] for m in range(LENGTH) for n in range(m + 1) if m - n < 4]
    means = [lane_profiles(lanes)[:, m - n].sum() for m in range(LENGTH) for n in range(m + 1) if m - n < 4]
    assert explained_variance(logits, mean_field_kernel(lanes), 4).offset == pytest.approx(np.var(means) / np.var(seen))


def test_the_dataset_leaves_the_first_token_out():
    states = made_up(length=40)
    found = positional_kernel(states, 1)
    states.key[:, 0] *= 1000
    again = positional_kernel(states, 1)
    assert np.array_equal(found.kernel, again.kernel)
    assert float(found.residual_fraction) == float(again.residual_fraction)
    assert found.sizes == {"offset": 39}


# -- the order of keys ----------------------------------------------------------------------------


def test_random_contents_of_mean_zero_have_no_order():
    draws = 20_000
    lanes = lanes_of(normal(0, draws), normal(1, draws))
    order = order_of_keys(lanes, 4096, [1, 64, 2048], draws, np.random.default_rng(2))
    error = 0.5 / np.sqrt(draws)
    assert abs(order.mean - 0.5) < 3 * error
    assert np.abs(order.far_beats_near - 0.5).max() < 3 * error


def test_nothing_flips_at_distance_zero_or_where_nothing_turns():
    lanes = lanes_of(normal(0, 500), normal(1, 500))
    assert order_of_keys(lanes, 4096, [0], 500, np.random.default_rng(0)).flipped.tolist() == [0]
    still = lanes.turned(0 * THETA)
    assert order_of_keys(still, 4096, [1, 4095], 500, np.random.default_rng(0)).flipped.tolist() == [0, 0]


def test_random_contents_flip_more_with_distance_and_less_with_a_larger_base():
    """Du et al.'s first half, which holds for random contents."""
    lanes = lanes_of(normal(0, 4000), normal(1, 4000))
    small, large = (
        order_of_keys(
            lanes.turned(rope_table("default", base, 64).theta), 4096, [4, 64, 2048], 4000, np.random.default_rng(0)
        ).flipped
        for base in (1e3, 1e7)
    )
    assert small[0] < small[1] < small[2]
    assert large[2] < small[2] - 0.1


def test_one_content_that_decays_is_always_nearer():
    """With equal keys near wins exactly where the kernel is larger: at base 10⁸ the kernel falls over the first tokens."""
    ones = np.ones((3, 32), dtype=complex)
    lanes = lanes_of(ones, ones, rope_table("default", 1e8, 64).theta)
    order = order_of_keys(lanes, 4096, [4095], 2000, np.random.default_rng(0))
    assert order.far_beats_near[0] < 0.05


def test_the_dataset_asks_at_powers_of_two_and_says_how_sure_it_is():
    found = key_order(made_up(length=40), 0, context=100, draws=400)
    assert found.distance.to_numpy().tolist() == [1, 2, 4, 8, 16, 32, 64]
    assert float(found.standard_error) == pytest.approx(0.025)
    with pytest.raises(InputError, match="in a context of 100"):
        key_order(made_up(), 0, context=100, distances=[100])


# -- another base ---------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.1, 8.0, 100.0])
def test_a_multiplied_base_is_the_table_of_that_base(factor):
    assert np.allclose(rebased(THETA, factor), rope_table("default", 10_000.0 * factor, 64).theta, rtol=1e-13)


def test_the_live_table_gives_the_live_patterns():
    states = made_up()
    found = counterfactual(states, 2, states.theta)
    assert np.array_equal(found.attention, found.attention_before)
    assert np.array_equal(found.logit, found.logit_before)
    changed = counterfactual(states, 2, rebased(states.theta, 0.01))
    assert np.abs(changed.attention - found.attention).max() > 0.05
    assert np.allclose(changed.attention.sum("key"), 1, atol=1e-6)


def test_at_the_live_base_attention_is_the_models_own():
    model = lens.load(build("llama"))
    ids = list(range(3, 15))
    attention = model.run(ids, attention=True).attention
    for states in head_states(model, ids):
        found = counterfactual(states, 3, states.theta)
        assert np.abs(found.attention.to_numpy() - attention[states.block, 3].numpy()).max() < 1e-5


def test_scores_are_those_of_known_patterns():
    previous = np.eye(8, k=-1)
    previous[0, 0] = 1
    assert (previous_token_score(previous), diagonal_score(previous)) == (1, 0)
    assert (previous_token_score(np.eye(8)), diagonal_score(np.eye(8))) == (0, 1)
    uniform = np.tri(8) / np.arange(1, 9)[:, None]
    assert previous_token_score(uniform) == pytest.approx(np.mean(1 / np.arange(3, 9)))
    assert diagonal_score(uniform) == pytest.approx(np.mean(1 / np.arange(2, 9)))


def test_a_planted_previous_token_head_is_found():
    """One content, whose fastest lane is turned back by one token: the logit is largest there."""
    states = made_up(scaling=1000.0)
    for part in (states.query, states.key):
        part.zero_()
    states.key[:, :, 0] = 1.0
    states.query[1, :, 0], states.query[1, :, 8] = float(np.cos(-1)), float(np.sin(-1))
    scores = positional_scores([states]).isel(block=0)
    assert scores.previous_token[1] > 0.999
    assert scores.previous_token[0] == pytest.approx(np.mean(1 / np.arange(3, LENGTH + 1)), rel=1e-5)
