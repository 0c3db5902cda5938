"""Charts of the family: whose curves and bars are drawn, and with which numbers."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from lens.base.errors import InputError
from lens.figures.phase_family import CURVES, NAMES, phase_family_chart
from lens.figures.static_chart import static_figure
from lens.probes.phase_family import family_differences
from lens.training.phase_recipes import FAMILY


@pytest.fixture
def family() -> xr.Dataset:
    losses = np.linspace(4, 4.5, 3 * len(FAMILY)).reshape(len(FAMILY), 3)
    looked_at = np.arange(0, 801, 80)
    course = losses[:, :, None] + np.exp(-looked_at / 100)
    return xr.Dataset(
        {
            "test_loss": (("recipe", "seed", "corpus_name"), losses[..., None]),
            "validation_loss": (("recipe", "seed", "looked_at"), course),
            "num_blocks": (("recipe",), np.full(len(FAMILY), 4)),
            "title": (("recipe",), list(FAMILY)),
        },
        {"recipe": list(FAMILY), "seed": [0, 1, 2], "looked_at": looked_at, "corpus_name": ["a"]},
    )


def test_curves_and_differences(family: xr.Dataset):
    spec = phase_family_chart(family, family_differences(family, "three-phase-n3"))
    curves, differences = spec["plots"]
    assert [(one["name"], one["colour"]) for one in curves["series"]] == [
        (NAMES[name], CURVES[name]) for name in FAMILY if name in CURVES
    ]
    assert curves["x"]["values"][0] == 160  # the steep beginning is left out
    one = family["validation_loss"].sel(recipe="three-phase-n3", looked_at=160)
    drawn = next(line for line in curves["series"] if line["name"] == "3 phases")
    np.testing.assert_allclose(
        [drawn["low"][0], drawn["values"][0], drawn["high"][0]], [one.min(), one.mean(), one.max()], rtol=1e-3
    )
    assert differences["x"]["labels"] == [NAMES[name] for name in FAMILY if name != "three-phase-n3"]
    assert differences["title"] == "final loss against: 3 phases"
    step = 0.5 / (3 * len(FAMILY) - 1)
    np.testing.assert_allclose(differences["series"][0]["values"][0], -6 * step, atol=1e-3)
    assert static_figure(spec).axes


def test_a_family_of_others(family: xr.Dataset):
    with pytest.raises(InputError, match="no member with a curve"):
        phase_family_chart(family.sel(recipe=["three-phase-n2"]), family_differences(family, "three-phase-n3"))
