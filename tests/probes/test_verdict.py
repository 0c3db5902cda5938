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


def test_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        centres = generator.normal(size=30)
        documents = [centre + 0.1 * generator.normal(size=20) for centre in centres]
        low, high = document_interval(documents, mean, resamples=200, seed=trial)
        covered += low <= 0 <= high
    # 95 % nominal; a percentile bootstrap of 30 documents covers a little less. 4 standard errors below 0.93.
    assert covered / 200 > 0.93 - 4 * (0.93 * 0.07 / 200) ** 0.5


def test_tokens_of_one_document_do_not_count_as_many():
    """Two documents that disagree give a wide interval, however many tokens they have."""
    low, high = document_interval([np.zeros(1000), np.ones(1000)], mean)
    assert (low, high) == (0.0, 1.0)


def test_same_seed_same_interval():
    documents = [np.random.default_rng(i).random(5) for i in range(6)]
    assert document_interval(documents, mean, seed=3) == document_interval(documents, mean, seed=3)


def test_one_document_is_refused():
    with pytest.raises(InputError, match="at least 2"):
        document_interval([np.zeros(3)], mean)
