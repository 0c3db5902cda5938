"""What heads do to the token that they attend to, measured: a score from the weights alone says what they would do to embeddings.

A head's output from one key, read by the unembedding, says what attending to that key adds to each logit. It copies where the
attended token's own logit is raised above those of the text's other tokens, and suppresses where it is lowered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.stats
import torch
import xarray as xr
from jaxtyping import Float64

from lens.base.errors import InputError
from lens.models.head_weights import HeadWeights
from lens.models.heads import HeadStates, head_states
from lens.models.model import Model
from lens.models.vocabulary_maps import VocabularyMaps
from lens.probes.dataset import variable

SOURCE = (
    "copying and prefix matching on repeated random tokens: Olsson et al., In-context Learning and Induction Heads (2022); "
    "direct effect on logits: Elhage et al., A Mathematical Framework for Transformer Circuits (2021)"
)


def copying_behaviour(
    model: Model,
    texts: Sequence[str | Sequence[int]],
    weights: Sequence[HeadWeights],
    vocabulary: VocabularyMaps,
    *,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """How each head moves the logit of what it attends to, in texts.

    The first key is left out of all means, because most heads rest their attention there.

    Args:
        model: the model, as it was when the weights were read.
        texts: texts or token ids, of two different tokens at least.
        weights: blocks, from `lens.models.head_weights.head_weights`.
        vocabulary: from `lens.models.vocabulary_maps.vocabulary_maps`.
        check: called before every block of every pass; raising from it stops the work.

    Returns:
        Dataset over `document`, `block`, `head`:

        - `copying`: by how many standard deviations of all logits attending to a token raises its own logit above those of the
          text's other tokens, mean over attention. 0 by chance, negative for heads that suppress; no norm's length is in it;
        - `rise`: the same in logits as they leave the unembedding, mean over queries: with the attention that the head in fact
          pays, and the final norm's length at the query. NaN where a norm stands between heads and stream (Gemma 2);
        - `attended`: share of attention that does not go to the first key;
        - `induction`: mean attention to the token after the last place where the query's token stood before; NaN where no token
          comes twice. `previous`: mean attention to the token before.

    This is the direct path from a head to the logits. What later blocks make of a head's output is not in it.

    Cost: two passes a text and `heads · (positions² + d · width) · width` multiplications.

    Raises:
        InputError: no text, or one of a single token.
    """
    if not texts:
        raise InputError("There is no text", "one or more", "texts=['…']")
    behind = [[_spread(one.writing(head), vocabulary) for head in range(len(one.query))] for one in weights]
    rows = [_text(model, model.encode(text), weights, vocabulary, behind, check) for text in texts]
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return xr.Dataset(
        {name: variable(("document", "block", "head"), columns[name], *label) for name, label in _LABELS.items()},
        {
            "block": variable(("block",), np.array([one.block for one in weights]), "block"),
            "head": variable(("head",), np.arange(columns["copying"].shape[-1]), "head"),
        },
        {"source": SOURCE, "probe": "copying_behaviour", **model.provenance()},
    )


def rank_correlation(score: xr.DataArray, measured: xr.DataArray) -> float:
    """Spearman's, over all heads for which there are both; NaN where one of the two is the same for all."""
    pairs = np.stack([score.to_numpy().ravel(), measured.to_numpy().ravel()])
    known = pairs[:, np.isfinite(pairs).all(0)]
    if (np.ptp(known, axis=-1) == 0).any():
        return float("nan")
    return float(np.asarray(scipy.stats.spearmanr(*known)[0]))


_LABELS = {
    "copying": ("rise of the attended token's logit over the text's other tokens", "standard deviations of the logits"),
    "rise": ("rise of the attended token's logit over the text's other tokens", "logits"),
    "attended": ("attention to other than the first key", "1"),
    "induction": ("attention to the token after the query's former place", "1"),
    "previous": ("attention to the token before", "1"),
}


def _spread(output: np.ndarray, vocabulary: VocabularyMaps) -> Float64[np.ndarray, "value_width value_width"]:
    """Values v give logits of the variance `v @ spread @ v` over the vocabulary."""
    return output @ vocabulary.unembeddings @ output.T / len(vocabulary.head)


def _text(
    model: Model,
    ids: list[int],
    weights: Sequence[HeadWeights],
    vocabulary: VocabularyMaps,
    behind: Sequence[Sequence[np.ndarray]],
    check: Callable[[], None] | None,
) -> dict[str, Any]:
    if len(set(ids)) < 2:
        raise InputError(f"The text has {len(set(ids))} different tokens", "at least 2", "a longer text")
    states = head_states(model, ids, [one.block for one in weights], check=check)
    last = model.run(ids, logits=False, check=check).residual[-1].to("cpu", torch.float64).numpy()
    lengths = vocabulary.norm.length(last)
    own = vocabulary.unembedding_of(torch.tensor(ids))
    others = np.not_equal.outer(ids, ids).astype(float)
    former = _former(ids)
    rows = [
        [_head(states[row], one, head, own, behind[row][head], others, lengths, former) for head in range(len(one.query))]
        for row, one in enumerate(weights)
    ]
    return {name: np.array([[head[name] for head in row] for row in rows]) for name in _LABELS}


def _head(
    states: HeadStates,
    weights: HeadWeights,
    head: int,
    own: np.ndarray,
    spread: np.ndarray,
    others: np.ndarray,
    lengths: np.ndarray,
    former: list[tuple[int, int]],
) -> dict[str, float]:
    """One head on one text, by the names of `_LABELS`."""
    pattern = np.asarray(states.pattern(head))
    values = states.value[states.kv_head_of(head)].to(torch.float64).numpy()
    logits = values @ (own @ weights.writing(head).T).T  # [key, token of the text]
    rise = logits.diagonal() - (logits * others).sum(-1) / others.sum(-1)
    deviation = np.sqrt(((values @ spread) * values).sum(-1))
    seen = pattern[1:, 1:]
    paid = seen.sum()
    direct = (seen @ rise[1:] / lengths[1:]).mean() if weights.written is not None else np.nan
    return {
        "copying": float(seen.sum(0) @ (rise / deviation)[1:] / paid),
        "rise": float(direct),
        "attended": float(paid / pattern[1:].sum()),
        "induction": float(np.mean([pattern[query, key] for query, key in former])) if former else np.nan,
        "previous": float(pattern.diagonal(-1)[1:].mean()) if len(pattern) > 2 else np.nan,
    }


def _former(ids: Sequence[int]) -> list[tuple[int, int]]:
    """Queries whose token stood before, and the place after it."""
    seen: dict[int, int] = {}
    found = []
    for place, token in enumerate(ids):
        if token in seen and seen[token] + 1 < place:
            found.append((place, seen[token] + 1))
        seen[token] = place
    return found
