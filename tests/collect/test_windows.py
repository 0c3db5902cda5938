"""Which windows of a corpus are read, and in which order."""

from __future__ import annotations

import pytest

from lens.collect import draw_windows, in_batches
from lens.corpora import PARTS, Corpus
from lens.models.model import Model
from tests.collect.passes import expected_windows, made_up


@pytest.mark.parametrize("window", [16, 50, 64])
def test_windows_are_drawn_round_robin_and_never_across_documents(tiny: Model, window: int):
    corpus = made_up()
    for part in PARTS:
        found = draw_windows(tiny, corpus, part, 10**6, window)
        assert found == expected_windows(corpus, part, window)
        assert max(map(len, found)) == window


@pytest.mark.parametrize("tokens", [40, 999, 1000, 2500])
def test_windows_fill_the_budget(tiny: Model, tokens: int):
    """The last window is cut; only a remainder under 16 tokens, too short for a window, is left unused."""
    corpus = made_up()
    found, whole = draw_windows(tiny, corpus, "train", tokens, 64), expected_windows(corpus, "train", 64)
    assert found[:-1] == whole[: len(found) - 1]
    assert found[-1] == whole[len(found) - 1][: len(found[-1])]
    assert tokens - 16 < sum(map(len, found)) <= tokens


@pytest.mark.parametrize("cut", [16, 30, 64])
def test_budget_is_met_exactly_where_the_last_window_is_long_enough(tiny: Model, cut: int):
    corpus = Corpus("long", [" ".join(f"w{4 + (i + j) % 120}" for j in range(200)) for i in range(40)])
    assert sum(map(len, draw_windows(tiny, corpus, "train", 640 + cut, 64))) == 640 + cut


def test_batches_hold_every_window_once_long_ones_first(tiny: Model):
    windows = draw_windows(tiny, made_up(), "train", 5000, 64)
    batches = in_batches(windows, 256)
    assert [row for batch in batches for row in batch.tolist()] == sorted(windows, key=len, reverse=True)
    assert all(batch.numel() <= 256 for batch in batches)
    assert in_batches([[1] * 300], 256)[0].shape == (1, 300)  # a window is never cut for it
