"""Angles and horns of a live model, changed and restored."""

from __future__ import annotations

import copy

import pytest
import torch

import lens
from lens.base.errors import InputError, UnsupportedModelError
from lens.models.edits.phases import horn_profile, phase_angles
from lens.models.three_phase import ThreePhaseConfig, ThreePhaseForCausalLM, absorb_rotation, stream_angles
from tests.models.families import build

IDS = list(range(3, 19))


@pytest.fixture(scope="module")
def model():
    return lens.load(build("three-phase"))


def logits(model) -> torch.Tensor:
    return model.run(IDS).logits


def traces(model) -> tuple:
    return {name: set(vars(part)) for name, part in model.module.named_modules()}, model.edits, model.fingerprint


@pytest.fixture
def untouched(model):
    """What is left after a test is what was there before it."""
    before, state = logits(model), traces(model)
    yield before
    assert torch.equal(logits(model), before)
    assert traces(model) == state


def test_changed_angles_are_those_of_a_model_built_with_them(model, untouched):
    other = copy.deepcopy(model.module)
    with torch.no_grad():
        other.model.layers[1].phase_rotation.theta += 0.4
    with phase_angles(model, lambda _block, angles: angles + 0.4, blocks=[1]):
        assert (logits(model) - lens.load(other).run(IDS).logits).abs().max() < 1e-5 * untouched.abs().max()
        assert torch.allclose(stream_angles(model.module), stream_angles(other), atol=1e-6)
        assert model.edits
        absorbed = lens.load(absorb_rotation(model.module)).run(IDS).logits
        assert (absorbed - logits(model)).abs().max() < 1e-4 * untouched.abs().max()
    assert not torch.equal(lens.load(other).run(IDS).logits, untouched)


def test_angles_left_as_they_are_change_no_bit(model, untouched):
    with phase_angles(model, lambda _block, angles: angles):
        assert torch.equal(logits(model), untouched)


def test_phases_can_be_put_in_step(model, untouched):
    """Without the offsets two phases turn alike; with one phase's angles they are a model of one phase, but for its norms."""
    with phase_angles(model, lambda _block, angles: angles[:1].expand_as(angles)):
        for layer in model.module.model.layers:
            assert torch.equal(layer.phase_rotation.matrix()[:16, :16], layer.phase_rotation.matrix()[16:, 16:])
        assert not torch.equal(logits(model), untouched)


def test_edits_end_in_any_order(model, untouched):
    first = phase_angles(model, lambda _block, angles: angles + 0.1)
    second = phase_angles(model, lambda _block, angles: 2 * angles, blocks=[0])
    first.__enter__()
    one = logits(model)
    second.__enter__()
    both = stream_angles(model.module)
    first.__exit__(None, None, None)
    assert torch.equal(stream_angles(model.module)[1], both[1])  # of block 0 the one entered last counts
    assert not torch.equal(logits(model), one)
    second.__exit__(None, None, None)
    assert torch.is_grad_enabled()  # what a caller had is not changed, in whatever order they end


def test_gradients_stay_on_in_the_body(model):
    with phase_angles(model, lambda _block, angles: angles + 0.1):
        assert torch.is_grad_enabled()


def test_everything_comes_back_after_an_exception(model, untouched):
    later = phase_angles(model, lambda _block, angles: angles + 1)
    with pytest.raises(KeyError), later, horn_profile(model, torch.zeros_like):
        raise KeyError
    with pytest.raises(InputError, match="The horn's numbers become"), horn_profile(model, lambda positions: positions[..., :1]):
        logits(model)


@pytest.mark.parametrize(("horn", "profile"), [("centred", torch.zeros_like), ("fixed", lambda positions: 1 / (positions + 1))])
@pytest.mark.parametrize("own", ["fixed", "learned", "centred", "none"])
def test_a_replaced_horn_is_that_of_a_model_built_with_it(own: str, horn: str, profile):
    config = ThreePhaseConfig(
        vocab_size=64, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6, horn=own
    )
    model = lens.load(ThreePhaseForCausalLM(config))
    other = copy.deepcopy(config)
    other.horn = horn
    built = ThreePhaseForCausalLM(other)
    built.load_state_dict({name: value for name, value in model.module.state_dict().items() if "horn" not in name})
    before, state = logits(model), traces(model)
    with horn_profile(model, profile):
        assert torch.equal(logits(model), lens.load(built).run(IDS).logits)
    assert torch.equal(logits(model), before)
    assert traces(model) == state


def test_what_does_not_fit_is_refused(model, untouched):
    def wrong(_block, angles):
        return angles[0]

    with pytest.raises(InputError, match="The angles of block 0 become"), phase_angles(model, wrong):
        pass
    for blocks in ([], [3]):
        with pytest.raises(InputError, match="some of 0 to 2"), phase_angles(model, wrong, blocks=blocks):
            pass
    llama = lens.load(build("llama"))
    for edit in (phase_angles(llama, wrong), horn_profile(llama, torch.zeros_like)):
        with pytest.raises(UnsupportedModelError, match="has no phases"), edit:
            pass
    still = lens.load(absorb_rotation(model.module))
    with pytest.raises(UnsupportedModelError, match="has no rotation"), phase_angles(still, wrong):
        pass
