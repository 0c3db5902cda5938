"""Blocks in another order: removed, exchanged, or side by side on one input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from lens.base.errors import InputError, UnsupportedModelError
from lens.models.edits.blocks import Form, beneath, entering_states, form_of, in_place_of
from lens.models.model import Model

_COMBINE = ("sum", "mean")
_Call = tuple[tuple[Any, ...], dict[str, Any]]


@contextmanager
def remove_blocks(model: Model, blocks: Sequence[int]) -> Iterator[None]:
    """Hand on what enters some blocks as what leaves them, for the body of the `with`.

    Args:
        model: the model, which is held for the whole body.
        blocks: which; each 0 … blocks − 1.

    Raises:
        InputError: no block, one that is not there, or one twice. UnsupportedModelError: a run with a cache.
    """
    chosen = _require_blocks(model, blocks, 1)
    with _rearranged(model, dict.fromkeys(chosen, ()), "sum", f"{_named(chosen)} removed"):
        yield


@contextmanager
def reorder_blocks(model: Model, order: Sequence[int]) -> Iterator[None]:
    """Run the blocks in another order, for the body of the `with`.

    Residual state ℓ of a run is then what leaves the ℓth block that runs. What the parts of a block compute still counts as
    that block's own.

    Args:
        model: the model, which is held for the whole body.
        order: all blocks, the one that runs first at the front.

    Raises:
        InputError: not every block once.
        UnsupportedModelError: a run with a cache, or one where a moved block would be given another mask or other rotary
            tables than in its own place (sliding windows in some blocks only).
    """
    if sorted(order) != list(range(model.n_layers)):
        found = f"The order {list(order)}"
        raise InputError(found, f"each of 0 to {model.n_layers - 1} once", "lens.edits.swap_blocks for two of them")
    moved = {slot: (int(block),) for slot, block in enumerate(order) if slot != block}
    with _rearranged(model, moved, "sum", f"order of blocks {', '.join(str(block) for (block,) in moved.values())}"):
        yield


@contextmanager
def swap_blocks(model: Model, one: int, other: int) -> Iterator[None]:
    """Exchange two blocks, for the body of the `with`; see `reorder_blocks`.

    Raises:
        InputError: no such blocks, or twice the same. UnsupportedModelError: see `reorder_blocks`.
    """
    first, second = _require_blocks(model, (one, other), 2)
    with _rearranged(model, {first: (second,), second: (first,)}, "sum", f"blocks {first} and {second} swapped"):
        yield


@contextmanager
def run_in_parallel(model: Model, blocks: Sequence[int], *, combine: str = "sum") -> Iterator[None]:
    """Run neighbouring blocks on one input, for the body of the `with`.

    With h what enters the first of them and Bᵢ the blocks, what leaves them is `h + Σ (Bᵢ(h) − h)`: every block adds to the
    stream what it makes of the same states. Residual states between them are the same as behind the last of them.

    Args:
        model: the model, which is held for the whole body.
        blocks: two or more that follow each other.
        combine: `sum`, as in FlattenGPT (arXiv 2602.08858), or `mean` of the outputs, as in Sun et al., "Transformer Layers as
            Painters" (arXiv 2407.09298): `h + Σ (Bᵢ(h) − h)/n`.

    Raises:
        InputError: fewer than two blocks, or such that do not follow each other. UnsupportedModelError: see `reorder_blocks`.
    """
    chosen = _require_blocks(model, blocks, 2)
    if combine not in _COMBINE:
        raise InputError(f"combine is {combine!r}", f"one of {', '.join(_COMBINE)}", "combine='sum'")
    if chosen != tuple(range(chosen[0], chosen[-1] + 1)):
        raise InputError(f"The blocks {list(chosen)}", "blocks that follow each other, in order", f"blocks={chosen[0]}, …")
    slots: dict[int, tuple[int, ...]] = {chosen[0]: chosen, **dict.fromkeys(chosen[1:], ())}
    with _rearranged(model, slots, combine, f"{_named(chosen)} in parallel ({combine})"):
        yield


@contextmanager
def change_states(model: Model, layers: Sequence[int], change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Change residual states on their way, for the body of the `with`.

    Args:
        model: the model, which is held for the whole body.
        layers: after which blocks: layer ℓ is what block ℓ − 1 hands on; 1 … blocks.
        change: from states `[sequence, position, d]` to states of that shape, not in place; the result is brought to their dtype
            and device.

    Raises:
        InputError: no such layer, or a change that gives another shape.
    """
    chosen = _require_blocks(model, layers, 1, "layer")
    name = getattr(change, "__name__", type(change).__name__)
    with model.lock.edit(f"states of layers {', '.join(map(str, chosen))} changed by {name}"), ExitStack() as stack:
        for layer in chosen:
            stack.enter_context(_changed_output(model, layer, change))
        yield


@contextmanager
def _changed_output(model: Model, layer: int, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    module = model.anatomy.blocks[layer - 1].module

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = beneath(module, forward)(*args, **kwargs)
        states = _first(output)
        given = change(states)
        if tuple(given.shape) != tuple(states.shape):
            found = f"The change of layer {layer} of {model.name} gives states of shape {tuple(given.shape)}"
            raise InputError(found, f"{tuple(states.shape)}, as it takes them", "a change of values alone")
        given = given.to(states.device, states.dtype)
        return type(output)([given, *output[1:]]) if isinstance(output, (tuple, list)) else given

    with in_place_of(module, forward):
        yield


@contextmanager
def _rearranged(model: Model, slots: Mapping[int, tuple[int, ...]], combine: str, words: str) -> Iterator[None]:
    """Run other blocks, or none, in the place of some.

    Args:
        slots: place in the stack to the blocks that run there on the same input; these are among the places themselves.
        combine: how what they give is put together.
        words: what the edit is.
    """
    modules = {slot: model.anatomy.blocks[slot].module for slot in slots}
    forwards: dict[int, Callable[..., Any]] = {}
    calls: dict[int, _Call] = {}

    def forward_at(slot: int, place: str, form: Form) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            states = entering_states(args, kwargs, place)
            if slot == min(slots):
                calls.clear()
            calls[slot] = (args[1:], {name: value for name, value in kwargs.items() if name != "hidden_states"})
            _require_same_calls(slot, slots, calls, place)
            if not slots[slot]:
                return form.wrap(states)
            found = []
            for block in slots[slot]:
                taken = states.clone()  # some families work on their states in place
                given, named = ((taken, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": taken})
                found.append(beneath(modules[block], forwards[block])(*given, **named))
            return found[0] if len(found) == 1 else form.wrap(_combined(states, found, combine))

        return forward

    with model.lock.edit(words), ExitStack() as stack:
        for slot, module in modules.items():
            place = f"Block {slot} of {model.name}"
            forwards[slot] = forward_at(slot, place, form_of(model, module, place))
        for slot, module in modules.items():
            stack.enter_context(in_place_of(module, forwards[slot]))
        yield


def _combined(states: Tensor, found: Sequence[Any], combine: str) -> Tensor:
    outputs = [_first(one).to(states.device) for one in found]
    if combine == "mean":
        return torch.stack(outputs).mean(0)
    total = outputs[0]
    for one in outputs[1:]:
        total = total + (one - states)
    return total


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, (tuple, list)) else output


def _require_same_calls(slot: int, slots: Mapping[int, tuple[int, ...]], calls: Mapping[int, _Call], place: str) -> None:
    """What a moved block is given beside states has to be what it is given in its own place."""
    for other, call in calls.items():
        if other != slot and (slot in slots[other] or other in slots[slot]) and not _same(call, calls[slot]):
            raise UnsupportedModelError(
                f"{place} is given another mask, or other rotary tables, than block {other}", "the same", "other blocks"
            )


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[name]) for name, value in one.items())
    return bool(one == other)


def _require_blocks(model: Model, blocks: Sequence[int], least: int, what: str = "block") -> tuple[int, ...]:
    chosen = tuple(int(block) for block in blocks)
    first = 1 if what == "layer" else 0
    last = model.n_layers - 1 + first
    if len(chosen) < least or len(set(chosen)) < len(chosen) or not all(first <= one <= last for one in chosen):
        needed = f"{least} or more of {first} to {last}, each once"
        raise InputError(f"The {what}s {list(chosen)} of {model.name}", needed, f"another {what}")
    return chosen


def _named(blocks: Sequence[int]) -> str:
    return f"block{'s' * (len(blocks) > 1)} {', '.join(map(str, blocks))}"
