"""Which tokens a block treats as one matrix would, and which it does not.

Source: Razzhigaev et al., "LLM-Microscope" (arXiv 2502.15007), section 3: the error of the best linear map between two layers,
token by token. There the map is fitted on the tokens that are scored; here it comes from other documents.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from lens.base.errors import InputError
from lens.models.run import Run
from lens.moments import Moments
from lens.probes.dataset import fit_provenance, prompt_coordinates, provenance, texts, variable
from lens.probes.shortcuts import Shortcuts
from lens.probes.token_classes import CLASSES, token_classes

SOURCE = "arXiv 2502.15007, section 3 (error of a linear map, token by token; here on text that it was not fitted on)"


def token_nonlinearity(run: Run, shortcuts: Shortcuts, spread: Moments) -> xr.Dataset:
    """Error of the fitted linear map in every block's place, for every token of a run.

    Args:
        run: of a text that the maps were not fitted on.
        shortcuts: maps with adjacent pairs, fitted on this model.
        spread: moments of text of the same kind, for what the states' size is compared with.

    Returns:
        Dataset over `block` (block b leads from layer b to b+1) and `position`, pure numbers:

        - `nonlinearity[block, position]`: ‖f(x) − y‖ over the root mean square of ‖y − μ‖ over the tokens of `spread`. It is the
          paper's error of centred states of Frobenius norm 1, times the square root of the number of tokens, on which that
          depends;
        - `relative[block, position]`: ‖f(x) − y‖ over this token's own ‖y − μ‖, so that a large state is no large error;
        - `typical[block]`: root mean square of `nonlinearity` that is to be expected on text of the fitted kind;
        - `token_class[position]`: number in `CLASSES` (coordinate `class_name`).

    Position 0 is there, but no map is fitted on it.

    Raises:
        InputError: another model, no adjacent pairs, or moments without the states that they lead to.
    """
    shortcuts.require_model(run.model)
    blocks = [i for i, j in shortcuts.pairs if j == i + 1] if shortcuts.of_part == "residual" else []
    if not blocks or any(block + 1 not in spread.within for block in blocks) or spread.count < 2:
        found = f"{len(blocks)} maps of one block and moments of the layers {sorted(spread.within)[:4]} …"
        raise InputError(found, "adjacent pairs in both", "collect_moments(pairs='adjacent', 'both' or 'overview')")
    scale = np.array([float(spread.within[block + 1].trace() / spread.count) ** 0.5 for block in blocks])
    pairs = [_errors(run.residual, shortcuts, spread, block) for block in blocks]
    error, size = (np.stack(part) for part in zip(*pairs, strict=True))
    # Read from moments, an error of nothing can come out below it.
    expected = np.array([max(shortcuts.error[block, block + 1], 0.0) for block in blocks]) ** 0.5
    coordinates = prompt_coordinates(run)
    del coordinates["layer"]
    cell = ("block", "position")
    return xr.Dataset(
        {
            "nonlinearity": variable(cell, error / scale[:, None], "error of a linear map over the spread of states"),
            "relative": variable(cell, error / np.maximum(size, 1e-30), "error of a linear map over the token's own deviation"),
            "typical": variable(("block",), expected / scale, "root mean square error on text of the fitted kind"),
            "token_class": variable(("position",), token_classes(run.tokens), "number of the token's class"),
        },
        {
            "block": variable(("block",), np.array(blocks), "block, from layer b to b+1"),
            "class_name": texts(("token_kind",), CLASSES, "name of a class of tokens"),
            **coordinates,
        },
        {**provenance(run, SOURCE, {"probe": "token_nonlinearity"}), **fit_provenance(shortcuts.source)},
    )


def _errors(
    residual: Float[Tensor, "layer position d"], shortcuts: Shortcuts, spread: Moments, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """Norms of the error and of the deviation from the mean, by position."""
    fitted = shortcuts.maps[block, block + 1]
    matrix, before, after = (part.double().cpu() for part in (fitted.matrix, fitted.mean_from, fitted.mean_to))
    given, wanted = residual[block].double().cpu(), residual[block + 1].double().cpu()
    error = ((given - before) @ matrix + after - wanted).norm(dim=1)
    return error.numpy(), (wanted - spread.mean[block + 1].double().cpu()).norm(dim=1).numpy()
