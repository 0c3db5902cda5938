"""Charts of a training: every picture, of few phases and of many, from its first look on."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from lens.base.errors import InputError
from lens.figures.phase_training import PICTURES, phase_training_chart, pictures_of
from lens.figures.static_chart import static_figure
from lens.probes.paired_training import decay_course, paired_training, stored_course
from lens.probes.phase_family import phase_family


@pytest.fixture(scope="module")
def courses() -> dict[str, xr.Dataset]:
    names = ("three-phase-n3", "three-phase-n12", "three-phase-rope-only")
    found = {name: stored_course(phase_family(), name) for name in names}
    return {name: one.assign(decay_alone=decay_course(one)) if "theta" in one else one for name, one in found.items()}


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("name", ["three-phase-n3", "three-phase-n12"])
def test_every_picture_can_be_drawn(courses: dict[str, xr.Dataset], name: str, picture: str):
    course = courses[name]
    runs = paired_training([course, courses["three-phase-rope-only"]])
    spec = phase_training_chart(runs, course, picture=picture, layer=4)
    losses, beside = spec["plots"]
    assert [one["name"].rpartition(", ")[2] for one in losses["series"]] == ["held out", "train", "held out"]
    np.testing.assert_allclose(losses["series"][0]["values"], course["validation_loss"], rtol=5e-4)
    assert losses["x"]["range"] == [0, 800]
    many = name == "three-phase-n12" and picture in ("lengths", "means")
    assert beside["kind"] == ("heat_map" if many else "lines")
    assert static_figure(spec).axes


def test_pictures_show_what_they_are_called(courses: dict[str, xr.Dataset]):
    course = courses["three-phase-n3"]
    runs = paired_training([course, courses["three-phase-rope-only"]])
    plots = {name: phase_training_chart(runs, course, picture=name, layer=0)["plots"][1] for name in PICTURES}
    shown = {name: {one["name"]: np.array(one["values"], float) for one in plot["series"]} for name, plot in plots.items()}
    np.testing.assert_allclose(shown["angles"]["block 3"], course["mean_drift"].sel(block=3), rtol=5e-4, atol=1e-9)
    np.testing.assert_allclose(shown["angles"]["weight decay alone, block 3"][-1], course["decay_drift"][3], rtol=5e-4)
    lengths = np.stack([shown["lengths"][f"phase {phase}"] for phase in range(3)])
    np.testing.assert_allclose(lengths.mean(0), 1, atol=1e-3)
    means = np.stack([shown["means"][f"phase {phase}"] for phase in range(3)])
    np.testing.assert_allclose(means.sum(0), shown["means"]["their sum"], rtol=1e-3)
    # With a horn the embedding's means sum to 3 H_128 / 128, whatever was learned.
    np.testing.assert_allclose(shown["means"]["their sum"], 0.1273394, rtol=1e-3)
    assert plots["shares"]["rules"][0]["value"] == pytest.approx(1 / 96, rel=1e-3)


def test_training_without_angles_or_company_has_fewer_pictures(courses: dict[str, xr.Dataset]):
    alone = courses["three-phase-rope-only"]
    runs = paired_training([alone])
    assert pictures_of(runs, alone) == ("lengths", "means", "shares")
    for picture in ("angles", "difference", "spirals"):
        with pytest.raises(InputError, match="one of lengths, means, shares"):
            phase_training_chart(runs, alone, picture=picture, layer=0)


def test_first_look_alone_makes_a_picture(courses: dict[str, xr.Dataset]):
    begun = courses["three-phase-n3"].isel(looked_at=slice(1), step=slice(0))
    runs = paired_training([begun])
    for picture in ("angles", "lengths", "means", "shares"):
        spec = phase_training_chart(runs, begun, picture=picture, layer=1)
        assert [axis["range"][0] < axis["range"][1] for axis in (spec["plots"][0]["y"], spec["plots"][1]["y"])] == [True, True]
        assert spec["plots"][0]["x"]["range"] == [0, 800]  # curves grow into a picture that stays
