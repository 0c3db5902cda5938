"""Charts of rotary families: the probe's numbers, one scale for every family."""

from __future__ import annotations

import numpy as np
import pytest

from lens.base.errors import InputError
from lens.figures.commuting import PAIRS, PICTURES, commuting_chart
from lens.probes.commuting import FAMILIES, commuting


@pytest.fixture(scope="module")
def found():
    return {family: commuting(family, seed=2) for family in FAMILIES}


def values(part: list) -> np.ndarray:
    return np.array(part, dtype=float)


def test_maps_and_curves_hold_the_probes_numbers(found):
    dataset = found["independent"]
    defect, followed = commuting_chart(dataset, 5, "defect")["plots"]
    change, again = commuting_chart(dataset, 5, "logits")["plots"]
    assert again == followed
    np.testing.assert_allclose(values(defect["values"]), dataset.defect.transpose("y", "x"), rtol=1e-3, atol=1e-9)
    for curve, key in zip(followed["series"], PAIRS, strict=True):
        np.testing.assert_allclose(values(curve["values"]), dataset.logit[:, 0, key], rtol=1e-3)
    expected = dataset.logit.sel(offset=5) - dataset.logit[0]
    np.testing.assert_allclose(values(change["values"]), expected, rtol=1e-3, atol=1e-6)
    assert followed["series"][1]["name"] == "to (4, 0)"


def test_a_family_that_commutes_shows_no_colour(found):
    """On the same scale as one that does not: rounding is not blown up."""
    for family in FAMILIES[:2]:
        defect, followed = commuting_chart(found[family], 16, "defect")["plots"]
        change, _ = commuting_chart(found[family], 16, "logits")["plots"]
        assert defect["value"]["range"] == [0, 2]
        assert np.abs(values(defect["values"])).max() < 1e-12
        assert change["value"]["range"] == [-1, 1]
        assert np.abs(values(change["values"])).max() < 1e-6
        assert all(np.ptp(values(curve["values"])) < 1e-3 for curve in followed["series"])


def test_pictures_on_the_left(found):
    dataset = found["axial partition"]
    left = {picture: commuting_chart(dataset, 0, picture)["plots"][0] for picture in PICTURES}
    assert [plot["kind"] for plot in left.values()] == ["heat_map", "bars", "lines", "heat_map"]
    assert left["commutator"]["series"][0]["values"] == [0] * 12
    first, second = (values(curve["values"]) for curve in left["frequencies"]["series"])
    assert np.isfinite(first).sum() == np.isfinite(second).sum() == 12  # each axis turns half of the 24 lanes
    np.testing.assert_allclose(first[:12], np.sort(dataset.frequency[0].to_numpy().ravel())[:11:-1], rtol=1e-3)


def test_refused(found):
    for offset, picture in ((17, "defect"), (0, "spectrum")):
        with pytest.raises(InputError, match="Try:"):
            commuting_chart(found["independent"], offset, picture)
