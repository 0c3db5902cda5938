"""Attention patterns as the probes of attention take them: those of a run, or a bare array of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from lens.base.errors import InputError
from lens.base.provenance import library_versions
from lens.models.run import Run
from lens.probes.dataset import prompt_coordinates, provenance, variable

_DIMS = ("block", "head")
_SLACK = 2.0**-7  # by how much a row of bfloat16 weights may miss 1


@dataclass(frozen=True)
class Patterns:
    """Attention weights and what to call their axes.

    Attributes:
        weights: float64 `[..., query, key]` on the CPU.
        dims: names of the axes before `query`.
        coordinates: of these axes, and of `query` and `key`.
        facts: provenance.
    """

    weights: Tensor
    dims: tuple[str, ...]
    coordinates: dict[str, xr.Variable]
    facts: dict[str, Any]

    @property
    def size(self) -> int:
        return self.weights.shape[-1]

    @property
    def is_causal(self) -> bool:
        return not bool(self.weights.triu(1).any())


def read_patterns(patterns: Run | Tensor | np.ndarray) -> Patterns:
    """Attention weights of a run, or of an array.

    Args:
        patterns: a run with attention, or weights `[query, key]`, `[head, query, key]` or `[block, head, query, key]`; rows
            sum to 1, or to less where an outcome without a key takes its share (learned sinks).

    Raises:
        InputError: a run without patterns, weights that are not square, negative or not finite, or rows above 1.
    """
    if isinstance(patterns, Run):
        if patterns.attention is None:
            raise InputError("The run has no attention patterns", "a run that kept them", "model.run(text, attention=True)")
        weights = patterns.attention.detach().to("cpu", torch.float64)
        coordinates = {name: value for name, value in prompt_coordinates(patterns).items() if name != "layer"}
        dims, facts = _DIMS, provenance(patterns, "")
    else:
        bare = patterns if isinstance(patterns, Tensor) else torch.from_numpy(np.array(patterns, dtype=np.float64))
        weights = bare.detach().to("cpu", torch.float64)
        dims, facts, coordinates = _DIMS[len(_DIMS) + 2 - weights.ndim :], dict(library_versions()), {}
    if not 2 <= weights.ndim <= 4 or weights.shape[-1] != weights.shape[-2] or not weights.shape[-1]:
        needed = "[query, key] with as many keys as queries, after at most two more axes"
        raise InputError(f"The weights have the shape {tuple(weights.shape)}", needed, "patterns[block] for one block")
    _require_weights(weights)
    places = {name: variable((name,), np.arange(size), name) for name, size in zip(dims, weights.shape, strict=False)}
    return Patterns(weights, dims, {**places, **coordinates}, facts)


def reduced(weights: Tensor, *, drop_sink: bool = False, renormalise: bool = False) -> Tensor:
    """Patterns `[..., query, key]` without the first key, or with rows that sum to 1 again, or as they are."""
    if drop_sink:
        return without_first_key(weights)
    return _filled(weights) if renormalise else weights


def without_first_key(weights: Tensor) -> Tensor:
    """Patterns over all keys but the first, whose share each row gets back; a row that has nothing left is zero.

    The first query is left out as well, because it sees nothing else.
    """
    return _filled(weights[..., 1:, 1:])


def _filled(kept: Tensor) -> Tensor:
    sums = kept.sum(-1, keepdim=True)
    return torch.where(sums > 0, kept / sums.clamp(min=torch.finfo(kept.dtype).tiny), 0.0)


def _require_weights(weights: Tensor) -> None:
    if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
        raise InputError("Some weights are negative or not finite", "attention weights, after the softmax", "softmax(logits, -1)")
    most = float(weights.sum(-1).max())
    if most > 1 + _SLACK:
        raise InputError(f"A row of weights sums to {most:.4g}", "at most 1", "weights after the softmax, rows = queries")
