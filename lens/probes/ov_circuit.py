"""What heads do with what they attend to, read from the weights: the circuit from values to outputs, and whether it copies.

A head moves `x W_V W_O` from the token that it attends to. Read through embedding and unembedding this is a matrix of the
vocabulary's size, which says what each attended token does to each logit. Eigenvalues of such a matrix that lie to the right mean
that tokens raise their own logits. It has at most a head's width of them, and they are those of a matrix of the head's width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from jaxtyping import Complex128, Float64

from lens.base.errors import InputError
from lens.models.head_weights import HeadWeights
from lens.models.vocabulary_maps import VocabularyMaps
from lens.probes.dataset import exact, variable

SOURCE = (
    "copying score: Elhage et al., A Mathematical Framework for Transformer Circuits (2021), section on detecting copying; "
    "departure from normality: Henrici, Numer. Math. 4, 1962"
)
CIRCUITS = ("residual", "vocabulary")
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


def ov_circuit(
    weights: Sequence[HeadWeights],
    vocabulary: VocabularyMaps,
    *,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """Copying scores and spectra of the OV circuits of heads, from the weights alone.

    Gains of the norm before attention and of the final norm are in the matrices, and the taking away of means where these norms
    are LayerNorms; the lengths that norms divide by, positive numbers at each position, are not. The unembedding's mean over the
    vocabulary is taken away, since no probability sees it; taking the embedding's away too would change no eigenvalue. Biases
    shift all tokens alike and are left out.

    Args:
        weights: blocks, from `lens.models.head_weights.head_weights`.
        vocabulary: from `lens.models.vocabulary_maps.vocabulary_maps`.
        check: called before every block; raising from it stops the work.

    Returns:
        Dataset over `circuit` (`residual`: W_V W_O, d × d; `vocabulary`: W_E W_V W_O W_U, vocab × vocab), `block`, `head` and
        `rank`:

        - `copying_score[circuit, block, head]`: Σλ/Σ|λ|, −1 to 1;
        - `mismatched_score`: the same with the values of a head of another block, what chance gives with such matrices;
        - `eigenvalue_real`, `eigenvalue_imaginary`, `singular_value` `[circuit, block, head, rank]`, descending in size;
        - `departure`, `seen` `[circuit, block, head]`, see `CircuitSpectrum`; `non_normal`, 1 where the departure exceeds 0.5.

    A score from weights is about embeddings, and what a head of a later block attends to are no embeddings any more:
    `copying_behaviour` measures what it does in fact.

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
        rows.append([_head(one, other, head, vocabulary) for head in range(len(one.query))])
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
            "circuit": np.array(CIRCUITS, dtype=object),
            "block": variable(("block",), np.array([one.block for one in weights]), "block"),
            "head": variable(("head",), np.arange(heads), "head"),
            "rank": variable(("rank",), np.arange(1, width + 1), "rank"),
        },
        {"source": SOURCE, "probe": "ov_circuit"},
    )


def _head(weights: HeadWeights, other: HeadWeights, head: int, vocabulary: VocabularyMaps) -> dict[str, list]:
    """Of both circuits, one after the other."""
    value, output = weights.reading("value", head), weights.writing(head)
    stranger = other.reading("value", head)
    found = []
    for across, before, behind in (
        (output, value.T @ value, output @ output.T),
        (output @ vocabulary.across, value.T @ vocabulary.embeddings @ value, output @ vocabulary.unembeddings @ output.T),
    ):
        spectrum = circuit_spectrum(across @ value, before, behind)
        mismatched = np.nan if other is weights else copying_score(across @ stranger)
        found.append({"score": copying_score(spectrum.eigenvalues), "mismatched": mismatched, **vars(spectrum)})
    return {name: [one[name] for one in found] for name in found[0]}
