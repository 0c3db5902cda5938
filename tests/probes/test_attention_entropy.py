"""Entropies of patterns that can be worked out by hand, biased and unbiased ones among them."""

from __future__ import annotations

from math import lgamma, log

import numpy as np
import pytest
import scipy.stats
import torch

import lens
from lens.probes.attention_entropy import attention_entropy
from tests.models.families import build
from tests.probes.test_attention_spectrum import T, previous_token, sink, uniform_causal


def test_uniform_attention_sees_all_that_it_can():
    found = attention_entropy(uniform_causal())
    assert found.entropy.to_numpy() == pytest.approx(np.log(np.arange(1, T + 1)), abs=1e-12)
    assert float(found.mean_entropy) == pytest.approx(lgamma(T + 1) / T, rel=1e-12)  # ln(T!)/T
    assert float(found.mean_entropy) == pytest.approx(1.325575363, abs=5e-10)
    assert found.effective_support.to_numpy() == pytest.approx(np.arange(1, T + 1))
    assert np.isnan(found.normalised_entropy[0])
    assert found.normalised_entropy[1:].to_numpy() == pytest.approx(1)
    assert found.divergence_from_uniform[1:].to_numpy() == pytest.approx(0, abs=1e-12)
    assert float(found.lacking) == 0


def test_biased_and_unbiased_concentration_are_told_apart():
    """One key for all queries, and a key of its own for each: rows are equally narrow."""
    biased, unbiased = attention_entropy(sink()), attention_entropy(np.eye(T)[:, ::-1])
    assert (float(biased.mean_entropy), float(unbiased.mean_entropy)) == (0, 0)
    assert float(biased.key_entropy) == 0
    assert float(unbiased.key_entropy) == pytest.approx(log(T))
    assert (float(biased.first_token), float(biased.top_key), float(biased.top_key_share)) == (1, 0, 1)
    assert float(unbiased.top_key_share) == pytest.approx(1 / T)


def test_the_first_query_does_not_count_for_the_sink():
    assert float(attention_entropy(previous_token()).first_token) == pytest.approx(1 / (T - 1))
    assert float(attention_entropy(np.eye(T)).first_token) == 0


def test_what_rows_lack_is_an_outcome():
    """A learned sink that takes half of every row: half a bit more than the keys have."""
    found = attention_entropy(0.5 * np.eye(T))
    assert found.entropy.to_numpy() == pytest.approx(log(2))
    assert float(found.lacking) == 0.5
    # The first query now has two outcomes, its own key and the sink.
    assert float(found.normalised_entropy[0]) == pytest.approx(1)
    assert float(found.normalised_entropy[-1]) == pytest.approx(log(2) / log(T + 1))


def test_attention_in_both_directions_is_held_against_all_keys():
    found = attention_entropy(np.full((T, T), 1 / T))
    assert found.normalised_entropy.to_numpy() == pytest.approx(1)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_patterns_of_a_model_against_scipy(family: str, tokenizer):
    model = lens.load(build(family), tokenizer)
    run = model.run(list(range(5, 17)), attention=True)
    found = attention_entropy(run)
    assert run.attention is not None
    patterns = run.attention.double().numpy()
    assert found.entropy.to_numpy() == pytest.approx(scipy.stats.entropy(patterns, axis=-1), abs=2e-6)
    assert found.first_token.to_numpy() == pytest.approx(patterns[:, :, 1:, 0].mean(-1), abs=1e-9)
    assert found.key_entropy.to_numpy() == pytest.approx(scipy.stats.entropy(patterns.mean(-2), axis=-1), abs=2e-6)
    assert found.entropy.attrs["units"] == "nats"


def test_rounding_of_half_precision_rows_is_no_outcome_beyond_its_size():
    weights = torch.softmax(torch.randn(3, 40, 40), -1).bfloat16()
    found = attention_entropy(weights)
    assert float(found.lacking.max()) < 2**-8
