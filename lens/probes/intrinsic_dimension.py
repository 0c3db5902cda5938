"""How many dimensions token states fill: from the distances to their two nearest neighbours, and from their variances.

Sources: Facco, d'Errico, Rodriguez and Laio, "Estimating the intrinsic dimension of datasets by a minimal neighborhood
information" (2017, arXiv 1803.06992), with the slope over 90 % of the ratios; Razzhigaev et al., "LLM-Microscope" (arXiv
2502.15007), whose code takes the lowest 20 % of them and counts duplicates in the distribution without using them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Float64
from torch import Tensor

from lens.base.errors import InputError
from lens.base.provenance import library_versions
from lens.probes.dataset import exact, texts, variable

SOURCE = "arXiv 1803.06992, equations 3 to 5 (two nearest neighbours); arXiv 2502.15007, authors' code (lowest 20 %)"
ESTIMATORS = ("lowest 20 %", "lowest 90 %", "likelihood")
DUPLICATE = 1e-8  # of the mean norm: below it a neighbour is the same state
FEWEST = 16
_CANDIDATES = 8  # neighbours whose distances are computed again, exactly
_ROWS = 512  # tokens whose distances to all others are held at once


def neighbour_ratios(states: Float[Tensor, "token d"]) -> tuple[Float64[np.ndarray, " ratio"], int]:
    """Distance to the second nearest neighbour over that to the nearest, ascending, and how many tokens were asked.

    Tokens whose nearest neighbour is a duplicate have no ratio, so that there can be fewer ratios than tokens.

    Args:
        states: sixteen or more; centred and divided by their mean norm here, which changes no ratio.

    Cost: `2 · token² · d` operations. Memory: 512 rows of distances.

    Raises:
        InputError: too few states, or ones that are not finite.
    """
    if states.ndim != 2 or len(states) < FEWEST or not bool(states.isfinite().all()):
        found = f"States of shape {tuple(states.shape)}"
        raise InputError(found, f"[token, d], {FEWEST} tokens or more, all finite", "a longer text")
    points = states.detach().cpu().double()
    points = points - points.mean(0)
    points = points / points.norm(dim=1).mean().clamp(min=1e-30)
    rough, squares = points.float(), points.square().sum(1).float()
    nearest = []
    for start in range(0, len(points), _ROWS):
        rows = slice(start, start + _ROWS)
        distances = squares[rows, None] + squares - 2 * rough[rows] @ rough.T
        distances[torch.arange(len(distances)), torch.arange(start, start + len(distances))] = torch.inf
        # The product rounds near neighbours away: it only names candidates, whose distances are taken again.
        candidates = distances.topk(min(_CANDIDATES, len(points) - 1), largest=False).indices
        nearest.append((points[candidates] - points[rows, None]).norm(dim=-1).sort(dim=1).values[:, :2])
    first, second = torch.cat(nearest).numpy().T
    distinct = first >= DUPLICATE
    return np.sort(second[distinct] / first[distinct]), len(points)


def dimension_estimates(ratios: Float64[np.ndarray, " ratio"], count: int) -> dict[str, float]:
    """Intrinsic dimension by the names of `ESTIMATORS`; NaN where too few ratios are left.

    The distribution of the ratio μ is `F(μ) = 1 − μ^−D`: D is the slope through the origin of `−ln(1 − F)` over `ln μ`, taken
    over the lowest share of ratios, or `n / Σ ln μ`, the most likely one.

    Args:
        ratios: ascending, from `neighbour_ratios`.
        count: tokens, those without a ratio included.
    """
    found = {}
    logs = np.log(ratios)
    for name, share in (("lowest 20 %", 0.2), ("lowest 90 %", 0.9)):
        used = logs[: int(share * len(ratios))]
        below = np.arange(1, len(used) + 1) / count
        rise = -np.log1p(-below)
        found[name] = float((used * rise).sum() / (used**2).sum()) if (used > 0).any() else np.nan
    found["likelihood"] = float(len(logs) / logs.sum()) if (logs > 0).any() else np.nan
    return found


def participation_ratio(states: Float[Tensor, "token d"]) -> float:
    """`(Σλ)² / Σλ²` over the eigenvalues of the covariance: how many directions share the variance, between 1 and d."""
    centred = states.detach().cpu().double()
    centred = centred - centred.mean(0)
    rows, columns = centred.shape
    gram = centred @ centred.T if rows < columns else centred.T @ centred
    return float(gram.diagonal().sum() ** 2 / gram.square().sum())


def intrinsic_dimension(
    states: Float[Tensor, "layer token d"],
    *,
    layers: Sequence[int] | None = None,
    sizes: Sequence[int] = (256, 512, 1024, 2048, 4096),
    seed: int = 0,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """Dimensions of the states of each layer, for samples of several sizes, each a part of the next.

    Args:
        states: of many tokens, those that should not count left out.
        layers: names of the layers, one for each of `states`; by default 0, 1, ….
        sizes: tokens of the samples; those above the number of tokens are replaced by all of them.
        seed: of the order in which tokens are drawn.
        check: called before every layer; raising from it stops the work.

    Returns:
        Dataset over `layer`, `size` (tokens of the sample) and `estimator`:

        - `dimension[layer, size, estimator]`: from two nearest neighbours, by the names of `ESTIMATORS`;
        - `participation_ratio[layer, size]`, and `participation_ratio_null[size]`, `nd/(n+d)`, that of as many isotropic Gaussian
          states;
        - `distinct_share[layer, size]`: tokens whose nearest neighbour is not a duplicate.

    All of them depend on the size of the sample. Layer 0 has one state for each distinct token, and nothing else.

    Cost: `2 · token² · d` operations for each layer. Memory: one layer in float64 twice.

    Raises:
        InputError: another shape, or samples of fewer than 16 tokens.
    """
    if states.ndim != 3 or states.shape[1] < FEWEST or not sizes or min(sizes) < FEWEST:
        found = f"States of shape {tuple(states.shape)} and samples of {list(sizes)}"
        raise InputError(found, f"[layer, token, d], and samples of {FEWEST} tokens or more", "sizes=(256, 1024)")
    names = list(range(len(states))) if layers is None else list(layers)
    tokens, width = states.shape[1:]
    counts = sorted({min(size, tokens) for size in sizes})
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))
    shape = (len(names), len(counts))
    dimension, participation, distinct = np.empty((*shape, len(ESTIMATORS))), np.empty(shape), np.empty(shape)
    for row, layer in enumerate(states):
        if check is not None:
            check()
        for column, size in enumerate(counts):
            sample = layer[order[:size].to(layer.device)]
            ratios, count = neighbour_ratios(sample)
            estimates = dimension_estimates(ratios, count)
            dimension[row, column] = [estimates[name] for name in ESTIMATORS]
            participation[row, column] = participation_ratio(sample)
            distinct[row, column] = len(ratios) / count
    null = [size * width / (size + width) for size in counts]
    return xr.Dataset(
        {
            "dimension": exact(("layer", "size", "estimator"), dimension, "intrinsic dimension, two nearest neighbours"),
            "participation_ratio": exact(("layer", "size"), participation, "participation ratio of the covariance"),
            "participation_ratio_null": exact(("size",), np.array(null), "the same of isotropic Gaussian states"),
            "distinct_share": exact(("layer", "size"), distinct, "share of tokens whose nearest neighbour is no duplicate"),
        },
        {
            "layer": variable(("layer",), np.array(names), "residual state (0 is the embedding)"),
            "size": variable(("size",), np.array(counts), "tokens of the sample"),
            "estimator": texts(("estimator",), ESTIMATORS, "what the dimension is read from"),
        },
        {"source": SOURCE, "probe": "intrinsic_dimension", "seed": seed, **library_versions()},
    )
