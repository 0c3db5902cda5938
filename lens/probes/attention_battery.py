"""Every number that is told of a head's attention, for all heads of all blocks, one head at a time.

Logits of a head are computed once, and so is its pattern; spectra, entropies, the shape of the logits and their profile by
offset are read off these two. What each number is, and how it is computed, stands with the probes that give it alone:
`attention_spectrum`, `attention_entropy`, `log_normality`, `offset_profile`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Float64

from lens.base.errors import InputError
from lens.base.provenance import library_versions
from lens.models.heads import HeadStates, head_states
from lens.models.model import Model
from lens.probes import attention_entropy, attention_spectrum, log_normality, offset_profile
from lens.probes.dataset import exact, texts, variable
from lens.probes.offset_profile import profile_of
from lens.probes.patterns import reduced
from lens.probes.positional_kernel import diagonal_score, previous_token_score
from lens.probes.singular_values import RANKS, SAMPLED, TOP, contraction, dobrushin, kept_values, spectrum_of_matrix

FEWEST = 3  # tokens of a text, without the first where it is dropped
NEAR = 8  # keys that count as near, the token itself included
SOURCE = "; ".join(probe.SOURCE for probe in (attention_spectrum, attention_entropy, log_normality, offset_profile))


@dataclass(frozen=True)
class Measure:
    """One number of a head.

    Attributes:
        words: what it is.
        unit: `nats`, `tokens`, or `1` for pure numbers.
        range: the least and the largest it can be, or None where the largest depends on the text.
    """

    words: str
    unit: str
    range: tuple[float, float] | None = None


_SHARE = (0.0, 1.0)
_GROUPS: dict[str, dict[str, Measure]] = {
    "ranks": {
        "effective_rank": Measure(f"effective rank, {RANKS['effective_rank']}", "1"),
        "stable_rank": Measure(f"stable rank, {RANKS['stable_rank']}", "1"),
        "participation_ratio": Measure(f"participation ratio, {RANKS['participation_ratio']}", "1"),
        "energy_rank": Measure(f"energy rank, {RANKS['energy_rank']}", "1"),
        "numerical_rank": Measure(f"numerical rank, {RANKS['numerical_rank']}", "1"),
        "largest_singular_value": Measure("largest singular value", "1"),
        "leading_share": Measure("share of Σσ in the largest quarter of the singular values", "1", _SHARE),
    },
    "contraction": {"contraction": Measure("largest stretch of what differs between positions, κ", "1")},
    "dobrushin": {"dobrushin": Measure("largest distance of two queries' patterns, δ", "1", _SHARE)},
    "entropy": {
        "mean_entropy": Measure("mean entropy over queries", "nats"),
        "normalised_entropy": Measure("mean of the entropy over that of uniform attention", "1", _SHARE),
        "effective_support": Measure("mean effective number of keys", "tokens"),
        "key_entropy": Measure("entropy of the mean over queries", "nats"),
        "top_key": Measure("key with the largest mean share", "1"),
        "top_key_share": Measure("its mean share", "1", _SHARE),
    },
    "shares": {
        "first_token": Measure("mean attention to the first token", "1", _SHARE),
        "previous_token": Measure("mean attention to the token before", "1", _SHARE),
        "self_attention": Measure("mean attention to the token itself", "1", _SHARE),
        "near": Measure(f"mean attention to the last {NEAR} tokens", "1", _SHARE),
        "gap": Measure("1 less the second largest eigenvalue, here 1 less the largest attention to itself", "1", _SHARE),
        "lacking": Measure("what rows lack to 1, the share of a learned sink", "1", _SHARE),
    },
    "logits": {
        "logit_variance": Measure("variance of the logits of a row", "1"),
        "skewness": Measure("skewness of the logits of a row", "1"),
        "excess_kurtosis": Measure("excess kurtosis of the logits of a row", "1"),
        "predicted_entropy": Measure("entropy if the logits were normal, ln n − v/2", "nats"),
        "entropy_gap": Measure("entropy less that of normal logits", "nats"),
        "frozen": Measure("share of queries whose variance is beyond the prediction", "1", _SHARE),
    },
    "profile": {"toeplitz_share": Measure("share of the logits that is a function of distance", "1", _SHARE)},
}
MEASURES: dict[str, Measure] = {name: measure for group in _GROUPS.values() for name, measure in group.items()}


def attention_battery(
    states: HeadStates | Sequence[HeadStates],
    *,
    drop_sink: bool = False,
    renormalise: bool = False,
    measures: Sequence[str] | None = None,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """Every measure of every head.

    Args:
        states: of one text, from `lens.head_states`; blocks with one number of heads.
        drop_sink: of the patterns and logits without the first key and the first query, rows given their share back. What
            `first_token` and `lacking` say is of the whole pattern in any case.
        renormalise: give rows back what a learned sink took of them, instead of counting it as an outcome.
        measures: names of `MEASURES`; None for all. Spectra are what takes time.
        check: called before every head; raising from it stops the work.

    Returns:
        Dataset over `block` and `head`, a variable for each measure, as `MEASURES` words them. Means are over queries: of
        `first_token`, `previous_token`, `near` and `self_attention` without the first ones, which have no choice; of the shape
        of the logits over those with 16 visible keys or more, NaN in a text (or window) shorter than that. Beyond 512 positions
        `effective_rank`, `energy_rank`, `numerical_rank` and `leading_share` are NaN, because they need all singular values,
        and `dobrushin` is a lower bound; the attributes `ranks` and `dobrushin` say so.

    Cost: see `battery_cost`. Memory: beside the states a few times `positions²` values of a head.

    Raises:
        InputError: no block, blocks of several numbers of heads, fewer than three tokens, or no such measure.
    """
    blocks = [states] if isinstance(states, HeadStates) else list(states)
    names = _require(blocks, measures, FEWEST + drop_sink)
    wanted = [group for group, members in _GROUPS.items() if not members.keys().isdisjoint(names)]
    rows = []
    for block in blocks:
        for head in range(len(block.query)):
            if check is not None:
                check()
            one = Head(block, head, drop_sink=drop_sink, renormalise=renormalise)
            rows.append({name: value for group in wanted for name, value in _READ[group](one).items()})
    shape, size = (len(blocks), len(blocks[0].query)), blocks[0].query.shape[1]
    left = size - drop_sink
    return xr.Dataset(
        {
            name: exact(("block", "head"), np.array([row[name] for row in rows]).reshape(shape), MEASURES[name].words,
                        MEASURES[name].unit)
            for name in names
        },
        {
            "block": variable(("block",), np.array([block.block for block in blocks]), "block"),
            "head": variable(("head",), np.arange(shape[1]), "query head"),
        },
        {"source": SOURCE, "probe": "attention_battery", "tokens": size, "dropped_sink": int(drop_sink),
         "renormalised": int(renormalise), **attention_spectrum.notices(left, True, kept_values(left)), **library_versions()},
    )  # fmt: skip


def head_detail(states: HeadStates, head: int, *, drop_sink: bool = False, renormalise: bool = False) -> xr.Dataset:
    """One head's pattern, logits and spectrum, beside those of patterns that are known by heart.

    Args:
        states: one block of one text.
        head: query head.
        drop_sink: leave the first key and the first query out, and give each row its share back.
        renormalise: give rows back what a learned sink took of them.

    Returns:
        Dataset over `query`, `key` and `rank`, which counts from 1:

        - `attention[query, key]`, and `logits` (NaN where a query sees no key);
        - `entropy[query]` and `effective_support`;
        - `singular_value[rank]` of the attention, and `logit_singular_value` of the logits before any mask;
        - `known_singular_value[known, rank]` of patterns of the same length and window: `uniform` attention to all that is seen,
          `identity`, and `previous token`.

        Beyond 512 positions the 32 largest singular values.

    Raises:
        InputError: no such head, or fewer than three tokens.
    """
    _require([states], None, FEWEST + drop_sink)
    one = Head(states, head, drop_sink=drop_sink, renormalise=renormalise)
    size, seen = len(one.weights), one.seen
    rows, _ = one.concentration
    singular, ranks = one.spectrum
    uniform = seen / seen.sum(-1, keepdims=True)
    before = np.eye(size, k=-1) * seen
    before[~before.any(-1), 0] = 1
    known = {"uniform": uniform, "identity": np.eye(size), "previous token": before}
    places = np.arange(size) + one.first
    return xr.Dataset(
        {
            "attention": exact(("query", "key"), one.weights, "attention"),
            "logits": exact(("query", "key"), np.where(seen, one.logits, np.nan), "logits"),
            **{
                name: exact(("query",), rows[name].numpy(), *attention_entropy.ROWS[name])
                for name in ("entropy", "effective_support")
            },
            "singular_value": exact(("rank",), singular, "singular value"),
            "logit_singular_value": exact(("rank",), spectrum_of_matrix(one.logits).singular, "singular value of the logits"),
            "known_singular_value": exact(
                ("known", "rank"), np.array([spectrum_of_matrix(one).singular for one in known.values()]), "singular value"
            ),
        },
        {
            "query": variable(("query",), places, "position of the query"),
            "key": variable(("key",), places, "position of the key"),
            "rank": variable(("rank",), np.arange(1, len(singular) + 1), "rank of the singular value"),
            "known": texts(("known",), list(known), "pattern"),
        },
        {
            "source": SOURCE, "probe": "head_detail", "block": states.block, "head": head, "tokens": states.query.shape[1],
            "dropped_sink": int(drop_sink), "renormalised": int(renormalise),
            **{name: float(value) for name, value in ranks.items()},
            **attention_spectrum.notices(size, True, len(singular)), **library_versions(),
        },
    )  # fmt: skip


def battery_cost(model: Model, positions: int, blocks: Sequence[int] | None = None) -> dict[str, int]:
    """What the battery of a text takes, before it is run; one token is run for it.

    Args:
        model: the model.
        positions: tokens of the text.
        blocks: which; None for all.

    Returns:
        `heads`; `bytes`, of their states and of one head's squares; `multiplications`, of the model's pass and the battery's
        linear algebra, from the leading terms of the algorithms; `singular_values` of a head.

    Raises:
        InputError: fewer than three positions, or no such block. UnsupportedModelError: see `lens.head_states`.
    """
    if positions < FEWEST:
        raise InputError(f"{positions} positions", f"{FEWEST} or more", "a longer text")
    states = head_states(model, [0], blocks)
    heads, kept = sum(len(block.query) for block in states), kept_values(positions)
    passed = positions * sum(one.numel() for one in model.module.base_model.parameters())
    # Of a complete decomposition 4/3 n³ for σ, and n³ + 2/3 n³ for κ; of the largest, about 10 rounds with two products each.
    algebra = 3 * positions**3 if kept == positions else (20 * (TOP + 16) + positions) * positions**2
    pairs = min(positions, SAMPLED) ** 2 // 2 * positions
    logits = sum(block.query.shape[0] * (block.query.shape[2] + 20) for block in states) * positions**2
    return {
        "heads": heads,
        "bytes": positions * sum(_bytes(block) for block in states) + 8 * 8 * positions**2,
        "multiplications": passed + heads * (algebra + pairs) + logits,
        "singular_values": kept,
    }


def _bytes(states: HeadStates) -> int:
    """Of one position."""
    return sum(side.element_size() * side.shape[0] * side.shape[2] for side in (states.query, states.key, states.value))


# -- one head -------------------------------------------------------------------------------------------------------------


class Head:
    """One head's logits and pattern, and what several measures read off them, each computed once.

    Attributes:
        first: the first key and query that are left.
        seen: `[query, key]`, which keys a query sees.
        logits: `[query, key]` float64, before any mask.
        pattern: the whole pattern, as the model has it.
        weights: of the keys and queries that are left.
    """

    def __init__(self, states: HeadStates, head: int, *, drop_sink: bool = False, renormalise: bool = False):
        self.first = int(drop_sink)
        logits = states.logits(head)
        self.pattern: Float64[np.ndarray, "query key"] = states.softmax(head, logits)
        self.logits: Float64[np.ndarray, "query key"] = logits[self.first :, self.first :]
        self.seen: Bool[np.ndarray, "query key"] = states.seen()[self.first :, self.first :]
        left = reduced(torch.from_numpy(self.pattern), drop_sink=drop_sink, renormalise=renormalise)
        self.weights: Float64[np.ndarray, "query key"] = left.numpy()

    @cached_property
    def spectrum(self) -> tuple[Float[np.ndarray, " rank"], dict[str, float]]:
        """Singular values and ranks."""
        return spectrum_of_matrix(self.weights)

    @cached_property
    def concentration(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Entropies of rows and of the mean over them."""
        return attention_entropy.concentration(torch.from_numpy(self.weights), torch.from_numpy(self.seen.sum(-1)))


def _ranks(head: Head) -> dict[str, float]:
    singular, ranks = head.spectrum
    size = len(head.weights)
    complete = len(singular) == size
    total = singular.sum()
    leading = singular[: -(-size // 4)].sum() / total if complete and total else np.nan
    return {**ranks, "largest_singular_value": float(singular[0]), "leading_share": float(leading)}


def _entropies(head: Head) -> dict[str, float]:
    rows, heads = head.concentration
    found = {name: float(heads[name]) for name in ("mean_entropy", "key_entropy", "top_key", "top_key_share")}
    found["top_key"] += head.first
    return found | {
        "normalised_entropy": float(rows["normalised_entropy"].nanmean()),
        "effective_support": float(rows["effective_support"].mean()),
    }


def _shares(head: Head) -> dict[str, float]:
    size = len(head.weights)
    enough = NEAR - head.first  # the first of the queries that are left which could look farther
    near = sum(float(np.diagonal(head.weights, -back)[enough - back :].sum()) for back in range(NEAR))
    diagonal = np.sort(np.diagonal(head.weights))
    return {
        "first_token": float(head.pattern[1:, 0].mean()),
        "previous_token": previous_token_score(head.weights),
        "self_attention": diagonal_score(head.weights),
        "near": near / (size - enough) if size > enough else np.nan,
        "gap": float(1 - diagonal[-2]) if size > 1 else np.nan,
        "lacking": float(attention_entropy.lacking_of(torch.from_numpy(head.pattern)).mean()),
    }


def _logits(head: Head) -> dict[str, float]:
    shape = log_normality.mean_shape(head.logits, head.seen, head.weights)
    return {
        "logit_variance": shape["variance"],
        "entropy_gap": shape["entropy"] - shape["predicted_entropy"],
        **{name: shape[name] for name in ("skewness", "excess_kurtosis", "predicted_entropy", "frozen")},
    }


_READ: dict[str, Callable[[Head], dict[str, float]]] = {
    "ranks": _ranks,
    "contraction": lambda head: {"contraction": contraction(head.weights)},
    "dobrushin": lambda head: {"dobrushin": dobrushin(head.weights)},
    "entropy": _entropies,
    "shares": _shares,
    "logits": _logits,
    "profile": lambda head: {"toeplitz_share": profile_of(head.logits)[1]},
}


def _require(blocks: Sequence[HeadStates], measures: Sequence[str] | None, fewest: int) -> list[str]:
    """Names of the measures that are wanted, or why there can be none."""
    shapes = {tuple(block.query.shape[:2]) for block in blocks}
    if len(shapes) != 1:
        found = "No block" if not blocks else f"{len(shapes)} numbers of heads or positions"
        raise InputError(found, "one block or more, of one text and one number of heads", "the blocks of one kind at a time")
    ((_, size),) = shapes
    if size < fewest:
        raise InputError(f"{size} tokens", f"{fewest} or more", "a longer text")
    names = list(MEASURES) if measures is None else list(measures)
    wrong: Any = [name for name in names if name not in MEASURES]
    if wrong or not names:
        raise InputError(
            f"The measures {', '.join(wrong) or '(none)'}", f"some of {', '.join(MEASURES)}", "measures=None, for all"
        )
    return names
