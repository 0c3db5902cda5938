"""The record of a training as a Dataset: what the record says, and what the probe of drift makes of its angles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from lens.base.errors import InputError
from lens.probes.phase_training import phase_training
from lens.probes.theta_drift import decay_factor
from lens.training import Record
from lens.training.three_phase import TrainedModel, train_three_phase
from tests.training.test_three_phase import made_up, small

STEPS = 5


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainedModel]:
    place = tmp_path_factory.mktemp("trained")
    names = ("three-phase-n3", "three-phase-no-theta-decay", "three-phase-rope-only-scaled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENS_CACHE", str(place / "cache"))
        return {name: train_three_phase(small(name, STEPS), folder=place / name, corpora=[made_up()]) for name in names}


def test_numbers_are_those_of_the_record(trained: dict[str, TrainedModel]):
    done = trained["three-phase-n3"]
    found = phase_training(done.folder)
    assert found.equals(phase_training(done.record))
    np.testing.assert_allclose(found["train_loss"], [step.loss for step in done.record.steps])
    assert found["looked_at"].to_numpy().tolist() == [0, 1, 2, 3, 4, 5]
    last = done.record.steps[-1].observed
    assert found["validation_loss"][-1].item() == last["validation_loss"]
    assert found["validation_loss"][0].item() == done.record.results["initial"]["validation_loss"]
    np.testing.assert_allclose(found["residual"][-1], np.sum(last["phase_mean"], -1))
    # With a horn the phases of the embedded token sum to N times the harmonic mean of positions 1 to 16, by construction.
    np.testing.assert_allclose(found["residual"].sel(layer=0), 3 * np.mean(1 / np.arange(1, 17)), rtol=1e-5)
    np.testing.assert_allclose(found["share"].sel(layer=0, direction="equal channels"), found["share"].sel(layer=0)[:, 1])
    assert found["test_loss"].mean().item() == pytest.approx(done.mean_test_loss()["made up"], abs=1e-5)
    assert set(found["corpus"].to_numpy()) == {"made up"}
    assert found["position_loss"].sizes == {"corpus_name": 1, "position": 16}


def test_drift_begins_at_zero_beside_what_decay_alone_would_give(trained: dict[str, TrainedModel]):
    with_decay, without = (phase_training(trained[name].record) for name in ("three-phase-n3", "three-phase-no-theta-decay"))
    assert (with_decay["drift"][0] == 0).all()
    assert (with_decay["rms"][-1] > 0).all()
    rates = [step.learning_rate for step in trained["three-phase-n3"].record.steps]
    expected = with_decay["initial"] * (decay_factor(rates, 0.1) - 1)
    np.testing.assert_allclose(with_decay["decay_drift"], expected)
    assert (without["decay_drift"] == 0).all()
    # The same gradients but for what decay has changed: it shifts both blocks down by about its own share.
    gap = (with_decay["mean_drift"] - without["mean_drift"])[-1]
    np.testing.assert_allclose(gap, expected, rtol=0.2)


def test_model_without_angles_has_phases_by_cutting_alone(trained: dict[str, TrainedModel]):
    found = phase_training(trained["three-phase-rope-only-scaled"].record)
    assert "theta" not in found
    assert found.sizes["phase"] == 3
    # Standard normal numbers times √96, as the recipe says, in the 16 channels of each third of this small model.
    assert found["phase_norm"][0, 0].mean().item() == pytest.approx(96**0.5 * 16**0.5, rel=0.05)


def test_dataset_survives_a_file(trained: dict[str, TrainedModel], tmp_path):
    found = phase_training(trained["three-phase-n3"].record)
    found.to_netcdf(tmp_path / "d.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "d.nc", engine="h5netcdf") as again:
        assert again.equals(found)
        assert set(again.dims) - set(again.coords) == {"document"}  # which has the name of its corpus
        assert again.attrs["recipe"] == "three-phase-n3"
        assert again.attrs["model_num_phases"] == 3
    assert all(variable.attrs["units"] and variable.attrs["long_name"] for variable in found.data_vars.values())


def test_other_records_are_refused(trained: dict[str, TrainedModel]):
    record = trained["three-phase-n3"].record
    unseen = tuple(replace(step, observed={}) for step in record.steps)
    with pytest.raises(InputError, match="holds no phases"):
        phase_training(Record(record.recipe, record.source, record.environment, unseen))


def test_training_that_is_not_finished_is_the_beginning_of_the_finished_one(trained: dict[str, TrainedModel]):
    record = trained["three-phase-n3"].record
    whole = phase_training(record)
    begun = Record(record.recipe, record.source, {}, record.steps[:3], record.tokens_per_step)
    found = phase_training(begun)  # as a stopped one is read from its state, which holds no look before the first step
    assert found["looked_at"].to_numpy().tolist() == [1, 2, 3]
    for name in ("validation_loss", "share", "residual", "phase_norm"):
        np.testing.assert_array_equal(found[name], whole[name].sel(looked_at=[1, 2, 3]))
    np.testing.assert_allclose(found["mean_drift"], whole["mean_drift"].sel(looked_at=[1, 2, 3]), atol=1e-6)
    assert not {"test_loss", "position_loss", "corpus"} & set(found.variables)
    with_first = phase_training(replace(begun, results={"initial": record.results["initial"]}))
    np.testing.assert_array_equal(with_first["validation_loss"], whole["validation_loss"].sel(looked_at=[0, 1, 2, 3]))
