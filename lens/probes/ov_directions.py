"""What one head's OV circuit reads and writes, in words: its first singular vectors over the vocabulary."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from lens.base.errors import InputError
from lens.models.head_weights import HeadWeights
from lens.models.model import Model
from lens.models.vocabulary_maps import VocabularyMaps
from lens.probes.dataset import exact, texts, variable

SOURCE = (
    "singular vectors read through the vocabulary: Millidge and Black 2022, The Singular Value Decompositions of Transformer "
    "Weight Matrices are Highly Interpretable; circuit: Elhage et al. 2021"
)
ENDS = ("attended", "raised")


def ov_directions(
    model: Model, weights: HeadWeights, head: int, vocabulary: VocabularyMaps, *, vectors: int = 3, top_k: int = 8
) -> xr.Dataset:
    """Tokens at the two poles of the first singular vectors of one head's full circuit W_E W_V W_O W_U.

    Attending to the tokens of one pole raises that pole's raised tokens and lowers the other's. Which pole is called `+` is a
    convention: the one with the largest entry among attended tokens.

    Args:
        model: for its vocabulary.
        weights: of the block. vocabulary: of the model.
        head: query head.
        vectors: how many. top_k: tokens at each pole.

    Returns:
        Dataset over `vector`, `pole` (`+`, `−`), `end` (`attended`, `raised`), `place`: `token_id`, `token` and `entry`, the
        entries of unit vectors; `singular_value[vector]` and `share[vector]`, its square over the sum of squares.

    Cost: two products `vocab · d · vectors`.

    Raises:
        InputError: more vectors than the head is wide, or more tokens than there are.
    """
    width = weights.value.shape[-1]
    if not 1 <= vectors <= width or not 1 <= top_k <= len(vocabulary.head):
        raise InputError(f"{vectors} vectors of {top_k} tokens", f"at most {width}, and {len(vocabulary.head)}", "vectors=3")
    value, output = weights.reading("value", head), weights.writing(head)
    before, behind = (_factors(gram) for gram in (value.T @ vocabulary.embeddings @ value,
                                                  output @ vocabulary.unembeddings @ output.T))  # fmt: skip
    left, singular, right = np.linalg.svd(before[0] @ behind[0].T)
    read = _over_embedding(vocabulary, value @ before[1] @ left[:, :vectors])
    written = _over_head(vocabulary, (output.T @ behind[1] @ right[:vectors].T))
    sign = np.where(read.max(0) >= -read.min(0), 1.0, -1.0)
    places = np.array([[[_top(pole * one[:, vector], top_k) for one in (read * sign, written * sign)] for pole in (1, -1)]
                       for vector in range(vectors)])  # fmt: skip
    entries = np.stack([(read * sign).T, (written * sign).T], 1)  # [vector, end, token]
    found = np.take_along_axis(entries[:, None], places, -1)
    dims = ("vector", "pole", "end", "place")
    return xr.Dataset(
        {
            "token_id": variable(dims, places, "token id"),
            "token": texts(
                dims, [[[[model.vocabulary[t] for t in row] for row in end] for end in pole] for pole in places], "token"
            ),
            "entry": exact(dims, found, "entry of the unit vector"),
            "singular_value": exact(("vector",), singular[:vectors], "singular value"),
            "share": exact(("vector",), (singular**2 / (singular**2).sum())[:vectors], "share of the squares"),
        },
        {
            "vector": variable(("vector",), np.arange(1, vectors + 1), "singular vector"),
            "pole": np.array(["+", "−"], dtype=object),
            "end": np.array(ENDS, dtype=object),
        },
        {"source": SOURCE, "probe": "ov_directions", "block": weights.block, "head": head, **model.provenance()},
    )


def _factors(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`F` with `F = √gram`, and what turns rows with that gram into orthonormal columns."""
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    root = np.sqrt(np.maximum(values, 0))
    kept = root > 1e-7 * root.max()
    inverse = np.where(kept, 1 / np.where(kept, root, 1), 0)
    return vectors * root @ vectors.T, vectors * inverse @ vectors.T


def _over_embedding(vocabulary: VocabularyMaps, directions: np.ndarray) -> np.ndarray:
    """`[token, vector]`, without the mean over tokens."""
    rows = vocabulary.embedding
    found = (rows @ torch.tensor(directions, dtype=rows.dtype, device=rows.device)).to("cpu", torch.float64).numpy()
    return found - found.mean(0)


def _over_head(vocabulary: VocabularyMaps, directions: np.ndarray) -> np.ndarray:
    rows = vocabulary.head
    inner = torch.tensor(vocabulary.reading.T @ directions, dtype=rows.dtype, device=rows.device)
    found = (rows @ inner).to("cpu", torch.float64).numpy()
    return found - found.mean(0)


def _top(values: np.ndarray, count: int) -> np.ndarray:
    best = np.argpartition(-values, count - 1)[:count]
    return best[np.argsort(-values[best], kind="stable")]
