"""Claims on attention: what is measured is what the probes give, and verdicts follow from the numbers."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import lens
from lens.base.errors import Cancelled, InputError
from lens.base.progress import CancelToken
from lens.corpora import Document
from lens.probes.attention_battery import MEASURES, attention_battery
from lens.probes.attention_claims import (
    LINFORMER,
    QUADRANTS,
    WITHOUT_SINK,
    XIAO,
    attention_claims,
    attention_numbers,
    attention_verdicts,
    difference,
    flatness,
    quadrants,
    share_of,
    sink_heads,
    strongest,
    third,
)
from lens.probes.attention_growth import attention_growth
from lens.probes.offset_profile import shuffled_profile
from tests.models.families import build

TOKENS = 64
DOCUMENTS = [
    Document(" ".join(f"w{(seed * n * n + n) % 124}" for n in range(length))) for seed, length in ((1, 70), (5, 64), (9, 20))
]


@pytest.fixture(scope="module")
def model(tokenizer):
    return lens.load(build("llama"), tokenizer)


@pytest.fixture(scope="module")
def claims(model) -> xr.Dataset:
    return attention_claims(model, DOCUMENTS, tokens=TOKENS)


def planted(**measures: list[list[float]]) -> xr.Dataset:
    """Measures of three blocks of two heads."""
    return xr.Dataset({name: (("block", "head"), np.array(values)) for name, values in measures.items()}, attrs={"tokens": 100})


def test_every_number_is_the_probes_own(model, claims):
    ids = model.encode_bare(DOCUMENTS[1].text)[:TOKENS]
    states = lens.head_states(model, ids)
    here, whole, rest = claims.isel(document=1), attention_battery(states), attention_battery(states, drop_sink=True)
    assert all(np.array_equal(here[name], whole[name]) for name in MEASURES)
    assert all(np.array_equal(here[f"rest_{name}"], rest[name]) for name in WITHOUT_SINK)
    growth = attention_growth(model, ids).growth.sel(measure="mean_entropy")
    assert here.entropy_growth.to_numpy() == pytest.approx(growth.to_numpy())
    assert np.array_equal(here.shuffled_toeplitz_share, shuffled_profile(model, ids, seed=1).toeplitz_share)
    again = lens.head_states(model, ids[:32] * 2, [1])[0].pattern(3)
    expected = np.mean([again[query, query - 31] for query in range(33, 64)])
    assert float(here.induction[1, 3]) == pytest.approx(expected)


def test_documents_that_are_too_short_are_left_out(claims, model):
    assert dict(claims.sizes) == {"document": 2, "block": 3, "head": 4}
    assert claims.attrs["tokens"] == TOKENS
    with pytest.raises(InputError, match="1 documents of 70 tokens"):
        attention_claims(model, DOCUMENTS, tokens=70)
    with pytest.raises(InputError, match="32 tokens"):
        attention_claims(model, DOCUMENTS, tokens=32)


def test_verdicts_compare_intervals_with_thresholds(claims):
    rows = attention_verdicts(claims)
    assert len({row["claim"] for row in rows}) == len(rows) == 21
    assert {row["source"] for row in rows if row["published"]} == {XIAO, LINFORMER}
    for row in rows:
        if row["value"] is None:
            assert row["verdict"] == "untested"
            continue
        assert row["low"] <= row["value"] <= row["high"]
        expected = "holds" if row["low"] >= row["threshold"] else "fails" if row["high"] < row["threshold"] else "open"
        assert row["verdict"] == expected


def test_heads_that_the_model_lacks_leave_a_claim_untested(claims):
    nowhere = claims.copy()
    nowhere["first_token"] = xr.zeros_like(claims.first_token)
    nowhere["previous_token"] = xr.zeros_like(claims.previous_token)
    words = {row["claim"]: row["verdict"] for row in attention_verdicts(nowhere)}
    assert {words[f"Sink heads have nearly rank one: {kind} rank"] for kind in ("stable", "effective")} == {"untested"}
    assert words["Previous-token heads have flat spectra"] == "untested"
    assert words["The first two blocks do without"] == "holds"


def test_kinds_of_concentration():
    """Of a hundred tokens: rows below one half, keys below ln 100 / 2 = 2.30."""
    found = planted(normalised_entropy=[[0.1, 0.1], [0.9, 0.9]], key_entropy=[[2.2, 2.4], [2.4, 2.2]])
    assert quadrants(found).tolist() == [["biased", "unbiased"], ["spread", "spread, with a favourite"]]
    assert set(quadrants(found).ravel()) == set(QUADRANTS)


def test_statistics_of_planted_heads():
    found = planted(first_token=[[0.6, 0.1], [0.7, 0.5], [0.2, 0.9]], energy_rank=[[10, 20], [30, 40], [50, 60]])
    sinks = sink_heads(found)
    assert share_of(sinks) == pytest.approx(0.5)
    assert share_of(found.energy_rank > 25, sinks) == pytest.approx(2 / 3)
    assert np.isnan(share_of(sinks, sinks & ~sinks))
    assert difference(found.energy_rank, sinks, ~sinks) == pytest.approx(100 / 3 - 110 / 3)
    assert flatness(found, strongest(found.energy_rank, 2)) == pytest.approx(0.55)
    assert strongest(found.energy_rank).all()  # fewer than ten
    assert [third(found, which).to_numpy().argmax() for which in range(3)] == [0, 1, 2]


def test_sinks_are_asked_for_beyond_the_first_two_blocks(claims):
    one = claims.copy(deep=True)
    one["first_token"][:] = 0.1
    one["first_token"][:, :2] = 0.9
    one["first_token"][:, 2, 0] = 0.9
    rows = {row["claim"]: row for row in attention_verdicts(one)}
    assert rows["Beyond the first two blocks, heads give the first token most of their attention"]["value"] == 0.25
    assert rows["The first two blocks do without"]["value"] == 0


def test_numbers_are_quartiles_of_means(claims):
    found = attention_numbers(claims)
    assert (found["documents"], found["heads"]) == (2, 12)
    mean = claims.stable_rank.mean("document")
    assert found["quartiles"]["stable_rank"] == [round(float(mean.quantile(q)), 3) for q in (0.25, 0.5, 0.75)]
    assert sum(found["quadrants"].values()) == 12


def test_the_work_can_be_stopped_and_its_result_saved(model, claims, tmp_path):
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        attention_claims(model, DOCUMENTS, tokens=TOKENS, check=token.check)
    claims.to_netcdf(tmp_path / "claims.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "claims.nc", engine="h5netcdf") as again:
        assert attention_verdicts(again.load()) == attention_verdicts(claims)


def test_sinks_of_smollm2(smollm2):
    """None in the first two blocks, nearly all heads of some late ones: rank one by one rank, and far from it by another."""
    ids = smollm2.encode_bare(lens.corpus("wikipedia").part("test")[0].text)[:96]
    states = lens.head_states(smollm2, ids, [0, 1, 23, 24, 26])
    found = attention_battery(states, measures=["first_token", "stable_rank", "effective_rank"])
    sinks = sink_heads(found)
    assert float(found.first_token[:2].max()) < 0.1
    assert share_of(sinks[2:]) > 0.8
    assert float(found.stable_rank.where(sinks).max()) < 1.5
    assert share_of(found.effective_rank > 2, sinks) > 0.8
