"""Lanes add up to logits, in both layouts, wherever the text stands; usage finds the lane that was planted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lens
from lens.base.errors import InputError, UnsupportedModelError
from lens.models.heads import HeadStates, from_lanes, head_states
from lens.probes.lanes import first_key_lead, head_lanes, lane_contributions, lane_logits, lane_offsets, lane_profiles, lane_usage
from tests.models.families import build

LENGTH, WIDTH, HEADS, KV_HEADS = 12, 16, 4, 2
THETA = 10_000.0 ** (-np.arange(0, WIDTH, 2) / WIDTH)


def made_up(
    seed: int = 0, *, width: int = WIDTH, rotary: tuple[int, int] = (0, WIDTH), length: int = LENGTH, **changes
) -> HeadStates:
    """Random queries and keys of one block."""
    generator = torch.Generator().manual_seed(seed)

    def normal(heads: int) -> torch.Tensor:
        return torch.randn(heads, length, width, generator=generator)

    lanes = (rotary[1] - rotary[0]) // 2
    theta = 10_000.0 ** (-np.arange(lanes) / lanes)
    facts = {
        "block": 1, "query": normal(HEADS), "key": normal(KV_HEADS), "value": normal(KV_HEADS), "theta": theta,
        "attention_factor": 1.25, "layout": "half", "rotary": rotary, "scaling": 0.3, "softcap": None, "window": None,
        "sinks": None,
    }  # fmt: skip
    return HeadStates(**{**facts, **changes})


def all_cells(length: int) -> np.ndarray:
    return np.indices((length, length)).reshape(2, -1)


@pytest.mark.parametrize(("width", "rotary"), [(16, (0, 16)), (20, (0, 16)), (19, (0, 16)), (20, (4, 20))])
def test_lanes_and_the_unrotated_part_sum_to_the_logits(width, rotary):
    states = made_up(width=width, rotary=rotary)
    for head in range(HEADS):
        parts = lane_contributions(head_lanes(states, head), *all_cells(LENGTH))
        assert np.abs(parts.sum(1).reshape(LENGTH, LENGTH) - states.logits(head)).max() < 1e-10


def test_the_dataset_holds_the_same_sum_and_names_the_lanes():
    states = made_up(width=20)
    found = lane_logits(states, 3, [(5, 4), (2, 9)], context=1000)
    assert found.contribution.dtype == np.float64
    whole = found.contribution.sum("lane") + found.unrotated
    assert np.abs(whole - found.logit).max() < 1e-10
    assert np.abs(found.logit.to_numpy() - states.logits(3)[[5, 2], [4, 9]]).max() < 1e-10
    assert found.wavelength[0] == pytest.approx(2 * np.pi)
    assert found.band.to_numpy().tolist() == ["fast"] * 2 + ["middle"] * 3 + ["slow"] * 3


def test_both_layouts_hold_the_same_lanes():
    half = made_up()
    swapped = {name: from_lanes(getattr(half, f"{name}_lanes")(), "interleaved") for name in ("query", "key")}
    other = made_up(layout="interleaved", **{name: torch.as_tensor(value) for name, value in swapped.items()})
    assert not torch.equal(other.query.float(), half.query)
    one, two = (lane_contributions(head_lanes(states, 1), *all_cells(LENGTH)) for states in (half, other))
    assert np.abs(one - two).max() < 2e-15


def test_adding_to_all_positions_changes_nothing():
    """Unscaled logits of normal queries and keys, as in the identity's published tolerance."""
    generator = np.random.default_rng(0)
    query, key = (generator.normal(size=(2, 32, 2)).view(complex)[..., 0] for _ in range(2))
    theta = 10_000.0 ** (-np.arange(32) / 32)
    for offset in (0, 1_000_000):
        turn = np.exp(1j * np.multiply.outer(np.array([7, 3]) + offset, theta))
        logit = ((query[0] * turn[0]) * (key[1] * turn[1]).conj()).real.sum()
        if not offset:
            first = logit
    assert abs(logit - first) < 1e-8


def test_rotation_keeps_lengths_up_to_the_attention_factor():
    states = made_up()
    lanes = head_lanes(states, 0)
    itself = lane_contributions(lanes, np.arange(LENGTH), np.arange(LENGTH))
    straight = 0.3 * 1.25**2 * (lanes.query * lanes.key.conj()).real
    assert np.abs(itself - straight).max() < 1e-14


def test_profiles_are_means_along_the_diagonals():
    lanes = head_lanes(made_up(), 2)
    parts = lane_contributions(lanes, *all_cells(LENGTH)).reshape(LENGTH, LENGTH, -1)
    means = [np.diagonal(parts, -offset).mean(-1) for offset in range(LENGTH)]
    assert np.abs(lane_profiles(lanes).T - means).max() < 1e-13


def test_offsets_leave_the_first_token_out_and_end_at_the_window():
    states = made_up(window=5)
    found = lane_offsets(states, 0)
    logits = states.logits(0)[1:, 1:]
    assert found.offset.to_numpy().tolist() == [0, 1, 2, 3, 4]
    assert found.pairs.to_numpy().tolist() == [11, 10, 9, 8, 7]
    assert np.allclose(found.logit, [np.diagonal(logits, -offset).mean() for offset in range(5)], atol=1e-12)
    assert np.allclose(
        found.level.sum(), np.concatenate([np.diagonal(logits, -offset) for offset in range(5)]).mean(), atol=1e-12
    )


def test_the_first_keys_lead_is_its_mean_less_that_of_all_others():
    lanes = head_lanes(made_up(), 1)
    logits = lane_contributions(lanes, *all_cells(LENGTH)).sum(1).reshape(LENGTH, LENGTH)
    others = np.mean([logits[m, n] for m in range(1, LENGTH) for n in range(1, m + 1)])
    assert first_key_lead(lanes).sum() == pytest.approx(logits[1:, 0].mean() - others, abs=1e-12)


def test_another_table_is_taken_with_its_factor():
    states = made_up()
    found = lane_logits(states, 0, [(9, 2)], context=1000, theta=THETA / 8, attention_factor=2.0)
    assert float(found.logit[0]) == pytest.approx(states.logits(0, THETA / 8, 2.0)[9, 2], abs=1e-12)


# -- usage ----------------------------------------------------------------------------------------


def test_shares_sum_to_one_and_bands_share_them():
    usage = lane_usage([made_up(0), made_up(1, block=2)], context=1000)
    for name in ("query_share", "key_share", "joint_share"):
        assert np.allclose(usage[name].sum("lane"), 1, atol=1e-6)
    assert dict(usage.sizes) == {"block": 2, "head": HEADS, "lane": 8}
    assert np.allclose(usage.fast_share, usage.joint_share[..., :2].sum("lane"))
    assert np.allclose(usage.slow_share, usage.joint_share[..., 5:].sum("lane"))


def test_a_planted_lane_is_found_and_so_is_its_coherence():
    states = made_up()
    for part in (states.query, states.key):
        part[1, 1:, [3, 11]] = torch.tensor([40.0, 30.0]) + 0.1 * torch.randn(LENGTH - 1, 2)
    usage = lane_usage(states, context=1000).isel(block=0)
    assert (
        int(usage.query_share[1].argmax("lane")) == int(usage.key_share[2].argmax("lane")) == 3
    )  # heads 2 and 3 read the second key head
    assert usage.query_amplitude[1, 3] == pytest.approx(50, abs=0.2)
    assert usage.query_coherence[1, 3] > 10_000
    others = usage.query_coherence.where(usage.lane != 3)
    assert others.max() < 5


def test_the_first_token_is_left_out_and_given_by_itself():
    states = made_up()
    usage = lane_usage(states, context=1000)
    states.key[:, 0] *= 1000
    again = lane_usage(states, context=1000)
    assert np.array_equal(usage.joint_share, again.joint_share)
    assert np.allclose(again.first_key_amplitude, 1000 * usage.first_key_amplitude, rtol=1e-5)


def test_grouped_heads_read_the_same_keys():
    usage = lane_usage(made_up(), context=1000).isel(block=0)
    assert usage.kv_head.to_numpy().tolist() == [0, 0, 1, 1]
    assert np.array_equal(usage.key_amplitude[0], usage.key_amplitude[1])
    grouped = usage.query_amplitude.groupby("kv_head").mean()
    assert np.allclose(grouped[1], usage.query_amplitude[2:].mean("head"))


def test_random_content_has_no_preference_and_no_coherence():
    usage = lane_usage(made_up(length=4000), context=1000)
    assert np.abs(usage.joint_share * 8 - 1).max() < 0.06
    assert usage.query_coherence.max() < 0.005


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: head_lanes(made_up(), 4), "Head 4"),
        (lambda: head_lanes(made_up(), 0, theta=THETA[:3]), "The table has 3 lanes"),
        (lambda: lane_logits(made_up(), 0, [(1, 12)], context=100), r"The cells \[\(1, 12\)\]"),
        (lambda: lane_logits(made_up(), 0, [], context=100), "asked for"),
        (lambda: lane_offsets(made_up(length=2), 0), "2 tokens"),
        (lambda: lane_usage([], context=100), "No block"),
        (lambda: lane_usage(made_up(length=2), context=100), "The text has 2 tokens"),
        (
            lambda: lane_usage([made_up(), made_up(query=torch.ones(6, LENGTH, WIDTH))], context=100),
            "The blocks have 4 and 6 heads",
        ),
    ],
)
def test_refusals_say_what_was_found(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_blocks_of_several_widths_stand_beside_each_other():
    """Gemma 4 has heads of two widths; what the narrower ones lack is NaN and counts in no band."""
    wide, narrow = made_up(), made_up(block=2, width=8, rotary=(0, 8))
    both, alone = lane_usage([wide, narrow], context=1000), lane_usage(narrow, context=1000)
    assert dict(both.sizes) == {"block": 2, "head": HEADS, "lane": 8}
    assert np.array_equal(both.joint_share[1, :, :4], alone.joint_share[0])
    assert np.isnan(both.joint_share[1, :, 4:]).all()
    assert both.band[1].to_numpy().tolist() == [*alone.band[0].to_numpy(), *[""] * 4]
    for name in ("fast_share", "slow_share"):
        assert np.array_equal(both[name][1], alone[name][0])


def test_blocks_that_rotate_nothing_are_left_out_or_refused():
    still = made_up(theta=np.zeros(0), rotary=(0, 0))
    assert lane_usage([still, made_up(block=2)], context=100).block.to_numpy().tolist() == [2]
    with pytest.raises(UnsupportedModelError, match="No block rotates"):
        lane_usage(still, context=100)
    with pytest.raises(UnsupportedModelError, match="Block 1 rotates nothing"):
        head_lanes(still, 0)


@pytest.mark.parametrize("family", ["llama", "gptj", "phi", "qwen3", "gemma3", "gpt-neox"])
def test_lanes_of_real_architectures_sum_to_their_logits(family):
    """Half and interleaved layouts, unrotated dimensions, norms of queries, several tables."""
    model = lens.load(build(family))
    for states in head_states(model, list(range(3, 13))):
        logits = states.logits(1)
        if states.softcap is None:
            parts = lane_contributions(head_lanes(states, 1), *all_cells(10))
            assert np.abs(parts.sum(1).reshape(10, 10) - logits).max() < 1e-10 * max(1, np.abs(logits).max())
