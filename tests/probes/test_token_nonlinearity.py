"""Token by token error of a linear map: nothing where there is nothing, the planted token where it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import lens
from lens.base.errors import InputError
from lens.models.model import Model
from lens.models.run import Run
from lens.probes.shortcuts import fit_shortcuts
from lens.probes.token_nonlinearity import token_nonlinearity
from tests.models.families import build
from tests.probes.test_shortcuts import moments_of

D, LAYERS = 32, 4


@pytest.fixture(scope="module")
def model(tokenizer) -> Model:
    return lens.load(build("llama"), tokenizer)


def linear_states(tokens: int, seed: int) -> torch.Tensor:
    """Four layers, each an affine image of the one before."""
    generator, fixed = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(99)
    states = [torch.randn(tokens, D, generator=generator, dtype=torch.float64)]
    for _ in range(LAYERS - 1):
        states.append(states[-1] @ torch.randn(D, D, generator=fixed, dtype=torch.float64) / D**0.5 + 1)
    return torch.stack(states)


def planted(model: Model, states: torch.Tensor) -> Run:
    return replace(model.run(list(range(3, 3 + states.shape[1])), logits=False), residual=states)


def fitted(model: Model, states: torch.Tensor):
    moments = moments_of(*states, model_fingerprint=model.fingerprint, layers=LAYERS - 1)
    return fit_shortcuts(moments, ridge=0.0), moments


def test_linear_states_have_no_error(model):
    found = token_nonlinearity(planted(model, linear_states(20, 1)), *fitted(model, linear_states(500, 0)))
    assert found.nonlinearity.shape == (3, 20)
    assert float(found.nonlinearity.max()) < 1e-8
    assert float(found.relative.max()) < 1e-8


def test_a_planted_token_has_the_largest_error_and_the_others_none(model):
    states = linear_states(20, 1)
    states[2, 7] += 3 * torch.randn(D, dtype=torch.float64)
    found = token_nonlinearity(planted(model, states), *fitted(model, linear_states(500, 0)))
    assert int(found.nonlinearity.sel(block=1).argmax("position")) == 7
    assert float(found.nonlinearity.sel(block=1).drop_isel(position=7).max()) < 1e-8
    assert float(found.nonlinearity.sel(block=0).max()) < 1e-8


def test_it_is_the_published_error_times_the_root_of_the_number_of_tokens(model):
    """On the fitted tokens, with states centred and divided by their Frobenius norm, as the paper has it."""
    generator = torch.Generator().manual_seed(3)
    states = torch.randn(LAYERS, 50, D, generator=generator, dtype=torch.float64)
    found = token_nonlinearity(planted(model, states), *fitted(model, states))
    x, y = (one - one.mean(0) for one in states[:2])
    x, y = x / x.norm(), y / y.norm()
    error = (x @ torch.linalg.lstsq(x, y).solution - y).norm(dim=1)
    assert found.nonlinearity.sel(block=0).to_numpy() == pytest.approx((error * 50**0.5).numpy(), rel=1e-5)
    assert found.relative.sel(block=0).to_numpy() == pytest.approx((error / y.norm(dim=1)).numpy(), rel=1e-5)


def test_the_typical_error_is_that_of_held_out_text(model):
    generator = torch.Generator().manual_seed(3)
    noise = [torch.randn(LAYERS, 4000, D, generator=generator, dtype=torch.float64) for _ in range(2)]
    train, other = (moments_of(*one, model_fingerprint=model.fingerprint, layers=LAYERS - 1) for one in noise)
    found = token_nonlinearity(planted(model, noise[1][:, :50]), fit_shortcuts(train, validation=other), train)
    squares = np.square(found.nonlinearity.to_numpy()).mean(1)
    assert found.typical.to_numpy() == pytest.approx(np.sqrt(squares), rel=0.1)


def test_classes_and_tokens_come_along(model):
    found = token_nonlinearity(planted(model, linear_states(20, 1)), *fitted(model, linear_states(500, 0)))
    assert found.class_name.to_numpy().tolist()[int(found.token_class[3])] == "content word"
    assert str(found.input_token[3].item()) == "w2"
    assert "2502.15007" in found.attrs["source"]


def test_other_models_and_missing_maps_are_refused(model):
    shortcuts, moments = fitted(model, linear_states(500, 0))
    run = planted(model, linear_states(20, 1))
    with pytest.raises(InputError, match="fitted on"):
        token_nonlinearity(run, replace(shortcuts, source={**shortcuts.source, "model_fingerprint": "0"}), moments)
    far = replace(shortcuts, maps={pair: found for pair, found in shortcuts.maps.items() if pair == (0, 2)})
    with pytest.raises(InputError, match="0 maps of one block"):
        token_nonlinearity(run, far, moments)
    with pytest.raises(InputError, match="adjacent pairs"):
        token_nonlinearity(run, shortcuts, replace(moments, within={0: moments.within[0]}))
