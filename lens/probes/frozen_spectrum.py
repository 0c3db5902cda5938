"""The frozen map of a prompt as a matrix: its singular values, and its singular vectors in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from lens.base.errors import InputError
from lens.base.text import storable
from lens.models.frozen import FrozenModel, freeze
from lens.models.model import Model
from lens.probes.dataset import exact, texts, variable
from lens.probes.frozen_map import (
    SOURCE,
    frozen_provenance,
    logit_weights,
    prompt_axes,
    prompt_position,
    target_tokens,
)

_SPARE = 8  # directions that are iterated beside those asked for
_ROUNDS = 2
POLES = ("+", "−")


def frozen_map_spectrum(
    model: Model,
    text: str | Sequence[Any] | FrozenModel,
    *,
    token: int | None = None,
    position: int = -1,
    vectors: int = 8,
    top_k: int = 8,
    whole: bool = True,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """Singular values and vectors of the frozen map from the prompt's embeddings to what the head reads at one position.

    The map of a prompt of T tokens is a matrix `[e, T · d]`: one block of columns for each token.

    Args:
        model: in float32 or float64.
        text: a text, token ids, or what `freeze` gave for one.
        token: a position whose block alone is meant; None for the whole map.
        position: where the head reads; negative counts from the end.
        vectors: how many singular vectors are read.
        top_k: words at each pole.
        whole: all singular values, from one way back for each dimension of the stream; False computes the largest alone by
            subspace iteration from random directions (Halko, Martinsson and Tropp, arXiv 0909.4061), in a tenth of the time.
        check: called before every block of the passes; raising from it stops the work.

    Returns:
        Dataset over `vector`, `pole` (`+`, `−`), `place`, `position` and `rank`:

        - `singular_value[rank]`: all of them, or as many as `vectors`; `share[rank]`: squares over the sum of all squares;
        - `stable_rank`: that sum over the largest square; where not all were computed, the sum is estimated from random rows;
        - `contribution[vector]`: what the vector adds to the logit of the token that the model puts first, less the mean logit;
          over all vectors of the whole map these are its frozen contributions;
        - `reading[vector, position]`: share of the right vector that lies at each token;
        - `written_id`, `written` `[vector, pole, place]`: tokens whose logits the left vector raises most (`+`) and least;
        - `read_id`, `read` `[vector, pole, place]`: tokens whose embeddings lie most (`+`) and least along the right vector
          where most of it lies (`read_position[vector]`).

        A vector's sign is the one with which it stands in this prompt: what it reads is positive.

    Memory: `rows · T · d` values, with `e` rows, or `vectors + 8`.

    Raises:
        InputError: more vectors than the map has, or no such position. UnsupportedModelError: see `freeze`.
    """
    frozen = text if isinstance(text, FrozenModel) else freeze(model, text, check=check)
    place = prompt_position(frozen, position)
    block = None if token is None else prompt_position(frozen, token)
    width, size = frozen.hidden.shape[-1], frozen.embedding.shape[-1]
    if not 1 <= vectors <= min(width, size) or not 1 <= top_k <= model.vocab_size // 2:
        raise InputError(f"{vectors} vectors of {top_k} words", f"1 to {min(width, size)} vectors", "vectors=8, top_k=8")
    if block is not None and block > place:
        raise InputError(f"Token {block} lies after position {place}", "an earlier one: later tokens are not seen", "token=0")
    make = _all_values if whole else _largest_values
    return _described(frozen, place, block, make(frozen, place, block, vectors, check), vectors, top_k)


# -- singular values ------------------------------------------------------------------------------

_Found = tuple[Tensor, np.ndarray, Tensor, float]  # left [e, vector], values, right [vector, position, d], sum of all squares


def _all_values(frozen: FrozenModel, place: int, block: int | None, _vectors: int, check: Callable[[], None] | None) -> _Found:
    rows = torch.eye(frozen.hidden.shape[-1], dtype=frozen.hidden.dtype, device=frozen.hidden.device)
    matrix = _of_block(frozen.transposed(place, len(rows), check=check)(rows), block)
    left, values, right = torch.linalg.svd(matrix.flatten(1).double(), full_matrices=False)
    found = values.cpu().numpy()
    return left, found, right.view(len(values), *matrix.shape[1:]), float((found**2).sum())


def _largest_values(frozen: FrozenModel, place: int, block: int | None, vectors: int, check: Callable[[], None] | None) -> _Found:
    """Subspace iteration; the rest of the squares is estimated from the random rows that it starts with."""
    width = min(vectors + _SPARE, frozen.hidden.shape[-1])
    source = np.random.default_rng(0).standard_normal((width, frozen.hidden.shape[-1]))
    random = torch.from_numpy(source).to(frozen.hidden)
    pull_back = frozen.transposed(place, width, check=check)
    first = _of_block(pull_back(random), block).flatten(1).double()
    basis = torch.linalg.qr(first.T)[0]
    shape = (width, *frozen.embedding.shape)
    for _ in range(_ROUNDS):
        image = torch.linalg.qr(_push(frozen, basis, place, block, shape, check).T)[0]
        back = _of_block(pull_back(image.T), block).flatten(1).double()
        basis = torch.linalg.qr(back.T)[0]
    left, values, right = torch.linalg.svd(_push(frozen, basis, place, block, shape, check).T, full_matrices=False)
    rest = first - first @ basis @ basis.T
    squares = float((values**2).sum() + (rest**2).sum() / width)
    inner = (right @ basis.T).view(width, -1, frozen.embedding.shape[-1])
    return left, values[:vectors].cpu().numpy(), inner, squares


def _push(
    frozen: FrozenModel, basis: Tensor, place: int, block: int | None, shape: tuple[int, ...], check: Callable[[], None] | None
) -> Tensor:
    """The map times an orthonormal basis `[T · d or d, some]`, `[some, e]` in float64."""
    inside = torch.zeros(shape, dtype=torch.float64, device=basis.device)
    rows = basis.T.reshape(shape[0], -1, shape[-1])
    inside[:, slice(None) if block is None else slice(block, block + 1)] = rows
    return frozen.push_forward(inside, place, check=check).double()


def _of_block(rows: Tensor, block: int | None) -> Tensor:
    return rows if block is None else rows[:, block : block + 1]


# -- words ----------------------------------------------------------------------------------------


def _described(frozen: FrozenModel, place: int, block: int | None, found: _Found, vectors: int, top_k: int) -> xr.Dataset:
    """Singular vectors with the sign that they have in the prompt, and in words."""
    left, values, right, squares = found[0][:, :vectors], found[1], found[2][:vectors], found[3]
    model, count = frozen.model, left.shape[1]
    inputs = frozen.embedding if block is None else frozen.embedding[block : block + 1]
    read = (right * inputs.double()).sum((1, 2))
    sign = torch.where(read < 0, -1.0, 1.0).double()
    left, right, read = left * sign, right * sign[:, None, None], read * sign
    target, _ = target_tokens(frozen, place, None, None)
    weights = logit_weights(frozen, target, None, True)
    row, _ = frozen.direction(weights, place)
    given = torch.as_tensor(values[:count], device=left.device) * (row.double() @ left) * read
    where = (right**2).sum(-1)
    reading = np.zeros((count, len(frozen.token_ids)))
    reading[:, slice(None) if block is None else slice(block, block + 1)] = where.cpu().numpy()
    strongest = where.argmax(-1)
    head, embedding = model.anatomy.head.weight.detach(), model.anatomy.embedding.weight.detach()
    written = _poles(head, left.T, top_k)
    reads = _poles(embedding, right[torch.arange(count, device=right.device), strongest], top_k)
    dims, names = ("vector", "pole", "place"), model.vocabulary
    words = {name: [[[names[i] for i in row] for row in pole] for pole in ids.tolist()] for name, ids in
             (("written", written), ("read", reads))}  # fmt: skip
    at = strongest.cpu().numpy() if block is None else np.full(count, block)
    return xr.Dataset(
        {
            "singular_value": exact(("rank",), values, "singular value"),
            "share": exact(("rank",), values**2 / squares, "share of the sum of squares"),
            "stable_rank": exact((), squares / values[0] ** 2, "stable rank Σσ²/σ₁²"),
            "contribution": exact(("vector",), given.cpu().numpy(), "contribution to the first token's logit", "logit"),
            "reading": exact(("vector", "position"), reading, "share of the right vector"),
            "read_position": variable(("vector",), at, "position where most of the right vector lies"),
            "written_id": variable(dims, written, "token id"),
            "written": texts(dims, words["written"], "token whose logit is raised"),
            "read_id": variable(dims, reads, "token id"),
            "read": texts(dims, words["read"], "token whose embedding is read"),
        },
        prompt_axes(frozen)
        | {
            "rank": variable(("rank",), np.arange(1, len(values) + 1), "rank of the singular value"),
            "vector": variable(("vector",), np.arange(1, count + 1), "singular vector"),
            "pole": np.array(POLES, dtype=object),
        },
        {
            "source": SOURCE,
            "probe": "frozen_map_spectrum",
            "target": storable(names[target]),
            "target_id": target,
            "above_mean": float(frozen.logits[place].double() @ weights),
            "answer_position": place,
            "token": -1 if block is None else block,
            "sum_of_squares": squares,
            "exact": int(len(values) == min(frozen.hidden.shape[-1], int(np.prod(right.shape[1:])))),
            **frozen_provenance(frozen),
        },
    )


def _poles(rows: Tensor, directions: Tensor, top_k: int) -> np.ndarray:
    """Ids `[vector, pole, place]` of the rows that lie most and least along unit vectors, without what all rows share."""
    along = rows @ directions.T.to(rows)
    along = along - along.mean(0)
    return torch.stack([(sign * along).topk(top_k, dim=0).indices.T for sign in (1, -1)], 1).cpu().numpy()
