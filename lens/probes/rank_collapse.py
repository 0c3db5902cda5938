"""Rank collapse: how alike the states of all positions become through depth, in a model and in what is left of it without
skip connections, without MLPs, and without both.

Pure attention makes all rows of X the same. Without a mask it does so doubly exponentially: with X = 1mᵀ + R, the logits X W Xᵀ
differ between queries only by R W Rᵀ, because the softmax drops what is constant along a row. So A = 1aᵀ + E, where the rows of
E sum to zero and E is of second order in R, and what is left of the differences, ΠAX = ΠER, is of third order (`pure_attention`).
With a causal mask, queries see different keys, A differs between rows even where all logits are equal, and what is left is of
first order: exponential, no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Float64
from torch import Tensor

from lens.base.errors import InputError
from lens.models.edits.blocks import replace_block
from lens.models.edits.skips import parallel_blocks, remove_skips
from lens.models.head_weights import HeadWeights
from lens.models.model import Model
from lens.models.run import Run
from lens.probes.dataset import exact, provenance, texts, variable

SOURCE = (
    "Dong, Cordonnier and Loukas, arXiv 2103.03404 (residual, composite norm); Wang et al., arXiv 2203.05962, section 2 "
    "(high and low frequencies); Roy and Vetterli, EUSIPCO 2007 (effective rank)"
)
VARIANTS = {
    "whole": "the model as it is",
    "no_skips": "no skip connections",
    "no_mlp": "no MLPs",
    "neither": "attention alone: no skip connections and no MLPs",
}
FIRST_TOKEN = ("with", "without")
_MEASURES = {
    "residual_ratio": ("share of the states that differs between positions, ‖ΠX‖/‖X‖", "1"),
    "mean_cosine": ("mean cosine of two positions' states", "1"),
    "effective_rank": ("effective rank of the states less their mean", "directions"),
    "composite_ratio": ("the same share in the norm √(‖·‖₁‖·‖∞), with the mean as a surrogate", "1"),
    "high_to_low": ("ln of what differs between positions over what is common, ln(‖HC‖/‖DC‖)", "nats"),
}


def rank_collapse(
    model: Model,
    text: str | Sequence[Any] | Tensor,
    *,
    variants: Sequence[str] = tuple(VARIANTS),
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """How alike the states of all positions are at every layer, in the live model and in its ablations.

    Args:
        model: in families whose attention and MLP stand side by side, both share one skip.
        text: a text or token ids, as for `Model.run`; three tokens or more.
        variants: some of `whole`, `no_skips` (x + f(x) becomes f(x)), `no_mlp` (their output is zero) and `neither`. Norms stay
            in all of them. Each is a live edit: attention is that of the states that there are.
        check: called before every block; raising from it stops the work.

    Returns:
        Dataset over `variant`, `first_token` (`with` it or `without`: its states are often thousands of times the others', and
        a single large row makes them look different from their mean) and `layer`:

        - `residual_ratio` ρ = ‖ΠX‖/‖X‖ in the Frobenius norm, Π removing the mean over positions: 0 where all rows are one;
        - `mean_cosine` over pairs of positions;
        - `effective_rank` of ΠX, the exponential of the entropy of σ/Σσ; NaN where nothing is left;
        - `composite_ratio`: √(‖·‖₁‖·‖∞) of ΠX over that of X. The paper's residual takes the row whose removal leaves least in
          this norm; the mean is a surrogate, and gives no less than that;
        - `high_to_low`: ln(‖HC‖/‖DC‖) = ln(ρ/√(1 − ρ²)), HC = ΠX and DC = X − ΠX.

        States are float32 as a rule, so that below about 1e-6 ρ and all others speak of rounding.

    Memory: the residual stream of one variant, and `positions²` float64 values a layer. Cost: a pass for each variant.

    Raises:
        InputError: an unknown variant, or fewer than three tokens. UnsupportedModelError: see `remove_skips`, `replace_block`.
    """
    unknown = [name for name in variants if name not in VARIANTS]
    if unknown or not variants:
        raise InputError(f"The variants are {list(variants)}", f"some of {', '.join(VARIANTS)}", "variants=('whole', 'neither')")
    positions = len(model.encode(text))
    if positions < 3:
        raise InputError(f"{positions} tokens", "three or more, so that two are left without the first", "a longer text")
    rows, run = [], None
    for name in variants:
        with ablation(model, name):
            run = model.run(text, logits=False, check=check)
        rows.append([collapse_measures(run.residual[:, start:], check) for start in range(len(FIRST_TOKEN))])
    assert run is not None  # there is a variant
    dims = ("variant", "first_token", "layer")
    return xr.Dataset(
        {
            name: exact(dims, np.array([[part[name] for part in row] for row in rows]), *label)
            for name, label in _MEASURES.items()
        },
        {
            "variant": texts(("variant",), variants, "what is left of the model"),
            "first_token": texts(("first_token",), FIRST_TOKEN, "with or without the first token"),
            "layer": variable(("layer",), np.arange(model.n_layers + 1), "residual state (0 is the embedding)"),
        },
        provenance(run, SOURCE, {"probe": "rank_collapse"}),
    )


@contextmanager
def ablation(model: Model, variant: str) -> Iterator[None]:
    """One of `VARIANTS`, as live edits, for the body of the `with`."""
    with ExitStack() as stack:
        if variant == "no_skips":
            stack.enter_context(remove_skips(model))
        elif variant == "neither":
            # The MLP's own skip stays where there is one: past a silent MLP it is all that leads on.
            parallel = parallel_blocks(model)
            others = [block for block in range(model.n_layers) if block not in parallel]
            for part, blocks in (("both", parallel), ("attention", others)):
                if blocks:
                    stack.enter_context(remove_skips(model, part, blocks=blocks))
        if variant in ("no_mlp", "neither"):
            for block in range(model.n_layers):
                stack.enter_context(replace_block(model, block, torch.zeros_like, part="mlp"))
        yield


def collapse_measures(
    states: Float[Tensor, "layer position d"], check: Callable[[], None] | None = None
) -> dict[str, Float64[np.ndarray, " layer"]]:
    """The measures of `rank_collapse` for the states of some layers, in float64, by name."""
    rows = []
    for layer in states:
        if check is not None:
            check()
        rows.append(_measures(layer.detach().to("cpu", torch.float64)))
    return {name: np.array([row[name] for row in rows]) for name in _MEASURES}


def _measures(states: Float64[Tensor, "position d"]) -> dict[str, float]:
    mean = states.mean(0, keepdim=True)
    apart = states - mean
    positions = len(states)
    unit = torch.nn.functional.normalize(states, dim=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "residual_ratio": float(np.float64(float(apart.norm())) / float(states.norm())),
            "mean_cosine": (float(unit.sum(0).square().sum()) - positions) / (positions * (positions - 1)),
            "effective_rank": effective_rank(apart),
            "composite_ratio": float(np.float64(_composite(apart)) / _composite(states)),
            "high_to_low": float(high_to_low(states)),
        }


def high_to_low(states: Float[Tensor, "*rows position d"]) -> Float64[np.ndarray, "*rows"]:
    """ln(‖HC‖/‖DC‖) in nats, what differs between positions over what is common, in float64."""
    values = states.detach().to("cpu", torch.float64)
    mean = values.mean(-2, keepdim=True)
    high, low = (values - mean).norm(dim=(-2, -1)).numpy(), mean.norm(dim=(-2, -1)).numpy() * values.shape[-2] ** 0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log(high / low))


def _composite(states: Float64[Tensor, "position d"]) -> float:
    sizes = states.abs()
    return float(sizes.sum(0).max() * sizes.sum(1).max()) ** 0.5


def effective_rank(states: Float64[Tensor, "position d"]) -> float:
    """Exponential of the entropy of σ/Σσ; NaN of zeros.

    From the smaller Gram matrix: singular values below 1e-8 of the largest are rounding, and too small to count.
    """
    gram = states @ states.T if len(states) <= states.shape[1] else states.T @ states
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    return float(torch.special.entr(singular / singular.sum()).sum().exp())


def attention_path(run: Run, weights: Sequence[HeadWeights]) -> Float64[Tensor, "layer position d"]:
    """States through the model's own patterns and matrices alone: X becomes Σ A (X G) W_V W_O over the heads of each block.

    Every step is linear: patterns are those of the whole model, norms give their gain G without their length, and there are
    no biases, skips or MLPs. States are divided by their norm at every layer, which changes none of the measures here.

    Args:
        run: of the whole model, with attention.
        weights: of all its blocks, from `lens.models.head_weights.head_weights`.

    Raises:
        InputError: a run without patterns, or weights of other blocks.
    """
    if run.attention is None or [one.block for one in weights] != list(range(len(run.attention))):
        found = "The run has no attention patterns" if run.attention is None else f"Weights of {len(weights)} blocks"
        raise InputError(found, "patterns and weights of all blocks", "model.run(text, attention=True) and head_weights(model)")
    states = run.residual[0].detach().cpu().double().numpy()
    found = [states / np.linalg.norm(states)]
    for patterns, one in zip(run.attention, weights, strict=True):
        read = one.norm.apply_linear(found[-1])
        heads = enumerate(patterns.detach().cpu().double().numpy())
        states = sum(pattern @ (read @ one.value[one.kv_head_of(head)]) @ one.output[head] for head, pattern in heads)
        found.append(np.asarray(states / np.linalg.norm(states), dtype=np.float64))
    return torch.tensor(np.array(found))


def pure_attention(
    states: Float64[Tensor, "position d"], form: Float64[Tensor, "d d"], layers: int, *, causal: bool = False
) -> Float64[Tensor, "layer position d"]:
    """States through layers of attention alone: X becomes softmax(X W Xᵀ) X, with no norms, values, skips or MLPs.

    Args:
        states: of layer 0.
        form: W, queries times keys.
        layers: how many.
        causal: True masks later keys.
    """
    found = [states]
    ahead = torch.ones(len(states), len(states), dtype=torch.bool).triu(1)
    for _ in range(layers):
        logits = found[-1] @ form @ found[-1].T
        seen = logits.masked_fill(ahead, -torch.inf) if causal else logits
        found.append(seen.softmax(-1) @ found[-1])
    return torch.stack(found)
