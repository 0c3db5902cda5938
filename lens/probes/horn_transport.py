"""Where the horn of a Three-Phase model is after each block: still along equal channels, or where the rotations took it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from lens.base.errors import InputError, UnsupportedModelError
from lens.corpora import Document
from lens.models.model import Model
from lens.models.three_phase import ThreePhaseForCausalLM, transported_direction
from lens.probes.dataset import exact, texts, variable
from lens.probes.phase_balance import EQUAL, TRANSPORTED, phase_balance
from lens.probes.verdict import judged

SOURCE = "our own; the horn of Abu Ayyash, arXiv 2604.14430, sections 3 and 5"


def horn_transport(
    model: Model, documents: Sequence[Document], *, tokens: int = 128, check: Callable[[], None] | None = None
) -> xr.Dataset:
    """How well one number for each state tells 1/(position + 1), by the direction along which the state is read.

    Args:
        model: a Three-Phase model whose rotations replace the stream.
        documents: those with fewer tokens are left out.
        tokens: of each document, three or more.
        check: called before every block; raising from it stops.

    Returns:
        Dataset over `document`, `layer` and `direction` (`equal channels`, where the horn is put; `transported`, what the
        rotations turn that direction into):

        - `horn_fit[document, layer, direction]`: R² of the component along the direction as a line in 1/(position + 1);
        - `alignment[layer]`: cosine of the two directions. With angles that all pairs of a block share it is the mean over
          channels that is left of a horn of one, which is 0 wherever the phases are out of step.

    Raises:
        UnsupportedModelError: no Three-Phase model, or one that adds the rotated stream. InputError: fewer than two documents
            that are long enough.
    """
    module = model.module
    if not isinstance(module, ThreePhaseForCausalLM) or module.config.residual_rotation:
        raise UnsupportedModelError(
            f"{model.name} transports no horn", "a Three-Phase model that rotates its stream", "another one"
        )
    chosen = [ids for ids in (model.encode_bare(document.text)[:tokens] for document in documents) if len(ids) == tokens]
    if len(chosen) < 2 or tokens < 3:
        raise InputError(f"{len(chosen)} documents of {tokens} tokens", "at least 2, of 3 tokens", "tokens=64, or more documents")
    runs = [model.run(ids, logits=False, check=check) for ids in chosen]
    fits = np.stack([phase_balance(run, partitions=1)["horn_fit"].to_numpy() for run in runs])
    directions = [transported_direction(module, layer).numpy() for layer in range(model.n_layers + 1)]
    alignment = np.array([one.sum() / np.sqrt(len(one)) for one in directions])
    return xr.Dataset(
        {
            "horn_fit": exact(("document", "layer", "direction"), fits, "R² with 1/(position + 1)"),
            "alignment": exact(("layer",), alignment, "cosine with equal channels"),
        },
        {
            "layer": variable(("layer",), np.arange(model.n_layers + 1), "residual state (0 is the embedding)"),
            "direction": texts(("direction",), [EQUAL, TRANSPORTED], "direction in the stream"),
        },
        {"source": SOURCE, "probe": "horn_transport", "tokens": tokens, **model.provenance()},
    )


def horn_verdicts(found: xr.Dataset) -> list[dict[str, Any]]:
    """What is said of the horn's direction, with intervals over documents.

    Args:
        found: from `horn_transport`.

    Returns:
        Rows of `claim`, `source`, `measured`, `threshold` (ours), `value`, `low`, `high` (95 %), `verdict`, as in
        `lens.probes.drift_claims`.
    """
    fits = found["horn_fit"].isel(layer=slice(1, None)).mean("layer", skipna=False)
    claims = (("The horn stays along equal channels", "Abu Ayyash, arXiv 2604.14430", EQUAL),
              ("The rotations carry the horn along", "ours", TRANSPORTED))  # fmt: skip
    return [
        {"claim": claim, "source": source, "measured": "R² with 1/(position + 1), mean over layers after a block",
         "threshold": 0.5, **judged(fits.sel(direction=direction).to_numpy().tolist(), 0.5)}
        for claim, source, direction in claims
    ]  # fmt: skip
