"""Patterns at their places in the text, and spectra that are known by heart."""

from __future__ import annotations

import numpy as np
import pytest

import lens
from lens.models.heads import head_states
from lens.probes.attention_battery import head_detail
from lens.probes.seen_patterns import seen_detail, seen_pattern
from tests.models.families import build

IDS = [5, 9, 5, 11, 30, 9, 5, 77]


@pytest.fixture(scope="module", params=["llama", "mistral"])
def states(request):
    return head_states(lens.load(build(request.param)), IDS)


def test_a_pattern_is_the_heads_and_blank_where_it_sees_nothing(states):
    for block in states:
        for head in range(len(block.query)):
            found, pattern = seen_pattern(block, head).to_numpy(), block.pattern(head)
            assert np.array_equal(np.isnan(found), ~block.seen())
            assert np.array_equal(np.nan_to_num(found), pattern)


def test_without_its_first_key_a_pattern_keeps_its_places(states):
    found, whole = seen_pattern(states[1], 2, drop_sink=True), states[1].pattern(2)
    assert np.isnan(found[0]).all()
    assert np.isnan(found[:, 0]).all()
    assert np.nansum(found[1:], axis=1) == pytest.approx(1, abs=1e-12)
    assert float(found[5, 4]) == pytest.approx(whole[5, 4] / (1 - whole[5, 0]), rel=1e-12)
    assert found.sizes == {"query": 8, "key": 8}


@pytest.mark.parametrize("drop_sink", [False, True])
def test_the_detail_agrees_with_the_batterys(states, drop_sink):
    found, whole = seen_detail(states[2], 1, drop_sink=drop_sink), head_detail(states[2], 1, drop_sink=drop_sink)
    first = int(drop_sink)
    assert np.array_equal(found.singular_value, whole.singular_value)
    assert np.array_equal(found.uniform_singular_value, whole.known_singular_value.sel(known="uniform"))
    assert (found.identity_singular_value == 1).all()
    assert np.array_equal(found.logit[first:, first:], whole.logits, equal_nan=True)
    assert np.array_equal(np.nan_to_num(found.attention[first:, first:]), whole.attention)
    assert float(found.largest_norm) ** 2 == pytest.approx(8 - first)
    assert (found.singular_value <= found.largest_norm).all()
    assert found.attrs["effective_rank"] == whole.attrs["effective_rank"]
