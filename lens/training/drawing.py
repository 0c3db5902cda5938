"""Random numbers of one's own: what is drawn inside comes from a seed, whatever other threads draw meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class DrawnFrom(TorchDispatchMode):
    """Context in which this thread's random numbers of the CPU are those that follow `torch.manual_seed(seed)`.

    torch has one generator for all threads. Seeding it from a thread that works in the background would change what a cell
    draws at that moment, and the cell's draws would change the weights that are made here. The generator of this context
    is nobody else's, and gives the same bits.

    Args:
        seed: of the generator.
    """

    def __init__(self, seed: int):
        super().__init__()
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if any(argument.name == "generator" for argument in func._schema.arguments) and given.get("generator") is None:
            given["generator"] = self._generator
        return func(*args, **given)
