"""Taking tokens away is what the model does without them, and claims are read from what was measured."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
import xarray as xr

import lens
from lens.base.errors import InputError
from lens.corpora import Document
from lens.models.frozen import freeze
from lens.models.model import Model
from lens.probes.frozen_claims import AMONG, SCORES, frozen_claims, frozen_verdicts
from lens.probes.frozen_map import frozen_contributions
from lens.probes.token_ablations import ABLATIONS, token_ablations
from tests.models.families import build, word_tokenizer

IDS = list(range(3, 12))


@pytest.fixture(scope="module")
def model() -> Model:
    return lens.load(build("llama"), word_tokenizer())


@pytest.fixture(scope="module")
def claims(model: Model) -> xr.Dataset:
    texts = [" ".join(f"w{(step * i + step) % 120}" for i in range(20)) for step in (3, 7, 11)]
    return frozen_claims(model, [Document(text) for text in texts], tokens=8, spectra=2)


def centred(model: Model, ids: list[int], target: int) -> float:
    logits = model.run(ids).logits
    assert logits is not None
    return float(logits[-1, target].double() - logits[-1].double().mean())


def test_a_removed_token_is_not_there(model: Model):
    found = token_ablations(model, IDS, centred=True)
    assert found.ablation.to_numpy().tolist() == list(ABLATIONS)
    whole = centred(model, IDS, found.target_id)
    assert float(found.logit) == pytest.approx(whole)
    for place in (0, 4, len(IDS) - 1):
        without = centred(model, [*IDS[:place], *IDS[place + 1 :]], found.target_id)
        assert float(found.effect.sel(ablation="removed")[place]) == pytest.approx(whole - without, abs=1e-4)


def test_an_average_embedding_is_that_of_the_vocabulary():
    """At the scale that the model gives them, as in Gemma."""
    model = Model(build("gemma"))
    found = token_ablations(model, IDS, target=7, rival=9)
    frozen = freeze(model, IDS)
    scale = 32**0.5
    inputs = torch.stack([frozen.embedding, frozen.embedding])
    inputs[0, 3] = 0
    inputs[1, 3] = model.anatomy.embedding.weight.detach().mean(0) * scale
    logits = model.unembed(frozen.unfrozen(inputs).residual[-1][:, -1].detach())
    lost = float(found.logit) - (logits[:, 7] - logits[:, 9]).numpy()
    assert found.effect[1:, 3].to_numpy() == pytest.approx(lost, abs=1e-4)


def test_agreement_is_spearmans(claims: xr.Dataset):
    assert claims.score.to_numpy().tolist() == list(SCORES)
    assert claims.among.to_numpy().tolist() == list(AMONG)
    for among, places in (("all", slice(None)), ("inner", slice(1, -1))):
        one = claims.isel(document=1)
        ranks = [
            scipy.stats.rankdata(values[places])
            for values in (one.score_value.sel(score="gradient").to_numpy(), one.effect.sel(ablation="zeroed").to_numpy())
        ]
        wanted = np.corrcoef(*ranks)[0, 1]
        assert float(one.agreement.sel(score="gradient", ablation="zeroed", among=among)) == pytest.approx(wanted)
    inner = claims.isel(document=0, position=slice(1, -1))
    effect, guess = inner.effect.sel(ablation="removed").to_numpy(), inner.score_value.sel(score="frozen").to_numpy()
    wanted = 1 - ((effect - guess) ** 2).mean() / effect.var()
    assert float(inner.explained.sel(ablation="removed")) == pytest.approx(wanted)


def test_first_shares_are_of_their_logits(claims: xr.Dataset, model: Model):
    ids = model.encode_bare(" ".join(f"w{(3 * i + 3) % 120}" for i in range(8)))
    bare, above = (frozen_contributions(model, ids, centred=one) for one in (False, True))
    assert float(claims.first_share[0]) == pytest.approx(float(bare.contribution[0] / bare.logit), rel=1e-4)
    assert float(claims.first_share_centred[0]) == pytest.approx(float(above.contribution[0] / above.logit), rel=1e-4)


def test_verdicts_are_read_from_the_claims(claims: xr.Dataset):
    rows = {row["claim"]: row for row in frozen_verdicts(claims)}
    exact = rows["At its prompt a model is one linear map"]
    assert exact["verdict"] == "holds"
    assert exact["value"] == 5  # what float32 shows on every machine
    assert {row["claim"] for row in rows.values() if row["published"]} == {exact["claim"]}
    worse = frozen_verdicts(claims.assign(error=claims.error * 0 + 1e-3))[0]
    assert (worse["value"], worse["verdict"]) == (3, "fails")
    rank = rows["The frozen map has an extremely low rank"]
    assert rank["value"] == pytest.approx(float((32 / claims.stable_rank[:2]).mean()), abs=1e-3)
    assert np.isnan(claims.stable_rank[2])
    better = rows["Leaving the softmax out agrees better with removal"]
    ranks = claims.agreement.sel(ablation="removed", among="inner")
    assert better["value"] == pytest.approx(float((ranks.sel(score="frozen") - ranks.sel(score="gradient")).mean()), abs=1e-3)
    untested = {row["claim"]: row["verdict"] for row in frozen_verdicts(claims.assign_attrs(spectra=0))}
    assert untested["The frozen map has an extremely low rank"] == "untested"


def test_refused_in_one_line(model: Model):
    with pytest.raises(InputError, match="6 or more"):
        frozen_claims(model, [], tokens=5)
    with pytest.raises(InputError, match="at least 2"):
        frozen_claims(model, [Document("w1 w2 w3")], tokens=8)
