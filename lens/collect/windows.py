"""Which stretches of a corpus a model reads, and in which batches: always the same ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from jaxtyping import Int64
from torch import Tensor

from lens.corpora import Corpus, Part
from lens.models.model import Model

SHORTEST_WINDOW = 16  # tokens


def draw_windows(model: Model, corpus: Corpus, part: Part, tokens: int, window: int) -> list[list[int]]:
    """Windows of token ids: the first of every document in hash order, then the second of every one, and so on.

    Each is `window` tokens long, or what is left of its document, if that is 16 or more; the last one
    drawn is cut so that there are at most `tokens` in all, and fewer by less than 16.
    """
    return [ids for ids, _ in draw_documents(model, corpus, part, tokens, window)]


def draw_documents(model: Model, corpus: Corpus, part: Part, tokens: int, window: int) -> list[tuple[list[int], int]]:
    """The same windows, each with the number of its document within the part."""
    drawn: list[tuple[list[int], int]] = []
    left = tokens
    for ids, document in _round_robin([model.encode_bare(d.text) for d in corpus.part(part)], window):
        drawn.append((ids[:left], document))
        left -= len(drawn[-1][0])
        if left < SHORTEST_WINDOW:
            break
    return drawn


def _round_robin(documents: Sequence[list[int]], window: int) -> Iterator[tuple[list[int], int]]:
    longest = max((len(ids) for ids in documents), default=0)
    for start in range(0, longest, window):
        for number, ids in enumerate(documents):
            piece = ids[start : start + window]
            if len(piece) >= SHORTEST_WINDOW:
                yield piece, number


def in_batches(windows: Sequence[list[int]], tokens: int) -> list[Int64[Tensor, "sequence position"]]:
    """Windows of one length together, at most `tokens` a batch; long windows first, otherwise in the given order."""
    batches = []
    for length, group in groupby(sorted(windows, key=len, reverse=True), key=len):
        rows = list(group)
        step = max(1, tokens // length)
        batches += [torch.tensor(rows[i : i + step]) for i in range(0, len(rows), step)]
    return batches
