from __future__ import annotations

import numpy as np
import pytest
import torch

import lens
from lens.base.errors import InputError
from lens.models.heads import head_states
from lens.models.operators import OPERATORS, FirstToken, Identity, LowRank, PreviousToken, Softmax, Softplus, Uniform
from lens.probes.attention_entropy import attention_entropy
from lens.probes.attention_spectrum import attention_spectrum
from lens.probes.operator_zoo import ZOO_MEASURES, bare_input, head_input, operator_zoo
from tests.models.families import build

T = 8
IDS = [(5 * i + 3) % 100 for i in range(12)]


def given(seed=0, size=T, width=16, **options):
    draw = np.random.default_rng(seed)
    return bare_input(draw.standard_normal((size, width)), draw.standard_normal((size, width)), **options)


# Causal toy patterns at eight positions: singular values, stable and effective rank, mean entropy, contraction, Dobrushin's δ.
EXACT = {
    "uniform": (Uniform(), [1.379779, 0.705770, 0.411044, 0.270083], 1.427603282, 5.271648342, 1.325575363, 0.842756085, 0.875),
    "sink": (FirstToken(), [np.sqrt(8), 0, 0, 0], 1, 1, 0, 0, 0),
    "previous": (PreviousToken(), [np.sqrt(2), 1, 1, 1], 4, 6.939933732, 0, 1.322875656, 1),
    "identity": (Identity(), [1, 1, 1, 1], 8, 8, 0, 1, 1),
}


@pytest.fixture(scope="module")
def mixers():
    return operator_zoo(given(), operators={name: row[0] for name, row in EXACT.items()})


@pytest.mark.parametrize("name", EXACT)
def test_fixed_mixers_have_their_exact_values(mixers, name):
    _, singular, stable, effective, entropy, contraction, dobrushin = EXACT[name]
    row = mixers.sel(operator=name)
    assert np.abs(row.singular_value.to_numpy()[:4] - singular).max() < 1e-6
    found = [float(row[one]) for one in ("stable_rank", "effective_rank", "mean_entropy", "contraction", "dobrushin")]
    assert np.abs(np.array(found) - [stable, effective, entropy, contraction, dobrushin]).max() < 1e-6  # of float32 ranks
    assert float(row.row_sum_least) == pytest.approx(1, abs=1e-15)


def test_fixed_mixers_look_where_they_say(mixers):
    looks = {
        name: [float(mixers.sel(operator=name)[one]) for one in ("first_token", "previous_token", "same_token")] for name in EXACT
    }
    assert looks["sink"] == [1, 1 / 7, 1 / 8]
    assert looks["previous"] == [1 / 7, 1, 1 / 8]
    assert looks["identity"] == [0, 0, 1]


def test_every_operator_has_a_row_and_every_measure():
    zoo = operator_zoo(given(size=24))
    assert zoo.operator.to_numpy().tolist() == list(OPERATORS)
    assert set(ZOO_MEASURES) <= set(zoo)
    assert zoo.sel(operator="softmax").moved == 0
    shares = zoo.is_attention.to_numpy().astype(bool)
    assert not shares[[name.startswith("low rank") for name in OPERATORS]].any()
    for name in ZOO_MEASURES:
        assert np.isfinite(zoo[name].to_numpy()[shares]).all(), name
    order = zoo[["stable_rank", "participation_ratio", "energy_rank", "effective_rank"]].to_array().to_numpy()
    assert (np.diff(order, axis=0) > -1e-6).all()
    energy = (zoo.singular_value**2).sum("rank") - (zoo.attention**2).sum(("query", "key"))
    assert np.abs(energy).max() < 1e-12


def test_a_truncated_pattern_has_the_first_singular_values_of_the_whole():
    zoo = operator_zoo(given(size=16), operators={"whole": Softmax(), "rank 3": LowRank(3), "masked": LowRank(3, masked=True)})
    whole, cut, _masked = zoo.singular_value.to_numpy()
    assert np.abs(cut[:3] - whole[:3]).max() < 1e-12
    assert np.abs(cut[3:]).max() < 1e-12
    assert zoo.numerical_rank.sel(operator="rank 3") == 3 < zoo.numerical_rank.sel(operator="masked")
    assert zoo.unseen.sel(operator="rank 3") > 0.01
    assert zoo.unseen.sel(operator="masked") == 0
    assert np.isnan(zoo.mean_entropy.sel(operator="rank 3"))


@pytest.mark.parametrize("name", ["softplus", "universal relative", "first token"])
@pytest.mark.parametrize("causal", [True, False])
def test_measures_are_those_of_the_probes(name, causal):
    """Rows that do not sum to one, and eigenvalues that are no diagonal, included."""
    zoo = operator_zoo(given(3, 12, causal=causal), operators={name: OPERATORS[name]()}).isel(operator=0)
    pattern = zoo.attention.to_numpy()
    spectrum, entropy = attention_spectrum(pattern), attention_entropy(pattern)
    for one in ("effective_rank", "contraction", "dobrushin", "gap"):
        assert float(zoo[one]) == pytest.approx(float(spectrum[one]), abs=1e-6)  # of float32 ranks
    for one in ("mean_entropy", "first_token", "top_key_share", "key_entropy"):
        assert float(zoo[one]) == pytest.approx(float(entropy[one]), abs=1e-14)


def test_moved_is_half_of_the_absolute_difference():
    zoo = operator_zoo(given(), operators={"softmax": Softmax(), "identity": Identity()})
    softmax = zoo.attention.sel(operator="softmax").to_numpy()
    assert float(zoo.moved.sel(operator="identity")) == pytest.approx((1 - np.diagonal(softmax)).mean(), abs=1e-14)


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral", "gpt-oss"])
def test_softmax_on_a_models_head_is_the_models_pattern(family):
    """Grouped keys, soft caps, windows and learned sinks included."""
    states = head_states(lens.load(build(family)), IDS)
    for block in states[:2]:
        for head in (0, len(block.query) - 1):
            zoo = operator_zoo(block, head, {"softmax": Softmax()})
            assert np.abs(zoo.attention.to_numpy()[0] - block.pattern(head)).max() < 1e-12
            assert zoo.attrs["block"] == block.block


def test_one_head_of_a_block_has_its_own_slope():
    states = head_states(lens.load(build("llama")), IDS)[0]
    found = OPERATORS["alibi"]()(head_input(states, 2))[0]
    distance = np.subtract.outer(np.arange(12), np.arange(12))
    logits = np.where(distance >= 0, states.logits(2) - 2.0**-6 * distance, -np.inf)  # 2^(−8·3/4) of four heads
    assert np.abs(found.numpy() - np.asarray(torch.softmax(torch.tensor(logits), -1))).max() < 1e-12


def test_bare_arrays_can_be_bidirectional_and_have_heads():
    both = given(causal=False)
    assert float(operator_zoo(both, operators={"uniform": Uniform()}).stable_rank[0]) == pytest.approx(1, abs=1e-6)
    draw = np.random.default_rng(2).standard_normal((2, 3, T, 4))
    many = bare_input(*draw, scaling=0.7)
    alone = bare_input(draw[0, 1], draw[1, 1], scaling=0.7)
    chosen = {"softplus": Softplus(), "softmax": Softmax(2.0)}
    assert operator_zoo(many, 1, chosen).attention.equals(operator_zoo(alone, 0, chosen).attention)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="no operator"):
        operator_zoo(given(), operators={})
    with pytest.raises(InputError, match="Head 1"):
        operator_zoo(given(), 1)
    with pytest.raises(InputError, match="shapes"):
        bare_input(np.ones((3, 4)), np.ones((2, 4)))


def test_cancelling_stops_between_operators():
    seen = []

    def check():
        seen.append(1)
        if len(seen) == 3:
            raise InputError("stop", "nothing", "again")

    with pytest.raises(InputError, match="stop"):
        operator_zoo(given(), check=check)
    assert len(seen) == 3
