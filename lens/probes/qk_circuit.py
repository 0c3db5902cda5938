"""Where heads look, read from the weights: the form of queries and keys, and how rotary positions change it with distance.

The logit of a query state x and a key state y, δ tokens apart, is `x M_δ yᵀ` times positive lengths, and a matrix of the head's
width has all of M_δ's eigenvalues and singular values but zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float64

from lens.base.errors import InputError
from lens.models.head_weights import HeadWeights
from lens.models.heads import from_lanes, to_lanes
from lens.probes.dataset import exact, variable
from lens.probes.ov_circuit import copying_score

SOURCE = (
    "QK circuit: Elhage et al., A Mathematical Framework for Transformer Circuits (2021); spectrum and localisation: Bao, Hataya "
    "and Karakida, arXiv 2402.02098; rotation: Su et al., arXiv 2104.09864"
)


def qk_matrix(weights: HeadWeights, head: int, offset: float | int, *, lane: int | None = None) -> Float64[np.ndarray, "d d"]:
    """`M_δ` of one head for states of the stream as rows: query x and key y have the logit `x M_δ yᵀ / (length x · length y)`.

    Gains of norms and the model's scale of logits are in it; biases are not, see `bias_terms`. Its lanes sum to it.

    Args:
        weights: of the block.
        head: query head.
        offset: δ, tokens from the key to the query.
        lane: this rotary lane alone; −1 for the dimensions that do not turn. None for all.
    """
    return weights.reading("query", head) @ _turn(weights, offset, lane) @ weights.reading("key", head).T


def bias_terms(
    weights: HeadWeights, head: int, offset: float | int
) -> tuple[Float64[np.ndarray, " d"], Float64[np.ndarray, " d"], float]:
    """What biases of queries and keys, and shifts of the norm, add to `x M_δ yᵀ`, for states divided by their norm's length.

    Returns:
        `a`, `b` and `c` of the logit `x M_δ yᵀ + x a + y b + c`. `a` alone has no say in where a query looks.
    """
    turn, kv_head = _turn(weights, offset), weights.kv_head_of(head)
    query = weights.norm.shift @ weights.query[head] + weights.query_bias[head]
    key = weights.norm.shift @ weights.key[kv_head] + weights.key_bias[kv_head]
    return (
        weights.reading("query", head) @ turn @ key,
        query @ turn @ weights.reading("key", head).T,
        float(query @ turn @ key),
    )


def _turn(weights: HeadWeights, offset: float | int, lane: int | None = None) -> np.ndarray:
    """The turn of queries by an offset as a matrix `[width, width]` for rows, with the model's scale of logits."""
    width, lanes, rotary = weights.query.shape[-1], len(weights.theta), slice(*weights.rotary)
    found = weights.scaling * np.eye(width)
    still = np.ones(width, dtype=bool)
    still[rotary] = False
    if lane is not None:
        found[:, still] *= lane == -1
    if lanes:
        kept = np.ones(lanes) if lane is None else np.arange(lanes) == lane
        turn = weights.attention_factor**2 * kept * np.exp(1j * offset * weights.theta)
        found[:, rotary] = from_lanes(to_lanes(found[:, rotary], weights.layout) * turn, weights.layout)
    return found


def qk_circuit(
    weights: Sequence[HeadWeights],
    offsets: Sequence[int] | np.ndarray = (0, 1),
    *,
    heads: Sequence[int] | None = None,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """The forms `M_δ` of heads at some offsets.

    Args:
        weights: blocks, from `lens.models.head_weights.head_weights`.
        offsets: δ, tokens from the key to the query, increasing.
        heads: which heads of each block; None for all.
        check: called before every head; raising from it stops the work.

    Returns:
        Dataset over `block`, `head`, `offset`, `rank`:

        - `singular_value[block, head, offset, rank]`, descending, in logits of states that their norm has divided by its length;
        - `eigenvalue_real`, `eigenvalue_imaginary` `[block, head, offset, rank]`, descending in size;
        - `matching_score` Σλ/Σ|λ|: 1 where a state matches itself whatever it is, −1 where it shuns itself;
        - `positive_share`: of the eigenvalues that are not zero, those with a positive real part;
        - `symmetric_share`: ‖½(M + Mᵀ)‖²/‖M‖², ½ by chance, 1 where a matches b as b matches a;
        - `trace` tr M and `trace_of_square` tr M²; `eigenvalue_mean` and `eigenvalue_variance`, over all d, zeros included;
        - `size` ‖M_δ‖, at most ‖W_Q‖₂‖W_K‖ (`size_bound[block, head]`).

        The attribute `normed` says which of queries and keys have norms of their own (Qwen 3, Gemma 3): the forms then give
        logits up to a positive factor for each query and each key.

    Cost: `width³` an offset and head after `d · width²` a head.

    Raises:
        InputError: no offset, or a head that is not there.
    """
    places = np.asarray(offsets)
    if places.ndim != 1 or not len(places) or (np.diff(places) <= 0).any() or not np.isfinite(places).all():
        raise InputError(f"The offsets have shape {places.shape}", "one or more that increase", "offsets=range(8)")
    shapes = {one.query.shape for one in weights}
    if len(shapes) != 1:
        raise InputError(f"The blocks have {len(shapes)} shapes of heads", "one", "blocks of one kind")
    count, d, width = shapes.pop()
    chosen = list(range(count)) if heads is None else list(heads)
    if not chosen or not all(0 <= head < count for head in chosen):
        raise InputError(f"The heads {chosen}", f"some of 0 to {count - 1}", "heads=None")
    rows = [[_head(one, head, places, check) for head in chosen] for one in weights]

    def stacked(name: str) -> np.ndarray:
        return np.array([[head[name] for head in row] for row in rows])

    eigenvalues, trace, square = stacked("eigenvalues"), stacked("trace"), stacked("square")
    dims = ("block", "head", "offset")
    return xr.Dataset(
        {
            "singular_value": exact((*dims, "rank"), stacked("singular_values"), "singular value of M"),
            "eigenvalue_real": exact((*dims, "rank"), np.real(eigenvalues), "real part of the eigenvalue"),
            "eigenvalue_imaginary": exact((*dims, "rank"), np.imag(eigenvalues), "imaginary part of the eigenvalue"),
            "matching_score": exact(dims, stacked("score"), "matching score Σλ/Σ|λ|"),
            "positive_share": exact(dims, (np.real(eigenvalues) > 0).mean(-1), "share of eigenvalues with a positive real part"),
            "symmetric_share": exact(dims, (1 + square / stacked("energy")) / 2, "share of the symmetric part ‖sym M‖²/‖M‖²"),
            "trace": exact(dims, trace, "tr M"),
            "trace_of_square": exact(dims, square, "tr M²"),
            "eigenvalue_mean": exact(dims, trace / d, "mean eigenvalue"),
            "eigenvalue_variance": exact(dims, square / d - (trace / d) ** 2, "variance of the eigenvalues"),
            "size": exact(dims, np.sqrt(stacked("energy")), "size ‖M‖"),
            "size_bound": exact(("block", "head"), stacked("bound"), "bound on the size ‖W_Q‖₂‖W_K‖"),
        },
        {
            "block": variable(("block",), np.array([one.block for one in weights]), "block"),
            "head": variable(("head",), np.array(chosen), "head"),
            "offset": exact(("offset",), places, "from key to query", "tokens"),
            "rank": variable(("rank",), np.arange(1, width + 1), "rank"),
        },
        {"source": SOURCE, "probe": "qk_circuit", "normed": ", ".join(sorted({side for one in weights for side in one.normed}))},
    )


def _head(
    weights: HeadWeights, head: int, offsets: np.ndarray, check: Callable[[], None] | None
) -> dict[str, np.ndarray | float]:
    """One head at all offsets: `W_Q T W_Kᵀ` has the eigenvalues of `W_Kᵀ W_Q T` and the singular values of `R_q T R_kᵀ`."""
    if check is not None:
        check()
    queries, keys = (np.asarray(np.linalg.qr(weights.reading(side, head), mode="r")) for side in ("query", "key"))
    inner = weights.reading("key", head).T @ weights.reading("query", head)
    turns = np.stack([_turn(weights, offset) for offset in offsets.tolist()])
    eigenvalues = np.linalg.eigvals(inner @ turns).astype(np.complex128)
    order = np.argsort(-np.abs(eigenvalues), axis=-1, kind="stable")
    singular = np.linalg.svd(queries @ turns @ keys.T, compute_uv=False)
    largest = np.abs(_turn(weights, 0.0)).max()  # turns keep lengths, but for scale and attention factor
    return {
        "eigenvalues": np.take_along_axis(eigenvalues, order, -1),
        "singular_values": singular,
        "score": np.array([copying_score(values) for values in eigenvalues]),
        "trace": eigenvalues.sum(-1).real,
        "square": (eigenvalues**2).sum(-1).real,
        "energy": (singular**2).sum(-1),
        "bound": largest * np.linalg.norm(queries, 2) * np.linalg.norm(keys),
    }
