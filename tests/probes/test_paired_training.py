"""Trainings side by side: their losses at the same updates, and differences that are differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from lens.base.errors import InputError
from lens.probes.paired_training import decay_course, paired, paired_training, stored_course
from lens.probes.phase_family import phase_family
from lens.probes.phase_training import phase_training
from lens.probes.theta_drift import decay_factor
from lens.probes.verdict import document_interval
from lens.training import Record
from lens.training.three_phase import train_three_phase
from tests.training.test_three_phase import made_up, small

STEPS = 6


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    place = tmp_path_factory.mktemp("paired")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENS_CACHE", str(place / "cache"))
        names = ("three-phase-n3", "three-phase-rope-only")
        return {name: train_three_phase(small(name, STEPS), folder=place / name, corpora=[made_up()]).record for name in names}


@pytest.fixture(scope="module")
def courses(records: Mapping[str, Record]) -> list[xr.Dataset]:
    return [phase_training(record) for record in records.values()]


def test_differences_are_those_of_the_records(records, courses):
    found = paired_training(courses)
    first, second = records.values()
    held = np.array([[step.observed["validation_loss"] for step in record.steps] for record in (first, second)])
    np.testing.assert_allclose(found["validation_loss"][:, 1:], held)
    np.testing.assert_allclose(found["difference"][1, 1:], held[1] - held[0], atol=1e-12)
    assert (found["difference"][0] == 0).all()
    np.testing.assert_allclose(found["train_loss"][0, 1:], [step.loss for step in first.steps])
    assert np.isnan(found["train_loss"][:, 0]).all()
    gaps = np.subtract(second.results["test_loss"]["made up"], first.results["test_loss"]["made up"])
    assert found["test_difference"][1].item() == pytest.approx(gaps.mean(), abs=1e-12)
    expected = document_interval(gaps.tolist(), lambda part: float(np.mean(part)))
    assert (found["low"][1].item(), found["high"][1].item()) == pytest.approx(expected)
    assert np.isnan(found["test_difference"][0])


def test_training_that_goes_on_is_compared_as_far_as_it_is(records, courses):
    first = records["three-phase-n3"]
    begun = phase_training(replace(first, steps=first.steps[:2], results={"initial": first.results["initial"]}))
    found = paired_training([begun, courses[1]])
    assert found["looked_at"].to_numpy().tolist() == list(range(STEPS + 1))
    np.testing.assert_array_equal(np.isfinite(found["difference"][1]), [True] * 3 + [False] * 4)
    np.testing.assert_array_equal(np.isfinite(found["train_loss"][0]), [False, True, True, False, False, False, False])
    assert np.isnan(found["test_difference"]).all()


def test_trainings_that_differ_in_more_than_the_model_are_refused(records, courses):
    first = next(iter(records.values()))
    other = phase_training(replace(first, recipe=replace(first.recipe, seed=1)))
    assert not paired(other, courses[0])
    with pytest.raises(InputError, match="differ in more than the model"):
        paired_training([courses[0], other.assign_attrs(title="other")])
    with pytest.raises(InputError, match="its own title"):
        paired_training([courses[0], courses[0]])


def test_decay_course_ends_where_theta_drift_says(records, courses):
    found = decay_course(courses[0])
    rates = [step.learning_rate for step in records["three-phase-n3"].steps]
    for look, row in zip(found["looked_at"].to_numpy(), found, strict=True):
        np.testing.assert_allclose(row, courses[0]["initial"] * (decay_factor(rates[:look], 0.1) - 1), atol=1e-15)
    np.testing.assert_allclose(found[-1], courses[0]["decay_drift"])


def test_stored_course_is_the_shipped_one_without_what_it_lacks():
    family = phase_family()
    found = stored_course(family, "three-phase-n12", 0)
    assert found.sizes["phase"] == 12
    assert found.sizes["block"] == 4
    assert not any(np.isnan(found[name]).any() for name in ("validation_loss", "phase_norm", "mean_drift", "test_loss"))
    assert found.attrs["steps"] == found.sizes["step"] == 800
    np.testing.assert_allclose(decay_course(found)[-1], found["decay_drift"], rtol=1e-5)
    both = paired_training([found, stored_course(family, "three-phase-n3", 0)])
    wanted = family["document_loss"].sel(recipe="three-phase-n3", seed=0) - family["document_loss"].sel(
        recipe="three-phase-n12", seed=0
    )
    assert both["test_difference"][1].item() == pytest.approx(float(wanted.mean()), abs=1e-6)
    with pytest.raises(InputError, match="no three-phase-n5"):
        stored_course(family, "three-phase-n5")
