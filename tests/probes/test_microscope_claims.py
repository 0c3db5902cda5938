"""Claims of the microscope: each number is what its row says, and nothing is judged that was not measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

import lens
from lens.base.errors import InputError
from lens.probes.contextualisation import contextualisation
from lens.probes.microscope_claims import (
    PUBLISHED_CORRELATION,
    class_difference,
    class_means,
    correlation,
    microscope_claims,
    microscope_verdicts,
    token_scores,
)
from lens.probes.prefix_decoder import RECIPE, fit_prefix_decoder
from lens.probes.token_classes import CLASSES
from lens.probes.token_nonlinearity import token_nonlinearity
from tests.models.families import build
from tests.probes.test_deletion_test import prose, prose_tokenizer

SMALL = {"names": 40, "hidden": 16, "width": 8, "window": 60, "lags": (1, 2, 5), "batch": 32}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Model, corpus, maps, moments and decoder."""
    model = lens.load(build("llama"), prose_tokenizer())
    text = lens.corpus([prose(seed) for seed in range(60)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENS_CACHE", str(tmp_path_factory.mktemp("cache")))
        moments = lens.collect_moments(model, text, tokens=1200, pairs="adjacent", window=60)
    decoder = fit_prefix_decoder(model, text, tokens=1200, recipe=replace(RECIPE, steps=20, warm_up=2), **SMALL)
    return model, text, lens.fit_shortcuts(moments.train), moments.train, decoder


@pytest.fixture(scope="module")
def claims(parts) -> xr.Dataset:
    model, text, shortcuts, spread, decoder = parts
    return microscope_claims(model, text.part("test"), shortcuts, spread, decoder, tokens=48)


def test_every_document_has_what_the_probes_give(claims, parts):
    model, text, shortcuts, spread, decoder = parts
    assert claims.sizes["document"] == len(text.part("test"))
    run = model.run(model.encode_bare(text.part("test")[1].text)[:48], logits=False)
    errors, read = token_nonlinearity(run, shortcuts, spread), contextualisation(run, decoder)
    second = claims.isel(document=1)
    assert np.array_equal(second.nonlinearity, errors.nonlinearity)
    assert np.array_equal(second.prefix_loss, read.prefix_loss, equal_nan=True)
    norms = run.residual.norm(dim=-1).double()
    massive = (norms > spread.limits[:, None]).any(0).numpy()
    assert second.kept.to_numpy().astype(bool).tolist() == (~massive & (np.arange(48) >= 5)).tolist()


def test_scores_correlations_and_differences_by_hand(claims):
    one = claims.isel(document=0)
    kept = one.kept.to_numpy().astype(bool)
    error = one.nonlinearity.to_numpy()[:, kept].mean(0)
    loss = one.prefix_loss.to_numpy()[1:, kept].mean(0)
    assert correlation(one, "nonlinearity", "prefix_loss") == pytest.approx(np.corrcoef(error, loss)[0, 1], abs=1e-5)
    recovered = one.recovered.to_numpy()[:, kept]
    beyond, classes = token_scores(one, "context")
    assert beyond == pytest.approx(recovered[1:].mean(0) - recovered[0], abs=1e-5)
    stop, content = (CLASSES.index(name) for name in ("stop word", "content word"))
    wanted = loss[classes == content].mean() - loss[classes == stop].mean()
    assert class_difference(one, "prefix_loss", "content word", "stop word") == pytest.approx(wanted, abs=1e-5)
    centred = [values - np.array([values[classes == kind].mean() for kind in classes]) for values in (error, loss)]
    assert correlation(one, "nonlinearity", "prefix_loss", within=True) == pytest.approx(np.corrcoef(*centred)[0, 1], abs=1e-5)


def test_class_means_are_over_all_documents(claims):
    found = class_means(claims, "relative")
    pairs = [token_scores(claims.isel(document=n), "relative") for n in range(claims.sizes["document"])]
    stop = np.concatenate([values[classes == CLASSES.index("stop word")] for values, classes in pairs])
    assert found["stop word"] == pytest.approx(stop.mean(), rel=1e-6)
    assert np.isnan(found["word continuation"])


def test_a_planted_correlation_is_judged_as_it_is(claims):
    planted = claims.copy(deep=True)
    planted["prefix_loss"][:] = 0.0
    planted["prefix_loss"][:, 1:] = planted.nonlinearity.mean("block").expand_dims(layer=3, axis=1) * 2 + 1
    rows = {row["claim"]: row for row in microscope_verdicts(planted)}
    strong = rows["The correlation of non-linearity and context is strong"]
    assert strong["value"] == pytest.approx(1, abs=1e-3)
    assert strong["verdict"] == "holds"
    planted["prefix_loss"][:] = -planted["prefix_loss"]
    assert microscope_verdicts(planted)[1]["verdict"] == "fails"


def test_the_cost_of_deletions_is_that_of_the_deletion_test(claims):
    rows = {row["claim"]: row for row in microscope_verdicts(claims)}
    found = claims.rise_after.sel(removed="articles", drawn="chosen").mean().item()
    assert rows["Without articles a model does worse"]["value"] == pytest.approx(found, abs=1e-3)
    assert rows["Without articles a model does worse"]["published"] == "MMLU .398 to .386, Llama-3.2-3B"
    both = claims.rise_after.sel(removed="stop words and punctuation")
    against = (both.sel(drawn="chosen") - both.sel(drawn="random")).mean().item()
    assert rows["Losing fillers costs more than losing random tokens"]["value"] == pytest.approx(against, abs=1e-3)


def test_what_was_not_tried_is_untested(claims):
    rows = {row["claim"]: row for row in microscope_verdicts(claims.drop_sel(removed=["articles"]))}
    assert rows["Without articles a model does worse"]["verdict"] == "untested"
    assert rows["Without stop words a model does worse"]["verdict"] != "untested"


def test_the_published_range(claims):
    assert min(PUBLISHED_CORRELATION.values()) == PUBLISHED_CORRELATION["Llama-3-8B"] == 0.05
    assert max(PUBLISHED_CORRELATION, key=lambda name: PUBLISHED_CORRELATION[name]) == "Gemma-2-9B"
    assert [row["published"] for row in microscope_verdicts(claims)[:2]] == ["0.05 to 0.56, 13 models"] * 2
    assert sum(value >= 0.5 for value in PUBLISHED_CORRELATION.values()) == 2


def test_too_little_text_is_refused(parts):
    model, text, shortcuts, spread, decoder = parts
    for documents, tokens in ((text.part("test")[:1], 48), (text.part("test"), 10), (text.part("test"), 500)):
        with pytest.raises(InputError, match="at least 2"):
            microscope_claims(model, documents, shortcuts, spread, decoder, tokens=tokens)
