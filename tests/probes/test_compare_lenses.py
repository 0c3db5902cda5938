"""Fidelity of lenses: exact where it can be worked out by hand, ordered as it must be, and on documents not fitted on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

import lens
from lens.base.errors import Cancelled, InputError
from lens.collect.windows import draw_documents
from lens.corpora import Corpus
from lens.probes.compare_lenses import compare_lenses
from lens.probes.shortcuts import AffineMap, Shortcuts, fit_shortcuts
from tests.models.families import build


def made_up(documents: int = 40, length: int = 30) -> Corpus:
    words = np.random.default_rng(3).integers(4, 123, (documents, length))
    return Corpus("made up", [" ".join(f"w{word}" for word in row) for row in words])


def identity_maps(model) -> Shortcuts:
    unit = AffineMap(torch.eye(model.d_model), torch.zeros(model.d_model), torch.zeros(model.d_model))
    pairs = [(layer, model.n_layers) for layer in range(model.n_layers)]
    source = {"model_fingerprint": model.fingerprint, "layers": model.n_layers}
    return Shortcuts(dict.fromkeys(pairs, unit), dict.fromkeys(pairs, 0.0), dict.fromkeys(pairs, 1.0), source)


@pytest.fixture
def readings(tiny) -> xr.Dataset:
    return compare_lenses(tiny, made_up(), {"plain": None, "identity": identity_maps(tiny)}, tokens=150, window=24)


def test_values_by_hand(tiny, readings):
    """Every number from full distributions, token by token."""
    windows = draw_documents(tiny, made_up(), "test", 150, 24)
    ranks, surprisals, divergences, margins, documents, positions = [], [], [], [], [], []
    for ids, document in windows:
        run = tiny.run(ids)
        final = run.logits[1:].double().log_softmax(-1)
        mine = tiny.unembed(run.residual[:, 1:]).double().log_softmax(-1)
        top = mine.topk(2)
        word = top.indices[..., 0]
        said = final.expand_as(mine).gather(-1, word[..., None])[..., 0]
        rank = 1 + (final > said[..., None]).sum(-1)
        ranks.append(torch.where(rank <= 10, rank, 0))
        surprisals.append(-said)
        divergences.append((final.exp() * (final - mine)).sum(-1))
        margins.append(top.values[..., 0].exp() - top.values[..., 1].exp())
        documents += [document] * (len(ids) - 1)
        positions += range(1, len(ids))
    plain = readings.sel(lens="plain")
    assert np.array_equal(plain.token_rank, torch.cat(ranks, 1))
    assert np.allclose(plain.token_surprisal, torch.cat(surprisals, 1), atol=2e-4)
    assert np.allclose(plain.token_kl_to_final, torch.cat(divergences, 1), atol=2e-4)
    assert np.allclose(plain.token_margin, torch.cat(margins, 1), atol=1e-5)
    assert np.array_equal(readings.document, documents)
    assert np.array_equal(readings.position, positions)
    assert np.allclose(plain.kl_to_final, torch.cat(divergences, 1).mean(1), atol=2e-4)
    for k in (1, 5, 10):
        expected = [((r >= 1) & (r <= k)).double().mean() for r in torch.cat(ranks, 1)]
        assert np.allclose(plain.precision.sel(k=k), expected)


def test_the_last_layer_is_the_model_and_precision_grows_with_k(readings):
    assert (readings.precision.isel(layer=-1) == 1).all()
    assert (readings.kl_to_final.isel(layer=-1) == 0).all()
    assert (readings.precision.diff("k") >= 0).all()
    assert (readings.precision_low <= readings.precision + 1e-6).all()
    assert (readings.precision_high >= readings.precision - 1e-6).all()


def test_identity_maps_are_the_plain_lens(readings):
    plain, identity = (readings.sel(lens=name, drop=True) for name in ("plain", "identity"))
    assert np.array_equal(plain.token_rank, identity.token_rank)
    assert np.allclose(plain.token_kl_to_final, identity.token_kl_to_final, atol=1e-4)


def test_only_the_asked_part_is_read(tiny):
    corpus = made_up()
    for part in ("train", "test"):
        found = compare_lenses(tiny, corpus, {"plain": None}, tokens=10**6, part=part)
        assert found.attrs["documents"] == len(corpus.part(part))
        assert found.attrs["part"] == part


def test_layers_that_a_lens_cannot_read_are_missing(tiny):
    maps = identity_maps(tiny)
    few = replace(maps, maps={(1, 3): maps.maps[1, 3]})
    found = compare_lenses(tiny, made_up(), {"plain": None, "few": few}, tokens=100)
    assert found.layer.values.tolist() == [0, 1, 2, 3]
    assert np.isnan(found.kl_to_final.sel(lens="few")).values.tolist() == [True, False, True, False]
    assert np.isnan(found.precision_low.sel(lens="few", k=1)).values.tolist() == [True, False, True, False]
    assert not np.isnan(found.kl_to_final.sel(lens="plain")).any()
    some = compare_lenses(tiny, made_up(), {"plain": None, "few": few}, tokens=100, layers=(2,))
    assert some.layer.values.tolist() == [2, 3]


def test_refusals(tiny, tokenizer):
    other = lens.load(build("llama", seed=5), tokenizer)
    with pytest.raises(InputError, match="were fitted on"):
        compare_lenses(other, made_up(), {"shortcut": identity_maps(tiny)})
    with pytest.raises(InputError, match=r"cannot read layers \[9\]"):
        compare_lenses(tiny, made_up(), {"plain": None}, layers=(9,))
    with pytest.raises(InputError, match="two documents"):
        compare_lenses(tiny, Corpus("one", ["w5 " * 40]), {"plain": None}, part="train")
    with pytest.raises(InputError, match="0 lenses"):
        compare_lenses(tiny, made_up(), {})


def test_cancelled_between_blocks_and_the_lock_is_free(tiny):
    def cancel() -> None:
        raise Cancelled()

    with pytest.raises(Cancelled):
        compare_lenses(tiny, made_up(), {"plain": None}, check=cancel)
    assert tiny.lock.holder is None


def test_progress_ends_at_the_total(tiny):
    steps = []
    compare_lenses(tiny, made_up(), {"plain": None}, tokens=150, progress=steps.append)
    assert steps[-1].done == steps[-1].total


def test_through_netcdf(readings, tmp_path):
    readings.to_netcdf(tmp_path / "readings.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "readings.nc", engine="h5netcdf") as again:
        xr.testing.assert_identical(again.load(), readings)


def test_smollm2_shortcuts_are_more_faithful_than_the_plain_lens(smollm2):
    """The paper's first claim, on documents that the fit has not seen, at a quarter, a half and five sixths of the depth."""
    corpus = lens.corpus("wikipedia")
    moments = lens.collect_moments(smollm2, corpus, tokens=3072, pairs="both")
    shortcuts = fit_shortcuts(moments.train, ridge=1e-2, pairs=[(5, 30), (15, 30), (25, 30)])
    found = compare_lenses(smollm2, corpus, {"plain": None, "shortcut": shortcuts}, tokens=256, layers=(5, 15, 25), window=32)
    gain = (found.precision.sel(lens="shortcut", k=1) - found.precision.sel(lens="plain", k=1)).isel(layer=slice(-1))
    assert (gain > 0.05).all()
    divergence = found.kl_to_final.isel(layer=slice(-1))
    assert (divergence.sel(lens="shortcut") < 0.5 * divergence.sel(lens="plain")).all()
