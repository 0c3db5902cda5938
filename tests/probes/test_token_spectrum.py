"""Spectra over positions: Parseval, white noise, planted periods, and bands read as words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from lens.base.errors import InputError
from lens.models.model import Model
from lens.probes.token_spectrum import (
    BANDS,
    Transform,
    band_readout,
    bands_of,
    frequencies,
    keep_band,
    power_of,
    token_spectrum,
)
from tests.models.families import build

TRANSFORMS: tuple[Transform, ...] = ("cosine", "fourier")


def wave(period: float, size: int, neurons: int = 3) -> torch.Tensor:
    """`[1, size + 1, neurons]`: a wave behind a first token that is something else."""
    positions = torch.arange(size, dtype=torch.float64)
    values = torch.cos(2 * torch.pi * positions[:, None] / period + torch.arange(neurons))
    return torch.cat([torch.full((1, neurons), 1e6, dtype=torch.float64), values])[None]


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("size", [64, 65])
def test_power_without_a_window_adds_up_to_the_sum_of_squares(transform: Transform, size: int):
    values = np.random.default_rng(0).standard_normal((size, 5)) + 3
    centred = values - values.mean(0)
    power = power_of(values, transform, window=False)
    assert power.sum(0) == pytest.approx((centred**2).sum(0), rel=1e-12)
    assert power[0] == pytest.approx(np.zeros(5), abs=1e-24)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_white_noise_is_flat(transform: Transform):
    found = token_spectrum(torch.randn(1, 257, 2000, dtype=torch.float64), transform=transform)
    flat = found.power.isel(layer=0).to_numpy()[1:]
    inner = flat if transform == "cosine" else flat[:-1] / 2  # the last bin is its own mirror image
    freedom = 1 if transform == "cosine" else 2
    error = np.sqrt(2 / (freedom * 2000))  # of the mean of squares over neurons
    assert (np.abs(inner - 1) < 4 * error).all()
    assert float(np.abs(inner - 1).mean()) == pytest.approx(error * np.sqrt(2 / np.pi), rel=0.2)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("window", [True, False])
def test_white_noise_has_the_shares_that_are_said_to_be_its(transform: Transform, window: bool):
    found = token_spectrum(torch.randn(1, 257, 2000, dtype=torch.float64), transform=transform, window=window)
    for name in ("band_share", "neuron_share"):
        assert found[name].isel(layer=0).to_numpy() == pytest.approx(found.white_share.to_numpy(), rel=0.03)
    if not window:  # cosines 1 to 3 of 255 are slower than half the text, or wave 1, which stands for two
        assert float(found.white_share[0]) == pytest.approx({"cosine": 3, "fourier": 2}[transform] / 255, rel=1e-9)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize(("period", "band"), [(200, 0), (80, 1), (32, 2), (8, 3), (2.5, 4)])
def test_a_planted_period_is_found_in_its_place_and_band(transform: Transform, period: float, band: int):
    found = token_spectrum(wave(period, 256), transform=transform, window=transform == "fourier")
    peak = float(found.frequency[int(found.power.isel(layer=0).argmax("frequency"))])
    assert peak == pytest.approx(1 / period, abs=1 / 256)
    assert int(found.band_share.isel(layer=0).argmax("band")) == band
    assert (found.dominant_band == band).all()
    assert float(found.neuron_share.isel(layer=0, band=band)) > 0.7


def test_every_neuron_counts_alike_in_one_share_and_by_its_power_in_the_other():
    slow, fast = wave(256, 256, 1), wave(2.5, 256, 1)
    found = token_spectrum(torch.cat([100 * slow, fast], -1))
    assert float(found.band_share[0, 0]) > 0.9
    assert float(found.neuron_share[0, 4]) == pytest.approx(0.5, abs=0.02)


def test_bands_share_their_edges_as_they_say():
    """A period of exactly half the text is no longer over half of it; one of 64, 16 or 4 is in the slower band."""
    for size, periods, wanted in (
        (256, (257, 129, 128, 64, 63, 16, 15, 4, 3.9), (0, 0, 1, 1, 2, 2, 3, 3, 4)),
        (64, (33, 32, 16, 4), (0, 2, 2, 3)),
        (16, (9, 8, 4, 2), (0, 3, 3, 4)),
    ):
        assert bands_of(1 / np.array(periods), size).tolist() == list(wanted)


def test_a_trend_is_slow_and_can_be_taken_away():
    line = torch.arange(257, dtype=torch.float64)[None, :, None] * torch.ones(3)
    noise = 0.1 * torch.randn(1, 257, 3, dtype=torch.float64)
    assert float(token_spectrum(line + noise).band_share[0, 0]) > 0.99
    assert float(token_spectrum(line + noise, detrend=True).band_share[0, 0]) < 0.1


def test_the_first_token_and_the_mean_are_left_out():
    states = torch.randn(2, 40, 6, dtype=torch.float64)
    other = states + 7
    other[:, 0] = 1e9
    assert np.allclose(token_spectrum(states).power, token_spectrum(other).power, rtol=1e-9)


# -- one band -----------------------------------------------------------------------------------------------------------


def test_bands_without_the_mean_add_up_to_the_states():
    states = torch.randn(2, 200, 6, dtype=torch.float64)
    mean = states[:, 1:].mean(1, keepdim=True)
    parts = [keep_band(states, band)[:, 1:] - mean for band in range(5)]
    assert torch.allclose(sum(parts) + mean, states[:, 1:], rtol=0, atol=1e-12)
    assert torch.equal(keep_band(states, 2)[:, 0], states[:, 0])
    for one in range(5):
        for other in range(one):
            assert abs(float((parts[one] * parts[other]).sum())) < 1e-10


def test_a_wave_passes_its_own_band_and_no_other():
    states = wave(2 * 199 / 25, 199, 1)  # the 25th cosine, but for its phase: about 16 tokens
    cosine = torch.tensor(np.cos(np.pi * 25 * (np.arange(199) + 0.5) / 199))[:, None]
    states[0, 1:] = cosine
    band = int(bands_of(frequencies(199, "cosine"), 199)[25])
    assert torch.allclose(keep_band(states, band)[0, 1:], cosine, atol=1e-12)
    assert keep_band(states, 4)[0, 1:].abs().max() < 1e-12


@pytest.fixture(scope="module")
def model():
    return Model(build("llama"))


def test_a_band_is_read_through_the_final_norm_and_head(model: Model):
    run = model.run([(5 * i + 3) % 128 for i in range(40)])
    assert run.logits is not None
    found = band_readout(run)
    assert list(found.band.to_numpy()) == [BANDS[number] for number in (0, 2, 3, 4)]
    for number, band in enumerate((0, 2, 3, 4)):
        wanted = model.unembed(keep_band(run.residual[-1], band)).argmax(-1).numpy()
        assert (found.token_id.to_numpy()[number] == wanted).all()
        agrees = wanted == run.logits.argmax(-1).numpy()
        assert float(found.agreement[number]) == pytest.approx(agrees[1:].mean())


def test_a_run_says_where_it_came_from_and_survives_its_file(model: Model, tmp_path):
    found = token_spectrum(model.run(list(range(40))))
    assert found.attrs["model"] == model.name
    assert found.sizes["layer"] == 4
    found.to_netcdf(tmp_path / "found.nc", engine="h5netcdf")
    assert xr.load_dataset(tmp_path / "found.nc", engine="h5netcdf").identical(found)


def test_what_has_no_spectrum_is_refused():
    with pytest.raises(InputError, match="nine positions"):
        token_spectrum(torch.zeros(2, 8, 4))
    with pytest.raises(InputError, match="'wavelet'.*cosine, fourier"):
        token_spectrum(torch.zeros(2, 20, 4), transform="wavelet")
    with pytest.raises(InputError, match=r"Band 1 of 63 tokens is empty.*0 \(over half the text\), 2 \(64 to 16 tokens\)"):
        keep_band(torch.zeros(64, 4), 1)
