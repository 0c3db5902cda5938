"""The attention atlas as a description for its widget: small JSON and little-endian arrays, and never the whole tensor.

Weights travel as 16-bit shares of one: a stored weight is off by half of 1/65,534 at most, below 7.7e-6. Up to `WHOLE` tokens a
pattern is sent whole, as its lower triangle. Of a longer text go tiles with the largest weight of each, and the strongest keys
of each query.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from lens.base.errors import InputError
from lens.base.text import visible
from lens.figures.chart import BLACK, BLUE, MARKS, ORANGE, PARTS, axis, chart, heat_map, lines, series
from lens.figures.chart_parts import round_range

SCRIPTS = (*PARTS, "head_grid_pattern.js", "head_grid_text.js", "head_grid.js")
STYLES = ("theme.css", "chart.css", "head_grid.css")

WHOLE = 256
"""Tokens up to which a pattern is sent whole; of a longer text as many tiles at most along a side."""
EDGES = 8
"""Strongest keys that are sent of each query of a longer text."""
BLOCK_BYTES = 700_000
"""Of all patterns of a block; where they are more, only the chosen head's is sent."""
THUMBNAIL = 48  # tiles along a side of a small picture
PICTURE = 96  # and of the map in a file
FLOOR = 1e-4  # of the scree plot: singular values below it leave the picture

_MISSING = 65_535
_TOP = 65_534  # the largest stored share


def overview_spec(
    measures: xr.Dataset, tokens: Sequence[str], *, ranges: Mapping[str, Sequence[float] | None], note: str = ""
) -> dict[str, Any]:
    """All heads by all measures, and the text.

    Args:
        measures: variables over `block` and `head`, with `long_name` and `units`; NaN leaves a cell blank.
        tokens: of the text.
        ranges: which variables are shown, in this order, and over which range; None for round numbers around the values.
        note: what the reader must know of the whole, as that a text was cut.
    """
    found = []
    for name, given in ranges.items():
        values = measures[name].transpose("block", "head")
        low, high = given if given is not None else round_range(_finite(values), "linear", name)
        signed = low < 0 < high
        end = max(-low, high)
        found.append(
            {
                "name": name,
                "label": short_name(values),
                "words": values.attrs["long_name"],
                "unit": "" if values.attrs["units"] == "1" else values.attrs["units"],
                "range": [-end, end] if signed else [low, high],
                "signed": signed,
                "values": _array(values.to_numpy(), "float32"),
            }
        )
    return {
        "version": 1,
        "tokens": [visible(token) for token in tokens],
        "blocks": measures.block.to_numpy().tolist(),
        "heads": measures.sizes["head"],
        "measures": found,
        "note": note,
    }


def short_name(values: xr.DataArray) -> str:
    """What a measure is called where there is no room for how it is computed."""
    return str(values.attrs["long_name"]).partition(",")[0]


def block_spec(block: int, patterns: Iterable[ArrayLike], heads: int, positions: int) -> dict[str, Any]:
    """The heads of one block: a small picture of each, and their whole patterns where `BLOCK_BYTES` hold them.

    Args:
        block: which.
        patterns: of each head `[query, key]`, NaN where nothing is seen; taken one at a time.
        heads, positions: how many.
    """
    whole = sends_block(heads, positions)
    small, triangles = [], []
    for pattern in patterns:
        values = np.asarray(pattern, dtype=float)
        small.append(_tiled(values, min(THUMBNAIL, positions)))
        if whole:
            triangles.append(values[np.tril_indices(positions)])
    spec: dict[str, Any] = {"block": int(block), "thumbs": _shares(np.stack(small))}
    return {**spec, "weights": _shares(np.stack(triangles))} if whole else spec


def sends_block(heads: int, positions: int) -> bool:
    """Whether the patterns of a whole block are sent."""
    return positions <= WHOLE and heads * positions * (positions + 1) <= BLOCK_BYTES


def detail_spec(detail: xr.Dataset, block: int, head: int, *, whole: bool) -> dict[str, Any]:
    """What is sent of the chosen head alone: its scree plot, its logits, and its pattern where the block's are not sent.

    Args:
        detail: `attention[query, key]` and `logit[query, key]`, NaN where nothing is seen; `singular_value`,
            `uniform_singular_value` and `identity_singular_value` over `rank`; `largest_norm`, which none of them exceeds.
        block, head: which.
        whole: whether the pattern of this head comes with its block.
    """
    attention, logits = (detail[name].to_numpy() for name in ("attention", "logit"))
    positions = len(attention)
    spec: dict[str, Any] = {"block": int(block), "head": int(head), "scree": _scree(detail)}
    if positions <= WHOLE:
        triangle = np.tril_indices(positions)
        spec["logits"] = _levels(logits[triangle])
        return spec if whole else {**spec, "weights": _shares(attention[triangle][None])}
    tile = tile_of(positions)
    spec["logits"] = _levels(_tiled(logits, -(-positions // tile)))
    spec["tiles"] = {**_shares(_tiled(attention, -(-positions // tile))), "tile": tile}
    spec["edges"] = _edges(attention)
    return spec


def tile_of(positions: int) -> int:
    """Tokens along a side of a tile; 1 where a pattern is sent whole."""
    return -(-positions // WHOLE)


def strongest(attention: np.ndarray, count: int = EDGES) -> tuple[np.ndarray, np.ndarray]:
    """The strongest keys of each query and their weights, `[query, count]`, descending; NaN where fewer are seen."""
    values = np.nan_to_num(attention, nan=-1.0)
    keys = np.argsort(-values, axis=-1, kind="stable")[:, :count]
    weights = np.take_along_axis(values, keys, -1)
    return keys, np.where(weights < 0, np.nan, weights)


def _edges(attention: np.ndarray) -> dict[str, Any]:
    keys, weights = strongest(attention)
    return {"keys": _array(keys, "uint16"), "weights": _shares(weights)}


def _scree(detail: xr.Dataset) -> dict[str, Any]:
    curves = [detail[name].to_numpy() for name in _CURVES]
    colours = [colour for _, colour in _CURVES.values()]
    return {
        "names": [name for name, _ in _CURVES.values()],
        "colours": colours,
        "markers": [MARKS[colour] for colour in colours],
        "range": _scree_range(detail),
        "values": _array(np.stack(curves), "float32"),
    }


def _scree_range(detail: xr.Dataset) -> list[float]:
    return [FLOOR, float(f"{1.25 * float(detail.largest_norm):.3g}")]


_CURVES = {
    "singular_value": ("this head", BLUE),
    "uniform_singular_value": ("uniform", ORANGE),
    "identity_singular_value": ("identity", BLACK),
}


# -- arrays ---------------------------------------------------------------------------------------


def _shares(values: np.ndarray) -> dict[str, Any]:
    """Weights, 0 to 1, as 16-bit shares; NaN as missing."""
    stored = np.where(np.isnan(values), _MISSING, np.rint(np.nan_to_num(values) * _TOP).clip(0, _TOP))
    return {**_array(stored, "uint16"), "scale": 1 / _TOP, "missing": _MISSING}


def _levels(values: np.ndarray) -> dict[str, Any]:
    """Numbers as 65,535 levels between the smallest and the largest of them; NaN as missing."""
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    scale = (high - low) / _TOP or 1.0
    stored = np.where(np.isnan(values), _MISSING, np.rint((np.nan_to_num(values) - low) / scale).clip(0, _TOP))
    bound = round_range(np.array([0.0, max(-low, high, 0.0)]), "linear", "logits")[1]
    return {**_array(stored, "uint16"), "scale": scale, "low": low, "missing": _MISSING, "bound": bound}


def _array(values: np.ndarray, dtype: str) -> dict[str, Any]:
    array = np.ascontiguousarray(values, dtype=np.dtype(dtype).newbyteorder("<"))
    return {"dtype": dtype, "shape": list(array.shape), "data": array.tobytes()}


def _tiled(values: np.ndarray, side: int) -> np.ndarray:
    """The largest value of each tile, `[side, side]`; NaN where a tile has none."""
    tile = -(-len(values) // side)
    room = tile * -(-len(values) // tile) - len(values)
    padded = np.pad(np.where(np.isnan(values), -np.inf, values), (0, room), constant_values=-np.inf)
    count = len(padded) // tile
    largest = padded.reshape(count, tile, count, tile).max((1, 3))
    return np.where(np.isneginf(largest), np.nan, largest)


def _finite(values: xr.DataArray) -> np.ndarray:
    found = values.to_numpy()
    return found[np.isfinite(found)]


# -- a picture without a browser ------------------------------------------------------------------


def head_grid_chart(
    measures: xr.Dataset, detail: xr.Dataset, tokens: Sequence[str], *, measure: str, limits: Sequence[float] | None, values: str
) -> dict[str, Any]:
    """The atlas as a chart of three plots, for files and for places without a browser; see `lens.figures.chart`.

    Args:
        measures: as for `overview_spec`.
        detail: as for `detail_spec`.
        tokens: of the text.
        measure: which of the measures.
        limits: its range, or None.
        values: `attention` or `logit`.

    Raises:
        InputError: other values.
    """
    if values not in VALUES:
        raise InputError(f"The values are {values!r}", f"one of {', '.join(VALUES)}", "values='attention'")
    shown = measures[measure].transpose("block", "head")
    signed = limits is None and bool((_finite(shown) < 0).any())
    units = "" if shown.attrs["units"] == "1" else shown.attrs["units"]
    heads = heat_map(
        "heads", shown["head"], shown["block"], shown, x_axis="head", y_axis="block",
        value_axis=axis(short_name(shown), units, range=None if signed else limits), signed=signed,
    )  # fmt: skip
    ranks = np.arange(1, detail.sizes["rank"] + 1)
    curves = [series(name, detail[key], colour=colour) for key, (name, colour) in _CURVES.items()]
    height = axis("singular value", scale="log", range=_scree_range(detail))
    scree = lines("scree", ranks, curves, x_axis="rank", y_axis=height, marks=False)
    return chart([heads, _map(detail, tokens, values), scree])


VALUES = ("attention", "logit")


def _map(detail: xr.Dataset, tokens: Sequence[str], values: str) -> dict[str, Any]:
    """Queries down, keys right; weights as their square roots, or those of a hundredth could not be told from none."""
    whole = detail[values].to_numpy()
    tile = -(-len(whole) // PICTURE)
    tiles = _tiled(whole, -(-len(whole) // tile))
    names = [visible(tokens[n], 12) if tile == 1 else str(n) for n in range(0, len(tokens), tile)]
    roots = values == "attention"
    value_axis = axis("square root of attention", range=(0.0, 1.0)) if roots else axis("logit")
    title = f"largest of {tile} × {tile}" if tile > 1 else ""
    places = np.arange(len(tiles))
    return heat_map(
        "cells", places, places, np.sqrt(tiles) if roots else tiles, x_axis=axis("key", labels=names),
        y_axis=axis("query", labels=names), value_axis=value_axis, signed=not roots, title=title, down=True,
    )  # fmt: skip
