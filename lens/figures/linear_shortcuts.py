"""Charts of linear shortcuts: R² for every pair of layers, and along the way to one target."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from lens.figures.chart import axis, chart, heat_map, lines, rule


def shortcut_chart(score: xr.Dataset, floor: xr.Dataset, target: int) -> dict[str, Any]:
    """A map of R² over pairs of layers, and the profile of all maps to one target.

    Args:
        score: from `Shortcuts.score`.
        floor: from `lens.noise_floor`.
        target: the layer that the profile leads to.
    """
    table = {(int(i), int(j)): n for n, (i, j) in enumerate(zip(score.from_layer.values, score.to_layer.values, strict=True))}
    layers = _full_layers(table)
    r2 = score.r2_pooled.to_numpy()
    cells = np.array([[r2[table[i, j]] if (i, j) in table else np.nan for i in layers[:-1]] for j in layers[1:]])
    sources = sorted(i for i, j in table if j == target)
    rows = [table[i, target] for i in sources]
    bound = axis("held-out R²", range=(-1.0, 1.0))
    identity = np.clip(score.identity_r2_pooled.to_numpy()[rows], -1.0, None)
    profile = {"shortcut": r2[rows], "identity": identity}
    shuffled = float(np.clip(floor.shuffled_r2.max(), -1.0, 1.0))
    return chart(
        [
            heat_map(
                "pairs", layers[:-1], layers[1:], cells,
                x_axis="from layer", y_axis="to layer", value_axis=axis("held-out R²", range=(0.0, 1.0)),
            ),
            lines(
                "profile", sources, profile, x_axis="from layer", y_axis=bound, title=f"to layer {target}",
                rules=[rule(shuffled, "shuffled tokens")],
            ),
        ]
    )  # fmt: skip


def _full_layers(table: dict[tuple[int, int], int]) -> list[int]:
    """As many layers as can be found between any two of which there is a map."""
    known = sorted({layer for pair in table for layer in pair})

    def grown(second: int) -> list[int]:
        chosen = [known[0], second]
        for layer in known:
            if layer > second and all((other, layer) in table for other in chosen):
                chosen.append(layer)
        return chosen

    return max((grown(second) for first, second in table if first == known[0]), key=len)
