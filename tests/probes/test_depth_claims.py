"""Claims about depth and channels: statistics of planted curves, and all of it on a small model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from transformers import AutoConfig, AutoModelForCausalLM

import lens
from lens.base.errors import InputError
from lens.corpora import Document
from lens.figures.depth_lab import depth_curves_chart, hidden_dimensions_chart
from lens.probes.block_influence import block_influence
from lens.probes.depth_claims import (
    LLAMA_COST,
    added,
    agreement_of_ranks,
    curve_cost,
    depth_claims,
    depth_verdicts,
    middle,
    random_cost,
    turns,
)
from lens.probes.depth_edits import depth_edits
from lens.probes.depth_record import DOCUMENTS as DOCUMENTS_READ
from lens.probes.depth_record import TOKENS, shipped_depth_claims

DOCUMENTS = [Document(" ".join(f"w{(7 * i + 11 * n * n) % 120}" for i in range(40))) for n in range(5)]


@pytest.fixture(scope="module")
def model(tokenizer):
    config = AutoConfig.for_model(
        "llama", vocab_size=128, hidden_size=16, intermediate_size=24, num_hidden_layers=8, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    return lens.load(AutoModelForCausalLM.from_config(config), tokenizer)


@pytest.fixture(scope="module")
def claims(model) -> xr.Dataset:
    return depth_claims(model, DOCUMENTS[:3], DOCUMENTS[3:], tokens=24, counts=(1, 6))


def planted(cost: list[float], **curves: float) -> xr.Dataset:
    """One document; curves at six edits."""
    names = list(curves)
    return xr.Dataset(
        {
            "loss": ((), 3.0),
            "loss_after": (("edit", "block"), 3.0 + np.array([cost])),
            "curve_loss": (("curve", "edits_made"), 3.0 + np.array([[curves[name]] for name in names])),
        },
        {"edit": ["removed"], "curve": [name.replace("_", " ") for name in names], "edits_made": [6]},
    )


def test_statistics_of_planted_costs():
    one = planted([7.0, 2.0, 0.5, 0.1, 0.3, 0.2, 1.0, 4.0], block_influence=0.7, random_1=2.0, random_2=4.0)
    assert added(one, "removed").tolist() == pytest.approx([7.0, 2.0, 0.5, 0.1, 0.3, 0.2, 1.0, 4.0])
    assert np.isnan(added(one, "replaced")).all()
    assert middle(added(one, "removed")) == pytest.approx((0.5 + 0.1 + 0.3 + 0.2) / 4)
    assert curve_cost(one, "block influence") == pytest.approx(0.7)
    assert np.isnan(curve_cost(one, "linearity"))
    assert np.isnan(curve_cost(one, "block influence", 5))
    assert random_cost(one) == pytest.approx(3.0)
    assert agreement_of_ranks(one, np.array([9, 8, 5, 1, 4, 3, 6, 7])) == pytest.approx(1 - 6 * 2 / (8 * 63))
    assert pytest.approx(1.216, abs=1e-3) == LLAMA_COST


def test_claims_are_the_probes_of_the_same_documents(claims, model):
    influence = block_influence(model, DOCUMENTS[:3], tokens=24)
    edits = depth_edits(model, DOCUMENTS[:3], ("removed", "swapped", "parallel"), tokens=24)
    assert np.array_equal(claims.block_influence, influence.block_influence)
    assert np.allclose(claims.loss_after, edits.loss_after, equal_nan=True)
    assert "linearity" not in claims.curve.to_numpy()
    assert {"block influence", "last first", "random 2", "closest pairs, parallel"} <= set(claims.curve.to_numpy())
    assert np.allclose(claims.curve_loss.sel(curve="last first", edits_made=1), edits.loss_after.sel(edit="removed", block=6))
    assert turns(claims.isel(document=0)).shape == (8,)
    assert claims.attrs["model"] == model.name
    assert model.edits == ()


def test_verdicts_are_words_computed_from_intervals(claims, tmp_path: Path):
    claims.to_netcdf(tmp_path / "claims.nc", engine="h5netcdf")
    rows = depth_verdicts(xr.load_dataset(tmp_path / "claims.nc", engine="h5netcdf"))
    assert rows == depth_verdicts(claims)
    assert len({row["claim"] for row in rows}) == len(rows) == 20
    words = {row["claim"]: row["verdict"] for row in rows}
    assert words["The two most linear blocks can be replaced by maps for nothing"] == "untested"
    assert words["Some activations are massive: over 100, 1,000 times the median"] == "fails"
    assert set(words.values()) <= {"holds", "fails", "open", "untested"}
    figures = [row["published"] for row in rows if row["published"]]
    assert figures == ["1.22 nats, Llama-2-7B", "72 to 95 %", "72 to 95 %", "0.75 nats, Llama-2-7B", "three quarters"]
    for row in rows:
        assert max(len(row[name]) for name in ("claim", "source", "measured")) <= 65
        if row["verdict"] == "holds":
            assert row["low"] >= row["threshold"] - 1e-3


def test_one_document_for_both_is_refused(model):
    with pytest.raises(InputError, match="for the order and for the loss"):
        depth_claims(model, DOCUMENTS[:3], DOCUMENTS[2:], tokens=24)


def test_charts_show_the_means(claims):
    (curves,) = depth_curves_chart(claims)["plots"]
    by_name = {one["name"]: one["values"] for one in curves["series"]}
    mean = (claims.curve_loss - claims.loss).mean("document")
    assert by_name["last ones first"] == pytest.approx(mean.sel(curve="last first").to_numpy(), rel=1e-3)
    drawn = mean.sel(curve=[f"random {n}" for n in (1, 2)]).mean("curve")
    assert by_name["at random"] == pytest.approx(drawn.to_numpy(), rel=1e-3)
    sizes, shares = hidden_dimensions_chart(claims)["plots"]
    assert sizes["series"][0]["values"] == pytest.approx(claims.largest.sel(size_rank=1).mean("document").to_numpy(), rel=1e-3)
    assert shares["series"][0]["values"] == pytest.approx(
        claims.active_share.sel(share=0.5).mean("document").to_numpy(), rel=1e-3
    )


def test_the_record_is_of_smollm2_and_finds_its_massive_channel():
    record = shipped_depth_claims()
    assert record.attrs["model"] == "smollm2-135m"
    assert record.attrs["command"].startswith("python -m lens.probes.depth_record")
    assert record.attrs["tokens"] == TOKENS
    assert record.sizes["block"] == 30
    assert record.sizes["document"] == DOCUMENTS_READ
    middle_layers = record.sel(layer=slice(12, 28), size_rank=1)
    assert (middle_layers.largest_channel == 507).all()
    assert (middle_layers.largest_position == 0).all()
    assert not np.isnan(record.loss_after.sel(edit=["removed", "replaced"])).any()
    rows = {row["claim"]: row["verdict"] for row in depth_verdicts(record)}
    assert rows["Without massive activations a model breaks"] == rows["Massive activations do as well as constants"] == "holds"
    assert "untested" not in rows.values()
