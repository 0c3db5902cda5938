"""Shares, their intervals, and verdicts on relations."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from lens.base.errors import InputError
from lens.probes.relation_claims import relation_shares, relation_table, relation_verdicts, wilson_interval
from lens.probes.relation_layers import relation_layers
from tests.probes.relation_toys import small_model, small_task


def test_wilson_interval():
    """Published values: 0 of 10, 5 of 10 (Newcombe 1998, table I gives 81 of 263 and 15 of 148)."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    with pytest.raises(InputError, match="3 of 2"):
        wilson_interval(3, 2)


@pytest.fixture(scope="module")
def study() -> xr.Dataset:
    model = small_model()
    return relation_layers(model, small_task(model), edit_layers=[1, 2])


def test_shares(study):
    shares = relation_shares(study)
    assert np.allclose(shares.agreement, study.agrees.mean("subject"))
    assert np.allclose(shares.reached, study.says_target.mean("edit").transpose("edit_method", "edit_layer"))
    assert (shares.agreement_low <= shares.agreement).all()
    assert (shares.reached_high >= shares.reached).all()


def test_a_table_has_what_the_examples_chose(study):
    table = relation_table({"one": study, "other": study})
    layer = int(study.chosen_layer)
    assert table.relation.to_numpy().tolist() == ["one", "other"]
    assert float(table.faithfulness[0]) == pytest.approx(float(study.agrees.sel(predictor="map", layer=layer).mean()))
    assert float(table.best_layer[0]) == pytest.approx(float(study.agrees.sel(predictor="map").mean("subject").max()))
    assert np.isnan(table.other_template).all()
    with pytest.raises(InputError, match="no study"):
        relation_table({})


COLUMNS = ("faithfulness", "translation", "regression", "logit_lens", "constant", "other_subject", "at_beta_1", "causality",
           "substitution", "last_layer")  # fmt: skip


def made_up(**columns) -> xr.Dataset:
    rows = {name: ("relation", np.array(columns.get(name, [0.1, 0.2, 0.1, 0.2]), float)) for name in COLUMNS}
    return xr.Dataset(rows, {"relation": ["a", "b", "c", "d"]})


def test_verdicts_are_computed():
    good = made_up(faithfulness=[0.8, 0.9, 0.82, 0.91], causality=[0.9, 1.0, 0.91, 1.0])
    rows = {row["claim"]: row for row in relation_verdicts(good)}
    assert rows["About half of the relations are linearly decoded"]["value"] == 1
    assert rows["About half of the relations are linearly decoded"]["verdict"] == "holds"  # Wilson: 4 of 4 is above .51
    assert rows["The inverse of the map edits the answer"]["verdict"] == "holds"
    assert rows["Maps of late layers fail"]["value"] == pytest.approx(0.708, abs=1e-3)
    assert rows["Faithfulness and causality go together"]["value"] > 0.9
    bad = {row["claim"]: row for row in relation_verdicts(made_up(constant=[0.5, 0.6, 0.5, 0.6]))}
    assert bad["A relation's map beats one answer for all"]["verdict"] == "fails"
    assert bad["The inverse of the map edits the answer"]["verdict"] == "fails"
    assert {row["source"] for row in bad.values() if not row["published"]} == {"ours"}
    with pytest.raises(InputError, match="2 relations"):
        relation_verdicts(good.isel(relation=slice(2)))


def test_where_nothing_varies_nothing_is_told_of_a_correlation():
    rows = {row["claim"]: row for row in relation_verdicts(made_up(causality=[1, 1, 1, 1]))}
    assert rows["Faithfulness and causality go together"]["verdict"] == "open"
