"""Attention as a filter over positions: what patterns pass of every frequency, and what a block's parts do to differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.fft
import torch
import xarray as xr
from jaxtyping import Float64
from torch import Tensor

from lens.base.errors import InputError
from lens.models.head_weights import HeadWeights
from lens.models.model import Model, evaluation_mode
from lens.models.run import Run, block_states
from lens.probes.dataset import exact, texts, variable
from lens.probes.patterns import read_patterns
from lens.probes.rank_collapse import high_to_low

SOURCE = "Wang et al., arXiv 2203.05962, section 2 (high and low frequencies, self-attention as a low-pass filter)"
STAGES = ("attention", "mlp", "block")
FACTORS = ("patterns", "matrices")


def attention_response(patterns: Run | Tensor | np.ndarray) -> xr.Dataset:
    """How much of a wave over positions a pattern passes: ‖A d_f‖ for the cosine wave d_f of unit norm at every frequency.

    Args:
        patterns: a run with attention, or weights `[query, key]`, `[head, query, key]` or `[block, head, query, key]`.

    Returns:
        Dataset over `block`, `head` (as the input has them) and `frequency` (cycles/token, those of the orthonormal DCT-II):

        - `response`: 1 at frequency 0 where rows sum to one. The identity passes all of everything, a pattern of equal rows
          nothing but frequency 0;
        - `passed`: √ of the mean squared response over all frequencies but 0: what is left of white noise around its mean,
          or more, because a pattern can turn differences into a mean and back.

    Raises:
        InputError: see `lens.probes.patterns.read_patterns`.
    """
    found = read_patterns(patterns)
    size = found.weights.shape[-1]
    waves = torch.tensor(cosine_waves(size))
    heads = found.weights.reshape(-1, size, size)
    response = torch.stack([(head @ waves).norm(dim=-2) for head in heads]).reshape(*found.weights.shape[:-2], size).numpy()
    coordinates = {name: value for name, value in found.coordinates.items() if not set(value.dims) - {*found.dims}}
    with np.errstate(invalid="ignore"):
        passed = np.sqrt((response[..., 1:] ** 2).mean(-1)) if size > 1 else np.full(response.shape[:-1], np.nan)
    return xr.Dataset(
        {
            "response": exact((*found.dims, "frequency"), response, "what is passed of a wave over positions"),
            "passed": exact(found.dims, passed, "root mean square over all frequencies but 0"),
        },
        {**coordinates, "frequency": exact(("frequency",), np.arange(size) / (2 * size), "frequency", "cycles/token")},
        {**found.facts, "source": SOURCE, "probe": "attention_response", "positions": size},
    )


def cosine_waves(size: int) -> Float64[np.ndarray, "position frequency"]:
    """Columns of the inverse orthonormal DCT-II."""
    return np.asarray(scipy.fft.idct(np.eye(size), axis=0, norm="ortho"))


def low_pass(model: Model, text: str | Sequence[Any] | Tensor, *, check: Callable[[], None] | None = None) -> xr.Dataset:
    """What attention, MLP and skips of every block do to ln(‖HC‖/‖DC‖), differences between positions over what is common.

    Args:
        model: whose blocks have attention and MLP of their own.
        text: a text or token ids; three tokens or more. The first token is left out of all numbers.
        check: called before every block; raising from it stops the pass.

    Returns:
        Dataset over `block` and `stage`: `change`, in nats, negative where differences are smoothed away:

        - `attention`: what leaves the attention module, against what enters it (the stream, behind a norm as a rule);
        - `mlp`: the same of the MLP;
        - `block`: the stream behind the block against the stream before it, skips and all.

    Cost: one pass. Memory: the stream, and inputs and outputs of attention and MLP.

    Raises:
        InputError: fewer than three tokens. UnsupportedModelError, AnatomyError: blocks without these parts.
    """
    ids = model.encode(text)
    if len(ids) < 3:
        raise InputError(f"{len(ids)} tokens", "three or more, so that two are left without the first", "a longer text")
    with model.lock.hold(f"running {model.name}"), evaluation_mode(model.module):
        found = block_states(model.module, model.anatomy, torch.tensor([ids]), ("residual", "attention", "mlp"), check)
    levels = {part: high_to_low(states[:, 0, 1:]) for part, states in found.items()}
    count = model.n_layers
    changes = [levels[part][count:] - levels[part][:count] for part in STAGES[:2]]
    changes.append(np.diff(levels["residual"]))
    return xr.Dataset(
        {"change": exact(("stage", "block"), np.array(changes), "change of ln(‖HC‖/‖DC‖)", "nats")},
        {
            "stage": texts(("stage",), STAGES, "part of the block"),
            "block": variable(("block",), np.arange(count), "block"),
        },
        {"source": SOURCE, "probe": "low_pass", "tokens": len(ids), **model.provenance()},
    )


def attention_factors(
    model: Model,
    text: str | Sequence[Any] | Tensor,
    weights: Sequence[HeadWeights],
    *,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """What the two factors of attention do to ln(‖HC‖/‖DC‖), each by itself: patterns mix positions, matrices map states.

    Args:
        model: whose blocks have attention of their own.
        text: a text or token ids; three tokens or more. The first token is mixed in, and left out of all numbers.
        weights: of all blocks, from `lens.models.head_weights.head_weights`.
        check: called before every block; raising from it stops the passes.

    Returns:
        Dataset over `factor` and `block`: `factor_change`, in nats, against what enters the attention module:

        - `patterns`: A X, mean over heads;
        - `matrices`: Σ X W_V W_O over heads, as if every token attended to itself alone; without biases.

    Cost: two passes, and a product of patterns and states for each head. Memory: the patterns, and the inputs of attention.

    Raises:
        InputError: fewer than three tokens, or weights of other blocks. UnsupportedModelError, AnatomyError: see `low_pass`.
    """
    ids = model.encode(text)
    if len(ids) < 3 or [one.block for one in weights] != list(range(model.n_layers)):
        found = f"{len(ids)} tokens and weights of {len(weights)} blocks"
        raise InputError(found, f"three tokens or more, and all {model.n_layers} blocks in order", "head_weights(model)")
    with model.lock.hold(f"running {model.name}"), evaluation_mode(model.module):
        patterns = model.run(ids, attention=True, logits=False, check=check).attention
        inputs = block_states(model.module, model.anatomy, torch.tensor([ids]), ("attention",), check)["attention"][:, 0]
    assert patterns is not None  # asked for
    changes = [_factors(*one) for one in zip(inputs, patterns, weights, strict=False)]  # the first half of them are inputs
    return xr.Dataset(
        {"factor_change": exact(("factor", "block"), np.array(changes).T, "change of ln(‖HC‖/‖DC‖)", "nats")},
        {
            "factor": texts(("factor",), FACTORS, "factor of attention"),
            "block": variable(("block",), np.arange(model.n_layers), "block"),
        },
        {"source": SOURCE, "probe": "attention_factors", "tokens": len(ids), **model.provenance()},
    )


def _factors(states: Tensor, patterns: Tensor, weights: HeadWeights) -> tuple[float, float]:
    taken = states.detach().to("cpu", torch.float64)
    mixed = patterns.detach().to("cpu", torch.float64) @ taken
    maps = [torch.tensor(weights.value[weights.kv_head_of(head)] @ output) for head, output in enumerate(weights.output)]
    mapped = taken @ torch.stack(maps).sum(0)
    entering, left, *heads = high_to_low(torch.stack([taken, mapped, *mixed])[:, 1:])
    return float(np.mean(heads) - entering), float(left - entering)
