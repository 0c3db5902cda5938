"""Rotary frequency tables of every kind, in float64, by their formulas.

A rotary embedding turns lane i of a query or key at position m by m·θᵢ; a table is the list of θᵢ. Kinds and
parameters bear transformers' names. `ntk` (static NTK-aware scaling) and `explicit` (θ as given) are not among
transformers' own kinds. `table_of` knows where configurations keep them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from lens.base.errors import InputError, UnsupportedModelError
from lens.models.frequency_kinds import FORMULAS, ORIGINAL_LENGTH, Lanes, Request

KINDS = tuple(FORMULAS)


@dataclass(frozen=True, eq=False)
class RopeTable:
    """The frequencies of one rotary embedding, and how they came about.

    Attributes:
        kind: one of `KINDS`.
        base: b of θᵢ = b^(−2i/r), before any scaling; of a table given as it is, only for the record.
        width: rotary dimensions r of a head; the whole head's width for the proportional kind.
        theta: radians a token, one for each lane, lane 0 first (the fastest but for given tables).
        attention_factor: what multiplies both cos and sin, so that logits scale by its square.
        treatment: for each lane, against the default table of the same base: `unchanged`, `blended` (between
            unchanged and divided), `divided`, `stopped` (no rotation) or `given`.
        parameters: what the kind was given, by transformers' names.
    """

    kind: str
    base: float
    width: int
    theta: Lanes
    attention_factor: float
    treatment: tuple[str, ...]
    parameters: Mapping[str, Any]

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.parameters.items() if np.ndim(value) == 0)
        return f"RopeTable({self.kind!r}, base={self.base:g}, {len(self.theta)} lanes{options})"

    @property
    def wavelength(self) -> Lanes:
        """Tokens in a full turn of each lane; infinite for a lane that stands still."""
        with np.errstate(divide="ignore"):
            return 2 * np.pi / np.abs(self.theta)

    @property
    def effective_base(self) -> float:
        """Base of the default table whose lane equals this table's slowest lane that moves, or NaN where only lane 0 moves."""
        moving = np.flatnonzero(self.theta)
        slowest = int(moving[np.argmin(np.abs(self.theta[moving]))]) if len(moving) else 0
        return float(abs(self.theta[slowest]) ** (-self.width / (2 * slowest))) if slowest else math.nan


def rope_table(kind: str = "default", base: float | int = 10_000.0, width: int = 64, **parameters: Any) -> RopeTable:
    """A frequency table by its formula.

    Args:
        kind: one of `KINDS`.
        base: b, above 1.
        width: rotary dimensions r of a head (the proportional kind: the whole head's width).
        parameters: of the kind, by transformers' names:

            linear, ntk: `factor` s.
            dynamic: `factor`, `original_max_position_embeddings` L₀; `length` L, the running length (L₀ if left out).
            yarn: `factor`, `original_max_position_embeddings`; `beta_fast` 32, `beta_slow` 1, `truncate` True,
            `attention_factor`, `mscale` and `mscale_all_dim`.
            llama3: `factor`, `low_freq_factor`, `high_freq_factor`, `original_max_position_embeddings`.
            longrope: `short_factor` and `long_factor`, one number a lane, `original_max_position_embeddings`;
            `factor` or `attention_factor`; `length`, which chooses the long factors above L₀.
            proportional: `partial_rotary_factor` p, the share of lanes that turn; `factor`.
            explicit: `theta`; `attention_factor`. Base and width go unused but for the record.

            An optional one that is None counts as left out.

    Raises:
        InputError: no such kind, a parameter that it does not have or lacks, or a number that is out of range.
    """
    if kind not in FORMULAS:
        raise InputError(f"The kind of rotary table is {kind!r}", f"one of {', '.join(KINDS)}", "kind='default'")
    given = {name: value for name, value in parameters.items() if value is not None}
    compute, needed, optional = FORMULAS[kind]
    unknown, missing = sorted(set(given) - {*needed, *optional}), [name for name in needed if name not in given]
    if unknown or missing:
        found = " and ".join(
            [f"was given {', '.join(unknown)}"] * bool(unknown) + [f"was not given {', '.join(missing)}"] * bool(missing)
        )
        allowed = ", ".join([*needed, *(f"{name} (optional)" for name in optional)]) or "no parameters"
        raise InputError(f"The rotary kind {kind!r} {found}", allowed, "another kind, or transformers' names of parameters")
    _require_numbers(kind, base, width, given)
    theta, attention_factor, treatment = compute(Request(float(base), int(width), given))
    theta = np.ascontiguousarray(theta, dtype=np.float64)
    theta.setflags(write=False)
    return RopeTable(
        kind=kind,
        base=float(base),
        width=2 * len(theta) if kind == "explicit" else int(width),
        theta=theta,
        attention_factor=float(attention_factor),
        treatment=tuple(treatment.tolist()),
        parameters=MappingProxyType(given),
    )


def _require_numbers(kind: str, base: float | int, width: int, given: Mapping[str, Any]) -> None:
    if not base > 1 and kind != "explicit":
        raise InputError(f"The rotary base is {base:g}", "a number above 1", "base=10000")
    least = 4 if kind in ("ntk", "dynamic") else 2  # the stretched base has r − 2 in a denominator
    if int(width) != width or width < least:
        raise InputError(f"The rotary width is {width}", f"a whole number of dimensions, {least} or more", "width=64")
    for name, value in given.items():
        numbers = np.asarray(value, dtype=np.float64)
        if name not in ("theta", "truncate") and not (np.isfinite(numbers).all() and (numbers > 0).all()):
            raise InputError(f"The rotary parameter {name} is {value}", "finite and above zero", "transformers' own values")


# -- where models keep their settings -------------------------------------------------------------


def table_of(config: Any, layer_type: str | None = None, length: int | None = None) -> RopeTable:
    """The table that a model's configuration asks for.

    Args:
        config: a transformers configuration, or the mapping that a `config.json` holds, old (`rope_theta` and
            `rope_scaling`) or new (`rope_parameters`).
        layer_type: `full_attention`, `sliding_attention`, …, for a model whose layers have several tables.
        length: running length, for the kinds that change with it (dynamic, longrope).

    Raises:
        InputError: no such layer type, or several tables and none named.
        UnsupportedModelError: no rotary settings, or a kind that is not known.
    """
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = rope_settings(config)
    if not found:
        name = type(config).__name__ if not isinstance(config, Mapping) else str(config.get("model_type", "The configuration"))
        raise UnsupportedModelError(
            f"{name} has no rotary settings",
            "a model with rotary position embeddings",
            "another model; GPT-2, OPT and BLOOM have none",
        )
    if layer_type is None and len(found) == 1:
        layer_type = next(iter(found))
    if layer_type not in found:
        types = ", ".join(str(name) for name in found if name is not None)
        asked = "no layer type was named" if layer_type is None else f"the layer type is {layer_type!r}"
        needed = f"one of {types}, which have tables of their own" if types else "none: all layers share one table"
        raise InputError(f"For the rotary table {asked}", needed, f"layer_type={next(iter(found))!r}")
    return _table(_of_layer_type(config, layer_type), found[layer_type], length)


def rope_settings(config: Any) -> dict[str | None, dict[str, Any]]:
    """Rotary settings of a configuration, by layer type (None where all layers share them); empty where there are none.

    `truncate` is taken from the outermost mapping only, where transformers reads it (5.23).
    """
    if _setting(config, "alibi", False):
        return {}
    scaling = _setting(config, "rope_parameters") or _setting(config, "rope_scaling") or {}
    base = _first(config, "rope_theta", "rotary_emb_base", "global_rope_theta")
    if any(isinstance(value, Mapping) for value in scaling.values()):
        found: dict[str | None, dict[str, Any]] = {
            name: {"rope_theta": base, **value, "truncate": scaling.get("truncate")}
            for name, value in scaling.items()
            if isinstance(value, Mapping)
        }
    else:
        if not scaling and base is None and _first(config, "rotary_dim", "rotary_pct") is None:
            return {}
        outer = _setting(config, ORIGINAL_LENGTH)
        shared = {"rope_theta": base, **scaling, **({ORIGINAL_LENGTH: outer} if outer is not None else {})}
        local = _first(config, "rope_local_base_freq", "local_rope_theta")
        named = local is not None and "rope_parameters" not in _names(config)
        found = {"full_attention": shared, "sliding_attention": {"rope_theta": local}} if named else {None: shared}
    for settings in found.values():
        settings["rope_theta"] = 10_000.0 if settings.get("rope_theta") is None else settings["rope_theta"]
        settings.setdefault(ORIGINAL_LENGTH, _first(config, "max_position_embeddings", "n_positions"))
    return found


def head_width(config: Any) -> int:
    """Width of the part of a head that may turn: the whole head, or DeepSeek's rotary slice of it."""
    width = _first(config, "qk_rope_head_dim", "head_dim", "kv_channels")
    if width is not None:
        return int(width)
    return int(_first(config, "hidden_size", "n_embd")) // int(_first(config, "num_attention_heads", "n_head"))


def _table(config: Any, settings: Mapping[str, Any], length: int | None) -> RopeTable:
    kind = str(settings.get("rope_type") or settings.get("type") or "default")
    kind = {"su": "longrope", "mrope": "default"}.get(kind, kind)  # older names, without a difference for text
    settings = dict(settings)
    if kind == "dynamic" and settings.get("alpha"):  # Hunyuan: a fixed stretch under the name of the running one
        kind, settings["factor"] = "ntk", settings["alpha"]
    if kind not in KINDS or kind == "explicit":
        raise UnsupportedModelError(
            f"The rotary kind is {kind!r}", f"one of {', '.join(KINDS)}", "kind='explicit' with its theta"
        )
    head, given = head_width(config), {}
    share = settings.get("partial_rotary_factor") or _first(config, "partial_rotary_factor", "rotary_pct")
    width = _setting(config, "rotary_dim") or head
    if kind == "proportional":
        given["partial_rotary_factor"] = share
    elif share is not None and width == head:
        width = int(head * float(share))
    longest = _first(config, "max_position_embeddings", "n_positions")
    names = {*FORMULAS[kind][1], *FORMULAS[kind][2]} - {"partial_rotary_factor"}
    given |= {name: settings[name] for name in names if settings.get(name) is not None}
    if kind == "dynamic":
        given[ORIGINAL_LENGTH] = longest  # transformers counts from here, whatever the settings say
    if "factor" in names and "factor" not in given and given.get(ORIGINAL_LENGTH):
        given["factor"] = longest / given[ORIGINAL_LENGTH]
    if "length" in names:
        given["length"] = length
    return rope_table(kind, float(settings["rope_theta"]), width, **given)


def _of_layer_type(config: Any, layer_type: str | None) -> Any:
    """The configuration of one layer type, where head widths differ between them (Gemma 4)."""
    if layer_type is None or not getattr(config, "is_heterogeneous", False):
        return config
    return config.per_layer_config[layer_type]


def _setting(config: Any, name: str, otherwise: Any = None) -> Any:
    value = config.get(name, otherwise) if isinstance(config, Mapping) else getattr(config, name, otherwise)
    return otherwise if value is None else value


def _names(config: Any) -> Any:
    return config if isinstance(config, Mapping) else vars(config)


def _first(config: Any, *names: str) -> Any:
    return next((value for name in names if (value := _setting(config, name)) is not None), None)
