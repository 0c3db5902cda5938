"""One head's pattern and spectrum as a reader sees them: at their places in the text, and blank where nothing is seen."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import xarray as xr

from lens.models.heads import HeadStates
from lens.probes.attention_battery import SOURCE, Head
from lens.probes.dataset import exact, variable
from lens.probes.singular_values import Spectrum, spectrum_of_matrix


def seen_pattern(states: HeadStates, head: int, *, drop_sink: bool = False) -> xr.DataArray:
    """Attention weights `[query, key]` of one head, NaN where its mask lets a query see nothing.

    Args:
        states: one block of one text.
        head: query head.
        drop_sink: blank the first key and the first query, and give each row its share back.
    """
    one = Head(states, head, drop_sink=drop_sink)
    return xr.DataArray(_placed(one, one.weights, "attention"), _places(one), name="attention")


def seen_detail(states: HeadStates, head: int, *, drop_sink: bool = False) -> xr.Dataset:
    """The pattern of one head, its logits, and its singular values beside those of uniform attention and of none to others.

    Args:
        states, head, drop_sink: as for `seen_pattern`.

    Returns:
        Dataset with `attention` and `logit` over `query` and `key`, NaN where nothing is seen, and over `rank`, which counts
        from 1: `singular_value`, `uniform_singular_value` (each causal query looks alike at all keys it sees) and
        `identity_singular_value` (each query looks at itself), over the same number of positions. `largest_norm`, √positions, is
        what no singular value can exceed. The ranks of the head and of uniform attention are attributes.

    Cost: one singular value decomposition, `O(positions³)`; `lens.probes.attention_battery.head_detail` has more.
    """
    one = Head(states, head, drop_sink=drop_sink)
    size = len(one.weights)
    singular, ranks = spectrum_of_matrix(one.weights, size)
    uniform = _uniform(size, states.window or size)
    spectra = {
        "singular_value": (singular, "singular value"),
        "uniform_singular_value": (uniform.singular, "singular value of uniform attention"),
        "identity_singular_value": (np.ones(len(singular)), "singular value of the identity"),
    }
    return xr.Dataset(
        {
            "attention": _placed(one, one.weights, "attention"),
            "logit": _placed(one, one.logits, "logit"),
            **{name: exact(("rank",), *found) for name, found in spectra.items()},
            "largest_norm": exact((), np.sqrt(size), "largest singular value that a pattern can have"),
        },
        {**_places(one), "rank": variable(("rank",), np.arange(1, len(singular) + 1), "rank of the singular value")},
        {
            "source": SOURCE, "probe": "seen_detail", "block": states.block, "head": head, "dropped_sink": int(drop_sink),
            **{name: float(value) for name, value in ranks.items()},
            **{f"uniform_{name}": float(value) for name, value in uniform.ranks.items()},
        },
    )  # fmt: skip


def _placed(one: Head, values: np.ndarray, name: str) -> xr.Variable:
    """Values of the keys and queries that are left, where they stand in the text."""
    known = np.where(one.seen, values, np.nan)
    return exact(("query", "key"), np.pad(known, ((one.first, 0), (one.first, 0)), constant_values=np.nan), name)


def _places(one: Head) -> dict[str, xr.Variable]:
    positions = np.arange(len(one.pattern))
    return {name: variable((name,), positions, f"position of the {name}") for name in ("query", "key")}


@lru_cache(maxsize=8)
def _uniform(size: int, window: int) -> Spectrum:
    seen = np.tril(np.triu(np.ones((size, size)), 1 - window))
    return spectrum_of_matrix(seen / seen.sum(-1, keepdims=True), size)
