"""Another rotary base, table or set of lanes in a running model.

What a frequency table does in a model that was trained with another one is a shift of what it knows, not what
a model trained with that table could do. Keys are cached after rotation: a cache from before an edit does not
fit a run under it.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lens.base.errors import InputError, UnsupportedModelError
from lens.models import frequencies
from lens.models.edits.standing import edited_state, in_place_of
from lens.models.frequencies import RopeTable
from lens.models.model import Model
from lens.models.rotary import SINUSOIDS, Rotary, require_in_force, rotaries

Wanted = Callable[[Rotary], RopeTable]
_RUNNING = ("dynamic", "longrope")  # kinds whose table changes with the running length


@dataclass(frozen=True, eq=False)
class TableChange:
    """What an edit did to one table.

    Attributes:
        path: of the module that holds it.
        layer_type: whose table it is, or None where all layers share it.
        blocks: which turn by it.
        before: what stood there when the edit began.
        after: the table that was asked for.
        lanes: whose stored frequency is another one now, ascending.
    """

    path: str
    layer_type: str | None
    blocks: tuple[int, ...]
    before: RopeTable
    after: RopeTable
    lanes: tuple[int, ...]

    def __str__(self) -> str:
        of = f" ({self.layer_type})" if self.layer_type else ""
        scale = f", attention factor {self.before.attention_factor:g} to {self.after.attention_factor:g}"
        scaled = scale if self.before.attention_factor != self.after.attention_factor else ""
        return f"{self.path}{of}: {len(self.lanes)} of {len(self.after.theta)} lanes in {len(self.blocks)} blocks{scaled}"


@dataclass(frozen=True, eq=False)
class RopeChange:
    """What an edit did to all tables of a model, every one of which is in force.

    Attributes:
        tables: one for each table, in the order of modules.
    """

    tables: tuple[TableChange, ...]

    @property
    def modules(self) -> tuple[str, ...]:
        """Paths of the rotary modules."""
        return tuple(dict.fromkeys(table.path for table in self.tables))

    @property
    def blocks(self) -> tuple[int, ...]:
        """Blocks that turn by an edited table, ascending."""
        return tuple(sorted({block for table in self.tables for block in table.blocks}))

    def __str__(self) -> str:
        return "; ".join(map(str, self.tables))


@contextmanager
def rope_base(
    model: Model, base: float | int, *, layer_type: str | None = None, length: int | None = None
) -> Iterator[RopeChange]:
    """Another rotary base for the body of the `with`, in every rotary module and for every layer type.

    The kind and its parameters stay: logits are those of a model with that base in its configuration and the
    same weights.

    Args:
        model: the model, which is held for the whole body.
        base: b of θᵢ = b^(−2i/r). The model's own changes nothing, to the bit.
        layer_type: only the table of these layers (`full_attention`, …), in a model that has several.
        length: for the kinds that change with the running length (dynamic, longrope), a length whose table holds
            for all texts. None lets the module follow the length of each text as ever, from the other base.

    Yields:
        What was changed, module by module.

    Raises:
        InputError: a base that is no base, or no such layer type.
        UnsupportedModelError: a model without rotary embeddings, or whose table does not come from a base.
    """

    def wanted(rotary: Rotary) -> RopeTable:
        table = rotary.table
        if table.kind == "explicit":
            raise UnsupportedModelError(
                f"The table in {rotary.path} of {model.name} is not what its configuration says",
                "a table that a base gives",
                "rope_table(model, kind, base=…)",
            )
        if base != table.base and len(table.theta) == 1:
            raise InputError(
                f"{rotary.path} has one lane, which no base moves", "two lanes or more", "rope_table(model, 'linear')"
            )
        running = {"length": length} if table.kind in _RUNNING else {}
        return frequencies.rope_table(table.kind, base, table.width, **{**table.parameters, **running})

    with _edit(model, f"rotary base {base:g}", wanted, layer_type, follow=length is None) as change:
        yield change


@contextmanager
def rope_table(
    model: Model, kind: str, *, base: float | int | None = None, layer_type: str | None = None, **parameters: Any
) -> Iterator[RopeChange]:
    """Another rotary table for the body of the `with`, in every rotary module and for every layer type.

    Args:
        model: the model, which is held for the whole body.
        kind: as in `lens.models.frequencies.rope_table`; `explicit` takes `theta`.
        base: None for each table's own.
        layer_type: only the table of these layers, in a model that has several.
        parameters: of the kind, by transformers' names. The attention factor is set too. A softmax scale that a
            family computes from the same parameters when it is built (DeepSeek's from `mscale_all_dim`) is not
            part of the table; asking for one there is refused.

    Yields:
        What was changed, module by module.

    Raises:
        InputError: a kind, parameter or layer type that is not there, or a table of another number of lanes.
        UnsupportedModelError: a model without rotary embeddings, or with a table that cannot be edited.
    """
    if parameters.get("mscale_all_dim") and _scales_softmax(model):
        raise UnsupportedModelError(
            f"{model.name} computes its softmax scale from mscale_all_dim when it is built",
            "parameters of the table alone",
            "leaving mscale and mscale_all_dim out, with attention_factor=…",
        )

    def wanted(rotary: Rotary) -> RopeTable:
        own = rotary.table.base if base is None else base
        if kind != "explicit" and not own > 1:
            raise InputError(f"{rotary.path} of {model.name} has no base of its own", "a base", "base=10000")
        return frequencies.rope_table(kind, own, rotary.table.width, **parameters)

    with _edit(model, f"rotary table {kind}", wanted, layer_type) as change:
        yield change


@contextmanager
def rope_lanes(model: Model, stop: Sequence[int], *, layer_type: str | None = None) -> Iterator[RopeChange]:
    """Let some rotary lanes stand still for the body of the `with`: their part of a head then ignores position.

    Stopping the slowest lanes is p-RoPE (arXiv 2410.06205). The other lanes keep their frequencies to the bit.

    Args:
        model: the model, which is held for the whole body.
        stop: lanes, 0 the fastest of a default table; none of them changes nothing.
        layer_type: only in these layers, in a model that has several tables.

    Yields:
        What was changed, module by module.

    Raises:
        InputError: a lane that some table does not have, or no such layer type.
        UnsupportedModelError: a model without rotary embeddings.
    """
    lanes = sorted({int(lane) for lane in stop})

    def wanted(rotary: Rotary) -> RopeTable:
        last = len(rotary.theta) - 1
        wrong = [lane for lane in lanes if not 0 <= lane <= last]
        if wrong:
            raise InputError(
                f"Lane {wrong[0]} is to stop", f"lanes 0 to {last} of {rotary.path}", "another lane, or layer_type=…"
            )
        theta = rotary.theta.copy()
        theta[lanes] = 0
        return frequencies.rope_table("explicit", rotary.table.base, theta=theta, attention_factor=rotary.attention_factor)

    named = ", ".join(map(str, lanes)) or "none"
    with _edit(model, f"rotary lanes stopped: {named}", wanted, layer_type) as change:
        yield change


# -- putting tables in place ----------------------------------------------------------------------


@contextmanager
def _edit(
    model: Model, description: str, wanted: Wanted, layer_type: str | None, *, follow: bool = False
) -> Iterator[RopeChange]:
    of = f" for {layer_type}" if layer_type else ""
    rotaries(model)  # found before the edit begins, so that what is found holds after it, too
    with model.lock.edit(f"{description}{of}"), ExitStack() as stack:
        found = _chosen(model, layer_type)
        tables = [_require_lanes(wanted(rotary), rotary) for rotary in found]  # before anything is changed
        changes = []
        for rotary, table in zip(found, tables, strict=True):
            running = follow and table.kind in _RUNNING
            stored, attention_factor = _stored(rotary, table)
            lanes = tuple(np.flatnonzero(_differs(rotary, stored, running)).tolist())
            _require_effect(table, rotary, bool(lanes) or attention_factor != rotary.attention_factor)
            before = rotary.table if running else _standing(rotary)
            changes.append(TableChange(rotary.path, rotary.layer_type, rotary.blocks, before, table, lanes))
            edited = edited_state(rotary, stored, attention_factor, _with_table(rotary, table) if running else None)
            stack.enter_context(in_place_of(rotary, edited))
        for rotary, table in zip(_chosen(model, layer_type), tables, strict=True):
            require_in_force(rotary, model, beyond=not (follow and table.kind in _RUNNING))
        yield RopeChange(tuple(changes))


def _differs(rotary: Rotary, stored: Tensor, running: bool) -> np.ndarray:
    """Which lanes are stored otherwise than in what stands there, in any row where there are rows.

    A table that changes with the length is compared with the one for short texts, whatever was run last.
    """
    former = rotary.module.get_buffer("original_inv_freq" if running else rotary.buffer)
    return (stored != former).reshape(-1, len(rotary.theta)).any(0).cpu().numpy()


def _chosen(model: Model, layer_type: str | None) -> list[Rotary]:
    found = rotaries(model)
    types = sorted({rotary.layer_type for rotary in found if rotary.layer_type})
    if layer_type is not None and layer_type not in types:
        needed = f"one of {', '.join(types)}" if types else f"none: all layers of {model.name} share one table"
        raise InputError(f"The layer type is {layer_type!r}", needed, "layer_type=None, for all")
    return [rotary for rotary in found if layer_type in (None, rotary.layer_type)]


def _require_lanes(table: RopeTable, rotary: Rotary) -> RopeTable:
    if len(table.theta) != len(rotary.theta):
        of = f" for {rotary.layer_type}" if rotary.layer_type else ""
        raise InputError(
            f"The table has {len(table.theta)} lanes",
            f"{len(rotary.theta)}, as {rotary.path} has{of}",
            "one frequency for each lane",
        )
    return table


def _require_effect(table: RopeTable, rotary: Rotary, changed: bool) -> None:
    same = any(np.array_equal(table.theta, known) for known in (rotary.theta, rotary.table.theta))
    if not changed and not same:
        dtype = str(rotary.module.get_buffer(rotary.buffer).dtype).removeprefix("torch.")
        raise InputError(
            f"Rounded to {dtype}, the table is what stands in {rotary.path}",
            "one that differs there",
            "a larger change, or float32",
        )


def _standing(rotary: Rotary) -> RopeTable:
    """What stands in a module, by its configured name where it is that table."""
    table, dtype = rotary.table, rotary.module.get_buffer(rotary.buffer).dtype
    near = np.allclose(table.theta, rotary.theta, rtol=max(2.0**-20, torch.finfo(dtype).eps), atol=0)
    if near and np.isclose(table.attention_factor, rotary.attention_factor, rtol=1e-12):
        return table
    return frequencies.rope_table("explicit", table.base, theta=rotary.theta, attention_factor=rotary.attention_factor)


def _stored(rotary: Rotary, table: RopeTable) -> tuple[Tensor, float]:
    """A table as the module keeps it, in its dtype and on its device, and the attention factor.

    The module's own table is its own to the bit. Others, transformers computes in float32; where it has the kind, that is
    what is stored, so that logits are those of a model built that way. Else it is the float64 table, rounded once.
    """
    former = rotary.module.get_buffer(rotary.buffer)
    own = getattr(rotary.module, rotary.buffer.replace("inv_freq", "original_inv_freq"), None)
    if own is not None and np.array_equal(table.theta, rotary.table.theta) and rotary.buffer != SINUSOIDS:
        return own.to(former, copy=True), table.attention_factor
    theta, attention_factor = _as_transformers(rotary, table) or (torch.tensor(table.theta), table.attention_factor)
    if rotary.buffer == SINUSOIDS:
        if attention_factor != 1:
            raise UnsupportedModelError(
                f"{rotary.path} keeps ready sines and cosines", "an attention factor of 1", "another kind of table"
            )
        angles = torch.arange(former.shape[0]).float()[:, None] * theta.float()
        kept = torch.tensor(table.theta == rotary.theta).tile(2).to(former.device)
        return torch.where(kept, former, torch.cat([angles.sin(), angles.cos()], dim=1).to(former)), 1.0
    return theta.to(former), attention_factor


def _as_transformers(rotary: Rotary, table: RopeTable) -> tuple[Tensor, float] | None:
    """The table in transformers' own arithmetic, or None where it has no such kind or means another table by it."""
    if table.kind == "default" and rotary.buffer == SINUSOIDS:
        return 1.0 / (table.base ** (torch.arange(0, table.width, 2) / table.width)), 1.0
    own = getattr(rotary.module, "compute_default_rope_parameters", None)
    compute: Any = own if table.kind == "default" else ROPE_INIT_FUNCTIONS.get(table.kind)
    config = _with_table(rotary, table)
    if config is None or compute is None:
        return None
    named: dict[str, Any] = {"layer_type": rotary.layer_type} if rotary.layer_type else {}
    if table.kind in _RUNNING:
        named["seq_len"] = table.parameters.get("length")
    if getattr(config, "is_heterogeneous", False):
        config = config.per_layer_config[rotary.layer_type]
    try:
        theta, attention_factor = compute(config, **named)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    ours = torch.tensor(table.theta)
    same = theta.shape == ours.shape and torch.allclose(theta.double(), ours, rtol=2.0**-20, atol=0)
    scaled = bool(np.isclose(attention_factor, table.attention_factor, rtol=1e-12))
    return (theta, float(attention_factor)) if same and scaled else None


def _with_table(rotary: Rotary, table: RopeTable) -> Any:
    """A copy of the module's configuration that asks for a table, or None where it has none."""
    config: Any = getattr(rotary.module, "config", None)
    if not isinstance(getattr(config, "rope_parameters", None), dict):
        return None
    config = copy.deepcopy(config)
    former = config.rope_parameters[rotary.layer_type] if rotary.layer_type else config.rope_parameters
    kept = {name: former[name] for name in ("partial_rotary_factor",) if name in former}
    given = {name: value for name, value in table.parameters.items() if name != "length"}
    settings = {**kept, **given, "rope_type": table.kind, "rope_theta": table.base}
    original = table.parameters.get(frequencies.ORIGINAL_LENGTH)
    if original is not None and hasattr(config, frequencies.ORIGINAL_LENGTH):
        config.original_max_position_embeddings = original  # Phi 3 keeps it outside, where it comes first
    if table.kind == "dynamic":
        config.max_position_embeddings = original  # what transformers counts from
    config.rope_parameters = {**config.rope_parameters, rotary.layer_type: settings} if rotary.layer_type else settings
    return config


def _scales_softmax(model: Model) -> bool:
    parts = {type(block.attention) for block in model.anatomy.blocks}
    return any(hasattr(sys.modules[part.__module__], "yarn_get_mscale") for part in parts)
