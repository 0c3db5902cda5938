"""A frozen model is the model at its prompt, affine everywhere else, and nothing is left behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lens.base.errors import Cancelled, InputError, UnsupportedModelError
from lens.models.edits import remove_skips
from lens.models.frozen import TOLERANCE, FrozenModel, freeze
from lens.models.model import Model
from tests.models.families import FAMILIES, build

IDS = list(range(3, 15))
REFUSED = ("falcon-alibi", "gpt-oss")  # eager attention that is not its default one's; an MLP with clamped sides
MORE = ("persimmon", "three-phase", "deepseek-v3")


@pytest.mark.parametrize("family", [one for one in (*FAMILIES, *MORE) if one not in REFUSED])
def test_every_family_is_an_affine_map_at_a_prompt(family: str):
    model = Model(build(family), name=family)
    frozen = freeze(model, IDS)
    assert frozen.forward_error <= TOLERANCE
    assert frozen.linear_error <= TOLERANCE
    given = frozen.embedding[None].clone().requires_grad_()
    states = frozen(given)
    assert len(states.residual) == model.n_layers + 1
    weights = torch.zeros(model.vocab_size)
    weights[7] = 1
    row, constant = frozen.direction(weights, 9)
    logit = states.hidden[0, 9] @ row
    slope = torch.autograd.grad(logit, given)[0]
    at_zero = frozen(torch.zeros_like(given)).hidden[0, 9].detach() @ row
    added = float((slope * given).sum().detach() + at_zero) + constant
    assert added == pytest.approx(float(frozen.logits[9, 7]), abs=2e-5 * float(frozen.logits.abs().max()))
    assert float(slope[0, 10:].abs().max()) == 0  # causal
    rows, directions = torch.randn(3, frozen.hidden.shape[1]), torch.randn(3, *frozen.embedding.shape)
    back = frozen.transposed(9, 2)(rows)  # in two lots
    there = frozen.push_forward(directions, 9)
    assert torch.allclose((rows * there).sum(-1), (back * directions).sum((1, 2)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "falcon", "bloom"])
def test_in_double_precision_the_map_is_exact(family: str):
    """Golden 2025: a relative error under 1e-13. These families compute all their factors in the dtype that they are in."""
    frozen = freeze(Model(build(family, dtype=torch.float64)), IDS)
    assert frozen.forward_error < 1e-13
    assert frozen.linear_error < 1e-13


@pytest.mark.parametrize("family", REFUSED)
def test_what_is_something_else_is_refused(family: str):
    with pytest.raises(UnsupportedModelError, match="with frozen attention, norms and gates"):
        freeze(Model(build(family)), IDS)


def test_an_unknown_activation_is_refused():
    model = Model(build("llama"))
    for block in model.anatomy.blocks:
        part: Any = block.module
        part.mlp.act_fn = nn.Softplus()
    with pytest.raises(UnsupportedModelError, match="is no affine map"):
        freeze(model, IDS)


def test_it_is_the_map_that_is_meant():
    """Against the formula, at embeddings that are not the prompt's: patterns, lengths and gates are the prompt's."""
    model = Model(build("llama", dtype=torch.float64))
    run = model.run(IDS, attention=True)
    assert run.attention is not None
    frozen = freeze(model, IDS)
    other = torch.randn(1, *frozen.embedding.shape, dtype=torch.float64)
    states = other[0]
    for number, block in enumerate(model.anatomy.blocks):
        here: Any = block.module
        value = here.self_attn.v_proj(_normed(here.input_layernorm, run.residual[number], states))
        value = value.view(len(IDS), 2, 8).repeat_interleave(2, 1).transpose(0, 1)
        read = (run.attention[number].double() @ value).transpose(0, 1).flatten(1)
        middle = run.residual[number] + _attended(here, run.residual[number], run.attention[number])
        states = states + here.self_attn.o_proj(read)
        normed = _normed(here.post_attention_layernorm, middle, states)
        gate = nn.functional.silu(here.mlp.gate_proj(_normed(here.post_attention_layernorm, middle, middle)))
        states = states + here.mlp.down_proj(gate * here.mlp.up_proj(normed))
        assert close(frozen(other).residual[number + 1][0], states)
    (norm,) = model.anatomy.tail
    assert close(frozen(other).hidden[0], _normed(norm, run.residual[-1], states))


def close(found: Tensor, wanted: Tensor) -> bool:
    """To the rounding of float32, in which the model computes its lengths and weights whatever it is in."""
    return bool((found - wanted).abs().max() <= 2e-6 * wanted.abs().max())


def _normed(norm: Any, of: Tensor, states: Tensor) -> Tensor:
    return states * torch.rsqrt(of.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon) * norm.weight


def _attended(block: Any, states: Tensor, weights: Tensor) -> Tensor:
    value = block.self_attn.v_proj(_normed(block.input_layernorm, states, states))
    value = value.view(len(states), 2, 8).repeat_interleave(2, 1).transpose(0, 1)
    return block.self_attn.o_proj((weights.double() @ value).transpose(0, 1).flatten(1))


def test_gelu_is_its_input_times_a_frozen_share():
    """A two-sided MLP is linear in the side that is not activated, a plain one in what its activation reads."""
    model = Model(build("gpt-neox", dtype=torch.float64))
    frozen = freeze(model, IDS)
    kept = [value for name, value in frozen._factors if name == "gelu"]
    assert len(kept) == model.n_layers
    assert all(float(value.min()) >= 0 and float(value.max()) <= 1 for value in kept)  # Φ


@pytest.fixture(scope="module")
def frozen() -> FrozenModel:
    return freeze(Model(build("llama")), IDS)


def traces(model: Model) -> dict[str, Any]:
    logits = model.run(IDS).logits
    assert logits is not None
    return {
        "own": {name: (set(vars(part)), vars(part).get("forward")) for name, part in model.module.named_modules()},
        "hooks": [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.module.modules()],
        "state": {name: (value.data_ptr(), value._version) for name, value in model.module.state_dict().items()},
        "asking": [weight.requires_grad for weight in model.module.parameters()],
        "kernel": model.module.config._attn_implementation,
        "logits": logits.numpy().tobytes(),
        "edits": (model.edits, model.lock.holder, model.fingerprint),
    }


def test_nothing_is_left_behind(frozen: FrozenModel):
    model = frozen.model
    before = traces(model)
    assert any(before["asking"])
    freeze(model, IDS[:4])
    frozen(frozen.embedding[None])
    frozen.unfrozen(frozen.embedding[None])

    def stop() -> None:
        raise Cancelled

    for run in (lambda: freeze(model, IDS, check=stop), lambda: frozen(frozen.embedding[None], check=stop)):
        with pytest.raises(Cancelled):
            run()
    assert traces(model) == before
    assert all(weight.grad is None for weight in model.module.parameters())


def test_unfrozen_is_the_model(frozen: FrozenModel):
    run = frozen.model.run(IDS)
    states = frozen.unfrozen(torch.stack([frozen.embedding, 2 * frozen.embedding]))
    assert torch.allclose(torch.stack(states.residual)[:, 0], run.residual, rtol=1e-4, atol=1e-4)
    assert torch.allclose(states.hidden[0], frozen.hidden, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(states.hidden[1], 2 * states.hidden[0], rtol=1e-2)  # which the frozen one would be


def test_refused_in_one_line(frozen: FrozenModel):
    with pytest.raises(InputError, match="shape"):
        frozen(frozen.embedding[None, 1:])
    with remove_skips(frozen.model, "mlp"), pytest.raises(InputError, match="edited otherwise"):
        frozen(frozen.embedding[None])
    with pytest.raises(UnsupportedModelError, match="float32 or float64"):
        freeze(Model(build("llama", dtype=torch.bfloat16)), IDS)


def test_an_edited_model_can_be_frozen(frozen: FrozenModel):
    with remove_skips(frozen.model, "mlp"):
        edited = freeze(frozen.model, IDS)
        assert edited.linear_error <= TOLERANCE
        assert not torch.allclose(edited.hidden, frozen.hidden, rtol=1e-2)
