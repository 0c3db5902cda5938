"""Theory against practice: what released models use, and what every theory asks of them.

The settings are facts from the models' own configurations (`lens/records/rotary-settings.json`, each with its source);
everything else is computed from them. No column tells working models from others.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import xarray as xr

from lens.base.provenance import library_versions
from lens.models.frequencies import RopeTable, rope_table
from lens.probes.dataset import exact, texts, variable
from lens.probes.rope_bounds import SLOW_SHARE, THEORIES, is_met, lanes_in_context, rope_bounds

SOURCE = "each model's own configuration, see `source`; theories as in rope_bounds"
_RECORD = "rotary-settings.json"


@dataclass(frozen=True)
class _Model:
    """One row of the record, with its table."""

    settings: dict[str, Any]
    table: RopeTable

    @property
    def factor(self) -> float:
        return float(self.settings["parameters"].get("factor", 1.0))

    def effective_base(self, lane: str) -> float:
        """What stands for the base of a scaled table: the base times the factor, or that of the slowest lane as it turns."""
        return self.table.effective_base if lane == "exact" else self.table.base * self.factor


def rope_practice(epsilon: float = 0.95, dtype: str = "float32", lane: str = "stated") -> xr.Dataset:
    """The rotary settings of 22 released models, and each theory's requirement beside them.

    Args:
        epsilon, dtype, lane: as in `rope_bounds`. Scaled tables stand at the base times their factor, or, with
            `lane="exact"`, at the base of which their slowest lane would be the slowest.

    Returns:
        Dataset over `model` and `theory` (the variables of `rope_bounds`):

        - `base`, `effective_base`, `width`, `context`, `layers`, `kind`, `factor`, `supported` (whether the model is offered
          for the context with these settings), `source`, `note`: the settings;
        - `required[model, theory]` and `met[model, theory]`. Two are held against the lanes themselves, not the base:
          `similar_beats_random` holds where the kernel stays above zero, `slow_lane_share` where a quarter of the lanes
          completes no turn;
        - `used_though_not_met[theory]`: models that are offered for their context and do not meet it;
          `met_though_unused[theory]`: settings beyond what is offered that it allows;
        - `slowest_phase`, `slowest_cosine`, `lanes`, `slow_lanes`, `slow_share`, `constant_lanes`, `first_negative`: see
          `lanes_in_context`.

    Raises:
        InputError: a setting out of its range.
    """
    models = _models()
    chosen: dict[str, Any] = {"epsilon": epsilon, "dtype": dtype, "lane": lane}
    bounds = [
        rope_bounds(model.settings["context"], model.settings["layers"], model.settings["width"], **chosen) for model in models
    ]
    lanes = [lanes_in_context(model.table, model.settings["context"], epsilon) for model in models]
    required = np.array([[float(found[name]) for name in THEORIES] for found in bounds])
    effective = [model.effective_base(lane) for model in models]
    met = np.array([_met(*row) for row in zip(effective, required, lanes, strict=True)])
    used = np.array([model.settings["supported"] for model in models])[:, None]
    facts = {"source": SOURCE, "probe": "rope_practice", **chosen}
    return xr.Dataset(
        {
            **_settings(models),
            "effective_base": exact(("model",), np.array(effective), "base that the theories are held against"),
            "required": exact(("model", "theory"), required, "required base"),
            "met": variable(("model", "theory"), met, "whether the model has it"),
            "used_though_not_met": variable(("theory",), (used & ~met).sum(axis=0), "models in use that do not meet it"),
            "met_though_unused": variable(("theory",), (~used & met).sum(axis=0), "settings not offered that it allows"),
            **{
                name: xr.Variable(("model",), np.array([found[name].values.item() for found in lanes]), lanes[0][name].attrs)
                for name in lanes[0]
            },
        },
        coords={
            "model": texts(("model",), [model.settings["model"] for model in models], "model and the context it is looked at"),
            "theory": texts(("theory",), list(THEORIES), "theory"),
            "hypothesis": texts(("theory",), [theory.name for theory in THEORIES.values()], "the theory's name in words"),
        },
        attrs={**facts, **library_versions()},
    )


def table_of_model(name: str) -> RopeTable:
    """The frequencies of one of the models, by its name in `rope_practice`."""
    return next(model.table for model in _models() if model.settings["model"] == name)


def _met(effective: float, required: np.ndarray, lanes: dict[str, xr.Variable]) -> list[bool]:
    found = {name: is_met(name, effective, float(base)) for name, base in zip(THEORIES, required, strict=True)}
    found["similar_beats_random"] = bool(np.isnan(lanes["first_negative"]))
    found["slow_lane_share"] = float(lanes["slow_share"]) >= SLOW_SHARE
    return list(found.values())


def _settings(models: tuple[_Model, ...]) -> dict[str, xr.Variable]:
    def column(name: str) -> np.ndarray:
        return np.array([model.settings[name] for model in models])

    return {
        "base": exact(("model",), column("base"), "base before any scaling"),
        "width": variable(("model",), column("width"), "rotary dimensions of a head"),
        "context": variable(("model",), column("context"), "context", "tokens"),
        "layers": variable(("model",), column("layers"), "layers"),
        "kind": texts(("model",), column("kind"), "kind of scaling"),
        "factor": exact(("model",), np.array([model.factor for model in models]), "factor of the scaling"),
        "supported": variable(("model",), column("supported"), "whether the model is offered for the context"),
        "source": texts(("model",), column("source"), "where the settings are from"),
        "note": texts(("model",), column("note"), "what else there is to know"),
    }


@cache
def _models() -> tuple[_Model, ...]:
    rows = json.loads(files("lens.records").joinpath(_RECORD).read_text(encoding="utf-8"))["models"]
    return tuple(_Model(row, rope_table(row["kind"], row["base"], row["width"], **row["parameters"])) for row in rows)
