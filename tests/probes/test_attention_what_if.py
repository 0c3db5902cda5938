from __future__ import annotations

import numpy as np
import pytest
import torch

import lens
from lens.base.errors import InputError
from lens.corpora import Document
from lens.models.edits.attention import replace_attention
from lens.models.operators import FirstToken, Identity, LowRank, PreviousToken, Softmax, Uniform
from lens.probes.attention_entropy import attention_entropy
from lens.probes.attention_spectrum import attention_spectrum
from lens.probes.attention_what_if import (
    MEASURES,
    SCOPES,
    TRAINED,
    attention_what_if,
    attention_what_if_blocks,
    attention_what_if_text,
    token_ids,
    token_losses,
    what_if_verdicts,
)
from tests.models.families import build

DOCUMENTS = [[(7 * i * i + 11 * start) % 120 for i in range(20)] for start in range(3)]
TOKENS = 16


@pytest.fixture(scope="module")
def model():
    return lens.load(build("llama"))


@pytest.fixture(scope="module")
def found(model):
    operators = {
        "own": Softmax(),
        "cold": Softmax(0.3),
        "uniform": Uniform(),
        "first": FirstToken(),
        "low": LowRank(2, masked=True),
    }
    return attention_what_if(model, DOCUMENTS, operators, tokens=TOKENS, patterns=2)


def by_hand(model, ids):
    logits = model.run(ids).logits.double()
    return -torch.log_softmax(logits, -1)[torch.arange(len(ids) - 1), ids[1:]].numpy()


def test_losses_are_those_of_the_models_logits(model):
    ids = DOCUMENTS[0][:TOKENS]
    assert np.abs(token_losses(model, ids) - by_hand(model, ids)).max() < 1e-4  # float32, logits up to 60


def test_losses_of_more_tokens_than_are_held_at_once():
    """Logits are read in parts of 128 positions."""
    module = build("llama")
    module.config.max_position_embeddings = 256
    model, ids = lens.load(module), [(7 * i * i) % 120 for i in range(140)]
    assert np.abs(token_losses(model, ids) - by_hand(model, ids)).max() < 1e-4


def test_the_models_own_softmax_costs_nothing(found):
    assert abs(float(found.cost.sel(operator="own"))) < 1e-4
    assert found.operator.to_numpy()[0] == TRAINED
    assert float(found.cost[0]) == float(found.cost_low[0]) == float(found.cost_high[0]) == 0


def test_each_operator_stands_in_every_block(model, found):
    with replace_attention(model, Uniform()):
        expected = [by_hand(model, ids[:TOKENS]).mean() for ids in DOCUMENTS]
    assert np.abs(found.loss.sel(operator="uniform").to_numpy() - expected).max() < 1e-4
    assert float(found.cost.sel(operator="uniform")) == pytest.approx(np.mean(expected) - float(found.mean_loss[0]), abs=1e-4)


def test_measures_of_the_trained_model_are_those_of_its_patterns(model, found):
    runs = [model.run(ids[:TOKENS], attention=True) for ids in DOCUMENTS[:2]]
    entropies, spectra = [attention_entropy(run) for run in runs], [attention_spectrum(run) for run in runs]
    expected = {
        "mean_entropy": np.mean([one.entropy[..., 1:].mean() for one in entropies]),
        "first_token": np.mean([one.first_token.mean() for one in entropies]),
        "previous_token": np.mean([run.attention.diagonal(-1, -2, -1).mean() for run in runs]),
        "effective_rank": np.mean([one.effective_rank.mean() for one in spectra]),
    }
    for name in MEASURES:
        for row in (TRAINED, "own"):
            assert float(found[name].sel(operator=row)) == pytest.approx(float(expected[name]), rel=1e-4), name


def test_measures_of_fixed_operators_are_known(found):
    assert float(found.first_token.sel(operator="first")) == 1
    assert float(found.effective_rank.sel(operator="first")) == pytest.approx(1, abs=1e-6)
    assert float(found.mean_entropy.sel(operator="uniform")) == pytest.approx(np.log(np.arange(2, TOKENS + 1)).mean(), abs=1e-5)
    assert np.isnan(found.mean_entropy.sel(operator="low"))  # of weights below zero there is none


def test_words_are_those_of_the_intervals(found):
    rows = {row["claim"].split(" with ")[1].split(",")[0]: row for row in what_if_verdicts(found)}
    assert list(rows) == ["own", "cold", "uniform", "first", "low"]
    assert rows["own"]["verdict"] == "holds"
    made = found.copy(deep=True)
    made["cost"][1:3], made["cost_low"][1:3], made["cost_high"][1:3] = 0.2, [0.15, 0.05], [0.25, 0.35]
    assert [row["verdict"] for row in what_if_verdicts(made)][:2] == ["fails", "open"]
    assert what_if_verdicts(made)[1]["low"] == pytest.approx(-0.35)


def test_patterns_can_be_left_out(model):
    found = attention_what_if(model, DOCUMENTS, {"identity": Identity()}, tokens=TOKENS, patterns=0)
    assert not set(MEASURES) & set(found)


def test_block_by_block_equals_one_block_at_a_time(model):
    operator = PreviousToken()
    each = attention_what_if_blocks(model, DOCUMENTS, operator, tokens=TOKENS, blocks=[0, 2])
    assert each.block.to_numpy().tolist() == [0, 2]
    for block in (0, 2):
        alone = attention_what_if(model, DOCUMENTS, {"x": operator}, tokens=TOKENS, blocks=[block], patterns=0)
        row = each.sel(block=block)
        assert np.array_equal(row.loss_after, alone.loss[1])
        assert float(row.cost) == float(alone.cost[1])
        assert np.array_equal(each.loss, alone.loss[0])


def test_one_text_in_a_head_a_block_and_everywhere(model):
    ids, operator = DOCUMENTS[1], Uniform()
    found = attention_what_if_text(model, ids, operator, 1, 3)
    assert found.scope.to_numpy().tolist() == list(SCOPES)
    chosen = ({"heads": {1: [3]}}, {"blocks": [1]}, {})
    assert np.array_equal(found.token_loss[0].to_numpy(), token_losses(model, ids).astype(np.float32))
    for row, where in enumerate(chosen, 1):
        with replace_attention(model, operator, **where):
            assert np.array_equal(found.token_loss[row].to_numpy(), token_losses(model, ids).astype(np.float32))
    assert len(set(found.loss.to_numpy().tolist())) == 4


def test_the_model_is_as_it_was_also_after_a_stop(model):
    before = model.run(DOCUMENTS[0]).logits
    calls = []

    def check():
        calls.append(1)
        if len(calls) > model.n_layers + 2:  # in the middle of an edited pass
            assert model.edits
            raise InputError("stop", "nothing", "again")

    with pytest.raises(InputError, match="stop"):
        attention_what_if(model, DOCUMENTS, {"uniform": Uniform()}, tokens=TOKENS, patterns=0, check=check)
    assert not model.edits
    assert torch.equal(model.run(DOCUMENTS[0]).logits, before)


def test_documents_are_cut_and_short_ones_left_out(tiny):
    texts = [Document("a b c d e f g h"), Document("h g f e d c b a"), Document("a b")]
    ids = token_ids(tiny, texts, 5)
    assert [len(one) for one in ids] == [5, 5]
    assert ids[0] == tiny.encode_bare(texts[0].text)[:5]


def test_what_does_not_fit_is_refused(model):
    with pytest.raises(InputError, match="operators are none"):
        attention_what_if(model, DOCUMENTS, {}, tokens=TOKENS)
    with pytest.raises(InputError, match=TRAINED):
        attention_what_if(model, DOCUMENTS, {TRAINED: Softmax()}, tokens=TOKENS)
    with pytest.raises(InputError, match="documents of 21 tokens"):
        attention_what_if(model, DOCUMENTS, {"x": Softmax()}, tokens=21)
    for blocks in ([], [1, 1], [2, 0], [3]):
        with pytest.raises(InputError, match="blocks are"):
            attention_what_if_blocks(model, DOCUMENTS, Uniform(), tokens=TOKENS, blocks=blocks)
    with pytest.raises(InputError, match="1 tokens"):
        attention_what_if_text(model, [5], Uniform(), 0, 0)
