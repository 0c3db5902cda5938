"""Balance of phases: the identities of the horn, the nulls, and where the horn goes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import xarray as xr

import lens
from lens.base.errors import InputError
from lens.models.three_phase import ThreePhaseConfig, ThreePhaseForCausalLM
from lens.probes.phase_balance import phase_balance, untrained_deviation
from lens.probes.phases import own_partition, random_partitions
from tests.models.families import build

SMALL = {
    "vocab_size": 10000, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "max_position_embeddings": 128,
    "num_attention_heads": 6, "num_key_value_heads": 3,
}  # fmt: skip


def zipf(size: int) -> np.ndarray:
    weights = 1 / np.arange(1, size + 1)
    return weights / weights.sum()


@pytest.fixture(scope="module")
def small():
    """The published model of 5.5 million parameters, untrained."""
    torch.manual_seed(0)
    return lens.load(ThreePhaseForCausalLM(ThreePhaseConfig(**SMALL)))


@pytest.fixture(scope="module")
def runs(small):
    random = np.random.default_rng(1)
    return [small.run(random.choice(10000, 128, p=zipf(10000)).tolist(), logits=False) for _ in range(8)]


@pytest.fixture(scope="module")
def found(runs):
    return phase_balance(runs, partitions=20)


def test_the_residual_is_the_horns_harmonic_number(found):
    assert float(found.residual[0]) == pytest.approx(0.12733938498, abs=1e-7)
    assert float(found.squared_residual[0]) == pytest.approx(0.11511225, abs=1e-6)
    assert found.attrs["tokens"] == 1024
    assert found.attrs["texts"] == 8


def test_the_horn_stays_in_the_transported_direction_and_leaves_that_of_equal_channels(found):
    along = found.horn_fit.sel(direction="transported").values
    assert along == pytest.approx([1.000, 0.992, 0.985, 0.977, 0.962], abs=0.015)
    equal = found.horn_fit.sel(direction="equal channels").values
    assert equal[0] == pytest.approx(1, abs=1e-6)
    assert 0.55 < equal[3] < 0.72  # there the phases are in step again
    assert (equal[[1, 2, 4]] < 0.01).all()


def test_the_share_of_the_horn_is_the_square_of_the_profile(found, small):
    horn = 1 / np.arange(1, 129)
    expected = (horn**2 / (1 + horn**2)).mean()  # against unit channels
    assert float(found.share.sel(direction="equal channels")[0]) == pytest.approx(expected, rel=0.05)
    assert float(found.random_share) == 1 / 192
    none = ThreePhaseForCausalLM(ThreePhaseConfig(**{**SMALL, "horn": "none"}))
    free = phase_balance(lens.load(none).run(list(range(1, 129)), logits=False), partitions=1)
    assert float(free.share[0, 0]) == pytest.approx(1 / 192, rel=0.5)


def test_phases_of_an_untrained_model_are_as_balanced_as_any_partition(found):
    for name in ("mean", "radius"):
        above = (found[f"random_{name}_spread"] >= found[f"{name}_spread"]).mean("partition").values
        assert 0 < above.mean() < 1, name
    assert found.radius.values == pytest.approx(1, abs=0.02)


def test_an_unbalanced_stream_is_seen():
    module = build("llama")
    with torch.no_grad():
        module.model.embed_tokens.weight[:, :16] *= 3
    told = phase_balance(lens.load(module).run(list(range(1, 40))), phases=2, partitions=50)
    assert float(told.radius_spread[0]) > float(told.random_radius_spread[0].max())
    assert float(told.radius[0, 0] / told.radius[0, 1]) == pytest.approx(3, rel=0.1)


def test_the_means_are_plain_means(runs, found):
    states = torch.cat([run.residual for run in runs], 1).double()
    for layer in (0, 3):
        for phase in range(3):
            part = states[layer, :, 64 * phase : 64 * (phase + 1)]
            assert float(found.phase_mean[layer, phase]) == pytest.approx(part.mean().item(), abs=1e-12)
            length = part.norm(dim=-1) / states[layer].norm(dim=-1) * math.sqrt(3)
            assert float(found.radius[layer, phase]) == pytest.approx(length.mean().item(), rel=1e-12)


@pytest.mark.parametrize(("vocabulary", "tokens", "channels", "deviation"), [(10000, 256, 64, 0.018), (32000, 2048, 256, 0.0075)])
def test_the_deviation_of_an_untrained_mean(vocabulary: int, tokens: int, channels: int, deviation: float):
    probabilities = zipf(vocabulary)
    told = untrained_deviation(probabilities, tokens, channels)
    assert told == pytest.approx(deviation, abs=0.0005)
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(300):
        counts = random.multinomial(tokens, probabilities)
        counts = counts[counts > 0]
        drawn.append((counts @ random.standard_normal((len(counts), channels))).mean() / tokens)
    assert np.std(drawn) == pytest.approx(told, rel=0.12)


def test_published_means_are_within_the_null():
    """The paper's balance is that of an untrained table: its values beside standard deviations of chance."""
    small, large = untrained_deviation(zipf(10000), 256, 64), untrained_deviation(zipf(32000), 2048, 256)
    assert math.sqrt(3) * small == pytest.approx(0.032, abs=0.001)  # of the residual
    assert 0.6745 * math.sqrt(3) * small == pytest.approx(0.021, abs=0.0005)  # its median without the sign
    assert np.abs([-0.0016, -0.0048, 0.0065]).max() < small
    assert np.abs(np.array([0.04249, 0.03765, 0.04720]) - 0.04245).max() < small
    assert np.abs(np.array([0.0086, 0.0088, 0.0046]) - 0.00733).max() < large
    assert 0.6745 * math.sqrt(3) * small > 7.17e-3


def test_the_null_of_a_run_counts_its_own_tokens():
    module = lens.load(build("llama"))
    one, many = (phase_balance(module.run(ids), phases=2, partitions=1) for ids in ([5] * 16, list(range(16))))
    assert float(one.untrained_deviation) == pytest.approx(1 / 4)
    assert float(many.untrained_deviation) == pytest.approx(1 / 16)
    assert list(one.direction.values) == ["equal channels"]


def test_random_partitions_are_partitions():
    own = own_partition(24, 3)
    assert torch.equal(own.argmax(1), torch.arange(3).repeat_interleave(8))
    for unit in ("channel", "pair"):
        drawn = random_partitions(24, 3, 5, 0, unit)
        assert (drawn.sum(-1) == 1).all()
        assert (drawn.sum(0) == 8).all()
        kept = (drawn[0::2] == drawn[1::2]).all()
        assert bool(kept) == (unit == "pair")
    with pytest.raises(InputError, match="0 partitions"):
        random_partitions(24, 3, 0, 0)


def test_what_has_no_phases_needs_a_number():
    model = lens.load(build("llama"))
    run = model.run([1, 2, 3])
    with pytest.raises(InputError, match="no phases of its own"):
        phase_balance(run)
    for wrong in (0, 3, 32):
        with pytest.raises(InputError, match=f"{wrong} phases"):
            phase_balance(run, phases=wrong)
    with pytest.raises(InputError, match="not of one model"):
        phase_balance([run, lens.load(build("llama", seed=1)).run([1])], phases=2)


def test_it_goes_to_a_file_and_back(found, tmp_path):
    found.to_netcdf(tmp_path / "balance.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "balance.nc", engine="h5netcdf") as kept:
        xr.testing.assert_identical(kept.load(), found)
