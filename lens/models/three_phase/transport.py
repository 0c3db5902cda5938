"""How the rotations of all blocks add up along the stream, and the same model without any of them.

Everything that reads or writes the stream is a matrix, and the norms of phases do not see a rotation within a
phase. So the rotation accumulated up to a reader or a writer can be multiplied into its weights: the rotations
give an untied model no function that it would not have without them.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from lens.base.errors import InputError, UnsupportedModelError
from lens.models.three_phase.modeling import PhaseRMSNorm, ThreePhaseForCausalLM, ThreePhaseLayer, turn_phases


def stream_angles(module: nn.Module) -> Float64[Tensor, "layer phase pair"]:
    """Angle by which each pair of channels has turned on its way along the skip path, radians, not reduced to a turn.

    Args:
        module: a Three-Phase model. Layer ℓ is the residual state after ℓ blocks; layer 0 has not turned.

    Raises:
        UnsupportedModelError: no Three-Phase model, or one that adds the rotated stream instead of replacing the stream.
    """
    found = _require_rotating(module)
    config = found.config
    still = torch.zeros(config.num_phases, config.hidden_size // (2 * config.num_phases), dtype=torch.float64)
    turns = [
        still if layer.phase_rotation is None else layer.phase_rotation.angles().detach().double().cpu()
        for layer in layers(found)
    ]
    return torch.stack([still, *itertools.accumulate(turns)])


def transported_direction(module: nn.Module, layer: int) -> Float64[Tensor, " d"]:
    """Unit vector that the direction of equal channels, 1/√d, is turned into on its way to a residual state.

    Args:
        module: a Three-Phase model.
        layer: 0 … blocks.

    Raises:
        InputError: no such layer. UnsupportedModelError: as `stream_angles`.
    """
    angles = stream_angles(module)
    if not 0 <= layer < len(angles):
        raise InputError(f"Layer {layer}", f"0 to {len(angles) - 1}, the residual states", "another layer")
    width = 2 * angles[0].numel()
    return turn_phases(torch.full((width,), 1 / math.sqrt(width), dtype=torch.float64), angles[layer])


def absorb_rotation(module: nn.Module) -> ThreePhaseForCausalLM:
    """The same function without rotations: the weights that read or write the stream are turned instead.

    With Q the rotation accumulated up to a reader `W` behind a norm of gain `g`, or up to a writer `W`: readers
    become `W · diag(g) · Q`, writers `Qᵀ · W`, and all gains 1. Products are taken in float64.

    Args:
        module: a Three-Phase model; it is left as it is.

    Returns:
        A copy whose configuration has `phase_rotation="off"` and a head of its own. Its logits are those of `module`
        to the rounding of its dtype.

    Memory: the model once more, and one weight in float64.

    Raises:
        UnsupportedModelError: as `stream_angles`.
    """
    angles = stream_angles(module)
    twin = copy.deepcopy(_require_rotating(module))
    twin.config.phase_rotation, twin.config.tie_word_embeddings = "off", False
    twin.lm_head.weight = nn.Parameter(twin.lm_head.weight.detach().clone())  # a tied one is the embedding, which stays
    with torch.no_grad():
        for layer, before, after in zip(layers(twin), angles, angles[1:], strict=False):
            attention, mlp = layer.self_attn, layer.mlp
            _absorb(layer.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj], attention.o_proj, before)
            _absorb(layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj], mlp.down_proj, after)
            layer.phase_rotation = None
        _absorb(twin.model.norm, [twin.lm_head], None, angles[-1])
    return twin


def layers(module: ThreePhaseForCausalLM) -> Iterator[ThreePhaseLayer]:
    """The blocks, as what they are."""
    for layer in module.model.layers:
        assert isinstance(layer, ThreePhaseLayer)
        yield layer


def _require_rotating(module: nn.Module) -> ThreePhaseForCausalLM:
    if not isinstance(module, ThreePhaseForCausalLM):
        raise UnsupportedModelError(f"{type(module).__name__} has no phases", "a Three-Phase model", "lens.models.three_phase")
    if module.config.residual_rotation and module.config.phase_rotation != "off":
        found = "This model adds the rotated stream to the stream, which stretches it"
        raise UnsupportedModelError(found, "rotations that replace the stream", "residual_rotation=False")
    return module


def _absorb(norm: nn.Module, readers: list[nn.Linear], writer: nn.Linear | None, angles: Tensor) -> None:
    assert isinstance(norm, PhaseRMSNorm)
    for reader in readers:
        gained = reader.weight.double() * norm.weight.double()
        reader.weight.copy_(turn_phases(gained, -angles.to(gained.device)))  # a row of W·Q is Qᵀ times the row of W
    norm.weight.fill_(1.0)
    if writer is not None:
        writer.weight.copy_(turn_phases(writer.weight.double().T, -angles.to(writer.weight.device)).T)
        if writer.bias is not None:
            writer.bias.copy_(turn_phases(writer.bias.double(), -angles.to(writer.bias.device)))
