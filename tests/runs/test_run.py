"""Named runs: pieces are measured once, kept at once, and carry the record of how they were made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import xarray as xr

from lens.base.errors import Cancelled, InputError
from lens.base.progress import Step
from lens.runs.machine import commit, machine_facts, processor_name
from lens.runs.run import Budget, Measure, Measured, NamedRun, Setting, read_run, start_run


class Counter:
    """A run of three pieces that counts how often each was measured; the second can be made to stop."""

    def __init__(self):
        self.measured: list[str] = []
        self.stops = False

    def pieces(self, budget: Budget) -> Mapping[str, Measure]:
        return {name: self.measure(name) for name in budget["names"]}

    def measure(self, name: str) -> Measure:
        def found(setting: Setting) -> Measured:
            if self.stops and name == "second":
                raise Cancelled
            self.measured.append(name)
            values = np.random.default_rng(setting.seed).normal(size=3)
            return Measured(xr.Dataset({"value": ("place", values)}, attrs={"piece": name}), 300 if name == "first" else None)

        return found


@pytest.fixture
def counter() -> Counter:
    return Counter()


@pytest.fixture
def run(counter: Counter) -> NamedRun:
    budgets: Mapping = {"cpu": {"names": ["first", "second", "third"]}, "cuda": {"names": ["first"]}}
    return NamedRun("counting", "Counts", budgets, counter.pieces)


def test_pieces_are_measured_in_order_and_once(run: NamedRun, counter: Counter, tmp_path: Path):
    steps: list[Step] = []
    first = start_run(run, folder=tmp_path / "run", progress=steps.append)
    assert counter.measured == ["first", "second", "third"] == list(first.pieces)
    assert [(step.done, step.total) for step in steps] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    again = start_run(run, folder=tmp_path / "run")
    assert len(counter.measured) == 3
    for name, piece in first.pieces.items():
        xr.testing.assert_identical(piece, again.pieces[name])


def test_a_stopped_run_goes_on_with_the_piece_that_is_missing(run: NamedRun, counter: Counter, tmp_path: Path):
    counter.stops = True
    with pytest.raises(Cancelled):
        start_run(run, folder=tmp_path)
    assert list(read_run(tmp_path).pieces) == ["first"]
    counter.stops = False
    assert list(start_run(run, folder=tmp_path).pieces) == ["first", "second", "third"]
    assert counter.measured == ["first", "second", "third"]


def test_a_check_stops_before_the_next_piece(run: NamedRun, counter: Counter, tmp_path: Path):
    def check() -> None:
        if counter.measured:
            raise Cancelled

    with pytest.raises(Cancelled):
        start_run(run, folder=tmp_path, check=check)
    assert counter.measured == ["first"]


def test_the_record_says_how_a_piece_was_made(run: NamedRun, tmp_path: Path):
    began = datetime.now(UTC).replace(microsecond=0)
    record = start_run(run, folder=tmp_path, seed=3).record()["first"]
    assert record["name"] == "counting"
    assert record["plan"] == "cpu"
    assert record["seed"] == 3
    assert record["device"] == "cpu"
    assert record["command"] == "lens runs start counting --device cpu --plan cpu --seed 3"
    assert record["tokens"] == 300
    assert record["tokens_per_second"] > 0
    assert record["seconds"] >= 0
    assert record["processor_seconds"] >= 0
    assert record["load_average"] >= 0
    made = datetime.strptime(record["date"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert began <= made <= datetime.now(UTC)
    assert record["peak_bytes"] > 2**20
    assert record["device_name"] == processor_name()
    assert record["driver"] == ""
    assert not any(str(tmp_path) in str(value) for value in record.values())
    assert "tokens" not in read_run(tmp_path).record()["second"]


def test_the_plan_is_the_devices_unless_another_is_asked_for(run: NamedRun, tmp_path: Path):
    assert list(start_run(run, folder=tmp_path, plan="cuda").pieces) == ["first"]


def test_another_run_in_the_folder_is_refused(run: NamedRun, tmp_path: Path):
    start_run(run, folder=tmp_path, seed=1)
    with pytest.raises(InputError, match=r"first.nc was made with seed 1. Needed: 2. Try: another folder"):
        start_run(run, folder=tmp_path, seed=2)
    shorter = replace(run, budgets={"cpu": {"names": ["first"]}, "cuda": {}})
    with pytest.raises(InputError, match="made with budget"):
        start_run(shorter, folder=tmp_path, seed=1)


def test_a_damaged_piece_is_named(run: NamedRun, tmp_path: Path):
    start_run(run, folder=tmp_path)
    (tmp_path / "second.nc").write_bytes(b"no netCDF")
    with pytest.raises(InputError, match=r"second.nc cannot be read .* deleting it"):
        start_run(run, folder=tmp_path)
    (tmp_path / "second.nc").unlink()
    assert list(start_run(run, folder=tmp_path).pieces) == ["first", "second", "third"]


def test_a_folder_without_pieces_is_no_run(tmp_path: Path):
    xr.Dataset({"value": 1.0}).to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    with pytest.raises(InputError, match="holds no piece of a run"):
        read_run(tmp_path)


def test_the_commit_is_the_checkouts():
    folder = Path(__file__).parents[2]
    found = commit()
    assert (len(found.rstrip("+")) == 40) == (folder / ".git").exists()
    assert machine_facts(torch.device("cpu"))["commit"] == found


def test_large_arrays_are_packed_and_come_back_as_they_were(tmp_path: Path):
    values = np.repeat(np.random.default_rng(0).normal(size=8), 1000)
    names = np.array([f"head {i}" for i in range(8000)], dtype=object)

    def measured(setting: Setting) -> Measured:
        return Measured(xr.Dataset({"value": ("place", values), "name": ("place", names), "one": 1.5}))

    budgets: Mapping = {"cpu": {}, "cuda": {}}
    done = start_run(NamedRun("large", "Large", budgets, lambda budget: {"piece": measured}), folder=tmp_path)
    piece = done.pieces["piece"]
    np.testing.assert_array_equal(piece.value, values)
    np.testing.assert_array_equal(piece.name, names)
    with h5py.File(tmp_path / "piece.nc") as file:
        assert file["value"].compression == "gzip"
        assert file["value"].id.get_storage_size() < values.nbytes / 20
        assert file["one"].compression is None
