"""A Three-Phase model beside the same model without rotations: absorbed into its weights, or simply left out.

The first has the same logits, which is an identity; the second shows that the weights of a trained model count on it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from lens.base.errors import UnsupportedModelError
from lens.models.model import Model
from lens.models.run import Run, require_memory
from lens.models.three_phase import ThreePhaseForCausalLM, absorb_rotation, stream_angles
from lens.models.three_phase.transport import layers
from lens.probes.dataset import exact, prompt_coordinates, provenance, texts, variable
from lens.probes.phase_wheel import measured_turns

SOURCE = "our own, of the model of Abu Ayyash, arXiv 2604.14430; its related work holds that its rotation cannot be folded"
VARIANTS = ("with rotation", "absorbed", "left out")
PRECISIONS = ("float32", "float64")


@dataclass(frozen=True)
class Absorbed:
    """What `absorbed_rotation` found, and the twin that it found it on.

    Attributes:
        dataset: see `absorbed_rotation`.
        twin: the model without rotations and with the same logits, proved readable like any other.
    """

    dataset: xr.Dataset
    twin: Model


def absorbed_rotation(run: Run, *, top_k: int = 5) -> Absorbed:
    """Absorb the rotations of a model and compare all of its logits on a text.

    Args:
        run: of a Three-Phase model with rotations.
        top_k: tokens that are listed.

    Returns:
        Dataset over `position`, `layer`, `phase` and `pair`, and `rank`, the model's own likeliest next tokens:

        - `gap[precision, position]`: largest difference of a logit between the model and its twin, both in that precision;
          `left_out_gap[position]`: the same where rotations are left out and weights stay as they are, in float64;
          `logit_spread[position]`: standard deviation of the model's logits;
        - `probability[variant, rank]`, `token[rank]`: after the last token; `next_token[variant]`: the likeliest one;
        - `imposed`, `measured[variant, layer, phase, pair]`: angle by which a pair has turned since the embedding, radians;
          `coherence`: share that the measured one explains; NaN for `left out`;
        - `angles[variant]`: how many angles the model holds, learned or frozen.

    Memory: the model once more, and twice in float64.

    Raises:
        UnsupportedModelError: no Three-Phase model, none with rotations, or one that adds the rotated stream.
        MemoryEstimateError: float64 logits above 1 GiB.
    """
    model, module = run.model, run.model.module
    stream_angles(module)
    if module.config.phase_rotation == "off":
        raise UnsupportedModelError(f"{model.name} has no rotation to absorb", "a Three-Phase model with θ", "three-phase-n3")
    require_memory("The logits in float64", 8 * len(VARIANTS) * len(run) * model.vocab_size, "a shorter text")
    twin = Model(absorb_rotation(module), model.tokenizer, name=f"{model.name}, rotation absorbed", revision=model.revision)
    after = twin.run(run.token_ids.tolist())
    rough, fine = (_logits(copy.deepcopy(module).to(getattr(torch, precision)), run) for precision in PRECISIONS)
    found = {**_changes(rough, fine), **_likeliest(model, fine, top_k), **_turns(run, after)}
    found["angles"] = variable(("variant",), np.array([_count(module), 0, 0]), "angles that the model holds")
    places = {
        **prompt_coordinates(run),
        "variant": texts(("variant",), VARIANTS, "what became of the rotations"),
        "precision": texts(("precision",), PRECISIONS, "of weights and states"),
        "rank": variable(("rank",), np.arange(1, top_k + 1), "rank of the token in the model"),
        "phase": variable(("phase",), np.arange(found["imposed"].shape[2]), "phase, from the first channels on"),
        "pair": variable(("pair",), np.arange(found["imposed"].shape[3]), "pair of adjacent channels of a phase"),
    }
    return Absorbed(xr.Dataset(found, places, provenance(run, SOURCE, {"probe": "absorbed_rotation"})), twin)


def _changes(rough: Mapping[str, Tensor], fine: Mapping[str, Tensor]) -> dict[str, xr.Variable]:
    """Of the logits of every position, of single and of double precision."""
    whole, absorbed, left_out = fine.values()
    gaps = torch.stack([_gap(rough["with rotation"], rough["absorbed"]), _gap(whole, absorbed)])
    return {
        "gap": exact(("precision", "position"), gaps.numpy(), "largest difference of a logit, absorbed"),
        "left_out_gap": exact(("position",), _gap(whole, left_out).numpy(), "largest difference of a logit, left out"),
        "logit_spread": exact(("position",), whole.std(-1).numpy(), "standard deviation of the logits"),
    }


def _likeliest(model: Model, logits: Mapping[str, Tensor], top_k: int) -> dict[str, xr.Variable]:
    """After the last token."""
    last = torch.stack([found[-1] for found in logits.values()])
    top = last[0].topk(top_k).indices
    return {
        "probability": exact(("variant", "rank"), last.softmax(-1)[:, top].numpy(), "probability"),
        "token": texts(("rank",), [model.vocabulary[token] for token in top.tolist()], "next token"),
        "next_token": texts(
            ("variant",), [model.vocabulary[token] for token in last.argmax(-1).tolist()], "likeliest next token"
        ),
    }


def _turns(run: Run, after: Run) -> dict[str, xr.Variable]:
    """Since the embedding."""
    angles = stream_angles(run.model.module)
    turns = torch.stack([measured_turns(found, angles.shape[1])[1] for found in (run, after)])
    unknown = torch.full_like(angles, float("nan"))[None]
    place = ("variant", "layer", "phase", "pair")
    return {
        "imposed": exact(place, torch.stack([angles, 0 * angles, 0 * angles]).numpy(), "imposed angle", "radian"),
        "measured": exact(place, torch.cat([turns.angle(), unknown]).numpy(), "measured angle", "radian"),
        "coherence": exact(place, torch.cat([turns.abs(), unknown]).numpy(), "share explained by the measured rotation"),
    }


def _logits(module: ThreePhaseForCausalLM, run: Run) -> dict[str, Float[Tensor, "position vocab"]]:
    """By variant; the module is a copy, and loses its rotations here."""
    ids = run.token_ids[None].to(module.lm_head.weight.device)
    found = {}
    for name in VARIANTS:
        if name == "left out":
            for layer in layers(module):
                layer.phase_rotation = None
        variant = absorb_rotation(module) if name == "absorbed" else module
        with torch.no_grad():
            found[name] = variant.eval()(input_ids=ids, use_cache=False).logits[0].double().cpu()
    return found


def _gap(one: Float[Tensor, "position vocab"], other: Float[Tensor, "position vocab"]) -> Float[Tensor, " position"]:
    return (one - other).abs().amax(-1)


def _count(module: ThreePhaseForCausalLM) -> int:
    return sum(layer.phase_rotation.theta.numel() for layer in layers(module) if layer.phase_rotation is not None)
