"""The record of models trained at several bases: read whole or refused, and verdicts from known numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from lens.base.errors import InputError
from lens.models.frequencies import rope_table
from lens.probes.rope_bounds import rope_bounds
from lens.probes.rope_training import TRAINED_ANGLES, rope_training, rope_training_verdicts
from lens.training.rope_bases import BASES, BIN, DISTANCES, FORMAT, LENGTH, READ, RECIPE, SEEDS, write_rope_bases

BINS = READ // BIN
COSTS = {20.0: 0.0, 1e4: 0.5, None: 0.1}


def run(base: float | None, seed: int, documents: int = 5) -> dict:
    """Beyond the trained length every base has its cost, twice as much from four times that length on."""
    random = np.random.default_rng(seed)
    short = 2 + 0.01 * random.standard_normal((documents, BINS))
    beyond = np.arange(BINS) * BIN >= LENGTH
    far = np.arange(BINS) * BIN >= 4 * LENGTH
    noise = np.where(np.arange(documents) % 2, 0.02, -0.02)[:, None] if base is None else 0.0
    loss = short + beyond * (COSTS[base] + noise) * (1 + far) + 0.01 * seed * beyond
    slowed, stopped = (short + part * (loss - short) for part in (0.25, 0.75))
    known = [[None, None, *row[2:]] for row in short.round(6).tolist()]
    return {
        "base": base, "seed": seed, "parameters": 10, "recipe": {"steps": 40}, "seconds": 1.5, "tokens": 400,
        "source": {"corpus": "made up", "length": LENGTH, "hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 4},
        "environment": {"device": "cpu", "torch_version": "9.9"},
        "curve": {"step": [20, 40], "loss": [3.0, 2.0]},
        "results": {
            "position": list(range(0, READ, BIN)), "loss": loss.round(6).tolist(), "short_loss": known,
            "divided_loss": slowed.round(6).tolist(), "stopped_loss": stopped.round(6).tolist(),
            "distance": list(DISTANCES), "repeated_gain": (0.1 * np.ones((len(DISTANCES), documents))).tolist(),
        },
    }  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    runs = [run(base, seed) for base in (None, 1e4, 20.0) for seed in (1, 0)]
    return write_rope_bases(tmp_path / "record.jsonl", runs[:-1], "a command")  # base 20 has one seed


def test_reader_sorts_and_labels(path):
    found = rope_training(path)
    assert found.setting.values.tolist() == ["20", "10,000", "no rotation"]
    np.testing.assert_array_equal(found.base, [20, 1e4, np.nan])
    assert found.loss.dims == ("setting", "seed", "document", "position")
    assert np.isnan(found.loss.sel(setting="20", seed=0)).all()
    expected = run(1e4, 1)["results"]["loss"]
    np.testing.assert_allclose(found.loss.sel(setting="10,000", seed=1), expected, rtol=1e-6)
    assert np.isnan(found.short_loss.isel(position=1)).all()
    assert found.attrs["trained_torch_version"] == "9.9"
    assert found.attrs["command"] == "a command"


def test_untrained_lanes_are_counted_on_the_table(path):
    found = rope_training(path)
    for base, count in zip(found.base.values[:2], found.untrained_lanes.values[:2], strict=True):
        assert count == (rope_table("default", base, 32).wavelength > LENGTH).sum()
    assert np.isnan(found.untrained_lanes[2])


def test_verdicts_of_known_costs(path):
    found = rope_training_verdicts(rope_training(path), tolerance=0.1)
    np.testing.assert_array_equal(found.reach, [256, 512, 1024])
    np.testing.assert_allclose(found.cost.sel(setting="10,000"), [0.505, 0.505, 1.005], atol=1e-5)
    np.testing.assert_allclose(found.cost_seed.sel(setting="10,000", seed=1), [0.51, 0.51, 1.01], atol=1e-5)
    np.testing.assert_allclose(found.divided_cost, 0.25 * found.cost, atol=1e-5)
    np.testing.assert_allclose(found.stopped_cost_high, 0.75 * found.cost_high, atol=1e-4)
    np.testing.assert_allclose(found.cost.sel(setting="20"), 0.01, atol=1e-5)  # the seed that is there
    assert found.outcome.values.tolist() == [["works"] * 3, ["fails"] * 3, ["open", "open", "fails"]]
    error = 0.02 * math.sqrt(5 / 4 - 1 / 20) / math.sqrt(5)  # two of five documents at +, three at −
    low = float(found.cost_low.sel(setting="no rotation", reach=256))
    assert low == pytest.approx(0.1 - 0.004 + 0.005 - 2.776 * error, abs=1e-4)


def test_theories_are_held_against_the_outcomes(path):
    dataset = rope_training(path)
    found = rope_training_verdicts(dataset)
    bounds = rope_bounds([256, 512, 1024], 4, 32)
    np.testing.assert_array_equal(found.required.sel(theory="depth"), bounds["depth"])
    turned = float(found.required.sel(theory=TRAINED_ANGLES, reach=256))
    slowest = rope_table("default", turned, 32).wavelength[-1]
    assert slowest == pytest.approx(LENGTH, rel=1e-9)  # by its last lane the base is at the limit
    np.testing.assert_array_equal(found.allowed.sel(theory=TRAINED_ANGLES, reach=1024), [1, 0, 0])
    np.testing.assert_array_equal(found.allowed.sel(theory="depth", reach=1024), [0, 1, 0])
    np.testing.assert_array_equal(found.decided, [2, 2, 2])  # without a base there is nothing to foretell
    np.testing.assert_array_equal(found.right.sel(theory=TRAINED_ANGLES), [2, 2, 2])
    np.testing.assert_array_equal(found.right.sel(theory="depth"), [0, 0, 0])


def test_datasets_survive_a_file(path, tmp_path):
    for name, dataset in (("a", rope_training(path)), ("b", rope_training_verdicts(rope_training(path)))):
        dataset.to_netcdf(tmp_path / f"{name}.nc", engine="h5netcdf")
        with xr.open_dataset(tmp_path / f"{name}.nc", engine="h5netcdf") as again:
            xr.testing.assert_identical(again.load(), dataset)


def test_a_damaged_record_is_refused(path, tmp_path):
    text = path.read_text()
    for wrong in (text.replace("3.0", "3.1", 1), text[:-20], "", text.replace(FORMAT, "lens-rope-bases-0")):
        path.write_text(wrong)
        with pytest.raises(InputError, match="no record of trained bases"):
            rope_training(path)
    with pytest.raises(InputError, match="Try:"):
        rope_training(tmp_path / "nowhere.jsonl")


def test_the_shipped_record_is_whole():
    found = rope_training()
    assert found.attrs["corpus"] == "wikipedia"
    assert found.attrs["steps"] == RECIPE.steps
    assert found.seed.values.tolist() == list(SEEDS)
    known = [None if np.isnan(base) else base for base in found.base.values.tolist()]
    assert known == list(BASES)
    assert not np.isnan(found.loss).any()
    assert not np.isnan(found.short_loss.sel(position=slice(LENGTH // 2, None))).any()
    # within the trained length both readings of a byte are the same forward
    half = slice(LENGTH // 2, LENGTH - 1)
    np.testing.assert_allclose(found.loss.sel(position=half), found.short_loss.sel(position=half), atol=2e-4)
    learnt = found.training_loss.isel(step=-1)
    assert learnt.isel(setting=slice(None, -1)).max() < 2.0 < learnt.sel(setting="no rotation").min()
    assert found.training_loss.isel(step=0).min() > 3.0
    json.dumps(found.attrs)
