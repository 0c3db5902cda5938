"""The course of a Three-Phase training as one Dataset: losses of every step, and what was looked at on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.probes.dataset import exact, texts, variable
from lens.probes.theta_drift import decay_factor, theta_drift
from lens.training import Record, read_record
from lens.training.phase_course import DIRECTIONS
from lens.training.three_phase import RECORD

SOURCE = "a training of ours, in the manner of Abu Ayyash, arXiv 2604.14430; the transported direction and its share: our own"
_PLACES = {
    "layer": "residual state (0 is the embedding)",
    "phase": "phase, from the first channels on",
    "block": "block",
    "pair": "pair of channels in each phase",
    "position": "position in the window",
}
_DRIFT = ("drift", "norm", "rms", "mean_drift", "spread", "initial", "decay_drift")


def phase_training(trained: Record | Path | str) -> xr.Dataset:
    """Read what was recorded while a Three-Phase model trained.

    Args:
        trained: the record, or the folder that `lens train` wrote. Of a training that is not finished the record so far: it lacks
            what is measured at the end, and before the first look it has no looks.

    Returns:
        Dataset over `step`, the number of an update from 1 on, and `looked_at`, the number of updates before a look, from 0 on:

        - `train_loss`, `learning_rate`, `gradient_norm[step]`; `validation_loss[looked_at]`, nats per token;
        - `theta[looked_at, block, pair]`, radians, and what `theta_drift` makes of it: `drift`, `norm`, `rms`, `mean_drift`,
          `spread`, `initial` and `decay_drift`; absent where the model does not rotate;
        - `phase_mean`, `phase_norm[looked_at, layer, phase]`: means over tokens; `residual[looked_at, layer]`: the sum of the
          means, the published zero-sum residual;
        - `share[looked_at, direction, layer]`: mean squared cosine of the state with the direction of equal channels, and with
          what the rotations have turned it into;
        - `test_loss[document]`, coordinate `corpus`; `position_loss[corpus_name, position]`, nats per token.

        A model of one phase, or of none, is cut into three.

    Raises:
        InputError: the record of another training, or none.
    """
    record = trained if isinstance(trained, Record) else read_record(Path(trained) / RECORD)
    looks = {number: step.observed for number, step in enumerate(record.steps, 1) if step.observed}
    if "initial" in record.results:
        looks = {0: record.results["initial"], **looks}
    if not looks or any("phase_mean" not in look for look in looks.values()):
        raise InputError(f"The record of {record.recipe.name} holds no phases", "one that lens train wrote", "another folder")
    found = {**_steps(record), **_looks(looks), **_tested(record.results), **_angles(record, looks)}
    coordinates = {
        "step": variable(("step",), np.arange(1, len(record.steps) + 1), "number of the update"),
        "looked_at": variable(("looked_at",), np.array(list(looks)), "updates before the look"),
        "direction": texts(("direction",), DIRECTIONS[: found["share"].shape[1]], "direction in the stream"),
    }
    if "test_loss" in found:
        coordinates |= {
            "corpus": texts(
                ("document",), [name for name, values in _by_corpus(record) for _ in values], "corpus of the document"
            ),
            "corpus_name": texts(("corpus_name",), [name for name, _ in _by_corpus(record)], "corpus"),
        }
    sizes = xr.Dataset(found).sizes
    coordinates |= {name: variable((name,), np.arange(sizes[name]), words) for name, words in _PLACES.items() if name in sizes}
    return xr.Dataset(found, coordinates, _facts(record))


def _by_corpus(record: Record) -> list[tuple[str, list[float]]]:
    return list(record.results["test_loss"].items())


def _steps(record: Record) -> dict[str, xr.Variable]:
    columns = {
        "train_loss": ([step.loss for step in record.steps], "loss of the step's own windows", "nats"),
        "learning_rate": ([step.learning_rate for step in record.steps], "learning rate", "1"),
        "gradient_norm": ([step.gradient_norm for step in record.steps], "norm of the gradient before clipping", "1"),
    }
    return {name: exact(("step",), np.array(values), words, unit) for name, (values, words, unit) in columns.items()}


def _looks(looks: dict[int, Any]) -> dict[str, xr.Variable]:
    names = ("validation_loss", "phase_mean", "phase_norm", "share")
    stacked = {name: np.array([look[name] for look in looks.values()]) for name in names}
    cut = ("looked_at", "layer", "phase")
    return {
        "validation_loss": exact(("looked_at",), stacked["validation_loss"], "held-out loss, nats per token", "nats"),
        "phase_mean": exact(cut, stacked["phase_mean"], "mean over tokens and channels of a phase"),
        "phase_norm": exact(cut, stacked["phase_norm"], "mean length of a phase"),
        "residual": exact(cut[:2], stacked["phase_mean"].sum(-1), "sum of the phases' means"),
        "share": exact(("looked_at", "direction", "layer"), stacked["share"], "squared cosine with the direction"),
    }


def _tested(results: Any) -> dict[str, xr.Variable]:
    """Of a finished training."""
    if "test_loss" not in results:
        return {}
    documents = np.concatenate([np.array(values) for values in results["test_loss"].values()])
    positions = np.array(list(results["position_loss"].values()))
    return {
        "test_loss": exact(("document",), documents, "mean loss of a test document", "nats"),
        "position_loss": exact(("corpus_name", "position"), positions, "mean loss at a position of the test windows", "nats"),
    }


def _angles(record: Record, looks: dict[int, Any]) -> dict[str, xr.Variable]:
    """Angles and their drift; nothing of a model without angles. Tied ones are one pair, frozen ones never move."""
    if any("theta" not in look for look in looks.values()):
        return {}
    angles = np.array([look["theta"] for look in looks.values()])
    spared = any("theta".endswith(end) for end in record.recipe.undecayed)
    model = record.source["model"]
    still = spared or model.get("phase_rotation") == "frozen"
    left = 1.0 if still else decay_factor([step.learning_rate for step in record.steps], record.recipe.weight_decay)
    # Without the look before the first step: what the configuration says that they start from.
    start = angles[0, :, 0].tolist() if 0 in looks else model.get("initial_angles")
    drift = theta_drift(angles, start, decayed=left).rename(step="looked_at")
    return {name: drift[name].variable for name in ("theta", *_DRIFT)}  # already labelled


def _facts(record: Record) -> dict[str, str | int | float]:
    """Provenance; what was trained is told by its recipe, model and text."""
    source, results = record.source, record.results
    return {
        "source": SOURCE,
        "probe": "phase_training",
        "recipe": record.recipe.name,
        "title": source["title"],
        "seed": record.recipe.seed,
        **{f"model_{name}": _plain(value) for name, value in source["model"].items()},
        **{f"corpus_{place}": name for place, name in enumerate(source["corpora"])},
        **{f"corpus_{place}_hash": name for place, name in enumerate(source["corpus_hashes"])},
        "vocabulary": source["vocabulary"],
        "length": source["length"],
        "precision": source["precision"],
        "weight_decay": record.recipe.weight_decay,
        "steps": record.recipe.steps,
        **({"parameters": results["parameters"]} if "parameters" in results else {}),
        "tokens": record.tokens or 0,
        "seconds": record.seconds,
        **record.environment,
    }


def _plain(value: Any) -> str | int | float:
    """netCDF knows no truth values."""
    return int(value) if isinstance(value, bool) else value if isinstance(value, (int, float)) else str(value)
