"""Named runs that come with the package: made once, each on the device that its record names."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.base.provenance import library_versions
from lens.probes.dataset import exact, texts
from lens.runs.named import RUNS, named_run
from lens.runs.run import FinishedRun, NamedRun, Plan, read_run

DEVICES: tuple[Plan, ...] = ("cpu", "cuda")
_TOLD = {
    "device_name": "device",
    "date": "when the first piece was begun, UTC",
    "commit": "of the code",
    "command": "how to repeat it",
}


def run_record(name: str, *, device: str = "cpu") -> FinishedRun:
    """A run that comes with the package.

    Args:
        name: of the run, see `lens runs`.
        device: `cpu` or `cuda`, the kind of device that it was made on.

    Returns:
        Its pieces, Datasets by name, with the record of how each was made.

    Raises:
        InputError: no such run or kind of device, or none was made on it.
    """
    run = named_run(name)
    if device not in DEVICES:
        raise InputError(f"The device is {device!r}", " or ".join(DEVICES), "device='cpu'")
    folder = record_folder(run.name, device)
    if not folder.is_dir():
        found = f"No record of {run.name} on a {device} device comes with the package"
        raise InputError(found, "one that was made there", f"making it: {_command(run, device)}")
    return read_run(folder)


def run_records() -> xr.Dataset:
    """Which runs come with the package, and where each was made.

    Returns:
        Dataset over `run` and `device` (`cpu`, `cuda`): `pieces`, how many are there, of `planned_pieces`; `seconds` and
        `tokens` of all of them together, `peak_bytes`, the most of any; `device_name`, `date`, `commit` and `command`. Where
        there is no record, numbers are 0 and texts are empty but for the command that would make it; `title` words the run.
    """
    rows = [_row(run, device) for run in RUNS.values() for device in DEVICES]
    shape = (len(RUNS), len(DEVICES))

    def numbers(name: str, words: str, units: str = "1") -> xr.Variable:
        return exact(("run", "device"), np.array([row[name] for row in rows]).reshape(shape), words, units)

    def words_of(name: str, words: str) -> xr.Variable:
        return texts(("run", "device"), np.array([row[name] for row in rows], dtype=object).reshape(shape), words)

    return xr.Dataset(
        {
            "pieces": numbers("pieces", "pieces on record"),
            "planned_pieces": numbers("planned_pieces", "pieces of the plan for this kind of device"),
            "seconds": numbers("seconds", "wall time of all pieces", "s"),
            "processor_seconds": numbers("processor_seconds", "processor time of all pieces, all threads", "s"),
            "tokens": numbers("tokens", "tokens that were read or trained on"),
            "peak_bytes": numbers("peak_bytes", "most memory of any piece", "B"),
            "load_average": numbers("load_average", "largest load of the machine when a piece was begun"),
            **{name: words_of(name, words) for name, words in _TOLD.items()},
        },
        {
            "run": texts(("run",), list(RUNS), "named run"),
            "title": texts(("run",), [run.title for run in RUNS.values()], "what it measures"),
            "device": texts(("device",), list(DEVICES), "kind of device"),
        },
        {"source": "records of named runs", **library_versions()},
    )


def record_folder(name: str, device: str) -> Path:
    """Where the record of a run lies, or would lie."""
    return Path(str(resources.files("lens.records"))) / "runs" / f"{name}-{device}"


def _command(run: NamedRun, device: str) -> str:
    return f"lens runs start {run.name} --device {device} --plan {device} --seed 0"


def _row(run: NamedRun, device: Plan) -> dict[str, str | int | float]:
    planned = {"planned_pieces": len(run.pieces(run.budgets[device]))}
    numbers = ("seconds", "processor_seconds", "tokens", "peak_bytes", "load_average")
    if not record_folder(run.name, device).is_dir():
        empty = dict.fromkeys(("pieces", *numbers), 0) | dict.fromkeys(_TOLD, "")
        return {**empty, **planned, "command": _command(run, device)}
    pieces = list(run_record(run.name, device=device).record().values())
    first = min(pieces, key=lambda piece: piece["date"])
    sums = {name: sum(piece.get(name, 0) for piece in pieces) for name in ("seconds", "processor_seconds", "tokens")}
    most = {name: max(piece[name] for piece in pieces) for name in ("peak_bytes", "load_average")}
    return {"pieces": len(pieces), **planned, **sums, **most, **{name: first[name] for name in _TOLD}}
