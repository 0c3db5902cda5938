"""Turns of phases and pairs: against rotations put in by hand, and against the twin without rotations."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

import lens
from lens.base.errors import InputError
from lens.models.three_phase import ThreePhaseConfig, ThreePhaseForCausalLM, absorb_rotation
from lens.probes.phase_turn import phase_turn
from tests.models.families import build

TINY = {
    "vocab_size": 64, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 6,
    "num_key_value_heads": 3,
}  # fmt: skip
IDS = [3, 1, 41, 5, 9, 26, 53, 58, 9, 7, 9, 3, 2, 38, 46, 26, 43, 38, 32, 7]


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    found = ThreePhaseForCausalLM(ThreePhaseConfig(**TINY)).double().eval()
    with torch.no_grad():
        for layer in found.model.layers:
            layer.phase_rotation.theta += 0.5 * torch.randn(8)
    return found


@pytest.fixture(scope="module")
def found(module):
    return phase_turn(lens.load(module).run(IDS), partitions=20)


def silent(module):
    """Without attention and MLP."""
    quiet = absorb_rotation(module)  # a copy
    quiet.load_state_dict(module.state_dict(), strict=False)
    for layer, own in zip(quiet.model.layers, module.model.layers, strict=True):
        layer.phase_rotation = own.phase_rotation
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    quiet.config.phase_rotation = "learned"
    return quiet


def test_without_branches_the_measured_rotation_is_the_imposed_one(module):
    told = phase_turn(lens.load(silent(module)).run(IDS), partitions=1)
    assert np.abs(np.exp(1j * told.turn) - np.exp(1j * told.imposed)).max() < 1e-12
    assert (told.miss < 1e-12).all()
    assert told.coherence.values == pytest.approx(1, abs=1e-12)
    angles = module.model.layers[0].phase_rotation.angles().detach().numpy()
    assert np.allclose(np.exp(1j * told.imposed[0]), np.exp(1j * angles))


def test_with_branches_it_is_close(found):
    assert found.sizes == {"block": 4, "phase": 3, "pair": 8, "partition": 20}
    assert (found.miss < 0.5).all()
    assert (found.miss < found.turn_size).all()


def test_the_twin_without_rotations_turns_by_the_imposed_angle_less(module, found):
    """What is measured is a matter of the basis: both have the same logits."""
    twin = phase_turn(lens.load(absorb_rotation(module)).run(IDS), partitions=1)
    assert np.abs(np.exp(1j * twin.turn) - np.exp(1j * (found.turn - found.imposed))).max() < 1e-9
    assert np.allclose(twin.coherence, found.coherence, atol=1e-10)
    assert (twin.imposed == 0).all()
    assert np.allclose(twin.turn_size, found.miss, atol=1e-9)


def test_angles_are_those_between_phases(module, found):
    states = lens.load(module).run(IDS).residual
    before, after = states[2, :, 16:32], states[3, :, 16:32]
    expected = torch.rad2deg(torch.nn.functional.cosine_similarity(before, after, -1).arccos()).mean().item()
    assert float(found.angle[2, 1]) == pytest.approx(expected, rel=1e-10)
    whole = torch.rad2deg(torch.nn.functional.cosine_similarity(states[2], states[3], -1).arccos()).mean().item()
    assert float(found.state_angle[2]) == pytest.approx(whole, rel=1e-10)


def test_any_model_can_be_cut_into_phases():
    run = lens.load(build("gpt2")).run(IDS)
    told = phase_turn(run, 4, partitions=10)
    assert told.imposed.isnull().all()
    assert told.miss.isnull().all()
    assert np.isfinite(told.angle).all()
    assert told.random_turn_size.shape == (3, 10)
    with pytest.raises(InputError, match="no phases of its own"):
        phase_turn(run)


def test_neighbouring_channels_of_a_language_model_are_no_phases(smollm2):
    """Its stream cut into three parts, or paired off, is as any other partition or pairing."""
    run = smollm2.run("The tower was built in two years, and nobody who saw it rise thought that it would stand for long.")
    told = phase_turn(run, 3, drop_first=True)
    for own, random in (("angle_spread", "random_angle_spread"), ("turn_size", "random_turn_size")):
        above = (told[random] >= told[own]).mean("partition")
        assert 0.2 < float(above.mean()) < 0.8, own
        assert float((above == 0).sum()) < 0.1 * told.sizes["block"], own


def test_a_rotation_put_in_by_hand_is_seen():
    run = lens.load(build("gpt2")).run(IDS)
    pairs = torch.view_as_complex(torch.randn(len(IDS), 16, 2, dtype=torch.float64))
    turned = pairs * torch.polar(torch.tensor(2.0).double(), torch.tensor(-2.5).double())
    states = torch.stack([torch.view_as_real(z).flatten(1) for z in (pairs, turned)])
    told = phase_turn(replace(run, residual=states), 2, partitions=30)
    assert told.turn.values == pytest.approx(-2.5)
    assert told.coherence.values == pytest.approx(1)
    assert float(told.turn_size[0]) == pytest.approx(2.5)
    assert told.angle.values == pytest.approx(math.degrees(2.5))
    assert float(told.angle_spread[0]) < 1e-6


def test_the_first_token_of_every_text_can_be_left_out():
    model = lens.load(build("gpt2"))
    runs = [model.run(IDS), model.run(IDS[::-1])]
    cut = [
        replace(run, residual=run.residual[:, 1:], token_ids=run.token_ids[1:], tokens=run.tokens[1:], logits=None)
        for run in runs
    ]
    told, plain = phase_turn(runs, 2, partitions=2, drop_first=True), phase_turn(cut, 2, partitions=2)
    for name in told.data_vars:
        assert np.array_equal(told[name], plain[name], equal_nan=True), name
    assert (told.attrs["tokens"], told.attrs["drop_first"]) == (2 * len(IDS) - 2, 1)
    with pytest.raises(InputError, match="No token is left"):
        phase_turn(model.run([1]), 2, drop_first=True)


def test_a_phase_of_zeros_is_refused():
    run = lens.load(build("gpt2")).run(IDS)
    with pytest.raises(InputError, match="is zero"):
        phase_turn(replace(run, residual=torch.zeros(2, len(IDS), 32)), 2)


def test_it_goes_to_a_file_and_back(found, tmp_path):
    found.to_netcdf(tmp_path / "turn.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "turn.nc", engine="h5netcdf") as kept:
        xr.testing.assert_identical(kept.load(), found)
