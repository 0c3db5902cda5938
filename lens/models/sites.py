"""What enters and leaves the parts of every block (attention, MLP, norms), captured in a forward pass."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lens.base.errors import AnatomyError, InputError
from lens.models.anatomy import Anatomy, Block

_NORM = re.compile(r"norm_(\d+)")


@dataclass(frozen=True)
class Site:
    """One part of one block: its input is what enters `first`, its output what leaves `last`."""

    path: str
    first: nn.Module
    last: nn.Module


def block_parts(anatomy: Anatomy) -> tuple[str, ...]:
    """Parts that every block has: some of `attention`, `mlp`, and `norm_0`, `norm_1`, … in order of definition."""
    norms = min(len(block.norms) for block in anatomy.blocks)
    named = [name for name in ("attention", "mlp") if all(getattr(block, name) is not None for block in anatomy.blocks)]
    return (*named, *(f"norm_{number}" for number in range(norms)))


def sites(anatomy: Anatomy, part: str) -> tuple[Site, ...]:
    """That part of every block, first block to last.

    Raises:
        InputError: a part that some block does not have.
    """
    if part not in block_parts(anatomy):
        known = ", ".join(block_parts(anatomy)) or "none: its parts could not be told apart"
        raise InputError(f"The part {part!r} is not in every block", f"one of {known}", "parts=('residual', 'mlp')")
    return tuple(_site(block, part) for block in anatomy.blocks)


def _site(block: Block, part: str) -> Site:
    norm = _NORM.fullmatch(part)
    if norm is not None:
        module = block.norms[int(norm[1])]
        return Site(f"{block.path}, {part}", module, module)
    first, last = (block.attention, block.attention) if part == "attention" else block.mlp  # type: ignore[misc]
    assert first is not None  # checked by the caller
    assert last is not None
    return Site(f"{block.path}, {part}", first, last)


def added_stream(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The residual stream where a part is given it besides its own input and adds it itself (BLOOM); else None."""
    signature = inspect.signature(type(module).forward)
    if "residual" not in signature.parameters:
        return None
    return signature.bind(module, *args, **kwargs).arguments["residual"]


class SiteCapture:
    """Hooks that copy what enters and leaves one part of every block.

    Args:
        found: the part, block by block.
        shape: sequences and positions.
        device: where the states are kept.
    """

    def __init__(self, found: Sequence[Site], shape: Sequence[int], device: torch.device):
        self.found, self.shape, self.device = found, tuple(shape), device
        self._states: Tensor | None = None
        self._seen: set[int] = set()
        self.handles: list[Any] = []
        for number, site in enumerate(found):
            enters, leaves = partial(self._enters, number), partial(self._leaves, len(found) + number)
            self.handles.append(site.first.register_forward_pre_hook(enters, with_kwargs=True))
            self.handles.append(site.last.register_forward_hook(leaves, with_kwargs=True))

    @property
    def states(self) -> Tensor:
        """`[state, sequence, position, d]`: inputs of all blocks' parts, then outputs of all.

        Raises:
            AnatomyError: a part that did not run.
        """
        missing = set(range(2 * len(self.found))) - self._seen
        if missing:
            raise self._unreadable(min(missing), "did not run")
        assert self._states is not None  # all places were filled
        return self._states

    def _enters(self, place: int, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._keep(place, args[0] if args else kwargs.get("hidden_states"))

    def _leaves(self, place: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        state = output[0] if isinstance(output, (tuple, list)) else output
        stream = added_stream(module, args, kwargs)
        self._keep(place, state if stream is None else state - stream)

    def _keep(self, place: int, state: Any) -> None:
        shape = tuple(getattr(state, "shape", ()))
        width = shape[-1] if self._states is None and shape else self._width
        # Some families flatten sequences and positions into one axis, which does no harm.
        if shape not in ((*self.shape, width), (math.prod(self.shape), width)):
            raise self._unreadable(place, f"handles states of shape {shape}")
        if place in self._seen:
            raise self._unreadable(place, "runs more than once")
        if self._states is None:
            self._states = torch.empty((2 * len(self.found), *self.shape, width), dtype=state.dtype, device=self.device)
        if state.dtype.itemsize > self._states.dtype.itemsize:
            self._states = self._states.to(state.dtype)  # some norms widen what they read
        self._seen.add(place)
        self._states[place].copy_(state.reshape((*self.shape, width)))

    @property
    def _width(self) -> int:
        return self._states.shape[-1] if self._states is not None else 0

    def _unreadable(self, place: int, why: str) -> AnatomyError:
        needed = f"one call with states of shape {(*self.shape, self._width or 'd')}, as in every block"
        return AnatomyError(f"{self.found[place % len(self.found)].path} {why}", needed, "parts=('residual',)")
