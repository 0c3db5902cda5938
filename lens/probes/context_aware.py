"""Rotary frequencies that depend on the text: every token says how far it moves the positions after it on.

CARoPE replaces a head's frequencies `θ_i = b^(−2i/r)` by powers `f(x_t)^i` of a number between 0 and 1 that is computed
from the token; the phase of position m is their sum over the tokens up to m. A distance becomes the length of a path.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float

from lens.base.errors import InputError
from lens.base.provenance import library_versions
from lens.probes.dataset import texts, variable

SOURCE = "Context-aware Rotary Position Embedding (CARoPE), arXiv 2507.23083"
DOUBTS = (
    "More than 60 % less perplexity is claimed for the small model at 1,024 tokens; the figures give it for the large one only.",
    "A width of 768 is given with 10 heads, which do not divide it.",
    "It is said to train faster than RoPE (0.76 against 0.63 million tokens a second), although it does strictly more work.",
    "Without a bias no weights give every token the frequencies of RoPE at base 10,000.",
)
_PERPLEXITY = {  # arXiv 2507.23083, GPT-2 style models trained at 512 tokens: (RoPE, CARoPE)
    ("124M", 512): (21.31, 21.23),
    ("44M", 512): (29.33, 28.99),
    ("124M", 1024): (56.61, 21.39),
    ("44M", 1024): (81.27, 36.74),
}


def token_rate(pre_activation: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
    """`f = 1 / (softplus(a) + 1)`, between 0 and 1, for a token whose weights give `a = x·W`."""
    return np.asarray(1.0 / (np.logaddexp(0.0, pre_activation) + 1.0))


def pre_activation_of(rate: float) -> float:
    """The `a` that gives a rate.

    Raises:
        InputError: a rate that is not between 0 and 1.
    """
    if not 0 < rate < 1:
        raise InputError(f"The rate is {rate}", "a number between 0 and 1, both excluded", "rate_of_base(10_000, 64)")
    return math.log(math.expm1(1 / rate - 1))


def rate_of_base(base: float, width: int) -> float:
    """The rate `b^(−2/r)` that, the same for every token, makes the frequencies those of RoPE at a base."""
    return base ** (-2 / width)


def base_of_rate(rate: float, width: int) -> float:
    """The base whose frequencies a constant rate gives: the inverse of `rate_of_base`."""
    return rate ** (-width / 2)


def phases(rate: Float[np.ndarray, "position head"], lanes: int) -> Float[np.ndarray, "head position lane"]:
    """Phases `Σ_{t ≤ m} f_t^i` of every position, in radians: a running sum, so that a cache only adds to it."""
    powers = np.asarray(rate, dtype=float).T[..., None] ** np.arange(lanes)
    return powers.cumsum(1)


def context_aware(
    states: Float[np.ndarray, "position d"],
    weight: Float[np.ndarray, "width head"],
    *,
    width: int,
    bias: float = 0.0,
    lane: int = 1,
    tokens: Sequence[str] | None = None,
) -> xr.Dataset:
    """How far each token moves the phases of a head on, and how long the paths between tokens become.

    Args:
        states: inputs of the attention, one for each token.
        weight: maps them to one number for each head.
        width: numbers of a query that are turned; half as many lanes.
        bias: added before the softplus. The published formula has none, see `pre_activation_of`.
        lane: whose paths are measured; lane 0 turns by one radian at every token, whatever it is.
        tokens: their texts, if they have any.

    Returns:
        Dataset: `rate[head, position]`; `phase[head, position, lane]` in radians; `effective_distance[head, query, key]`, the
        path from key to query, divided by the mean step, in tokens: the true distance where all tokens move it alike, NaN
        for keys that come later; `smallest_step[head]`, the least step of the slowest lane, which a text can only
        change by about as much. `doubts` in the attributes are facts about the paper.

    Raises:
        InputError: sizes that do not fit each other.
    """
    states, weight = np.asarray(states, dtype=float), np.asarray(weight, dtype=float)
    if states.ndim != 2 or weight.ndim != 2 or states.shape[1] != weight.shape[0] or not states.shape[0]:
        found = f"States of shape {states.shape} and weights of shape {weight.shape}"
        raise InputError(found, "[position, d] and [d, head]", "weight[:, None] for one head")
    if width < 4 or width % 2 or not 0 <= lane < width // 2:
        raise InputError(
            f"Lane {lane} of a width of {width}", "an even width from 4 on, and one of its lanes", "width=64, lane=1"
        )
    rate = token_rate(states @ weight + bias)
    found = phases(rate, width // 2)
    step = rate.T**lane
    path = found[:, :, None, lane] - found[:, None, :, lane]
    path = np.where(np.tri(len(states), dtype=bool), path / step.mean(1)[:, None, None], np.nan)
    smallest = (rate.T ** (width // 2 - 1)).min(1)
    coordinates = {"position": variable(("position",), np.arange(len(states)), "position in the text")}
    if tokens is not None:
        coordinates["input_token"] = texts(("position",), list(tokens), "token of the text")
    return xr.Dataset(
        {
            "rate": variable(("head", "position"), rate.T, "rate of a token"),
            "phase": variable(("head", "position", "lane"), found, "phase of a position", "rad"),
            "effective_distance": variable(("head", "query", "key"), path, "path from key to query, in mean steps", "tokens"),
            "smallest_step": variable(("head",), smallest, "least step of the slowest lane", "rad"),
        },
        coords=coordinates,
        attrs={"source": SOURCE, "probe": "context_aware", "doubts": " ".join(DOUBTS), "width": width, "bias": bias, "lane": lane,
               **library_versions()},
    )  # fmt: skip


def published_perplexity() -> xr.Dataset:
    """The paper's perplexities, and by how much CARoPE's are below RoPE's.

    Returns:
        Dataset: `perplexity[model, length, embedding]` and `reduction[model, length]`, a share computed from it.
    """
    models, lengths = ("44M", "124M"), (512, 1024)
    values = np.array([[_PERPLEXITY[model, length] for length in lengths] for model in models])
    return xr.Dataset(
        {
            "perplexity": variable(("model", "length", "embedding"), values, "perplexity, trained at 512 tokens"),
            "reduction": variable(("model", "length"), 1 - values[..., 1] / values[..., 0], "share by which CARoPE's is less"),
        },
        coords={
            "model": texts(("model",), list(models), "parameters of the model"),
            "length": variable(("length",), np.array(lengths), "tokens read at once", "tokens"),
            "embedding": texts(("embedding",), ["RoPE", "CARoPE"], "position embedding"),
        },
        attrs={"source": SOURCE, "probe": "published_perplexity", "doubts": " ".join(DOUBTS), **library_versions()},
    )
