"""What heads do with what they attend to, read from the weights: the circuit from values to outputs, and whether it copies.

A head moves `x W_V W_O` from the token that it attends to. Read through embedding and unembedding this is a matrix of the
vocabulary's size, which says what each attended token does to each logit. Eigenvalues of such a matrix that lie to the right mean
that tokens raise their own logits. It has at most a head's width of them, and they are those of a matrix of the head's width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Complex128, Float64

from lens.base.errors import InputError
from lens.models.head_weights import HeadWeights
from lens.models.model import Model, evaluation_mode
from lens.models.run import residual_states
from lens.models.vocabulary_maps import VocabularyMaps
from lens.probes.dataset import exact, variable
from lens.probes.random_tokens import random_tokens

SOURCE = (
    "copying score: Elhage et al., A Mathematical Framework for Transformer Circuits (2021), section on detecting copying; "
    "states in the embeddings' place: McDougall et al., arXiv 2310.04625; departure from normality: Henrici (1962)"
)
CIRCUITS = ("residual", "vocabulary", "arriving")
_BATCH = 128  # sequences of two tokens
NON_NORMAL = 0.5  # commutator over size from which eigenvalues are not to be trusted alone


@dataclass(frozen=True, eq=False)
class CircuitSpectrum:
    """Eigenvalues and singular values of one matrix, and how far it is from being normal.

    Attributes:
        eigenvalues: descending in size; the others of the full matrix are zero.
        singular_values: descending.
        departure: ‖WWᵀ − WᵀW‖ / ‖W‖², 0 for a normal matrix; at most √2, and small wherever there are many singular values.
        seen: Σ|λ|²/Σσ², the share of the matrix's squares that its eigenvalues see; 1 for a normal matrix, 0 for a nilpotent one.
    """

    eigenvalues: Complex128[np.ndarray, " rank"]
    singular_values: Float64[np.ndarray, " rank"]
    departure: float
    seen: float


def copying_score(matrix: Float64[np.ndarray, "n n"] | Complex128[np.ndarray, " n"]) -> float:
    """Σλ/Σ|λ| of a square matrix or of given eigenvalues: 1 where all are positive, −1 where all are negative, 0 by chance.

    A random Gaussian matrix of n rows has a standard deviation of about 1.5/n, by the circular law.

    Raises:
        InputError: a zero matrix.
    """
    values = np.asarray(matrix) if matrix.ndim == 1 else np.linalg.eigvals(matrix)
    size = np.abs(values).sum()
    if size == 0:
        raise InputError("All eigenvalues are zero", "one that is not", "another head")
    return float(np.real(values).sum() / size)


def circuit_spectrum(
    inner: Float64[np.ndarray, "n n"], left: Float64[np.ndarray, "n n"], right: Float64[np.ndarray, "n n"]
) -> CircuitSpectrum:
    """Spectrum of `E U`, with E `[many, n]` and U `[n, many]`, from three small matrices.

    Args:
        inner: `U E`, which has the same eigenvalues but for zeros.
        left: `Eᵀ E`. right: `U Uᵀ`.

    Singular values below 1e-8 of the largest are rounding.
    """
    eigenvalues = np.linalg.eigvals(inner).astype(np.complex128)
    singular = np.linalg.svd(_root(left) @ _root(right), compute_uv=False)
    energy = singular**2
    squared = float(np.trace(inner.T @ left @ inner @ right))  # ‖W²‖²
    departure = np.sqrt(max(0.0, 2 * ((energy**2).sum() - squared))) / energy.sum()
    seen = (np.abs(eigenvalues) ** 2).sum() / energy.sum()
    order = np.argsort(-np.abs(eigenvalues), kind="stable")
    return CircuitSpectrum(eigenvalues[order], singular, float(departure), float(seen))


def _root(gram: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    return vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T


def ov_matrix(weights: HeadWeights, head: int) -> Float64[np.ndarray, "d d"]:
    """`W_V W_O` of one head for states of the stream as rows, with the gains of the norms on its way."""
    return weights.reading("value", head) @ weights.writing(head)


@dataclass(frozen=True, eq=False)
class ArrivingStates:
    """What tokens have become when they arrive at blocks, as products that no longer hold the tokens' number.

    Attributes:
        across: `[block, d, d]`, Σ over tokens of unembedding × state, as `VocabularyMaps.across`.
        states: `[block, d, d]`, Σ state × state.
        unembeddings: `[d, d]`, Σ unembedding × unembedding.
        tokens: how many.
    """

    across: Mapping[int, Float64[np.ndarray, "d d"]]
    states: Mapping[int, Float64[np.ndarray, "d d"]]
    unembeddings: Float64[np.ndarray, "d d"]
    tokens: int


def arriving_states(
    model: Model,
    weights: Sequence[HeadWeights],
    vocabulary: VocabularyMaps,
    *,
    tokens: int = 1024,
    seed: int = 0,
    check: Callable[[], None] | None = None,
) -> ArrivingStates:
    """States of random tokens at the input of blocks, each behind one other token, so that little but the token is in them.

    McDougall et al. (arXiv 2310.04625) take the states behind the first MLP in the embeddings' place; here it is each block's
    own input. States are divided by their norm's length, and their mean and that of the unembeddings over the tokens are taken
    away.

    Args:
        model: the model that the weights are of.
        weights: of the blocks that are asked for.
        vocabulary: of the model.
        tokens: how many, drawn without special ones.
        seed: of the draw.
        check: called before every block of every batch; raising from it stops the work.

    Cost: one pass over `2 · tokens` positions. Memory: their states for 128 tokens at a time, `layers · tokens · d` values in
    float64, and two d × d matrices a block.

    Raises:
        InputError: more tokens than the vocabulary has, or fewer than two.
    """
    ids = random_tokens(model, tokens, seed)
    pairs = torch.tensor([[*ids[-1:], *ids[:-1]], ids]).T  # a token is not its own predecessor
    directions = vocabulary.unembedding_of(pairs[:, 1])
    directions = directions - directions.mean(0)
    kept: dict[int, list[np.ndarray]] = {one.block: [] for one in weights}
    with model.lock.hold(f"reading states of single tokens of {model.name}"), evaluation_mode(model.module):
        for batch in pairs.split(_BATCH):
            states = residual_states(model.module, model.anatomy, batch, check)[:, :, 1].to("cpu", torch.float64).numpy()
            for one in weights:
                kept[one.block].append(states[one.block] / one.norm.length(states[one.block])[:, None])
    across, grams = {}, {}
    for block, parts in kept.items():
        states = np.concatenate(parts)
        states = states - states.mean(0)
        across[block], grams[block] = directions.T @ states, states.T @ states
    return ArrivingStates(across, grams, directions.T @ directions, tokens)


def ov_circuit(
    weights: Sequence[HeadWeights],
    vocabulary: VocabularyMaps,
    arriving: ArrivingStates | None = None,
    *,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """Copying scores and spectra of the OV circuits of heads, from the weights alone.

    Gains of the norm before attention and of the final norm are in the matrices, and the taking away of means where these norms
    are LayerNorms; the lengths that norms divide by, positive numbers at each position, are not. The means of embedding and
    unembedding over the vocabulary are taken away: no probability sees the latter, and without it the former changes no
    eigenvalue. Biases shift all tokens alike and are left out.

    Args:
        weights: blocks, from `lens.models.head_weights.head_weights`.
        vocabulary: from `lens.models.vocabulary_maps.vocabulary_maps`.
        arriving: from `arriving_states`, for a third circuit.
        check: called before every block; raising from it stops the work.

    Returns:
        Dataset over `circuit` (`residual`: W_V W_O, d × d; `vocabulary`: W_E W_V W_O W_U, vocab × vocab; `arriving`: the same
        with the states that tokens have become at the block in the place of their embeddings), `block`, `head` and `rank`:

        - `copying_score[circuit, block, head]`: Σλ/Σ|λ|, −1 to 1;
        - `mismatched_score`: the same with the values of a head of another block, what chance gives with such matrices;
        - `eigenvalue_real`, `eigenvalue_imaginary`, `singular_value` `[circuit, block, head, rank]`, descending in size;
        - `departure`, `seen` `[circuit, block, head]`, see `CircuitSpectrum`; `non_normal`, 1 where the departure exceeds 0.5.

    The first two scores are of weights alone, and what a head of a later block attends to are no embeddings any more. What heads
    do in texts is measured by `copying_behaviour`.

    Cost: `d² · width` a head. Raises: InputError for blocks of different shapes.
    """
    shapes = {(one.query.shape, one.value.shape) for one in weights}
    if len(shapes) != 1:
        raise InputError(f"The blocks have {len(shapes)} shapes of heads", "one", "blocks of one kind")
    rows = []
    for number, one in enumerate(weights):
        if check is not None:
            check()
        other = weights[(number + len(weights) // 2) % len(weights)]
        rows.append([_head(one, other, head, vocabulary, arriving) for head in range(len(one.query))])
    heads, width = weights[0].query.shape[0], weights[0].value.shape[-1]

    def stacked(name: str) -> np.ndarray:
        return np.moveaxis(np.array([[head[name] for head in row] for row in rows]), 2, 0)

    eigenvalues = stacked("eigenvalues")
    departure = stacked("departure")
    dims = ("circuit", "block", "head")
    return xr.Dataset(
        {
            "copying_score": exact(dims, stacked("score"), "copying score Σλ/Σ|λ|"),
            "mismatched_score": exact(dims, stacked("mismatched"), "copying score with another block's values"),
            "eigenvalue_real": exact((*dims, "rank"), np.real(eigenvalues), "real part of the eigenvalue"),
            "eigenvalue_imaginary": exact((*dims, "rank"), np.imag(eigenvalues), "imaginary part of the eigenvalue"),
            "singular_value": exact((*dims, "rank"), stacked("singular_values"), "singular value"),
            "departure": exact(dims, departure, "departure from normality ‖WWᵀ − WᵀW‖/‖W‖²"),
            "seen": exact(dims, stacked("seen"), "share of the squares that eigenvalues see, Σ|λ|²/Σσ²"),
            "non_normal": variable(dims, (departure > NON_NORMAL).astype(int), "departure above one half"),
        },
        {
            "circuit": np.array(CIRCUITS[: 2 + (arriving is not None)], dtype=object),
            "block": variable(("block",), np.array([one.block for one in weights]), "block"),
            "head": variable(("head",), np.arange(heads), "head"),
            "rank": variable(("rank",), np.arange(1, width + 1), "rank"),
        },
        {"source": SOURCE, "probe": "ov_circuit", "arriving_tokens": 0 if arriving is None else arriving.tokens},
    )


def _head(
    weights: HeadWeights, other: HeadWeights, head: int, vocabulary: VocabularyMaps, arriving: ArrivingStates | None
) -> dict[str, list]:
    """Of all circuits, one after the other."""
    output = weights.writing(head)
    value, stranger = (one.reading("value", head) for one in (weights, other))
    ends: list[tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]] = [
        (None, None, None),
        (vocabulary.across, vocabulary.embeddings, vocabulary.unembeddings),
    ]
    if arriving is not None:
        ends.append((arriving.across[weights.block], arriving.states[weights.block], arriving.unembeddings))
    found = []
    for across, before, behind in ends:
        moved = _through(output, across)
        spectrum = circuit_spectrum(moved @ value, _through(value.T, before) @ value, _through(output, behind) @ output.T)
        mismatched = np.nan if other is weights else copying_score(moved @ stranger)
        found.append({"score": copying_score(spectrum.eigenvalues), "mismatched": mismatched, **vars(spectrum)})
    return {name: [one[name] for one in found] for name in found[0]}


def _through(rows: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """Rows times a matrix; None is the identity."""
    return rows if matrix is None else rows @ matrix
