"""States of a stretch of a corpus, and which of its tokens are of a special kind."""

from __future__ import annotations

import pytest
import torch

import lens
from lens.base.errors import InputError, MemoryEstimateError
from lens.collect import draw_windows
from lens.moments import token_norms
from lens.probes.corpus_states import corpus_states


@pytest.fixture
def text():
    return lens.corpus([" ".join(f"w{(seed * i) % 90}" for i in range(40)) for seed in range(1, 60)])


def test_states_are_those_of_the_runs(tiny, text):
    found = corpus_states(tiny, text, torch.full((4,), torch.inf), tokens=200, layers=[3, 1], window=32)
    windows = draw_windows(tiny, text, "test", 200, 32)
    longest = [ids for ids in windows if len(ids) == 32]
    assert found.layers == (1, 3)
    assert found.states.shape == (2, sum(map(len, windows)), 32)
    wanted = tiny.run(longest[0], logits=False).residual[[1, 3]]
    assert torch.allclose(found.states[:, :32], wanted, atol=1e-4)
    assert found.token_ids[:32].tolist() == longest[0]
    assert int(found.first.sum()) == len(windows)
    assert bool(found.first[0])
    assert not bool(found.massive.any())


def test_masks_drop_first_tokens_and_then_massive_ones(tiny, text):
    open_limits = corpus_states(tiny, text, torch.full((4,), torch.inf), tokens=200, window=32)
    norms = token_norms(open_limits.states)
    limits = torch.full((4,), torch.inf)
    limits[2] = norms[2].sort().values[-6]
    masks = corpus_states(tiny, text, limits, tokens=200, window=32, layers=[0]).masks
    assert int(masks["all"].sum()) == len(open_limits.first)
    assert torch.equal(masks["without first"], ~open_limits.first)
    assert torch.equal(masks["robust"], ~open_limits.first & ~(norms[2] > limits[2]))


def test_refused(tiny, text):
    limits = torch.full((4,), torch.inf)
    with pytest.raises(InputError, match="some of 0 to 3"):
        corpus_states(tiny, text, limits, layers=[4])
    with pytest.raises(MemoryEstimateError, match="GiB"):
        corpus_states(tiny, text, limits, tokens=10**8)
    with pytest.raises(InputError, match="no windows"):
        corpus_states(tiny, lens.corpus(["w1 w2"]), limits)
