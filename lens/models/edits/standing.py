"""What stands in a rotary module, and another table in its place."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lens.base.errors import UnsupportedModelError
from lens.models.rotary import Rotary

_ABSENT = object()


@dataclass(frozen=True, eq=False)
class State:
    """Buffers and attributes of a module that one table is made of; the very tensors, to which nothing is written.

    Attributes:
        buffers: by name.
        attributes: by name, or absent.
        kind: what decides whether the module recomputes its table in a run, or None where it never does.
    """

    buffers: Mapping[str, Tensor]
    attributes: Mapping[str, Any]
    kind: str | None


# States of one table: what was in the module before, then the edits, last one on top.
_STACKS: weakref.WeakKeyDictionary[nn.Module, dict[str, list[State]]] = weakref.WeakKeyDictionary()


def edited_state(rotary: Rotary, table: Tensor, attention_factor: float, config: Any = None) -> State:
    """A module's state with another table.

    Kinds that recompute their table in a run are called default for the time, which does not; unless a
    configuration is given, from which they then recompute it.

    Raises:
        UnsupportedModelError: an attention factor in a module that has none.
    """
    former = _state(rotary)
    prefix = rotary.buffer.removesuffix("inv_freq")
    scaling = f"{prefix}attention_scaling"
    attributes = dict(former.attributes)
    if attributes[scaling] is not _ABSENT:
        attributes[scaling] = attention_factor
    elif attention_factor != 1:
        found = f"{rotary.path} ({type(rotary.module).__name__}) has no attention factor"
        raise UnsupportedModelError(found, "a table whose factor is 1", "another kind, or attention_factor=1.0")
    if config is None:
        return State({**former.buffers, rotary.buffer: table}, attributes, None if former.kind is None else "default")
    if rotary.layer_type:
        found = f"{rotary.path} has tables that change with the length, for several layer types"
        raise UnsupportedModelError(found, "the length whose table is meant", "length=…")
    original = f"{prefix}original_inv_freq"
    buffers = {name: table.clone() if name == original else table for name in former.buffers}
    attributes |= {"config": config, f"{prefix}long_inv_freq": _ABSENT}
    if attributes["max_seq_len_cached"] is not _ABSENT:
        attributes["max_seq_len_cached"] = rotary.module.original_max_seq_len
    return State(buffers, attributes, config.rope_parameters["rope_type"])


@contextmanager
def in_place_of(rotary: Rotary, edited: State) -> Iterator[None]:
    """Another state of a module. Of several the one entered last counts, in whatever order they end."""
    stack = _STACKS.setdefault(rotary.module, {}).setdefault(rotary.buffer, [_state(rotary)])
    stack.append(edited)
    try:
        _put(rotary, edited)
        yield
    finally:
        stack.remove(edited)
        _put(rotary, stack[-1])
        if len(stack) == 1:
            del _STACKS[rotary.module][rotary.buffer]


def _state(rotary: Rotary) -> State:
    module: Any = rotary.module
    prefix = rotary.buffer.removesuffix("inv_freq")
    shared = () if rotary.layer_type else ("config", "max_seq_len_cached")  # of one table alone
    attributes = (f"{prefix}attention_scaling", f"{prefix}long_inv_freq", *shared)
    buffers = (rotary.buffer, f"{prefix}original_inv_freq")
    kind = getattr(module, "rope_type", None)
    return State(
        {name: module._buffers[name] for name in buffers if name in module._buffers},
        {name: module.__dict__.get(name, _ABSENT) for name in attributes},
        kind.get(rotary.layer_type) if isinstance(kind, dict) else kind,
    )


def _put(rotary: Rotary, state: State) -> None:
    module: Any = rotary.module
    module._buffers.update(state.buffers)
    for name, value in state.attributes.items():
        if value is _ABSENT:
            module.__dict__.pop(name, None)
        else:
            module.__dict__[name] = value
    if state.kind is not None and isinstance(module.rope_type, dict):
        module.rope_type[rotary.layer_type] = state.kind
    elif state.kind is not None:
        module.rope_type = state.kind
