"""The same grid without a browser: matplotlib, for PNG, PDF and SVG files."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import xarray as xr

from lens.base.errors import InputError
from lens.base.text import visible
from lens.figures.measures import (
    ACCENT,
    DEEP,
    SURFACE,
    cell_values,
    chosen_measure,
    first_shown,
    ink,
    shown_correct,
    shown_layers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_MONO, _SANS = "DejaVu Sans Mono", "DejaVu Sans"  # shipped with matplotlib: the same picture on every machine
_WIDEST = 400  # tokens; beyond, a picture would exceed matplotlib's largest canvas


def logit_lens_figure(dataset: xr.Dataset, colour: str = "probability", stride: int = 1) -> Figure:
    """Draw the token grid of a logit-lens Dataset; see `lens.figures.logit_lens.figure` for its marks.

    Args:
        dataset: from `lens.logit_lens`.
        colour: `probability`, `entropy`, `next_rank` or `kl_to_final`.
        stride: show every so many layers.

    Raises:
        InputError: unknown options, or more tokens than a picture can hold.
    """
    import matplotlib.colors
    from matplotlib.figure import Figure

    if dataset.sizes["position"] > _WIDEST:
        found = f"{dataset.sizes['position']} tokens"
        raise InputError(found, f"at most {_WIDEST} in a picture", "an .html page or a .csv table")
    measure = chosen_measure(dataset, colour)
    layers = shown_layers(dataset, stride)
    shades = measure.shade(cell_values(dataset.sel(layer=layers), colour))
    figure = Figure(figsize=(1.6 + 0.85 * dataset.sizes["position"], 1.2 + 0.3 * len(layers)), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    hue = matplotlib.colors.LinearSegmentedColormap.from_list("lens", [SURFACE, DEEP])
    mesh = axes.pcolormesh(shades, cmap=hue, vmin=0, vmax=1, edgecolors="white", linewidth=1)
    _write_words(axes, dataset.sel(layer=layers), shades)
    _draw_marks(axes, dataset, layers)
    axes.set_yticks([row + 0.5 for row in range(len(layers))], [str(layer) for layer in layers])
    tokens = [drawable(visible(token, 10)) for token in dataset.input_token.to_numpy()]
    axes.set_xticks([column + 0.5 for column in range(len(tokens))], tokens, family=_MONO, weight="bold")
    axes.set_ylabel("layer")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(mesh, ax=axes, ticks=[0, 1], fraction=0.03, pad=0.01)
    bar.ax.set_yticklabels(measure.ends)
    bar.set_label(measure.title)
    bar.outline.set_visible(False)
    title = f"{dataset.attrs['model']} · {dataset.attrs.get('lens', 'plain')} lens"
    axes.set_title(drawable(title), loc="left", fontsize=9, color="#555")
    return figure


def _write_words(axes: Axes, shown: xr.Dataset, shades) -> None:
    words = shown.token.sel(rank=1).to_numpy()
    for row in range(words.shape[0]):
        for column in range(words.shape[1]):
            axes.text(
                column + 0.5, row + 0.5, drawable(visible(words[row, column], 9)),
                ha="center", va="center", color=ink(shades[row, column]), family=_MONO, fontsize=7.5,
            )  # fmt: skip


def _draw_marks(axes: Axes, dataset: xr.Dataset, layers: list[int]) -> None:
    rows = {layer: row for row, layer in enumerate(layers)}
    for column, (settled, right) in enumerate(zip(dataset.settled_layer.to_numpy(), shown_correct(dataset, layers), strict=True)):
        base = first_shown(layers, settled)
        if base is not None:
            axes.plot([column + 0.03, column + 0.97], [rows[base] + 0.04] * 2, color=ACCENT, linewidth=2)
        if right is not None:
            axes.plot(
                column + 0.9, rows[right] + 0.8, "o", color=ACCENT, markersize=4, markeredgecolor="white", markeredgewidth=0.6
            )


def drawable(text: str) -> str:
    """Keep matplotlib from reading dollar signs as mathematics, and from warning of characters that its font lacks."""
    known = _font_characters()
    return "".join(character if ord(character) in known else "□" for character in text).replace("$", r"\$")


@cache
def _font_characters() -> frozenset[int]:
    """Code points that both of matplotlib's own fonts have, the one for words and the one for everything else."""
    from matplotlib.font_manager import findfont
    from matplotlib.ft2font import FT2Font

    maps = [FT2Font(findfont(family)).get_charmap() for family in (_MONO, _SANS)]
    return frozenset(set(maps[0]) & set(maps[1]))
