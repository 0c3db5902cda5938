"""Runs that come with the package: whole, of today's plan, and with all that their record has to say."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime

import numpy as np
import pytest

from lens.base.errors import InputError
from lens.figures.run_record import caption, record_rows
from lens.runs.named import RUNS
from lens.runs.shipped import DEVICES, record_folder, run_record, run_records

MOST_BYTES = 1_500_000  # of all records together
TEXTS = ("device_name", "system", "lens_version", "python_version", "torch_version", "transformers_version", "numpy_version")
SHIPPED = [(name, device) for name in RUNS for device in DEVICES if record_folder(name, device).is_dir()]


def test_every_run_was_made_on_a_cpu():
    assert {name for name, device in SHIPPED if device == "cpu"} == set(RUNS)


def test_no_other_folder_is_shipped():
    folder = record_folder("any", "cpu").parent
    assert {path.name for path in folder.iterdir()} == {f"{name}-{device}" for name, device in SHIPPED}
    assert sum(path.stat().st_size for path in folder.rglob("*")) <= MOST_BYTES


@pytest.mark.parametrize(("name", "device"), SHIPPED)
def test_pieces_are_those_of_todays_plan(name: str, device: str):
    """After a change of the plan the record has to be made again: `lens runs start NAME -o FOLDER` from a clean checkout."""
    run, done = RUNS[name], run_record(name, device=device)
    budget = run.budgets["cuda" if device == "cuda" else "cpu"]
    assert set(done.pieces) == set(run.pieces(budget))
    assert {path.name for path in done.folder.iterdir()} == {f"{piece}.nc" for piece in done.pieces}
    for piece, record in done.record().items():
        assert (record["name"], record["piece"], record["plan"]) == (name, piece, device)
        assert json.loads(record["budget"]) == json.loads(json.dumps(budget))


@pytest.mark.parametrize(("name", "device"), SHIPPED)
def test_records_say_how_every_piece_was_made(name: str, device: str):
    done = run_record(name, device=device)
    for piece, record in done.record().items():
        assert record["device"] == device
        assert bool(record["driver"]) == (device == "cuda")
        assert all(record[fact] for fact in TEXTS)
        assert re.fullmatch("[0-9a-f]{40}", record["commit"])  # of a clean checkout
        assert record["command"] == f"lens runs start {name} --device {device} --plan {device} --seed {record['seed']}"
        assert record["threads"] >= 1
        assert record["seconds"] > 0
        assert record["processor_seconds"] > 0
        assert record["load_average"] >= 0
        assert record["peak_bytes"] > 2**20
        assert datetime(2026, 1, 1, tzinfo=UTC) < datetime.fromisoformat(record["date"]) < datetime.now(UTC)
        assert all("/" not in str(value) for fact, value in record.items() if fact != "device_name")  # no path
        assert caption(done.pieces[piece]).endswith(f"`{record['command']}`")


def test_what_was_read_is_counted():
    assert run_record("smollm2-moments").record()["rate"]["tokens_per_second"] > 0
    for record in run_record("three-phase").record().values():
        assert record["tokens_per_second"] == pytest.approx(record["tokens"] / record["seconds"], rel=1e-3)


def test_a_run_that_was_not_made_there_is_refused_with_its_command():
    (name, device) = next((name, device) for name in RUNS for device in DEVICES if (name, device) not in SHIPPED)
    with pytest.raises(InputError, match=rf"No record of {name} on a {device} .*lens runs start {name} --device {device}"):
        run_record(name, device=device)
    with pytest.raises(InputError, match="The device is 'tpu'. Needed: cpu or cuda"):
        run_record(name, device="tpu")
    with pytest.raises(InputError, match="Try: three-phase"):
        run_record("threephase")


def test_every_run_has_a_row_for_every_kind_of_device():
    records = run_records()
    assert records.run.to_numpy().tolist() == list(RUNS)
    assert records.device.to_numpy().tolist() == ["cpu", "cuda"]
    for name in RUNS:
        for device in DEVICES:
            one = records.sel(run=name, device=device)
            assert int(one.planned_pieces) > 0
            assert one.command.item().startswith(f"lens runs start {name} --device {device}")
            there = (name, device) in SHIPPED
            assert bool(one.device_name.item()) == bool(one.date.item()) == bool(one.commit.item()) == there
            assert int(one.pieces) == (int(one.planned_pieces) if there else 0)
            if there:
                found = run_record(name, device=device).record().values()
                np.testing.assert_allclose(float(one.seconds), sum(piece["seconds"] for piece in found))
                assert float(one.peak_bytes) == max(piece["peak_bytes"] for piece in found)
    rows = record_rows(records)
    assert len(rows) == 2 * len(RUNS)
    assert all((row[3] == row[4] == row[5] == "") == (str(row[2])[0] == "0") for row in rows)
