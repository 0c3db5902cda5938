"""All trainings of the Three-Phase family in one Dataset, and the difference between two of its members, seed by seed.

    python -m lens.probes.phase_family three-phase.nc FOLDER…

writes the record that is shipped as `lens/records/three-phase.nc` from the folders that `lens train` wrote.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize
import scipy.stats
import xarray as xr

from lens.base.errors import InputError
from lens.base.files import atomic_file, sha256
from lens.base.provenance import library_versions
from lens.probes.dataset import exact, texts, variable
from lens.probes.phase_training import SOURCE, phase_training
from lens.training import Record, read_record
from lens.training.phase_recipes import recipe_names
from lens.training.shipping import WEIGHTS
from lens.training.three_phase import RECORD

RECORD_FILE = "three-phase.nc"
POWER = 0.8  # share of repetitions of a plan in which an effect of the detectable size is seen
_COURSE = ("train_loss", "validation_loss", "phase_mean", "phase_norm", "residual", "share")
_ANGLES = ("theta", "mean_drift", "spread", "rms", "norm", "initial", "decay_drift")
_NONE = "source=None, what is shipped"
_SAME = ("corpora", "corpus_hashes", "vocabulary", "tokenizer", "length", "windows", "precision")


def phase_family(source: Path | str | Sequence[Path | str] | None = None) -> xr.Dataset:
    """Every training of the family: losses, their course, and angles and phases on the way.

    Args:
        source: folders that `lens train` wrote; or the file of such a Dataset; by default the record that is shipped.

    Returns:
        Dataset over `recipe` (its name), `seed`, and where they apply `step`, `looked_at` (updates before a look), `corpus_name`,
        `document`, `position`, `layer`, `phase`, `direction`, `block`, `pair`; NaN where a training has no such place:

        - `test_loss[recipe, seed, corpus_name]`, mean over test documents, nats per token; `saved_test_loss`, the same of the
          weights as saved, in bfloat16; `document_loss[recipe, seed, document]`, coordinate `corpus`;
          `position_loss[recipe, seed, corpus_name, position]`;
        - `train_loss[recipe, seed, step]`, `validation_loss[recipe, seed, looked_at]`, nats per token;
        - `theta[recipe, seed, looked_at, block, pair]`, and `mean_drift`, `spread`, `rms`, `norm[…, looked_at, block]`,
          `initial`, `decay_drift[recipe, seed, block]`, radians, as in `theta_drift`; `phase_mean`, `phase_norm`, `residual`,
          `share`, as in `phase_training`;
        - `title`, `num_phases`, `num_blocks`, `parameters[recipe]`; `tokens_per_second`, `seconds`,
          `weights_sha256[recipe, seed]`.

        Attributes: text, tokenizer, tokens, device and versions of the trainings, the command that repeats them.

    Raises:
        InputError: no such record, two trainings of one recipe and seed, or trainings on different texts.
    """
    if source is None or isinstance(source, (str, Path)):
        return _read(Path(str(files("lens.records"))) / RECORD_FILE if source is None else Path(source))
    folders = [Path(folder) for folder in source]
    runs = [(folder, read_record(folder / RECORD)) for folder in folders]
    records = [record for _, record in runs]
    _require_comparable(records)
    by_recipe: dict[str, list[xr.Dataset]] = {}
    for folder, record in sorted(runs, key=lambda run: run[1].recipe.seed):
        by_recipe.setdefault(record.recipe.name, []).append(_run(folder, record))
    names = sorted(by_recipe, key=_order)
    options: dict[str, Any] = {"join": "outer", "coords": "minimal", "compat": "override", "combine_attrs": "override"}
    rows = [xr.concat(by_recipe[name], "seed", data_vars="all", **options) for name in names]
    found = xr.concat(rows, "recipe", data_vars="all", **options)
    described = {name: next(record for record in records if record.recipe.name == name) for name in names}
    found = found.assign(_described(described)).assign_coords(recipe=texts(("recipe",), names, "recipe of the training"))
    found["weights_sha256"] = found["weights_sha256"].fillna("")
    return found.assign_attrs(_facts(records))


def _order(name: str) -> tuple[int, str]:
    known = recipe_names()
    return (known.index(name) if name in known else len(known), name)


def _read(path: Path) -> xr.Dataset:
    try:
        found = xr.load_dataset(path, engine="h5netcdf")
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path} cannot be read ({error})", "a record of phase_family", "source=None, what is shipped"
        ) from error
    if found.attrs.get("probe") != "phase_family":
        raise InputError(f"{path} holds something else", "a record of phase_family", "source=None, what is shipped")
    return found


def _require_comparable(records: Sequence[Record]) -> None:
    if not records:
        raise InputError("No training is given", "one folder that lens train wrote at least", _NONE)
    runs = [(record.recipe.name, record.recipe.seed) for record in records]
    if len(set(runs)) < len(runs):
        twice = next(run for run in runs if runs.count(run) > 1)
        raise InputError(f"Two trainings of {twice[0]} with seed {twice[1]}", "one of each", "leaving one out")
    first = {name: records[0].source[name] for name in _SAME}
    for record in records:
        if differing := [name for name in _SAME if record.source[name] != first[name]]:
            found = f"{record.recipe.name} and {records[0].recipe.name} differ in {', '.join(differing)}"
            raise InputError(found, "trainings on one text, cut in one way", "folders of one machine and one release")


def _run(folder: Path, record: Record) -> xr.Dataset:
    """One training, of one seed."""
    course, results = phase_training(record), record.results
    by_corpus = {name: [results[name][corpus] for corpus in course["corpus_name"].to_numpy()] for name in _MEANS}
    found = {name: _single(course[name]) for name in (*_COURSE, *_ANGLES, "position_loss") if name in course}
    found |= {
        "test_loss": exact(("corpus_name",), np.array([np.mean(losses) for losses in by_corpus["test_loss"]]), *_LOSS),
        "saved_test_loss": exact(("corpus_name",), np.array(by_corpus["saved_test_loss"]), f"{_LOSS[0]}, as saved", "nats"),
        "document_loss": _single(course["test_loss"]),
        "tokens_per_second": exact((), results["tokens_per_second"], "speed of the training", "tokens/s"),
        "seconds": exact((), record.seconds, "wall time of all updates", "s"),
        "weights_sha256": texts((), sha256(folder / WEIGHTS), "SHA-256 of the saved weights"),
    }  # fmt: skip
    places = {str(name): course[name].variable for name in course.coords}
    return xr.Dataset(found, places).assign_coords(seed=variable((), np.array(record.recipe.seed), "seed of weights and windows"))


_MEANS = ("test_loss", "saved_test_loss")
_LOSS = ("mean loss of the test documents", "nats")


def _single(array: xr.DataArray) -> xr.Variable:
    """In single precision: what was looked at has seven digits."""
    return variable(tuple(map(str, array.dims)), array.to_numpy(), array.attrs["long_name"], array.attrs["units"])


def _described(records: dict[str, Record]) -> dict[str, xr.Variable]:
    """What is the same for all seeds of a recipe."""
    models = [record.source["model"] for record in records.values()]
    parameters = [record.results["parameters"] for record in records.values()]
    return {
        "title": texts(("recipe",), [record.source["title"] for record in records.values()], "what is trained"),
        "num_phases": variable(("recipe",), np.array([model["num_phases"] for model in models]), "phases"),
        "num_blocks": variable(("recipe",), np.array([model["num_hidden_layers"] for model in models]), "blocks"),
        "parameters": variable(("recipe",), np.array(parameters), "parameters"),
    }


def _facts(records: Sequence[Record]) -> dict[str, str | int | float]:
    first = records[0]
    trained = {
        key: ", ".join(sorted({str(record.environment[name]) for record in records}))
        for key, name in (("device", "device"), ("threads", "threads"), *((f"trained_{one}", one) for one in library_versions()))
    }
    source = first.source
    return {
        "source": SOURCE,
        "probe": "phase_family",
        **{f"corpus_{place}": name for place, name in enumerate(source["corpora"])},
        **{f"corpus_{place}_hash": name for place, name in enumerate(source["corpus_hashes"])},
        "tokenizer_hash": source["tokenizer"],
        **{name: source[name] for name in ("vocabulary", "length", "windows", "precision")},
        "tokens": first.tokens or 0,
        "learning_rate": first.recipe.learning_rate,
        "weight_decay": first.recipe.weight_decay,
        "command": _command(records),
        **trained,
        **library_versions(),
    }


def _command(records: Sequence[Record]) -> str:
    """What trains them all again: one call for those with the same seeds."""
    seeds: dict[str, list[int]] = {}
    for record in sorted(records, key=lambda record: (_order(record.recipe.name), record.recipe.seed)):
        seeds.setdefault(record.recipe.name, []).append(record.recipe.seed)
    alike: dict[tuple[int, ...], list[str]] = {}
    for name, found in seeds.items():
        alike.setdefault(tuple(found), []).append(name)
    calls = (f"lens train {' '.join(names)} --seed {' '.join(map(str, found))}" for found, names in alike.items())
    return "; ".join(calls)


# -- two members --------------------------------------------------------------------------------------------------------


def paired_runs(family: xr.Dataset, one: str, other: str) -> xr.Dataset:
    """By how much one member's loss is above another's when both began with the same weights and saw the same windows.

    Args:
        family: from `phase_family`.
        one, other: two of its recipes, with two common seeds at least.

    Returns:
        Dataset over `corpus_name`, the corpora and `both`, their mean; losses are nats per token of the test documents:

        - `difference[seed, corpus_name]`: of one less that of the other; only seeds that both have;
        - `average`, `low`, `high[corpus_name]`: its mean over seeds, and the 95 % interval of Student's t;
        - `deviation[corpus_name]`: standard deviation over seeds.

    Raises:
        InputError: a recipe that is not in the family, or fewer than two common seeds.
    """
    gap = _loss(family, one) - _loss(family, other)
    gap = xr.concat([gap, gap.mean("corpus_name").expand_dims(corpus_name=["both"])], "corpus_name").dropna("seed")
    count = gap.sizes["seed"]
    if count < 2:
        raise InputError(f"{one} and {other} have {count} common seeds", "two at least", "other members, or more trainings")
    average, deviation = gap.mean("seed").to_numpy(), gap.std("seed", ddof=1).to_numpy()
    reach = scipy.stats.t.ppf(0.975, count - 1) * deviation / np.sqrt(count)
    along = ("corpus_name",)
    return xr.Dataset(
        {
            "difference": exact(("seed", "corpus_name"), gap.transpose("seed", "corpus_name").to_numpy(), "difference", "nats"),
            "average": exact(along, average, "mean difference over seeds", "nats"),
            "low": exact(along, average - reach, "lower end of its 95 % interval", "nats"),
            "high": exact(along, average + reach, "upper end of its 95 % interval", "nats"),
            "deviation": exact(along, deviation, "standard deviation of the difference over seeds", "nats"),
        },
        {
            "seed": variable(("seed",), gap["seed"].to_numpy(), "seed of weights and windows"),
            "corpus_name": texts(along, gap["corpus_name"].to_numpy(), "corpus"),
        },
        {**family.attrs, "probe": "paired_runs", "one": one, "other": other},
    )


def _loss(family: xr.Dataset, recipe: str) -> xr.DataArray:
    known = family["recipe"].to_numpy().tolist()
    if recipe not in known:
        raise InputError(f"{recipe} is not in the family", f"one of {', '.join(known)}", known[0])
    return family["test_loss"].sel(recipe=recipe, drop=True)


def family_differences(family: xr.Dataset, other: str) -> xr.Dataset:
    """By how much every member's loss (mean over corpora) is above that of one of them, seed by seed.

    Args:
        family: from `phase_family`.
        other: one of its recipes.

    Returns:
        Dataset over `recipe`, those of the other's depth but the other itself that share two seeds with it, nats per token:
        `difference[recipe, seed]`, `average`, and two 95 % intervals: `low`, `high` of Student's t over each member's own
        seeds, and `pooled_low`, `pooled_high` with the noise of all members together, see `seed_noise`. `title[recipe]` in words.

    Raises:
        InputError: an unknown recipe, or one without another of its depth.
    """
    _loss(family, other)
    deep = family["num_blocks"] == family["num_blocks"].sel(recipe=other)
    known = family["test_loss"].notnull().all("corpus_name")
    enough = (known & known.sel(recipe=other)).sum("seed") > 1
    names = [name for name in family["recipe"].to_numpy()[(deep & enough).to_numpy()].tolist() if name != other]
    if not names:
        raise InputError(f"No member has two seeds in common with {other}", "another one of its depth", "more trainings")
    pairs = [paired_runs(family, name, other).sel(corpus_name="both") for name in names]
    members = family.sel(recipe=[*names, other])
    counts = np.array([pair.sizes["seed"] for pair in pairs])
    noise, free = seed_noise(members)
    reach = scipy.stats.t.ppf(0.975, free) * noise / np.sqrt(counts)
    average = np.array([float(pair["average"]) for pair in pairs])
    both = xr.concat([pair["difference"] for pair in pairs], "recipe", join="outer")
    along = ("recipe",)
    return xr.Dataset(
        {
            "difference": exact(("recipe", "seed"), both.transpose("recipe", "seed").to_numpy(), "difference", "nats"),
            "average": exact(along, average, "mean difference over seeds", "nats"),
            "low": exact(along, np.array([pair["low"] for pair in pairs]), "lower end of its 95 % interval", "nats"),
            "high": exact(along, np.array([pair["high"] for pair in pairs]), "upper end of its 95 % interval", "nats"),
            "pooled_low": exact(along, average - reach, "lower end with the noise of all members", "nats"),
            "pooled_high": exact(along, average + reach, "upper end with the noise of all members", "nats"),
            "title": texts(along, members["title"].to_numpy()[:-1], "what is trained"),
        },
        {"recipe": texts(along, names, "recipe of the training"), "seed": variable(("seed",), both["seed"].to_numpy(), "seed")},
        {**family.attrs, "probe": "family_differences", "other": other, "other_title": str(members["title"].to_numpy()[-1])},
    )


def seed_noise(family: xr.Dataset) -> tuple[float, int]:
    """Standard deviation over seeds of the difference between two members of one depth, from all of them together.

    What is left of the losses (mean over corpora) once every member and every seed has its own mean (least squares), times the
    root of two. It has more degrees of freedom than one pair has, if all members scatter alike.

    Returns:
        The deviation in nats, and its degrees of freedom.

    Raises:
        InputError: fewer than two members of the first member's depth with two common seeds.
    """
    loss = family["test_loss"].mean("corpus_name", skipna=False).where(family["num_blocks"] == family["num_blocks"][0], drop=True)
    values = loss.transpose("recipe", "seed").to_numpy()
    members, seeds = np.nonzero(~np.isnan(values))
    told = values[members, seeds]
    means = np.concatenate([np.eye(values.shape[0])[members], np.eye(values.shape[1])[seeds]], axis=1)
    fitted, _, known, _ = np.linalg.lstsq(means, told, rcond=None)
    free = len(told) - int(known)
    if free < 1:
        raise InputError(f"{len(told)} trainings", "two members with two common seeds at least", "more trainings")
    return float(np.sqrt(2 * ((told - means @ fitted) ** 2).sum() / free)), free


def detectable(deviation: float, seeds: int) -> float:
    """Smallest true mean that a 95 % interval of Student's t over so many seeds would keep from 0 four times in five.

    Args:
        deviation: standard deviation of one seed's number.
        seeds: two or more.

    Source: the power of the t test; the deviation that a sample shows is integrated over its chi distribution.

    Raises:
        InputError: fewer seeds.
    """
    if seeds < 2:
        raise InputError(f"{seeds} seed", "two at least", "more trainings")
    shown = np.sqrt(scipy.stats.chi2.ppf((np.arange(2000) + 0.5) / 2000, seeds - 1) / (seeds - 1))
    bounds = scipy.stats.t.ppf(0.975, seeds - 1) * shown

    def excess(effect: float) -> float:
        return float((scipy.stats.norm.sf(bounds - effect) + scipy.stats.norm.cdf(-bounds - effect)).mean()) - POWER

    effect: Any = scipy.optimize.brentq(excess, 0.0, 100.0)
    return float(effect) * deviation / float(np.sqrt(seeds))


# -- the record ---------------------------------------------------------------------------------------------------------


def write_phase_family(path: Path | str, trained: Sequence[Path | str]) -> Path:
    """Write the record of finished trainings, compressed; atomically."""
    family = phase_family(list(trained))
    packed = {str(name): {"zlib": True, "complevel": 9, "shuffle": True} for name in family.data_vars
              if family[name].dtype.kind == "f" and family[name].ndim}  # fmt: skip
    with atomic_file(path) as temporary:
        family.to_netcdf(temporary, engine="h5netcdf", encoding=packed)
    return Path(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m lens.probes.phase_family OUTPUT FOLDER…`: put the records of trainings together."""
    parser = argparse.ArgumentParser(description="One record of all trainings of the Three-Phase family.")
    parser.add_argument("output", type=Path, help="the record, .nc")
    parser.add_argument("folders", type=Path, nargs="+", help="that lens train wrote")
    options = parser.parse_args(arguments)
    print(write_phase_family(options.output, options.folders))


if __name__ == "__main__":
    main()
