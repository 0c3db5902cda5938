"""Profiles by offset: exact Toeplitz logits, noise of equal energy, a planted lane, and heads of models."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

import lens
from lens.base.errors import InputError
from lens.models.frequencies import rope_table
from lens.probes.offset_profile import offset_profile, profile_of, shuffled_profile, spectrum_of
from tests.models.families import build


def test_a_function_of_distance_is_all_that_a_toeplitz_matrix_has():
    values = np.random.default_rng(0).standard_normal(40)
    profile, share = profile_of(scipy.linalg.toeplitz(values))
    assert profile == pytest.approx(values)
    assert share == pytest.approx(1, abs=1e-12)


def test_noise_of_equal_energy_leaves_half():
    random = np.random.default_rng(1)
    clean = scipy.linalg.toeplitz(random.standard_normal(600))
    lower = np.tril(np.ones_like(clean)).astype(bool)
    noise = random.standard_normal(clean.shape)
    noise *= np.linalg.norm(clean[lower]) / np.linalg.norm(noise[lower])
    assert profile_of(clean + noise)[1] == pytest.approx(0.5, abs=0.02)


def test_what_lies_above_the_diagonal_does_not_count():
    values = np.random.default_rng(2).standard_normal((20, 20))
    assert profile_of(values) == (pytest.approx(profile_of(np.tril(values))[0]), pytest.approx(profile_of(np.tril(values))[1]))


def test_a_planted_lane_is_found_where_it_turns():
    """Lane 10 of 32 at base 10,000 over 4,096 tokens: the peak is within one over the length of θ/2π."""
    theta = rope_table("default", 1e4, 64).theta[10]
    frequency, power = spectrum_of(np.cos(theta * np.arange(4096)))
    peak = frequency[power.argmax()]
    assert theta / (2 * np.pi) == pytest.approx(0.008950, abs=5e-7)
    assert peak == pytest.approx(theta / (2 * np.pi), abs=1 / 4096)


@pytest.fixture
def states(tokenizer):
    return lens.head_states(lens.load(build("llama"), tokenizer), list(range(5, 45)))


def test_heads_of_a_model(states):
    found = offset_profile(states)
    logits = states[1].logits(2)
    assert float(found.profile[1, 2, 7]) == pytest.approx(np.diagonal(logits, -7).mean())
    assert found.toeplitz_share.shape == (len(states), len(states[0].query))
    assert ((found.toeplitz_share >= 0) & (found.toeplitz_share <= 1)).all()
    assert found.cells.to_numpy().tolist() == list(range(40, 0, -1))
    assert float(found.frequency[-1]) == pytest.approx(0.5)
    one = offset_profile(states[1])
    assert np.array_equal(one.power[0], found.power[1])


def test_the_same_token_everywhere_knows_distances_only(tokenizer):
    """Queries and keys that are all alike before rotation: what is left is the offset."""
    (first, *_) = lens.head_states(lens.load(build("llama"), tokenizer), [7] * 30)
    assert offset_profile(first).toeplitz_share.to_numpy() == pytest.approx(1, abs=1e-6)


def test_lanes_show_where_they_turn(states, tokenizer):
    found = offset_profile(states)
    assert found.lane_frequency.to_numpy() == pytest.approx(np.array([block.theta for block in states]) / (2 * np.pi))
    without = offset_profile(lens.head_states(lens.load(build("gpt2"), tokenizer), list(range(5, 45))))
    assert without.sizes["lane"] == 0


def test_the_order_of_the_tokens_can_be_taken_out(tokenizer):
    model = lens.load(build("llama"), tokenizer)
    ids = list(range(5, 45))
    found = shuffled_profile(model, ids, seed=3, blocks=[1])
    order = np.random.default_rng(3).permutation(39)
    (states,) = lens.head_states(model, [ids[0], *np.array(ids[1:])[order].tolist()], [1])
    assert np.array_equal(found.profile, offset_profile(states).profile)
    assert found.attrs["shuffled"] == 3
    assert not np.array_equal(found.profile, offset_profile(lens.head_states(model, ids, [1])).profile)
    # A text of one token over and over has no order to lose.
    same = offset_profile(lens.head_states(model, [7] * 40, [1])).toeplitz_share
    assert np.array_equal(shuffled_profile(model, [7] * 40, blocks=[1]).toeplitz_share, same)


def test_short_texts_and_no_blocks_are_refused(tokenizer):
    states = lens.head_states(lens.load(build("llama"), tokenizer), list(range(5, 20)))
    with pytest.raises(InputError, match="15 tokens"):
        offset_profile(states)
    with pytest.raises(InputError, match="0 shapes"):
        offset_profile([])
