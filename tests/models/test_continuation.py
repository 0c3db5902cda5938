"""The end of a prompt as a function of one state, against central differences, plain runs and an affine model."""

from __future__ import annotations

import pytest
import torch

from lens.base.errors import InputError
from lens.models.continuation import Continuation
from lens.models.edits import replace_block
from lens.models.model import Model
from tests.models.families import FAMILIES, build

IDS = [5, 9, 17, 33, 21, 40, 7]
PLACE = 4
CHOSEN = ("llama", "gpt2", "gpt-neox", "bloom", "falcon-alibi", "gemma2", "qwen3", "opt-projected", "phi", "granite")


@pytest.fixture(params=CHOSEN)
def model(request) -> Model:
    assert request.param in FAMILIES
    return Model(build(request.param, dtype=torch.float64))


def test_states_and_output_are_those_of_a_plain_run(model):
    found, run = Continuation(model, IDS, PLACE), model.run(IDS)
    assert torch.allclose(found.states, run.residual[:, PLACE], rtol=1e-10, atol=1e-10)
    assert torch.allclose(found.output, run.residual[-1, -1], rtol=1e-10, atol=1e-10)


def test_both_products_are_the_derivative(model):
    found = Continuation(model, IDS, PLACE)
    directions = torch.randn(3, model.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    jacobian = found.pull_back(torch.eye(model.d_model, dtype=torch.float64))
    for layer in range(model.n_layers):
        state, moved = found.states[layer], directions @ jacobian[layer].T
        step = 1e-3 * state.norm() * directions / directions.norm()  # many norms work in float32, whatever the weights
        slope = (found.outputs(layer, state + step) - found.outputs(layer, state - step)) / (
            2e-3 * state.norm() / directions.norm()
        )
        assert float((moved - slope).norm()) < 1e-3 * float(slope.norm())
        assert float((found.push_forward(layer, directions) - moved).norm()) < 1e-5 * float(moved.norm())


@pytest.fixture(scope="module")
def llama() -> Model:
    return Model(build("llama"))


def test_the_last_layer_is_the_output_itself_or_beside_it(llama):
    identity = torch.eye(llama.d_model)
    assert torch.equal(Continuation(llama, IDS, len(IDS) - 1).pull_back(identity)[-1], identity)
    found = Continuation(llama, IDS, PLACE)
    assert not found.pull_back(identity)[-1].any()
    assert torch.allclose(found.pull_back(identity, [2, 1]), found.pull_back(identity)[[2, 1]], rtol=1e-4, atol=1e-4)


def test_the_state_as_it_is_gives_the_output_as_it_is(llama):
    found = Continuation(llama, IDS, PLACE)
    for layer in range(llama.n_layers):
        given = found.outputs(layer, found.states[layer].expand(2, -1))
        assert torch.allclose(given, found.output.expand(2, -1), rtol=1e-4, atol=1e-4)


def test_of_affine_blocks_the_jacobian_is_their_product(llama):
    """Replaced blocks refuse keys and values, so that the whole prompt is run."""
    generator = torch.Generator().manual_seed(1)
    matrices = [torch.randn(llama.d_model, llama.d_model, generator=generator) / 6 for _ in range(3)]
    with (
        replace_block(llama, 0, lambda x: x @ matrices[0] + 1),
        replace_block(llama, 1, lambda x: x @ matrices[1] - 1),
        replace_block(llama, 2, lambda x: x @ matrices[2]),
    ):
        jacobian = Continuation(llama, IDS, len(IDS) - 1).pull_back(torch.eye(llama.d_model))
    for layer in range(3):
        product = torch.linalg.multi_dot([*matrices[layer:], torch.eye(llama.d_model)])
        assert torch.allclose(jacobian[layer], product.T, rtol=1e-4, atol=1e-5)


def test_the_first_token_has_nothing_before_it(llama):
    found = Continuation(llama, IDS, 0)
    assert torch.allclose(found.output, llama.run(IDS).residual[-1, -1], rtol=1e-4, atol=1e-4)


def test_the_model_is_left_as_it_was(llama):
    before, logits = llama.fingerprint, llama.run(IDS).logits
    found = Continuation(llama, IDS, PLACE)
    found.pull_back(torch.eye(llama.d_model))
    found.outputs(1, found.states[1][None] + 1)
    assert llama.fingerprint == before
    assert torch.equal(llama.run(IDS).logits, logits)
    assert all(parameter.grad is None for parameter in llama.module.parameters())


def test_refusals(llama):
    with pytest.raises(InputError, match="Position 7"):
        Continuation(llama, IDS, 7)
    found = Continuation(llama, IDS, PLACE)
    with pytest.raises(InputError, match="Layer 4"):
        found.push_forward(4, torch.eye(llama.d_model))
    with pytest.raises(InputError, match="Layer 9"):
        found.pull_back(torch.eye(llama.d_model), [1, 9])
    with pytest.raises(InputError, match="Layer -1"):
        found.outputs(-1, torch.zeros(1, llama.d_model))
