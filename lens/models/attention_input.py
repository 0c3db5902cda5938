"""What an attention operator is given, and what it has to give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lens.base.errors import InputError


@dataclass(frozen=True, eq=False)
class AttentionInput:
    """What an operator is given: one block, with any leading batch axes.

    Queries are the last positions of the keys: query i of m stands at position `keys − m + i`.

    Attributes:
        logits: `[..., head, query, key]`, scaled and soft-capped, before any mask.
        query: `[..., head, query, width]`, as the model's kernel got it, after rotation.
        key: `[..., head, key, width]`, the same, repeated to the query heads.
        seen: bool, `[..., query, key]` broadcast to the logits: what the model's own mask allows.
        sinks: `[head]` learned logits of an outcome without a key, or None.
        heads: which heads of the block these are, where they are not all; operators with a number for each head need it.
        n_heads: heads of the block, where these are not all.
    """

    logits: Tensor
    query: Tensor
    key: Tensor
    seen: Tensor
    sinks: Tensor | None = None
    heads: tuple[int, ...] | None = None
    n_heads: int | None = None

    @property
    def distance(self) -> Tensor:
        """`[query, key]` int64, how many tokens a key lies before a query; negative after it."""
        queries, keys = self.logits.shape[-2:]
        place = torch.arange(keys, device=self.logits.device)
        return place[keys - queries :, None] - place

    @property
    def visible(self) -> Tensor:
        """`[..., query, 1]`, how many keys a query sees, in the logits' dtype."""
        return self.seen.sum(-1, keepdim=True).to(self.logits.dtype)

    def of_heads(self, values: Tensor, what: str) -> Tensor:
        """Those of the given heads, from one entry for each head of the block."""
        count = self.logits.shape[-3] if self.n_heads is None else self.n_heads
        if values.shape[0] != count:
            found = f"There are {what} for {values.shape[0]} heads"
            raise InputError(found, f"{count}, one for each head of the block", "an operator made for this model")
        return values if self.heads is None else values[list(self.heads)]


# To weights `[..., head, query, key]`: 0 where not seen. Rows need not sum to one.
Operator = Callable[[AttentionInput], Tensor]


def weights(operator: Operator, logits: Tensor, query: Tensor, key: Tensor, seen: Tensor, sinks: Tensor | None = None) -> Tensor:
    """Weights of an operator, `[..., head, query, key]`, in the logits' dtype.

    Args:
        operator: one of this module, or any callable of an `AttentionInput`.
        logits: `[..., head, query, key]` float32 or float64, scaled, before any mask.
        query: `[..., head, query, width]`, after rotation.
        key: `[..., head, key, width]`, after rotation, for each query head.
        seen: bool, `[query, key]` or more axes broadcast to the logits. A query that sees nothing gets zeros.
        sinks: `[head]` logits of an outcome without a key, or None.

    Raises:
        InputError: shapes or dtypes that do not fit, or an operator that gives weights of another shape, that are not
            finite, or of keys that are not seen, which only an operator that says so by `masked = False` may (`LowRank`).
    """
    _require_shapes(logits, query, key, seen)
    if sinks is not None and tuple(sinks.shape) != (logits.shape[-3],):
        raise InputError(f"The sinks have shape {tuple(sinks.shape)}", f"({logits.shape[-3]},), one for each head", "sinks=None")
    return operator_weights(operator, AttentionInput(logits, query, key, seen, sinks))


def operator_weights(operator: Operator, given: AttentionInput) -> Tensor:
    """Weights of an operator, proved to be weights; see `weights`.

    Raises:
        InputError: weights of another shape, that are not finite, or of keys that are not seen.
    """
    if isinstance(operator, type) or not callable(operator):
        named = getattr(operator, "__name__", operator)
        found = f"The operator is {'the class ' if isinstance(operator, type) else ''}{named!r}"
        raise InputError(found, "an operator, with its parameters", "Softmax(), or OPERATORS['softmax']()")
    found, name = operator(given), operator_name(operator)
    if not isinstance(found, Tensor) or found.shape != given.logits.shape:
        shape = tuple(getattr(found, "shape", ()))
        raise InputError(
            f"{name} gives {type(found).__name__} {shape}", f"weights {tuple(given.logits.shape)}", "another operator"
        )
    if not bool(found.isfinite().all()):
        raise InputError(f"{name} gives weights that are not finite", "numbers", "smaller parameters, or float64")
    if getattr(operator, "masked", True) and bool((found * ~given.seen).any()):
        raise InputError(f"{name} gives weight to keys that the model's mask hides", "zeros there", "masking it by given.seen")
    return found.to(given.logits.dtype)


def operator_name(operator: Operator) -> str:
    """In words: the operator's own `name`, or that of its function or class."""
    named = getattr(operator, "name", None) or getattr(operator, "__name__", None)
    return str(named or type(operator).__name__)


def _require_shapes(logits: Tensor, query: Tensor, key: Tensor, seen: Tensor) -> None:
    if logits.dtype not in (torch.float32, torch.float64) or {query.dtype, key.dtype} != {logits.dtype}:
        dtypes = ", ".join(str(side.dtype).removeprefix("torch.") for side in (logits, query, key))
        raise InputError(f"Logits, queries and keys are {dtypes}", "float32 or float64 for all three", "logits.float()")
    shape = tuple(logits.shape)
    fits = logits.ndim >= 3 and query.shape[:-1] == logits.shape[:-1]
    fits = fits and key.shape[:-1] == (*shape[:-2], shape[-1]) and key.shape[-1] == query.shape[-1]
    if not fits or shape[-2] > shape[-1]:
        found = f"Logits {shape}, queries {tuple(query.shape)} and keys {tuple(key.shape)}"
        needed = "[..., head, query, key], [..., head, query, width] and [..., head, key, width], and no more queries than keys"
        raise InputError(found, needed, "keys repeated to the query heads")
    try:
        wide = torch.broadcast_shapes(seen.shape, shape) == shape
    except RuntimeError:
        wide = False
    if seen.dtype != torch.bool or not wide:
        raise InputError(
            f"What is seen is {seen.dtype} {tuple(seen.shape)}", f"bool, broadcast to {shape}", "a mask [query, key]"
        )
