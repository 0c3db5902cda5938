"""What is looked at while a Three-Phase model trains: held-out loss, angles, and the phases of the stream."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from lens.models.three_phase import ThreePhaseForCausalLM, transported_direction
from lens.models.three_phase.transport import layers
from lens.training.subwords import window_losses

DIRECTIONS = ("equal channels", "transported")


def look_at_phases(module: ThreePhaseForCausalLM, windows: Int[Tensor, "window length"], phases: int) -> dict[str, Any]:
    """Plain numbers of one look, seven digits each; nothing is changed.

    Args:
        module: with phases or without.
        windows: held-out tokens.
        phases: that the stream is cut into, whether the model has them or not.

    Returns:
        - `validation_loss`: nats per token;
        - `theta[block][pair]`: radians, where the model rotates;
        - `phase_mean[layer][phase]`: over tokens and channels; its sum over phases is the zero-sum residual;
        - `phase_norm[layer][phase]`: mean length of a phase;
        - `share[direction][layer]`: mean squared cosine of the state with the direction of equal channels and with what the
          rotations have turned it into; the second where rotations replace the stream.

    Memory: the residual states of all windows in float64.
    """
    with torch.no_grad(), _recorded(module) as recorded:
        loss = window_losses(module, windows).double().mean().item()
        states = torch.stack([state.double().cpu().flatten(0, 1) for state in recorded])
    cut = states.unflatten(-1, (phases, -1))
    found = {
        "validation_loss": loss,
        "phase_mean": cut.mean((1, 3)).tolist(),
        "phase_norm": cut.norm(dim=-1).mean(1).tolist(),
        "share": _shares(module, states).tolist(),
    }
    turns = [layer.phase_rotation for layer in layers(module)]
    if all(turn is not None for turn in turns):
        found["theta"] = [turn.theta.detach().double().cpu().tolist() for turn in turns if turn is not None]
    return _rounded(found)


def _shares(module: ThreePhaseForCausalLM, states: Float64[Tensor, "layer token d"]) -> Float64[Tensor, "direction layer"]:
    width = states.shape[-1]
    equal = torch.full((len(states), width), 1 / math.sqrt(width), dtype=torch.float64)
    directions = [equal]
    if not (module.config.residual_rotation and module.config.phase_rotation != "off"):
        directions.append(torch.stack([transported_direction(module, layer) for layer in range(len(states))]))
    energy = states.pow(2).sum(-1)
    return torch.stack([((states * along[:, None]).sum(-1).pow(2) / energy).mean(-1) for along in directions])


@contextmanager
def _recorded(module: ThreePhaseForCausalLM) -> Iterator[list[Float[Tensor, "window position d"]]]:
    """The embedded tokens and the output of every block, before the final norm, which the library would put in the last one."""
    states: list[Tensor] = []

    def read(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        states.append(given[0])

    def made(_: nn.Module, __: Any, state: Any) -> None:
        states.append(state)

    blocks = list(layers(module))
    hooks = [blocks[0].register_forward_pre_hook(read), *(block.register_forward_hook(made) for block in blocks)]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def _rounded(values: Any) -> Any:
    """Seven digits, what float32 holds; a record is short and yet says more than was measured."""
    if isinstance(values, dict):
        return {name: _rounded(value) for name, value in values.items()}
    return [_rounded(value) for value in values] if isinstance(values, list) else float(f"{values:.7g}")
