"""From measured values to a word: a claim holds, fails, or is left open by the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from lens.base.errors import InputError


def document_interval(
    documents: Sequence[Any],
    statistic: Callable[[Sequence[Any]], float],
    *,
    level: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic, resampling whole documents.

    Tokens of one text depend on each other; texts do not. With few documents the interval is wide, as
    it should be.

    Args:
        documents: one entry per document, at least two.
        statistic: a number from a list of such entries.
        level: coverage.
        resamples, seed: of the bootstrap.

    Returns:
        Lower and upper end, in the statistic's own units. Source: Efron and Tibshirani, "An
        Introduction to the Bootstrap" (1993), section 13.3.

    Raises:
        InputError: fewer than two documents.
    """
    if len(documents) < 2:
        raise InputError(f"{len(documents)} document", "at least 2 to resample", "more texts")
    generator = np.random.default_rng(seed)
    draws = generator.integers(len(documents), size=(resamples, len(documents)))
    values = [statistic([documents[i] for i in draw]) for draw in draws]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def verdict(interval: tuple[float, float], *, at_least: float) -> Literal["holds", "fails", "open"]:
    """Whether a quantity claimed to be at least a threshold is so, as far as an interval can tell.

    Args:
        interval: lower and upper end of the measured quantity.
        at_least: the claim's threshold, in the same units.

    Returns:
        `holds` when the whole interval is at or above the threshold, `fails` when it is wholly below,
        `open` when it contains the threshold.
    """
    low, high = interval
    if low >= at_least:
        return "holds"
    return "fails" if high < at_least else "open"
