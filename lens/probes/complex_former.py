"""A toy after ComplexFormer (arXiv 2505.10222), which its authors have withdrawn: experimental, for playing only.

Of the paper only the abstract says anything that can be computed: queries and keys in polar form, and an interaction whose
phase is a head's own function of the difference of angles plus its own function of the distance. What stands here is
our reading of it; no published number is reproduced by it, and none should be quoted for it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr
from jaxtyping import Complex, Float

from lens.base.errors import InputError
from lens.base.provenance import library_versions
from lens.probes.dataset import variable

SOURCE = (
    "ComplexFormer, arXiv 2505.10222 (abstract of version 1; withdrawn by its authors in version 2); the formula is our reading"
)
Adapt = Callable[[np.ndarray], np.ndarray]


def interaction(
    queries: Complex[np.ndarray, "query lane"],
    keys: Complex[np.ndarray, "key lane"],
    theta: Float[np.ndarray, " frequency"],
    *,
    adapt: Adapt | None = None,
    gain: float = 1.0,
    scaling: float = 1.0,
) -> Float[np.ndarray, "query key"]:
    """`c·Σ_i |q_i|·|k_i|·cos(Adapt(arg q_i − arg k_i) + g·(m − n)·θ_i)` of queries m and keys n. Experimental.

    Args:
        queries, keys: before rotation, as complex lanes; their places are their positions.
        theta: frequencies, radians per token.
        adapt: a head's function of the difference of angles, which lies between −π and π; by default the identity. Where
            it is not the same at both ends the logit jumps there. A lane that is 0 has no angle, and adds nothing.
        gain: `g`; 1 with the identity is RoPE, 0 with the identity has no positions.
        scaling: `c`, the softmax scale.

    Memory: `24 · queries · keys · lanes` bytes.

    Raises:
        InputError: lanes that do not fit each other, or an `adapt` that changes the shape.
    """
    if queries.shape[1] != len(theta) or keys.shape[1] != len(theta):
        found = f"Queries of shape {queries.shape}, keys of {keys.shape} and {len(theta)} frequencies"
        raise InputError(found, "as many lanes as frequencies", "theta of the same head")
    product = queries[:, None] * keys[None].conj()
    turned = np.angle(product) if adapt is None else np.asarray(adapt(np.angle(product)))
    if turned.shape != product.shape:
        raise InputError(f"adapt gives the shape {turned.shape}", f"{product.shape}", "a function of each angle alone")
    distance = np.arange(len(queries))[:, None, None] - np.arange(len(keys))[None, :, None]
    return scaling * (np.abs(product) * np.cos(turned + gain * distance * theta)).sum(-1)


def complex_former(
    queries: Complex[np.ndarray, "query lane"],
    keys: Complex[np.ndarray, "key lane"],
    theta: Float[np.ndarray, " frequency"],
    *,
    adapt: Adapt | None = None,
    gain: float = 1.0,
    scaling: float = 1.0,
) -> xr.Dataset:
    """The logits of `interaction`, in a Dataset whose attributes say that they are experimental and the paper withdrawn.

    Args:
        queries, keys, theta, adapt, gain, scaling: see `interaction`.

    Returns:
        Dataset with `logit[query, key]`.

    Raises:
        InputError: see `interaction`.
    """
    values = interaction(queries, keys, theta, adapt=adapt, gain=gain, scaling=scaling)
    facts = {"probe": "complex_former", "experimental": "yes", "status": "withdrawn by its authors", "gain": gain}
    return xr.Dataset(
        {"logit": variable(("query", "key"), values, "logit of the experimental interaction")},
        attrs={"source": SOURCE, **facts, "adapt": "identity" if adapt is None else "given", **library_versions()},
    )
