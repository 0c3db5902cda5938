"""How a head's attention changes as the text grows: does it dilute over more keys, or keep to a fixed number of them?

Entropy of attention that spreads over all it sees grows by one nat each time the text is e times as long; that of a head which
looks at the token before, or at one sink, does not grow at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.stats
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from lens.base.errors import InputError
from lens.models.heads import head_states
from lens.models.model import Model
from lens.probes.attention_battery import attention_battery
from lens.probes.dataset import exact, texts, variable

SOURCE = "our own; fading of attention over long texts: Nakanishi, arXiv 2501.19399"
GROWING = ("effective_support", "mean_entropy", "effective_rank", "stable_rank", "participation_ratio", "first_token")
DILUTES = 0.5  # growth of the entropy, from which a head is said to dilute
_FIRST = 16

Heads = Float[np.ndarray, "measure block head"]


def attention_growth(
    model: Model,
    text: str | Sequence[Any] | Tensor,
    lengths: Sequence[int] | None = None,
    *,
    blocks: Sequence[int] | None = None,
    drop_sink: bool = False,
    measures: Sequence[str] = GROWING,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """Measures of every head at growing lengths of one text, and how fast they grow.

    Each prefix is run by itself, so that rotary tables which depend on the length are those of that length.

    Args:
        model: the model.
        text: a text or token ids, as for `Model.run`.
        lengths: tokens of the prefixes, three or more, 16 or longer; None for 16, 32, 64 and so on up to the text's length.
        blocks: which, or None for all.
        drop_sink: without the first key and the first query, as in `attention_battery`.
        measures: of `lens.probes.attention_battery.MEASURES`; those of entropies alone take a quarter of the time.
        check: called before every block of every pass, and before every head; raising from it stops the work.

    Returns:
        Dataset over `length`, `block`, `head` and `measure`:

        - every measure `[length, block, head]`;
        - `growth[measure, block, head]` with `growth_low` and `growth_high`: the slope over ln length of a straight line, for
          entropies of the entropy itself (1 where attention spreads over all that it sees), for all others of their logarithm
          (the exponent of a power law). The interval (95 %) says how straight the line is over the lengths of this text, not
          what other texts would give. NaN where fewer than three lengths have a value above 0;
        - `kind[block, head]`, if the mean entropy is measured: `dilutes` where the whole interval of its growth is above 0.5,
          `keeps its support` where it is below, `open` otherwise.

    Cost: one pass and one `attention_battery` a length: for doubling lengths, less than twice those of the longest.

    Raises:
        InputError: too few or too short lengths, or one beyond the text.
    """
    ids = model.encode(text)
    chosen = _lengths(len(ids), lengths)
    rows = [
        attention_battery(
            head_states(model, ids[:length], blocks, check=check), drop_sink=drop_sink, measures=measures, check=check
        )
        for length in chosen
    ]
    found = xr.concat(rows, "length", combine_attrs="drop", data_vars="all", coords="minimal", compat="override")
    names = list(measures)
    values = np.stack([found[name].to_numpy() for name in names])
    logarithmic = np.array(["entropy" not in name for name in names])
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.where(logarithmic[:, None, None, None], np.log(values), values)
    slope, low, high = growth_of(np.log(np.array(chosen, dtype=float)), np.where(np.isfinite(values), values, np.nan))
    dims = ("measure", "block", "head")
    columns: dict[str, Any] = {
        "growth": exact(dims, slope, "growth over ln length"),
        "growth_low": exact(dims, low, "growth over ln length, lower end"),
        "growth_high": exact(dims, high, "growth over ln length, upper end"),
    }
    if "mean_entropy" in names:
        place = names.index("mean_entropy")
        columns["kind"] = texts(("block", "head"), _kinds(low[place], high[place]), "what the head does as the text grows")
    coordinates = {
        "length": variable(("length",), np.array(chosen), "tokens of the prefix", "tokens"),
        "measure": texts(("measure",), names, "measure"),
    }
    attributes = {
        "source": SOURCE,
        "probe": "attention_growth",
        "tokens": len(ids),
        "dropped_sink": int(drop_sink),
        "dilutes_from": DILUTES,
        **model.provenance(),
    }
    return found.assign(columns).assign_coords(coordinates).assign_attrs(attributes)


def growth_of(
    logarithms: Float[np.ndarray, " length"], values: Float[np.ndarray, "measure length block head"], level: float = 0.95
) -> tuple[
    Float[np.ndarray, "measure block head"], Float[np.ndarray, "measure block head"], Float[np.ndarray, "measure block head"]
]:
    """Slopes of straight lines over the logarithm of the length, with their intervals; values that are NaN are left out.

    Returns:
        Slope, lower and upper end `[measure, block, head]`; NaN of fewer than three values.
    """
    known = np.isfinite(values)
    count = known.sum(1)
    x = np.where(known, logarithms[:, None, None], 0.0)
    y = np.where(known, values, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        x = np.where(known, x - (x.sum(1) / count)[:, None], 0.0)
        y = np.where(known, y - (y.sum(1) / count)[:, None], 0.0)
        spread = (x * x).sum(1)
        slope = (x * y).sum(1) / spread
        left = y - slope[:, None] * x
        error = np.sqrt((left * left).sum(1) / np.maximum(count - 2, 1) / spread)
    reach = scipy.stats.t.ppf((1 + level) / 2, np.maximum(count - 2, 1)) * error
    slope = np.where(count > 2, slope, np.nan)
    return slope, slope - reach, slope + reach


def _lengths(tokens: int, lengths: Sequence[int] | None) -> list[int]:
    if lengths is None:
        powers = [_FIRST * 2**power for power in range(64) if _FIRST * 2**power <= tokens]
        if len(powers) < 3:
            raise InputError(f"{tokens} tokens", f"{4 * _FIRST} or more, for three lengths", "a longer text")
        return powers
    chosen = sorted({int(length) for length in lengths})
    if len(chosen) < 3 or chosen[0] < _FIRST or chosen[-1] > tokens:
        found = f"The lengths {', '.join(str(length) for length in chosen) or '(none)'}"
        raise InputError(
            found, f"three or more from {_FIRST} to {tokens}, the tokens of the text", "lengths=None, for powers of two"
        )
    return chosen


def _kinds(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    found = np.where(low > DILUTES, "dilutes", np.where(high < DILUTES, "keeps its support", "open"))
    return found.astype(object)
