"""The rotary tables that really stand in a model, and which blocks turn by them.

A table is the buffer of inverse frequencies of a rotary module, or of one layer type of it (Gemma 3), or the
ready sines and cosines that every block keeps (GPT-J). Which blocks use which table is found out by trial: a
block uses a table if other cosines and sines change what its attention gives. SmolLM3 hands them to all
blocks, of which every fourth ignores them; Falcon with ALiBi keeps a table that no block uses.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lens.base.errors import LensError, UnsupportedModelError
from lens.models.anatomy import hooks_on
from lens.models.frequencies import RopeTable, rope_settings, rope_table, table_of
from lens.models.frequency_kinds import Lanes
from lens.models.model import Model, evaluation_mode

SINUSOIDS = "embed_positions"  # GPT-J and CodeGen: a buffer [position, sines then cosines] in every block


@dataclass(frozen=True, eq=False)
class Rotary:
    """One live table.

    Attributes:
        path: dotted path of the module that holds it.
        module: that module.
        layer_type: whose table it is (`full_attention`, …), or None where all layers share it.
        buffer: name of the buffer.
        table: as configured. Explicit, with a base of the configuration, where what stands is not what the
            configuration asks for.
        theta: what really stands in the buffer, radians a token; float64, one for each lane.
        attention_factor: what multiplies cos and sin.
        blocks: which turn by it, ascending.
    """

    path: str
    module: nn.Module
    layer_type: str | None
    buffer: str
    table: RopeTable
    theta: Lanes
    attention_factor: float
    blocks: tuple[int, ...]

    def __repr__(self) -> str:
        of = f" for {self.layer_type}" if self.layer_type else ""
        return f"Rotary({self.path}{of}, {len(self.theta)} lanes, {len(self.blocks)} blocks)"


def rotaries(model: Model) -> tuple[Rotary, ...]:
    """Every rotary table that some block turns by, as it stands now.

    The first call runs eight tokens to find them.

    Raises:
        UnsupportedModelError: a model without rotary embeddings, or with tables that cannot be reached.
    """
    found = _rotaries(model)
    if not found:
        kept = any(_places(model.module))
        why = (
            f"No block of {model.name} turns by its rotary tables" if kept else f"{model.name} has no rotary position embeddings"
        )
        hint = "another model; GPT-2, OPT, BLOOM and Falcon with ALiBi have no rotary embeddings"
        raise UnsupportedModelError(why, "a model whose queries and keys are rotated", hint)
    return found


def rotary_of_blocks(model: Model) -> tuple[Rotary | None, ...]:
    """The table that each block turns by as it stands now, or None for a block without rotary embeddings.

    Raises:
        UnsupportedModelError: tables that cannot be reached.
    """
    found: dict[int, Rotary] = {block: rotary for rotary in _rotaries(model) for block in rotary.blocks}
    return tuple(found.get(block) for block in range(model.n_layers))


def _rotaries(model: Model) -> tuple[Rotary, ...]:
    with model.lock.hold(f"looking for rotary tables of {model.name}"):
        return tuple(_standing(slot) for slot in _slots(model))


# -- what a rotary module gives -------------------------------------------------------------------


def phases(output: Any, lanes: int) -> np.ndarray | None:
    """cos + i·sin of every lane, complex128 `[..., position, lane]`, from what a rotary module gives.

    Families give a complex tensor, or cos and sin with each lane once, or twice in halves or in pairs. None if
    it is nothing of that.
    """
    if isinstance(output, Tensor):
        return _complex(output) if output.is_complex() and output.shape[-1] == lanes else None
    if not isinstance(output, (tuple, list)) or len(output) != 2 or not all(isinstance(part, Tensor) for part in output):
        return None
    cos, sin = (part.detach().to("cpu", torch.float64).numpy() for part in output)
    if cos.shape != sin.shape or cos.shape[-1] not in (lanes, 2 * lanes):
        return None
    both = cos + 1j * sin
    if both.shape[-1] == lanes:
        return both
    halves, pairs = (both[..., :lanes], both[..., lanes:]), (both[..., ::2], both[..., 1::2])
    return next((one for one, other in (halves, pairs) if np.array_equal(one, other)), None)


def _complex(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.complex128).numpy()


def require_in_force(rotary: Rotary, model: Model, *, beyond: bool = True) -> None:
    """Run the rotary module by itself and compare its cosines and sines with the table that stands in it.

    Args:
        rotary: the table.
        model: its model.
        beyond: let one position lie beyond the context, where modules that change with the length would change.

    Raises:
        UnsupportedModelError: they are of other frequencies.
    """
    if rotary.buffer == SINUSOIDS:
        return  # nothing is computed: rows of the buffer are what the block turns by
    slot = next(s for s in _slots(model) if s.module is rotary.module and s.buffer == rotary.buffer)
    length = slot.call.length
    positions = [*range(length - 1), max(model.context or 0, length) + 1 if beyond else length - 1]
    given = slot.call.again(slot.module, positions)
    found = phases(given, len(rotary.theta))
    if found is None or not _agree(found, rotary, np.array(positions), given if isinstance(given, Tensor) else given[0]):
        raise UnsupportedModelError(
            f"{rotary.path} ({type(rotary.module).__name__}) does not turn by the table that stands in {rotary.buffer}",
            "a rotary module that computes cos and sin from its inverse frequencies",
            "another model; nothing was changed in this one",
        )


def _agree(found: np.ndarray, rotary: Rotary, positions: np.ndarray, given: Tensor) -> bool:
    turns = positions[:, None] * rotary.theta
    expected = rotary.attention_factor * np.exp(1j * turns)
    bound = rotary.attention_factor * (4 * torch.finfo(given.dtype).eps + np.abs(turns) * 2.0**-22)  # of float32 angles
    return bool((np.abs(found.reshape(-1, *expected.shape)[0] - expected) <= bound).all())


# -- finding them ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Call:
    """How a rotary module was called, to call it again."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    length: int

    def again(self, module: nn.Module, positions: list[int]) -> Any:
        def other(value: Any) -> Any:
            if isinstance(value, Tensor) and value.is_floating_point():
                return value.float()  # cosines and sines come in the dtype of these
            if not isinstance(value, Tensor) or value.shape[-1] != self.length:
                return value
            return torch.tensor(positions, dtype=value.dtype, device=value.device).expand(value.shape)

        with torch.no_grad():
            return module(*map(other, self.args), **{name: other(value) for name, value in self.kwargs.items()})


@dataclass(frozen=True)
class _Slot:
    """Where a table stands; what does not change with an edit."""

    path: str
    module: nn.Module
    layer_type: str | None
    buffer: str
    table: RopeTable
    call: _Call
    blocks: tuple[int, ...]


# By module; valid as long as the model stays where it is, in its dtype, and under the edits that it was looked at with:
# a block that is replaced does not show what it uses.
_FOUND: weakref.WeakKeyDictionary[nn.Module, tuple[Any, frozenset[str], tuple[_Slot, ...]]] = weakref.WeakKeyDictionary()


def _slots(model: Model) -> tuple[_Slot, ...]:
    weight = model.anatomy.embedding.weight
    state, live = (weight.device, weight.dtype), frozenset(model.lock.edits)
    known = _FOUND.get(model.module)
    if known is not None and known[0] == state and known[1] <= live:
        return known[2]
    slots = _find(model)
    _FOUND[model.module] = (state, live, slots)
    return slots


def _find(model: Model) -> tuple[_Slot, ...]:
    places = list(_places(model.module))
    if not places and rope_settings(model.module.config.get_text_config()):
        found = f"{model.name} has rotary settings, and no table of frequencies in its modules"
        raise UnsupportedModelError(found, "tables that can be reached", "a family of transformers itself")
    away = next((f"{path}.{buffer}" for path, module, _, buffer in places if module.get_buffer(buffer).is_meta), None)
    if away is not None:
        raise UnsupportedModelError(
            f"The rotary table {away} of {model.name} is kept off the device", "tables in memory", "loading without a device map"
        )
    seen = _Watch(model, [module for _, module, _, buffer in places if buffer != SINUSOIDS])
    slots = []
    for path, module, layer_type, buffer in places:
        blocks = seen.blocks_of(path, module, layer_type, buffer)
        if blocks:
            call = seen.call_of(module, layer_type)
            slots.append(_Slot(path, module, layer_type, buffer, _configured(model, module, layer_type, buffer), call, blocks))
    return tuple(slots)


def _places(module: nn.Module) -> Iterator[tuple[str, nn.Module, str | None, str]]:
    """Path, module, layer type and name of every buffer that holds a table."""
    for path, part in module.named_modules():
        for name, value in part.named_buffers(recurse=False):
            if name == SINUSOIDS and value.ndim == 2:
                yield path, part, None, name
            elif name.endswith("inv_freq") and "original" not in name and "long_" not in name:
                yield path, part, name.removesuffix("inv_freq").removesuffix("_") or None, name


class _Watch:
    """One run of eight tokens: how rotary modules were called, and which attention changes with what they gave."""

    def __init__(self, model: Model, modules: list[nn.Module]):
        size = model.anatomy.embedding.weight.shape[0]
        ids = torch.tensor([[(7 * i + 1) % size for i in range(8)]], device=model.device)
        self._paths = [block.path for block in model.anatomy.blocks]
        self._calls: dict[tuple[nn.Module, str | None], tuple[_Call, Any]] = {}
        self._users: dict[tuple[nn.Module, str | None], list[int]] = {}
        handles = [part.register_forward_hook(self._note, with_kwargs=True) for part in dict.fromkeys(modules)]
        for index, block in enumerate(model.anatomy.blocks):
            part = block.attention if block.attention is not None else block.module
            handles.append(part.register_forward_hook(partial(self._try, index), with_kwargs=True))
        with torch.no_grad(), evaluation_mode(model.module), hooks_on(handles):
            model.module(input_ids=ids, use_cache=False)

    def call_of(self, module: nn.Module, layer_type: str | None) -> _Call:
        return self._calls[module, layer_type][0] if (module, layer_type) in self._calls else _Call((), {}, 8)

    def blocks_of(self, path: str, module: nn.Module, layer_type: str | None, buffer: str) -> tuple[int, ...]:
        inside = [index for index, block in enumerate(self._paths) if path.startswith(block + ".")]
        if inside and (buffer == SINUSOIDS or (module, layer_type) in self._calls):
            return tuple(inside)
        return tuple(self._users.get((module, layer_type), ()))

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        types = {name.removesuffix("_inv_freq") for name, _ in module.named_buffers(recurse=False)}
        layer_type = next((v for v in (*args, *kwargs.values()) if isinstance(v, str) and v in types), None)
        self._calls.setdefault((module, layer_type), (_Call(args, kwargs, 8), output))

    def _try(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        for key, (_, given) in self._calls.items():
            others, found = _silenced((args, kwargs), given if isinstance(given, (tuple, list)) else (given,))
            if found and _differ(_first(module.forward(*others[0], **others[1])), _first(output)):
                self._users.setdefault(key, []).append(index)


def _differ(one: Tensor, other: Tensor) -> bool:
    """By more than the rounding of kernels that are not the same twice: zeros for cosines make attention another one."""
    return bool((one - other).abs().max() > 1e-4 * other.abs().max())


def _silenced(arguments: Any, given: Any) -> tuple[Any, bool]:
    """Arguments with zeros in the place of a rotary module's tensors, and whether they were among them."""
    if isinstance(arguments, Tensor):
        found = any(_same(arguments, tensor) for tensor in given if isinstance(tensor, Tensor))
        return (torch.zeros_like(arguments) if found else arguments), found
    if isinstance(arguments, Mapping):
        parts = {name: _silenced(value, given) for name, value in arguments.items()}
        return {name: value for name, (value, _) in parts.items()}, any(found for _, found in parts.values())
    if type(arguments) in (tuple, list):
        listed = [_silenced(value, given) for value in arguments]
        return type(arguments)(value for value, _ in listed), any(found for _, found in listed)
    return arguments, False


def _same(one: Tensor, other: Tensor) -> bool:
    moved = one.device != other.device and one.shape == other.shape  # blocks on several devices get copies
    return one is other or (moved and torch.equal(one.cpu(), other.cpu()))


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, (tuple, list)) else output


# -- what stands in them --------------------------------------------------------------------------


def _standing(slot: _Slot) -> Rotary:
    theta, attention_factor = _live(slot.module, slot.buffer)
    return Rotary(slot.path, slot.module, slot.layer_type, slot.buffer, slot.table, theta, attention_factor, slot.blocks)


def _live(module: nn.Module, buffer: str) -> tuple[Lanes, float]:
    values = module.get_buffer(buffer).detach().to("cpu", torch.float64).numpy()
    if buffer == SINUSOIDS:
        first = values[1, values.shape[1] // 2 :] + 1j * values[1, : values.shape[1] // 2]
        return np.angle(first), 1.0
    return values.copy(), float(getattr(module, buffer.removesuffix("inv_freq") + "attention_scaling", 1.0))


def _configured(model: Model, module: nn.Module, layer_type: str | None, buffer: str) -> RopeTable:
    """The configuration's table if it is what stands in the module, else what stands there."""
    original = buffer.removesuffix("inv_freq") + "original_inv_freq"  # where a table changes with the length
    theta, attention_factor = _live(module, original if hasattr(module, original) else buffer)
    precision = max(2.0**-20, torch.finfo(module.get_buffer(buffer).dtype).eps)
    base = float("nan")
    for config in (getattr(module, "config", None), model.module.config):
        try:
            table = table_of(config, layer_type)
        except (LensError, TypeError):
            continue
        base = table.base
        if len(table.theta) == len(theta) and np.allclose(table.theta, theta, rtol=precision, atol=0):
            return table
    return rope_table("explicit", base, theta=theta, attention_factor=attention_factor)
