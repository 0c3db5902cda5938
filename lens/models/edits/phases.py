"""Other angles, or another horn, in a live Three-Phase model."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lens.base.errors import InputError, UnsupportedModelError
from lens.models.model import Model
from lens.models.three_phase import PhaseRotation, ThreePhaseForCausalLM
from lens.models.three_phase.modeling import Horn
from lens.models.three_phase.transport import layers

Angles = Callable[[int, Float[Tensor, "phase pair"]], Float[Tensor, "phase pair"]]
Profile = Callable[[Float[Tensor, "*batch"]], Float[Tensor, "*batch"]]


@contextmanager
def phase_angles(model: Model, change: Angles, *, blocks: Sequence[int] | None = None) -> Iterator[None]:
    """Have blocks turn their phases by other angles, for the body of the `with`.

    What reads the angles of the model in the body (`stream_angles`, `absorb_rotation`, probes) finds the changed ones. Edits
    can be nested and may end in any order; each changes what it finds, and of several on one block the one entered
    last counts.

    Args:
        model: a Three-Phase model that rotates its stream; it is held for the whole body.
        change: from a block and its angles `[phase, pair]`, θ + 2πi/N in radians, to others.
        blocks: which; None for all.

    Raises:
        InputError: no such block, or angles that are not finite or of another shape.
        UnsupportedModelError: no Three-Phase model, or one without rotations.
    """
    rotations = _rotations(model)
    wanted = list(range(model.n_layers)) if blocks is None else [int(block) for block in blocks]
    if not wanted or not set(wanted) <= set(range(model.n_layers)):
        raise InputError(f"The blocks {wanted}", f"some of 0 to {model.n_layers - 1}", "blocks=None, for all")
    name = getattr(change, "__name__", type(change).__name__)
    with model.lock.edit(f"angles of {len(wanted)} blocks by {name}"), ExitStack() as stack:
        for block in wanted:
            with torch.no_grad():  # not around the body, which may end after an edit that was entered later
                former = rotations[block].angles()
                angles = change(block, former.clone())
            _require_like(angles, former, f"The angles of block {block}")
            stack.enter_context(_in_place_of(rotations[block], "angles", _always(angles.to(former))))
        yield


@contextmanager
def horn_profile(model: Model, profile: Profile) -> Iterator[None]:
    """Put other numbers in the place of the mean over the embedded token's channels, for the body of the `with`.

    Args:
        model: a Three-Phase model, whatever its horn; it is held for the whole body.
        profile: from positions, as numbers in the dtype that is computed in, to the mean that each gets.

    Raises:
        InputError, when the model runs: numbers that are not finite or of another shape.
        UnsupportedModelError: no Three-Phase model.
    """
    horn = _require_three_phase(model).model.horn
    assert isinstance(horn, Horn)

    def at(position_ids: Tensor, dtype: torch.dtype) -> Tensor:
        positions = position_ids.to(dtype)
        found = profile(positions)
        _require_like(found, positions, "The horn's numbers")
        return found.to(positions)

    name = getattr(profile, "__name__", type(profile).__name__)
    with model.lock.edit(f"horn replaced by {name}"), ExitStack() as stack:
        stack.enter_context(_in_place_of(horn, "at", at))
        stack.enter_context(_in_place_of(horn, "kind", "replaced"))
        yield


def _require_three_phase(model: Model) -> ThreePhaseForCausalLM:
    if not isinstance(model.module, ThreePhaseForCausalLM):
        raise UnsupportedModelError(f"{model.name} has no phases", "a Three-Phase model", "another model")
    return model.module


def _rotations(model: Model) -> list[PhaseRotation]:
    found = [layer.phase_rotation for layer in layers(_require_three_phase(model))]
    rotations = [rotation for rotation in found if rotation is not None]
    if len(rotations) < len(found):
        needed = "a Three-Phase model that rotates its stream"
        raise UnsupportedModelError(f"{model.name} has no rotation", needed, "phase_rotation='learned'")
    return rotations


def _require_like(given: Any, former: Tensor, what: str) -> None:
    if not isinstance(given, Tensor) or given.shape != former.shape or not bool(torch.isfinite(given).all()):
        shape = tuple(getattr(given, "shape", ()))
        raise InputError(f"{what} become {type(given).__name__} {shape}", f"a finite tensor {tuple(former.shape)}", "x + 0.1")


def _always(angles: Tensor) -> Callable[[], Tensor]:
    return lambda: angles


# By module and attribute: what was in the module's own dictionary before, then the edits, last one on top.
_STACKS: weakref.WeakKeyDictionary[nn.Module, dict[str, list[Any]]] = weakref.WeakKeyDictionary()
_ABSENT = object()


@contextmanager
def _in_place_of(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    stack = _STACKS.setdefault(module, {}).setdefault(name, [_Entry(module.__dict__.get(name, _ABSENT))])
    entry = _Entry(value)
    stack.append(entry)
    stack[-1].put(module, name)
    try:
        yield
    finally:
        stack.remove(entry)
        stack[-1].put(module, name)
        if len(stack) == 1:
            del _STACKS[module][name]


class _Entry:
    """A value that is told from others by being this one, because equal ones can be put in twice."""

    def __init__(self, value: Any):
        self.value = value

    def put(self, module: nn.Module, name: str) -> None:
        if self.value is _ABSENT:
            module.__dict__.pop(name, None)
        else:
            module.__dict__[name] = self.value
