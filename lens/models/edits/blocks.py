"""A map in the place of a block, or of its attention or MLP."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from lens.base.errors import InputError, UnsupportedModelError
from lens.models.anatomy import hooks_on
from lens.models.model import Model, evaluation_mode
from lens.models.sites import added_stream

BlockPart = Literal["block", "attention", "mlp"]
StandIn = Callable[[Tensor], Tensor]
Forward = Callable[..., Any]


@contextmanager
def replace_block(model: Model, block: int, stand_in: StandIn, *, part: BlockPart = "block") -> Iterator[None]:
    """Put a map in the place of a block, or of its attention or MLP, for the body of the `with`.

    What is replaced does not run at all. Hooks on it fire as before, so that runs of the edited model keep
    all their residual states. Edits can be nested and may end in any order; of several on one block the
    one entered last counts.

    Args:
        model: the model, which is held for the whole body.
        block: 0 … blocks − 1.
        stand_in: from states `[..., d]` to states `[..., d]`, such as an affine map fitted to the block; the
            result is brought to the dtype and device that the model goes on with. For a block these are
            residual states; for a part of it, what enters the part (normed states, as a rule) and what the
            part computes. Where a family adds the stream inside the part (BLOOM), it is still added.
        part: `block`, `attention` or `mlp`. In families whose MLP is two linear layers of the block (OPT), the
            two and all between them are replaced.

    Raises:
        InputError: no such block or part, or a stand-in that gives states of another shape.
        UnsupportedModelError: a block without that part, or one that is run with a cache of keys and
            values, which a replaced block would leave empty.
    """
    ends = part_modules(model, block, part)
    place = f"block {block}" if part == "block" else f"the {part} of block {block}"
    name = getattr(stand_in, "__name__", type(stand_in).__name__)
    with model.lock.edit(f"{place} replaced by {name}"), ExitStack() as stack:
        place = f"{place[0].upper()}{place[1:]} of {model.name}"
        form = form_of(model, ends[1], place)
        for module, forward in _forwards(ends, stand_in, form, place):
            stack.enter_context(in_place_of(module, forward))
        yield


def part_modules(model: Model, block: int, part: str) -> tuple[nn.Module, nn.Module]:
    """Where states enter a block or its attention or MLP, and where they leave it: one module twice, as a rule.

    Raises:
        InputError: no such block or part. UnsupportedModelError: a block without that part.
    """
    if part not in get_args(BlockPart):
        raise InputError(f"The part is {part!r}", f"one of {', '.join(get_args(BlockPart))}", "part='block'")
    if not 0 <= block < model.n_layers:
        raise InputError(f"Block {block}", f"0 to {model.n_layers - 1}, the blocks of {model.name}", "another block")
    found = model.anatomy.blocks[block]
    if part == "block":
        return found.module, found.module
    attention = (found.attention, found.attention) if found.attention is not None else None
    ends = found.mlp if part == "mlp" else attention
    if ends is None:
        raise UnsupportedModelError(
            f"Block {block} of {model.name} ({type(found.module).__name__}) has no {part} of its own",
            f"a block whose {part} can be told apart",
            "part='block'",
        )
    return ends


# Stand-ins of one module: what was in the module's own dictionary before, then the edits, last one on top.
_STACKS: weakref.WeakKeyDictionary[nn.Module, list[Forward | None]] = weakref.WeakKeyDictionary()


@contextmanager
def in_place_of(module: nn.Module, forward: Forward) -> Iterator[None]:
    """Another `forward` for one module. Its hooks stay in force, because they are called around it."""
    stack = _STACKS.setdefault(module, [module.__dict__.get("forward")])  # accelerate leaves one there
    stack.append(forward)
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        stack.remove(forward)
        if stack[-1] is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = stack[-1]
        if len(stack) == 1:
            del _STACKS[module]


def beneath(module: nn.Module, forward: Forward) -> Forward:
    """What a `forward` that stands in a module stands upon at this moment: another edit's, or the module's own."""
    stack = _STACKS[module]
    return stack[stack.index(forward) - 1] or partial(type(module).forward, module)


def _forwards(ends: tuple[nn.Module, nn.Module], stand_in: StandIn, form: Form, place: str) -> list[tuple[nn.Module, Forward]]:
    """The modules to replace, and what each does instead."""
    first, last = ends

    def give(states: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        given = stand_in(states)
        _require_shape(given, states, place)
        given = given.to(states.device, form.dtype or states.dtype)
        stream = added_stream(last, args, kwargs)
        given = given if stream is None else given + stream
        return form.wrap(given)

    if first is last:
        return [(last, lambda *args, **kwargs: give(entering_states(args, kwargs, place), args, kwargs))]
    assert isinstance(first, nn.Linear)  # the anatomy names two modules only where they are linear layers
    width, entered = first.out_features, []

    def enter(*args: Any, **kwargs: Any) -> Tensor:
        entered[:] = [entering_states(args, kwargs, place)]
        # What stands between the two layers gets something to work on; nothing of it goes any further.
        return entered[0].new_zeros((*entered[0].shape[:-1], width))

    return [(first, enter), (last, lambda *args, **kwargs: give(entered.pop(), args, kwargs))]


def entering_states(args: Sequence[Any], kwargs: Mapping[str, Any], place: str) -> Tensor:
    """The states among a module's arguments."""
    if any(isinstance(value, Cache) for value in (*args, *kwargs.values())):
        raise UnsupportedModelError(
            f"{place} is replaced, and run with a cache of keys and values", "a run without one", "use_cache=False"
        )
    states = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(states, Tensor):
        raise UnsupportedModelError(f"{place} is called with {type(states).__name__}", "states", "another part or block")
    return states


def _require_shape(given: Any, states: Tensor, place: str) -> None:
    shape, wanted = tuple(getattr(given, "shape", ())), tuple(states.shape)
    if not isinstance(given, Tensor) or shape != wanted:
        found = f"The stand-in of {place} gives {type(given).__name__} {shape}"
        raise InputError(found, f"states of shape {wanted}, as it takes them", "a map fitted on this model's states")


@dataclass(frozen=True)
class Form:
    """How a module hands its states on.

    Attributes:
        container: `tuple` or `list` around them, or None where they are handed on bare.
        length: of the container. What else is in it (weights, a cache) nothing goes on with.
        dtype: of the states, where it is not that of the states taken in.
    """

    container: type | None
    length: int
    dtype: torch.dtype | None

    def wrap(self, states: Tensor) -> Any:
        """States as the module would hand them on."""
        return states if self.container is None else self.container([states, *[None] * (self.length - 1)])


_FORMS: weakref.WeakKeyDictionary[nn.Module, Form | None] = weakref.WeakKeyDictionary()


def form_of(model: Model, module: nn.Module, place: str) -> Form:
    """Found once for all parts of a model, by running two tokens."""
    if module not in _FORMS:
        parts = [(block.module, block.attention, block.mlp and block.mlp[1]) for block in model.anatomy.blocks]
        handles = [end.register_forward_hook(_note_form, with_kwargs=True) for ends in parts for end in ends if end is not None]
        with torch.no_grad(), evaluation_mode(model.module), hooks_on(handles):
            model.module(input_ids=torch.zeros((1, 2), dtype=torch.int64, device=model.device), use_cache=False)
    form = _FORMS.get(module)
    if form is None:
        found = f"{place} ({type(module).__name__}) does not hand on states"
        raise UnsupportedModelError(found, "a tensor, or a tuple that begins with one", "another part")
    return form


def _note_form(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    container = type(output) if type(output) in (tuple, list) else None
    given = output[0] if container is not None and output else output
    taken = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(given, Tensor) or not isinstance(taken, Tensor):
        _FORMS[module] = None
        return
    _FORMS[module] = Form(container, len(output), given.dtype if given.dtype != taken.dtype else None)
