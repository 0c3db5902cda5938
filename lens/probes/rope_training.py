"""Byte models trained on short windows at several rotary bases and read far beyond them, beside what theories foretell.

Here a base is not turned in a finished model, which shows a shift of distribution; each model was trained at its own. What
they do beyond the trained length is held against the theories of the base, and against the one that asks for the
opposite: that no lane may meet an angle for which training had no example.
"""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.base.provenance import library_versions
from lens.probes.dataset import exact, texts, variable
from lens.probes.rope_bounds import THEORIES, is_met, rope_bounds
from lens.probes.verdict import document_interval, verdict
from lens.training.rope_bases import FORMAT

RECORD = "rope-bases.jsonl"
TRAINED_ANGLES = "trained angles"
"""Every lane completes a turn within the trained length, so that no distance shows it a new angle."""
ANGLES_SOURCE = "Chen et al., arXiv 2306.15595; Peng et al. (YaRN), arXiv 2309.00071; as a bound on the base it is our reading"
_LABELS = {
    "loss": (("document", "position"), "loss of held-out text read at once", "nats/byte"),
    "short_loss": (("document", "position"), "loss of the same bytes read in windows of the trained length", "nats/byte"),
    "stopped_loss": (
        ("document", "position"),
        "loss read at once, lanes without a turn in training standing still",
        "nats/byte",
    ),
    "divided_loss": (("document", "position"), "loss read at once, these lanes kept among the angles of training", "nats/byte"),
    "repeated_gain": (("distance", "document"), "by how much a passage costs less that stood before", "nats/byte"),
}


def rope_training(path: Path | str | None = None) -> xr.Dataset:
    """The record of byte models that were trained at several bases.

    Args:
        path: written by `lens.training.rope_bases`; by default the record that is shipped.

    Returns:
        Dataset over `setting` (the base in words, or "no rotation") and `seed`, NaN where a run is missing:

        - `loss[setting, seed, document, position]`, `short_loss`, `stopped_loss` and `divided_loss` alike, and
          `repeated_gain[setting, seed, distance, document]`: see `lens.training.rope_bases.read_long`; `position` is the first
          of a bin's;
        - `training_loss[setting, seed, step]`, means of the last steps, nats per byte; `seconds[setting, seed]`, wall time of the
          training;
        - `base[setting]`, NaN for no rotation; `untrained_lanes[setting]`: lanes that complete no turn within the trained length.

    Raises:
        InputError: no such file, or one that is damaged or of another kind.
    """
    first, runs = _read(path)
    bases = sorted({run["base"] for run in runs}, key=lambda base: np.inf if base is None else base)
    seeds = sorted({run["seed"] for run in runs})
    known = {(run["base"], run["seed"]): run for run in runs}
    example = runs[0]

    def table(value: Any) -> np.ndarray:
        """Values of all runs, NaN for those that are missing."""
        shape = np.shape(np.array(value(example), dtype=float))
        return np.array([[np.array(value(known[b, s]), float) if (b, s) in known else np.full(shape, np.nan) for s in seeds]
                         for b in bases])  # fmt: skip

    columns = {
        name: variable(("setting", "seed", *dims), table(lambda run, name=name: run["results"][name]), label, units)
        for name, (dims, label, units) in _LABELS.items()
    }
    source, recipe = example["source"], example["recipe"]
    width = source["hidden_size"] // source["num_attention_heads"]
    turns = [np.nan if base is None else _untrained_lanes(base, width, source["length"]) for base in bases]
    columns |= {
        "training_loss": variable(
            ("setting", "seed", "step"), table(lambda run: run["curve"]["loss"]), "loss of training text", "nats/byte"
        ),
        "seconds": variable(("setting", "seed"), table(lambda run: run["seconds"]), "wall time of the training", "s"),
        "untrained_lanes": variable(("setting",), np.array(turns), "lanes that complete no turn within the trained length"),
    }
    numbers = np.array([np.nan if base is None else base for base in bases])
    names = ["no rotation" if base is None else f"{base:,.0f}" for base in bases]
    plain = {name: value for name, value in source.items() if not isinstance(value, dict)}
    sizes = {"parameters": example["parameters"], "steps": recipe["steps"], "tokens": example["tokens"], "width": width}
    return xr.Dataset(
        columns,
        coords={
            "setting": texts(("setting",), names, "base of the rotary frequencies"),
            "base": exact(("setting",), numbers, "base of the rotary frequencies"),
            "seed": variable(("seed",), np.array(seeds), "seed of weights and batches"),
            "position": variable(("position",), np.array(example["results"]["position"]), "first position of a bin", "tokens"),
            "distance": variable(("distance",), np.array(example["results"]["distance"]), "to the repetition", "tokens"),
            "step": variable(("step",), np.array(example["curve"]["step"]), "last of the steps that are averaged"),
        },
        attrs={
            "source": "our own training, see lens.training.rope_bases", "probe": "rope_training", **plain, **sizes,
            "command": first["command"], "device": example["environment"]["device"], **_versions(example),
        },
    )  # fmt: skip


def _read(path: Path | str | None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    place = files("lens.records").joinpath(RECORD) if path is None else Path(path)
    try:
        head, _, body = place.read_text(encoding="utf-8").partition("\n")
        first = json.loads(head)
        if first["format"] != FORMAT or first["sha256"] != hashlib.sha256(body.encode()).hexdigest():
            raise ValueError("its content does not fit its hash")
        return first, [json.loads(line) for line in body.splitlines()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{place} holds no record of trained bases ({error})", "a file of lens.training.rope_bases", "path=None"
        ) from error


def _versions(run: dict[str, Any]) -> dict[str, str]:
    """Of the libraries that read the record, and, named as such, of those that trained."""
    trained = {f"trained_{name}": str(value) for name, value in run["environment"].items() if name.endswith("_version")}
    return {**trained, **library_versions()}


def _untrained_lanes(base: float, width: int, length: int) -> int:
    theta = base ** (-2 * np.arange(width // 2) / width)
    return int((length * theta < 2 * np.pi).sum())


def rope_training_verdicts(dataset: xr.Dataset, *, tolerance: float = 0.1, layers: int | None = None) -> xr.Dataset:
    """What reading beyond the trained length costs at every base, and which theory foretold where.

    The cost is taken against the same model on the same bytes, read in windows of the trained length: a model that cannot
    use more context, but is not harmed by it, costs 0.

    Args:
        dataset: from `rope_training`.
        tolerance: nats per byte; a base fails where it costs at least that, as far as the interval over documents can tell,
            works where it costs less, and is open where the interval holds the tolerance.
        layers: of the models; by default the record's.

    Returns:
        Dataset over `setting`, `theory` and `reach`, powers of two times the trained length, of which the last half is looked at:

        - `cost[setting, reach]` with `cost_low`, `cost_high` (95 % intervals over documents, seeds averaged) and
          `cost_seed[setting, seed, reach]`, nats per byte; `outcome[setting, reach]`: works, fails or open;
        - `divided_cost`, `stopped_cost` alike, with their intervals: the cost of the same weights when the lanes that training
          has shown no full turn are kept among its angles, or stand still;
        - `trained_loss[setting]` with its interval: loss within the trained length, nats per byte; `trained_loss_seed`;
        - `repeated_gain[setting, distance]` with its interval;
        - `required[theory, reach]`: base that a theory asks for, the largest one for `trained angles` and the precision wall,
          else the smallest; `allowed[theory, setting, reach]`; `right[theory, reach]`: bases whose outcome the theory
          foretold, of the `decided[reach]` that have a base and are not open.
    """
    length, depth = int(dataset.attrs["length"]), int(layers or dataset.attrs["num_hidden_layers"])
    reaches = _reaches(dataset, length)
    cost, divided, stopped = (_beyond(dataset, name, reaches) for name in ("loss", "divided_loss", "stopped_loss"))
    within = dataset.loss.sel(position=slice(0, length - 1)).mean("position").astype("float64")
    columns = {
        **_with_interval("cost", cost, "cost of reading so far"),
        **_with_interval("divided_cost", divided, "the same with untrained lanes kept among the angles of training"),
        **_with_interval("stopped_cost", stopped, "the same with untrained lanes standing still"),
        **_with_interval("trained_loss", within, "loss within the trained length"),
        **_with_interval(
            "repeated_gain", dataset.repeated_gain.astype("float64").transpose("setting", "distance", "seed", "document"),
            "by how much a passage costs less that stood before",
        ),
        "cost_seed": variable(
            ("setting", "seed", "reach"), cost.mean("document").transpose("setting", "seed", "reach").to_numpy(),
            "cost of reading so far", "nats/byte",
        ),
        "trained_loss_seed": variable(
            ("setting", "seed"), within.mean("document").to_numpy(), "loss within the trained length", "nats/byte"
        ),
    }  # fmt: skip
    low, high = columns["cost_low"].to_numpy(), columns["cost_high"].to_numpy()
    outcome = np.vectorize(lambda a, b: _outcome(a, b, tolerance), otypes=[object])(low, high)
    columns["outcome"] = texts(("setting", "reach"), outcome, f"against a tolerance of {tolerance:g} nats per byte")
    columns |= _foretold(dataset, reaches, outcome, depth, length)
    names = [theory.name for theory in THEORIES.values()]
    return xr.Dataset(
        columns,
        coords={
            "setting": dataset.setting,
            "base": dataset.base,
            "seed": dataset.seed,
            "distance": dataset.distance,
            "reach": variable(("reach",), np.array(reaches), "tokens read", "tokens"),
            "theory": texts(("theory",), [*names, TRAINED_ANGLES], "what is held to be needed"),
        },
        attrs={
            **dataset.attrs,
            "probe": "rope_training_verdicts",
            "trained_angles_source": ANGLES_SOURCE,
            "tolerance": tolerance,
            "layers": depth,
        },
    )


def _beyond(dataset: xr.Dataset, name: str, reaches: list[int]) -> xr.DataArray:
    """What a loss is above that in short windows, in the last half of each reach: `[setting, reach, seed, document]`."""
    above = (dataset[name] - dataset.short_loss).astype("float64")
    parts = [above.sel(position=slice(reach // 2, reach - 1)).mean("position") for reach in reaches]
    return xr.concat(parts, "reach").transpose("setting", "reach", "seed", "document")


def _reaches(dataset: xr.Dataset, length: int) -> list[int]:
    bins = dataset.position.to_numpy()
    end = int(bins[-1] + bins[1] - bins[0])
    return [length * 2**power for power in range(1, int(np.log2(end // length)) + 1)]


def _with_interval(name: str, values: xr.DataArray, label: str) -> dict[str, xr.Variable]:
    """Means over seeds and documents, and 95 % intervals over documents; seeds that are missing are left out."""
    documents = values.mean("seed").transpose(..., "document")
    dims = tuple(str(dim) for dim in documents.dims[:-1])
    rows = documents.to_numpy()
    ends = np.array([document_interval(row.tolist(), np.mean) for row in rows.reshape(-1, rows.shape[-1])])
    low, high = ends.T.reshape(2, *rows.shape[:-1])
    return {
        name: variable(dims, rows.mean(-1), label, "nats/byte"),
        f"{name}_low": variable(dims, low, f"lower end of the 95 % interval: {label}", "nats/byte"),
        f"{name}_high": variable(dims, high, f"upper end of the 95 % interval: {label}", "nats/byte"),
    }


def _outcome(low: float, high: float, tolerance: float) -> str:
    return {"holds": "fails", "fails": "works", "open": "open"}[verdict((float(low), float(high)), at_least=tolerance)]


def _foretold(dataset: xr.Dataset, reaches: list[int], outcome: np.ndarray, layers: int, length: int) -> dict[str, xr.Variable]:
    """Required bases, which settings they allow, and how many outcomes that foretold."""
    width, bases = int(dataset.attrs["width"]), dataset.base.to_numpy()
    bounds = rope_bounds(reaches, layers, width)
    turned = np.full(len(reaches), (length / (2 * np.pi)) ** (width / (width - 2)))  # the exact slowest lane: b^(−(1 − 2/width))
    required = np.stack([*(bounds[name].to_numpy() for name in THEORIES), turned])
    allowed = np.array(
        [[[is_met(name, base, bound) for bound in row] for base in bases] for name, row in zip(THEORIES, required, strict=False)]
        + [[[bool(base <= bound) for bound in turned] for base in bases]]
    )
    has_base = ~np.isnan(bases)[:, None]
    decided = (outcome != "open") & has_base
    right = ((allowed == (outcome == "works")) & decided).sum(1)
    return {
        "required": exact(("theory", "reach"), required, "required base: at least, for the wall and trained angles at most"),
        "allowed": variable(
            ("theory", "setting", "reach"), (allowed & has_base).astype(int), "1 where the theory allows the base"
        ),
        "right": variable(("theory", "reach"), right, "bases whose outcome was foretold"),
        "decided": variable(("reach",), decided.sum(0), "bases whose outcome is not open"),
    }
