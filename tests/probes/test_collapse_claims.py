"""Claims about rank collapse: statistics of planted curves, and all of it on a small model."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import lens
from lens.base.errors import InputError
from lens.corpora import Document
from lens.probes.collapse_claims import (
    WU,
    collapse_claims,
    collapse_depth,
    collapse_verdicts,
    decades,
    growth,
    ratios,
    slow_over_fast,
    slow_share,
    slowest_fall,
)
from lens.probes.low_pass import attention_response
from lens.probes.rank_collapse import FIRST_TOKEN, VARIANTS, rank_collapse
from tests.models.families import build

DOCUMENTS = [Document(" ".join(f"w{(7 * i + 11 * n) % 120}" for i in range(20))) for n in range(3)]


def planted(**curves: list[float]) -> xr.Dataset:
    """ρ of one document without its first token; with it, something that must not be read."""
    values = np.array([[np.full(len(curve), 7.0), curve] for curve in curves.values()])
    coordinates = {"variant": list(curves), "first_token": list(FIRST_TOKEN)}
    return xr.Dataset({"residual_ratio": (("variant", "first_token", "layer"), values)}, coordinates)


def test_exponential_and_doubly_exponential_falls_are_told_apart():
    layers = np.arange(12)
    exponential, cubic = 0.4 * 0.5**layers, 0.4 ** (3.0**layers)
    assert growth(cubic) == pytest.approx(3)
    assert growth(exponential) == pytest.approx((np.log(0.4 * 0.5**11) / np.log(0.4)) ** (1 / 11))
    assert growth(exponential) < 1.3
    assert slowest_fall(exponential) == pytest.approx(10 * np.log10(2))
    assert slowest_fall(np.r_[0.4, 0.2, 0.1 * np.ones(9), 0.05, 0.01]) == pytest.approx(np.log10(4))
    assert slowest_fall(np.r_[0.4, 0.1 * np.ones(12)]) == 0
    assert np.isnan(growth(np.full(8, 0.7)))
    assert np.isnan(slowest_fall(np.full(20, 0.7)))


def test_rates_are_read_above_rounding_only():
    fall = np.r_[0.9, 0.8, 0.4 * 0.5 ** np.arange(12), np.full(10, 3e-7)]
    assert slowest_fall(fall) == pytest.approx(10 * np.log10(2))
    assert growth(fall) == pytest.approx(growth(0.4 * 0.5 ** np.arange(12)))


def test_depth_and_decades():
    assert decades(ratios(planted(neither=[0.5, 0.05, 0.0005]), "neither")) == pytest.approx(3)
    assert decades(np.array([1.0, 1e-9])) == pytest.approx(5)
    assert collapse_depth(np.array([0.9, 0.005, 0.02, 0.001, 0.001])) == 3
    assert collapse_depth(np.array([0.9, 0.5])) == 2
    assert collapse_depth(np.array([0.001, 0.001])) == 0


def test_filters_and_bands():
    weights = np.tril(np.ones((1, 1, 16, 16))) / np.arange(1, 17)[:, None]
    claims = attention_response(weights).mean("head")
    response = claims.response.to_numpy()[0, 1:]
    assert slow_over_fast(claims) == pytest.approx(response[:3].mean() / response[-3:].mean())
    assert slow_over_fast(attention_response(np.eye(16)[None, None]).mean("head")) == pytest.approx(1)
    shares = np.zeros((6, 5))
    shares[:, 0] = [1, 1, 2, 2, 4, 4]
    shares[:, 1] = 1
    shares[:, 2] = 100
    bands = xr.Dataset({"band_share": (("layer", "band"), shares)})
    assert [slow_share(bands, third) for third in range(3)] == [2, 3, 5]


@pytest.fixture(scope="module")
def found(tokenizer):
    model = lens.load(build("llama"), tokenizer)
    return model, collapse_claims(model, DOCUMENTS, tokens=12)


def test_every_document_is_measured_as_its_probes_do(found):
    model, claims = found
    assert claims.sizes["document"] == 3
    assert claims.attrs["tokens"] == 12
    for number, document in enumerate(DOCUMENTS):
        alone = rank_collapse(model, model.encode_bare(document.text)[:12])
        assert np.array_equal(claims.residual_ratio[number], alone.residual_ratio)
    assert claims.path_residual_ratio.dims == ("document", "layer")
    assert claims.response.dims == ("document", "block", "frequency")
    assert claims.response.isel(frequency=0).to_numpy() == pytest.approx(1, abs=1e-5)
    assert claims.change.dims == ("document", "stage", "block")
    assert claims.factor_change.dims == ("document", "factor", "block")
    assert list(claims.variant.to_numpy()) == list(VARIANTS)
    states = model.run(model.encode_bare(DOCUMENTS[1].text)[:12]).residual.double().norm(dim=-1).numpy()
    assert claims.first_token_size[1].to_numpy() == pytest.approx(states[:, 0] / np.median(states[:, 1:], axis=1))


def test_every_claim_has_a_number_an_interval_and_a_word(found, tmp_path):
    _, claims = found
    rows = collapse_verdicts(claims)
    assert len({row["claim"] for row in rows}) == len(rows) == 14
    for row in rows:
        assert row["verdict"] in ("holds", "fails", "open", "untested")
        assert row["verdict"] == "untested" or row["low"] <= row["value"] <= row["high"]
    assert [row["published"] for row in rows if row["published"]] == ["3", "exponential"]
    last = next(row for row in rows if row["claim"].startswith("The whole model"))
    assert last["value"] == round(float(claims.residual_ratio.sel(variant="whole", first_token="without")[:, -1].mean()), 3)
    claims.to_netcdf(tmp_path / "claims.nc", engine="h5netcdf")
    assert collapse_verdicts(xr.load_dataset(tmp_path / "claims.nc", engine="h5netcdf")) == rows


def test_a_model_whose_matrices_are_not_found_has_the_other_claims(tokenizer):
    rows = collapse_verdicts(collapse_claims(lens.load(build("bloom"), tokenizer), DOCUMENTS[:2], tokens=10))
    untested = [
        row["claim"] for row in rows if row["verdict"] == "untested" and row["source"] != WU and "doubly" not in row["claim"]
    ]
    assert untested == [
        "The same patterns and matrices without norms lose rank too", "Attention patterns by themselves make states smoother",
    ]  # fmt: skip


def test_too_few_documents_are_refused(found):
    with pytest.raises(InputError, match="0 documents of 40 tokens"):
        collapse_claims(found[0], DOCUMENTS, tokens=40)
