"""What the horn of a Three-Phase model does: to the loss at each position, and to the logits of attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float64
from torch import Tensor, nn

from lens.base.errors import InputError, UnsupportedModelError
from lens.models.edits.phases import horn_profile
from lens.models.heads import HeadStates, head_states
from lens.models.model import Model
from lens.models.three_phase import PhaseRMSNorm, ThreePhaseForCausalLM, transported_direction
from lens.probes.dataset import exact, prompt_coordinates, provenance, texts, variable

SOURCE = "our own; the horn of Abu Ayyash, arXiv 2604.14430, sections 3 and 5"
HORNS = ("own", "zero", "constant", "permuted")


def horn_cost(
    model: Model,
    documents: Sequence[str | Sequence[int]],
    *,
    tokens: int = 128,
    seed: int = 0,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """Loss at each position with the model's own horn, and with others put in its place.

    Args:
        model: a Three-Phase model.
        documents: texts or token ids; the first `tokens` tokens of each are read.
        tokens: of each document, 2 or more.
        seed: of the permutation.
        check: called before every block; raising from it stops.

    Returns:
        Dataset over `horn` (`own`; `zero`; `constant`, the mean of 1/(position + 1); `permuted`, these numbers in a random
        order, the same for all documents), `document` and `position` (of the token that is predicted from, so that
        the last has none):

        - `loss[horn, document, position]`: nats;
        - `cost[horn, document]`: mean over positions of the loss, less that of `own`;
        - `profile[horn, position]`: the numbers, NaN for `own`.

    Cost: four passes for each document.

    Raises:
        UnsupportedModelError: no Three-Phase model. InputError: no document, or one that is too short.
    """
    _require_three_phase(model)
    ids = [model.encode_bare(document) if isinstance(document, str) else list(document) for document in documents]
    short = min((len(one) for one in ids), default=0)
    if short < max(tokens, 2) or tokens < 2:
        found = f"{len(ids)} documents, the shortest of {short} tokens"
        raise InputError(found, f"one or more, of {max(tokens, 2)} tokens or more", f"tokens={max(short, 2)}")
    profiles = _profiles(tokens, seed)
    losses = np.stack([_losses(model, ids, tokens, profiles[horn], check) for horn in HORNS])
    shown = [np.full(tokens, np.nan) if profiles[horn] is None else np.asarray(profiles[horn]) for horn in HORNS]
    return xr.Dataset(
        {
            "loss": exact(("horn", "document", "position"), losses, "loss of the next token", "nats"),
            "cost": exact(("horn", "document"), (losses - losses[:1]).mean(-1), "loss more than with the own horn", "nats"),
            "profile": exact(("horn", "position"), np.stack(shown)[:, :-1], "mean over channels of the embedded token"),
        },
        {
            "horn": texts(("horn",), list(HORNS), "what the mean over channels becomes"),
            "position": variable(("position",), np.arange(tokens - 1), "position of the token that is predicted from"),
        },
        {"source": SOURCE, "probe": "horn_cost", "seed": seed, "documents": len(ids), **model.provenance()},
    )


def _require_three_phase(model: Model) -> ThreePhaseForCausalLM:
    if not isinstance(model.module, ThreePhaseForCausalLM):
        raise UnsupportedModelError(f"{model.name} has no horn", "a Three-Phase model", "another model")
    return model.module


def _profiles(tokens: int, seed: int) -> dict[str, Float64[Tensor, " position"] | None]:
    harmonic = 1 / (torch.arange(tokens, dtype=torch.float64) + 1)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(tokens))
    return {
        "own": None,
        "zero": torch.zeros_like(harmonic),
        "constant": harmonic.mean().expand(tokens),
        "permuted": harmonic[order],
    }


def _losses(
    model: Model, ids: Sequence[Sequence[int]], tokens: int, profile: Tensor | None, check: Callable[[], None] | None
) -> Float64[np.ndarray, "document position"]:
    def losses_of(one: Sequence[int]) -> np.ndarray:
        run = model.run(one[:tokens], check=check)
        assert run.logits is not None  # asked for
        targets = run.token_ids[1:].to(run.logits.device)
        return nn.functional.cross_entropy(run.logits[:-1].double(), targets, reduction="none").cpu().numpy()

    if profile is None:
        return np.stack([losses_of(one) for one in ids])
    with horn_profile(model, lambda positions: profile.to(positions)[positions.long()]):
        return np.stack([losses_of(one) for one in ids])


def horn_logits(model: Model, text: str | Sequence[int], *, directions: int = 10, seed: int = 0) -> xr.Dataset:
    """How much of the logits of attention comes from the direction that carries the horn.

    The states' component along the transported direction is taken out of what queries and keys are made of; the norm
    divides by what it divided by before, so that nothing else changes.

    Args:
        model: a Three-Phase model.
        text: or token ids, two or more.
        directions: random ones to compare with.
        seed: for their draw.

    Returns:
        Dataset over `block`, `head` and `direction`:

        - `share[block, head]`: variance, over the keys that a query sees, of what is then missing in the logits, over that
          of the logits; above 1 where the rest works against it. What a query adds to all its keys alike does not matter to
          attention and is not counted;
        - `random_share[block, head, direction]`: the same for random directions;
        - `energy[block]`: mean squared cosine of the states that enter a block with the direction.

    Raises:
        UnsupportedModelError: no Three-Phase model, or one that adds the rotated stream to the stream.
        InputError: a text of one token.
    """
    module = _require_three_phase(model)
    run = model.run(text, logits=False)
    if len(run) < 2:
        raise InputError(f"{len(run)} token", "two or more, so that a query can choose", "a longer text")
    heads = head_states(model, run.token_ids.tolist())
    states = run.residual.to("cpu", torch.float64)
    random = np.random.default_rng(seed)
    drawn = torch.from_numpy(random.standard_normal((directions, model.d_model)))
    drawn = drawn / drawn.norm(dim=-1, keepdim=True)
    rows, energies = [], []
    for block, given in enumerate(heads):
        own = transported_direction(module, block)
        parts = module.model.layers[block]
        rows.append([_shares(given, states[block], parts, along) for along in (own, *drawn)])
        energies.append(((states[block] @ own) / states[block].norm(dim=-1)).pow(2).mean().item())
    shares = np.moveaxis(np.array(rows), 1, 2)
    found = {
        "share": exact(("block", "head"), shares[..., 0], "share of the logits' variance from the horn's direction"),
        "random_share": exact(("block", "head", "direction"), shares[..., 1:], "share from a random direction"),
        "energy": exact(("block",), np.array(energies), "squared cosine of the states with the horn's direction"),
    }
    places = {name: variable((name,), np.arange(size), name) for name, size in zip(("block", "head"), shares.shape, strict=False)}
    prompt = {name: value for name, value in prompt_coordinates(run).items() if name not in ("layer", "position")}
    facts = provenance(run, SOURCE, {"probe": "horn_logits", "seed": seed})
    return xr.Dataset(found, {**places, **prompt}, facts)


def _shares(given: HeadStates, states: Float64[Tensor, "position d"], parts: Any, along: Float64[Tensor, " d"]) -> list[float]:
    """Of every head."""
    normed = _normed_part(states, parts.input_layernorm, along)
    query, key = (_heads_of(normed, part, given.query.shape[-1]) for part in (parts.self_attn.q_proj, parts.self_attn.k_proj))
    rest = replace(given, query=given.query - query.to(given.query), key=given.key - key.to(given.key))
    seen = np.tril(np.ones((len(states),) * 2, bool))
    found = []
    for head in range(len(given.query)):
        logits = given.logits(head)
        found.append(_variance(logits - rest.logits(head), seen) / _variance(logits, seen))
    return found


def _normed_part(states: Float64[Tensor, "position d"], norm: PhaseRMSNorm, along: Float64[Tensor, " d"]) -> Tensor:
    """What the component along a direction is after the norm, which divides each phase by its own root mean square."""
    phases = (norm.phases, -1)
    scale = (states.unflatten(-1, phases).pow(2).mean(-1, keepdim=True) + norm.epsilon).rsqrt()
    component = (states @ along)[:, None] * along
    return (component.unflatten(-1, phases) * scale).flatten(-2) * norm.weight.detach().to("cpu", torch.float64)


def _heads_of(normed: Float64[Tensor, "position d"], part: nn.Linear, width: int) -> Float64[Tensor, "head position width"]:
    projected = normed @ part.weight.detach().to("cpu", torch.float64).T
    return projected.unflatten(-1, (-1, width)).transpose(0, 1)


def _variance(logits: Float64[np.ndarray, "query key"], seen: np.ndarray) -> float:
    """Over the keys of each query, added up; queries that see one key add nothing."""
    counts = seen.sum(-1, keepdims=True)
    means = np.where(seen, logits, 0).sum(-1, keepdims=True) / counts
    return float((np.where(seen, logits - means, 0) ** 2).sum()) or math.nan
