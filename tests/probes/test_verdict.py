"""Intervals by resampling documents, and the words computed from them."""

from __future__ import annotations

import numpy as np
import pytest

from lens.base.errors import InputError
from lens.probes.verdict import document_interval, verdict


def mean(documents) -> float:
    return float(np.concatenate(documents).mean())


@pytest.mark.parametrize(
    ("interval", "word"),
    [((0.5, 0.9), "holds"), ((0.1, 0.4999), "fails"), ((0.4, 0.6), "open"), ((0.3, 0.5), "open")],
)
def test_word_follows_from_interval_and_threshold(interval, word: str):
    assert verdict(interval, at_least=0.5) == word


def test_interval_of_equal_documents_is_a_point():
    assert document_interval([np.array([0.0, 1.0])] * 5, mean) == (0.5, 0.5)


@pytest.mark.parametrize("count", [3, 8, 30])
def test_interval_covers_the_truth_as_often_as_it_says(count: int):
    """Of normal means it is Student's own interval, exact at every number of documents."""
    generator = np.random.default_rng(count)
    covered = 0
    for _ in range(1000):
        low, high = document_interval([np.array([value]) for value in generator.normal(size=count)], mean)
        covered += low <= 0 <= high
    # Within 4 binomial standard errors.
    assert abs(covered / 1000 - 0.95) < 4 * (0.95 * 0.05 / 1000) ** 0.5


def test_tokens_of_one_document_do_not_count_as_many():
    """Two documents that disagree leave everything open, however many tokens they have."""
    low, high = document_interval([np.zeros(1000), np.ones(1000)], mean)
    assert low == pytest.approx(0.5 - 12.706 / 2, abs=1e-3)
    assert high == pytest.approx(0.5 + 12.706 / 2, abs=1e-3)


@pytest.mark.parametrize("wrong", [(0.6, 0.4), (float("nan"), 1.0)])
def test_what_is_no_interval_has_no_verdict(wrong):
    with pytest.raises(InputError, match="interval"):
        verdict(wrong, at_least=0.5)


@pytest.mark.parametrize("level", [0.0, 1.0, 1.5])
def test_a_level_outside_the_unit_interval_is_refused(level: float):
    with pytest.raises(InputError, match="level"):
        document_interval([np.zeros(3), np.ones(3)], mean, level=level)


def test_one_document_is_refused():
    with pytest.raises(InputError, match="at least 2"):
        document_interval([np.zeros(3)], mean)
