"""Similarity of two layers' geometries, whatever rotation lies between them, from moments alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from lens.moments import Moments, Pair
from lens.probes.dataset import fit_provenance, variable
from lens.probes.procrustes import pair_coordinates, selected_pairs

SOURCE = "Kornblith, Norouzi, Lee and Hinton, arXiv 1905.00414, section 3 (linear kernel)"


def cka(moments: Moments, *, pairs: Sequence[Pair] | None = None) -> xr.Dataset:
    """Linear centred kernel alignment of pairs of layers: `‖Sxy‖² / (‖Sxx‖·‖Syy‖)`, Frobenius norms.

    It is 1 for states equal up to rotation, reflection, one scale and a shift. It is biased upwards where
    tokens are few, and ruled by the directions of most variance: one massive activation can move it from
    .98 to .06. An unbiased estimate needs `Σ ‖x‖²‖y‖²` over tokens, which moments do not hold, so that the
    biased one stands here beside its level for unrelated layers.

    Args:
        moments: of any part; nothing is fitted.
        pairs: which pairs; by default all of the moments.

    Returns:
        Dataset over `pair` (coordinates `from_layer`, `to_layer`), pure numbers between 0 and 1:

        - `cka`: of the tokens as they are;
        - `null`: its mean over all ways of dealing one layer's states to other tokens,
          `tr Sxx · tr Syy / ((n−1)·‖Sxx‖·‖Syy‖)`. It is exact; for isotropic Gaussian states it comes to `d/(n+d)`.

    Raises:
        InputError: a missing pair, fewer than two tokens, or a layer whose states do not vary.
    """
    chosen = selected_pairs(pairs, moments)
    size = {layer: moments.within[layer].norm() for pair in chosen for layer in pair}
    energy = {layer: moments.within[layer].trace() for layer in size}
    found = [float(moments.across[i, j].square().sum() / (size[i] * size[j])) for i, j in chosen]
    null = [float(energy[i] * energy[j] / ((moments.count - 1) * size[i] * size[j])) for i, j in chosen]
    return xr.Dataset(
        {
            "cka": variable(("pair",), np.array(found), "linear CKA"),
            "null": variable(("pair",), np.array(null), "mean linear CKA of the same states on shuffled tokens"),
        },
        coords=pair_coordinates(chosen),
        attrs={"source": SOURCE, "probe": "cka", "tokens": moments.count, **fit_provenance(moments.source)},
    )
