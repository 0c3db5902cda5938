"""Many ways from the same queries and keys to an attention pattern, measured by the same numbers.

A softmax is one of them. Others keep the queries and keys and change the function between, and some ignore both and mix
positions by a fixed rule. What they do to rank, entropy and sinks shows best where everything else is equal: on one head of a
trained model, which was trained with the softmax alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from lens.base.errors import InputError
from lens.base.provenance import library_versions
from lens.models.heads import HeadStates, turn_lanes
from lens.models.operators import OPERATORS, AttentionInput, Operator, Softmax, operator_weights
from lens.probes.dataset import exact, texts, variable
from lens.probes.singular_values import contraction, dobrushin, eigenvalues, spectrum_of_matrix

SOURCE = (
    "LSSA: arXiv 2501.13428; LLN: arXiv 2311.13541; URPE: arXiv 2205.13401; ALiBi: arXiv 2108.12409; low rank: arXiv 2006.04768; "
    "measures as in attention_spectrum and attention_entropy"
)
ZOO_MEASURES: dict[str, tuple[str, str]] = {
    "mean_entropy": ("mean entropy of a query's attention", "nats"),
    "effective_rank": ("effective rank", "1"),
    "stable_rank": ("stable rank", "1"),
    "participation_ratio": ("participation ratio of the singular values", "1"),
    "energy_rank": ("effective rank of the energy", "1"),
    "numerical_rank": ("numerical rank", "1"),
    "first_token": ("mean attention to the first token", "1"),
    "previous_token": ("mean attention to the token before", "1"),
    "same_token": ("mean attention to the token itself", "1"),
    "top_key_share": ("largest mean share of one key", "1"),
    "key_entropy": ("entropy of the mean over queries", "nats"),
    "contraction": ("largest stretch of what differs between positions", "1"),
    "dobrushin": ("largest distance of two queries' patterns", "1"),
    "gap": ("1 less the second largest eigenvalue", "1"),
    "moved": ("attention that lies elsewhere than under the softmax", "1"),
    "row_sum_least": ("smallest sum of a row", "1"),
    "row_sum_most": ("largest sum of a row", "1"),
    "least_weight": ("smallest weight on a key that is seen", "1"),
    "unseen": ("weight on keys that the mask hides, mean over rows", "1"),
}
"""What every operator is measured by, in words, with units."""

ADJUSTABLE = {
    "softmax": "temperature",
    "re-weighted softplus": "power",
    "log-normal + diagonal": "diagonal",
    "low rank": "rank",
    "low rank, masked": "rank",
}
"""Operators of `OPERATORS` that have one number to turn, and its name."""

_SHARES = ("mean_entropy", "top_key_share", "key_entropy", "dobrushin", "gap")
_SLACK = 1e-6  # of single precision, in a sum over a row


def operator_zoo(
    given: HeadStates | AttentionInput,
    head: int = 0,
    operators: Mapping[str, Operator] | None = None,
    *,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """Patterns, singular values and all measures of many operators on one head's queries and keys.

    Args:
        given: a block's states from `lens.head_states`, whose window and learned sinks are kept, or bare arrays from
            `bare_input`.
        head: which query head.
        operators: names and operators; by default every one of `lens.operators.OPERATORS` as it comes.
        check: called before every operator; raising from it stops the work.

    Returns:
        Dataset over `operator`, `query`, `key` and `rank` (which counts from 1), in float64:

        - `attention[operator, query, key]`, `singular_value[operator, rank]`, descending;
        - each of `ZOO_MEASURES` over `[operator]`. What is defined for shares alone (entropies, top key, Dobrushin's coefficient,
          gap) is NaN where weights are negative or a row sums to more than 1; `is_attention` says where they are shares.
          `moved` is half of the mean sum of |difference| to the softmax;
        - coordinate `settings`, the operator with its parameters.

    Cost: `O(positions³)` an operator. Memory: `positions²` float64 for each.

    Raises:
        InputError: no operator, no such head, or what an operator refuses.
    """
    shared = head_input(given, head) if isinstance(given, HeadStates) else _one_head(given, head)
    chosen = {name: make() for name, make in OPERATORS.items()} if operators is None else dict(operators)
    if not chosen:
        raise InputError("There is no operator", "one or more, with names", "operators=None, for all")
    softmax = _pattern(Softmax(), shared)
    rows = []
    for operator in chosen.values():
        if check is not None:
            check()
        rows.append(_row(_pattern(operator, shared), softmax, shared.seen))
    size = softmax.shape[-1]
    facts = {"source": SOURCE, "probe": "operator_zoo", "positions": size, "width": shared.query.shape[-1], "head": head}
    facts |= {"block": given.block} if isinstance(given, HeadStates) else {}

    def column(name: str) -> np.ndarray:
        return np.stack([np.asarray(row[name], dtype=np.float64) for row in rows])

    return xr.Dataset(
        {
            "attention": exact(("operator", "query", "key"), column("attention"), "attention"),
            "singular_value": exact(("operator", "rank"), column("singular_value"), "singular value"),
            "is_attention": variable(("operator",), column("is_attention").astype(int), "whether rows are shares, 1 or 0"),
            **{name: exact(("operator",), column(name), *words) for name, words in ZOO_MEASURES.items()},
        },
        {
            "operator": texts(("operator",), list(chosen), "how queries and keys become a pattern"),
            "settings": texts(("operator",), [repr(operator) for operator in chosen.values()], "operator with its parameters"),
            "rank": variable(("rank",), np.arange(1, size + 1), "rank of the singular value"),
            "query": variable(("query",), np.arange(size), "position of the query"),
            "key": variable(("key",), np.arange(size), "position of the key"),
        },
        {**facts, **library_versions()},
    )


def adjusted(name: str, value: float | int | None = None) -> Operator:
    """An operator of `OPERATORS` with its number set, or as it comes.

    Raises:
        InputError: no such operator, or a number for one that has none.
    """
    if name not in OPERATORS:
        raise InputError(f"The operator is {name!r}", f"one of {', '.join(OPERATORS)}", f"operator={next(iter(OPERATORS))!r}")
    found: Any = OPERATORS[name]()
    if value is None:
        return found
    if name not in ADJUSTABLE:
        raise InputError(f"{name} has no number to set", f"one of {', '.join(ADJUSTABLE)}", "parameter=None")
    return replace(found, **{ADJUSTABLE[name]: value})


def head_input(states: HeadStates, head: int) -> AttentionInput:
    """What operators are given of one head, in float64: logits `[1, query, key]`, rotated query and key, mask and sink."""
    key = states.key[states.kv_head_of(head)]
    turn = (states.rotary, states.layout, states.theta, states.attention_factor)
    size = key.shape[0]
    offset = torch.arange(size)[:, None] - torch.arange(size)
    return AttentionInput(
        logits=torch.from_numpy(np.array(states.logits(head)))[None],
        query=torch.from_numpy(turn_lanes(states.query[head], *turn))[None],
        key=torch.from_numpy(turn_lanes(key, *turn))[None],
        seen=(offset >= 0) & (offset < (states.window or size)),
        sinks=None if states.sinks is None else states.sinks[head : head + 1].double(),
        heads=(head,),
        n_heads=len(states.query),
    )


def bare_input(
    query: Tensor | np.ndarray, key: Tensor | np.ndarray, *, scaling: float | None = None, causal: bool = True
) -> AttentionInput:
    """What the operators are given of bare queries and keys, in float64.

    Args:
        query, key: `[position, width]`, or `[head, position, width]`.
        scaling: of the logits; by default 1/√width.
        causal: whether a query sees no later key.

    Raises:
        InputError: shapes that do not fit.
    """
    sides = [torch.as_tensor(side).detach().to("cpu", torch.float64) for side in (query, key)]
    if sides[0].shape != sides[1].shape or sides[0].ndim not in (2, 3):
        shapes = " and ".join(str(tuple(side.shape)) for side in sides)
        raise InputError(f"Queries and keys have the shapes {shapes}", "[head, position, width] for both", "repeated keys")
    queries, keys = (side if side.ndim == 3 else side[None] for side in sides)
    size, width = queries.shape[1:]
    seen = torch.ones(size, size, dtype=torch.bool)
    logits = queries @ keys.transpose(-1, -2) * (width**-0.5 if scaling is None else scaling)
    return AttentionInput(logits=logits, query=queries, key=keys, seen=seen.tril() if causal else seen)


def _one_head(given: AttentionInput, head: int) -> AttentionInput:
    heads = len(given.logits)
    if not 0 <= head < heads or given.logits.ndim != 3:
        shape = tuple(given.logits.shape)
        raise InputError(f"Head {head} of logits of shape {shape}", f"[head, query, key] and a head below {heads}", "head=0")
    sides = {name: getattr(given, name)[head : head + 1] for name in ("logits", "query", "key")}
    sinks = None if given.sinks is None else given.sinks[head : head + 1]
    return AttentionInput(**sides, seen=given.seen, sinks=sinks, heads=(head,), n_heads=heads)


def _pattern(operator: Operator, given: AttentionInput) -> Tensor:
    return operator_weights(operator, given)[0]


def _row(pattern: Tensor, softmax: Tensor, seen: Tensor) -> dict[str, Any]:
    """Everything that is known of one pattern `[query, key]`, by the names of the Dataset."""
    pattern = pattern.double()
    sums = pattern.sum(-1)
    visible = seen.expand_as(pattern)
    shares = bool((pattern >= 0).all() and sums.max() <= 1 + _SLACK)
    found = {
        "attention": pattern.numpy(),
        "is_attention": shares,
        "first_token": pattern[1:, 0].mean(),
        "previous_token": pattern.diagonal(-1).mean(),
        "same_token": pattern.diagonal().mean(),
        "moved": (pattern - softmax).abs().sum(-1).mean() / 2,
        "row_sum_least": sums.min(),
        "row_sum_most": sums.max(),
        "least_weight": pattern[visible].min(),
        "unseen": pattern.masked_fill(visible, 0.0).abs().sum(-1).mean(),
    }
    spectrum = spectrum_of_matrix(pattern.numpy())
    found |= {"singular_value": spectrum.singular, "contraction": contraction(pattern.numpy()), **spectrum.ranks}
    return found | (_of_shares(pattern) if shares else dict.fromkeys(_SHARES, np.nan))


def _of_shares(pattern: Tensor) -> dict[str, Any]:
    """What is defined for shares alone, as `attention_entropy` and `attention_spectrum` have it."""
    lacking = (1 - pattern.sum(-1)).clamp(min=0)
    lacking = torch.where(lacking > _SLACK, lacking, 0.0)  # what rounding leaves of a row is no outcome
    mean = pattern.mean(-2)
    sizes = np.abs(eigenvalues(pattern.numpy()))
    return {
        "mean_entropy": (torch.special.entr(pattern).sum(-1) + torch.special.entr(lacking)).mean(),
        "top_key_share": mean.max(),
        "key_entropy": torch.special.entr(mean).sum() + torch.special.entr(lacking.mean()),
        "dobrushin": dobrushin(pattern.numpy()),
        "gap": 1 - np.sort(sizes)[-2],
    }
