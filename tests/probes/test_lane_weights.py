"""Weights by lane: rows are paired as the layout says, and tell what white states would give."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lens
from lens.base.errors import UnsupportedModelError
from lens.models.heads import to_lanes
from lens.probes.lane_weights import lane_weights, weight_lanes
from tests.models.families import build


def test_rows_are_paired_as_the_layout_says():
    weight = np.zeros((1, 6, 3))
    weight[0, 1], weight[0, 4] = [3, 0, 0], [0, 4, 0]
    assert weight_lanes(weight, (0, 6), "half").tolist() == [[0, 5, 0]]
    assert weight_lanes(weight, (0, 6), "interleaved").tolist() == [[3, 0, 4]]


def test_norms_are_the_root_mean_square_lengths_of_white_states():
    model = lens.load(build("llama"))
    found = lane_weights(model)
    projection = model.anatomy.blocks[1].attention.q_proj.weight.detach().double()
    white = torch.randn(200_000, projection.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    lanes = to_lanes((white @ projection.T).reshape(len(white), 4, -1), "half")
    assert np.allclose(np.sqrt((np.abs(lanes) ** 2).mean(0)), found.query_norm[1], rtol=0.01)


def test_shares_sum_to_one_and_grouped_heads_share_keys():
    found = lane_weights(lens.load(build("qwen3")), context=100)
    assert np.allclose(found.joint_share.sum("lane"), 1, atol=1e-6)
    assert np.array_equal(found.key_norm[:, 0], found.key_norm[:, 1])
    assert np.allclose(found.fast_share, found.joint_share.where(found.band == "fast").sum("lane"), atol=1e-6)


@pytest.mark.parametrize(("family", "message"), [("gpt-neox", "no linear q_proj"), ("gpt2", "rot")])
def test_models_without_projections_apart_or_without_lanes_are_refused(family, message):
    with pytest.raises(UnsupportedModelError, match=message):
        lane_weights(lens.load(build(family)))
