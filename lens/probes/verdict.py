"""From measured values to a word: a claim holds, fails, or is left open by the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import scipy.stats

from lens.base.errors import InputError


def document_interval(
    documents: Sequence[Any], statistic: Callable[[Sequence[Any]], float], *, level: float = 0.95
) -> tuple[float, float]:
    """Confidence interval of a statistic, from leaving out one whole document at a time.

    Tokens of one text depend on each other; texts do not, so that documents and not tokens are what is
    counted. The standard error is the jackknife's, the quantile Student's with one degree of freedom less
    than there are documents: with few of them the interval is wide.

    Args:
        documents: one entry per document, at least two.
        statistic: a smooth function of a list of such entries, such as a mean or a ratio of means.
        level: coverage, between 0 and 1.

    Returns:
        Lower and upper end, in the statistic's own units. Source: Efron and Tibshirani, "An
        Introduction to the Bootstrap" (1993), section 11.2.

    Raises:
        InputError: fewer than two documents, or a level outside (0, 1).
    """
    count = len(documents)
    if count < 2:
        raise InputError(f"{count} document", "at least 2 to compare", "more texts")
    if not 0 < level < 1:
        raise InputError(f"The level is {level}", "a number between 0 and 1", "level=0.95")
    without = np.array([statistic([*documents[:i], *documents[i + 1 :]]) for i in range(count)])
    error = np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())
    reach = scipy.stats.t.ppf((1 + level) / 2, count - 1) * error
    centre = statistic(list(documents))
    return float(centre - reach), float(centre + reach)


def verdict(interval: tuple[float, float], *, at_least: float) -> Literal["holds", "fails", "open"]:
    """Whether a quantity claimed to be at least a threshold is so, as far as an interval can tell.

    Args:
        interval: lower and upper end of the measured quantity.
        at_least: the claim's threshold, in the same units.

    Returns:
        `holds` when the whole interval is at or above the threshold, `fails` when it is wholly below,
        `open` when it contains the threshold.

    Raises:
        InputError: an interval that is not one.
    """
    low, high = interval
    if not low <= high:  # NaN included
        raise InputError(
            f"The interval {interval}", "two numbers in ascending order", "a statistic that is defined on every text"
        )
    if low >= at_least:
        return "holds"
    return "fails" if high < at_least else "open"


def judged(values: Sequence[float], threshold: float) -> dict[str, Any]:
    """Mean of one number for each document, its interval and its verdict, to three digits; NaN in one of them: `untested`."""
    if np.isnan(values).any():
        return {"value": None, "low": None, "high": None, "verdict": "untested"}
    low, high = document_interval(values, np.mean)
    found = {"value": float(np.mean(values)), "low": low, "high": high}
    return {**{name: round(one, 3) for name, one in found.items()}, "verdict": verdict((low, high), at_least=threshold)}
