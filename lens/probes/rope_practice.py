"""Theory against practice: what released models use, and what every theory asks of them.

The settings are facts from the models' own configurations (`lens/records/rotary-settings.json`, each with its source), or
those of a model that is open; everything else is computed from them. No column tells working models from others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.base.provenance import library_versions
from lens.models.frequencies import RopeTable, rope_table
from lens.models.model import Model
from lens.models.rotary import Rotary, rotaries
from lens.probes.dataset import exact, texts, variable
from lens.probes.rope_bounds import SLOW_SHARE, THEORIES, is_met, lanes_in_context, rope_bounds

SOURCE = "each model's own configuration, see `source`; theories as in rope_bounds"
_RECORD = "rotary-settings.json"


@dataclass(frozen=True, eq=False)
class RotarySettings:
    """How a model, or one layer type of it, turns its queries and keys, and over which context.

    Attributes:
        facts: `model`, `base`, `width`, `context`, `layers`, `kind`, `supported`, `source`, `note`.
        table: its frequencies.
    """

    facts: Mapping[str, Any]
    table: RopeTable

    @property
    def factor(self) -> float:
        return float(self.table.parameters.get("factor", 1.0))

    def effective_base(self, lane: str) -> float:
        """What stands for the base of a scaled table: the base times the factor, or that of the slowest lane as it turns."""
        is_plain = lane == "stated" and self.table.kind != "explicit"
        return self.table.base * self.factor if is_plain else self.table.effective_base


def rotary_settings(model: Model) -> tuple[RotarySettings, ...]:
    """Those of an open model as it stands, edits included; one for each rotary table.

    The context of layers that look at a window is the window.

    Raises:
        UnsupportedModelError: a model without rotary embeddings.
    """
    found = rotaries(model)
    names = [model.name if len(found) == 1 else f"{model.name}, {rotary.layer_type or rotary.path}" for rotary in found]
    return tuple(_of_rotary(model, rotary, name) for rotary, name in zip(found, names, strict=True))


def _of_rotary(model: Model, rotary: Rotary, name: str) -> RotarySettings:
    table = rotary.table
    if not np.allclose(table.theta, rotary.theta, rtol=2**-20, atol=0):  # an edit; a configured table is rounded to float32
        table = rope_table("explicit", theta=rotary.theta, attention_factor=rotary.attention_factor)
    facts = {
        "model": name,
        "base": table.effective_base if table.kind == "explicit" else table.base,
        "width": table.width,
        "context": _reach(model, rotary),
        "layers": model.n_layers,
        "kind": table.kind,
        "supported": True,
        "source": f"configuration of {model.name}",
        "note": "",
    }
    return RotarySettings(facts, table)


def _reach(model: Model, rotary: Rotary) -> int:
    """Tokens that the blocks of a table look back over at most."""
    config = model.module.config.get_text_config()
    if model.context is None:
        found = f"{model.name} has no longest input"
        raise InputError(found, "a configuration with max_position_embeddings", "rope_bounds(context=…)")
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * model.n_layers
    slides = all(types[block] == "sliding_attention" for block in rotary.blocks) and getattr(config, "use_sliding_window", True)
    return min(model.context, window) if window and slides else model.context


def rope_practice(
    epsilon: float = 0.95,
    dtype: str = "float32",
    lane: str = "stated",
    models: Sequence[Model | RotarySettings] = (),
) -> xr.Dataset:
    """The rotary settings of 22 released models, and each theory's requirement beside them.

    Args:
        models: more of them, which are open, or their `rotary_settings`.
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
        InputError: a setting out of its range, or two models of one name.
        UnsupportedModelError: a model without rotary embeddings.
    """
    rows = list(_released())
    for model in models:
        rows.extend([model] if isinstance(model, RotarySettings) else rotary_settings(model))
    _require_names(rows)
    chosen: dict[str, Any] = {"epsilon": epsilon, "dtype": dtype, "lane": lane}
    bounds = [rope_bounds(row.facts["context"], row.facts["layers"], row.facts["width"], **chosen) for row in rows]
    lanes = [lanes_in_context(row.table, row.facts["context"], epsilon) for row in rows]
    required = np.array([[float(found[name]) for name in THEORIES] for found in bounds])
    effective = [row.effective_base(lane) for row in rows]
    met = np.array([_met(*one) for one in zip(effective, required, lanes, strict=True)])
    used = np.array([row.facts["supported"] for row in rows])[:, None]
    facts = {"source": SOURCE, "probe": "rope_practice", **chosen}
    return xr.Dataset(
        {
            **_settings(rows),
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
            "model": texts(("model",), [row.facts["model"] for row in rows], "model and the context it is looked at"),
            "theory": texts(("theory",), list(THEORIES), "theory"),
            "hypothesis": texts(("theory",), [theory.name for theory in THEORIES.values()], "the theory's name in words"),
        },
        attrs={**facts, **library_versions()},
    )


def table_of_model(name: str) -> RopeTable:
    """The frequencies of one of the models, by its name in `rope_practice`."""
    return next(row.table for row in _released() if row.facts["model"] == name)


def _met(effective: float, required: np.ndarray, lanes: dict[str, xr.Variable]) -> list[bool]:
    found = {name: is_met(name, effective, float(base)) for name, base in zip(THEORIES, required, strict=True)}
    found["similar_beats_random"] = bool(np.isnan(lanes["first_negative"]))
    found["slow_lane_share"] = float(lanes["slow_share"]) >= SLOW_SHARE
    return list(found.values())


def _settings(rows: Sequence[RotarySettings]) -> dict[str, xr.Variable]:
    def column(name: str) -> np.ndarray:
        return np.array([row.facts[name] for row in rows])

    return {
        "base": exact(("model",), column("base"), "base before any scaling"),
        "width": variable(("model",), column("width"), "rotary dimensions of a head"),
        "context": variable(("model",), column("context"), "context", "tokens"),
        "layers": variable(("model",), column("layers"), "layers"),
        "kind": texts(("model",), column("kind"), "kind of scaling"),
        "factor": exact(("model",), np.array([row.factor for row in rows]), "factor of the scaling"),
        "supported": variable(("model",), column("supported"), "whether the model is offered for the context"),
        "source": texts(("model",), column("source"), "where the settings are from"),
        "note": texts(("model",), column("note"), "what else there is to know"),
    }


@cache
def _released() -> tuple[RotarySettings, ...]:
    rows = json.loads(files("lens.records").joinpath(_RECORD).read_text(encoding="utf-8"))["models"]
    return tuple(RotarySettings(row, rope_table(row["kind"], row["base"], row["width"], **row["parameters"])) for row in rows)


def _require_names(rows: Sequence[RotarySettings]) -> None:
    names = [row.facts["model"] for row in rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"Two models are called {twice[0]!r}", "a name for each", "one of them")
