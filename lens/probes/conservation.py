"""What gradient flow conserves in the weights, and the identities between gradients that are behind it.

A loss that does not change when one weight grows and another shrinks has gradients that are bound to each other, and a
flow along them keeps a difference of squares. Steps of a finite size break it by the square of the step, weight
decay and Adam at once. All hold for any number of phases, and for a plain Llama as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Float64
from torch import Tensor, nn

from lens.base.errors import UnsupportedModelError
from lens.models.model import Model, evaluation_mode
from lens.models.three_phase import PhaseRotation
from lens.probes.dataset import exact, texts, variable

SOURCE = "our own; conserved differences: Kunin et al., 'Neural mechanics', arXiv 2012.04728, section 3"
SITES = ("attention", "mlp")

Of = Callable[[Tensor], Tensor]  # a weight, to itself or to its gradient


@dataclass(frozen=True)
class _Reader:
    """A norm's gain and the weights that read it."""

    gain: Tensor
    weights: tuple[Tensor, ...]


def conserved_quantities(model: Model) -> xr.Dataset:
    """Differences of squares that gradient flow would leave as they are.

    Args:
        model: a Three-Phase model or any other of Llama's layout: a norm with a gain before attention and MLP each, gated MLP,
            no biases.

    Returns:
        Dataset over `block`, `site` (`attention`, `mlp`) and `channel`, `unit` or `head`:

        - `gain_balance[block, site, channel]`: squared gain less the squared norms of the columns that read it;
        - `gate_balance[block, unit]`: squared norm of the row of the up projection less that of the down projection's column;
        - `value_balance[block, head, value, other]`: for every key head, `W_V W_Vᵀ − Σ W_Oᵀ W_O` over its query heads;
        - `final_balance[channel]`: as `gain_balance`, of the last norm and the head; absent where the head is the embedding.

    Raises:
        UnsupportedModelError: another layout.
    """
    blocks = _blocks(model)
    gains = [[_gain_balance(reader) for reader in _readers(block)] for block in blocks]
    values = [_value_balance(block.self_attn) for block in blocks]
    found = {
        "gain_balance": exact(("block", "site", "channel"), np.array(gains), "squared gain less what reads it"),
        "gate_balance": exact(("block", "unit"), np.array([_gate_balance(block.mlp) for block in blocks]), "up less down"),
        "value_balance": exact(
            ("block", "head", "value", "other"),
            np.array(values),
            "value less outputs",
        ),
    }
    if (final := _final_reader(model)) is not None:
        found["final_balance"] = exact(("channel",), _gain_balance(final), "squared final gain less the head's columns")
    return xr.Dataset(found, _coordinates(blocks), _facts(model, "conserved_quantities"))


def gradient_identities(model: Model, token_ids: Sequence[int]) -> xr.Dataset:
    """Both sides of the identities that the gradients of a model obey at any point, for the loss of one text.

    Args:
        model: as for `conserved_quantities`. Its gradients are left as they are.
        token_ids: the text, two tokens or more.

    Returns:
        Dataset over `block`, `site` and `channel`, and for a model that rotates its stream `pair`:

        - `gain_side[block, site, channel]`, `g · ∂g`, and `reader_side`, `Σ ⟨W, ∂W⟩` over the column of every reader;
        - `theta_side[block, pair]`, `∂θ`, and `weight_side`, what turning all weights behind the rotation does instead:
          `Σ ⟨∂W, W G J G⁻¹⟩` over readers less `Σ ⟨∂W, J W⟩` over writers, J the generator of the pair in all phases and G the
          gains. It is a constraint on gradients; nothing is conserved by it;
        - `gain_gap`, `theta_gap`: largest difference of the sides, over the largest side.

        An angle that a whole block shares is the sum over its pairs.

    Memory: a gradient for every weight.

    Raises:
        UnsupportedModelError: another layout; for a model with rotations, a head that is the embedding, or rotations that are
            added to the stream.
    """
    blocks = _blocks(model)
    gradient = _gradients(model, list(token_ids))
    readers = [[_sides(reader, gradient) for reader in _readers(block)] for block in blocks]
    gain, read = (np.array([[pair[side] for pair in row] for row in readers]) for side in (0, 1))
    dims = ("block", "site", "channel")
    found = {
        "gain_side": exact(dims, gain, "gain times its gradient"),
        "reader_side": exact(dims, read, "columns of readers times their gradients"),
        "gain_gap": exact((), _gap(gain, read), "largest difference of both sides, over the largest side"),
    }
    if all(isinstance(getattr(block, "phase_rotation", None), PhaseRotation) for block in blocks):
        _require_turning(model)
        thetas, weights = _theta_sides(model, blocks, gradient)
        found |= {
            "theta_side": exact(("block", "pair"), thetas, "gradient of an angle"),
            "weight_side": exact(("block", "pair"), weights, "what turning the weights behind it does"),
            "theta_gap": exact((), _gap(thetas, weights), "largest difference of both sides, over the largest side"),
        }
    return xr.Dataset(found, _coordinates(blocks), {**_facts(model, "gradient_identities"), "tokens": len(token_ids)})


def _gap(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max() / np.abs(one).max())


def _coordinates(blocks: Sequence[Any]) -> dict[str, xr.Variable]:
    return {
        "block": variable(("block",), np.arange(len(blocks)), "block"),
        "site": texts(("site",), list(SITES), "what reads the norm"),
    }


def _facts(model: Model, probe: str) -> dict[str, Any]:
    return {"source": SOURCE, "probe": probe, **model.provenance()}


# -- the weights of a layout -----------------------------------------------------------------------


def _blocks(model: Model) -> list[Any]:
    blocks = [block.module for block in model.anatomy.blocks]
    for index, block in enumerate(blocks):
        if not _is_llama_block(block):
            raise UnsupportedModelError(
                f"Block {index} of {model.name} ({type(block).__name__}) is not laid out as Llama's",
                "a norm with a gain before attention and MLP each, q, k, v and o projections, a gated MLP, and no biases",
                "a Llama or a Three-Phase model",
            )
    return blocks


def _is_llama_block(block: Any) -> bool:
    attention, mlp = getattr(block, "self_attn", None), getattr(block, "mlp", None)
    names = [(attention, "q_proj k_proj v_proj o_proj"), (mlp, "gate_proj up_proj down_proj")]
    maps = [getattr(part, name, None) for part, listed in names for name in listed.split()]
    if not all(isinstance(part, nn.Linear) and part.bias is None for part in maps):
        return False
    norms = {name: part for name, part in block.named_children() if "norm" in name}
    inner = [name for part in (attention, mlp) if part is not None for name, _ in part.named_children() if "norm" in name]
    return list(norms) == ["input_layernorm", "post_attention_layernorm"] and not inner and all(map(_has_gain, norms.values()))


def _has_gain(norm: nn.Module) -> bool:
    """Whether its only parameter multiplies: twice the weight, twice the output. Gemma's is added to one."""
    if [name for name, _ in norm.named_parameters()] != ["weight"]:
        return False
    weight = norm.get_parameter("weight").detach()
    ramp = torch.linspace(-1, 2, len(weight), device=weight.device, dtype=weight.dtype)
    once, twice = (torch.func.functional_call(norm, {"weight": factor * weight}, (ramp,)) for factor in (1, 2))
    return torch.equal(twice, 2 * once)


def _readers(block: Any) -> Iterator[_Reader]:
    """Of attention, then of the MLP."""
    attention, mlp = block.self_attn, block.mlp
    yield _Reader(
        block.input_layernorm.weight, tuple(part.weight for part in (attention.q_proj, attention.k_proj, attention.v_proj))
    )
    yield _Reader(block.post_attention_layernorm.weight, (mlp.gate_proj.weight, mlp.up_proj.weight))


def _final_reader(model: Model) -> _Reader | None:
    """None where the head's gradient is also that of the embedding."""
    head, (norm, *others) = model.anatomy.head, model.anatomy.tail
    if head.weight is model.anatomy.embedding.weight or others:
        return None
    gain = norm.weight
    assert isinstance(gain, Tensor)  # the blocks' norms have gains
    return _Reader(gain, (head.weight,))


def _gain_balance(reader: _Reader) -> np.ndarray:
    balance = _exact(reader.gain).pow(2) - sum(_exact(weight).pow(2).sum(0) for weight in reader.weights)
    return balance.cpu().numpy()


def _gate_balance(mlp: Any) -> np.ndarray:
    return (_exact(mlp.up_proj.weight).pow(2).sum(1) - _exact(mlp.down_proj.weight).pow(2).sum(0)).cpu().numpy()


def _value_balance(attention: Any) -> np.ndarray:
    width = attention.head_dim
    value = _exact(attention.v_proj.weight).unflatten(0, (-1, width))
    output = _exact(attention.o_proj.weight).unflatten(1, (len(value), -1, width))  # [d, key head, query head, width]
    return (torch.einsum("hvd,hwd->hvw", value, value) - torch.einsum("dhqv,dhqw->hvw", output, output)).cpu().numpy()


def _exact(weight: Tensor) -> Float64[Tensor, "*shape"]:
    return weight.detach().double()


# -- gradients -------------------------------------------------------------------------------------


def _gradients(model: Model, ids: list[int]) -> Of:
    """From a parameter to its gradient for the mean loss of one text."""
    tokens = torch.tensor([model.encode(ids)], device=model.device)
    parameters = list(model.module.parameters())
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    with model.lock.hold(f"taking gradients of {model.name}"), evaluation_mode(model.module), torch.enable_grad():
        for parameter in frozen:
            parameter.requires_grad_(True)
        try:
            logits = model.module(input_ids=tokens, use_cache=False).logits[0, :-1].double()
            loss = nn.functional.cross_entropy(logits, tokens[0, 1:].to(logits.device))
            gradients = torch.autograd.grad(loss, parameters)
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
    found = {id(parameter): value.double() for parameter, value in zip(parameters, gradients, strict=True)}
    return lambda parameter: found[id(parameter)]


def _sides(reader: _Reader, gradient: Of) -> tuple[np.ndarray, np.ndarray]:
    gain = _exact(reader.gain) * gradient(reader.gain)
    read = sum((_exact(weight) * gradient(weight)).sum(0) for weight in reader.weights)
    assert isinstance(read, Tensor)
    return gain.cpu().numpy(), read.cpu().numpy()


def _require_turning(model: Model) -> None:
    if model.module.config.residual_rotation or _final_reader(model) is None:
        found = f"{model.name} has a head that is its embedding, or adds the rotated stream to the stream"
        raise UnsupportedModelError(found, "a head of its own, and rotations that replace the stream", "another model")


def _theta_sides(model: Model, blocks: Sequence[Any], gradient: Of) -> tuple[np.ndarray, np.ndarray]:
    final = _final_reader(model)
    assert final is not None  # required above
    behind = _reader_turn(final, gradient)
    weights: list[Tensor] = []
    for block in reversed(blocks):
        attention, mlp = _readers(block)
        behind = behind + _reader_turn(mlp, gradient) - _writer_turn(block.mlp.down_proj.weight, gradient)
        weights.append(behind)
        behind = behind + _reader_turn(attention, gradient) - _writer_turn(block.self_attn.o_proj.weight, gradient)
    thetas = [gradient(block.phase_rotation.theta) for block in blocks]
    phases = blocks[0].phase_rotation.phases
    summed = [turn.unflatten(0, (phases, -1)).sum(0) for turn in reversed(weights)]
    if len(thetas[0]) == 1:
        summed = [turn.sum(0, keepdim=True) for turn in summed]
    return tuple(torch.stack(side).cpu().numpy() for side in (thetas, summed))  # type: ignore[return-value]


def _reader_turn(reader: _Reader, gradient: Of) -> Float64[Tensor, " pair"]:
    """⟨∂W, W G J G⁻¹⟩ of every pair of channels (a, b): J has −1 at (a, b) and 1 at (b, a)."""
    gain = _exact(reader.gain)
    total = torch.zeros(len(gain) // 2, dtype=torch.float64, device=gain.device)
    for weight in reader.weights:
        gained = (_exact(weight) * gain).unflatten(1, (-1, 2))
        change = (gradient(weight) / gain).unflatten(1, (-1, 2))
        total = total + (change[..., 0] * gained[..., 1] - change[..., 1] * gained[..., 0]).sum(0)
    return total


def _writer_turn(weight: Float[Tensor, "d inner"], gradient: Of) -> Float64[Tensor, " pair"]:
    """⟨∂W, J W⟩ of every pair of channels."""
    rows, change = _exact(weight).unflatten(0, (-1, 2)), gradient(weight).unflatten(0, (-1, 2))
    return (change[:, 1] * rows[:, 0] - change[:, 0] * rows[:, 1]).sum(-1)
