"""Rotations of more than one axis: when positions on a plane can be told apart by differences alone.

A position `x` with `a` coordinates turns queries and keys by `R(x) = exp(Σ_j x_j A_j)`, with skew matrices `A_j`. Logits
depend on differences of positions exactly if `R(x)ᵀR(y) = R(y − x)`, and with more than one axis that holds exactly if
the `A_j` commute. Three families are built here: two that commute by construction, one that does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from jaxtyping import Complex, Float

from lens.base.errors import InputError
from lens.base.provenance import library_versions
from lens.probes.dataset import texts, variable

SOURCE = "ComRoPE, arXiv 2506.03737 (axial partition, linearly dependent); LieRE, arXiv 2406.10322 (independent)"
FAMILIES = ("axial partition", "linearly dependent", "independent")
PUBLISHED = {"resolution of training": 1.6, "higher resolution": 2.9}
"""Points of ImageNet-1K accuracy over LieRE, as the authors of ComRoPE report them (arXiv 2506.03737)."""


@dataclass(frozen=True, eq=False)
class AngleMatrices:
    """Skew matrices of a head, one block-diagonal matrix for each axis.

    Attributes:
        family: one of `FAMILIES`.
        generator: the blocks' skew matrices `P − Pᵀ`: one for all axes where the family commutes, else one for each axis.
        multiplier: what each axis multiplies a block's generator by; ones where each axis has its own.
    """

    family: str
    generator: Float[np.ndarray, "generators block size size"]
    multiplier: Float[np.ndarray, "axis block"]

    @property
    def matrices(self) -> Float[np.ndarray, "axis block size size"]:
        """The matrices `A_j`, in radians per unit of position."""
        return self.multiplier[..., None, None] * self.generator

    @property
    def width(self) -> int:
        """Numbers of a query that are turned."""
        return self.generator.shape[1] * self.generator.shape[2]


def angle_matrices(
    family: str = "linearly dependent", *, block_size: int = 4, axes: int = 2, width: int = 48, seed: int = 0, scale: float = 0.05
) -> AngleMatrices:
    """Random angle matrices of a family, as before any training.

    Args:
        family: `axial partition` (block t turns with axis t mod a only), `linearly dependent` (a block's matrices are
            multiples `θ_j` of one; axes and blocks have their own) or `independent` (each axis has a matrix of its own).
        block_size: width β of a block; 2 gives the planes of ordinary RoPE.
        axes: coordinates of a position: 1 for text, 2 for images.
        width: of the head, a multiple of `block_size`.
        seed: draws `P`, whose entries are normal, and `θ`, which is standard normal.
        scale: standard deviation of the entries of `P`, in radians per unit of position.

    Raises:
        InputError: another family, sizes that do not fit, or an axis without a block.
    """
    if family not in FAMILIES:
        raise InputError(f"The family is {family!r}", f"one of {', '.join(FAMILIES)}", f"family={FAMILIES[1]!r}")
    if not (2 <= block_size <= width and width % block_size == 0 and axes >= 1):
        found = f"Blocks of {block_size} in a head of {width}, and {axes} axes"
        raise InputError(found, "blocks of 2 or more that fill the head, and one axis or more", "block_size=4, width=48, axes=2")
    blocks = width // block_size
    if family == "axial partition" and blocks < axes:
        raise InputError(f"{blocks} blocks for {axes} axes", "one block for each axis", "smaller blocks, or another family")
    random = np.random.default_rng(seed)
    own = axes if family == "independent" else 1
    free = scale * random.standard_normal((own, blocks, block_size, block_size))
    multiplier = np.ones((axes, blocks))
    if family == "axial partition":
        multiplier = (np.arange(blocks) % axes == np.arange(axes)[:, None]).astype(float)
    elif family == "linearly dependent" and axes > 1:
        multiplier = random.standard_normal((axes, blocks))
    return AngleMatrices(family, free - free.swapaxes(-1, -2), multiplier)


def rotations(
    angles: AngleMatrices, positions: Float[np.ndarray, "*position axis"]
) -> Float[np.ndarray, "*position block size size"]:
    """`R(x) = exp(Σ_j x_j A_j)`, from eigenvectors instead of a series.

    Where the matrices commute they share their eigenvectors: these are found once, and a position only turns phases, as
    in RoPE. Independent matrices need a decomposition at every position, `O(positions · blocks · size³)`.
    """
    places = np.asarray(positions, dtype=float)
    if angles.generator.shape[0] == 1:
        turns, basis = _diagonal(angles.generator[0])
        phases = (places @ angles.multiplier)[..., None] * turns
    else:
        phases, basis = _diagonal(np.einsum("...a,abij->...bij", places, angles.matrices))
    return np.einsum("...ik,...k,...jk->...ij", basis, np.exp(-1j * phases), basis.conj()).real


def _diagonal(
    skew: Float[np.ndarray, "*one size size"],
) -> tuple[Float[np.ndarray, "*one size"], Complex[np.ndarray, "*one size size"]]:
    """Eigenvalues of `i·A`, which are real, and eigenvectors."""
    found = np.linalg.eigh(1j * skew)
    return found.eigenvalues, found.eigenvectors


def relative_commutator(
    first: Float[np.ndarray, "*#one size size"], second: Float[np.ndarray, "*#one size size"]
) -> Float[np.ndarray, ...]:
    """`‖AB − BA‖ / (‖A‖·‖B‖)` in Frobenius norms; 0 where one of them is 0.

    Of two skew matrices with normal entries its mean is π/(4√2) for size 3, about .56, .46 and .34 for 4, 8 and 16,
    and 0 for 2: rotations of one plane always commute.
    """
    both = np.linalg.norm(first, axis=(-2, -1)) * np.linalg.norm(second, axis=(-2, -1))
    size = np.linalg.norm(first @ second - second @ first, axis=(-2, -1))
    return np.divide(size, both, out=np.zeros_like(size), where=both > 0)


def equation_defect(
    angles: AngleMatrices, x: Float[np.ndarray, "*#position axis"], y: Float[np.ndarray, "*#position axis"]
) -> Float[np.ndarray, "*position"]:
    """`‖R(x)ᵀR(y) − R(y − x)‖₂`, the largest over blocks: 0 where logits can know differences only, at most 2."""
    left = rotations(angles, x).swapaxes(-1, -2) @ rotations(angles, y)
    return np.asarray(np.linalg.norm(left - rotations(angles, y - x), ord=2, axis=(-2, -1)).max(-1))


def frequencies(angles: AngleMatrices) -> Float[np.ndarray, "axis block lane"]:
    """Effective frequencies: the eigenvalues of `A_j` are ±iω, ω in radians per unit of position, largest first.

    A block of odd size has one direction more that stands still; it is left out.
    """
    lanes = angles.generator.shape[-1] // 2
    return np.linalg.eigvalsh(1j * angles.matrices)[..., ::-1][..., :lanes]


def logits(
    angles: AngleMatrices,
    queries: Float[np.ndarray, "patch width"],
    keys: Float[np.ndarray, "patch width"],
    positions: Float[np.ndarray, "*offset patch axis"],
) -> Float[np.ndarray, "*offset query key"]:
    """Inner products of turned queries and keys that stand at `positions`, divided by √width."""
    turned = rotations(angles, positions)
    blocks = (len(queries), *angles.generator.shape[1:3])
    q, k = (np.einsum("...pbij,pbj->...pbi", turned, part.reshape(blocks)) for part in (queries, keys))
    return np.einsum("...qbi,...kbi->...qk", q, k) / np.sqrt(angles.width)


def commuting(
    family: str = "linearly dependent",
    *,
    block_size: int = 4,
    axes: int = 2,
    width: int = 48,
    seed: int = 0,
    scale: float = 0.05,
    size: int = 13,
    image: int = 4,
    spacing: int = 4,
    offsets: int = 17,
) -> xr.Dataset:
    """Do the rotations of a family commute, and do logits stay when the whole image is moved?

    Args:
        family, block_size, axes, width, seed, scale: see `angle_matrices`.
        size: positions 0, 1, … of the defect's map.
        image: patches along each axis; a text of `image²` tokens where there is one axis.
        spacing: positions from one patch to the next.
        offsets: by how many positions the image is moved at most, on all axes together, 0 included.

    Returns:
        Dataset, float64 inside:

        - `commutator[block, axis, other_axis]`: `‖A_iA_j − A_jA_i‖/(‖A_i‖·‖A_j‖)`;
        - `defect[x, y]`: `‖R(x)ᵀR(y) − R(y − x)‖₂`, x that far along the first axis and y along the last one;
        - `frequency[axis, block, lane]`: effective frequencies, radians per position;
        - `logit[offset, query, key]`: of random queries and keys, one pair for each patch of the moved image;
        - `place[key, axis]`: where a patch stands in the image before it is moved;
        - `drift[offset]`: root mean square change of the logits since offset 0, in their standard deviations;
        - `orthogonality_defect`, `determinant_defect`: largest of `‖RᵀR − I‖₂` and of `|det R − 1|` on the map's positions.

    Cost: for independent matrices `size² + offsets · image²` decompositions of every block, else one.

    Raises:
        InputError: see `angle_matrices`.
    """
    angles = angle_matrices(family, block_size=block_size, axes=axes, width=width, seed=seed, scale=scale)
    matrices = angles.matrices
    steps = np.arange(size, dtype=float)
    x, y = np.zeros((size, 1, axes)), np.zeros((1, size, axes))
    x[:, 0, 0] = y[0, :, -1] = steps
    turned = rotations(angles, y)
    patches = spacing * _patches(axes, image)
    moved = _logits_when_moved(angles, patches, offsets, seed)
    change = np.sqrt(np.square(moved - moved[0]).mean((1, 2))) / moved[0].std()
    straight = np.linalg.norm(turned.swapaxes(-1, -2) @ turned - np.eye(block_size), ord=2, axis=(-2, -1)).max()
    known = {
        "commutator": (
            ("block", "axis", "other_axis"), relative_commutator(matrices[:, None], matrices[None]).transpose(2, 0, 1),
            "relative commutator", "1",
        ),
        "defect": (("x", "y"), equation_defect(angles, x, y), "largest stretch of R(x)ᵀR(y) − R(y − x)", "1"),
        "frequency": (("axis", "block", "lane"), frequencies(angles), "effective frequency", "rad/position"),
        "logit": (("offset", "query", "key"), moved, "logit of a query and a key of the moved image", "1"),
        "place": (("key", "axis"), patches, "place of a patch in the image", "positions"),
        "drift": (("offset",), change, "change of the logits, root mean square, in their standard deviations", "1"),
        "orthogonality_defect": ((), np.array(straight), "largest stretch of RᵀR − I", "1"),
        "determinant_defect": ((), np.array(np.abs(np.linalg.det(turned) - 1).max()), "largest |det R − 1|", "1"),
    }  # fmt: skip
    attributes = {"family": family, "block_size": block_size, "axes": axes, "width": width, "seed": seed, "scale": scale}
    return xr.Dataset(
        {name: variable(dims, np.asarray(values), label, units) for name, (dims, values, label, units) in known.items()},
        coords=_coordinates(axes, steps, offsets),
        attrs={"source": SOURCE, "probe": "commuting", **attributes, "image": image, "spacing": spacing, **library_versions()},
    )


def _patches(axes: int, image: int) -> Float[np.ndarray, "patch axis"]:
    """Places of the patches of an image, one apart, the last axis fastest; of as many tokens where there is one axis."""
    if axes == 1:
        return np.arange(image**2, dtype=float)[:, None]
    return np.stack(np.meshgrid(*[np.arange(image, dtype=float)] * axes, indexing="ij"), -1).reshape(-1, axes)


def _logits_when_moved(
    angles: AngleMatrices, patches: Float[np.ndarray, "patch axis"], offsets: int, seed: int
) -> Float[np.ndarray, "offset query key"]:
    random = np.random.default_rng([seed, 1])  # not the draw that made the matrices
    queries, keys = random.standard_normal((2, len(patches), angles.width))
    return logits(angles, queries, keys, patches + np.arange(offsets, dtype=float)[:, None, None])


def _coordinates(axes: int, steps: Float[np.ndarray, " size"], offsets: int) -> dict[str, xr.Variable]:
    names = [f"axis {axis + 1}" for axis in range(axes)]
    return {
        "axis": texts(("axis",), names, "coordinate of a position"),
        "other_axis": texts(("other_axis",), names, "coordinate of a position"),
        "x": variable(("x",), steps, "position x, along the first axis", "positions"),
        "y": variable(("y",), steps, "position y, along the last axis", "positions"),
        "offset": variable(("offset",), np.arange(offsets), "by how much the whole image is moved, on every axis", "positions"),
    }
