"""What heads do to what they attend to: direct effects that sum to the model's own logits, and heads built to copy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lens.base.errors import Cancelled, InputError
from lens.models.head_weights import head_weights
from lens.models.heads import head_states
from lens.models.model import Model
from lens.models.vocabulary_maps import vocabulary_maps
from lens.probes.copying_behaviour import copying_behaviour
from lens.probes.ov_circuit import arriving_states, ov_circuit
from lens.probes.random_tokens import random_tokens, repeated_tokens
from tests.models.families import build

IDS = [5, 9, 3, 77, 20, 41, 5, 9, 100, 63, 2, 18]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request) -> Model:
    return Model(build(request.param), name=request.param)


def test_each_number_from_the_full_logits(model: Model):
    """One head by hand: its output from each key, through the model's own norm gain and head."""
    weights, vocabulary = head_weights(model), vocabulary_maps(model)
    found = copying_behaviour(model, [IDS], weights, vocabulary).sel(document=0, block=1, head=2)
    (states,) = head_states(model, IDS, [1])
    pattern, values = states.pattern(2), states.value[states.kv_head_of(2)].double().numpy()
    logits = values @ weights[1].output[2] @ vocabulary.unembedding_of(torch.arange(model.vocab_size)).T  # [key, vocab]
    rises = np.array(
        [row[token] - row[[other for other in IDS if other != token]].mean() for row, token in zip(logits, IDS, strict=True)]
    )
    paid = pattern[1:, 1:].sum(0)
    wanted = paid @ (rises / logits.std(-1))[1:] / paid.sum()
    assert float(found.copying) == pytest.approx(wanted, rel=1e-5)
    last = model.run(IDS).residual[-1].double().numpy()
    last = last - last.mean(-1, keepdims=True) if vocabulary.norm.centred else last
    length = np.sqrt((last**2).mean(-1))
    rise = np.mean([pattern[m, 1 : m + 1] @ rises[1 : m + 1] / length[m] for m in range(1, len(IDS))])
    assert float(found.rise) == pytest.approx(rise, rel=1e-5)
    assert float(found.attended) == pytest.approx(1 - pattern[1:, 0].mean(), abs=1e-6)
    assert float(found.previous) == pytest.approx(np.mean([pattern[m, m - 1] for m in range(2, len(IDS))]), abs=1e-6)
    assert float(found.induction) == pytest.approx((pattern[6, 1] + pattern[7, 2]) / 2, abs=1e-6)


def test_heads_built_to_copy_and_to_suppress(tiny: Model):
    """Values that hold the embeddings, outputs that write the tokens' own unembeddings: the measure has their signs."""
    module: Any = build("llama")
    with torch.no_grad():
        embedding, head = module.get_input_embeddings().weight, module.get_output_embeddings().weight
        attention = module.model.layers[0].self_attn
        left, _, right = torch.linalg.svd(head.T @ embedding)  # [d, d], what turns embeddings into unembeddings
        attention.v_proj.weight[:8] = right[:8] / module.model.layers[0].input_layernorm.weight
        attention.o_proj.weight[:, :8] = left[:, :8] / module.model.norm.weight[:, None]
        attention.o_proj.weight[:, 8:16] = -attention.o_proj.weight[:, :8]
    model = Model(module)
    weights, vocabulary = head_weights(model, [0]), vocabulary_maps(model)
    found = copying_behaviour(model, [IDS, repeated_tokens(model, 20)], weights, vocabulary)
    assert (found.copying.sel(head=0) > 0.5).all()
    assert (found.copying.sel(head=1) < -0.5).all()
    np.testing.assert_allclose(np.sign(found.rise.isel(head=slice(0, 2))), np.sign(found.copying.isel(head=slice(0, 2))))


def test_a_norm_behind_the_heads_leaves_no_rise():
    model = Model(build("gemma2"))
    found = copying_behaviour(model, [IDS], head_weights(model, [0]), vocabulary_maps(model))
    assert np.isnan(found.rise).all()
    assert np.isfinite(found.copying).all()


def test_random_tokens(tiny: Model):
    ids = repeated_tokens(tiny, 20, seed=3)
    assert ids[:20] == ids[20:]
    assert len(set(ids)) == 20
    assert not set(ids) & set(tiny.tokenizer.all_special_ids)
    assert repeated_tokens(tiny, 20, seed=3) == ids != repeated_tokens(tiny, 20, seed=4)
    with pytest.raises(InputError, match="the context"):
        repeated_tokens(tiny, 40)
    for count in (1, 1000):
        with pytest.raises(InputError, match="random tokens"):
            random_tokens(tiny, count)


def test_induction_of_a_text_without_repetition(tiny: Model):
    found = copying_behaviour(tiny, [[4, 5, 6]], head_weights(tiny, [0]), vocabulary_maps(tiny))
    assert np.isnan(found.induction).all()


def test_what_cannot_be_measured(tiny: Model):
    weights, vocabulary = head_weights(tiny, [0]), vocabulary_maps(tiny)
    for texts, words in (([], "no text"), ([[4, 4]], "different tokens")):
        with pytest.raises(InputError, match=words):
            copying_behaviour(tiny, texts, weights, vocabulary)

    def stop() -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        copying_behaviour(tiny, [IDS], weights, vocabulary, check=stop)
    with pytest.raises(Cancelled):
        arriving_states(tiny, weights, vocabulary, tokens=20, check=stop)


def test_arriving_states_of_the_first_block_are_the_embeddings(model: Model):
    """GPT-2 adds its positions to them, the same for all tokens."""
    weights, vocabulary = head_weights(model), vocabulary_maps(model)
    arriving = arriving_states(model, weights, vocabulary, tokens=100)
    ids = random_tokens(model, 100)
    states = model.module.get_input_embeddings().weight.detach().double().numpy()[ids]
    if model.name == "gpt2":
        states = states + model.module.transformer.wpe.weight.detach().double().numpy()[1]
    states = states / weights[0].norm.length(states)[:, None]
    states = states - states.mean(0)
    directions = vocabulary.unembedding_of(torch.tensor(ids))
    directions = directions - directions.mean(0)
    np.testing.assert_allclose(arriving.states[0], states.T @ states, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(arriving.across[0], directions.T @ states, rtol=1e-3, atol=1e-3 * np.abs(arriving.across[0]).max())
    found = ov_circuit(weights, vocabulary, arriving).sel(circuit="arriving", block=2, head=1)
    full = weights[2].writing(1) @ arriving.across[2] @ weights[2].reading("value", 1)
    values = np.linalg.eigvals(full)
    assert float(found.copying_score) == pytest.approx(values.real.sum() / np.abs(values).sum(), abs=1e-9)
    assert found.attrs["arriving_tokens"] == 100
