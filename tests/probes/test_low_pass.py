"""Attention as a filter over positions: known filters, and what parts of real blocks do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lens.base.errors import InputError
from lens.models.head_weights import head_weights
from lens.models.model import Model
from lens.models.run import block_states
from lens.probes.low_pass import STAGES, attention_factors, attention_response, cosine_waves, low_pass
from lens.probes.rank_collapse import collapse_measures
from tests.models.families import build

SIZE = 8


def response(weights: torch.Tensor) -> np.ndarray:
    return attention_response(weights).response.to_numpy()


def test_waves_are_orthonormal_and_the_first_is_constant():
    waves = cosine_waves(SIZE)
    assert np.allclose(waves.T @ waves, np.eye(SIZE), atol=1e-14)
    assert np.allclose(waves[:, 0], SIZE**-0.5)
    assert np.allclose(waves[:, 3], np.sqrt(2 / SIZE) * np.cos(np.pi * 3 * (np.arange(SIZE) + 0.5) / SIZE))


def test_known_filters():
    uniform = torch.full((SIZE, SIZE), 1 / SIZE, dtype=torch.float64)
    identity = torch.eye(SIZE, dtype=torch.float64)
    assert response(identity) == pytest.approx(np.ones(SIZE))
    assert response(uniform) == pytest.approx(np.eye(SIZE)[0], abs=1e-15)
    causal = torch.ones(SIZE, SIZE, dtype=torch.float64).tril() / torch.arange(1, SIZE + 1)[:, None]
    passed = response(causal)
    assert passed[0] == pytest.approx(1)
    assert (np.diff(passed) < 0).all()  # means over ever more tokens pass the less, the faster the wave
    # Over all frequencies the squares add up to those of the weights: 761/280 for this pattern.
    assert (passed**2).sum() == pytest.approx(761 / 280)
    assert float(attention_response(causal).passed) == pytest.approx(np.sqrt((761 / 280 - 1) / (SIZE - 1)))


def test_heads_and_blocks_keep_their_axes():
    weights = torch.rand(2, 3, SIZE, SIZE).tril()
    weights = weights / weights.sum(-1, keepdim=True)
    found = attention_response(weights)
    assert found.response.dims == ("block", "head", "frequency")
    assert found.response.sel(block=1, head=2).to_numpy() == pytest.approx(response(weights[1, 2]))


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi"])
def test_parts_are_compared_with_what_enters_them_and_blocks_with_the_stream(family: str):
    model, ids = Model(build(family)), list(range(3, 19))
    found = low_pass(model, ids)
    assert found.change.dims == ("stage", "block")
    assert tuple(found.stage.to_numpy()) == STAGES
    states = block_states(model.module, model.anatomy, torch.tensor([ids]), ("residual", "attention"))
    level = [collapse_measures(states["attention"][place : place + 1, 0, 1:])["high_to_low"][0] for place in (1, 4)]
    assert float(found.change.sel(stage="attention", block=1)) == pytest.approx(level[1] - level[0])
    stream = collapse_measures(states["residual"][:, 0, 1:])["high_to_low"]
    assert found.change.sel(stage="block").to_numpy() == pytest.approx(np.diff(stream))
    assert found.attrs["model"] == model.name


def test_the_factors_of_attention_are_measured_one_without_the_other():
    """By hand for block 1: its patterns on what it takes, and its values and outputs on the same."""
    model, ids = Model(build("llama")), list(range(3, 19))
    found = attention_factors(model, ids, head_weights(model)).factor_change.sel(block=1)
    taken = block_states(model.module, model.anatomy, torch.tensor([ids]), ("attention",))["attention"][1, 0]
    patterns = model.run(ids, attention=True).attention
    attention: Any = model.anatomy.blocks[1].module
    assert patterns is not None
    value, output = attention.self_attn.v_proj.weight.T, attention.self_attn.o_proj.weight.T
    values = (taken @ value).unflatten(-1, (2, 8)).repeat_interleave(2, dim=1).flatten(1)

    def level(states: torch.Tensor) -> float:
        return float(collapse_measures(states[None, 1:])["high_to_low"][0])

    mixed = np.mean([level(pattern @ taken) for pattern in patterns[1]])
    assert float(found.sel(factor="patterns")) == pytest.approx(mixed - level(taken), abs=1e-5)
    assert float(found.sel(factor="matrices")) == pytest.approx(level(values @ output) - level(taken), abs=1e-5)
    with pytest.raises(InputError, match="weights of 2 blocks"):
        attention_factors(model, ids, head_weights(model, [0, 1]))


def test_short_texts_are_refused():
    with pytest.raises(InputError, match="2 tokens"):
        low_pass(Model(build("llama")), [3, 4])
