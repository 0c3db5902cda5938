"""Which channels of the residual stream carry it: massive activations, channels that are needed, and what zeroing the rest costs.

Sources: Sun et al., "Massive Activations in Large Language Models" (arXiv 2402.17762), section 2, criterion: above 100 and about
1,000 times the median, and zero against mean; MoHD (arXiv 2412.05644): shared and specialised channels, activation flow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from lens.base.errors import InputError
from lens.corpora import Document
from lens.models.edits import change_states
from lens.models.model import Model
from lens.probes.block_influence import long_enough, stream
from lens.probes.dataset import texts, variable
from lens.probes.token_losses import token_losses

SOURCE = "arXiv 2402.17762, section 2 (massive activations); arXiv 2412.05644 (shared and specialised channels)"
LARGE, TIMES_MEDIAN = 100.0, 1000.0
SHARES = (0.5, 0.9)
SHARED_FROM = 0.9  # share of the tokens of a window that a shared channel is active at


def massive(states: Float[Tensor, "*rows d"]) -> Tensor:
    """Where activations are massive: above 100, and 1,000 times the median size of all that are given, `[*rows, d]` bool."""
    size = states.abs()
    return (size > LARGE) & (size >= TIMES_MEDIAN * size.median())


def active_channels(states: Float[Tensor, "*rows d"], share: float) -> Tensor:
    """The fewest channels of each state that hold a share of Σ|h|, `[*rows, d]` bool.

    Raises:
        InputError: a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise InputError(f"The share is {share}", "above 0, at most 1", "share=0.5")
    size, order = states.abs().sort(dim=-1, descending=True)
    # Channels before which less than the share was reached; rounding must not take the last one in for share 1.
    before = size.cumsum(-1) - size
    wanted = before < share * size.sum(-1, keepdim=True)
    return torch.zeros_like(wanted).scatter(-1, order, wanted)


def largest_channels(states: Float[Tensor, "*rows d"], kept: int) -> Float[Tensor, "*rows d"]:
    """The largest so many channels of each state; all others are 0."""
    _, order = states.abs().topk(kept, dim=-1)
    return torch.zeros_like(states).scatter(-1, order, states.gather(-1, order))


def hidden_dimensions(
    model: Model,
    documents: Sequence[Document],
    *,
    tokens: int = 128,
    window: int = 16,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """Sizes and activity of the channels of all states, at the start of each document.

    Args:
        model: the model.
        documents: those with fewer tokens are left out.
        tokens: of each document; at least the window.
        window: consecutive tokens over which a channel is called shared.
        check: called before every block; raising from it stops the work.

    Returns:
        Dataset over `document`, `layer`, `size_rank` (1 to 3), `share` (of Σ|h|: 0.5, 0.9):

        - `largest[document, layer, size_rank]`: |h|, and `largest_channel`, `largest_position`, where;
        - `median_size[document, layer]`: median of |h| over tokens and channels;
        - `massive_count[document, layer]`: activations above 100 and 1,000 times the median;
        - `massive_first[document, layer]`: those of them at the first token;
        - `active_share[document, share, layer]`: fewest channels that hold the share of Σ|h|, over all of them, mean over tokens;
        - `shared_share[document, share, layer]`: of the active channels of a token, those active at 90 % or more of the tokens of
          its window; the rest are specialised to some tokens;
        - `neighbour_overlap[document, share, layer]`: active at a token and the next over active at either (Jaccard), mean;
        - `layer_overlap[document, share, layer]`: the same of a token and itself one layer before; NaN at layer 0.

        In the last four the first token is left out.

    Cost: one pass a document. Memory: the residual stream of one document, and some copies of one layer.

    Raises:
        InputError: fewer than two documents that are long enough, or a window longer than they are.
    """
    if not 2 <= window < tokens:
        raise InputError(f"A window of {window} tokens in {tokens}", "2 or more, and fewer than the tokens", "window=16")
    rows = [_of_text(stream(model, [ids], check)[:, 0].float(), window) for ids in long_enough(model, documents, tokens)]
    found = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    top, plain, shared = ("document", "layer", "size_rank"), ("document", "layer"), ("document", "share", "layer")
    columns = {
        "largest": (top, "size of the largest activations", "1"),
        "largest_channel": (top, "their channels", "1"),
        "largest_position": (top, "their positions", "1"),
        "median_size": (plain, "median size of activations", "1"),
        "massive_count": (plain, "activations above 100 and 1,000 times the median", "1"),
        "massive_first": (plain, "those of them at the first token", "1"),
        "active_share": (shared, "share of channels that hold the share of Σ|h|", "1"),
        "shared_share": (shared, "share of the active channels that are active in the whole window", "1"),
        "neighbour_overlap": (shared, "active channels in common with the next token", "1"),
        "layer_overlap": (shared, "active channels in common with the layer before", "1"),
    }
    return xr.Dataset(
        {name: variable(dims, found[name], label, units) for name, (dims, label, units) in columns.items()},
        coords={
            "layer": variable(("layer",), np.arange(model.n_layers + 1), "residual state (0 is the embedding)"),
            "size_rank": variable(("size_rank",), np.arange(1, 4), "rank by size"),
            "share": ("share", np.array(SHARES), {"long_name": "share of Σ|h| that active channels hold", "units": "1"}),
        },
        attrs={"source": SOURCE, "probe": "hidden_dimensions", "tokens": tokens, "window": window, **model.provenance()},
    )


def _of_text(residual: Float[Tensor, "layer position d"], window: int) -> dict[str, np.ndarray]:
    layers = [_of_layer(states, window) for states in residual]
    found = {name: np.stack([one[name] for one in layers]) for name in layers[0] if name != "active"}
    overlap = [np.full(len(SHARES), np.nan)]
    overlap += [_jaccard(now["active"], before["active"]) for before, now in pairwise(layers)]
    swapped = {name: found[name].T for name in ("active_share", "shared_share", "neighbour_overlap")}
    return {**found, **swapped, "layer_overlap": np.stack(overlap).T}


def _of_layer(states: Float[Tensor, "position d"], window: int) -> dict[str, Any]:
    size = states.abs()
    top, places = size.flatten().topk(3)
    where = massive(states)
    active = torch.stack([active_channels(states[1:], share) for share in SHARES])
    return {
        "largest": top.cpu().numpy(),
        "largest_channel": (places % states.shape[-1]).cpu().numpy(),
        "largest_position": (places // states.shape[-1]).cpu().numpy(),
        "median_size": np.array(float(size.median())),
        "massive_count": np.array(int(where.sum())),
        "massive_first": np.array(int(where[0].sum())),
        "active_share": active.double().mean((1, 2)).cpu().numpy(),
        "shared_share": np.array([shared_share(one, window) for one in active]),
        "neighbour_overlap": _jaccard(active[:, 1:], active[:, :-1]),
        "active": active,
    }


def shared_share(active: Tensor, window: int) -> float:
    """Of the active channels of a token, the share that is active at 90 % or more of its window, mean over tokens.

    Args:
        active: `[position, d]` bool; windows lie end to end, and tokens behind the last whole one are left out.
        window: tokens.
    """
    whole = len(active) // window * window
    pieces = active[:whole].unflatten(0, (-1, window))
    shared = pieces.double().mean(1, keepdim=True) >= SHARED_FROM
    return float(((pieces & shared).sum(-1) / pieces.sum(-1).clamp(min=1)).mean())


def _jaccard(one: Tensor, other: Tensor) -> np.ndarray:
    """Active at both over active at either, mean over positions, `[share]`."""
    return ((one & other).sum(-1) / (one | other).sum(-1).clamp(min=1)).double().mean(-1).cpu().numpy()


def channel_cost(
    model: Model,
    documents: Sequence[Document],
    *,
    kept: Sequence[float] = (0.9, 0.75, 0.5, 0.25, 0.1),
    tokens: int = 128,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """Loss when only the largest channels of every token's state are handed on, behind every block; and without massive ones.

    Args:
        model: the model, which is given back as it was.
        documents: those with fewer tokens are left out.
        kept: shares of the channels that are kept, chosen for each token and layer anew by size.
        tokens: of each document.
        check: called before every block of every pass; raising from it stops the work.

    Returns:
        Dataset over `document`, `kept` and `change`, in nats per token:

        - `loss[document]`: of the model itself;
        - `loss_kept[document, kept]`: with the other channels set to 0 behind every block;
        - `massive_loss[document, change]`: with every massive activation set to `zero`, or to its `mean` over the first tokens of
          the other documents, behind every block. Where nothing is massive, nothing is changed.

    Cost: `3 + len(kept)` passes a document, and one more for the means.

    Raises:
        InputError: fewer than two documents that are long enough, or shares outside (0, 1].
    """
    if not all(0 < share <= 1 for share in kept):
        raise InputError(f"The shares {list(kept)}", "each above 0, at most 1", "kept=(0.5, 0.25)")
    ids = long_enough(model, documents, tokens)
    streams = [stream(model, [one], check)[:, 0] for one in ids]
    where = [massive_by_layer(one) for one in streams]
    rows = []
    for number, one in enumerate(ids):
        others = [streams[other][:, 0] for other in range(len(ids)) if other != number]
        row = [token_losses(model, one, check).mean()]
        for share in kept:
            row.append(_kept_loss(model, one, max(1, round(share * model.d_model)), check))
        for values in (torch.zeros_like(others[0]), torch.stack(others).mean(0)):
            row.append(_massive_loss(model, one, where[number], values, check))
        rows.append(row)
    found = np.array(rows)
    return xr.Dataset(
        {
            "loss": variable(("document",), found[:, 0], "next-token loss of the model itself", "nats"),
            "loss_kept": variable(("document", "kept"), found[:, 1 : 1 + len(kept)], "next-token loss", "nats"),
            "massive_loss": variable(("document", "change"), found[:, 1 + len(kept) :], "next-token loss", "nats"),
        },
        coords={
            "kept": ("kept", np.array(kept, dtype=float), {"long_name": "share of the channels kept", "units": "1"}),
            "change": texts(("change",), ("zero", "mean"), "what massive activations are set to"),
        },
        attrs={"source": SOURCE, "probe": "channel_cost", "tokens": tokens, **model.provenance()},
    )


def massive_by_layer(residual: Float[Tensor, "layer position d"]) -> Tensor:
    """Where activations are massive by the median of their own layer, `[layer, position, d]` bool."""
    return torch.stack([massive(states.float()) for states in residual])


def _kept_loss(model: Model, ids: Sequence[int], kept: int, check: Callable[[], None] | None) -> float:
    def keep(states: Tensor) -> Tensor:
        return largest_channels(states, kept)

    with change_states(model, range(1, model.n_layers + 1), keep):
        return float(token_losses(model, ids, check).mean())


def _massive_loss(
    model: Model,
    ids: Sequence[int],
    where: Tensor,
    values: Float[Tensor, "layer d"],
    check: Callable[[], None] | None,
) -> float:
    """Loss with massive activations set to other values, layer by layer."""
    with ExitStack() as stack:
        for layer in range(1, model.n_layers + 1):
            if where[layer].any():
                change = _Put(where[layer], values[layer])
                stack.enter_context(change_states(model, [layer], change))
        return float(token_losses(model, ids, check).mean())


class _Put:
    """Sets some entries of states to values by channel."""

    def __init__(self, where: Tensor, values: Float[Tensor, " d"]):
        self.where, self.values = where, values

    def __call__(self, states: Tensor) -> Tensor:
        return torch.where(self.where.to(states.device), self.values.to(states.device, states.dtype), states)
