"""The two ends of a model as matrices: from tokens into the stream, and from the stream to logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from lens.base.errors import UnsupportedModelError
from lens.models.model import Model
from lens.models.norms import NormMap, norm_map

_ROWS = 4096  # of the vocabulary at a time


@dataclass(frozen=True, eq=False)
class VocabularyMaps:
    """Embedding and unembedding of a model, and their products, which no longer hold the vocabulary's length.

    A state x of the stream becomes logits `x @ reading @ (head − centre).T / length`, with the length of the final norm, up to
    the norm's shift and to what is the same for all tokens: no probability sees the head's mean over the vocabulary, and it is
    taken away.

    Attributes:
        embedding: `[vocab, d]`, the rows as the model holds them, in its dtype and on its device; a scale that the model puts on
            all of them (Gemma) is left out.
        head: `[vocab, e]`, the same.
        centre: `[e]`, mean row of the head.
        reading: `[d, e]`, the final norm's gain (and its taking away of the mean, if it is a LayerNorm) and whatever projection
            stands before the head.
        norm: the final norm, the identity where there is none.
        across: `[d, d]`, Σ over tokens of unembedding × embedding: the trace of a map of the stream with it is the sum over all
            tokens of what each does for its own logit.
        embeddings: `[d, d]`, Σ embedding × embedding, without their mean: what all tokens share tells none from another.
        unembeddings: `[d, d]`, Σ unembedding × unembedding.
    """

    embedding: Tensor
    head: Tensor
    centre: Float64[np.ndarray, " e"]
    reading: Float64[np.ndarray, "d e"]
    norm: NormMap
    across: Float64[np.ndarray, "d d"]
    embeddings: Float64[np.ndarray, "d d"]
    unembeddings: Float64[np.ndarray, "d d"]

    def __repr__(self) -> str:
        return f"VocabularyMaps({len(self.embedding):,} tokens, d={len(self.across)})"

    def unembedding_of(self, token_ids: Tensor) -> Float64[np.ndarray, "token d"]:
        """Direction of the stream that raises each token's logit, `[token, d]`."""
        rows = self.head[token_ids.to(self.head.device)].to("cpu", torch.float64).numpy()
        return (rows - self.centre) @ self.reading.T


def vocabulary_maps(model: Model, *, check: Callable[[], None] | None = None) -> VocabularyMaps:
    """Embedding, unembedding and their products, in float64.

    Args:
        model: the model.
        check: called before every 4,096 tokens; raising from it stops the work.

    Memory: three d × d matrices and 4,096 rows in float64. Cost: up to three products `vocab · d²`, one where the ends are tied
    (2 s for SmolLM2-135M on one core).

    Raises:
        UnsupportedModelError: an embedding of another width than the stream, an end that is not in memory, or something else than
            a norm and linear maps before the head.
    """
    embedding, head = model.anatomy.embedding.weight.detach(), model.anatomy.head.weight.detach()
    if embedding.shape[-1] != model.d_model or embedding.is_meta:
        place = " and is not in memory" if embedding.is_meta else ""
        found = f"The embedding of {model.name} has the width {embedding.shape[-1]}{place}"
        raise UnsupportedModelError(found, f"the width of the stream, {model.d_model}, in memory", "another model")
    norm, reading = _tail(model)
    tied = embedding.data_ptr() == head.data_ptr() and embedding.shape == head.shape
    across, embeddings, heads, centre = _products(embedding, head, tied, check)
    size = min(len(embedding), len(head))
    sums = np.asarray(embedding[:size].sum(0, dtype=torch.float64).cpu())
    across = across - np.outer(centre, sums)
    mean = np.asarray(embedding.mean(0, dtype=torch.float64).cpu())
    embeddings = embeddings - len(embedding) * np.outer(mean, mean)
    heads = heads - len(head) * np.outer(centre, centre)
    return VocabularyMaps(
        embedding, head, centre, reading, norm, reading @ across, embeddings, reading @ heads @ reading.T
    )  # fmt: skip


def _products(
    embedding: Tensor, head: Tensor, tied: bool, check: Callable[[], None] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Σ head × embedding, Σ embedding × embedding, Σ head × head over tokens, and the mean row of the head."""
    size = min(len(embedding), len(head))  # where one of the two is padded, the padding has no other side
    across = torch.zeros(head.shape[-1], embedding.shape[-1], dtype=torch.float64)
    within = torch.zeros(embedding.shape[-1], embedding.shape[-1], dtype=torch.float64)
    heads = torch.zeros(head.shape[-1], head.shape[-1], dtype=torch.float64)
    for start in range(0, max(len(embedding), len(head)), _ROWS):
        if check is not None:
            check()
        one = embedding[start : start + _ROWS].to("cpu", torch.float64)
        within += one.T @ one
        if tied:
            continue
        other = head[start : start + _ROWS].to("cpu", torch.float64)
        heads += other.T @ other
        both = max(0, min(size - start, _ROWS))
        across += other[:both].T @ one[:both]
    centre = head.mean(0, dtype=torch.float64).cpu().numpy()
    if tied:
        across, heads = within, within
    return across.numpy(), within.numpy(), heads.numpy(), centre


def _tail(model: Model) -> tuple[NormMap, np.ndarray]:
    """The final norm, and all of what stands before the head as one matrix `[d, e]`."""
    width = model.d_model
    norm, reading = NormMap.identity(width), np.eye(width)
    states = model.run(_some_ids(model), logits=False).residual[-1]
    for part in model.anatomy.tail:
        if isinstance(part, nn.Linear):
            if part.bias is not None and bool(part.bias.any()):
                raise UnsupportedModelError(f"The projection before the head of {model.name} shifts", "none", "another model")
            reading = reading @ part.weight.detach().to("cpu", torch.float64).numpy().T
        elif not norm.unit and reading.shape == (width, width):
            norm = norm_map(part, states.to(next(part.parameters(), states).device))
            reading = norm.fold(reading)
        else:
            found = f"{type(part).__name__} stands between the last block and the head of {model.name}"
            raise UnsupportedModelError(found, "one norm and linear maps", "another model")
    return norm, reading


def _some_ids(model: Model) -> list[int]:
    return [(7 * i + 1) % model.anatomy.embedding.num_embeddings for i in range(8)]
