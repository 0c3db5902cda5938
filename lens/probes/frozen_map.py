"""A logit as a sum over the prompt's tokens: with attention, norm scales and gates frozen, a transformer is one linear map."""

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
from lens.models.tokens import pieces
from lens.probes.dataset import exact, texts, variable
from lens.probes.logit_lens import single_token

SOURCE = (
    "equivalent linear map: Golden 2025, Equivalent Linear Mappings of Large Language Models, arXiv 2505.24293, section 3; "
    "frozen attention: Elhage et al. 2021, A Mathematical Framework for Transformer Circuits"
)


@torch.enable_grad()  # also where the caller has gradients off
def frozen_contributions(
    model: Model,
    text: str | Sequence[Any] | FrozenModel,
    *,
    target: int | str | None = None,
    rival: int | str | None = None,
    centred: bool = False,
    position: int = -1,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """What each token of a prompt contributes to a logit, exactly, with attention, norm scales and gates frozen.

    Args:
        model: in float32 or float64.
        text: a text, token ids, or what `freeze` gave for one, which saves the freezing.
        target: the token whose logit it is, an id or a text that is one token; None for the one that the model puts first.
        rival: a token whose logit is taken from it, so that what raises all logits alike drops out.
        centred: take the mean logit over the vocabulary from it, for the same reason; probabilities see no more than that.
        position: whose logits; negative counts from the end.
        check: called before every block of the passes; raising from it stops the work.

    Returns:
        Dataset over `position`, `layer` and `block`, in logit units (nats of log-odds), float64:

        - `contribution[position]`: derivative of the frozen map with respect to a token's embedding, times the embedding;
        - `bias`: the map at embeddings of zero (biases, shifts of norms, position embeddings), computed by itself;
        - `logit`: the model's own, less the rival's or the mean; `error`: sum of contributions and bias, less `logit`;
        - `state_contribution[layer, position]`: the same for residual states; their sum and `state_bias[layer]`, what biases
          add after that layer, are the logit;
        - `direct[block]`: what a block's write at that position does through the final norm alone, and `total[block]`: what its
          writes at all positions do through everything behind it. The direct ones, `direct_start` and `head_bias` add up to the
          logit; the total ones overlap, because a block's write is made of earlier ones;
        - `gradient_contribution[position]`: the plain gradient times the embedding, nothing frozen; it adds up to nothing.

    Raises:
        InputError: no such token or position, or a target that is its own rival. UnsupportedModelError: see `freeze`.
    """
    frozen = text if isinstance(text, FrozenModel) else freeze(model, text, check=check)
    if frozen.model is not model:
        raise InputError(f"The prompt was frozen in {frozen.model.name}", f"the model {model.name}", "freeze(model, text)")
    place = prompt_position(frozen, position)
    chosen, other = target_tokens(frozen, place, target, rival)
    weights = logit_weights(frozen, chosen, other, centred)
    own = float(frozen.logits[place].double() @ weights.to(frozen.logits.device))
    row, constant = frozen.direction(weights, place)
    given = frozen.embedding[None].clone().requires_grad_()
    states = frozen(given, check=check)
    wanted = states.hidden[0, place] @ row
    slopes = torch.autograd.grad(wanted, [given, *states.residual])
    found = _products(slopes[0], given)
    bias = float(frozen(torch.zeros_like(given), check=check).hidden[0, place].detach().double() @ row.double()) + constant
    layers = np.stack([_products(slope, state) for slope, state in zip(slopes[1:], states.residual, strict=True)])
    direct, total = _writes([slope[0] for slope in slopes[1:]], [state[0].detach() for state in states.residual], place)
    plain = _plain_gradient(frozen, weights, place, check)
    start = float(slopes[-1][0, place].double() @ states.residual[0][0, place].detach().double())
    names = model.vocabulary
    unit = "logit"
    return xr.Dataset(
        {
            "contribution": exact(("position",), found, "contribution of the token, frozen map", unit),
            "bias": exact((), bias, "the frozen map at embeddings of zero", unit),
            "logit": exact((), own, "the model's own logit", unit),
            "error": exact((), found.sum() + bias - own, "contributions and bias less the logit", unit),
            "state_contribution": exact(("layer", "position"), layers, "contribution of the residual state, frozen map", unit),
            "state_bias": exact(("layer",), own - layers.sum(1), "what biases add after the layer", unit),
            "direct": exact(("block",), direct, "the block's write, through the final norm alone", unit),
            "total": exact(("block",), total, "the block's writes, through all behind it", unit),
            "direct_start": exact((), start, "the first state, through the final norm alone", unit),
            "head_bias": exact((), own - direct.sum() - start, "final norm's shift and head's bias", unit),
            "gradient_contribution": exact(("position",), plain, "plain gradient times the embedding", unit),
        },
        prompt_axes(frozen)
        | {
            "layer": variable(("layer",), np.arange(model.n_layers + 1), "residual state (0 is the embedding)"),
            "block": variable(("block",), np.arange(model.n_layers), "block"),
        },
        {
            "source": SOURCE,
            "probe": "frozen_contributions",
            "target": storable(names[chosen]),
            "target_id": chosen,
            "rival": "" if other is None else storable(names[other]),
            "rival_id": -1 if other is None else other,
            "centred": int(centred),
            "answer_position": place,
            "probability": float(frozen.logits[place].double().softmax(-1)[chosen]),
            **frozen_provenance(frozen),
        },
    )


def frozen_provenance(frozen: FrozenModel) -> dict[str, str | int | float]:
    """Attributes of a result: the model, the prompt's length, and how exact the frozen map was proved to be."""
    return {
        "tokens": len(frozen.token_ids),
        "forward_error": frozen.forward_error,
        "linear_error": frozen.linear_error,
        **frozen.model.provenance(),
    }


def prompt_axes(frozen: FrozenModel) -> dict[str, xr.Variable]:
    """Coordinates of the prompt's positions."""
    shown = pieces(frozen.model.tokenizer, list(frozen.token_ids))
    return {
        "position": variable(("position",), np.arange(len(frozen.token_ids)), "position in the prompt"),
        "input_id": variable(("position",), np.array(frozen.token_ids), "token id of the prompt"),
        "input_token": texts(("position",), shown, "token of the prompt"),
    }


def prompt_position(frozen: FrozenModel, position: int) -> int:
    """A position counted from the start.

    Raises:
        InputError: none of the prompt's.
    """
    count = len(frozen.token_ids)
    if not -count <= position < count:
        raise InputError(f"Position {position}", f"{-count} to {count - 1}, those of the prompt", "position=-1, the last one")
    return position % count


def target_tokens(
    frozen: FrozenModel, position: int, target: int | str | None, rival: int | str | None
) -> tuple[int, int | None]:
    """Ids of the token whose logit is asked for and of its rival, if any.

    Raises:
        InputError: a text that is not one token, no such id, or twice the same token.
    """
    chosen = int(frozen.logits[position].argmax()) if target is None else single_token(frozen.model, target)
    other = None if rival is None else single_token(frozen.model, rival)
    if chosen == other:
        name = frozen.model.vocabulary[chosen]
        raise InputError(f"Both target and rival are {name!r}", "two tokens", "another rival, or none")
    return chosen, other


def logit_weights(frozen: FrozenModel, target: int, rival: int | None, centred: bool) -> Tensor:
    """`[vocab]` float64, by which logits are summed: one for the target, minus one for the rival, less the mean."""
    weights = torch.zeros(frozen.logits.shape[-1], dtype=torch.float64, device=frozen.logits.device)
    weights[target] = 1
    if rival is not None:
        weights[rival] = -1
    return weights - 1 / len(weights) if centred and rival is None else weights


def _products(slope: Tensor, states: Tensor) -> np.ndarray:
    """Derivative times state, summed over dimensions: `[position]`."""
    return (slope[0].double() * states[0].detach().double()).sum(-1).cpu().numpy()


def _writes(slopes: Sequence[Tensor], states: Sequence[Tensor], place: int) -> tuple[np.ndarray, np.ndarray]:
    """Direct and total effect of what each block adds to the stream."""
    direct, total = [], []
    for before, after, slope in zip(states[:-1], states[1:], slopes[1:], strict=True):
        write = (after.double() - before.double()).to(slopes[-1].device)
        direct.append(float(write[place] @ slopes[-1][place].double()))
        total.append(float((write * slope.double()).sum()))
    return np.array(direct), np.array(total)


def _plain_gradient(frozen: FrozenModel, weights: Tensor, place: int, check: Callable[[], None] | None) -> np.ndarray:
    model = frozen.model
    given = frozen.embedding[None].clone().requires_grad_()
    hidden = frozen.unfrozen(given, check=check).hidden[0, place]
    logits = model.readout.transform(_head(model, hidden))
    slope = torch.autograd.grad(logits @ weights.to(logits), given)[0]
    return _products(slope, given)


def _head(model: Model, hidden: Tensor) -> Tensor:
    """The head without derivatives of its own weights."""
    head = model.anatomy.head
    return torch.nn.functional.linear(hidden, head.weight.detach(), None if head.bias is None else head.bias.detach())
