"""How much each block changes its states: block influence, angular distance of spans, and size of the update.

Sources: Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect" (arXiv 2403.03853), section
3.1 (block influence); Gromov et al., "The Unreasonable Ineffectiveness of the Deeper Layers" (arXiv 2403.17887), section 3.2
(angular distance of a span, at the last token).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from lens.base.errors import InputError
from lens.corpora import Document
from lens.models.model import Model, evaluation_mode
from lens.models.run import residual_states
from lens.probes.dataset import texts, variable

SOURCE = "arXiv 2403.03853, section 3.1 (block influence); arXiv 2403.17887, section 3.2 (angular distance)"
FIRST_TOKEN = ("with", "without")


def block_influence(
    model: Model, documents: Sequence[Document], *, tokens: int = 128, check: Callable[[], None] | None = None
) -> xr.Dataset:
    """What the blocks do to the direction and size of states, at the start of each document.

    Args:
        model: the model.
        documents: those with fewer tokens are left out.
        tokens: of each document.
        check: called before every block; raising from it stops the work.

    Returns:
        Dataset over `document`, `block`, `first_token` (`with` it, as published, and `without`), `from_layer`, `to_layer`:

        - `block_influence[document, first_token, block]`: 1 − mean over tokens of cos(h_b, h_{b+1}), 0 to 2;
        - `update_ratio[document, first_token, block]`: mean of ‖h_{b+1} − h_b‖/‖h_{b+1}‖;
        - `angular_distance[document, from_layer, to_layer]`: mean of arccos(cos(h_i, h_j))/π over all tokens but the first,
          0 to 1; NaN where j ≤ i;
        - `last_angular_distance`, the same at the last token alone, as published.

    Cost: one pass a document. Memory: the residual stream of one document, and `layers² · tokens` numbers.

    Raises:
        InputError: fewer than two documents that are long enough, or fewer than two tokens.
    """
    rows = [text_influence(stream(model, [ids], check)[:, 0]) for ids in long_enough(model, documents, tokens)]
    found = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    kept = ("document", "first_token", "block")
    pairs = ("document", "from_layer", "to_layer")
    layers = np.arange(model.n_layers + 1)
    return xr.Dataset(
        {
            "block_influence": variable(kept, found["influence"], "1 − cosine of what enters and leaves a block"),
            "update_ratio": variable(kept, found["update"], "norm of a block's update over that of the state behind it"),
            "angular_distance": variable(pairs, found["angle"], "mean angle between states of two layers", "half turns"),
            "last_angular_distance": variable(pairs, found["last_angle"], "the same at the last token", "half turns"),
        },
        coords={
            "first_token": texts(("first_token",), FIRST_TOKEN, "whether the first token counts"),
            "block": variable(("block",), layers[:-1], "block"),
            "from_layer": variable(("from_layer",), layers, "residual state before the span"),
            "to_layer": variable(("to_layer",), layers, "residual state behind the span"),
        },
        attrs={"source": SOURCE, "probe": "block_influence", "tokens": tokens, **model.provenance()},
    )


def closest_span(angles: xr.DataArray, blocks: int) -> tuple[int, ...]:
    """The blocks of the span of so many that turns states least, as Gromov et al. remove them.

    Args:
        angles: over `from_layer` and `to_layer`, from `block_influence`.
        blocks: how many follow each other.

    Raises:
        InputError: more than there are, or none.
    """
    distance = angles.to_numpy()
    if distance.ndim != 2 or not 1 <= blocks < len(distance):
        found = f"A span of {blocks} blocks, angles of shape {distance.shape}"
        raise InputError(found, "1 to the number of blocks, and angles [layer, layer]", "angles.mean('document')")
    start = int(np.nanargmin(np.diagonal(distance, blocks)))
    return tuple(range(start, start + blocks))


def stream(
    model: Model, ids: Sequence[Sequence[int]], check: Callable[[], None] | None = None
) -> Float[Tensor, "layer text position d"]:
    """Residual states of texts of one length, by the model as it stands, live edits included."""
    with torch.no_grad(), model.lock.hold("running on texts", check), evaluation_mode(model.module):
        return residual_states(model.module, model.anatomy, torch.tensor([list(one) for one in ids]), check)


def long_enough(model: Model, documents: Sequence[Document], tokens: int) -> list[list[int]]:
    """The first tokens of each document that has so many.

    Raises:
        InputError: fewer than two such documents, or fewer than two tokens.
    """
    chosen = [ids for ids in (model.encode_bare(document.text)[:tokens] for document in documents) if len(ids) == tokens]
    if len(chosen) < 2 or tokens < 2:
        raise InputError(f"{len(chosen)} documents of {tokens} tokens", "at least 2, of 2 tokens", "more documents, or tokens=64")
    return chosen


def text_influence(states: Float[Tensor, "layer position d"]) -> dict[str, np.ndarray]:
    """Measures of one text, in float64: `influence`, `update` `[first_token, block]`, `angle`, `last_angle` `[layer, layer]`."""
    residual = states.double()
    size = residual.norm(dim=-1)
    unit = residual / size.clamp(min=torch.finfo(torch.float64).tiny)[..., None]
    turned = 1 - (unit[1:] * unit[:-1]).sum(-1)
    update = (residual[1:] - residual[:-1]).norm(dim=-1) / size[1:]
    cosine = torch.einsum("itd,jtd->tij", unit, unit).clamp(-1, 1)
    angle = cosine.arccos() / np.pi
    later = torch.ones(len(residual), len(residual), dtype=torch.bool).triu(1)
    mean, last = (torch.where(later.to(one.device), one, torch.nan) for one in (angle[1:].mean(0), angle[-1]))
    with_and_without = [[values.mean(-1), values[:, 1:].mean(-1)] for values in (turned, update)]
    influence, changed = (torch.stack(pair).cpu().numpy() for pair in with_and_without)
    return {"influence": influence, "update": changed, "angle": mean.cpu().numpy(), "last_angle": last.cpu().numpy()}
