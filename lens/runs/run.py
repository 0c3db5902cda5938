"""A named run: pieces that are measured one after the other, each written as soon as it is done.

Every piece is one netCDF file that carries its own record: what was asked for, on what machine, with what code, how long
it took and how much memory it needed. A run that was stopped goes on with the first piece that is missing.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
import xarray as xr

from lens.base.cache import cache_folder, cache_lock
from lens.base.errors import InputError
from lens.base.files import atomic_file
from lens.base.progress import Progress, Step, terminal_progress
from lens.models.load import require_device
from lens.runs.machine import load_average, machine_facts, peak_bytes

Plan = Literal["cpu", "cuda"]
Budget = Mapping[str, Any]
PREFIX = "run_"  # of the attributes that say how a piece was made
_WORTH_PACKING = 4096  # bytes


@dataclass(frozen=True)
class Setting:
    """What a piece is told.

    Attributes:
        device: to compute on.
        seed: for whatever is drawn.
        budget: the run's own numbers (tokens, lengths, steps), plain values.
        folder: of the run, where a piece may keep states of its own.
        check: to be called often; raises `Cancelled` when the run is to stop.
    """

    device: torch.device
    seed: int
    budget: Budget
    folder: Path
    check: Callable[[], None]


@dataclass(frozen=True)
class Measured:
    """What a piece found, and how many tokens a model read for it (None where that is not what it did)."""

    dataset: xr.Dataset
    tokens: int | None = None


Measure = Callable[[Setting], Measured]


class Tally:
    """A progress callback that counts its calls, one a step: what was done now, without what was kept from before."""

    def __init__(self) -> None:
        self.steps = 0

    def __call__(self, step: Step) -> None:
        self.steps += 1


@dataclass(frozen=True)
class NamedRun:
    """A measurement with a name.

    Attributes:
        name, title: short, and in words.
        budgets: its numbers for a CPU of two cores and for a GPU.
        pieces: measures by name, in their order; called with the budget.
    """

    name: str
    title: str
    budgets: Mapping[Plan, Budget]
    pieces: Callable[[Budget], Mapping[str, Measure]]


@dataclass(frozen=True)
class FinishedRun:
    """A run as it lies in its folder.

    Attributes:
        folder: where.
        pieces: Datasets by name of the piece; their attributes that begin with `run_` are the record.
    """

    folder: Path
    pieces: Mapping[str, xr.Dataset] = field(repr=False)

    def record(self) -> dict[str, dict[str, Any]]:
        """By piece, the attributes that say how it was made, without their prefix."""
        return {
            name: {key.removeprefix(PREFIX): value for key, value in piece.attrs.items() if key.startswith(PREFIX)}
            for name, piece in self.pieces.items()
        }


def start_run(
    run: NamedRun,
    *,
    device: str | torch.device = "cpu",
    plan: Plan | None = None,
    seed: int = 0,
    folder: Path | str | None = None,
    progress: Progress | None = None,
    check: Callable[[], None] | None = None,
) -> FinishedRun:
    """Measure what of a run is missing, and read the rest.

    Args:
        run: which, see `lens.runs.named`.
        device: to compute on.
        plan: whose budget is meant; by default that of the device.
        seed: for whatever is drawn.
        folder: of the results; by default a place in the cache.
        progress: callback in pieces; by default a bar in a terminal.
        check: called often; raising `Cancelled` stops, and the next call goes on.

    Raises:
        InputError: another run lies in the folder. DeviceError: no such device.
    """
    place = require_device(device)
    chosen: Plan = plan or ("cuda" if place.type == "cuda" else "cpu")
    budget = run.budgets[chosen]
    target = cache_folder() / "runs" / f"{run.name}-{chosen}-seed{seed}" if folder is None else Path(folder)
    asked = {"name": run.name, "plan": chosen, "budget": json.dumps(budget, sort_keys=True), "seed": seed}
    asked |= {"command": f"lens runs start {run.name} --device {place.type} --plan {chosen} --seed {seed}"}
    setting = Setting(place, seed, budget, target, check or (lambda: None))
    measures = run.pieces(budget)
    found: dict[str, xr.Dataset] = {}
    with cache_lock(f"run-{_digest(str(target.resolve()))}"), _progress(progress) as report:
        for done, (name, measure) in enumerate(measures.items()):
            report(Step(done, len(measures), "pieces", f"{run.name}: {name}"))
            setting.check()
            path = target / f"{name}.nc"
            facts = {**asked, "piece": name}
            found[name] = _kept(path, facts) if path.exists() else _measured(path, measure, setting, facts)
        report(Step(len(measures), len(measures), "pieces", run.name))
    return FinishedRun(target, found)


def read_run(folder: Path | str) -> FinishedRun:
    """Read the pieces of a run that are there.

    Raises:
        InputError: no piece of a run lies in the folder.
    """
    found = {path.stem: _read(path) for path in sorted(Path(folder).glob("*.nc"))}
    found = {name: piece for name, piece in found.items() if f"{PREFIX}name" in piece.attrs}
    if not found:
        raise InputError(f"{folder} holds no piece of a run", "a folder that lens runs start wrote", "another folder")
    return FinishedRun(Path(folder), found)


def _measured(path: Path, measure: Measure, setting: Setting, facts: Mapping[str, Any]) -> xr.Dataset:
    if setting.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(setting.device)
    start: dict[str, Any] = {"date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), "load_average": load_average()}
    began, processor = time.perf_counter(), time.process_time()
    measured = measure(setting)
    if setting.device.type == "cuda":
        torch.cuda.synchronize(setting.device)
    seconds, processor = time.perf_counter() - began, time.process_time() - processor
    cost = {"seconds": round(seconds, 3), "processor_seconds": round(processor, 3), "peak_bytes": peak_bytes(setting.device)}
    if measured.tokens is not None:
        cost |= {"tokens": measured.tokens, "tokens_per_second": round(measured.tokens / seconds, 1)}
    told = {f"{PREFIX}{name}": value for name, value in {**facts, **start, **cost, **machine_facts(setting.device)}.items()}
    dataset = measured.dataset.assign_attrs(told)
    # Without the encodings of a file that it was read from: they may be of another shape.
    packed = {name: {"zlib": True, "complevel": 6} for name, found in dataset.variables.items() if _is_large(found)}
    with atomic_file(path) as temporary:
        dataset.drop_encoding().to_netcdf(temporary, engine="h5netcdf", encoding=packed)
    return _read(path)


def _is_large(found: xr.Variable) -> bool:
    """Whether compressing pays: small values cost less than the table of their chunks, and texts are not compressed."""
    return found.dtype.kind in "fiub" and found.nbytes >= _WORTH_PACKING


def _kept(path: Path, facts: Mapping[str, Any]) -> xr.Dataset:
    """A piece that was measured before. Its command is left out of the comparison: a device may differ, the plan may not."""
    found = _read(path)
    for name, value in facts.items():
        if name != "command" and found.attrs.get(f"{PREFIX}{name}") != value:
            was = found.attrs.get(f"{PREFIX}{name}", "none")
            raise InputError(f"{path} was made with {name} {was}", f"{value}", "another folder, or without that file")
    return found


def _read(path: Path) -> xr.Dataset:
    try:
        with xr.open_dataset(path, engine="h5netcdf") as opened:
            return opened.load()
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error})", "netCDF that a run wrote", "deleting it: it is made again"
        ) from error


@contextmanager
def _progress(progress: Progress | None) -> Iterator[Progress]:
    if progress is not None:
        yield progress
        return
    with terminal_progress() as bar:
        yield bar


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
