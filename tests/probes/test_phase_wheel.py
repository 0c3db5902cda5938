"""Angles of the wheel: published starts, identities of the offsets, turns put in by hand, and the shipped family."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import lens
from lens.base.errors import UnsupportedModelError
from lens.models.three_phase import ThreePhaseConfig, ThreePhaseForCausalLM
from lens.probes.phase_family import phase_family
from lens.probes.phase_wheel import FAMILY, REFERENCE, family_losses, phase_wheel, recipe_drift

IDS = [3, 1, 41, 5, 9, 26, 53, 58, 9, 7, 9, 3]


def three_phase(phases=3, blocks=4, silent=False, **changes):
    torch.manual_seed(0)
    config = ThreePhaseConfig(
        vocab_size=64, hidden_size=48, intermediate_size=64, num_hidden_layers=blocks, num_attention_heads=6,
        num_key_value_heads=3, num_phases=phases, align_heads=False, **changes,
    )  # fmt: skip
    module = ThreePhaseForCausalLM(config).double().eval()
    for layer in module.model.layers if silent else ():
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    return module


def wheel_of(module):
    return phase_wheel(lens.load(module).run(IDS))


def moved(module):
    with torch.no_grad():
        for layer in module.model.layers:
            layer.phase_rotation.theta += 0.5 * torch.randn(layer.phase_rotation.pairs)
    return module


@pytest.mark.parametrize(("blocks", "quarters"), [(4, 5), (12, 13)])
def test_accumulated_angles_start_as_published(blocks, quarters):
    found = wheel_of(three_phase(blocks=blocks))
    layers = np.arange(blocks + 1)
    starts = found.start.sel(path="accumulated", phase=0, pair=0)
    np.testing.assert_allclose(starts, math.pi * layers * (layers + 1) / (4 * blocks), atol=1e-6)
    assert float(found.angle.sel(path="accumulated", phase=0, pair=3)[-1]) == pytest.approx(quarters * math.pi / 4, abs=1e-6)
    np.testing.assert_allclose(found.angle, found.start, atol=1e-12)


@pytest.mark.parametrize("phases", [1, 2, 3, 4, 6, 8, 12])
def test_offsets_are_constants_that_come_round_wherever_phases_divide_the_layer(phases):
    found = wheel_of(moved(three_phase(phases)))
    block = found.angle.sel(path="block", layer=2).to_numpy()
    offsets = 2 * math.pi / phases * np.arange(phases)[:, None]
    np.testing.assert_allclose(block - block[:1], np.broadcast_to(offsets, block.shape), atol=1e-12)
    block, accumulated = np.hypot(found.mean_cosine, found.mean_sine).isel(pair=0).to_numpy()
    np.testing.assert_allclose(block[1:], float(phases == 1), atol=1e-12)
    np.testing.assert_allclose(accumulated, [layer % phases == 0 for layer in range(5)], atol=1e-12)


def test_a_stream_that_nothing_is_added_to_turns_as_imposed():
    found = wheel_of(moved(three_phase(silent=True)))
    np.testing.assert_allclose(np.exp(1j * found.measured), np.exp(1j * found.angle), atol=1e-12)
    np.testing.assert_allclose(found.coherence, 1, atol=1e-12)
    np.testing.assert_allclose(found.miss, 0, atol=1e-12)


def test_states_of_no_common_turn_are_a_right_angle_off_and_incoherent():
    run = lens.load(three_phase()).run(IDS)
    torch.manual_seed(1)
    run.residual.copy_(torch.randn(run.residual.shape))
    found = phase_wheel(run)
    assert (found.coherence[:, 1:].mean(("phase", "pair")) < 0.5).all()
    np.testing.assert_allclose(found.miss.sel(path="block")[1:], math.pi / 2, atol=0.35)


@pytest.mark.parametrize("changes", [{"phase_rotation": "off"}, {"residual_rotation": True}])
def test_what_does_not_turn_the_stream_has_no_wheel(changes):
    with pytest.raises(UnsupportedModelError):
        wheel_of(three_phase(**changes))


@pytest.mark.parametrize("phases", [1, 12])
def test_drift_of_a_shipped_model_is_that_of_its_record(phases):
    found, name = recipe_drift(lens.load(FAMILY[phases])), FAMILY[phases]
    record = phase_family().sel(recipe=name, seed=0).isel(block=slice(4))
    np.testing.assert_allclose(found.mean_drift, record.mean_drift.isel(looked_at=-1), atol=1e-6)
    np.testing.assert_allclose(found.decay_drift, record.decay_drift, atol=1e-6)


def test_losses_are_compared_update_by_update_and_seed_by_seed():
    family = phase_family()
    found = family_losses(family)
    assert float(np.abs(found.excess.sel(recipe=REFERENCE)).max()) == 0
    one = family.validation_loss.sel(recipe="three-phase-n6") - family.validation_loss.sel(recipe=REFERENCE)
    np.testing.assert_allclose(found.high.sel(recipe="three-phase-n6"), one.max("seed"), rtol=1e-6)
    np.testing.assert_allclose(found.excess.sel(recipe="three-phase-n6"), one.mean("seed"), rtol=1e-6)
    assert (found.family_low <= found.low.sel(recipe="three-phase-n6")).all()
