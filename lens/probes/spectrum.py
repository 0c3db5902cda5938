"""How many directions a layer's states fill: the spectrum of their covariance, from moments alone.

Every number stands beside its isotropic null, what as many Gaussian tokens of the same variance in
every direction would give: sampling alone makes a spectrum uneven when tokens are few.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from lens.base.errors import InputError
from lens.moments import Moments
from lens.probes.dataset import fit_provenance, variable

SOURCE = (
    "arXiv 2502.15007 (anisotropy, first squared singular value over their sum); "
    "Roy and Vetterli, 'The effective rank', EUSIPCO 2007, section 2 (of the covariance matrix)"
)


def spectrum(moments: Moments) -> xr.Dataset:
    """Covariance spectrum of every layer that the moments hold.

    Args:
        moments: of any part; only their within-layer scatter is used.

    Returns:
        Dataset over `layer` and `component` (1 is the direction of most variance):

        - `eigenvalue[layer, component]`: of the covariance, in squared units of the stream;
        - `share[layer, component]`: the same over their sum;
        - `participation_ratio[layer]`: `(Σλ)² / Σλ²`, directions, between 1 and d;
        - `effective_rank[layer]`: exponential of the shares' entropy, directions, between 1 and d;
        - `anisotropy[layer]`: the first share, between 1/d and 1;
        - `participation_ratio_null`, `effective_rank_null`, `anisotropy_null`: the same of isotropic
          Gaussian states, `nd/(n+d)`, `m·exp(−m/2M)` with m and M the smaller and the larger of n and d
          (Page 1993, to leading order), and `(1+√(d/n))²/d` (the edge of the Marchenko–Pastur law);
        - `top_coordinate[layer]`, `top_coordinate_share[layer]`: the coordinate of most variance and its share
          of all variance. Near 1 it is a massive activation, and every other number speaks of that one.

    Cost: one symmetric eigendecomposition `[d, d]` per layer.

    Raises:
        InputError: fewer than two tokens, or a layer whose states do not vary.
    """
    layers = sorted(moments.within)
    require_variation(moments, layers)
    values = torch.stack([principal_axes(moments.within[layer])[0] for layer in layers])
    share = values / values.sum(1, keepdim=True)
    diagonal = torch.stack([moments.within[layer].diagonal() for layer in layers])
    top = (diagonal / diagonal.sum(1, keepdim=True)).max(1)
    nulls = {name: torch.full((len(layers),), level) for name, level in _nulls(moments.count, moments.width).items()}
    per_layer = {
        "participation_ratio": (1 / (share**2).sum(1), "participation ratio of the covariance"),
        "effective_rank": (torch.special.entr(share).sum(1).exp(), "exponential of the entropy of variance shares"),
        "anisotropy": (share[:, 0], "share of variance of the first principal direction"),
        "participation_ratio_null": (nulls["participation_ratio"], "participation ratio of isotropic Gaussian states"),
        "effective_rank_null": (nulls["effective_rank"], "effective rank of isotropic Gaussian states"),
        "anisotropy_null": (nulls["anisotropy"], "anisotropy of isotropic Gaussian states"),
        "top_coordinate": (top.indices, "coordinate of most variance"),
        "top_coordinate_share": (top.values, "its share of variance"),
    }
    spectra = ("layer", "component")
    return xr.Dataset(
        {
            "eigenvalue": variable(spectra, values / (moments.count - 1), "variance along a principal direction", "state²"),
            "share": variable(spectra, share, "share of variance of a principal direction"),
            **{name: variable(("layer",), found, label) for name, (found, label) in per_layer.items()},
        },
        coords={
            "layer": variable(("layer",), torch.tensor(layers), "residual state (0 is the embedding)"),
            "component": component_coordinate(moments.width),
        },
        attrs={"source": SOURCE, "probe": "spectrum", "tokens": moments.count, **fit_provenance(moments.source)},
    )


def _nulls(tokens: int, width: int) -> dict[str, float]:
    small, large = sorted((tokens, width))
    return {
        "participation_ratio": tokens * width / (tokens + width),
        "effective_rank": small * math.exp(-small / (2 * large)),
        "anisotropy": min(1.0, (1 + math.sqrt(width / tokens)) ** 2 / width),
    }


def principal_axes(within: Float[Tensor, "d d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """Eigenvalues of a scatter matrix, largest first, and its eigenvectors as columns in the same order."""
    values, vectors = torch.linalg.eigh(within)
    return values.flip(0).clamp(min=0), vectors.flip(1)


def component_coordinate(width: int) -> xr.Variable:
    """Numbers 1 to `width` of what is sorted, the largest first."""
    return variable(("component",), torch.arange(1, width + 1), "place in descending order")


def require_variation(moments: Moments, layers: Iterable[int]) -> None:
    """Refuse states of which no share or angle can be told.

    Raises:
        InputError: fewer than two tokens, or a layer whose tokens all have the same state.
    """
    if moments.count < 2:
        raise InputError(f"{moments.count} tokens", "at least 2", "collect_moments(..., tokens=20_000)")
    for layer in layers:
        # States are float32: a spread of 1e-8 of their norm is rounding.
        if moments.within[layer].trace() <= 1e-16 * moments.count * moments.mean[layer].square().sum():
            raise InputError(f"All {moments.count} tokens have one state at layer {layer}", "states that vary", "another text")
