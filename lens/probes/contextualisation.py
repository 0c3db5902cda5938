"""How much of what stands before a token can be read from its state alone.

Source: Razzhigaev et al., "LLM-Microscope" (arXiv 2502.15007), section 3: the mean loss of the true prefix, low where a state
holds much of it. Read here by a smaller decoder, see `lens.probes.prefix_decoder`.
"""

from __future__ import annotations

from importlib import resources

import numpy as np
import torch
import xarray as xr

from lens.base.errors import InputError
from lens.models.model import Model
from lens.models.run import Run
from lens.probes.dataset import prompt_coordinates, provenance, texts, variable
from lens.probes.prefix_decoder import PrefixDecoder, load_prefix_decoder
from lens.probes.token_classes import CLASSES, token_classes

SOURCE = "arXiv 2502.15007, section 3 (loss of the prefix from one state), with a decoder of our own that names single tokens"
_ROWS = 256  # tokens whose logits are held at once


def contextualisation(run: Run, decoder: PrefixDecoder) -> xr.Dataset:
    """Loss of the tokens before each token of a run, read from its state at several layers.

    Args:
        run: of a text that the decoder was not trained on.
        decoder: trained on this model.

    Returns:
        Dataset over `layer` (those that the decoder reads), `position` and `lag`, nats for each token that stands before; NaN
        where none does:

        - `lag_loss[layer, position, lag]`: −ln p of the token so far back;
        - `prefix_loss[layer, position]`: its mean over lags, low where much can be read: the published score C;
        - `frequency_loss[position]`: the same from frequencies alone, without any state;
        - `recovered[layer, position]`: the second less the first. At layer 0 it is what the token itself says of its neighbours;
        - `token_class[position]`: number in `CLASSES` (coordinate `class_name`).

    Raises:
        InputError: a decoder of a model of another shape, or a single token.
    """
    if len(run) < 2:
        raise InputError("A single token", "two or more, for something to stand before one", "a longer text")
    if run.residual.shape[-1] != decoder.into.shape[1] or run.residual.shape[0] <= max(decoder.layers):
        raise InputError(f"A decoder of {decoder.source.get('model')}", f"one of {run.model.name}", "lens.fit_prefix_decoder")
    states, targets = run.residual[list(decoder.layers)].cpu(), decoder.targets(run.token_ids)
    with torch.no_grad():
        parts = [
            decoder.losses(states[:, start : start + _ROWS], targets[start : start + _ROWS])
            for start in range(0, len(run), _ROWS)
        ]
    there = (targets >= 0).numpy()
    losses = np.where(there, torch.cat(parts, 1).double().numpy(), np.nan)
    frequencies = np.where(there, -decoder.log_frequency[targets.clamp(min=0)].double().numpy(), np.nan)
    loss, expected = _mean(losses), _mean(frequencies)
    return xr.Dataset(
        {
            "lag_loss": variable(("layer", "position", "lag"), losses, "loss of the token so far back", "nats"),
            "prefix_loss": variable(("layer", "position"), loss, "loss of the tokens before, mean over lags", "nats"),
            "frequency_loss": variable(("position",), expected, "the same from frequencies alone", "nats"),
            "recovered": variable(("layer", "position"), expected - loss, "recovered of each token before", "nats"),
            "token_class": variable(("position",), token_classes(run.tokens), "number of the token's class"),
        },
        {
            **prompt_coordinates(run, decoder.layers),
            "lag": variable(("lag",), np.array(decoder.lags), "distance to a token before", "tokens"),
            "class_name": texts(("token_kind",), CLASSES, "name of a class of tokens"),
        },
        provenance(run, SOURCE, {"probe": "contextualisation"}),
    )


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the lags that there are; NaN where there is none."""
    there = np.isfinite(values)
    return np.where(there, values, 0).sum(-1) / np.where(there.any(-1), there.sum(-1), np.nan)


def shipped_prefix_decoder(model: Model) -> PrefixDecoder | None:
    """The decoder that comes with the package for this very model, or None."""
    for entry in sorted(resources.files("lens.records").iterdir(), key=lambda one: one.name):
        if entry.name.startswith("prefix-decoder-") and entry.name.endswith(".safetensors"):
            with resources.as_file(entry) as path:
                try:
                    return load_prefix_decoder(path, model)
                except InputError:  # of another model
                    continue
    return None
