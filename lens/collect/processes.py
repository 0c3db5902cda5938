"""Sharing one pass between the processes of a `torchrun`: on one machine, or on several.

Every process runs its share of the batches and keeps its own state on disk. At the end each one's moments travel to all
others and are added in the order of ranks, by the same `+` that merges batches and files, so that all end with the same bits.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lens.moments import Moments

_Item = TypeVar("_Item")
_LAUNCHED = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}  # variables that every launcher sets
# A process that died is noticed by the launcher. One that is slow, or waits for its turn at the cache, is waited for.
_PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class Processes:
    """The processes that share a pass: `count` of them, this one being number `rank`, and number `local_rank` on its machine."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def kind(self) -> str:
        """What tells this process's files from those of the others, and of passes shared differently."""
        return "" if self.count == 1 else f"-{self.rank}-of-{self.count}"

    def share(self, items: Sequence[_Item]) -> list[_Item]:
        """This process's part of the work: every `count`-th item."""
        return list(items[self.rank :: self.count])

    def all_agree(self, answer: bool, device: torch.device) -> bool:
        """Whether every process answers yes; none goes on before all have answered."""
        if self.count == 1:
            return answer
        found = torch.tensor(int(answer), device=device)
        dist.all_reduce(found, op=dist.ReduceOp.MIN)
        return bool(found.item())

    def from_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors with those of process 0."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def merge(self, own: Moments) -> Moments:
        """Moments of all processes together, the same in each."""
        if self.count == 1:
            return own
        merged = None
        for rank in range(self.count):
            theirs = _sent(own, rank, mine=rank == self.rank)
            merged = theirs if merged is None else merged + theirs
        assert merged is not None  # there is at least one process
        return merged


def current_processes() -> Processes:
    """The process group of a `torchrun`, joined on the first call; this process alone outside of one."""
    if not dist.is_available():
        return Processes()
    if not dist.is_initialized():
        if not os.environ.keys() >= _LAUNCHED or int(os.environ["WORLD_SIZE"]) < 2:
            return Processes()
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
        atexit.register(_leave)
    return Processes(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", dist.get_rank())))


def _leave() -> None:
    """Leave the group that we joined, if its user has not: some backends warn of one that is left standing."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _sent(own: Moments, rank: int, *, mine: bool) -> Moments:
    """One process's moments, as every process receives them; the own ones give the shapes."""

    def moved(tensor: Tensor) -> Tensor:
        copy = tensor.clone() if mine else torch.empty_like(tensor)
        dist.broadcast(copy, src=rank)
        return copy

    def all_of(matrices: Any) -> dict[Any, Tensor]:
        return {key: moved(matrices[key]) for key in sorted(matrices)}

    reasons = sorted(own.dropped)
    counts = moved(torch.tensor([own.count, *(own.dropped[reason] for reason in reasons)], device=own.mean.device)).tolist()
    return replace(
        own,
        count=counts[0],
        dropped=dict(zip(reasons, counts[1:], strict=True)),
        mean=moved(own.mean),
        within=all_of(own.within),
        across=all_of(own.across),
        shuffled=all_of(own.shuffled),
    )
