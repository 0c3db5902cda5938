from __future__ import annotations

import numpy as np
import pytest

import lens
from lens.base.errors import InputError
from lens.probes.low_rank_attention import low_rank_attention, low_rank_verdicts
from tests.models.families import build

DOCUMENTS = [[(7 * i * i + 11 * start) % 120 for i in range(16)] for start in range(3)]
TOKENS = 16


@pytest.fixture(scope="module")
def model():
    return lens.load(build("llama"))


@pytest.fixture(scope="module")
def found(model):
    return low_rank_attention(model, DOCUMENTS, tokens=TOKENS, ranks=(1, 4, 16))


def test_all_of_the_rank_costs_nothing(found):
    full = found.sel(kept=TOKENS)
    assert np.abs(full.cost).max() < 1e-4
    assert np.abs(full.missing).max() < 1e-6
    assert np.abs(full.future).max() < 1e-6


def test_shares_are_those_of_the_models_patterns(model, found):
    for column, ids in enumerate(DOCUMENTS):
        singular = np.linalg.svd(model.run(ids, attention=True).attention.double().numpy(), compute_uv=False)
        shares = np.cumsum(singular, -1) / singular.sum(-1, keepdims=True)
        assert np.abs(found.singular_share[column] - shares).max() < 1e-5
        energy = np.cumsum(singular**2, -1) / (singular**2).sum(-1, keepdims=True)
        assert np.abs(found.energy_share[column] - energy).max() < 1e-5


def test_the_cut_pattern_lacks_what_its_singular_values_say(model):
    """Eckart and Young, in a block whose inputs no cut has touched: the norm left out is that of the values left out."""
    one = low_rank_attention(model, DOCUMENTS, tokens=TOKENS, ranks=(1, 3), blocks=[0])
    assert one.singular_share.shape == (3, 1, 4, TOKENS)
    for rank in (1, 3):
        left = np.sqrt(1 - one.energy_share.sel(rank=rank).to_numpy().astype(float)).mean((1, 2))
        assert np.abs(one.missing.sel(part="best", kept=rank) - left).max() < 1e-4
    # Zeros where the pattern has zeros can only bring it nearer.
    assert (one.missing.sel(part="masked") < one.missing.sel(part="best")).all()
    assert (one.future > 1e-3).all()


def test_uniform_causal_attention_has_its_exact_shares():
    model = lens.load(build("llama", seed=1))
    found = low_rank_attention(model, [ids[:8] for ids in DOCUMENTS[:2]], tokens=8, ranks=(2,), blocks=[1])
    assert float(found.uniform_energy_share[0]) == pytest.approx(1 / 1.427603282, abs=1e-9)
    values = np.array([1.379779, 0.705770, 0.411044, 0.270083])
    shares = found.uniform_singular_share.to_numpy()
    assert np.abs(np.diff(shares[:4]) / shares[0] - values[1:] / values[0]).max() < 1e-6
    assert shares[-1] == pytest.approx(1, abs=1e-14)


def test_default_ranks_have_linformers_quarter(model):
    found = low_rank_attention(model, DOCUMENTS, tokens=TOKENS)
    assert found.kept.to_numpy().tolist() == [1, 4, 8]
    rows = low_rank_verdicts(found)
    assert len(rows) == 6
    for row in rows:
        assert row["low"] <= row["value"] <= row["high"]
    assert [bool(row["published"]) for row in rows] == [True, False, False, False, True, True]
    share = found.singular_share.sel(rank=4)
    assert rows[0]["value"] == round(float(share.mean()), 3)
    assert [rows[row]["threshold"] for row in (0, 1)] == [0.5, 0.9]
    assert rows[2]["value"] == pytest.approx(float(share.mean() - found.uniform_singular_share.sel(rank=4)), abs=1e-3)
    assert rows[3]["value"] == pytest.approx(float(share.isel(block=2).mean() - share.isel(block=0).mean()), abs=1e-3)
    for row, part in zip(rows[4:], ("best", "masked"), strict=True):
        assert row["value"] == pytest.approx(-float(found.cost.sel(part=part, kept=4)), abs=1e-3)


@pytest.mark.parametrize(("share", "cost", "words"), [(0.95, 0.05, "holds"), (0.3, 2.0, "fails")])
def test_words_follow_the_numbers(found, share, cost, words):
    made = found.copy(deep=True)
    made.singular_share[:] = share + 1e-3 * np.arange(3)[:, None, None, None]
    made["loss_after"] = (made.loss + cost).broadcast_like(made.loss_after).transpose(*made.loss_after.dims)
    rows = low_rank_verdicts(made)
    assert [rows[row]["verdict"] for row in (0, 1, 4, 5)] == [words] * 4
    assert rows[0]["value"] == round(share + 1e-3, 3)


def test_what_does_not_fit_is_refused(model, found):
    for ranks in ((), (0,), (4, 2), (17,)):
        with pytest.raises(InputError, match="ranks are"):
            low_rank_attention(model, DOCUMENTS, tokens=TOKENS, ranks=ranks)
    with pytest.raises(InputError, match="among them"):
        low_rank_verdicts(found.sel(kept=[1]))
