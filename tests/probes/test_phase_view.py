"""The view of a stream as N phases: against sums written out, all partitions there are, and rotations put in by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import lens
from lens.base.errors import InputError
from lens.models.three_phase import ThreePhaseConfig, ThreePhaseForCausalLM, absorb_rotation
from lens.probes.phase_correlation import phase_correlation
from lens.probes.phase_turn import phase_turn
from lens.probes.phase_view import MEASURES, channel_sums, cuts, phase_view
from tests.models.families import build
from tests.probes.test_phase_turn import IDS, TINY, silent

TOKENS = [(7 * i) % 120 + 3 for i in range(40)]


@pytest.fixture(scope="module")
def run():
    return lens.load(build("llama")).run(TOKENS, logits=False)


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return ThreePhaseForCausalLM(ThreePhaseConfig(**TINY)).double().eval()


def units(run) -> torch.Tensor:
    """States without the first token, of root mean square one."""
    states = run.residual[:, 1:].double()
    return states / states.pow(2).mean(-1, keepdim=True).sqrt()


def test_cuts_leave_whole_pairs():
    assert cuts(96) == (1, 2, 3, 4, 6, 8, 12, 16, 24, 48)
    assert cuts(576) == (1, 2, 3, 4, 6, 8, 9, 12, 16, 18, 24, 32, 36, 48)


def test_lengths_means_and_angles_are_what_they_are_called(run):
    states = units(run)
    parts = states.unflatten(-1, (4, 8))
    found = {measure: phase_view(run, 4, measure, partitions=20) for measure in ("length", "mean", "angle")}
    np.testing.assert_allclose(found["length"].value, parts.pow(2).mean(-1).mean(1).sqrt(), rtol=1e-12)
    np.testing.assert_allclose(found["mean"].value, parts.mean((1, 3)), atol=1e-12)
    products, squares = (parts[:-1] * parts[1:]).sum((1, 3)), parts.pow(2).sum((1, 3))
    np.testing.assert_allclose(found["angle"].value, (products / (squares[:-1] * squares[1:]).sqrt()).arccos().rad2deg())
    for view in found.values():
        spread = view.value.max("phase") - view.value.min("phase")
        np.testing.assert_allclose(view.statistic, spread, atol=1e-12)
        assert (view.random_low <= view.random_middle).all()
        assert (view.random_middle <= view.random_high).all()
    assert found["length"].attrs["texts"] == 1
    assert found["length"].attrs["model"] == run.model.name


def test_correlations_are_those_of_their_probe(run):
    found, wanted = phase_view(run, 2, "correlation"), phase_correlation(run, 2, partitions=400, drop_first=True)
    for name in ("within", "between", "noise"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-12)
    np.testing.assert_allclose(found.statistic, wanted.difference, atol=1e-12)
    drawn = wanted.random_difference.sel(unit="pair")
    np.testing.assert_allclose(found.random_middle, drawn.mean("partition"), atol=4 * float(drawn.std("partition").max()) / 20)
    np.testing.assert_allclose(found.random_high - found.random_middle, 1.96 * drawn.std("partition"), rtol=0.15)
    size = 16
    inside = found.value.values[:, [0, 1], [0, 1]] * size * (size - 1)
    np.testing.assert_allclose(inside.sum(1), wanted.within * 2 * size * (size - 1))


def test_chance_is_exact_over_all_partitions():
    """Eight channels are four pairs, which can be dealt to two phases in 24 orders."""
    model = lens.load(ThreePhaseForCausalLM(ThreePhaseConfig(
        vocab_size=40, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        num_phases=2,
    )))  # fmt: skip
    run = model.run(list(range(20)), logits=False)
    found = phase_view(run, 2, "correlation")
    for layer, states in enumerate(run.residual[:, 1:].double()):
        strength = np.abs(np.corrcoef(states.numpy().T)) - np.eye(8)
        differences = []
        for order in itertools.permutations(range(4)):
            channels = np.array([[2 * pair, 2 * pair + 1] for pair in order]).ravel()
            parts = strength[channels][:, channels].reshape(2, 4, 2, 4).sum((1, 3))
            differences.append(np.trace(parts) / 24 - (parts.sum() - np.trace(parts)) / 32)
        mean, deviation = np.mean(differences), np.std(differences)
        here = found.isel(layer=layer)
        assert here.statistic == pytest.approx(differences[0], abs=1e-12)
        assert here.random_middle == pytest.approx(mean, abs=1e-12)
        assert here.random_high == pytest.approx(mean + 1.959964 * deviation, abs=1e-9)
        assert here.deviations == pytest.approx((differences[0] - mean) / deviation, rel=1e-6)


def test_a_stream_whose_halves_differ_is_seen():
    module = build("llama")
    with torch.no_grad():
        module.model.embed_tokens.weight[:, :16] *= 3
    found = phase_view(lens.load(module).run(TOKENS, logits=False), 2)
    assert found.deviations[0] > 5
    assert found.statistic[0] > found.random_high[0]
    np.testing.assert_allclose(found.value[0, 0] / found.value[0, 1], 3, rtol=0.1)


def test_adjacent_channels_of_random_models_are_a_random_partition():
    deviations = []
    for seed in range(6):
        sums = channel_sums(lens.load(build("llama", seed=seed)).run(TOKENS, logits=False))
        deviations += [phase_view(sums, 4, measure).deviations.values for measure in MEASURES]
    assert np.abs(np.concatenate([found.ravel() for found in deviations]).mean()) < 0.5


def test_an_imposed_rotation_is_seen_at_its_own_number_of_phases(module):
    still = lens.load(silent(module)).run(IDS, logits=False)
    found = phase_view(still, measure="rotation", drop_first=False)
    assert found.attrs["phases"] == found.attrs["own_phases"] == 3
    np.testing.assert_allclose(found.statistic, 1, atol=1e-12)
    np.testing.assert_allclose(found.miss, 0, atol=1e-9)
    angles = found.turn.values.reshape(4, 3, 8)
    assert np.exp(1j * (angles[:, 1] - angles[:, 0])) == pytest.approx(np.exp(2j * math.pi / 3), abs=1e-9)
    # Two phases of a stream in three: Σ over the pairs of each half, with π between the halves.
    other = phase_view(still, 2, "rotation", drop_first=False)
    assert (other.statistic < 0.9).all()
    assert (found.random_high < 0.7).all()


def test_it_is_a_matter_of_the_basis(module):
    """The twin without rotations has the same logits and no locking."""
    run, twin = (lens.load(one).run(IDS, logits=False) for one in (module, absorb_rotation(module)))
    turned, still = (phase_view(one, 3, "rotation") for one in (run, twin))
    assert (turned.statistic > turned.random_high).all()
    assert (still.statistic < 0.1).all()
    assert np.isfinite(turned.imposed).all()
    assert (still.imposed == 0).all()
    for one, view in ((run, turned), (twin, still)):
        wanted = phase_turn(one, 3, partitions=1, drop_first=True)
        assert np.abs(view.turn_size - wanted.turn_size).max() < 0.1  # whose tokens count by their length


def test_one_phase_has_nothing_to_compare(run):
    for measure in ("length", "mean", "angle"):
        np.testing.assert_allclose(phase_view(run, 1, measure).statistic, 0, atol=1e-12)
    assert np.isnan(phase_view(run, 1, "correlation").statistic).all()
    assert np.isnan(phase_view(run, 1, "rotation").imposed).all()


def test_a_channel_that_does_not_vary_is_uncorrelated():
    module = build("llama")
    with torch.no_grad():
        module.model.embed_tokens.weight[:, 5] = 0
    found = phase_view(lens.load(module).run(TOKENS, logits=False), 16, "correlation")
    assert np.isfinite(found.statistic).all()
    assert found.value[0, 2, 2] == 0  # channels 4 and 5 are a phase


def test_refused(run):
    with pytest.raises(InputError, match="not given"):
        phase_view(run)
    for wrong in ({"phases": 5}, {"phases": 32}, {"phases": 2, "measure": "rank"}, {"phases": 2, "partitions": 1}):
        with pytest.raises(InputError, match="Try"):
            phase_view(run, **wrong)
    with pytest.raises(InputError, match="1 token"):
        channel_sums(run.model.run([3, 4], logits=False))
