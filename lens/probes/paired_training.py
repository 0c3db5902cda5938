"""Trainings that differ in nothing but the model, side by side: same seed, same windows, same number of updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.base.provenance import library_versions
from lens.probes.dataset import exact, texts, variable
from lens.probes.verdict import document_interval
from lens.training.phase_recipes import phase_recipe

SOURCE = "trainings of ours, in the manner of Abu Ayyash, arXiv 2604.14430; the pairing: our own"
SAME = ("seed", "steps", "vocabulary", "length", "precision", "corpus_0_hash", "corpus_1_hash")
"""Attributes of a training's course that two paired ones share."""


def paired_training(courses: Sequence[xr.Dataset]) -> xr.Dataset:
    """Held-out losses of several trainings at the same updates, and by how much each differs from the first.

    Args:
        courses: of `phase_training`, one or more with titles of their own; of trainings that are not finished as far as they are.

    Returns:
        Dataset over `run` (titles) and `looked_at` (updates before a look); nats per token:

        - `validation_loss[run, looked_at]`; `train_loss[run, looked_at]`: mean over the updates since the look before;
        - `difference[run, looked_at]`: validation loss less that of the first run;
        - `test_difference[run]`, `low`, `high`: mean over the test documents of the same, and its 95 % interval over documents.

        NaN where a run has not come so far. One seed: what another would give, no interval over documents can tell.

    Raises:
        InputError: no course, two with one title, or courses that are not paired.
    """
    titles = [str(course.attrs["title"]) for course in courses]
    if not courses or len(set(titles)) < len(titles):
        raise InputError(
            f"The trainings are called {', '.join(titles) or 'nothing'}", "one or more, each with its own title", "one"
        )
    for course in courses[1:]:
        if not paired(course, courses[0]):
            found = f"{course.attrs['title']} and {titles[0]} differ in more than the model"
            raise InputError(found, f"the same {', '.join(SAME[:3])} and text", "trainings with one seed")
    places = np.unique(np.concatenate([course["looked_at"] for course in courses]))
    held = np.stack([course["validation_loss"].reindex(looked_at=places) for course in courses])
    tested = np.array([_tested(course, courses[0]) for course in courses])
    both = ("run", "looked_at")
    trained = np.stack([_binned(course, places) for course in courses])
    found = {
        "validation_loss": exact(both, held, "held-out loss", "nats"),
        "train_loss": exact(both, trained, "mean train loss since a look", "nats"),
        "difference": exact(both, held - held[:1], f"held-out loss less that of {titles[0]}", "nats"),
        "test_difference": exact(("run",), tested[:, 0], f"mean test loss less that of {titles[0]}", "nats"),
        "low": exact(("run",), tested[:, 1], "lower end of its 95 % interval over documents", "nats"),
        "high": exact(("run",), tested[:, 2], "upper end of its 95 % interval over documents", "nats"),
    }
    coordinates = {
        "run": texts(("run",), titles, "what is trained"),
        "looked_at": variable(("looked_at",), places, "updates before the look"),
    }
    shared = {name: courses[0].attrs[name] for name in SAME if name in courses[0].attrs}
    return xr.Dataset(found, coordinates, {"source": SOURCE, "probe": "paired_training", **shared, **library_versions()})


def paired(one: xr.Dataset, other: xr.Dataset) -> bool:
    """Whether two courses differ in nothing but the model."""
    return all(one.attrs.get(name) == other.attrs.get(name) for name in SAME)


def stored_course(family: xr.Dataset, recipe: str, seed: int = 0) -> xr.Dataset:
    """The course of one training out of the record of the family, as `phase_training` gives it.

    Args:
        family: from `phase_family`.
        recipe, seed: of the training.

    Raises:
        InputError: no such training in the record.
    """
    known = (family["recipe"].to_numpy().tolist(), family["seed"].to_numpy().tolist())
    if recipe not in known[0] or seed not in known[1]:
        raise InputError(f"The record has no {recipe} with seed {seed}", f"one of {', '.join(known[0])}", known[0][0])
    one = family.sel(recipe=recipe, seed=seed, drop=True)
    one = one.drop_vars(["test_loss"]).rename(document_loss="test_loss")
    one = one.drop_vars([name for name in one.data_vars if one[name].dtype.kind == "f" and one[name].isnull().all()])
    for name in ("step", "looked_at", "document", "layer", "phase", "direction", "block", "pair", "position"):
        numbers = [key for key in one.data_vars if name in one[key].dims and one[key].dtype.kind == "f"]
        one = one.dropna(name, how="all", subset=numbers) if numbers else one
    training, model = phase_recipe(recipe).training, phase_recipe(recipe).model
    rates = np.array([training.rate(step) for step in range(one.sizes["step"])])
    one["learning_rate"] = exact(("step",), rates, "learning rate")
    told = {"recipe": recipe, "title": one["title"].item(), "seed": seed, "steps": training.steps}
    return one.assign_attrs({**told, "probe": "phase_training", **_sizes(model)})


def _sizes(model: Mapping[str, Any]) -> dict[str, int]:
    return {f"model_{name}": int(model[name]) for name in ("num_phases", "hidden_size", "num_hidden_layers")}


def decay_course(course: xr.Dataset) -> xr.DataArray:
    """Mean drift `[looked_at, block]`, radians, that weight decay alone would have given up to each look.

    0 where it spares the angles.

    Args:
        course: from `phase_training`, of a model with angles.
    """
    left = np.cumsum(np.log1p(-course["learning_rate"].to_numpy() * float(course.attrs["weight_decay"])))
    left = np.exp(np.concatenate([[0.0], left]))[course["looked_at"].to_numpy()]
    spared = bool((course["decay_drift"] == 0).all()) and course.sizes["step"] > 0
    drift = np.outer(left - 1, course["initial"]) * (not spared)
    labelled = exact(("looked_at", "block"), drift, "drift by weight decay alone", "radian")
    return xr.DataArray(labelled, {"looked_at": course["looked_at"], "block": course["block"]})


def _binned(course: xr.Dataset, places: np.ndarray) -> np.ndarray:
    """Mean of the train loss over the updates from one look to the next; NaN before the first, and where there are none."""
    losses = course["train_loss"].to_numpy()
    bins = zip(places[:-1].tolist(), places[1:].tolist(), strict=True)
    return np.array([np.nan, *(losses[low:high].mean() if high <= len(losses) else np.nan for low, high in bins)])


def _tested(course: xr.Dataset, first: xr.Dataset) -> tuple[float, float, float]:
    if course is first or "test_loss" not in course or "test_loss" not in first:
        return (np.nan, np.nan, np.nan)
    gaps = (course["test_loss"].to_numpy() - first["test_loss"].to_numpy()).tolist()
    return (float(np.mean(gaps)), *document_interval(gaps, lambda part: float(np.mean(part))))
