"""Identities of gradients, and what gradient flow conserves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from transformers import LlamaConfig, LlamaForCausalLM

import lens
from lens.base.errors import UnsupportedModelError
from lens.models.three_phase import ThreePhaseConfig, ThreePhaseForCausalLM
from lens.probes.conservation import conserved_quantities, gradient_identities
from tests.models.families import build

TINY = {
    "vocab_size": 64, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 3,
}  # fmt: skip
IDS = [3, 1, 41, 5, 9, 26, 53, 58, 9, 7, 9, 3, 2, 38, 46, 26]


def shaken(**options: Any) -> ThreePhaseForCausalLM:
    """A random point, with random gains."""
    torch.manual_seed(3)
    module = ThreePhaseForCausalLM(ThreePhaseConfig(**{**TINY, **options})).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


@pytest.mark.parametrize(
    "options",
    [{}, {"num_phases": 1}, {"num_phases": 4, "align_heads": False}, {"phase_rotation": "tied"}, {"horn": "none"},
     {"phase_norm": False}, {"use_rope": False}],
)  # fmt: skip
def test_the_identities_hold_at_a_random_point(options: dict[str, Any]):
    found = gradient_identities(lens.load(shaken(**options)), IDS)
    assert float(found.gain_gap) < 1e-9
    assert float(found.theta_gap) < 1e-9
    for block in range(3):
        theta, weights = found.theta_side[block].values, found.weight_side[block].values
        assert np.abs(theta).max() > 1e-4
        assert weights == pytest.approx(theta, rel=1e-7, abs=1e-9 * np.abs(theta).max())
    assert np.abs(found.gain_side).max() > 1e-4
    assert found.sizes.get("pair") == (1 if options.get("phase_rotation") == "tied" else 24 // options.get("num_phases", 3))


def test_gains_are_bound_in_any_llama_and_there_are_no_angles():
    torch.manual_seed(0)
    module = LlamaForCausalLM(LlamaConfig(**TINY, tie_word_embeddings=True)).float()
    found = gradient_identities(lens.load(module), IDS)
    assert float(found.gain_gap) < 1e-4  # float32
    assert "theta_side" not in found
    assert "final_balance" not in conserved_quantities(lens.load(module))


def test_gradients_and_what_is_frozen_are_left_as_they_were():
    module = shaken()
    module.lm_head.weight.requires_grad_(False)
    gradient_identities(lens.load(module), IDS)
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not module.lm_head.weight.requires_grad
    assert module.training


def trained(rate: float, steps: int, *, optimiser: type[torch.optim.Optimizer] = torch.optim.SGD, **options: Any) -> xr.Dataset:
    """Change of what is conserved, over the change of what it is made of."""
    module = shaken()
    before = conserved_quantities(lens.load(module))
    weights = {name: value.detach().clone() for name, value in module.named_parameters()}
    run = optimiser(module.parameters(), lr=rate, **options)
    ids = torch.tensor([IDS])
    for _ in range(steps):
        run.zero_grad()
        module(ids, labels=ids).loss.backward()
        run.step()
    after = conserved_quantities(lens.load(module))
    moved = max((value - weights[name]).abs().max().item() for name, value in module.named_parameters())
    return np.abs(after - before).max() / moved


def test_gradient_steps_break_it_by_the_square_of_their_size():
    once, halves = trained(0.002, 8), trained(0.001, 16)
    for name in ("gain_balance", "gate_balance", "value_balance", "final_balance"):
        assert float(halves[name] / once[name]) == pytest.approx(0.5, abs=0.05), name


def test_weight_decay_and_adam_break_it():
    plain = trained(0.01, 8)
    for told in (trained(0.01, 8, weight_decay=0.3), trained(0.003, 8, optimiser=torch.optim.AdamW)):
        assert float(told.gain_balance) > 5 * float(plain.gain_balance)
        assert float(told.gate_balance) > 5 * float(plain.gate_balance)


def test_the_quantities_are_what_their_names_say():
    module = shaken()
    found = conserved_quantities(lens.load(module))
    layer = module.model.layers[1]
    mlp, attention = layer.mlp, layer.self_attn
    columns = mlp.gate_proj.weight[:, 7].square().sum() + mlp.up_proj.weight[:, 7].square().sum()
    gain = layer.post_attention_layernorm.weight[7].square()
    assert float(found.gain_balance.sel(site="mlp")[1, 7]) == pytest.approx((gain - columns).item(), rel=1e-12)
    unit = mlp.up_proj.weight[5].square().sum() - mlp.down_proj.weight[:, 5].square().sum()
    assert float(found.gate_balance[1, 5]) == pytest.approx(unit.item(), rel=1e-12)
    value = attention.v_proj.weight[8:16]
    output = [attention.o_proj.weight[:, 8 * q : 8 * q + 8] for q in (2, 3)]  # the queries of key head 1
    expected = value @ value.T - sum(w.T @ w for w in output)
    assert np.allclose(found.value_balance[1, 1], expected.detach().numpy(), rtol=1e-12)


@pytest.mark.parametrize("family", ["gpt2", "gemma", "gemma2", "qwen2", "qwen3", "olmo2", "phi3", "mixtral"])
def test_other_layouts_are_refused(family: str):
    with pytest.raises(UnsupportedModelError, match="not laid out as Llama's"):
        conserved_quantities(lens.load(build(family)))


@pytest.mark.parametrize("options", [{"residual_rotation": True}, {"tie_word_embeddings": True}])
def test_angles_without_the_identity_are_refused(options: dict[str, Any]):
    with pytest.raises(UnsupportedModelError, match="a head that is its embedding"):
        gradient_identities(lens.load(shaken(**options)), IDS)
