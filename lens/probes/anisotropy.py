"""How far token states lie in one direction, with and without what makes them do so: their mean, and a massive first token.

Sources: Razzhigaev et al., "LLM-Microscope" (arXiv 2502.15007), authors' code (first squared singular value of the centred
states over the sum of all); Ethayarajh, arXiv 1909.00512, section 3.2 (mean cosine of two states, mean left in).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import scipy.linalg
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor

from lens.base.errors import InputError
from lens.base.provenance import library_versions
from lens.probes.dataset import exact, texts, variable

SOURCE = "arXiv 2502.15007, authors' code (first squared singular value over their sum); arXiv 1909.00512 (mean cosine)"
MEANS = ("removed", "left in")


def anisotropy(
    states: Float[Tensor, "layer token d"],
    tokens: Mapping[str, Bool[Tensor, " token"]],
    *,
    layers: Sequence[int] | None = None,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """Share of the first direction, and mean cosine, for several choices of tokens.

    Args:
        states: of many tokens.
        tokens: name to the tokens that count, as `all`, `without first`, `robust`; at least two each.
        layers: names of the layers; by default 0, 1, ….
        check: called before every layer; raising from it stops the work.

    Returns:
        Dataset over `layer`, `kept` (names of the choices) and `mean_of_states` (`removed`, as published, or `left in`), pure
        numbers:

        - `anisotropy[layer, kept, mean_of_states]`: first squared singular value over their sum, between 1/d and 1;
        - `anisotropy_null[kept]`: of isotropic Gaussian states without a mean, `(1+√(d/n))²/d`;
        - `mean_cosine[layer, kept, mean_of_states]`: of two different tokens, from −1/(n−1) to 1.

    Cost: a product `[d, token] · [token, d]` and one eigenvalue for each layer and choice. Memory: one layer in float64.

    Raises:
        InputError: a choice of fewer than two tokens, or of another length than the states.
    """
    wrong = [name for name, kept in tokens.items() if kept.shape != states.shape[1:2] or int(kept.sum()) < 2]
    if wrong or not tokens:
        found = f"The choices {wrong or 'none'} of {states.shape[1]} tokens"
        raise InputError(found, "two tokens or more in each", "{'all': torch.ones(n, dtype=torch.bool)}")
    names = list(range(len(states))) if layers is None else list(layers)
    width = states.shape[2]
    found = np.empty((2, len(names), len(tokens), len(MEANS)))
    for row, layer in enumerate(states):
        if check is not None:
            check()
        wide = layer.detach().cpu().double()
        for column, kept in enumerate(tokens.values()):
            chosen = wide[kept.cpu()]
            for place, points in enumerate((chosen - chosen.mean(0), chosen)):
                found[:, row, column, place] = _first_share(points), _mean_cosine(points)
    counts = np.array([int(kept.sum()) for kept in tokens.values()])
    null = np.minimum(1.0, (1 + np.sqrt(width / counts)) ** 2 / width)
    cell = ("layer", "kept", "mean_of_states")
    return xr.Dataset(
        {
            "anisotropy": exact(cell, found[0], "first squared singular value over their sum"),
            "mean_cosine": exact(cell, found[1], "mean cosine of two tokens"),
            "anisotropy_null": exact(("kept",), null, "anisotropy of isotropic Gaussian states"),
        },
        {
            "layer": variable(("layer",), np.array(names), "residual state (0 is the embedding)"),
            "kept": texts(("kept",), list(tokens), "which tokens count"),
            "mean_of_states": texts(("mean_of_states",), MEANS, "what is done with the mean"),
            "tokens": variable(("kept",), counts, "how many tokens count"),
        },
        {"source": SOURCE, "probe": "anisotropy", **library_versions()},
    )


def _first_share(points: Tensor) -> float:
    gram = (points.T @ points).numpy()
    total = float(gram.trace())
    last = len(gram) - 1
    return float(scipy.linalg.eigvalsh(gram, subset_by_index=(last, last))[0]) / total if total > 0 else np.nan


def _mean_cosine(points: Tensor) -> float:
    """Over pairs of different tokens, from the length of the sum of unit vectors."""
    count = len(points)
    together = torch.nn.functional.normalize(points, dim=1, eps=1e-30).sum(0).square().sum()
    return float((together - count) / (count * (count - 1)))
