"""Claims on lanes: what is measured is what the probes give, and verdicts follow from the numbers."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import lens
from lens.base.errors import Cancelled, InputError
from lens.base.progress import CancelToken
from lens.corpora import Document
from lens.models.heads import head_states
from lens.probes.lane_claims import (
    BARBERO,
    FACTORS,
    fast_in_fifth,
    lane_claims,
    lane_numbers,
    lane_verdicts,
    slow_lead,
    slow_strongest,
    slow_to_other,
)
from lens.probes.lanes import lane_usage
from lens.probes.positional_kernel import positional_kernel, positional_scores
from tests.models.families import build

TOKENS = 24
DOCUMENTS = [
    Document(" ".join(f"w{(seed * n * n + n) % 124}" for n in range(length))) for seed, length in ((1, 30), (5, 24), (9, 10))
]


@pytest.fixture(scope="module")
def model(tokenizer):
    return lens.load(build("llama"), tokenizer)


@pytest.fixture(scope="module")
def claims(model) -> xr.Dataset:
    return lane_claims(model, DOCUMENTS, tokens=TOKENS, draws=200)


def test_every_number_is_the_probes_own(model, claims):
    states = head_states(model, model.encode_bare(DOCUMENTS[1].text)[:TOKENS])
    here, usage, scores = claims.isel(document=1), lane_usage(states, context=64), positional_scores(states)
    for name in ("query_amplitude", "joint_share", "fast_share", "slow_share"):
        assert np.array_equal(here[name], usage[name])
    for name in ("previous_token", "diagonal"):
        assert np.array_equal(here[name], scores[name])
    kernel = positional_kernel(states[2], 3)
    for name in ("kernel_share", "offset_share", "residual_fraction"):
        assert float(here[name][2, 3]) == float(kernel[name])


def test_documents_that_are_too_short_are_left_out(claims):
    assert dict(claims.sizes) == {"document": 2, "block": 3, "head": 4, "lane": 4, "base": 3, "distance": 6}
    assert claims.base.to_numpy().tolist() == list(FACTORS)
    assert claims.attrs["tokens"] == TOKENS
    assert claims.attrs["model"]


def test_the_same_seed_draws_the_same(model, claims):
    again = lane_claims(model, DOCUMENTS, tokens=TOKENS, draws=200)
    xr.testing.assert_identical(claims, again)
    other = lane_claims(model, DOCUMENTS, tokens=TOKENS, draws=200, seed=1)
    assert not np.array_equal(claims.far_beats_near, other.far_beats_near)


def test_verdicts_compare_intervals_with_thresholds(claims):
    rows = {row["claim"]: row for row in lane_verdicts(claims)}
    sink = rows.pop("Slow lanes make the first token a sink")  # no head of this model gives it more than half
    assert (sink["value"], sink["verdict"]) == (None, "untested")
    for row in rows.values():
        assert row["published"] == ("so on Gemma-7B" if row["source"] == BARBERO else None)
        assert row["low"] <= row["value"] <= row["high"]
        expected = "holds" if row["low"] >= row["threshold"] else "fails" if row["high"] < row["threshold"] else "open"
        assert row["verdict"] == expected


def test_planted_slow_lanes_are_larger_by_what_was_planted(claims):
    planted = claims.copy()
    planted["query_amplitude"] = xr.where(claims.band == "slow", 3.0, 1.5).broadcast_like(claims.query_amplitude)
    assert slow_to_other(planted.isel(document=0), "query") == pytest.approx(2)


def test_the_lead_is_counted_over_sinks_alone_and_may_exceed_one(claims):
    planted = claims.isel(document=0).copy()
    planted["first_token"] = xr.zeros_like(planted.first_token)
    assert np.isnan(slow_lead(planted))
    planted["first_token"][1, 2] = 0.9
    planted["first_key_lead"] = xr.full_like(planted.first_key_lead, 1000.0)
    planted["first_key_lead"][1, 2] = np.where(planted.band[1] == "slow", 6.0, -1.0)
    slow = int((planted.band[1] == "slow").sum())
    assert slow_lead(planted) == pytest.approx(6 * slow / (6 * slow - (4 - slow)))
    planted["joint_share"][0, 0] = [0.4, 0.3, 0.2, 0.1]
    one = planted.isel(block=[0], head=[0])
    assert slow_strongest(one) == 0


def test_numbers_are_quartiles_and_means(claims):
    found = lane_numbers(claims)
    assert found["documents"] == 2
    shares = claims.kernel_share.mean("document")
    assert found["quartiles"]["kernel_share"] == [round(float(shares.quantile(q)), 3) for q in (0.25, 0.5, 0.75)]
    assert found["by_base"]["flipped"]["1"] == round(float(claims.flipped.sel(base=1, distance=32).mean()), 3)


def test_fifths_are_counted_from_the_first_block():
    share = np.zeros((10, 4))
    share[[0, 1, 1, 8], [0, 1, 2, 3]] = 1.0
    planted = xr.Dataset({"fast_share": (("block", "head"), share)})
    assert [fast_in_fifth(planted, fifth, heads=4) for fifth in range(5)] == [0.75, 0, 0, 0, 0.25]


def test_too_few_documents_are_refused_and_the_work_can_be_stopped(model):
    with pytest.raises(InputError, match="1 documents of 30 tokens"):
        lane_claims(model, DOCUMENTS, tokens=30)
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        lane_claims(model, DOCUMENTS, tokens=TOKENS, check=token.check)


@pytest.mark.parametrize(("family", "blocks"), [("smollm3", 2), ("gemma4", 4)])
def test_blocks_that_do_not_rotate_or_are_wider_are_no_hindrance(family, blocks, tokenizer):
    found = lane_claims(lens.load(build(family), tokenizer), DOCUMENTS, tokens=TOKENS, draws=50)
    assert found.sizes["block"] == blocks
    assert {row["verdict"] for row in lane_verdicts(found)} <= {"holds", "fails", "open", "untested"}


def test_claims_can_be_saved(claims, tmp_path):
    claims.to_netcdf(tmp_path / "claims.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "claims.nc", engine="h5netcdf") as again:
        assert [row["verdict"] for row in lane_verdicts(again.load())] == [row["verdict"] for row in lane_verdicts(claims)]


def test_the_strongest_claims_on_smollm2(smollm2):
    """Two short texts decide what many do: slow lanes are the largest, and fast-lane heads look one token back."""
    documents = lens.corpus("wikipedia").part("test")[:3]
    found = lane_claims(smollm2, documents, tokens=48, draws=100)
    verdicts = {row["claim"]: row for row in lane_verdicts(found)}
    assert verdicts["Slow lanes carry the largest norms on average: queries"]["value"] > 1.5
    assert verdicts["Slow lanes make the first token a sink"]["value"] > 0.8
    assert verdicts["Heads that load the fast lanes attend to the token before"]["value"] > 0.6
