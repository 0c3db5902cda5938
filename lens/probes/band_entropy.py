"""How coherent the rotated keys of a lane are: the entropy of their two-dimensional Gram matrix.

A lane that has turned many times over the text spreads its keys over the plane (entropy ln 2), a slow lane with one
fixed vector keeps them on a line (entropy 0), and its largest singular value grows like the root of the length.

Of heads or lanes the entropy says which are which, not which of them to treat: the text of arXiv 2511.09146 speaks of the
ones of low entropy, while its mask keeps those at or above the threshold. The direction is therefore a parameter here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import scipy.special
import xarray as xr
from jaxtyping import Bool, Complex, Float

from lens.base.errors import InputError
from lens.base.provenance import library_versions
from lens.models.heads import HeadStates
from lens.probes.dataset import variable
from lens.probes.lanes import lane_coordinates

SOURCE = (
    "arXiv 2511.09146 (entropy of rotated keys by band); direction left open, because its text and its mask contradict each other"
)
Side = Literal["low", "high"]


def lane_entropy(
    keys: Complex[np.ndarray, "*axes position lane"], theta: Float[np.ndarray, " lane"]
) -> Float[np.ndarray, "*axes lane"]:
    """Entropy in nats, from 0 to ln 2, of the Gram matrix of each lane's rotated keys, divided by its trace.

    For points z in the plane its eigenvalues are `(1 ± |Σ z²| / Σ |z|²) / 2`. NaN for a lane without any length.

    Args:
        keys: before rotation.
        theta: radians per token.
    """
    places = np.arange(keys.shape[-2])
    turned = keys * np.exp(1j * np.multiply.outer(places, theta))
    power = (np.abs(turned) ** 2).sum(-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        coherence = np.abs((turned**2).sum(-2)) / power
    larger = (1 + np.minimum(coherence, 1.0)) / 2
    return scipy.special.entr(larger) + scipy.special.entr(1 - larger)


def top_singular_value(
    keys: Complex[np.ndarray, "*axes position lane"], theta: Float[np.ndarray, " lane"]
) -> Float[np.ndarray, "*axes lane"]:
    """Largest singular value of each lane's rotated keys `[position, 2]`, in the keys' units."""
    turned = keys * np.exp(1j * np.multiply.outer(np.arange(keys.shape[-2]), theta))
    return np.sqrt(((np.abs(turned) ** 2).sum(-2) + np.abs((turned**2).sum(-2))) / 2)


def truncated_entropy(
    keys: Complex[np.ndarray, "*axes position lane"], theta: Float[np.ndarray, " lane"], rank: int
) -> Float[np.ndarray, "*axes"]:
    """Entropy in nats, from 0 to ln rank, of the largest eigenvalues of a head's whole Gram matrix, divided by their sum.

    Args:
        keys: before rotation, all lanes of the head.
        theta: radians per token.
        rank: how many eigenvalues.

    Raises:
        InputError: a rank below one or above the number of dimensions.
    """
    width = 2 * keys.shape[-1]
    if not 1 <= rank <= width:
        raise InputError(f"The rank is {rank}", f"1 to {width}", "rank=16")
    turned = keys * np.exp(1j * np.multiply.outer(np.arange(keys.shape[-2]), theta))
    values = np.linalg.svd(np.concatenate([np.real(turned), np.imag(turned)], axis=-1), compute_uv=False)[..., :rank] ** 2
    return np.asarray(scipy.special.entr(values / values.sum(-1, keepdims=True)).sum(-1))


def chosen_by_entropy(entropy: Float[np.ndarray, "*axes"], threshold: float, side: Side) -> Bool[np.ndarray, "*axes"]:
    """Which bands or heads a threshold picks.

    Args:
        entropy: in nats.
        threshold: in nats.
        side: `low` picks those below it, `high` those at or above it. There is no default: the paper's text says the one, its
            mask does the other.

    Raises:
        InputError: another side.
    """
    if side not in get_args(Side):
        raise InputError(f"The side is {side!r}", "low or high", "side='low'")
    return entropy < threshold if side == "low" else entropy >= threshold


def band_entropy(states: HeadStates | Sequence[HeadStates], *, rank: int = 16, skip: int = 1) -> xr.Dataset:
    """Entropy of the rotated keys of every lane, and of whole heads.

    Args:
        states: of one text, one block or several of one shape.
        rank: eigenvalues in the truncated entropy of a head; at most its rotary dimensions.
        skip: positions at the start that are left out: one long key of a sink makes every lane look coherent.

    Returns:
        Dataset over `block`, `kv_head` and `lane`: `entropy` (nats, 0 to ln 2), `effective_rank` (its exponential, 1 to 2),
        `top_singular_value[block, kv_head, lane]`, and `truncated_entropy[block, kv_head]` (nats, 0 to ln rank).

    Raises:
        InputError: no block, blocks of several shapes, a text too short, or a rank that is none.
    """
    blocks = [states] if isinstance(states, HeadStates) else list(states)
    shapes = {(tuple(block.key.shape), block.theta.tobytes()) for block in blocks}
    if len(shapes) != 1 or not len(blocks[0].theta):
        raise InputError(f"{len(shapes)} shapes or tables of keys", "one, with rotary lanes", "the blocks of one kind at a time")
    if blocks[0].key.shape[1] - skip < 2:
        raise InputError(f"{blocks[0].key.shape[1]} tokens", f"at least {skip + 2}", "a longer text")
    theta = blocks[0].theta
    keys = np.stack([block.key_lanes()[:, skip:] for block in blocks])
    entropy, whole = lane_entropy(keys, theta), truncated_entropy(keys, theta, rank)
    dims = ("block", "kv_head", "lane")
    return xr.Dataset(
        {
            "entropy": variable(dims, entropy, "entropy of the lane's rotated keys", "nats"),
            "effective_rank": variable(dims, np.exp(entropy), "effective rank of the lane's rotated keys, 1 to 2"),
            "top_singular_value": variable(dims, top_singular_value(keys, theta), "largest singular value of the lane's keys"),
            "truncated_entropy": variable(dims[:2], whole, "entropy of the head's largest eigenvalues", "nats"),
        },
        {
            "block": variable(("block",), np.array([block.block for block in blocks]), "block"),
            "kv_head": variable(("kv_head",), np.arange(keys.shape[1]), "key head"),
            **lane_coordinates(theta),
        },
        {"source": SOURCE, "probe": "band_entropy", **library_versions(), "rank": rank, "tokens": keys.shape[2],
         "skipped_tokens": skip},
    )  # fmt: skip
