"""What a model loses when the small words of its text are taken out, against as many tokens drawn at random.

After Razzhigaev et al., "LLM-Microscope" (arXiv 2502.15007), section 5, who delete stop words, punctuation and articles from
the prompts of two benchmarks and see scores fall. They have no random deletion to compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.corpora import Document
from lens.models.model import Model
from lens.models.tokens import pieces
from lens.probes.dataset import texts, variable
from lens.probes.token_classes import CLASSES, are_articles, token_classes
from lens.probes.token_losses import token_losses

SOURCE = "after arXiv 2502.15007, section 5 (deletion of stop words, punctuation and articles)"
REMOVED = ("stop words", "punctuation", "stop words and punctuation", "articles")
DRAWN = ("chosen", "random")
_KEPT_END = 4  # the last quarter stays whole


def deletion_test(
    model: Model,
    documents: Sequence[Document],
    *,
    removed: Sequence[str] = REMOVED,
    tokens: int = 192,
    seed: int = 0,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """Loss with tokens of a kind deleted from the first three quarters of a text, and with as many random ones deleted.

    Args:
        model: the model.
        documents: those with fewer tokens are left out.
        removed: kinds, of `REMOVED`.
        tokens: of each document; the last quarter stays whole, and so does position 0.
        seed: of the random deletions.
        check: called before every block of every pass; raising from it stops the work.

    Returns:
        Dataset over `document`, `removed` and `drawn` (`chosen`: all tokens of the kind; `random`: as many drawn from all):

        - `rise_after[document, removed, drawn]`: rise of the mean loss of the last quarter, the same tokens in every case; NaN
          where there is nothing to delete;
        - `rise_remaining[document, removed, drawn]`: mean rise of the loss of content words and their continuations that remain
          before it, each against its own loss in the whole text; NaN where none remains, or nothing was deleted;
        - `share[document, removed]`: of the first three quarters that is deleted;
        - `loss[document]`: of the last quarter in the whole text.

    Losses are in nats a token. Cost: one pass a document, and two for each kind.

    Raises:
        InputError: an unknown kind, a text too short to be cut, or no tokenizer. At least one document has to be long enough.
    """
    if unknown := [kind for kind in removed if kind not in REMOVED] or (not removed):
        raise InputError(f"The kinds {unknown}", f"some of {', '.join(REMOVED)}", "removed=('articles',)")
    if tokens < 16:
        raise InputError(f"Texts of {tokens} tokens", "16 or more", "tokens=192")
    chosen = [ids for ids in (model.encode_bare(document.text)[:tokens] for document in documents) if len(ids) == tokens]
    if not chosen:
        raise InputError(f"No document of {tokens} tokens", "one at least", "tokens=64, or longer documents")
    rows = [_document(model, ids, removed, np.random.default_rng((seed, place)), check) for place, ids in enumerate(chosen)]
    after, remaining, share, loss = (np.array(part) for part in zip(*rows, strict=True))
    cell = ("document", "removed", "drawn")
    return xr.Dataset(
        {
            "rise_after": variable(cell, after, "rise of the loss of the last quarter", "nats"),
            "rise_remaining": variable(cell, remaining, "rise of the loss of content words that remain", "nats"),
            "share": variable(("document", "removed"), share, "share of the first three quarters that is deleted"),
            "loss": variable(("document",), loss, "loss of the last quarter in the whole text", "nats"),
        },
        {
            "removed": texts(("removed",), list(removed), "what is deleted"),
            "drawn": texts(("drawn",), DRAWN, "which tokens: those of the kind, or as many at random"),
        },
        {"source": SOURCE, "probe": "deletion_test", "tokens": tokens, "seed": seed, **model.provenance()},
    )


def kinds_of(model: Model, ids: Sequence[int]) -> dict[str, np.ndarray]:
    """Which tokens are of each kind of `REMOVED`."""
    named = pieces(model.tokenizer, ids)
    classes = token_classes(named)
    stop, marks = (classes == CLASSES.index(name) for name in ("stop word", "punctuation"))
    return dict(zip(REMOVED, (stop, marks, stop | marks, are_articles(named)), strict=True))


def _document(
    model: Model,
    ids: Sequence[int],
    removed: Sequence[str],
    generator: np.random.Generator,
    check: Callable[[], None] | None,
) -> tuple[list[list[float]], list[list[float]], list[float], float]:
    end = len(ids) - len(ids) // _KEPT_END
    before = token_losses(model, ids, check)
    content = token_classes(pieces(model.tokenizer, ids)) >= CLASSES.index("content word")
    kinds = kinds_of(model, ids)
    after, remaining, share = [], [], []
    for kind in removed:
        rises = [_rises(model, ids, deleted, before, content, end, check) for deleted in _draws(kinds[kind], end, generator)]
        after.append([rise for rise, _ in rises])
        remaining.append([rise for _, rise in rises])
        share.append(float(kinds[kind][1:end].mean()))
    return after, remaining, share, float(before[end - 1 :].mean())


def _draws(kind: np.ndarray, end: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Tokens to delete before `end`: all of the kind, then as many of all."""
    deleted = kind.copy()
    deleted[0], deleted[end:] = False, False
    yield deleted
    drawn = np.zeros_like(deleted)
    drawn[1 + generator.permutation(end - 1)[: int(deleted.sum())]] = True
    yield drawn


def _rises(
    model: Model,
    ids: Sequence[int],
    deleted: np.ndarray,
    before: np.ndarray,
    content: np.ndarray,
    end: int,
    check: Callable[[], None] | None,
) -> tuple[float, float]:
    """Rise of the loss after `end`, and of content words that remain before it."""
    if not deleted.any():
        return np.nan, np.nan
    left = np.flatnonzero(~deleted)
    rise = token_losses(model, [ids[int(place)] for place in left], check) - before[left[1:] - 1]
    told = left[1:]
    remaining = rise[(told < end) & content[told]]
    return float(rise[told >= end].mean()), float(remaining.mean()) if len(remaining) else np.nan
