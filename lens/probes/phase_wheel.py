"""By what angle each phase of a Three-Phase model's stream turns, at every layer and pair of channels: imposed and measured.

Two things are identities and no findings: the phases of one block stand 2πi/N apart before and after any training, because
the offsets are constants, and so the mean over two or more phases is zero. Along the skip path offsets add up, and
wherever N divides the number of blocks all phases are back in step.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import xarray as xr
from jaxtyping import Complex128, Float64
from torch import Tensor

from lens.base.errors import UnsupportedModelError
from lens.models.model import Model
from lens.models.run import Run
from lens.models.three_phase import ThreePhaseForCausalLM, stream_angles
from lens.models.three_phase.transport import layers
from lens.probes.dataset import exact, provenance, texts, variable
from lens.probes.theta_drift import decay_factor, theta_drift
from lens.training.phase_recipes import phase_recipe

FAMILY = {phases: f"three-phase-n{phases}" for phases in (1, 2, 3, 4, 6, 8, 12)}
"""Recipes of the family that differ in the number of phases alone."""
REFERENCE = "three-phase-rope-only"
SOURCE = "Abu Ayyash, arXiv 2604.14430, section 3 and figure 9c; accumulated and measured angles: our own"
PATHS = ("block", "accumulated")


def phase_wheel(run: Run) -> xr.Dataset:
    """Angles of all spokes of the wheel.

    Args:
        run: of a Three-Phase model with rotations.

    Returns:
        Dataset over `path` (`block`: what the block before a layer turns by; `accumulated`: all blocks before it), `layer`,
        `phase` and `pair`; nothing has turned at layer 0. Radians:

        - `angle`, `start`: θ + 2πi/N, summed for `accumulated`, after training and before; not reduced to a turn;
        - `mean_cosine`, `mean_sine[path, layer, pair]`: the mean over phases of unit vectors at `angle`;
        - `measured`: signed angle of the rotation that takes a pair of the run's states closest to what it is later, −π to π;
          `coherence`: what share of their lengths that rotation explains, 0 to 1;
        - `miss[path, layer]`: mean over phases and pairs, by coherence, of the difference between the two angles without its
          sign, 0 to π; π/2 by chance.

    Raises:
        UnsupportedModelError: a model without phases or rotations, or one that adds the rotated stream instead of replacing it.
    """
    module = run.model.module
    imposed = stream_angles(module)
    if module.config.phase_rotation == "off":
        raise UnsupportedModelError(f"{run.model.name} has no rotation", "a Three-Phase model with θ", "three-phase-n3")
    angle, start = (_paths(angles) for angles in (imposed, _starts(module)))
    turned = measured_turns(run, angle.shape[-2])
    mean = torch.polar(torch.ones_like(angle), angle).mean(-2)
    miss = (turned / torch.polar(torch.ones_like(angle), angle)).flatten(2)
    missed = (miss.abs() * miss.angle().abs()).sum(-1) / miss.abs().sum(-1)
    spoke, hub = ("path", "layer", "phase", "pair"), ("path", "layer", "pair")
    found = {
        "angle": exact(spoke, angle.numpy(), "imposed angle", "radian"),
        "start": exact(spoke, start.numpy(), "imposed angle before training", "radian"),
        "mean_cosine": exact(hub, mean.real.numpy(), "mean over phases of the cosine"),
        "mean_sine": exact(hub, mean.imag.numpy(), "mean over phases of the sine"),
        "measured": exact(spoke, turned.angle().numpy(), "measured angle", "radian"),
        "coherence": exact(spoke, turned.abs().numpy(), "share explained by the measured rotation"),
        "miss": exact(("path", "layer"), missed.numpy(), "measured less imposed angle", "radian"),
    }
    places = {
        "path": texts(("path",), PATHS, "from where on"),
        "layer": variable(("layer",), np.arange(angle.shape[1]), "residual state (0 is the embedding)"),
        "phase": variable(("phase",), np.arange(angle.shape[2]), "phase, from the first channels on"),
        "pair": variable(("pair",), np.arange(angle.shape[3]), "pair of adjacent channels of a phase"),
    }
    return xr.Dataset(found, places, provenance(run, SOURCE, {"probe": "phase_wheel", "phases": angle.shape[2]}))


def recipe_drift(model: Model) -> xr.Dataset:
    """`theta_drift` of a shipped model, with the drift that weight decay alone gives in the training of its recipe.

    Raises:
        InputError: no recipe of the model's name. UnsupportedModelError: no angles.
    """
    training = phase_recipe(model.name).training
    return theta_drift(model, decayed=decay_factor(map(training.rate, range(training.steps)), training.weight_decay))


def family_losses(family: xr.Dataset) -> xr.Dataset:
    """Held-out losses of the family's models of one size while they trained, beside the model with nothing but RoPE.

    Args:
        family: from `phase_family`.

    Returns:
        Dataset over `recipe` and `looked_at`, of the seeds that a recipe and the reference share; nats per token:

        - `excess`: loss less that of `three-phase-rope-only` at that update with that seed, mean over seeds; `low`, `high`: its
          least and its largest;
        - `family_low`, `family_high[looked_at]`: the same over all recipes of `FAMILY`;
        - `final[recipe]`: last loss, mean over seeds; `title[recipe]`.
    """
    same = (family.num_blocks == family.num_blocks.sel(recipe=REFERENCE)).to_numpy()
    found = family[["validation_loss", "title"]].isel(recipe=same).dropna("looked_at", how="all")
    loss = found.validation_loss
    excess = loss - loss.sel(recipe=REFERENCE, drop=True)
    ours = excess.sel(recipe=[name for name in FAMILY.values() if name in found.recipe])
    named = {
        "excess": (excess.mean("seed"), "held-out loss less that of RoPE only"),
        "low": (excess.min("seed"), "the same, the least seed"),
        "high": (excess.max("seed"), "the same, the largest seed"),
        "family_low": (ours.min(("recipe", "seed")), "the least of all numbers of phases"),
        "family_high": (ours.max(("recipe", "seed")), "the largest of all numbers of phases"),
        "final": (loss.isel(looked_at=-1, drop=True).mean("seed"), "held-out loss at the end"),
    }
    means = {name: exact(tuple(map(str, array.dims)), array.to_numpy(), text, "nats") for name, (array, text) in named.items()}
    places = {name: found[name] for name in ("recipe", "looked_at")}
    return xr.Dataset({**means, "title": found.title}, places, {**family.attrs, "probe": "family_losses"})


def _paths(accumulated: Float64[Tensor, "layer phase pair"]) -> Float64[Tensor, "path layer phase pair"]:
    block = accumulated.diff(dim=0, prepend=accumulated[:1])
    return torch.stack([block, accumulated])


def _starts(module: ThreePhaseForCausalLM) -> Float64[Tensor, "layer phase pair"]:
    """What `stream_angles` gave before training; the angles were made in float32."""
    config = module.config
    pairs = config.hidden_size // (2 * config.num_phases)
    first = torch.tensor([rotation.angle for layer in layers(module) if (rotation := layer.phase_rotation)]).double()
    offsets = 2 * math.pi / config.num_phases * torch.arange(config.num_phases, dtype=torch.float64)
    turns = (first[:, None, None] + offsets[:, None]).expand(-1, -1, pairs)
    return torch.cat([torch.zeros_like(turns[:1]), turns.cumsum(0)])


def measured_turns(run: Run, phases: int) -> Complex128[Tensor, "path layer phase pair"]:
    """Σ conj(before) · after over tokens, over both lengths, of pairs of adjacent channels; 1 at layer 0.

    Its angle is that of the rotation which takes a pair's states closest to what they are later, its size the share of their
    lengths that this rotation explains.

    Args:
        run: of any model.
        phases: N, whose double divides the channels.
    """
    states = run.residual.to("cpu", torch.float64).unflatten(-1, (phases, -1, 2)).contiguous()
    points = torch.view_as_complex(states)
    before = torch.stack([points[:1].expand_as(points), points])
    before[1] = points[0]
    before[0, 1:] = points[:-1]
    lengths = before.abs().pow(2).sum(2) * points.abs().pow(2).sum(1)
    return (before.conj() * points).sum(2) / lengths.sqrt().clamp_min(torch.finfo(torch.float64).tiny)
