"""How far attention is a function of distance alone: its mean by offset, the Toeplitz share, and the spectrum of the profile.

Rows of weights are normalised over more and more keys, so that even a head that knows distances only has no Toeplitz weights
near the start of a text: the share is for logits. Natural text adds a decay of its own; the same text with its tokens
shuffled tells that apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from lens.base.errors import InputError
from lens.base.provenance import library_versions
from lens.models.heads import HeadStates, head_states
from lens.models.model import Model
from lens.probes.dataset import exact, variable
from lens.probes.lanes import stacked

SOURCE = "our own; frequencies of lanes: Su et al., arXiv 2104.09864, section 3.2"
FEWEST = 16  # cells of a diagonal whose mean goes into the spectrum
_PADDING = 4


def offset_profile(states: HeadStates | Sequence[HeadStates]) -> xr.Dataset:
    """Mean logit by offset of every head, the share of the logits that it explains, and its spectrum.

    Args:
        states: of one text, from `lens.models.heads.head_states`; blocks of one shape.

    Returns:
        Dataset over `block`, `head`:

        - `profile[…, offset]`: mean logit of the cells whose key lies `offset` tokens before the query, over the causal
          triangle; `cells[offset]`, how many;
        - `toeplitz_share`: Σ cells · profile² over the sum of all squared logits, 0 to 1;
        - `power[…, frequency]` of the profile over offsets with 16 cells or more, mean removed, under a Hann window, padded to
          four times its length; `frequency` in cycles/token. The resolution is about one over the number of tokens, so that
          slower lanes stand together at 0;
        - `lane_frequency[block, lane]`: θᵢ/2π, cycles/token, where lane i would show; NaN for lanes that a block does not have.

    Cost: `O(positions²)` a head. Memory: two such squares of one head.

    Raises:
        InputError: no block, blocks of several shapes, or a text too short for a spectrum (under 19 tokens).
    """
    blocks = [states] if isinstance(states, HeadStates) else list(states)
    shapes = {tuple(block.query.shape) for block in blocks}
    if len(shapes) != 1:
        raise InputError(
            f"{len(shapes)} shapes of queries", "one block or more, of one shape", "the blocks of one kind at a time"
        )
    heads, size, _ = shapes.pop()
    if size < FEWEST + 3:
        raise InputError(f"{size} tokens", f"{FEWEST + 3} or more", "a longer text")
    found = [[profile_of(block.logits(head)) for head in range(heads)] for block in blocks]
    profile = np.array([[one for one, _ in row] for row in found])
    frequency, power = spectrum_of(profile[..., : size - FEWEST + 1])
    offsets, lanes = np.arange(size), stacked([block.theta for block in blocks])
    return xr.Dataset(
        {
            "profile": exact(("block", "head", "offset"), profile, "mean logit by offset"),
            "cells": variable(("offset",), size - offsets, "cells that the mean is over"),
            "toeplitz_share": exact(
                ("block", "head"), np.array([[share for _, share in row] for row in found]), "share of a function of distance"
            ),
            "power": exact(("block", "head", "frequency"), power, "power of the profile"),
            "lane_frequency": exact(("block", "lane"), lanes / (2 * np.pi), "frequency of the lane", "cycles/token"),
        },
        {
            "block": variable(("block",), np.array([block.block for block in blocks]), "block"),
            "head": variable(("head",), np.arange(heads), "query head"),
            "offset": variable(("offset",), offsets, "tokens from the key to the query", "tokens"),
            "frequency": exact(("frequency",), frequency, "frequency", "cycles/token"),
            "lane": variable(("lane",), np.arange(lanes.shape[1]), "rotary lane, 0 the fastest"),
        },
        {"source": SOURCE, "probe": "offset_profile", "tokens": size, **library_versions()},
    )


def shuffled_profile(
    model: Model,
    text: str | Sequence[Any] | Tensor,
    *,
    seed: int = 0,
    blocks: Sequence[int] | None = None,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """`offset_profile` of a text whose tokens, the first apart, are shuffled: what is left is the model's, not the text's.

    Args:
        model: the model.
        text: a text or token ids, as for `Model.run`.
        seed: of the order.
        blocks: which, or None for all.
        check: called before every block; raising from it stops the pass.

    Returns:
        As `offset_profile`, with the attribute `shuffled`, the seed.

    Raises:
        InputError: see `offset_profile` and `lens.head_states`.
    """
    first, *rest = model.encode(text)
    order = np.random.default_rng(seed).permutation(len(rest))
    states = head_states(model, [first, *(rest[place] for place in order)], blocks, check=check)
    return offset_profile(states).assign_attrs(shuffled=seed, **model.provenance())


def profile_of(values: Float[np.ndarray, "query key"]) -> tuple[Float[np.ndarray, " offset"], float]:
    """Mean of every diagonal of the causal triangle, and the share of its squares that these means hold."""
    size = len(values)
    lower = np.tril(values)
    # Read in rows that are one cell longer, diagonals stand upright: the main one first, then the farthest.
    rows = np.zeros((size, size + 1))
    rows.ravel()[: size * size] = lower.ravel()
    sums = np.roll(rows.sum(0)[::-1], 1)[:size]
    cells = size - np.arange(size)
    energy = float((lower * lower).sum())
    return sums / cells, float((sums**2 / cells).sum()) / energy if energy else 1.0


def spectrum_of(
    profile: Float[np.ndarray, "*axes offset"],
) -> tuple[Float[np.ndarray, " frequency"], Float[np.ndarray, "*axes frequency"]]:
    """Frequencies in cycles/token, and the power of a profile there."""
    size = profile.shape[-1]
    centred = (profile - profile.mean(-1, keepdims=True)) * np.hanning(size)
    power = np.abs(np.fft.rfft(centred, _PADDING * size, axis=-1)) ** 2
    return np.fft.rfftfreq(_PADDING * size), power
