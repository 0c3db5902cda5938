"""Claims of copying heads: verdicts follow from the numbers, and numbers from the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from lens.base.errors import InputError
from lens.corpora import Document
from lens.models.model import Model
from lens.probes.copying_claims import SILENCED, chance, copying_claims, copying_verdicts, rank_correlations, strongest
from lens.probes.random_tokens import repeated_tokens
from tests.models.families import build

DOCUMENTS = [Document(" ".join(f"w{(n + 3) * i * i % 97}" for i in range(40))) for n in range(4)]


@pytest.fixture(scope="module")
def model(tokenizer) -> Model:
    return Model(build("llama"), tokenizer, name="tiny")


@pytest.fixture(scope="module")
def claims(model: Model) -> xr.Dataset:
    return copying_claims(model, DOCUMENTS, tokens=24, draws=3, length=16)


def test_what_is_measured(claims: xr.Dataset):
    assert claims.copying_score.dims == ("circuit", "block", "head")
    assert claims.copying.dims == ("document", "block", "head")
    assert claims.repeated_copying.dims == claims.induction.dims == ("draw", "block", "head")
    assert claims.loss.dims == ("draw", "silenced")
    assert claims.sizes["document"] == 4
    assert claims.sizes["draw"] == 3
    assert list(claims.silenced.to_numpy()) == list(SILENCED)
    assert all("long_name" in claims[name].attrs for name in claims.data_vars)


def test_losses_are_the_models_own(model: Model, claims: xr.Dataset):
    """With all heads that of a plain run; silenced heads change it, and the edit leaves nothing behind."""
    ids = repeated_tokens(model, 16, seed=1)
    logits = model.run(ids).logits
    assert logits is not None
    wanted = torch.nn.functional.cross_entropy(logits[16:-1], torch.tensor(ids[17:])).item()
    assert float(claims.loss.isel(draw=1, silenced=0)) == pytest.approx(wanted, rel=1e-5)
    assert (np.abs(claims.loss.isel(silenced=slice(1, 4)) - claims.loss.isel(silenced=0)) > 1e-4).all()
    assert model.edits == ()


def test_it_is_repeatable_and_moves_with_the_seed(model: Model, claims: xr.Dataset):
    again = copying_claims(model, DOCUMENTS, tokens=24, draws=3, length=16)
    xr.testing.assert_identical(again, claims)
    other = copying_claims(model, DOCUMENTS, tokens=24, draws=3, length=16, seed=9)
    assert not np.array_equal(other.induction, claims.induction)


def test_random_weights_do_not_copy(claims: xr.Dataset):
    """No claim about trained heads holds of them, and no score tells anything."""
    rows = {row["claim"]: row for row in copying_verdicts(claims)}
    assert len(rows) == 11
    assert rows["Induction heads have scores near 1"]["verdict"] == "fails"
    assert rows["Most heads copy"]["verdict"] == "fails"
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows.values())
    assert 0 < chance(claims, "vocabulary") < 1
    assert {claim for claim, row in rows.items() if row["published"]} == {
        "Most heads copy",
        "Induction heads have scores near 1",
        "Heads that suppress have negative scores",
    }


def test_verdicts_follow_from_the_numbers(claims: xr.Dataset):
    """Had every head done just what its score says, and had induction heads the highest scores, the claims would hold."""
    made = claims.copy(deep=True)
    score = np.linspace(-1, 1, made.copying_score[0].size).reshape(made.copying_score[0].shape)
    made["copying_score"] = made.copying_score.dims, np.stack([score] * 3)
    for name in ("copying", "repeated_copying", "induction"):
        made[name] = made[name].dims, np.stack([score] * made[name].shape[0])
    made["loss"] = made.loss.dims, np.array([[1.0, 9.0, 5.0, 2.0]] * 3)
    made["mismatched_score"] = made.mismatched_score.dims, np.zeros(made.mismatched_score.shape)
    assert rank_correlations(made, "arriving", "copying") == pytest.approx([1.0] * 4)
    rows = {row["claim"]: row for row in copying_verdicts(made)}
    assert rows["Repetition is known by induction heads"]["value"] == 7
    assert rows["The heads with the highest scores carry repetition"]["value"] == 3
    assert rows["The score from embeddings tells what heads do in texts"]["verdict"] == "holds"
    assert rows["Heads that suppress have negative scores"]["value"] == pytest.approx(
        -np.mean(np.sort(score.ravel())[:4]), abs=1e-3
    )
    assert rows["Most heads copy"]["value"] == pytest.approx(0.5)
    assert rows["Induction heads copy what they attend to"]["value"] == pytest.approx(
        np.mean(np.sort(score.ravel())[-4:]), abs=1e-3
    )


def test_the_strongest_heads():
    values = np.array([[0.1, 0.9, 0.5], [0.7, 0.2, 0.3]])
    assert strongest(values) == [(0, 1), (1, 0)]  # a third of all
    assert strongest(values, 1) == [(0, 1)]


def test_too_few_texts(model: Model):
    with pytest.raises(InputError, match="0 documents of 500 tokens"):
        copying_claims(model, DOCUMENTS, tokens=500)
