"""The family in one Dataset: every number is that of its training, and differences have the textbook's intervals."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
import xarray as xr

import lens
from lens.base.errors import InputError
from lens.models.shipped import shipped_models, shipped_record
from lens.models.three_phase.transport import layers
from lens.probes.phase_family import (
    RECORD_FILE,
    detectable,
    family_differences,
    main,
    paired_runs,
    phase_family,
    seed_noise,
)
from lens.probes.phase_training import phase_training
from lens.training.phase_recipes import FAMILY
from lens.training.three_phase import TrainedModel, train_three_phase
from tests.training.test_three_phase import made_up, small

STEPS = 4
RUNS = (("three-phase-n3", 1), ("three-phase-n3", 0), ("three-phase-n1", 0), ("three-phase-rope-only", 0))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], TrainedModel]:
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENS_CACHE", str(place / "cache"))
        return {
            (name, seed): train_three_phase(small(name, STEPS), seed=seed, folder=place / f"{name}-{seed}", corpora=[made_up()])
            for name, seed in RUNS
        }


def made_family(losses: dict[str, list[float]], blocks: int = 4) -> xr.Dataset:
    """A family with nothing but final losses: one corpus at them, the other twice as far from 0."""
    values = np.array(list(losses.values()))
    seeds = np.arange(values.shape[1])
    return xr.Dataset(
        {
            "test_loss": (("recipe", "seed", "corpus_name"), np.stack([values, 2 * values], -1)),
            "num_blocks": (("recipe",), np.full(len(losses), blocks)),
            "title": (("recipe",), [f"title of {name}" for name in losses]),
        },
        {"recipe": list(losses), "seed": seeds, "corpus_name": ["a", "b"]},
    )


# -- the record -----------------------------------------------------------------------------------


def test_every_number_is_that_of_its_training(trained: dict[tuple[str, int], TrainedModel], tmp_path: Path, capsys):
    main([str(tmp_path / "family.nc"), *(str(done.folder) for done in trained.values())])
    assert capsys.readouterr().out.strip() == str(tmp_path / "family.nc")
    family = phase_family(tmp_path / "family.nc")
    assert family["recipe"].to_numpy().tolist() == ["three-phase-n1", "three-phase-n3", "three-phase-rope-only"]
    assert family["seed"].to_numpy().tolist() == [0, 1]
    for (name, seed), done in trained.items():
        one, course = family.sel(recipe=name, seed=seed), phase_training(done.record)
        for variable in ("train_loss", "validation_loss", "position_loss", "residual", "share"):
            np.testing.assert_allclose(one[variable], course[variable], rtol=1e-6)
        np.testing.assert_allclose(one["document_loss"], course["test_loss"], rtol=1e-6)
        assert float(one["test_loss"][0]) == pytest.approx(done.mean_test_loss()["made up"], abs=1e-5)
        assert float(one["saved_test_loss"][0]) == done.record.results["saved_test_loss"]["made up"]
        if "theta" in course:
            shown = one.isel(pair=slice(course.sizes["pair"]))
            for variable in ("theta", "mean_drift", "spread", "decay_drift"):
                np.testing.assert_allclose(shown[variable], course[variable], rtol=1e-6)
            assert one["theta"].isel(pair=slice(course.sizes["pair"], None)).isnull().all()
        else:
            assert one["theta"].isnull().all()
    missing = family.sel(recipe="three-phase-n1", seed=1)
    assert missing["test_loss"].isnull().all()
    assert str(missing["weights_sha256"].item()) == ""
    assert family["num_phases"].to_numpy().tolist() == [1, 3, 1]
    assert family.attrs["corpus_0"] == "made up"
    calls = "lens train three-phase-n1 three-phase-rope-only --seed 0; lens train three-phase-n3 --seed 0 1"
    assert family.attrs["command"] == calls
    assert all(variable.attrs["long_name"] for name, variable in family.data_vars.items())


def test_trainings_that_cannot_stand_side_by_side(trained: dict[tuple[str, int], TrainedModel], tmp_path: Path):
    folder = trained["three-phase-n3", 0].folder
    with pytest.raises(InputError, match="Two trainings of three-phase-n3 with seed 0"):
        phase_family([folder, folder])
    with pytest.raises(InputError, match="No training is given"):
        phase_family([])
    other = train_three_phase(small("three-phase-n2", STEPS), folder=tmp_path / "other", corpora=[made_up(20)])
    with pytest.raises(InputError, match="three-phase-n2 and three-phase-n3 differ in corpus_hashes, tokenizer"):
        phase_family([folder, other.folder])
    xr.Dataset().to_netcdf(tmp_path / "empty.nc", engine="h5netcdf")
    with pytest.raises(InputError, match="holds something else"):
        phase_family(tmp_path / "empty.nc")
    with pytest.raises(InputError, match="cannot be read"):
        phase_family(tmp_path / "absent.nc")


# -- what is shipped ------------------------------------------------------------------------------


def test_shipped_record_is_that_of_the_shipped_models():
    assert Path(str(files("lens.records"))).joinpath(RECORD_FILE).stat().st_size <= 1_500_000
    family = lens.phase_family()
    assert {*FAMILY, "three-phase-12-blocks"} <= set(family["recipe"].to_numpy().tolist())
    for name in shipped_models():
        record, one = shipped_record(name), family.sel(recipe=name, seed=0)
        assert str(one["weights_sha256"].item()) == record["weights_sha256"]
        for place, corpus in enumerate(one["corpus_name"].to_numpy()):
            assert float(one["saved_test_loss"][place]) == record["results"]["saved_test_loss"][corpus]
        assert family.attrs["tokenizer_hash"] == record["source"]["tokenizer"]
    angles = torch.stack([layer.phase_rotation.theta for layer in layers(lens.load("three-phase-n3").module)])
    last = family["theta"].sel(recipe="three-phase-n3", seed=0)[-1, :4, :16]
    np.testing.assert_allclose(last, angles.detach(), rtol=1e-6)
    assert np.isfinite(family["theta"].sel(recipe="three-phase-12-blocks", seed=0)[:, :12, :16]).all()


# -- differences ----------------------------------------------------------------------------------


def test_paired_difference_has_the_interval_of_the_t_test():
    family = made_family({"one": [4.0, 4.3, 3.9], "other": [3.9, 4.25, 3.95]})
    found = paired_runs(family, "one", "other")
    np.testing.assert_allclose(found["difference"].sel(corpus_name="a"), [0.1, 0.05, -0.05])
    np.testing.assert_allclose(found["difference"].sel(corpus_name="both"), [0.15, 0.075, -0.075])
    low, high = scipy.stats.ttest_1samp([0.1, 0.05, -0.05], 0.0).confidence_interval()
    np.testing.assert_allclose([found["low"][0], found["average"][0], found["high"][0]], [low, 0.1 / 3, high])
    back = paired_runs(family, "other", "one")
    np.testing.assert_allclose(back["low"], -found["high"])


def test_seeds_that_one_of_them_lacks_are_left_out():
    family = made_family({"one": [4.0, 4.3, np.nan], "other": [3.9, 4.25, 3.95]})
    assert paired_runs(family, "one", "other")["seed"].to_numpy().tolist() == [0, 1]
    with pytest.raises(InputError, match="1 common seeds"):
        paired_runs(family.isel(seed=[1, 2]), "one", "other")
    with pytest.raises(InputError, match="three is not in the family"):
        paired_runs(family, "three", "other")


def test_noise_sees_neither_members_nor_seeds():
    """What is left of a table of losses without the means of its rows and columns; for two members, the deviation of a pair."""
    draw = np.random.default_rng(0)
    noise = draw.normal(0, 0.02, (400, 5)) / 1.5  # the mean over corpora is 1.5 times the loss
    losses = noise + 4 + draw.normal(0, 1, (400, 1)) + draw.normal(0, 1, 5)
    found, free = seed_noise(made_family(dict(zip(map(str, range(400)), losses.tolist(), strict=True))))
    assert (found, free) == (pytest.approx(0.02 * np.sqrt(2), rel=0.05), 399 * 4)
    losses[::3, 4] = np.nan  # a seed that a third of them lacks
    found, free = seed_noise(made_family(dict(zip(map(str, range(400)), losses.tolist(), strict=True))))
    assert (found, free) == (pytest.approx(0.02 * np.sqrt(2), rel=0.05), 400 * 5 - 134 - 404)
    pair = made_family({"one": [4.0, 4.3, 3.9], "other": [3.9, 4.25, 3.95]})
    assert seed_noise(pair)[0] == pytest.approx(float(paired_runs(pair, "one", "other")["deviation"][2]))


def test_detectable_effect_has_the_power_of_the_t_test():
    for seeds in (5, 10, 30):
        effect = detectable(0.3, seeds) * np.sqrt(seeds) / 0.3
        bound = scipy.stats.t.ppf(0.975, seeds - 1)
        assert scipy.stats.nct.sf(bound, seeds - 1, effect) == pytest.approx(0.8, abs=2e-3)
    draw = np.random.default_rng(0).normal(detectable(1.0, 3), 1, (40_000, 3))
    seen = scipy.stats.ttest_1samp(draw, 0.0, axis=1).pvalue < 0.05
    assert seen.mean() == pytest.approx(0.8, abs=0.01)
    with pytest.raises(InputError, match="1 seed"):
        detectable(1.0, 1)


def test_differences_of_all_from_one():
    family = made_family(
        {"one": [4.0, 4.3, 3.9], "other": [3.9, 4.25, 3.95], "third": [4.1, 4.5, 4.2], "lone": [4, np.nan, np.nan]}
    )
    found = family_differences(family, "other")
    assert found["recipe"].to_numpy().tolist() == ["one", "third"]
    assert found["title"].to_numpy().tolist() == ["title of one", "title of third"]
    pair = paired_runs(family, "third", "other").sel(corpus_name="both")
    np.testing.assert_allclose(found["low"][1], pair["low"])
    np.testing.assert_allclose(found["difference"][1], pair["difference"])
    noise, free = seed_noise(family.isel(recipe=slice(3)))
    assert free == 2 * 2
    reach = scipy.stats.t.ppf(0.975, free) * noise / np.sqrt(3)
    np.testing.assert_allclose(found["pooled_high"] - found["average"], reach)
    with pytest.raises(InputError, match="No member has two seeds in common"):
        family_differences(made_family({"other": [4.0, 4.1]}), "other")
