"""Absorbing the rotation: the same logits, each pair of the stream turned by just the imposed angle less, the model untouched."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lens
from lens.base.errors import UnsupportedModelError
from lens.probes.absorbed_rotation import absorbed_rotation
from tests.models.families import build
from tests.probes.test_phase_wheel import IDS, moved, three_phase


@pytest.fixture(scope="module")
def shipped():
    model = lens.load("three-phase-n3")
    return absorbed_rotation(model.run("The city was founded in the twelfth cent"))


def test_logits_stay_and_without_absorbing_they_do_not(shipped):
    found = shipped.dataset
    gap = found.gap.max("position")
    assert float(gap.sel(precision="float64")) < 1e-12
    assert float(gap.sel(precision="float32")) < 1e-4
    assert float(found.left_out_gap.min()) > 1
    np.testing.assert_allclose(
        found.probability.sel(variant="absorbed"), found.probability.sel(variant="with rotation"), rtol=1e-12
    )
    assert found.next_token.values.tolist()[:2] == [found.token.values[0]] * 2
    assert found.angles.values.tolist() == [4 * 96 // 6, 0, 0]


def test_states_of_the_twin_turn_by_the_imposed_angle_less(shipped):
    before, after = (shipped.dataset.sel(variant=name) for name in ("with rotation", "absorbed"))
    np.testing.assert_allclose(np.exp(1j * (before.measured - after.measured)), np.exp(1j * before.imposed), atol=1e-4)
    np.testing.assert_allclose(before.coherence, after.coherence, atol=1e-4)
    assert not after.imposed.any()


def test_the_twin_is_a_model_of_its_own_and_the_model_is_left_as_it_was():
    module = moved(three_phase())
    kept = {name: value.clone() for name, value in module.state_dict().items()}
    run = lens.load(module).run(IDS)
    twin = absorbed_rotation(run).twin
    assert all(torch.equal(value, kept[name]) for name, value in module.state_dict().items())
    assert (twin.run(IDS).logits - run.logits).abs().max() < 1e-11
    assert not [name for name in twin.module.state_dict() if "theta" in name]


def test_without_rotations_there_is_nothing_to_absorb():
    for module in (three_phase(phase_rotation="off"), build("llama")):
        with pytest.raises(UnsupportedModelError):
            absorbed_rotation(lens.load(module).run(IDS))
