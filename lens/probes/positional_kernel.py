"""How far position alone explains a head's logits, and whether a near key beats a far one.

The mean query and the mean key of a head, turned against each other, give a kernel of distance alone: what the head would do if
every token were the average token. Everything is computed from stored queries and keys; a change of the table is
therefore exact for this block with its inputs as they are, and says nothing of what the blocks before it would do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Complex, Float

from lens.base.errors import InputError
from lens.base.provenance import library_versions
from lens.models.heads import HeadStates
from lens.probes.dataset import variable
from lens.probes.lanes import HeadLanes, head_lanes, lane_profiles, rotating_blocks
from lens.probes.rope import kernel_values

SOURCE = "Su et al., arXiv 2104.09864, section 3; Barbero et al., arXiv 2410.06205, section 3 (no decay by itself)"
ORDER_SOURCE = (
    "Du et al., arXiv 2605.15514 (order of positions and of tokens at a distance), as a Monte-Carlo test of stored states"
)


# -- pure functions of lanes --------------------------------------------------------------------------------------------


def mean_field_kernel(lanes: HeadLanes) -> Float[np.ndarray, " offset"]:
    """Logits of the mean query and the mean key by their distance, from 0 to the last that the window lets see, in float64."""
    weights = lanes.weight * lanes.query.mean(0) * lanes.key.mean(0).conj()
    return kernel_values(lanes.theta, min(len(lanes.query), lanes.window or len(lanes.query)), weights)


class Explained(NamedTuple):
    """Shares of the variance of a head's logits over cells that it can see.

    Attributes:
        kernel_variance: variance of the mean-field kernel over that of the logits; 1 minus it is the residual fraction. It
            can exceed 1, since the kernel is not fitted to the logits.
        kernel: what the kernel predicts, `1 − Var(logit − kernel) / Var(logit)`; negative where it misleads.
        offset: what the best function of distance would explain, fitted to these cells: an upper bound of `kernel`.
    """

    kernel_variance: float
    kernel: float
    offset: float


def explained_variance(
    logits: Float[np.ndarray, "query key"], kernel: Float[np.ndarray, " offset"], window: int | None = None
) -> Explained:
    """How much of the variance of causal logits a function of distance explains.

    Args:
        logits: scaled, before any soft cap and without a mask.
        kernel: by distance.
        window: keys that a query sees, itself included.
    """
    length = len(logits)
    offset = np.subtract.outer(np.arange(length), np.arange(length))
    seen = (offset >= 0) & (offset < (window or length))
    found, distance = logits[seen], offset[seen]
    total = found.var()
    predicted = kernel[distance]
    pairs = np.bincount(distance)
    profile = np.bincount(distance, weights=found) / pairs
    shares = (predicted.var(), total - (found - predicted).var(), profile[distance].var())
    return Explained(*(float(share / total) for share in shares))


class Contents(NamedTuple):
    """Drawn contents: what a query and two keys hold, before rotation."""

    query: Complex[np.ndarray, "draw lane"]
    one: Complex[np.ndarray, "draw lane"]
    other: Complex[np.ndarray, "draw lane"]


def draw_contents(lanes: HeadLanes, draws: int, generator: np.random.Generator) -> Contents:
    """Queries and pairs of different keys, drawn with replacement from the positions of a text."""
    one = generator.integers(len(lanes.key), size=draws)
    other = (one + generator.integers(1, len(lanes.key), size=draws)) % len(lanes.key)
    return Contents(lanes.query[generator.integers(len(lanes.query), size=draws)], lanes.key[one], lanes.key[other])


class Order(NamedTuple):
    """Probabilities by distance; and of `far_beats_near` over all far distances, L/2 … L − 1."""

    far_beats_near: Float[np.ndarray, " distance"]
    flipped: Float[np.ndarray, " distance"]
    mean: float


def order_of_keys(
    lanes: HeadLanes, context: int, distances: Sequence[int] | np.ndarray, draws: int, generator: np.random.Generator
) -> Order:
    """What `key_order` estimates, from lanes. Memory is draws × lanes."""
    query, one, other = draw_contents(lanes, draws, generator)
    one, other = query * one.conj(), query * other.conj()
    turns = lanes.weight * np.exp(1j * np.multiply.outer(np.append(distances, 0), lanes.theta))
    first, second = np.real(one @ turns.T), np.real(other @ turns.T)  # [draw, distance]
    near = _at(one, generator.integers(context // 2, size=draws), lanes)
    far = _at(other, generator.integers(context // 2, context, size=draws), lanes)
    ahead = first > second
    return Order(
        (second[:, :-1] > near[:, None]).mean(0), (ahead[:, :-1] != ahead[:, -1:]).mean(0), float((far > near).mean())
    )  # fmt: skip


def _at(product: Complex[np.ndarray, "draw lane"], distance: np.ndarray, lanes: HeadLanes) -> Float[np.ndarray, " draw"]:
    """Logit of each pair of contents at a distance of its own."""
    return np.real(product * np.exp(1j * np.multiply.outer(distance, lanes.theta))) @ lanes.weight


def powers_below(context: int) -> np.ndarray:
    """Distances 1, 2, 4, … below the context."""
    return 2 ** np.arange(max(1, int(np.ceil(np.log2(context)))))


def rebased(theta: Float[np.ndarray, " lane"], factor: float) -> Float[np.ndarray, " lane"]:
    """Frequencies `θ_i · factor^(−2i/r)` after the base was multiplied by a factor, of the kinds `default` and `linear`."""
    return theta * factor ** (-np.arange(len(theta)) / len(theta))


# -- one head -----------------------------------------------------------------------------------------------------------


def positional_kernel(
    states: HeadStates,
    head: int,
    *,
    theta: Float[np.ndarray, " lane"] | None = None,
    attention_factor: float | None = None,
    skip: int = 1,
) -> xr.Dataset:
    """The mean-field kernel of a head, and how much of its logits it explains.

    Args:
        states: of one block.
        head: query head.
        theta, attention_factor: another table instead of the live one; exact for this block with its inputs unchanged.
        skip: positions at the start that are left out; the first token's key is mostly a sink.

    Returns:
        Dataset over `offset` (tokens): `kernel` (logits of the mean query and the mean key), `logit` (mean logits of the
        cells that lie so far apart); `kernel_share`, `offset_share` and `residual_fraction`, as `explained_variance` has
        them. Logits are before any soft cap.
    """
    lanes = head_lanes(states, head, theta=theta, attention_factor=attention_factor).after(skip)
    kernel = mean_field_kernel(lanes)
    share = explained_variance(all_logits(lanes), kernel, lanes.window)
    offsets = np.arange(len(kernel))
    return xr.Dataset(
        {
            "kernel": variable(("offset",), kernel, "logit of the mean query and the mean key"),
            "logit": variable(("offset",), lane_profiles(lanes).sum(0), "mean logit, scaled, before any soft cap"),
            "residual_fraction": variable((), np.array(1 - share.kernel_variance), "1 − Var(kernel)/Var(logit)"),
            "kernel_share": variable((), np.array(share.kernel), "variance of the logits that the kernel explains"),
            "offset_share": variable((), np.array(share.offset), "variance that the best function of distance explains"),
        },
        {"offset": variable(("offset",), offsets, "tokens from the key to the query", "tokens")},
        {
            "source": SOURCE,
            "probe": "positional_kernel",
            **library_versions(),
            "block": states.block,
            "head": head,
            "skipped_tokens": skip,
        },
    )


def all_logits(lanes: HeadLanes) -> Float[np.ndarray, "query key"]:
    """Logits of every query and key, scaled, before soft cap and mask, in float64."""
    turn = np.exp(1j * np.multiply.outer(np.arange(len(lanes.query)), lanes.theta))
    return np.real((lanes.query * turn * lanes.weight) @ (lanes.key * turn).conj().T)


def key_order(
    states: HeadStates,
    head: int,
    *,
    context: int,
    distances: Sequence[int] = (),
    theta: Float[np.ndarray, " lane"] | None = None,
    attention_factor: float | None = None,
    draws: int = 4_000,
    seed: int = 0,
    skip: int = 1,
) -> xr.Dataset:
    """Whether a near key beats a far one, and whether distance turns the order of two keys over.

    Contents are drawn from the positions of one text, a query and two different keys, and put at any distance.

    Args:
        states: of one block.
        head: query head.
        context: tokens L; a near key lies anywhere in 0 … L/2 − 1.
        distances: at which to ask; by default powers of two below the context.
        theta, attention_factor: another table instead of the live one.
        draws: for each distance.
        seed: of the draws.
        skip: positions at the start that are left out.

    Returns:
        Dataset over `distance` (tokens): `far_beats_near`, the probability that a key at that distance has a larger logit
        than another key at a near one; `flipped`, the probability that of two keys the one ahead at distance 0 is behind
        at that distance; `standard_error` of either, for independent draws; and `far_beats_near_mean`, the first over
        distances drawn from L/2 … L − 1.

    Raises:
        InputError: distances outside 0 … L − 1, or a context under two tokens.
    """
    lanes = head_lanes(states, head, theta=theta, attention_factor=attention_factor).after(skip)
    chosen = np.array(distances) if len(distances) else powers_below(context)
    if context < 2 or chosen.min() < 0 or chosen.max() >= context:
        raise InputError(f"The distances {chosen.tolist()} in a context of {context}", "0 to context − 1", "context=8192")
    order = order_of_keys(lanes, context, chosen, draws, np.random.default_rng(seed))
    error = 0.5 / np.sqrt(draws)
    return xr.Dataset(
        {
            "far_beats_near": variable(("distance",), order.far_beats_near, "probability that the far key beats a near one"),
            "flipped": variable(("distance",), order.flipped, "probability that the order of two keys is turned over"),
            "far_beats_near_mean": variable((), np.array(order.mean), "the same over distances beyond half of the context"),
            "standard_error": variable((), np.array(error), "largest standard error of a probability, for independent draws"),
        },
        {"distance": variable(("distance",), chosen, "tokens from the key to the query", "tokens")},
        {
            "source": ORDER_SOURCE, "probe": "key_order", **library_versions(), "block": states.block, "head": head,
            "context": context, "draws": draws, "seed": seed, "skipped_tokens": skip,
        },
    )  # fmt: skip


def positional_scores(states: HeadStates | Sequence[HeadStates], *, check: Callable[[], None] | None = None) -> xr.Dataset:
    """How much of a head's attention goes to the token before, and to the token itself.

    Args:
        states: of one text, one block or several; blocks without rotary lanes are left out, as in `lane_usage`.
        check: called before every block; raising from it stops the work.

    Returns:
        Dataset over `block` and `head`: `previous_token`, `diagonal`, as `previous_token_score` and `diagonal_score` have them.
    """
    blocks = rotating_blocks(states)
    scores = []
    for block in blocks:
        if check is not None:
            check()
        patterns = (np.asarray(block.pattern(head)) for head in range(len(block.query)))
        scores.append([(previous_token_score(pattern), diagonal_score(pattern)) for pattern in patterns])
    previous, diagonal = np.moveaxis(np.array(scores), -1, 0)
    columns = {
        "previous_token": variable(("block", "head"), previous, "mean attention to the token before"),
        "diagonal": variable(("block", "head"), diagonal, "mean attention to the token itself"),
    }
    coordinates = {
        "block": variable(("block",), np.array([block.block for block in blocks]), "block"),
        "head": variable(("head",), np.arange(len(scores[0])), "query head"),
    }
    return xr.Dataset(
        columns,
        coordinates,
        {
            "source": SOURCE,
            "probe": "positional_scores",
            **library_versions(),
        },
    )


def previous_token_score(pattern: Float[np.ndarray, "query key"]) -> float:
    """Mean attention to the token before, from the third token on: before the second there is only the first, a sink."""
    return float(np.diagonal(pattern, -1)[1:].mean())


def diagonal_score(pattern: Float[np.ndarray, "query key"]) -> float:
    """Mean attention to the token itself, without the first, which sees nothing else."""
    return float(np.diagonal(pattern)[1:].mean())


def counterfactual(
    states: HeadStates, head: int, theta: Float[np.ndarray, " lane"], attention_factor: float | None = None
) -> xr.Dataset:
    """Logits and attention of one head under another table, from its stored queries and keys: no forward pass.

    Exact for this block with its inputs as they are. In a model whose table is changed everywhere the blocks before
    would hand on other states; that takes a forward pass (`lens.models.edits.rope_table`).

    Args:
        states: of one block.
        head: query head.
        theta: radians per token, one for each lane.
        attention_factor: of the new table; the live one by default.

    Returns:
        Dataset over `query` and `key`: `logit`, `attention` under the new table, `logit_before`, `attention_before` under the
        live one, each as the model uses it (soft cap, window and sinks included); logits before the mask.
    """
    head_lanes(states, head, theta=theta)  # refuses a wrong head or width in one line
    tables = {"": (theta, attention_factor), "_before": (states.theta, states.attention_factor)}
    columns = {}
    for name, table in tables.items():
        when = "under the live table" if name else "under the new table"
        columns[f"logit{name}"] = variable(("query", "key"), np.asarray(states.logits(head, *table)), f"logit {when}")
        columns[f"attention{name}"] = variable(
            ("query", "key"), np.asarray(states.pattern(head, *table)), f"attention weight {when}"
        )
    places = np.arange(states.query.shape[1])
    return xr.Dataset(
        columns,
        {name: variable((name,), places, f"position of the {name}") for name in ("query", "key")},
        {"source": SOURCE, "probe": "counterfactual", **library_versions(), "block": states.block, "head": head,
         "scope": "this block alone, its inputs unchanged"},
    )  # fmt: skip
