"""Random token ids, for texts in which nothing but what stands in them can be known."""

from __future__ import annotations

import numpy as np

from lens.base.errors import InputError
from lens.models.model import Model


def random_tokens(model: Model, count: int, seed: int = 0) -> list[int]:
    """`count` different token ids, without special tokens.

    Raises:
        InputError: fewer than two, or more than the vocabulary has.
    """
    special = set() if model.tokenizer is None else set(model.tokenizer.all_special_ids)
    size = min(model.anatomy.embedding.num_embeddings, model.vocab_size)
    known = size if model.tokenizer is None else min(size, len(model.tokenizer))
    ids = [token for token in range(known) if token not in special]
    if not 2 <= count <= len(ids):
        raise InputError(f"{count} random tokens", f"2 to {len(ids)}, for {model.name}", "64")
    return np.random.default_rng(seed).choice(ids, count, replace=False).tolist()


def repeated_tokens(model: Model, length: int = 64, *, seed: int = 0) -> list[int]:
    """`length` random token ids and the same once more: the second half can only be known from the first.

    Raises:
        InputError: a length that the vocabulary or the context does not hold.
    """
    if model.context is not None and 2 * length > model.context:
        raise InputError(f"Twice {length} tokens", f"at most {model.context}, the context of {model.name}", "length=64")
    half = random_tokens(model, length, seed)
    return [*half, *half]
