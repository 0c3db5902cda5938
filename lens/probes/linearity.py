"""How linear a block is: what one affine map for all tokens leaves unexplained.

Source: Razzhigaev et al., "Your Transformer is Secretly Linear" (arXiv 2405.12250), section 3. The
paper's score is the R² of unconstrained least squares on the very tokens that it was fitted on; it is
given here beside the held-out one, with the null level of each.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from lens.base.errors import InputError
from lens.moments import Moments, Pair
from lens.probes.dataset import fit_provenance, variable
from lens.probes.shortcuts import held_out_null, in_sample_null, solve_ridge, squared_error

SOURCE = "arXiv 2405.12250, section 3 (in-sample score, with and without the residual stream)"


def linearity(train: Moments, test: Moments, *, ridge: float = 1e-4) -> xr.Dataset:
    """Linearity of every block, fitted on one text and scored on another.

    Args:
        train, test: moments with the adjacent pairs, of documents that do not overlap.
        ridge: penalty of the held-out fit, as a share of the mean variance; the in-sample score has none.

    Returns:
        Dataset over `block` (block b leads from layer b to b+1), pure numbers:

        - `score`: held-out R² of the map from layer b to b+1, pooled over coordinates;
        - `score_update`: the same of the block's own update, `h[b+1] − h[b]`;
        - `score_uniform`, `score_update_uniform`: the mean R² of single coordinates instead, of those that vary;
        - `score_in_sample`, `score_update_in_sample`: the paper's scores, on the training tokens;
        - `null`, `null_in_sample`: what independent Gaussian states would score;
        - `update_energy`: variance of the update over that of the output. It links the two scores:
          `1 − score_update = (1 − score) / update_energy` for one and the same map;
        - `update_norm`: root-mean-square norm of the update over that of the output, means included. (The
          paper's norm ratio is a mean of ratios over tokens, which moments do not hold.)

    Raises:
        InputError: no adjacent pairs, or no more training tokens than the stream is wide.
    """
    pairs = [pair for pair in train.pairs if pair[1] == pair[0] + 1]
    if not pairs or any(pair not in test.across for pair in pairs):
        raise InputError("The moments lack adjacent pairs", "them in both parts", "collect_moments(pairs='adjacent' or 'both')")
    if train.count <= train.width:
        raise InputError(f"{train.count} training tokens", f"more than {train.width}", "collect_moments(..., tokens=20_000)")
    rows = [_score(train, test, pair, ridge) for pair in pairs]
    labels = {
        "score": "held-out R² of a linear map in the block's place",
        "score_update": "held-out R² of the block's own update",
        "score_uniform": "held-out R² of a linear map, mean over coordinates",
        "score_update_uniform": "held-out R² of the update, mean over coordinates",
        "score_in_sample": "R² on the tokens that were fitted",
        "score_update_in_sample": "R² of the update on the tokens that were fitted",
        "update_energy": "variance of the update over that of the output",
        "update_norm": "root-mean-square norm of the update over that of the output",
    }
    columns = {name: variable(("block",), np.array([row[name] for row in rows]), label) for name, label in labels.items()}
    levels = {"null": held_out_null(train.count, train.width), "null_in_sample": in_sample_null(train.count, train.width)}
    columns |= {
        name: variable(("block",), np.full(len(rows), v), "R² of independent Gaussian states") for name, v in levels.items()
    }
    facts = {"source": SOURCE, "probe": "linearity", "ridge": ridge, "tokens_fitted": train.count, "tokens_scored": test.count}
    return xr.Dataset(
        columns,
        coords={"block": variable(("block",), np.array([i for i, _ in pairs]), "block, from layer b to b+1")},
        attrs={**facts, **fit_provenance(train.source)},
    )


def _score(train: Moments, test: Moments, pair: Pair, ridge: float) -> dict[str, float]:
    matrix = solve_ridge(train.within[pair[0]], train.across[pair], ridge)
    exact = solve_ridge(train.within[pair[0]], train.across[pair], 0.0)
    held_out, in_sample = _error(train, test, pair, matrix), _error(train, train, pair, exact).sum()
    state, update = (_energy(test, pair, update=update) for update in (False, True))
    return {
        "score": float(1 - held_out.sum() / state.sum()),
        "score_update": float(1 - held_out.sum() / update.sum()),
        "score_uniform": _uniform(held_out, state),
        "score_update_uniform": _uniform(held_out, update),
        "score_in_sample": float(1 - in_sample / _energy(train, pair, update=False).sum()),
        "score_update_in_sample": float(1 - in_sample / _energy(train, pair, update=True).sum()),
        "update_energy": float(update.sum() / state.sum()),
        "update_norm": _norm_ratio(test, pair, state, update),
    }


def _error(fitted: Moments, scored: Moments, pair: Pair, matrix: Float[Tensor, "d d"]) -> Float[Tensor, " d"]:
    """Squared error of a map; the same for the state and for the update, since the update's map is the matrix less 1."""
    i, j = pair
    offset = (scored.mean[j] - fitted.mean[j]) - (scored.mean[i] - fitted.mean[i]) @ matrix
    error = squared_error(scored.within[i], scored.across[pair], scored.within[j].diagonal(), matrix)
    return error + scored.count * offset**2


def _energy(moments: Moments, pair: Pair, *, update: bool) -> Float[Tensor, " d"]:
    """Sums of squares of the output, or of the output less the input, about their mean."""
    i, j = pair
    output = moments.within[j].diagonal()
    return output - 2 * moments.across[pair].diagonal() + moments.within[i].diagonal() if update else output


def _uniform(error: Float[Tensor, " d"], energy: Float[Tensor, " d"]) -> float:
    # A coordinate that does not vary has no R²; rounding leaves it a little energy.
    varies = energy > 1e-12 * energy.mean()
    return float((1 - error[varies] / energy[varies]).mean())


def _norm_ratio(moments: Moments, pair: Pair, state: Float[Tensor, " d"], update: Float[Tensor, " d"]) -> float:
    i, j = pair
    before, after = moments.mean[i], moments.mean[j]
    squared_update = update.sum() + moments.count * (after - before).square().sum()
    return float(squared_update / (state.sum() + moments.count * after.square().sum())) ** 0.5
