"""Channels that carry the stream: planted ones are found where they are, and constants can stand for themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lens
from lens.base.errors import InputError
from lens.corpora import Document
from lens.models.edits import change_states
from lens.probes.hidden_dimensions import (
    active_channels,
    channel_cost,
    hidden_dimensions,
    largest_channels,
    massive,
    shared_share,
)
from tests.models.families import build

DOCUMENTS = [Document(" ".join(f"w{(7 * i + 11 * n * n) % 120}" for i in range(40))) for n in range(3)]
LAYER, CHANNEL, SPIKE = 2, 5, 5e4


@pytest.fixture(scope="module")
def model(tokenizer):
    return lens.load(build("llama"), tokenizer)


def spike(states):
    """The same value at the first token of every text."""
    changed = states.clone()
    changed[:, 0, CHANNEL] = SPIKE
    return changed


def test_a_planted_spike_is_found_where_it_is(model):
    with change_states(model, [LAYER], spike):
        found = hidden_dimensions(model, DOCUMENTS, tokens=36)
    here = found.sel(layer=LAYER, size_rank=1)
    assert (here.largest == SPIKE).all()
    assert (here.largest_channel == CHANNEL).all()
    assert (here.largest_position == 0).all()
    assert (here.massive_count == 1).all()
    assert (here.massive_first == 1).all()
    assert (found.massive_count.sel(layer=[0, 1]) == 0).all()
    assert np.isnan(found.layer_overlap.sel(layer=0)).all()


def test_both_criteria_have_to_be_met():
    rows = torch.full((10, 10), 0.15)
    rows[3, 4] = -160.0
    assert massive(rows).nonzero().tolist() == [[3, 4]]
    rows[3, 4] = 140.0  # above 100, but not 1,000 times the median
    assert not massive(rows).any()
    rows = rows / 10  # 1,000 times the median is 15
    rows[0, 0] = 99.0
    assert not massive(rows).any()


def test_channels_that_hold_a_share_by_hand():
    states = torch.tensor([[4.0, -3.0, 2.0, 1.0], [0.0, 0.0, 5.0, 5.0], [1.0, 1.0, 1.0, 1.0]])
    assert active_channels(states, 0.5).tolist() == [
        [True, True, False, False],
        [False, False, True, False],
        [True, True, False, False],
    ]
    assert active_channels(states, 0.7).sum(-1).tolist() == [2, 2, 3]
    assert active_channels(states, 1.0)[0].all()
    assert largest_channels(states, 2)[0].tolist() == [4.0, -3.0, 0.0, 0.0]
    assert torch.equal(largest_channels(states, 4), states)
    with pytest.raises(InputError, match="The share is 0"):
        active_channels(states, 0.0)


def test_shared_and_specialised_channels_part_each_token_s_set():
    always, never = torch.ones(20, 3, dtype=torch.bool), torch.zeros(20, 3, dtype=torch.bool)
    by_turns = torch.eye(2, dtype=torch.bool).repeat(10, 1)
    assert shared_share(always, 10) == 1
    assert shared_share(by_turns, 10) == 0
    assert shared_share(torch.cat([always, by_turns, never], 1), 10) == pytest.approx(3 / 4)
    nine = always.clone()
    nine[[4, 14], 0] = False  # active at 9 of 10
    assert shared_share(nine, 10) == 1
    nine[5, 0] = False
    assert shared_share(nine, 10) == pytest.approx(((8 * 2 / 3 + 2) / 10 + 1) / 2)


def test_a_constant_spike_can_be_set_to_its_mean_but_not_to_0(model):
    with change_states(model, [LAYER], spike):
        found = channel_cost(model, DOCUMENTS, kept=(1.0, 0.25), tokens=36)
    assert np.allclose(found.massive_loss.sel(change="mean"), found.loss, atol=1e-3)
    assert abs(found.massive_loss.sel(change="zero") - found.loss).min() > 1e-2
    assert np.allclose(found.loss_kept.sel(kept=1.0), found.loss, atol=1e-6)
    assert abs(found.loss_kept.sel(kept=0.25) - found.loss).min() > 1e-2


def test_where_nothing_is_massive_nothing_is_changed(model):
    found = channel_cost(model, DOCUMENTS, kept=(0.5,), tokens=36)
    assert (found.massive_loss == found.loss).all()


def test_what_cannot_be_is_refused(model):
    with pytest.raises(InputError, match="A window of 40 tokens in 36"):
        hidden_dimensions(model, DOCUMENTS, tokens=36, window=40)
    with pytest.raises(InputError, match="The shares"):
        channel_cost(model, DOCUMENTS, kept=(0.0,), tokens=36)
