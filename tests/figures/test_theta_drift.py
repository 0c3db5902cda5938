"""Charts of drift."""

from __future__ import annotations

import numpy as np
import pytest

from lens.base.errors import InputError
from lens.figures.static_chart import static_figure
from lens.figures.theta_drift import theta_drift_chart
from lens.probes.drift_claims import DEEP, THREE, drift_profile
from tests.probes.test_drift_claims import DEEP_STILL, STILL, made_family, noise


@pytest.fixture(scope="module")
def family():
    deep = [noise(5, 12, size=0.002) - 0.1]
    four = [noise(seed, 4) - 0.01 * seed for seed in (1, 2)]
    return made_family({THREE: four, STILL: four[:1], DEEP: deep, DEEP_STILL: deep})


def test_lines_are_means_over_seeds_beside_decay_and_the_published_ones(family):
    profile = drift_profile(family)
    blocks, apart, course = theta_drift_chart(profile)["plots"]
    found = {one["name"]: one for one in blocks["series"]}
    assert list(found) == ["with decay", "no decay on angles", "decay alone, by the end", "published, 123M"]
    assert found["with decay"]["values"] == pytest.approx([-0.015] * 4)
    assert found["with decay"]["low"] == pytest.approx([-0.02] * 4)
    assert found["with decay"]["high"] == pytest.approx([-0.01] * 4)
    assert found["published, 123M"]["values"] == pytest.approx([0.004, -0.03, -0.083, -0.162])
    assert apart["series"][1]["values"] == pytest.approx([0.01] * 4)
    assert course["series"][-1]["name"] == "block 3"
    assert course["series"][-1]["values"] == pytest.approx([0, -0.0075, -0.015], abs=1e-9)
    assert course["series"][-1]["low"] == pytest.approx([0, -0.0125, -0.025], abs=1e-9)
    static_figure(theta_drift_chart(profile))


def test_an_earlier_look_has_the_same_axis(family):
    early, late = (theta_drift_chart(drift_profile(family, DEEP), look)["plots"][0] for look in (0, -1))
    assert early["y"]["range"] == late["y"]["range"]
    assert early["title"] == "after 0 updates"
    assert np.allclose(early["series"][0]["values"], 0)
    with pytest.raises(InputError, match="0 to 2"):
        theta_drift_chart(drift_profile(family), 3)
