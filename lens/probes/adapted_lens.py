"""The lens of the token microscope: the head alone on every layer's state, and what its two definitions say.

Source: Razzhigaev et al., "LLM-Microscope" (arXiv 2502.15007). The text defines its loss against the word that follows; the
authors' code takes the head without the final norm and −ln of the largest probability, whatever follows. Both are given,
beside the loss through the model's own norm and head (`lens.logit_lens`).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import xarray as xr

from lens.base.errors import InputError, UnsupportedModelError
from lens.models.run import Run
from lens.probes.dataset import prompt_coordinates, provenance, variable

SOURCE = "arXiv 2502.15007 (text: loss against the next token; code: raw head, −ln of the largest probability)"


def adapted_lens(run: Run, layers: Iterable[int] | None = None) -> xr.Dataset:
    """What the head makes of every layer's state, with and without the final norm.

    Args:
        run: of two tokens or more.
        layers: which; by default all.

    Returns:
        Dataset over `layer` and `position` (all but the last), nats:

        - `raw_loss`: −ln p(next token) by the head on the state as it is, the paper's definition;
        - `raw_confidence`: −ln of the head's largest probability, what the authors' code computes;
        - `loss`: −ln p(next token) through the final norm and head, the logit lens.

    Cost: two products `[position, d] · [d, vocab]` a layer. Memory: the logits of one layer.

    Raises:
        InputError: a single token, or a layer that is not there. UnsupportedModelError: a head that cannot read the stream
        itself.
    """
    last = run.model.n_layers
    chosen = list(range(last + 1)) if layers is None else sorted(set(layers))
    if len(run) < 2 or not chosen or not set(chosen) <= set(range(last + 1)):
        raise InputError(f"{len(run)} tokens and the layers {chosen}", f"two tokens or more, layers 0 to {last}", "layers=None")
    readout = run.model.readout
    if readout.head.weight.shape[1] != run.model.d_model:
        found = f"The head of {run.model.name} reads {readout.head.weight.shape[1]} of {run.model.d_model} dimensions"
        raise UnsupportedModelError(found, "a head as wide as the stream", "lens.logit_lens(run)")
    following = run.token_ids[1:, None].to(readout.head.weight.device)
    rows = []
    with torch.no_grad(), run.model.lock.hold("reading states through its head"):
        for layer in chosen:
            states = run.residual[layer, :-1].to(readout.head.weight.device)
            raw = readout.transform(readout.head(states.to(readout.head.weight.dtype))).float().log_softmax(-1)
            normed = readout(states).float().log_softmax(-1)
            rows.append(
                torch.stack([-raw.gather(1, following)[:, 0], -raw.max(1).values, -normed.gather(1, following)[:, 0]]).cpu()
            )
    values = torch.stack(rows, dim=1).numpy()
    labels = {
        "raw_loss": "surprisal of the next token, head without norm",
        "raw_confidence": "−ln of the largest probability, head without norm",
        "loss": "surprisal of the next token, norm and head",
    }
    coordinates = prompt_coordinates(run, chosen)
    places = {name: one[: len(run) - 1] if "position" in one.dims else one for name, one in coordinates.items()}
    cell = ("layer", "position")
    return xr.Dataset(
        {name: variable(cell, np.asarray(one), labels[name], "nats") for name, one in zip(labels, values, strict=True)},
        places,
        provenance(run, SOURCE, {"probe": "adapted_lens"}),
    )
