"""Are attention weights log-normal? The spread of logits, row by row, and the entropy that normal logits would give.

If the logits of a row are normal with variance v, the entropy of its weights is ln n − v/2 for many keys n and small v; from
v = 2 ln n on a few weights hold everything, and the formula no longer applies. How far real heads miss it is the signal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.special
import xarray as xr
from jaxtyping import Bool, Float

from lens.base.errors import InputError
from lens.base.provenance import library_versions
from lens.models.heads import HeadStates
from lens.probes.dataset import exact, variable

SOURCE = "Linear Log-Normal Attention, arXiv 2311.13541; freezing of large variances: Derrida, Phys. Rev. B 24, 1981"
FEWEST = 16  # keys of a row that is looked at


def log_normality(states: HeadStates | Sequence[HeadStates], *, temperature: float = 1.0, skip_first: bool = False) -> xr.Dataset:
    """Shape of the logits of every head, and the entropy that it foretells.

    Args:
        states: of one text, from `lens.models.heads.head_states`.
        temperature: that logits are divided by.
        skip_first: leave the first key out, which is mostly a sink far from the others.

    Returns:
        Dataset over `block` and `head`, means over queries with 16 visible keys or more, of causal attention (the block's
        window included):

        - `variance` (population), `skewness`, `excess_kurtosis` of the logits; both of the latter are 0 for normal ones;
        - `entropy` of the softmax of these logits, and `predicted_entropy` ln n − v/2, nats;
        - `frozen`: share of these queries whose variance is 2 ln n or more, where the prediction does not apply.

        A learned sink is left out: logits of keys only.

    Raises:
        InputError: no block, a text under 16 tokens, or a temperature that is not above 0.
    """
    blocks = [states] if isinstance(states, HeadStates) else list(states)
    if not temperature > 0:
        raise InputError(f"The temperature is {temperature}", "above 0", "temperature=1.0")
    if not blocks or blocks[0].query.shape[1] < FEWEST + skip_first:
        found = f"{blocks[0].query.shape[1]} tokens" if blocks else "No block"
        raise InputError(found, f"one block or more, of {FEWEST + skip_first} tokens or more", "a longer text")
    rows = [[_head(block, head, temperature, skip_first) for head in range(len(block.query))] for block in blocks]
    columns = {
        name: exact(("block", "head"), np.array([[head[name] for head in heads] for heads in rows]), words, unit)
        for name, (words, unit) in _LABELS.items()
    }
    return xr.Dataset(
        columns,
        {
            "block": variable(("block",), np.array([block.block for block in blocks]), "block"),
            "head": variable(("head",), np.arange(len(rows[0])), "query head"),
        },
        {"source": SOURCE, "probe": "log_normality", "temperature": float(temperature), "skipped_first": int(skip_first),
         "tokens": blocks[0].query.shape[1], **library_versions()},
    )  # fmt: skip


def row_shapes(
    logits: Float[np.ndarray, "row key"],
    seen: Bool[np.ndarray, "row key"],
    weights: Float[np.ndarray, "row key"] | None = None,
) -> dict[str, Float[np.ndarray, " row"]]:
    """Variance, skewness, excess kurtosis, entropy of the softmax and predicted entropy of each row of logits.

    Args:
        logits: finite where they are seen.
        seen: which keys count; one or more in each row.
        weights: the softmax of these logits where it is known, up to a factor of each row; 0 where not seen.
    """
    count = seen.sum(-1)
    centred = np.where(seen, logits, 0.0)
    centred = np.where(seen, centred - (centred.sum(-1) / count)[:, None], 0.0)
    squared = centred * centred
    variance, most = squared.sum(-1) / count, np.log(count)
    third, fourth = (np.einsum("ij,ij->i", squared, other) / count for other in (centred, squared))
    with np.errstate(divide="ignore", invalid="ignore"):  # a row of equal logits has no shape
        skewness, kurtosis = third / variance**1.5, fourth / variance**2 - 3
    softmax = scipy.special.softmax(np.where(seen, logits, -np.inf), axis=-1) if weights is None else weights
    return {
        "variance": variance,
        "skewness": skewness,
        "excess_kurtosis": kurtosis,
        "entropy": _entropy(softmax),
        "predicted_entropy": most - variance / 2,
        "frozen": (variance >= 2 * most).astype(float),
    }


def mean_shape(
    logits: Float[np.ndarray, "query key"],
    seen: Bool[np.ndarray, "query key"],
    weights: Float[np.ndarray, "query key"] | None = None,
) -> dict[str, float]:
    """Means of `row_shapes` over the queries that see 16 keys or more; NaN where there is none."""
    enough = seen.sum(-1) >= FEWEST
    if not enough.any():
        return dict.fromkeys(_LABELS, float("nan"))
    first = int(enough.argmax())  # of causal attention: all queries from there on
    shapes = row_shapes(logits[first:], seen[first:], None if weights is None else weights[first:])
    return {name: float(shapes[name].mean()) for name in _LABELS}


def _entropy(weights: np.ndarray) -> np.ndarray:
    """Of rows that need not sum to 1; of a row of zeros NaN."""
    total = weights.sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return scipy.special.entr(weights).sum(-1) / total + np.log(total)


_LABELS = {
    "variance": ("variance of the logits of a row", "1"),
    "skewness": ("skewness of the logits of a row", "1"),
    "excess_kurtosis": ("excess kurtosis of the logits of a row", "1"),
    "entropy": ("entropy of attention", "nats"),
    "predicted_entropy": ("entropy if the logits were normal", "nats"),
    "frozen": ("share of queries whose variance is beyond the prediction", "1"),
}


def _head(states: HeadStates, head: int, temperature: float, skip_first: bool) -> dict[str, float]:
    first = int(skip_first)
    logits = states.logits(head)[first:, first:] / temperature
    return mean_shape(logits, states.seen()[first:, first:])
