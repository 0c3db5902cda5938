"""How much weight the query and key projections give to each lane: lane usage without any text."""

from __future__ import annotations

import numpy as np
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn

from lens.base.errors import UnsupportedModelError
from lens.models.heads import HeadStates, head_states, to_lanes
from lens.models.model import Model
from lens.probes.dataset import texts, variable
from lens.probes.lanes import BAND, SOURCE, lengths_and_bands, rotating_blocks, stacked

_NAMES = {"query": "q_proj", "key": "k_proj"}


def weight_lanes(
    weight: Float[np.ndarray, "head width d"], rotary: tuple[int, int], layout: str
) -> Float[np.ndarray, "head lane"]:
    """Frobenius norm of the two rows of each lane in a query or key projection.

    Args:
        weight: rows of the projection by head.
        rotary: first rotary dimension of a head, and the one after the last.
        layout: `half` or `interleaved`.
    """
    rows = np.linalg.norm(weight[:, slice(*rotary)], axis=-1)
    return np.abs(to_lanes(rows, layout))


def lane_weights(model: Model, *, context: int | None = None) -> xr.Dataset:
    """Norms of the weights behind every lane, as `lane_usage` has the lengths of what they make of a text.

    They are the root mean square lengths that lanes would have if what enters the projection were white. It is not: the
    gain of the norm before it, and every direction that states prefer, are left out, and so are biases and norms of
    queries and keys.

    Args:
        model: with projections named as most families do, `q_proj` and `k_proj`.
        context: tokens; lanes with a longer wavelength are slow. By default the model's own.

    Returns:
        Dataset over `block`, `head` and `lane` (coordinates `wavelength`, `band`): `query_norm`, `key_norm`, `joint_share`, their
        product over its sum over lanes, and `fast_share`, `slow_share` `[block, head]`.

    Raises:
        UnsupportedModelError: a model that rotates nothing, or whose projections bear other names or are fused.
    """
    rotating = rotating_blocks(head_states(model, [0] * 3))  # for the layout, which is proved on the model
    norms = {side: stacked([_norms(model, block, side) for block in rotating]) for side in _NAMES}
    product = norms["query"] * norms["key"]
    share = product / np.nansum(product, axis=-1, keepdims=True)
    lengths, band = lengths_and_bands(rotating, context or model.context or 4096)
    dims = ("block", "head", "lane")
    columns = {f"{side}_norm": variable(dims, norms[side], f"norm of a lane's rows, {side} projection") for side in _NAMES}
    columns["joint_share"] = variable(dims, share, "share of a lane in queries times keys")
    for name in ("fast", "slow"):
        inside = np.nansum(share * (band == name)[:, None], axis=-1)
        columns[f"{name}_share"] = variable(dims[:2], inside, f"joint share of the {name} lanes")
    return xr.Dataset(
        columns,
        {
            "block": variable(("block",), np.array([block.block for block in rotating]), "block"),
            "head": variable(("head",), np.arange(len(rotating[0].query)), "query head"),
            "lane": variable(("lane",), np.arange(share.shape[-1]), "rotary lane, 0 the fastest"),
            "wavelength": variable(("block", "lane"), lengths, "tokens in which the lane turns once", "tokens"),
            "band": texts(("block", "lane"), band, BAND),
        },
        {"source": SOURCE, "probe": "lane_weights", **model.provenance()},
    )


def _norms(model: Model, states: HeadStates, side: str) -> Float[np.ndarray, "head lane"]:
    """Of one block's query heads; keys are repeated for the heads that read them."""
    weight = _projection(model, states.block, side)
    heads = states.query if side == "query" else states.key
    width = states.query.shape[-1]
    if len(weight) != len(heads) * width:
        raise UnsupportedModelError(
            f"The {side} projection of block {states.block} has {len(weight)} rows",
            f"{len(heads)} heads of {width}",
            "another model",
        )
    found = weight_lanes(weight.reshape(len(heads), width, -1), states.rotary, states.layout)
    return found if side == "query" else found[[states.kv_head_of(head) for head in range(len(states.query))]]


def _projection(model: Model, block: int, side: str) -> np.ndarray:
    attention = model.anatomy.blocks[block].attention
    found = getattr(attention, _NAMES[side], None)
    weight = found.weight if isinstance(found, nn.Linear) else None
    if not isinstance(weight, Tensor):
        raise UnsupportedModelError(
            f"The attention of block {block} of {model.name} has no linear {_NAMES[side]}",
            "projections of queries and keys apart", "lane_usage, which needs a text",
        )  # fmt: skip
    return weight.detach().double().cpu().numpy()
